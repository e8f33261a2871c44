"""Tables in, tidy metric rows out: discrimination, calibration, time to event, net benefit, intervals by patient, fidelity of synthetic data.

Evaluators see the travelling tables and nothing else of the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.evaluate.calibration import calibration_curve
    from cehrxgpt.evaluate.discrimination import auprc, auroc
    from cehrxgpt.evaluate.predictions import evaluate_predictions

_PUBLIC = {"auprc": "discrimination", "auroc": "discrimination", "calibration_curve": "calibration", "evaluate_predictions": "predictions"}

__all__ = ["auprc", "auroc", "calibration_curve", "evaluate_predictions"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"cehrxgpt.evaluate.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'cehrxgpt.evaluate' has no attribute '{name}'")

"""Zero-shot prediction: `forecast(model, events, at, tasks, config)` by simulated futures, `one_pass` by hazards. Loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.forecast.estimators import monte_carlo
    from cehrxgpt.forecast.hazards import OnePass, OnePassConfig, one_pass
    from cehrxgpt.forecast.risk import Forecast, ForecastConfig, forecast

_PUBLIC = {
    "Forecast": "cehrxgpt.forecast.risk",
    "ForecastConfig": "cehrxgpt.forecast.risk",
    "OnePass": "cehrxgpt.forecast.hazards",
    "OnePassConfig": "cehrxgpt.forecast.hazards",
    "forecast": "cehrxgpt.forecast.risk",
    "one_pass": "cehrxgpt.forecast.hazards",
    "monte_carlo": "cehrxgpt.forecast.estimators",
}

__all__ = ["Forecast", "ForecastConfig", "OnePass", "OnePassConfig", "forecast", "monte_carlo", "one_pass"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}")

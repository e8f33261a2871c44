"""Zero-shot prediction: `forecast(model, events, at, tasks, config)`. Loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.forecast.config import ForecastConfig
    from cehrxgpt.forecast.hazards import OnePass, OnePassConfig, one_pass
    from cehrxgpt.forecast.journal import Journal
    from cehrxgpt.forecast.risk import Forecast, forecast

_PUBLIC = {
    "Forecast": "cehrxgpt.forecast.risk",
    "ForecastConfig": "cehrxgpt.forecast.config",
    "Journal": "cehrxgpt.forecast.journal",
    "OnePass": "cehrxgpt.forecast.hazards",
    "OnePassConfig": "cehrxgpt.forecast.hazards",
    "forecast": "cehrxgpt.forecast.risk",
    "one_pass": "cehrxgpt.forecast.hazards",
}

__all__ = ["Forecast", "ForecastConfig", "Journal", "OnePass", "OnePassConfig", "forecast", "one_pass"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}")

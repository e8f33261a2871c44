"""The stages, file to file: read artefacts, call the function that does the work, write the result whole or not at all.

The command line and the pipeline call the same functions, so a verb typed by hand and a stage of a recipe cannot differ. Each
returns the figures that matter as plain JSON values. Libraries are imported where they are used: a verb pays for its own alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.stages.adapting import adapt
    from cehrxgpt.stages.data import ingest, inspect, read_codes, simulate, tokenize
    from cehrxgpt.stages.discovery import discover
    from cehrxgpt.stages.embedding import embed, embed_all, probe, probe_all
    from cehrxgpt.stages.forecasting import choose_rows, forecast, forecast_all
    from cehrxgpt.stages.judging import evaluate_all, evaluate_predictions, evaluate_synthetic, report
    from cehrxgpt.stages.labels import label, label_all, list_tasks, show_task, task_settings
    from cehrxgpt.stages.training import pretrain, training_config
    from cehrxgpt.stages.truth import true_risks
    from cehrxgpt.stages.writing import synthesize, synthesize_and_ingest

_PUBLIC = {
    "adapting": ("adapt",),
    "data": ("ingest", "inspect", "read_codes", "simulate", "tokenize"),
    "discovery": ("discover",),
    "embedding": ("embed", "embed_all", "probe", "probe_all"),
    "forecasting": ("choose_rows", "forecast", "forecast_all"),
    "judging": ("evaluate_all", "evaluate_predictions", "evaluate_synthetic", "report"),
    "labels": ("label", "label_all", "list_tasks", "show_task", "task_settings"),
    "training": ("pretrain", "training_config"),
    "truth": ("true_risks",),
    "writing": ("synthesize", "synthesize_and_ingest"),
}
_MODULE = {name: f"cehrxgpt.stages.{module}" for module, names in _PUBLIC.items() for name in names}

__all__ = [  # loaded on first use
    "adapt",
    "choose_rows",
    "discover",
    "embed",
    "embed_all",
    "evaluate_all",
    "evaluate_predictions",
    "evaluate_synthetic",
    "forecast",
    "forecast_all",
    "ingest",
    "inspect",
    "label",
    "label_all",
    "list_tasks",
    "pretrain",
    "probe",
    "probe_all",
    "read_codes",
    "report",
    "show_task",
    "simulate",
    "synthesize",
    "synthesize_and_ingest",
    "task_settings",
    "tokenize",
    "training_config",
    "true_risks",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(import_module(_MODULE[name]), name)
    raise AttributeError(f"module 'cehrxgpt.stages' has no attribute '{name}'")

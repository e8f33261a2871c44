"""The true risks of a simulated population, at the prediction times that are forecast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt.atomic import atomic_path
from cehrxgpt.console import Progress
from cehrxgpt.stages.forecasting import choose_rows
from cehrxgpt.stages.tables import label_files, read_labels, silent

if TYPE_CHECKING:
    pass


def partial_progress(progress: Progress, what: str) -> Callable[[int, int], None]:
    """A (done, total) callback that names what it counts."""
    return lambda done, total: progress(done, total, what)


def true_risks(cdm: Path, events: Path, labels: Path, out: Path, settings: Any, *, samples: int, progress: Progress = silent) -> dict[str, Any]:
    """The simulator's true risk at the prediction times that are forecast, for the tasks that have one."""
    import polars as pl

    from cehrxgpt.events import EventDataset
    from cehrxgpt.simulate import true_risk, true_tasks

    tables = {path.stem: read_labels(path) for path in label_files(labels)}
    rows = choose_rows(tables, EventDataset(events), split=settings.split, max_rows=settings.max_rows, seed=settings.seed)
    figures, known = {}, true_tasks(cdm)
    with atomic_path(out, folder=True, force=True) as partial:
        for task in [name for name in tables if name in known]:
            at = rows.filter(pl.col("task") == task)
            truth = true_risk(cdm, at, task, samples=samples, progress=partial_progress(progress, task))
            truth.write_parquet(partial / f"{task}.parquet")
            figures[task] = {
                "rows": truth.height,
                "mean_true_risk": None if not truth.height else round(float(truth["true_risk"].to_numpy().mean()), 4),
            }
    return figures

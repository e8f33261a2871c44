"""Capability 2: forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.config import from_dict
from cehrxgpt.console import Progress
from cehrxgpt.errors import InputError
from cehrxgpt.stages.tables import Settings, check_subjects, label_files, read_labels, silent, write_table

if TYPE_CHECKING:
    import polars as pl

    from cehrxgpt.events import EventDataset


def choose_rows(labels: Mapping[str, pl.DataFrame], dataset: EventDataset, *, split: str | None, max_rows: int | None, seed: int) -> pl.DataFrame:
    """The rows to forecast: of one split, at most `max_rows` of each task, drawn by seed.

    Every prediction time has one place in a random order and each task takes its first ones. So each has a simple random sample of its
    rows, and tasks that ask about the same times mostly draw the same and share their futures.
    """
    import numpy as np
    import polars as pl

    key = ["subject_id", "prediction_time"]
    rows = pl.concat([frame.select(list(s.LABEL_SCHEMA.names)) for frame in labels.values()])
    if split is not None:
        if split not in dataset.splits:
            raise InputError(f"{dataset.root}: no split '{split}'; it has {', '.join(dataset.splits)}")
        chosen = dataset.subject_splits.filter(pl.col("split") == split).select("subject_id")
        rows = rows.join(chosen, on="subject_id", how="semi", maintain_order="left")
    if max_rows is None:
        return rows
    times = rows.select(key).unique().sort(key)
    times = times.with_columns(pl.Series("_place", np.random.default_rng(seed).permutation(times.height)))
    placed = rows.join(times, on=key, how="left", maintain_order="left")
    return placed.filter(pl.col("_place").rank("ordinal").over("task") <= max_rows).drop("_place")


def _only_name(tasks: Sequence[str]) -> str | None:
    """Name of the task, where there is just one: labels that do not name theirs are of it."""
    from cehrxgpt.tasks import load_task

    return load_task(tasks[0]).name if len(tasks) == 1 else None


def _asked(rows: pl.DataFrame, tasks: Sequence[str]) -> list[str]:
    """The task of each name in the rows: one of `tasks` (names or files) that is called so, else the library's.

    Raises:
        InputError: the outcome is that of a cohort table, which futures do not have.
    """
    from cehrxgpt.tasks import load_task
    from cehrxgpt.tasks.cohorts import is_cohort_outcome

    given = {load_task(task).name: task for task in tasks}
    hidden = [name for name in rows["task"].unique(maintain_order=True).to_list() if name not in given and is_cohort_outcome(name)]
    if hidden:
        raise InputError(
            f"the outcome of {hidden[0]} is entering a cohort, which no simulated future holds: forecast a task whose outcome is in the events"
            f" (label EVENTS --cohort TABLE --task NAME) and judge it by these labels (evaluate predictions RISK --labels LABELS --task NAME)"
        )
    return [given.get(name, name) for name in rows["task"].unique(maintain_order=True).to_list()]


def _forecast(
    model: Path, dataset: EventDataset, rows: pl.DataFrame, tasks: Sequence[str], settings: Settings, *, keep: bool, progress: Progress
) -> Any:
    from cehrxgpt.forecast.risk import ForecastConfig
    from cehrxgpt.forecast.risk import forecast as run
    from cehrxgpt.model.hub import load_model
    from cehrxgpt.tasks import load_task, resolve

    config = replace(from_dict(ForecastConfig, dict(settings), where="forecast"), trajectories=keep)
    loaded = [resolve(load_task(task), dataset.codes) for task in tasks]
    return run(load_model(model), dataset, rows, loaded, config, progress=progress)


def forecast(
    model: Path,
    events: Path,
    labels: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    split: str | None = None,
    max_rows: int | None = None,
    trajectories: Path | None = None,
    tasks: Sequence[str] = (),
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Risks of the label rows' outcomes.

    The tasks are those that the labels name: of the library, or among `tasks` (names or YAML files). Labels that name none are of the one in `tasks`.
    """
    from cehrxgpt.events import EventDataset

    inputs = [model, events, *labels]
    refuse_existing(out, force=force, inputs=inputs)
    if trajectories is not None:
        refuse_existing(trajectories, force=force, inputs=inputs)
    dataset = EventDataset(events)
    tables = {str(path): read_labels(path, unnamed=_only_name(tasks)) for path in labels}
    for name, frame in tables.items():
        check_subjects(frame, dataset, what=name)
    rows = choose_rows(tables, dataset, split=split, max_rows=max_rows, seed=int(settings.get("seed", 0)))
    found = _forecast(model, dataset, rows, _asked(rows, tasks), settings, keep=trajectories is not None, progress=progress)
    with ExitStack() as outputs:
        # Both are whole before either appears under its name.
        if trajectories is not None and found.trajectories is not None:
            partial = outputs.enter_context(atomic_path(trajectories, folder=True, force=force))
            found.trajectories.write_parquet(partial / "trajectories.parquet")
            found.samples.write_parquet(partial / "samples.parquet")
        write_table(found.predictions, out, force=force)
    return dict(found.summary)


def forecast_all(
    model: Path, events: Path, labels: Path, tasks: Sequence[str], out: Path, settings: Any, *, progress: Progress = silent
) -> dict[str, Any]:
    """Forecast a run's tasks from one pool of futures per prediction time; keeps the futures of a few prediction times for the report."""
    import polars as pl

    from cehrxgpt.events import EventDataset

    dataset = EventDataset(events)
    tables = {path.stem: read_labels(path) for path in label_files(labels)}
    rows = choose_rows(tables, dataset, split=settings.split, max_rows=settings.max_rows, seed=settings.seed)
    chosen = {"samples": settings.samples, "seed": settings.seed, "max_new_tokens": settings.max_new_tokens}
    found = _forecast(model, dataset, rows, _asked(rows, tasks), chosen, keep=True, progress=progress)
    with atomic_path(out, folder=True, force=True) as partial:
        for task in rows["task"].unique(maintain_order=True).to_list():
            found.predictions.filter(pl.col("task") == task).write_parquet(partial / f"{task}.parquet")
        found.samples.write_parquet(partial / "samples.parquet")
        (partial / "trajectories").mkdir()
        shown = found.predictions.filter(pl.col("predicted_boolean_probability").is_not_null()).select("subject_id", "prediction_time").head(8)
        kept = found.trajectories.join(shown.unique(), on=["subject_id", "prediction_time"], how="semi", maintain_order="left")
        kept.write_parquet(partial / "trajectories" / "0.parquet")
    return dict(found.summary)

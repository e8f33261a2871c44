"""Capability 2: forecasts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.config import fingerprint, from_dict
from cehrxgpt.console import Progress
from cehrxgpt.errors import ConfigError, InputError, MismatchError
from cehrxgpt.manifest import code_fingerprint, content_fingerprint, files_of, versions
from cehrxgpt.stages.judging import curves_beside
from cehrxgpt.stages.metric_tables import alike
from cehrxgpt.stages.tables import Settings, check_subjects, label_files, read_labels, refuse_other_format, silent, write_table

if TYPE_CHECKING:
    import polars as pl

    from cehrxgpt.events import EventDataset
    from cehrxgpt.forecast import Forecast, ForecastConfig, Journal
    from cehrxgpt.tasks import Task

TIME_TO_EVENT = "time_to_event"  # the estimator that draws no futures
_PEOPLE_WHO_DIFFER = 20  # so many people's risks that are all but one are a thing to tell
_SHOWN = 8  # prediction times whose futures a run keeps, for the report
CURVE_POINTS = 24  # times at which a curve is told, evenly over the window


def choose_rows(labels: Mapping[str, pl.DataFrame], dataset: EventDataset, *, split: str | None, max_rows: int | None, seed: int) -> pl.DataFrame:
    """The rows to forecast: of one split, at most `max_rows` of each task, drawn by seed.

    Every prediction time has one place in a random order and each task takes its first ones. So each has a simple random sample of its
    rows, and tasks that ask about the same times mostly draw the same and share their futures.

    Raises:
        InputError: there is no such split, or rows stand in several files.
    """
    import numpy as np
    import polars as pl

    key = ["subject_id", "prediction_time"]
    _refuse_twice(labels)
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


def _strangers(labels: Mapping[str, pl.DataFrame], dataset: EventDataset, *, sampled: bool) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """The labels, and how many rows are of subjects that the data lack, a line for each file that has some. These are left out where rows are
    `sampled` or of one split, and stand without a forecast where all rows are asked for. Raises `MismatchError` where a file has no others."""
    tables, notes = dict(labels), []
    for name, frame in labels.items():
        check_subjects(frame, dataset, what=name, any_known=True)
        known = frame.join(dataset.subject_splits, on="subject_id", how="semi", maintain_order="left")
        if known.height < frame.height:
            fate = "are left out" if sampled else "have no forecast"
            notes.append(
                f"{frame.height - known.height:,} of {frame.height:,} rows of {name} are of subjects that are not in {dataset.root}, and {fate}"
            )
            if sampled:
                tables[name] = known
    return tables, notes


def _refuse_twice(labels: Mapping[str, pl.DataFrame]) -> None:
    """Raise `InputError` where a row of a task stands in several files: it would be forecast and counted as often."""
    import polars as pl

    key = ["task", "subject_id", "prediction_time"]
    rows = pl.concat([frame.select(key).with_columns(pl.lit(file).alias("_file")) for file, frame in labels.items()])
    twice = rows.filter(pl.struct(key).is_duplicated())
    if twice.height:
        task = twice["task"][0]
        mine = twice.filter(pl.col("task") == task)
        files = ", ".join(mine["_file"].unique(maintain_order=True).to_list())
        raise InputError(f"labels: {mine.select(key).n_unique()} rows of task {task} stand in more than one file ({files}); give each row once")


def _refuse_same_place(trajectories: Path, out: Path) -> None:
    """Raise `InputError` where the folder of trajectories would replace another output."""
    for other in (out, curves_beside(out), pools_folder(out)):
        if other.resolve().is_relative_to(trajectories.resolve()):
            raise InputError(f"--trajectories {trajectories} would replace {other}, which this forecast writes, too; give another folder")


def _only_name(tasks: Sequence[Task]) -> str | None:
    """Name of the task, where there is just one: labels that do not name theirs are of it."""
    return tasks[0].name if len(tasks) == 1 else None


def _refuse_unasked(tables: Mapping[str, pl.DataFrame], tasks: Sequence[Task]) -> None:
    """Raise `InputError` where a task is given that no row asks for."""
    named = list(dict.fromkeys(name for table in tables.values() for name in table["task"].unique(maintain_order=True).to_list()))
    unasked = [task.name for task in tasks if task.name not in named]
    if unasked and all(table.height for table in tables.values()):
        raise InputError(f"--task {unasked[0]}: no row asks for it; the labels are of {', '.join(named)}: give labels of it, or leave --task out")


def _refuse_edited(labels: Sequence[Path], asked: Sequence[Task]) -> None:
    """Raise `MismatchError` where labels were made by another definition of a task: they and the forecast would answer different questions."""
    from cehrxgpt.tasks.labeler import question, question_of_file

    tasks = {task.name: task for task in asked}
    for path in labels:
        name, made_by = question_of_file(path) or (None, None)
        if name in tasks and question(tasks[name]) != made_by:
            raise MismatchError(f"{path}: these labels were made by another definition of {name} (its outcome or window have changed); label anew")


def _asked(rows: pl.DataFrame, tasks: Sequence[Task]) -> list[Task]:
    """The task of each name in the rows: one of `tasks` that is called so, else the library's.

    Raises:
        InputError: the outcome is that of a cohort table, which futures do not have, or the task is neither given nor of the library.
    """
    from cehrxgpt.tasks import library_tasks, load_task
    from cehrxgpt.tasks.cohorts import is_cohort_outcome

    given = {task.name: task for task in tasks}
    asked = rows["task"].unique(maintain_order=True).to_list()
    hidden = [name for name in asked if name not in given and is_cohort_outcome(name)]
    if hidden:
        raise InputError(
            f"the outcome of {hidden[0]} is entering a cohort, which no simulated future holds: forecast a task whose outcome is in the events"
            f" (label EVENTS --cohort TABLE --task NAME) and judge it by these labels (evaluate predictions RISK --labels LABELS --task NAME)"
        )
    if strangers := [name for name in asked if name not in given and name not in library_tasks()]:
        raise InputError(f"the labels are of the task {strangers[0]}, which is not in the library; give its file as well: --task FILE.yaml")
    return [load_task(given.get(name, name)) for name in asked]


def _forecast(
    model: Path,
    dataset: EventDataset,
    rows: pl.DataFrame,
    tasks: Sequence[Task],
    config: ForecastConfig,
    *,
    pools: Path,
    share: tuple[int, int] = (0, 1),
    progress: Progress,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Forecast, Journal]:
    """The forecast, going on from its own pools of futures in the folder `pools`; and the journal of them."""
    from cehrxgpt.config import to_dict
    from cehrxgpt.forecast import forecast as run
    from cehrxgpt.stages.loading import load
    from cehrxgpt.tasks import resolve_all

    loaded, known = resolve_all(tasks, dataset.codes), load(model)
    device = known.decoder.embedding.weight.device.type  # its float32 is not another's
    inputs = [content_fingerprint(model), device, _stamps(dataset.root), hashlib.blake2b(rows.write_csv().encode(), digest_size=8).hexdigest()]
    key = fingerprint([inputs, to_dict(config), [repr(task) for task in loaded], versions(), code_fingerprint()])
    journal = open_journal(pools, key, share, say)
    return run(known, dataset, rows, loaded, config, journal=journal, progress=progress), journal


def open_journal(pools: Path, key: str, share: tuple[int, int], say: Callable[[str], None]) -> Journal:
    """The journal of the forecast `key` in the folder `pools`; that it goes on is told at once, as it would otherwise be done in no time."""
    from cehrxgpt.forecast import Journal

    journal = Journal(pools, key, share)
    if kept := journal.kept():
        say(f"going on from what was drawn before: {kept:,} {'pool' if kept == 1 else 'pools'} of futures in {pools}")
    return journal


def _one_pass(
    model: Path, dataset: EventDataset, rows: pl.DataFrame, tasks: Sequence[Task], timeline: Path | None, curve_points: int, progress: Progress
) -> Any:
    """What the time-to-event head says, with standard errors where there is the store that it was trained on."""
    from cehrxgpt.forecast.hazards import OnePassConfig, asked_events, head_of, one_pass
    from cehrxgpt.objectives.event_errors import hazard_errors
    from cehrxgpt.stages.loading import load
    from cehrxgpt.store.format import TokenStore
    from cehrxgpt.tasks import resolve_all

    loaded, known = load(model), resolve_all(tasks, dataset.codes)
    head, errors = head_of(loaded), None
    if head is not None and timeline is not None:
        store = TokenStore(timeline)
        if store.vocabulary.fingerprint != loaded.vocabulary.fingerprint:
            raise MismatchError(f"{timeline} was written with another vocabulary than that of {model}; give the store that the model was trained on")
        errors = hazard_errors(loaded.decoder, head, store, asked_events(loaded, head, known), progress=progress)
    return one_pass(loaded, dataset, rows, known, OnePassConfig(curve_points=curve_points), head=head, errors=errors, progress=progress)


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a folder's Parquet files: whether events have changed since, without reading them all."""
    files = [path for path in files_of(folder) if path.suffix == ".parquet"]
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def pools_folder(out: Path) -> Path:
    """Where forecasts keep the pools they have drawn until they are whole: beside the output, a folder each."""
    return out.parent / f".{out.name}.pools"


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
    curves: bool = False,
    timeline: Path | None = None,
    tasks: Sequence[str] = (),
    share: tuple[int, int] | None = None,
    force: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Risks of the label rows' outcomes.

    The tasks are those that the labels name: of the library, or among `tasks` (names or YAML files). Labels that name none are of the one in
    `tasks`. What is drawn is kept beside `out` until it is whole, so that an interrupted forecast goes on where it was. With a `share`
    (i, n) only that part of the futures is drawn and kept there, for a call without one to put together. Where the estimator is
    `time_to_event`, no futures are drawn: the model's head says the risk, and how sure it is where the `timeline` is given that it was
    trained on.
    """
    from cehrxgpt.events import EventDataset
    from cehrxgpt.forecast import ForecastConfig
    from cehrxgpt.tasks import load_task

    inputs = [model, events, *labels]
    refuse_other_format(out)
    refuse_existing(out, force=force, inputs=inputs)
    refuse_existing(curves_beside(out), force=force, inputs=inputs)  # without `curves`, too: those of a former forecast would be taken for this one's
    if trajectories is not None:
        refuse_existing(trajectories, force=force, inputs=inputs)
        _refuse_same_place(trajectories, out)
    config = None  # of futures; what cannot be is said before anything is read
    if settings.get("estimator") == TIME_TO_EVENT:
        _refuse_without_head(model, {"--trajectories": trajectories, "--share": share})
    else:
        drawn = {"trajectories": trajectories is not None} | ({"curve_points": CURVE_POINTS} if curves else {})
        config = from_dict(ForecastConfig, dict(settings) | drawn, where="forecast")
    dataset, given = EventDataset(events), [load_task(task) for task in tasks]
    tables = {str(path): read_labels(path, unnamed=_only_name(given)) for path in labels}
    _refuse_unasked(tables, given)
    tables, notes = _strangers(tables, dataset, sampled=split is not None or max_rows is not None)
    rows = choose_rows(tables, dataset, split=split, max_rows=max_rows, seed=int(settings.get("seed", 0)))
    asked = _asked(rows, given)
    _refuse_edited(labels, asked)
    if config is None:
        told = _one_pass(model, dataset, rows, asked, timeline, CURVE_POINTS if curves else 0, progress)
        _write(told.predictions, told.curves if curves else None, out, force=force)
        if timeline is None and told.summary["predicted"]:
            notes.append("std_error is null: give --timeline, the store that the model was trained on, to have it")
        notes += alike(told.predictions, "the model is hardly trained, or these rows are alike", least_people=_PEOPLE_WHO_DIFFER)
        return {"mean_risk": _mean_risk(told.predictions), **told.summary, "notes": [*notes, *told.notes]}
    pools = pools_folder(out)
    found, journal = _forecast(model, dataset, rows, asked, config, pools=pools, share=share or (0, 1), progress=progress, say=say)
    if share is not None:
        notes.append(f"kept in {pools}: when all {share[1]} shares are drawn, the same command without a share writes {out}")
        return {"share": f"{share[0] + 1}/{share[1]}", "kept": str(pools), **found.summary, "notes": [*notes, *_notes(found, journal)]}
    _write(found.predictions, found.curves, out, found, trajectories, force=force)
    if curves:
        notes += [f"{task.name}: no curve, as its window ends with a stay" for task in asked if task.follow_days is None]
    journal.clear()
    return {"mean_risk": _mean_risk(found.predictions), **found.summary, "notes": [*notes, *_notes(found, journal)]}


def _notes(found: Forecast, journal: Journal) -> list[str]:
    """What is to say of a forecast, and of pools that were drawn before."""
    again = [f"went on from what was drawn before: pools of futures in {journal.folder} ({journal.pools_read:,})"] if journal.pools_read else []
    size = journal.others()
    left = [f"{size / 2**20:.1f} MiB of other forecasts that were not finished lie in {journal.folder}; they are not used"] if size else []
    return [*again, *found.notes, *left]


def _refuse_without_head(model: Path, of_futures: Mapping[str, object]) -> None:
    """Raise where something is asked of futures, none of which are drawn (`ConfigError`), or the model has no head to ask (`MismatchError`)."""
    from cehrxgpt.objectives.heads import trained_with

    in_vain = [name for name, value in of_futures.items() if value is not None]
    if in_vain:
        raise ConfigError(f"--estimator {TIME_TO_EVENT} draws no futures, so there are none for {' and '.join(in_vain)}; leave it out")
    if not trained_with(model, TIME_TO_EVENT):
        raise MismatchError(
            f"{model} was trained without the objective {TIME_TO_EVENT} and tells no hazards; forecast by futures (--estimator mc, scope or"
            f" reach), or train with it, as the recipe demo does"
        )


def _write(
    predictions: pl.DataFrame, curves: pl.DataFrame | None, out: Path, found: Forecast | None = None, trajectories: Path | None = None, *, force: bool
) -> None:
    """Predictions, curves and trajectories, all whole before any appears under its name; curves of a former forecast go."""
    with ExitStack() as outputs:
        if found is not None and trajectories is not None and found.trajectories is not None:
            partial = outputs.enter_context(atomic_path(trajectories, folder=True, force=force))
            found.trajectories.write_parquet(partial / "trajectories.parquet")
            found.samples.write_parquet(partial / "samples.parquet")
        if curves is not None:
            curves.write_parquet(outputs.enter_context(atomic_path(curves_beside(out), force=force)))
        write_table(predictions, out, force=force)
    if curves is None:
        curves_beside(out).unlink(missing_ok=True)


def _mean_risk(predictions: pl.DataFrame) -> dict[str, float | None]:
    """Of each task, over the rows that were predicted."""
    import polars as pl

    risks = predictions.group_by("task", maintain_order=True).agg(pl.col("predicted_boolean_probability").mean())
    return {task: None if risk is None else round(risk, 4) for task, risk in risks.iter_rows()}


def forecast_all(
    model: Path, events: Path, labels: Path, tasks: Sequence[str], out: Path, settings: Any, *, progress: Progress = silent
) -> dict[str, Any]:
    """Forecast a run's tasks from one pool of futures per prediction time, and by the time-to-event head where the model has one.

    The head's rows stand below the futures' in each task's file, of the same prediction times. Keeps the futures of a few of these for the report.
    """
    import polars as pl

    from cehrxgpt.events import EventDataset
    from cehrxgpt.forecast import ForecastConfig
    from cehrxgpt.objectives.heads import trained_with
    from cehrxgpt.tasks import load_task

    dataset = EventDataset(events)
    tables = {path.stem: read_labels(path) for path in label_files(labels)}
    rows = choose_rows(tables, dataset, split=settings.split, max_rows=settings.max_rows, seed=settings.seed)
    chosen = {name: getattr(settings, name) for name in ("estimator", "samples", "seed", "max_new_tokens", "target_std_error")}
    pools = pools_folder(out)
    drawn = {"trajectories": settings.estimator != "reach", "trajectories_of": 8 * _SHOWN}  # some of them may be refused
    config = from_dict(ForecastConfig, chosen | drawn, where="forecast")
    asked = _asked(rows, [load_task(task) for task in tasks])
    found, journal = _forecast(model, dataset, rows, asked, config, pools=pools, progress=progress)
    told = found.predictions
    if trained_with(model, TIME_TO_EVENT):
        answered = told.filter(pl.col("predicted_boolean_probability").is_not_null())
        same = rows.join(answered, on=["task", "subject_id", "prediction_time"], how="semi", maintain_order="left")
        read = _one_pass(model, dataset, same, asked, None, 0, progress).predictions
        told = pl.concat([told, read.filter(pl.col("predicted_boolean_probability").is_not_null())])
    with atomic_path(out, folder=True, force=True) as partial:
        for task in rows["task"].unique(maintain_order=True).to_list():
            told.filter(pl.col("task") == task).write_parquet(partial / f"{task}.parquet")
        found.samples.write_parquet(partial / "samples.parquet")
        if found.trajectories is not None:
            (partial / "trajectories").mkdir()
            key = ["subject_id", "prediction_time"]
            predicted = found.predictions.filter(pl.col("predicted_boolean_probability").is_not_null())
            shown = predicted.join(found.trajectories, on=key, how="semi", maintain_order="left").select(key).unique(maintain_order=True).head(_SHOWN)
            kept = found.trajectories.join(shown, on=key, how="semi", maintain_order="left")
            kept.write_parquet(partial / "trajectories" / "0.parquet")
    journal.clear()
    return {**found.summary, "notes": _notes(found, journal)}

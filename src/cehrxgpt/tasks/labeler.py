"""From a task and events to labels, shard by shard, with an account of who fell out where.

Nothing is dropped in silence: every step of the attrition says how many subjects and rows went in, how many came out, and why. A task
whose concepts the data does not have yields no rows and says so; it never yields all-negative labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path
from cehrxgpt.config import fingerprint
from cehrxgpt.errors import refuse_name
from cehrxgpt.events import EventDataset
from cehrxgpt.tasks.codes import DataFacts, resolve
from cehrxgpt.tasks.definition import Task
from cehrxgpt.tasks.files import library, load_task
from cehrxgpt.tasks.index import history_holds, index_steps, person_facts
from cehrxgpt.tasks.outcome import days, had_before, is_after, outcome_in_window, with_codes

LABEL_DTYPES: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean(),
    "task": pl.String(),
    "time_to_event_days": pl.Float64(),
    "observed": pl.Boolean(),
    "end_reason": pl.String(),
}
"""The LabelTable's columns as Polars types (twin of `schema.LABEL_SCHEMA`)."""

_MANY = 100  # rows of which none is positive that are no accident
_QUESTION = "cehrxgpt.question"  # key in a label file
_COLUMNS = ("subject_id", "time", "code", "end_time", "available_time", "time_precision", "visit_id", "numeric_value", "unit", "operator")


@dataclass(frozen=True)
class Labelled:
    """Labels, and how they came about.

    Attributes:
        labels: LabelTable, sorted by subject and prediction time.
        attrition: one mapping per step: `step`, `subjects`, `rows` (left after it; None before the index), `dropped_subjects`,
            `dropped_rows`, `note`.
        task: as it was asked, concept sets widened by the data's vocabulary.
        question: see the function of that name; kept in the file, so that a forecast of an edited task can be told.
    """

    labels: pl.DataFrame
    attrition: list[dict[str, Any]]
    task: Task
    question: str

    @property
    def counts(self) -> dict[str, int]:
        """Rows, subjects, and how many labels are positive, negative, null."""
        value = self.labels["boolean_value"]
        positive, negative = int(value.sum() or 0), int((~value).sum() or 0)
        subjects = self.labels["subject_id"].n_unique()
        return {"rows": value.len(), "subjects": subjects, "positive": positive, "negative": negative, "null": value.null_count()}

    @property
    def note(self) -> str | None:
        """Why there are no rows, if there are none; that of many none has an outcome which hangs on values, whose range may be of another unit."""
        if self.labels.height:
            valued = [leaf.describe_concepts() for _, leaf in self.task.outcome.leaves() if leaf.by_value and not leaf.units]
            if not valued or self.counts["positive"] or self.counts["negative"] < _MANY:
                return None
            return f"no row has the outcome ({' or '.join(valued)}, of any unit): does the range mean the unit of the data?"
        empty = next((step for step in self.attrition if step["rows"] == 0), None)
        return None if empty is None else (empty["note"] or f"nobody is left after: {empty['step']}")

    def write(self, out: str | Path, *, force: bool = False) -> None:
        """Write the labels as Parquet, atomically."""
        with atomic_path(out, force=force) as partial:
            self.labels.write_parquet(partial, metadata={_QUESTION: f"{self.task.name} {self.question}"})


def question(task: Task) -> str:
    """Fingerprint of what a task, as it was written, asks of the future: outcome and window, whoever is asked about. Which stay it is that closes the
    window is said by the index."""
    sets = {name: task.concept_sets[name] for way, name in task.uses() if way[0] in ("outcome", "competing")}
    stay = task.index.visit if task.in_stay else ()
    return fingerprint([task.outcome, task.competing, task.horizon_days, task.gap_days, task.first_onset, task.recurrence, sets, stay])


def question_of_file(path: Path) -> tuple[str, str] | None:
    """Name of the task that the labels in a file are of, and its question; None where the file does not say."""
    said = pl.read_parquet_metadata(path).get(_QUESTION) if path.is_file() and path.suffix == ".parquet" else None
    name, _, asked = (said or "").rpartition(" ")
    return (name, asked) if name else None


class _Attrition:
    """Sums the steps over shards; subjects are distinct across shards, so their counts add up."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def add(self, step: str, rows: pl.DataFrame) -> None:
        entry = self.steps.setdefault(step, [0, 0])
        entry[0] += rows["subject_id"].n_unique()
        entry[1] += rows.height

    def finish(self, subjects: int, *, note: str) -> list[dict[str, Any]]:
        # There are no rows before there is an index: null, not zero.
        result: list[dict[str, Any]] = [
            {"step": "subjects in the data", "subjects": subjects, "rows": None, "dropped_subjects": 0, "dropped_rows": 0, "note": note}
        ]
        before_subjects, before_rows = subjects, None
        for step, (people, rows) in self.steps.items():
            dropped = 0 if before_rows is None else before_rows - rows
            entry = {"step": step, "subjects": people, "rows": rows, "dropped_subjects": before_subjects - people, "dropped_rows": dropped}
            result.append(entry | {"note": ""})
            before_subjects, before_rows = people, rows
        return result


def _eligible(task: Task, events: pl.DataFrame, attrition: _Attrition) -> pl.DataFrame:
    """Index rows that may be asked about, with the person's facts."""
    for step, rows in index_steps(task, events):
        attrition.add(step, rows)
    rows = rows.join(person_facts(events), on="subject_id", how="left", maintain_order="left")

    rows = rows.filter(~_dead(task, events, rows))
    attrition.add("alive at the prediction time", rows)
    if task.censoring != "closed_world":
        rows = rows.filter(pl.col("observed_until") + days(task.grace_days) >= pl.col("prediction_time"))
        attrition.add("under observation at the prediction time", rows)
    if task.history_days:
        rows = rows.filter(pl.col("observed_from") <= pl.col("prediction_time") - days(task.history_days))
        attrition.add(f"history of {task.history_days} days", rows)
    for criterion in task.inclusion:
        rows = rows.filter(history_holds(task, criterion, events, rows, known=True))
        attrition.add(f"included: {criterion.describe()}", rows)
    for criterion in task.exclusion:
        rows = rows.filter(~history_holds(task, criterion, events, rows, known=False))
        attrition.add(f"excluded: {criterion.describe()}", rows)
    if task.first_onset:
        rows = rows.filter(~had_before(task, events, rows))
        attrition.add(f"first onset: no {task.outcome.describe()} before", rows)
    if task.recurrence:
        rows = rows.filter(had_before(task, events, rows))
        attrition.add(f"recurrence: {task.outcome.describe()} before", rows)
    return rows


def _dead(task: Task, events: pl.DataFrame, rows: pl.DataFrame) -> pl.Series:
    """Is each row's subject dead by the prediction time?

    Who died on the day on which the index stay ended did not leave it alive (the two are written independently, one of them often by
    the day alone), unless the task asks for a place of discharge: who went home was alive.
    """
    deaths = with_codes(events, [s.DEATH]).group_by("subject_id").agg(pl.col("time").min(), pl.col("available_time").min())
    joined = rows.select("subject_id", "prediction_time", "stay_end").join(deaths, on="subject_id", how="left", maintain_order="left")
    dead = pl.col("time").is_not_null() & ~is_after("prediction_time")
    if task.index.visit and task.index.at == "end" and not task.index.discharge:
        dead = dead | (pl.col("time").dt.date() == pl.col("stay_end").dt.date())
    return joined.select(dead.fill_null(False).alias("dead"))["dead"]


def _verdicts(task: Task, found: pl.DataFrame) -> pl.DataFrame:
    """LabelTable columns from outcomes, what competes with them, deaths and the end of observation."""
    close, until = pl.col("window_close"), pl.col("observed_until")
    complete = pl.lit(True) if task.censoring == "closed_world" else until + days(task.grace_days) >= close
    reason = (
        pl.when(close.is_null()).then(pl.lit("censored"))
        .when(pl.col("outcome_time").is_not_null()).then(pl.lit("outcome"))
        .when(pl.col("competing_time") < pl.coalesce("death_time", pl.lit(datetime.max))).then(pl.lit("competing"))
        .when(pl.col("death_time") <= close).then(pl.lit("death"))
        .when(complete).then(pl.lit("horizon"))
        .otherwise(pl.lit("censored"))
    )  # fmt: skip
    end = (
        pl.when(pl.col("end_reason") == "outcome").then(pl.col("outcome_time"))
        .when(pl.col("end_reason") == "competing").then(pl.col("competing_time"))
        .when(pl.col("end_reason") == "death").then(pl.col("death_time"))
        .when(pl.col("end_reason") == "horizon").then(close)
        .when(close.is_null()).then(pl.col("prediction_time"))  # of a stay without an end nothing is known
        .otherwise(pl.max_horizontal(until, "prediction_time"))
    )  # fmt: skip
    labelled = found.with_columns(reason.alias("end_reason"), pl.lit(task.name).alias("task"))
    is_outcome = pl.col("end_reason") == "outcome"
    labelled = labelled.with_columns(
        pl.when(pl.col("end_reason") != "censored").then(is_outcome).alias("boolean_value"),
        is_outcome.alias("observed"),
        ((end - pl.col("prediction_time")).dt.total_microseconds() / 86_400_000_000).alias("time_to_event_days"),
    )
    return labelled.select(pl.col(name).cast(dtype) for name, dtype in LABEL_DTYPES.items())


def _frames(events: EventDataset | pl.DataFrame, split: str | None, entries: pl.DataFrame | None) -> Iterator[pl.DataFrame]:
    frames = [events] if isinstance(events, pl.DataFrame) else (frame for _, frame in events.iter_shards(split))
    for frame in frames:
        shard = frame.select(_COLUMNS)
        theirs = [] if entries is None else [entries.select(_COLUMNS).join(shard.select("subject_id").unique(), on="subject_id", how="semi")]
        yield pl.concat([shard, *theirs])


def _facts(events: EventDataset | pl.DataFrame, entries: pl.DataFrame | None) -> DataFacts:
    """Of the whole data set, whatever split is labelled: absence is a property of the data."""
    columns = ("code", "time", "end_time", "numeric_value", "unit")
    frames = [events] if isinstance(events, pl.DataFrame) else (pl.scan_parquet(path, glob=False).select(columns) for path in events.shards())
    return DataFacts.of(chain(frames, [] if entries is None else [entries]))


def label(
    events: EventDataset | pl.DataFrame,
    task: Task | str | Path,
    *,
    split: str | None = None,
    censoring: Literal["observation_period", "closed_world", "grace_days"] | None = None,
    grace_days: int | None = None,
    entries: pl.DataFrame | None = None,
) -> Labelled:
    """Label every eligible (subject, prediction time).

    Args:
        events: a data set (read shard by shard), or one EventTable.
        task: a Task, the name of a library task, or a path to a YAML file.
        split: only this split.
        censoring, grace_days: in place of the task's own, where a data set's observation periods ask for it.
        entries: further events that the task may name and that are no part of the record (see `entries.label_entries`).

    Returns:
        labels and attrition. `boolean_value` is True (outcome in the window), False (death before it, or the whole window seen
        without it), or null (censored). `time_to_event_days` runs from the prediction time to the outcome, the death, the competing event, the
        close, or the end of observation.

    Raises:
        TaskError: the task is malformed.
        InputError: there is no such split, or the events are none.
    """
    refuse_name(events, "events are", "EventDataset")
    task = load_task(task)
    if censoring is not None:
        task = replace(task, censoring=censoring, grace_days=(grace_days or 0) if censoring == "grace_days" else 0)
    ontology, written = events.codes if isinstance(events, EventDataset) else None, task
    task = resolve(task, ontology)
    facts = _facts(events, entries)
    # The library's sets hold codes of many hospitals; who writes one down means each of its codes.
    of_the_library = [concepts for known in library().values() for concepts in known.concept_sets.values()]
    absent = facts.partly_absent({name: concepts for name, concepts in written.concept_sets.items() if concepts not in of_the_library}, ontology)
    attrition, labels, subjects = _Attrition(), [pl.DataFrame(schema=LABEL_DTYPES)], 0
    missing = facts.missing(task)
    for frame in _frames(events, split, entries):
        subjects += frame["subject_id"].n_unique()
        if not missing:
            rows = _eligible(task, frame, attrition)
            found = outcome_in_window(task, frame, rows, by=("subject_id",))
            labels.append(_verdicts(task, found))
    steps = attrition.finish(subjects, note="; ".join([*facts.idle(task), *absent]))
    if missing:
        note = "; ".join(missing)
        steps.append({"step": "asked of this data", "subjects": 0, "rows": 0, "dropped_subjects": subjects, "dropped_rows": 0, "note": note})
    return Labelled(pl.concat(labels).sort("subject_id", "prediction_time"), steps, task, question(written))

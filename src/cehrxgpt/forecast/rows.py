"""What a forecast is asked and what it answers, whatever the estimator: the rows of (task, prediction time), and the table of predictions.

Every row asked for is answered, in order: by numbers, or by a note that says why there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError, refuse_name
from cehrxgpt.events import EventDataset
from cehrxgpt.tasks import Task, had_before, load_task, resolve_all
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.moments import NO_SUBJECT, check_moments

NO_TOKEN = "the model's vocabulary has no token of the outcome"
HAD_IT = "the outcome is in the history and the task asks for its first onset"
NOT_HAD = "the outcome is not in the history and the task asks for its recurrence"
UNSAID = "the model cannot say that nothing happened between the last event and the prediction time"
DEAD = "the history ends in death"
NONE_FINISHED = "no future was finished"
LEFT = "left to another share of the work"
KEY = ("subject_id", "prediction_time")
RISK_TYPES: dict[str, Any] = {
    "task": pl.String,
    "_moment": pl.Int64,
    "predicted_boolean_probability": pl.Float64,
    "std_error": pl.Float64,
    "num_samples": pl.Int32,
    "completion": pl.Float64,
    "lower_bound": pl.Float64,
    "upper_bound": pl.Float64,
    "method": pl.String,
}
"""Columns of risks, before they are put to the rows that asked for them."""

CURVE_TYPES: dict[str, Any] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "task": pl.String,
    "method": pl.String,
    "days": pl.Float32,
    "cumulative_incidence": pl.Float64,
    "std_error": pl.Float64,
    "competing_incidence": pl.Float64,
}
"""Twin of `schema.CURVE_SCHEMA`."""

Key = tuple[str, int]
"""(task, moment)."""


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        tasks: by name, their concept sets widened by the data's own descendants.
        rows: `task`, `subject_id`, `prediction_time`, `boolean_value`, `_moment` of every prediction to make, in order.
        moments: `subject_id`, `prediction_time`, distinct; `_moment` numbers its rows.
        asked: moment -> names of the tasks that ask about it, sorted.
    """

    tasks: dict[str, Task]
    rows: pl.DataFrame
    moments: pl.DataFrame
    asked: dict[int, tuple[str, ...]]


def ask(events: EventDataset | pl.DataFrame, at: pl.DataFrame, tasks: Sequence[str | Path | Task] | str | Path | Task) -> Questions:
    """Read the question.

    Args:
        events: whose codes say what descends from what.
        at: `subject_id`, `prediction_time`; with a column `task` each row asks for its task alone, else each row for all of them.
            `boolean_value` is carried along if it is there. Labels will do.
        tasks: names, files or Tasks; or one of these.

    Raises:
        InputError: the events are none; two tasks share a name; a row asks for a task that was not given, or for none.
        SchemaError: see `check_moments`.
    """
    refuse_name(events, "events are", "EventDataset")
    tasks = [tasks] if isinstance(tasks, (str, Path, Task)) else tasks
    codes = events.codes if isinstance(events, EventDataset) else None
    known = {task.name: task for task in resolve_all(map(load_task, tasks), codes)}
    if len(known) < len(tasks):
        raise InputError("forecast: two tasks share a name; names must differ")
    rows = _rows(at, list(known))
    moments = rows.select("subject_id", "prediction_time").unique(maintain_order=True)
    numbered = rows.join(moments.with_row_index("_moment"), on=["subject_id", "prediction_time"], how="left", maintain_order="left")
    by_moment = numbered.group_by("_moment").agg(pl.col("task").unique().sort())
    return Questions(known, numbered, moments, {int(moment): tuple(names) for moment, names in by_moment.iter_rows()})


def _rows(at: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    keys = check_moments(at, where="rows to forecast")
    label = pl.Series("boolean_value", at["boolean_value"] if "boolean_value" in at.columns else [None] * at.height, dtype=pl.Boolean)
    keys = keys.with_columns(label)
    if "task" in at.columns:
        asked = keys.with_columns(at["task"].cast(pl.String))
        nameless = asked["task"].null_count()
        if nameless:
            raise InputError(f"forecast: {nameless} of {at.height} rows name no task; expected one of {', '.join(names)} in each")
        unknown = asked.filter(~pl.col("task").is_in(list(names)))["task"].unique().to_list()
        if unknown:
            raise InputError(f"forecast: rows ask for task '{unknown[0]}', which was not given; given: {', '.join(names)}")
        return asked.select("task", "subject_id", "prediction_time", "boolean_value")
    frames = [keys.select(pl.lit(name).alias("task"), pl.all()) for name in names]
    return pl.concat(frames) if frames else keys.select(pl.lit("").alias("task"), pl.all()).clear()


def ends_in_death(token_id: npt.NDArray[np.integer[Any]], kind: npt.NDArray[np.integer[Any]]) -> bool:
    """Is nothing left to forecast after these tokens, int[T]? `kind`: of each token of the vocabulary."""
    return len(token_id) > 0 and kind[token_id[-1]] in (Kind.DEATH, Kind.END)


def wrong_onset(task: Task, events: pl.DataFrame, keys: pl.DataFrame) -> dict[int, str]:
    """Moments of `keys` (`_moment`, `subject_id`, `prediction_time`) that a task for first onsets, or for recurrences, does not ask about, by
    their cut histories, and why."""
    if not (task.first_onset or task.recurrence) or keys.is_empty():
        return {}
    before = had_before(task, events, keys, by=KEY)
    return {int(moment): HAD_IT if task.first_onset else NOT_HAD for moment in keys.filter(before if task.first_onset else ~before)["_moment"]}


def answer(rows: pl.DataFrame, risks: pl.DataFrame, notes: Mapping[Key, str], *, methods: Mapping[str, str]) -> pl.DataFrame:
    """PREDICTION_SCHEMA, one row per row asked.

    Args:
        rows: of `Questions`.
        risks: RISK_TYPES, of each (task, moment) that could be predicted.
        notes: why there is none, or what there is to say of it; a moment of which nothing is known has no subject in the events.
        methods: task -> how it is forecast; that of rows that could not be predicted, too.
    """
    key, typed = ["task", "_moment"], rows.with_columns(pl.col("_moment").cast(pl.Int64))
    columns = {"task": [task for task, _ in notes], "_moment": [moment for _, moment in notes], "note": list(notes.values())}
    why = pl.DataFrame(columns, schema={"task": pl.String, "_moment": pl.Int64, "note": pl.String})
    joined = typed.join(risks, on=key, how="left", maintain_order="left").join(why, on=key, how="left", maintain_order="left")
    made = pl.col("predicted_boolean_probability").is_not_null()
    own = pl.Series("method", [methods[task] for task in rows["task"]], dtype=pl.String)
    return joined.with_columns(
        pl.when(made).then("note").otherwise(pl.col("note").fill_null(NO_SUBJECT)).alias("note"),
        pl.when(made).then("num_samples").otherwise(pl.lit(0, dtype=pl.Int32)).alias("num_samples"),
        pl.col("method").fill_null(own),
        (pl.col("predicted_boolean_probability") >= 0.5).alias("predicted_boolean_value"),
    ).select(s.PREDICTION_SCHEMA.names)


def refusals(predictions: pl.DataFrame) -> dict[str, int]:
    """How often each reason for no prediction was given; what stands in brackets at its end differs from row to row and is left out."""
    notes = predictions.filter(pl.col("predicted_boolean_probability").is_null())["note"].str.replace(r" \([^()]*\)$", "")
    return {str(note): int(count) for note, count in notes.value_counts(sort=True).iter_rows()}

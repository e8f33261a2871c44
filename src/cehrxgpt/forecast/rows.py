"""What a forecast is asked and what it answers, whatever the estimator: the rows of (task, prediction time), and the table of predictions.

Every row asked for is answered, in order: by numbers, or by a note that says why there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.tasks import Task, load_task, resolve
from cehrxgpt.tasks.outcome import concept_events
from cehrxgpt.timeline.moments import NO_SUBJECT, check_moments

NO_TOKEN = "the model's vocabulary has no token of the outcome"
HAD_IT = "the outcome is in the history and the task asks for its first onset"
NUMBERS = ("predicted_boolean_probability", "std_error", "completion", "lower_bound", "upper_bound")

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


def ask(events: EventDataset | pl.DataFrame, at: pl.DataFrame, tasks: Sequence[str | Path | Task]) -> Questions:
    """Read the question.

    Args:
        events: whose codes say what descends from what.
        at: `subject_id`, `prediction_time`; with a column `task` each row asks for its task alone, else each row for all of them.
            `boolean_value` is carried along if it is there. Labels will do.
        tasks: names, files or Tasks.

    Raises:
        InputError: two tasks share a name, or a row asks for a task that was not given.  SchemaError: `at` lacks a column or has nulls.
    """
    codes = events.codes if isinstance(events, EventDataset) else None
    known = {task.name: task for task in (resolve(load_task(one), codes) for one in tasks)}
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
        unknown = asked.filter(~pl.col("task").is_in(list(names)))["task"].unique().to_list()
        if unknown:
            raise InputError(f"forecast: rows ask for task '{unknown[0]}', which was not given; given: {', '.join(names)}")
        return asked.select("task", "subject_id", "prediction_time", "boolean_value")
    frames = [keys.select(pl.lit(name).alias("task"), pl.all()) for name in names]
    return pl.concat(frames) if frames else keys.select(pl.lit("").alias("task"), pl.all()).clear()


def had_outcome(task: Task, events: pl.DataFrame, keys: pl.DataFrame) -> list[int]:
    """Moments of `keys` (`_moment`, `subject_id`, `prediction_time`) whose cut history has the outcome of a task for first onsets."""
    if not task.first_onset or task.outcome.concepts is None:
        return []
    had = concept_events(task, task.outcome.concepts, events).select("subject_id", "prediction_time").unique()
    return [int(moment) for moment in keys.join(had, on=["subject_id", "prediction_time"], how="semi")["_moment"]]


def answer(
    rows: pl.DataFrame, risks: Mapping[Key, Sequence[float | None]], notes: Mapping[Key, str], *, method: str, samples: int | None
) -> pl.DataFrame:
    """PREDICTION_SCHEMA, one row per row asked.

    Args:
        rows: of `Questions`.
        risks: the NUMBERS of each (task, moment) that could be predicted.
        notes: why there are none; a moment of which nothing is said has no subject in the events.
        method: of all rows.
        samples: futures behind each prediction; None where the method draws none.
    """
    asked = list(zip(rows["task"].to_list(), rows["_moment"].to_list(), strict=True))
    numbers = [risks.get(key) for key in asked]
    columns = [pl.Series(name, [None if one is None else one[place] for one in numbers], dtype=pl.Float64) for place, name in enumerate(NUMBERS)]
    drawn = None if samples is None else [0 if one is None else samples for one in numbers]
    return (
        rows.with_columns(
            *columns,
            pl.Series("note", [None if key in risks else notes.get(key, NO_SUBJECT) for key in asked], dtype=pl.String),
            pl.lit(method).alias("method"),
            pl.Series("num_samples", drawn if drawn is not None else [None] * rows.height, dtype=pl.Int32),
        )
        .with_columns((pl.col("predicted_boolean_probability") >= 0.5).alias("predicted_boolean_value"))
        .select(s.PREDICTION_SCHEMA.names)
    )


def refusals(predictions: pl.DataFrame) -> dict[str, int]:
    """How often each reason was given; what stands in brackets at its end differs from row to row and is left out."""
    notes = predictions["note"].drop_nulls().str.split(" (").list.first()
    return {str(note): int(count) for note, count in notes.value_counts(sort=True).iter_rows()}

"""Which predictions are asked for, and which of them can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.errors import InputError
from cehrxgpt.forecast.futures import Case
from cehrxgpt.tasks import Task, attach_stay
from cehrxgpt.tasks.outcome import concept_events
from cehrxgpt.timeline.moments import Moments, check_moments

KEY = ("subject_id", "prediction_time")


def asked_rows(at: pl.DataFrame, tasks: Sequence[Task]) -> pl.DataFrame:
    """`task`, `subject_id`, `prediction_time`, `boolean_value` of every prediction to make, in order, and `_moment`: the number of its
    distinct prediction time.

    Raises:
        InputError: a row asks for a task that was not given.  SchemaError: `at` lacks a column or has nulls.
    """
    keys = check_moments(at, where="rows to forecast")
    label = pl.Series("boolean_value", at["boolean_value"] if "boolean_value" in at.columns else [None] * at.height, dtype=pl.Boolean)
    keys = keys.with_columns(label)
    names = [task.name for task in tasks]
    if "task" in at.columns:
        asked = keys.with_columns(at["task"].cast(pl.String))
        unknown = asked.filter(~pl.col("task").is_in(names))["task"].unique().to_list()
        if unknown:
            raise InputError(f"forecast: rows ask for task '{unknown[0]}', which was not given; given: {', '.join(names)}")
    else:
        frames = [keys.select(pl.lit(name).alias("task"), pl.all()) for name in names]
        asked = pl.concat(frames) if frames else keys.select(pl.lit("").alias("task"), pl.all()).clear()
    rows = asked.select("task", *KEY, "boolean_value")
    moments = rows.select(KEY).unique(maintain_order=True).with_row_index("_moment")
    return rows.join(moments, on=list(KEY), how="left", maintain_order="left")


def refusals(
    tasks: Mapping[str, Task],
    tokens: Mapping[str, npt.NDArray[np.bool_] | None],
    asked: Mapping[int, Sequence[str]],
    moments: Moments,
    cases: list[Case],
) -> tuple[list[Case], dict[tuple[str, int], str]]:
    """What each task cannot ask of these cases.

    Args:
        tasks, tokens: by name; the tokens of each outcome (None: it is no set of tokens).
        asked: moment -> names of the tasks that ask about it.
        moments: the chunk that the cases come from.
        cases: of the chunk.

    Returns:
        the cases, with the start of the index stay of tasks about one; and (task, moment) -> why there will be no prediction.
    """
    notes: dict[tuple[str, int], str] = {}
    if not cases:
        return cases, notes
    keys = pl.DataFrame(
        {
            "_moment": [case.moment for case in cases],
            "subject_id": [case.prompt.subject_id for case in cases],
            "prediction_time": np.array([case.prompt.prediction_time for case in cases], dtype="datetime64[us]"),
        }
    )
    starts: dict[int, dict[str, np.datetime64]] = {case.moment: {} for case in cases}
    for name, task in tasks.items():
        mine = keys.filter(pl.col("_moment").is_in([case.moment for case in cases if name in asked[case.moment]]))
        outcome = tokens[name]
        if outcome is not None and not outcome.any():
            notes |= {(name, moment): "the model's vocabulary has no token of the outcome" for moment in mine["_moment"].to_list()}
        elif task.first_onset and task.outcome.concepts is not None:
            had = concept_events(task, task.outcome.concepts, moments.events).select(KEY).unique()
            why = "the outcome is in the history and the task asks for its first onset"
            notes |= {(name, moment): why for moment in mine.join(had, on=list(KEY), how="semi")["_moment"].to_list()}
        elif task.in_stay and mine.height:
            inside = {case.moment for case in cases if (case.in_icu if task.about_intensive_care else case.in_visit)}
            stays = attach_stay(task, moments.events, mine, by=KEY)
            for moment, start in stays.select("_moment", "stay_start").iter_rows():
                if start is None or moment not in inside:
                    notes[(name, moment)] = "no stay of the task's kind is going on at the prediction time"
                else:
                    starts[moment][name] = np.datetime64(start, "us")
    return [replace(case, stay_start=starts[case.moment]) for case in cases], notes

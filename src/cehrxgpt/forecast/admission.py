"""Which cases a task can ask about: their life, their stay, their history, the vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.forecast.futures import Case
from cehrxgpt.forecast.rows import DEAD, KEY, NO_TOKEN, Key, ends_in_death, wrong_onset
from cehrxgpt.tasks import Task, attach_stay
from cehrxgpt.tasks.codes import matching_codes
from cehrxgpt.timeline.moments import Moments

NO_STAY = "no stay of the task's kind is going on at the prediction time"


def idle_competitors(task: Task, codes: Iterable[str | None]) -> list[str]:
    """Concept sets that compete with the outcome and have none of these codes, a vocabulary's: no future meets them."""
    known = {code for code in codes if code}
    named = [leaf.concepts for one in task.competing for _, leaf in one.leaves() if leaf.concepts is not None]
    return [name for name in dict.fromkeys(named) if not matching_codes(task.concept_sets[name], known)]


def admit(
    tasks: Mapping[str, Task],
    unsayable: Collection[str],
    asked: Mapping[int, Sequence[str]],
    moments: Moments,
    cases: list[Case],
    kind: npt.NDArray[np.integer[Any]],
) -> tuple[list[Case], dict[Key, str]]:
    """What each task cannot ask of these cases.

    Args:
        tasks: by name.
        unsayable: names of those whose outcome the vocabulary has no tokens for (`can_be_said`).
        asked: moment -> names of the tasks that ask about it.
        moments: the chunk that the cases come from.
        cases: of the chunk.
        kind: of each token of the vocabulary.

    Returns:
        the cases, with the start of the index stay of tasks about one; and (task, moment) -> why there will be no prediction.
    """
    notes: dict[Key, str] = {}
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
        if name in unsayable:
            notes |= {(name, moment): NO_TOKEN for moment in mine["_moment"].to_list()}
            continue
        notes |= {(name, moment): why for moment, why in wrong_onset(task, moments.events, mine).items()}
        if task.in_stay and mine.height:
            inside = {case.moment for case in cases if (case.in_icu if task.about_intensive_care else case.in_visit)}
            stays = attach_stay(task, moments.events, mine, by=KEY)
            for moment, start in stays.select("_moment", "stay_start").iter_rows():
                if start is None or moment not in inside:
                    notes[(name, moment)] = NO_STAY
                else:
                    starts[moment][name] = np.datetime64(start, "us")
    dead = [case.moment for case in cases if ends_in_death(case.prompt.token_id, kind)]
    notes |= {(name, moment): DEAD for moment in dead for name in asked[moment]}
    return [replace(case, stay_start=starts[case.moment]) for case in cases], notes

"""A pool of simulated futures: prompts from histories, rollouts, and the futures as events again.

A `Case` is one prediction time, ready to be continued. The pool draws `samples` futures of each and decodes them with the timeline's one
decoder, so that what is found in them is found by the same function as in real records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout.dates import Dates
from cehrxgpt.rollout.prompt import Prompt, by_the_hour
from cehrxgpt.rollout.result import Rollouts
from cehrxgpt.rollout.windows import rollout_through_windows
from cehrxgpt.timeline.decode import decode_futures
from cehrxgpt.timeline.grammar import IN_ICU_PHASES, IN_VISIT_PHASES, Grammar, settled
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.moments import Moments
from cehrxgpt.timeline.time import MINUTES_PER_DAY, datetime64_from_instant
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.timeline.window import last_window

NOT_ENDED = int(np.iinfo(np.int64).min)
"""Of a stay that goes on; minutes since 1970-01-01 are negative before."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prediction time with its prompt.

    Attributes:
        moment: row of the distinct prediction times.
        prompt: last window of the history; the horizon is set when the pool is drawn.
        phase, clock_minutes: the grammar's state after the prompt.
        birth_date: days since 1970-01-01, BIRTH_UNKNOWN where there is none.
        open_visit_id: visit in which the prompt ends, -1 where it ends outside of visits or the id is not known.
        stay_start: task name -> start of the index visit, for tasks about a stay that is going on.
    """

    moment: int
    prompt: Prompt
    phase: int
    clock_minutes: int
    birth_date: int
    open_visit_id: int
    stay_start: dict[str, np.datetime64]

    @property
    def in_visit(self) -> bool:
        """Does the prompt end inside a visit?"""
        return self.phase in IN_VISIT_PHASES

    @property
    def in_icu(self) -> bool:
        """Does the prompt end in intensive care?"""
        return self.phase in IN_ICU_PHASES


@dataclass(frozen=True)
class Pool:
    """Futures of `cases`, `samples` each, in that order: N = len(cases) * samples rows.

    Attributes:
        samples: frame of SAMPLE_SCHEMA, N rows.
        trajectories: frame of TRAJECTORY_SCHEMA.
        end_minutes: int64[N]; how far each was simulated, minutes since 1970-01-01.
        stay_end_minutes: int64[N]; when the visit in which the prompt ended was closed, same unit; NOT_ENDED = it was not, or there was none.
        icu_end_minutes: int64[N]; the same of the stay in intensive care in which the prompt ended.
        rollouts: as drawn.
    """

    cases: Sequence[Case]
    samples: pl.DataFrame
    trajectories: pl.DataFrame
    end_minutes: npt.NDArray[np.int64]
    stay_end_minutes: npt.NDArray[np.int64]
    icu_end_minutes: npt.NDArray[np.int64]
    rollouts: Rollouts


def open_visits(events: pl.DataFrame) -> dict[tuple[int, int], int]:
    """(subject, prediction time in microseconds) -> id of the visit that goes on, of cut histories.

    Of several it is the one that gives the whole its name in the tokens: of the highest class, the first to begin.
    """
    rows = events.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX) & pl.col("end_time").is_null() & pl.col("visit_id").is_not_null())
    lasted = (pl.col("prediction_time") - pl.col("time")).dt.total_minutes()
    rows = rows.with_columns(visits.rank(visits.classify(pl.col("code"), lasted)).alias("_rank"))
    rows = rows.sort("_rank", "time", "visit_id", descending=[True, False, False]).group_by("subject_id", "prediction_time").first()
    return {(subject, time): visit for subject, time, visit in rows.select("subject_id", pl.col("prediction_time").to_physical(), "visit_id").rows()}


def make_cases(moments: Moments, places: Sequence[int], vocabulary: Vocabulary, grammar: Grammar, max_tokens: int) -> list[Case]:
    """Prompts of the histories at `places` of a chunk, each the longest tail of at most `max_tokens` with a recomputed prompt."""
    histories = moments.histories
    assert histories.prediction_time is not None
    if not places:
        return []
    windows = [last_window(histories, vocabulary, place, max_tokens) for place in places]
    padded = np.zeros((len(windows), max(len(window.token_id) for window in windows)), dtype=np.int64)
    for row, window in enumerate(windows):
        padded[row, : len(window.token_id)] = window.token_id
    state, _ = grammar.follow(padded)
    phase = settled(state.phase)
    going_on = open_visits(moments.events)
    cases = []
    for row, (place, window) in enumerate(zip(places, windows, strict=True)):
        time = histories.prediction_time[place]
        subject = int(histories.subject_id[place])
        inside = int(phase[row]) in IN_VISIT_PHASES
        prompt = Prompt(
            token_id=window.token_id,
            subject_id=subject,
            prediction_time=time,
            start_date=int(window.start_date),
            prediction_clock_minutes=int(moments.instant[place]) - int(window.start_date) * MINUTES_PER_DAY,
        )
        cases.append(
            Case(
                moment=int(moments.index[place]),
                prompt=prompt,
                phase=int(phase[row]),
                clock_minutes=int(state.clock_minutes[row]),
                birth_date=int(histories.birth_date[place]),
                open_visit_id=going_on.get((subject, int(time.astype("datetime64[us]").astype(np.int64))), -1) if inside else -1,
                stay_start={},
            )
        )
    return cases


def _stay_ends(vocabulary: Vocabulary, rollouts: Rollouts, inside: Sequence[bool], kind: Kind) -> npt.NDArray[np.int64]:
    """Clock of the first token of that kind in each future whose prompt ended inside (by case); -1 where there is none."""
    ends = np.full(len(rollouts), -1, dtype=np.int64)
    row = np.repeat(np.arange(len(rollouts)), rollouts.tokens)
    closing = np.flatnonzero((vocabulary.kind[rollouts.token_id] == kind) & np.array(inside, dtype=bool)[rollouts.prompt_index[row]])[::-1]
    ends[row[closing]] = rollouts.clock_minutes[closing]  # in reverse, so that the first one stays
    return ends


def _dated(vocabulary: Vocabulary, rollouts: Rollouts) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """Tokens and offsets of the futures, without the type of a visit at which the budget ended before its hour was said: when it begins is not
    known, and so not whether it does in a window."""
    last = rollouts.offsets[1:] - 1
    cut = (rollouts.tokens > 0) & (rollouts.stop_reason == "budget")
    cut[cut] = vocabulary.hourly_visits[rollouts.token_id[last[cut]]]
    kept = np.ones(len(rollouts.token_id), dtype=bool)
    kept[last[cut]] = False
    return rollouts.token_id[kept], np.concatenate([[0], np.cumsum(rollouts.tokens - cut)]).astype(np.int64)


def draw_pool(
    decoder: Decoder,
    vocabulary: Vocabulary,
    cases: Sequence[Case],
    *,
    horizon_minutes: Sequence[int],
    samples: int,
    seed: int,
    max_new_tokens: int,
    batch_rows: int,
    stop_tokens: npt.NDArray[np.bool_] | None,
    first_sample: int = 0,
    until: Kind | None = None,
    masked_tokens: npt.NDArray[np.bool_] | None = None,
    dates: Dates | None = None,
    watched: npt.NDArray[np.bool_] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pool:
    """Draw `samples` futures of every case, each to its horizon (minutes from the prediction time), and decode them.

    Further arguments as in `rollout` and `Prompt`. Numbers are the medians of their bins: a future is the same whichever others are in the pool.
    """
    prompts = [replace(case.prompt, horizon_minutes=int(horizon), until=until) for case, horizon in zip(cases, horizon_minutes, strict=True)]
    rollouts = rollout_through_windows(
        decoder,
        vocabulary,
        prompts,
        birth_date=[case.birth_date for case in cases],
        samples=samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_rows=batch_rows,
        stop_tokens=stop_tokens,
        first_sample=first_sample,
        masked_tokens=masked_tokens,
        dates=dates,
        watched=watched,
        progress=progress,
    )
    of = rollouts.prompt_index
    start_date = np.array([prompt.start_date for prompt in prompts], dtype=np.int64)[of]
    prediction_time = np.array([prompt.prediction_time for prompt in prompts], dtype="datetime64[us]")[of]
    token_id, offsets = _dated(vocabulary, rollouts)
    trajectories = decode_futures(
        vocabulary,
        token_id,
        offsets,
        phase=np.array([case.phase for case in cases])[of],
        clock_minutes=np.array([case.clock_minutes for case in cases], dtype=np.int64)[of],
        start_date=start_date,
        subject_id=rollouts.subject_id,
        prediction_time=prediction_time,
        sample_id=rollouts.sample_id,
        open_visit_id=np.array([case.open_visit_id for case in cases], dtype=np.int64)[of],
        hourly=(by_the_hour(prompts, vocabulary) | np.array([case.in_icu for case in cases], dtype=bool))[of],
    )
    midnight = start_date * MINUTES_PER_DAY
    end_minutes = midnight + rollouts.end_clock_minutes
    stays = _stay_ends(vocabulary, rollouts, [case.in_visit for case in cases], Kind.VISIT_END)
    icu = _stay_ends(vocabulary, rollouts, [case.in_icu for case in cases], Kind.ICU_END)
    end_time = np.maximum(datetime64_from_instant(end_minutes), prediction_time)
    table = pl.DataFrame(
        {
            "subject_id": rollouts.subject_id,
            "prediction_time": prediction_time,
            "sample_id": rollouts.sample_id.astype(np.int32),
            "tokens": rollouts.tokens.astype(np.int32),
            "stop_reason": [str(reason) for reason in rollouts.stop_reason],
            "end_time": end_time,
            "log_probability": rollouts.log_probability,
            "seed": np.full(len(rollouts), seed, dtype=np.int64),
        },
        schema_overrides={"stop_reason": pl.String},
    )
    stay_end, icu_end = (np.where(clock >= 0, midnight + clock, NOT_ENDED) for clock in (stays, icu))
    return Pool(cases, table, trajectories, end_minutes, stay_end, icu_end, rollouts)

"""What each future adds to a risk, and when: increments of `estimators`, read off a pool of futures.

SCOPE and REACH rest on tokens: at a draw, the probability of the outcome's tokens is the chance that the outcome happens then. That holds
on dates that lie wholly inside the window, after the prediction's own date: whatever the hour, an outcome of such a date counts, and
a token is of the date on which it is drawn. On the other dates (the first and the last of the window), what hour is said next, or how a
date without an hour is read, decides; there the outcome counts as in Monte Carlo, once the labeler has found it. The sum of both
kinds is unbiased, and only the few days of the second kind keep Monte Carlo's noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cehrxgpt.forecast.estimators import Evidence, monte_carlo
from cehrxgpt.forecast.futures import Case, Pool
from cehrxgpt.forecast.verdict import Verdict
from cehrxgpt.rollout.dates import Dates
from cehrxgpt.tasks import Task
from cehrxgpt.timeline.time import MINUTES_PER_DAY

Int = npt.NDArray[np.int64]


def whole_dates(task: Task, cases: Sequence[Case]) -> Dates:
    """The dates of each case's clock that lie wholly inside the task's window."""
    assert task.follow_days is not None
    at = np.array([case.prompt.prediction_clock_minutes for case in cases], dtype=np.int64)
    opens, closes = (at + round(days * MINUTES_PER_DAY) for days in (task.gap_days, task.follow_days))
    return Dates(opens // MINUTES_PER_DAY + 1, closes // MINUTES_PER_DAY - 1)


def observed(verdict: Verdict, pool: Pool) -> Evidence:
    """Monte Carlo: 1 at each outcome."""
    shape = (len(pool.cases), len(pool.rollouts) // len(pool.cases))
    outcome, unfinished, died = (values.reshape(shape) for values in (verdict.outcome, verdict.unfinished, verdict.died))
    return monte_carlo(outcome, unfinished, verdict.end_minutes.reshape(shape), died=died)


def expected(task: Task, verdict: Verdict, pool: Pool, place: int, tokens: npt.NDArray[np.bool_], *, masked: bool) -> Evidence:
    """SCOPE, or REACH where the outcome was masked on whole dates.

    Args:
        task, verdict: whose outcome, and what the labeler found of it.
        pool: drawn with the outcome's tokens watched.
        place: which of the watched sets it is.
        tokens: bool[V], that set.
        masked: the pool was drawn without these tokens on whole dates.
    """
    counted = observed(verdict, pool)
    drawn = pool.rollouts.drawn.astype(np.int64)
    begins, future = np.cumsum(drawn) - drawn, np.repeat(np.arange(len(drawn)), drawn)
    case = pool.rollouts.prompt_index[future]
    dates = whole_dates(task, pool.cases)
    clock = pool.rollouts.drawn_at
    early = verdict.outcome & (_outcome_date(verdict, pool) < dates.first[pool.rollouts.prompt_index])
    chance = np.where(dates.hold(case, clock) & ~early[future], pool.rollouts.chance[:, place], 0.0)
    if masked:
        amount = chance * _left(chance, begins, future)
        rest = np.maximum(1 - np.bincount(future, amount, minlength=len(drawn)), 0.0)
        seen = np.flatnonzero(verdict.outcome)  # on the other dates, as drawn; it takes what is left
    else:
        until = _first(_drawn_tokens(pool, tokens) & (chance > 0), begins, drawn)  # the first outcome on a whole date ends the sum
        amount = np.where(np.arange(len(future)) - begins[future] <= until[future], chance, 0.0)
        rest = np.ones(len(drawn))
        seen = np.flatnonzero(verdict.outcome & (until >= drawn))
    start = np.array([one.prompt.prediction_clock_minutes for one in pool.cases], dtype=np.int64)
    begin, end = dates.first * MINUTES_PER_DAY - start, (dates.last + 1) * MINUTES_PER_DAY - start
    use = amount > 0
    minutes = np.concatenate([clock[use] - start[case[use]], verdict.end_minutes[seen]])
    return Evidence(
        future=np.concatenate([future[use], seen]),
        minutes=np.maximum(minutes, 0),
        amount=np.concatenate([amount[use], rest[seen]]),
        outcome=counted.outcome,
        unfinished=counted.unfinished,
        died=counted.died,
        end_minutes=counted.end_minutes,
        chance_span=np.stack([begin, np.maximum(end, begin)], axis=1),
        rest=rest.reshape(counted.shape),
    )


def _left(chance: npt.NDArray[np.float64], begins: Int, future: Int) -> npt.NDArray[np.float64]:
    """prod(1 - chance) over the earlier draws of the same future; of each future by itself, so that it does not depend on the others."""
    place = np.arange(len(chance)) - begins[future]
    kept = np.ones((len(begins), int(place.max(initial=0)) + 2))
    kept[future, place + 1] = 1 - np.minimum(chance, 1.0)
    return np.cumprod(kept, axis=1)[future, place]


def _drawn_tokens(pool: Pool, tokens: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether each draw gave one of these tokens and it was kept, bool[D]: those that are dropped stand at the end of a future."""
    kept, drawn = pool.rollouts.tokens, pool.rollouts.drawn.astype(np.int64)
    hit = np.zeros(int(drawn.sum()), dtype=bool)
    begins = np.cumsum(drawn) - drawn
    place = np.repeat(begins - (np.cumsum(kept) - kept), kept) + np.arange(int(kept.sum()))
    hit[place] = tokens[pool.rollouts.token_id]
    return hit


def _first(hit: npt.NDArray[np.bool_], begins: Int, lengths: Int) -> Int:
    """Place of the first hit in each future, its length where there is none."""
    at = np.flatnonzero(hit)
    future = np.searchsorted(begins + lengths, at, side="right")
    first = lengths.copy()
    first[future[::-1]] = (at - begins[future])[::-1]  # in reverse, so that the first one stays
    return first


def _outcome_date(verdict: Verdict, pool: Pool) -> Int:
    """Date of the first outcome on the prompt's clock, int64[N]; far away where there is none."""
    start = np.array([case.prompt.start_date for case in pool.cases], dtype=np.int64)[pool.rollouts.prompt_index]
    return verdict.outcome_minutes // MINUTES_PER_DAY - start

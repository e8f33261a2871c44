"""What simulated futures say about a task, by the function that labels real records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.forecast.futures import NOT_ENDED, Pool
from cehrxgpt.tasks import Task, outcome_in_window
from cehrxgpt.tasks.outcome import SAMPLE_KEY
from cehrxgpt.timeline.time import MINUTES_PER_DAY, datetime64_from_instant, instant_from_datetime64

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Verdict:
    """What N futures say about a task.

    Attributes:
        outcome: bool[N]; seen within the window.
        unfinished: bool[N]; neither seen nor ruled out when the future ended.
        died: bool[N]; death, or another competing event, within the window.
        end_minutes: int64[N], from the prediction time to the outcome, death, the window's close or the future's end, the first of them.
        outcome_minutes: int64[N], when the first outcome happened, minutes since 1970-01-01; a very large number where there is none.
    """

    outcome: npt.NDArray[np.bool_]
    unfinished: npt.NDArray[np.bool_]
    died: npt.NDArray[np.bool_]
    end_minutes: npt.NDArray[np.int64]
    outcome_minutes: npt.NDArray[np.int64]


def judge(task: Task, pool: Pool) -> Verdict:
    """Find a task's outcome in every future of a pool."""
    at = pool.samples.select("subject_id", "prediction_time", "sample_id")
    prediction = instant_from_datetime64(at["prediction_time"].to_numpy())
    going_on = np.zeros(at.height, dtype=bool)
    if task.in_stay:
        start = np.array([case.stay_start[task.name] for case in pool.cases], dtype="datetime64[us]")[pool.rollouts.prompt_index]
        stay_end = (pool.icu_end_minutes if task.about_intensive_care else pool.stay_end_minutes).copy()
        if task.outcome.stay_over_days is not None:
            # A stay that is still going on after the limit has lasted longer, whenever it may end.
            limit = instant_from_datetime64(start) + round(task.outcome.stay_over_days * MINUTES_PER_DAY)
            stay_end = np.where((stay_end == NOT_ENDED) & (pool.end_minutes > limit), pool.end_minutes, stay_end)
        # What a stay that is still going on has brought so far counts.
        going_on = stay_end == NOT_ENDED
        ends = datetime64_from_instant(np.where(going_on, pool.end_minutes, stay_end))
        at = at.with_columns(pl.Series("stay_start", start), pl.Series("stay_end", ends))
    found, undecided = _found(task, pool, at)
    minutes = {name: _minutes(found[name]) for name in ("outcome_time", "death_time", "window_close")}
    outcome = found["outcome_time"].is_not_null().to_numpy()
    in_window = (minutes["death_time"] <= minutes["window_close"]) | going_on  # a pool may run on for other tasks
    died = found["death_time"].is_not_null().to_numpy() & in_window
    known = _known_until(task, pool)
    closed = ~going_on & (known >= minutes["window_close"])
    ended = pool.samples.select(_is_over(pl.col("stop_reason"))).to_series().to_numpy()
    unfinished = ~(outcome | died | closed | ended) | undecided
    end = np.minimum(pool.end_minutes, minutes["window_close"])
    # Its share goes to those of which the date of the close is known.
    end = np.where(unfinished & ~going_on & (end == minutes["window_close"]), np.minimum(known, end), end)
    # More time in the window would not decide how long a visit lasts: such a share goes to no future that has more of it.
    end = np.where(undecided & ~going_on, minutes["window_close"], end)
    end = np.where(outcome, minutes["outcome_time"], np.where(died, np.minimum(minutes["death_time"], end), end))
    return Verdict(outcome, unfinished, died, np.maximum(end - prediction, 0), minutes["outcome_time"])


def _found(task: Task, pool: Pool, at: pl.DataFrame) -> tuple[pl.DataFrame, npt.NDArray[np.bool_]]:
    """What the labeler finds in each future, `death_time` being what ends follow-up; and where it hangs on how long a visit, of those that are a
    stay when they last, will have lasted: there nothing is found."""
    events = as_recorded(pool.trajectories)
    going_on = visits.is_ambiguous(pl.col("code")) & pl.col("end_time").is_null()
    if not events.select(going_on.any()).item():
        return _ended_by(outcome_in_window(task, events, at)), np.zeros(at.height, dtype=bool)
    ends = pool.samples.select(*SAMPLE_KEY, pl.col("end_time").alias("_until"), (~_is_over(pl.col("stop_reason"))).alias("_goes_on"))
    events = events.join(ends, on=list(SAMPLE_KEY), how="left", maintain_order="left")
    stay = pl.duration(minutes=visits.stay_minutes(), time_unit="us")
    young = pl.col("_goes_on") & (pl.col("_until") - pl.col("time") <= stay)
    answers = []
    for end in (pl.col("_until"), pl.when(young).then(pl.col("time") + stay + pl.duration(minutes=1, time_unit="us")).otherwise("_until")):
        closed = events.with_columns(pl.when(going_on).then(end).otherwise("end_time").alias("end_time"))
        answers.append(_ended_by(outcome_in_window(task, closed, at)))
    found, otherwise = answers
    differs = [found[name].is_null() != otherwise[name].is_null() for name in ("outcome_time", "death_time")]
    undecided = (differs[0] | differs[1]).to_numpy()
    nothing = [pl.when(~pl.Series(undecided)).then(name).alias(name) for name in ("outcome_time", "death_time")]
    return found.with_columns(nothing), undecided


def _ended_by(found: pl.DataFrame) -> pl.DataFrame:
    return found.with_columns(pl.min_horizontal("death_time", "competing_time").alias("death_time"))


def _is_over(stop_reason: pl.Expr) -> pl.Expr:
    """Has the future ended by itself, and not because no more was asked for?"""
    return stop_reason.is_in(["end", "death"])


def _known_until(task: Task, pool: Pool) -> npt.NDArray[np.int64]:
    """Up to which minute what happened in a future is known, int64[N], minutes since 1970-01-01.

    One that ran out of budget might have gone on saying things of the date on which it stands, and what has no hour stands at the date's
    midnight, a death at its end: only the dates before are known whole. The length of a stay is known once the stay has ended.
    """
    if task.outcome.stay_over_days is not None:
        return pool.end_minutes
    before = pool.end_minutes // MINUTES_PER_DAY * MINUTES_PER_DAY - 1
    return np.where(pool.rollouts.stop_reason == "budget", before, pool.end_minutes)


def as_recorded(trajectories: pl.DataFrame) -> pl.DataFrame:
    """The futures with everything that has no hour at its date's midnight, as in real records.

    On the prediction's own date such a thing has been put just behind the prediction time, since it had not been known by then. That it happened
    later is not known either: to the labeler it is neither before nor after, unless the prediction is made at that midnight. Deaths stand at
    the end of their date in both.
    """
    dated = (pl.col("time_precision") == "day") & (pl.col("code") != s.DEATH)
    return trajectories.with_columns(pl.when(dated).then(pl.col("time").dt.truncate("1d")).otherwise("time").alias("time"))


def _minutes(times: pl.Series) -> npt.NDArray[np.int64]:
    """Minutes since 1970-01-01; the largest integer where null."""
    values = times.to_numpy().astype("datetime64[us]")
    return np.where(np.isnat(values), _NEVER, instant_from_datetime64(values))

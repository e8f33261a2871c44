"""The one function that finds outcomes, in real records and in simulated futures alike.

What counts as *after* a prediction time p: an event that happened no earlier than p and that the record could not know at p,
`time >= p and available_time > p`. So an event known at p is input and never an outcome; an event dated to the day of p, without a
time of day, is neither input (it becomes known at the day's end) nor outcome (it may have happened before p), unless p is the
midnight with which that day begins. A window (open, close] is judged by the same rule at `open`, and by `time <= close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import SchemaError
from cehrxgpt.tasks.codes import matching_codes, visit_class
from cehrxgpt.tasks.definition import Outcome, Task, Valued

SUBJECT_KEY = ("subject_id",)
SAMPLE_KEY = ("subject_id", "prediction_time", "sample_id")

_INSTANT = pl.Datetime("us")
_ROW = "_row"
_FAR = datetime(9999, 12, 31)


def days(count: float) -> pl.Expr:
    """A duration of so many days, to the microsecond."""
    return pl.duration(microseconds=round(count * 86_400_000_000), time_unit="us")


def known_at() -> pl.Expr:
    """When the record could know each event; the event's own time where nothing else is said."""
    return pl.coalesce("available_time", "time")


def is_after(moment: str) -> pl.Expr:
    """Did the event happen after the instant in column `moment`? See the module's docstring."""
    return (pl.col("time") >= pl.col(moment)) & (known_at() > pl.col(moment))


def with_codes(events: pl.DataFrame, codes: frozenset[str] | Sequence[str]) -> pl.DataFrame:
    """Timed events with one of these codes."""
    return events.filter(pl.col("code").is_in(sorted(codes)) & pl.col("time").is_not_null())


def concept_events(task: Task, asked: Valued, events: pl.DataFrame) -> pl.DataFrame:
    """Timed events of the concept set asked for, with numbers in the range asked for."""
    found = with_codes(events, matching_codes(task.concept_sets[asked.concepts or ""], events["code"].unique().to_list()))
    return found.filter(value_holds(asked)) if asked.by_value else found


def value_holds(asked: Valued, number: pl.Expr | None = None) -> pl.Expr:
    """Is the number (columns `numeric_value` or what is given, `operator`, `unit`) in the range for certain?

    A result with a sign stands for all the numbers that it allows, each of which must be in the range. Bounds are compared as float32, as
    numbers are kept.
    """
    value = (pl.col("numeric_value") if number is None else number).cast(pl.Float32)
    sign = pl.col("operator").fill_null("=")
    exact, more, less = sign == "=", sign.is_in([">", ">="]), sign.is_in(["<", "<="])
    strictly_more, strictly_less = sign == ">", sign == "<"
    tests = [value.is_finite()]
    if asked.above is not None:
        bound = _float32(asked.above)
        tests.append(((exact | more) & (value > bound)) | (strictly_more & (value == bound)))
    if asked.at_least is not None:
        tests.append((exact | more) & (value >= _float32(asked.at_least)))
    if asked.below is not None:
        bound = _float32(asked.below)
        tests.append(((exact | less) & (value < bound)) | (strictly_less & (value == bound)))
    if asked.at_most is not None:
        tests.append((exact | less) & (value <= _float32(asked.at_most)))
    if asked.units:
        tests.append(pl.col("unit").is_in(list(asked.units)))
    return pl.all_horizontal(tests).fill_null(False)


def _float32(bound: float) -> pl.Expr:
    return pl.lit(bound, dtype=pl.Float32)


def visit_rows(events: pl.DataFrame) -> pl.DataFrame:
    """The Visit rows, and stays in intensive care; what has no end of its own ends as in the tokens: a visit when its place of discharge
    is known, intensive care with its visit."""
    dated = events.filter(pl.col("time").is_not_null())
    stays = dated.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX))
    icu = dated.filter(pl.col("code").str.starts_with(s.ICU_PREFIX))
    stays = _with_end(stays, dated.filter(pl.col("code").str.starts_with(s.DISCHARGE_PREFIX)), known_at())
    return stays if icu.is_empty() else pl.concat([stays, _intensive_care(_with_end(icu, stays, pl.col("end_time")))])


def _with_end(rows: pl.DataFrame, closing: pl.DataFrame, when: pl.Expr) -> pl.DataFrame:
    """`rows`, those without an end ending when the last of `closing` of the same visit does."""
    if not rows["end_time"].null_count() or closing.is_empty():
        return rows
    key = [name for name in (*SAMPLE_KEY, "visit_id") if name in rows.columns]
    ends = closing.group_by(key).agg(when.max().alias("_closed"))
    found = rows.join(ends, on=key, how="left", maintain_order="left")  # nothing joins where there is no visit_id
    closed = pl.when(pl.col("_closed").is_not_null()).then(pl.max_horizontal("time", "_closed"))
    return found.with_columns(pl.coalesce("end_time", closed).alias("end_time")).drop("_closed")


def _intensive_care(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per stay: those that overlap, or of which one ends in the hour in which the next begins, are one, as in the tokens."""
    key = [name for name in SAMPLE_KEY if name in rows.columns]
    never = pl.lit(_FAR).cast(_INSTANT)
    rows = rows.sort(*key, "time", "end_time", nulls_last=True).with_columns(pl.col("end_time").fill_null(never).alias("_until"))
    reach = pl.col("_until").cum_max().shift(1).over(key)
    fresh = reach.is_null() | (pl.col("time").dt.truncate("1h") > reach.dt.truncate("1h"))
    stays = rows.with_columns(fresh.cast(pl.Int64).cum_sum().over(key).alias("_stay")).group_by(*key, "_stay", maintain_order=True)
    merged = stays.agg(pl.all().exclude("_until").first(), pl.col("_until").max())
    until = pl.when(pl.col("_until") < never).then("_until").alias("end_time")
    return merged.with_columns(until).select(rows.columns).drop("_until")


def _leaf_events(task: Task, leaf: Outcome, events: pl.DataFrame) -> pl.DataFrame:
    """All events that would be this plain outcome (not for stay_over_days)."""
    if leaf.concepts is not None:
        return concept_events(task, leaf, events)
    if leaf.death:
        return with_codes(events, [s.DEATH])
    # A stay that began in the emergency room happens as a stay at the admission, from when on it is known as one; a visit that is dated to
    # the day alone is known at the day's last instant, which says nothing of when it happened.
    dated = known_at() == pl.col("time").dt.truncate("1d") + days(1) - pl.duration(microseconds=1)
    stays = visit_rows(events).filter(visit_class().is_in(list(leaf.visit)))
    return stays.with_columns(pl.when(dated).then("time").otherwise(known_at()).alias("time"))


def asked_at(task: Task) -> pl.Expr:
    """When a visit (columns `time`, `available_time`) is asked about whose index stands at its start."""
    return pl.max_horizontal(pl.col("time") + pl.duration(hours=task.index.hours_after, time_unit="us"), known_at())


def attach_stay(task: Task, events: pl.DataFrame, at: pl.DataFrame, *, by: Sequence[str] = SUBJECT_KEY) -> pl.DataFrame:
    """`at` with `stay_start` and `stay_end` of the index visit that is going on at each prediction time.

    A column that `at` has already is kept. The visit is one of the index's classes (classed by what is known at the prediction time): that
    which asks at this time, else the earliest. Its end is its own; where `events` hold no such visit, as futures do not, the first discharge after
    the prediction time; else null.
    """
    if {"stay_start", "stay_end"} <= set(at.columns):
        return at
    keyed = at.with_row_index(_ROW)
    pairs = keyed.select(_ROW, *dict.fromkeys((*by, "prediction_time")))
    open_visits = visit_rows(events).join(pairs, on=list(by), how="inner")
    open_visits = open_visits.filter(
        (pl.col("time") <= pl.col("prediction_time"))
        & (pl.col("end_time").is_null() | (pl.col("end_time") > pl.col("prediction_time")))
        & visit_class(pl.col("prediction_time")).is_in(list(task.index.visit))
    )
    open_visits = open_visits.with_columns(((asked_at(task) == pl.col("prediction_time")) & (task.index.at == "start")).alias("_asks"))
    order = [_ROW, "_asks", "time", "end_time"]
    stays = open_visits.sort(order, descending=[False, True, False, True], nulls_last=True).group_by(_ROW, maintain_order=True)
    found = stays.agg(pl.col("time").first().alias("_start"), pl.col("end_time").first().alias("_end"))
    places = events.filter(pl.col("code").str.starts_with(s.DISCHARGE_PREFIX)).join(pairs, on=list(by), how="inner")
    places = places.filter(is_after("prediction_time")).group_by(_ROW).agg(pl.col("time").min().alias("_discharge"))
    both = keyed.join(found, on=_ROW, how="left", maintain_order="left").join(places, on=_ROW, how="left", maintain_order="left")
    fresh = {"stay_start": pl.col("_start"), "stay_end": pl.when(pl.col("_start").is_null()).then("_discharge").otherwise("_end")}
    return both.select(*at.columns, *(value.cast(_INSTANT).alias(name) for name, value in fresh.items() if name not in at.columns))


def _first(task: Task, asked: Outcome, events: pl.DataFrame, pairs: pl.DataFrame, by: Sequence[str], *, opens: str) -> pl.DataFrame:
    """`_row`, `at`: when the outcome first is there after `opens` and by the window's close (no row where it is not).

    Of `any` the first part counts; `all` is there when the last of its parts has come for the first time.
    """
    if asked.parts:
        times = pl.concat([_first(task, part, events, pairs, by, opens=opens) for part in asked.parts]).group_by(_ROW)
        if asked.any:
            return times.agg(pl.col("at").min())
        return times.agg(pl.col("at").max(), pl.len().alias("_parts")).filter(pl.col("_parts") == len(asked.all)).drop("_parts")
    found = _leaf_events(task, asked, events).join(pairs, on=list(by), how="inner").filter(is_after(opens))
    in_time = pl.col("time") <= pl.col("window_close")
    if task.horizon_days == "stay" and asked.death:
        # Hospitals write the stay's end and the death independently, one of them often by the day alone: a death on the day on
        # which the stay ends is a death in the stay.
        in_time = in_time | (pl.col("time").dt.date() == pl.col("window_close").dt.date()).fill_null(False)
    return found.filter(in_time).group_by(_ROW).agg(pl.col("time").min().alias("at"))


def _pairs(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The key of each row, and its instants."""
    instants = [name for name in ("window_open", "window_close") if name in rows.columns]
    return rows.select(_ROW, *instants, *dict.fromkeys((*by, "prediction_time")))


def had_before(task: Task, events: pl.DataFrame, at: pl.DataFrame, *, by: Sequence[str] = SUBJECT_KEY) -> pl.Series:
    """Has the outcome been there before each prediction time? Boolean, in the order of `at`.

    Before is everything that is not after it, so that something of the day itself whose hour is not known counts too. A visit's class is
    that which is known at the prediction time. Nobody who is asked about has died before.
    """
    keyed = at.with_row_index(_ROW)
    pairs = _pairs(keyed, by)

    def rows_with(asked: Outcome) -> set[int]:
        if asked.parts:
            each = [rows_with(part) for part in asked.parts]
            return set.union(*each) if asked.any else set.intersection(*each)
        if asked.death:
            return set()
        found = concept_events(task, asked, events) if asked.concepts is not None else visit_rows(events)
        found = found.join(pairs, on=list(by), how="inner").filter(~is_after("prediction_time"))
        if asked.visit:
            found = found.filter(visit_class(pl.col("prediction_time")).is_in(list(asked.visit)))
        return set(found[_ROW].unique().to_list())

    return keyed[_ROW].is_in(sorted(rows_with(task.outcome))).alias("had_before")


def outcome_in_window(task: Task, events: pl.DataFrame, at: pl.DataFrame, *, by: Sequence[str] | None = None) -> pl.DataFrame:
    """The first outcome in each row's window.

    Args:
        task: widened by `resolve` where the data has a vocabulary.
        events: an EventTable, or a TrajectoryTable (simulated futures).
        at: one row per window: `prediction_time`, the columns of `by`, and for tasks about a stay, where `events` does not hold it,
            `stay_start` and `stay_end`. Further columns are kept.
        by: the key that `events` and `at` share; default (subject_id, prediction_time, sample_id) if both have `sample_id`, else
            (subject_id).

    Returns:
        `at`, same rows in the same order, with
            window_open, window_close: timestamps; the close, and then the outcome, is null where a stay's end is not known;
            outcome_time: of the first outcome in the window, or null; null too where death or a competing event came before it;
            death_time: of a death after the prediction time, or null (also where death is the outcome);
            competing_time: of the first competing event after the prediction time and by the close, or null.

    Raises:
        SchemaError: `at` or `events` lacks a column of the key.
    """
    if by is None:
        by = SAMPLE_KEY if "sample_id" in at.columns and "sample_id" in events.columns else SUBJECT_KEY
    for name in dict.fromkeys((*by, "prediction_time")):
        if name not in at.columns or (name in by and name not in events.columns):
            raise SchemaError(f"outcome_in_window: column '{name}' is missing; events need {', '.join(by)}, the rows also prediction_time")
    at = at.with_columns(pl.col("prediction_time").cast(_INSTANT))
    numbers = ("numeric_value", "unit", "operator") if any(task.valued()) else ()
    lacking = [name for name in numbers if name not in events.columns]
    if lacking:
        raise SchemaError(f"outcome_in_window: column '{lacking[0]}' is missing; a task about values needs {', '.join(numbers)}")
    events = events.select(*by, "time", "code", "end_time", "available_time", "visit_id", *numbers)
    rows = (attach_stay(task, events, at, by=by) if task.in_stay else at).with_row_index(_ROW)
    rows = rows.with_columns((pl.col("prediction_time") + days(task.gap_days)).alias("window_open"))
    if task.outcome.stay_over_days is not None:
        limit = pl.col("stay_start") + days(task.outcome.stay_over_days)
        rows = rows.with_columns(
            pl.min_horizontal(pl.when(pl.col("stay_end").is_not_null()).then(limit), pl.col("stay_end")).alias("window_close"),
            pl.when(pl.col("stay_end") > limit).then(limit).cast(_INSTANT).alias("outcome_time"),
        )
    else:
        close = pl.col("stay_end") if task.horizon_days == "stay" else pl.col("prediction_time") + days(task.follow_days or 0)
        rows = rows.with_columns(close.cast(_INSTANT).alias("window_close"))
        found = _first(task, task.outcome, events, _pairs(rows, by), by, opens="window_open").rename({"at": "outcome_time"})
        rows = rows.join(found, on=_ROW, how="left", maintain_order="left")
    rows = _with_ends(task, events, rows, by)
    added = ("window_open", "window_close", "outcome_time", "death_time", "competing_time")
    return rows.select(*at.columns, *(pl.col(name).cast(_INSTANT) for name in added))


def _with_ends(task: Task, events: pl.DataFrame, rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """`rows` with what ends follow-up after the prediction time: death, and competing events, no outcome being one any more after these."""
    deaths = with_codes(events, [s.DEATH]).join(_pairs(rows, by), on=list(by), how="inner")
    deaths = deaths.filter(is_after("prediction_time")).group_by(_ROW).agg(pl.col("time").min().alias("death_time"))
    rows = rows.join(deaths, on=_ROW, how="left", maintain_order="left")
    after_death = (pl.col("death_time") < pl.col("outcome_time")).fill_null(False)
    rows = rows.with_columns(pl.when(~after_death).then("outcome_time").alias("outcome_time"))
    if not task.competing:
        return rows.with_columns(pl.lit(None, dtype=_INSTANT).alias("competing_time"))
    each = [_first(task, one, events, _pairs(rows, by), by, opens="prediction_time") for one in task.competing]
    first = pl.concat(each).group_by(_ROW).agg(pl.col("at").min().alias("competing_time"))
    rows = rows.join(first, on=_ROW, how="left", maintain_order="left")
    too_late = (pl.col("competing_time") < pl.col("outcome_time")).fill_null(False)
    return rows.with_columns(pl.when(~too_late).then("outcome_time").alias("outcome_time"))

"""Rows of a source to an EventTable: what is mended, what is dropped and when each event could be known.

One bucket of subjects at a time, vectorised throughout; no loop over rows. The order of the rules matters and is the order of
`canonicalise`: demographics, deaths, visits (see `visit_rules`), events, then everything that needs the final visits and deaths. Each rule
counts in the ledger what it touches. What the rules mean is in docs/ingest.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.events import EMERGENCY_DTYPES, EVENT_DTYPES, conform, rank_expression
from cehrxgpt.sources.bill_rules import wait_for_the_bill
from cehrxgpt.sources.bucket import EVENTS, Bucket, shaped
from cehrxgpt.sources.detail_rules import mend_details
from cehrxgpt.sources.emergency_rules import KEY, in_emergencies
from cehrxgpt.sources.instants import known, last_instant, precision
from cehrxgpt.sources.ledger import Ledger
from cehrxgpt.sources.visit_rules import Visits, discharges, link, mend_visits

DAY = pl.duration(days=1)
EARLIEST = datetime(1900, 1, 2)  # up to 1900-01-01, dates of events are placeholders for unknown ones
EARLIEST_BIRTH = datetime(1800, 1, 1)  # shifted calendars have births of 1840
LATEST_SHIFTED = datetime(2899, 12, 31, 23, 59, 59, 999999)  # 2999-12-31 and 9999-12-31 are placeholders too
OWN_PERIODS, FIRST_TO_LAST = "observation_period", "first_to_last_event"


@dataclass(frozen=True)
class Rules:
    """What has to be known of the whole source before a bucket can be judged.

    Attributes:
        date_only_groups: groups (tables) in which midnight means that there is no time of day.
        latest: last instant that a record can have: today, or on shifted calendars the end of the year 2899; None = any.
        shifted: dates were moved to other centuries, so what lies after `latest` is a placeholder and no future.
    """

    date_only_groups: frozenset[str] = frozenset()
    latest: datetime | None = None
    shifted: bool = False


def _judge_precision(frame: pl.DataFrame, rules: Rules, time: str, flag: str, group: str) -> pl.DataFrame:
    """Turn midnight into "date only" where the group's midnights mean that; a date-only time is brought to midnight."""
    at_midnight = (pl.col(time) == pl.col(time).dt.truncate("1d")).fill_null(False)
    day = pl.col(flag) | (at_midnight & pl.col(group).is_in(sorted(rules.date_only_groups)))
    return frame.with_columns(day.alias(flag)).with_columns(pl.when(flag).then(pl.col(time).dt.truncate("1d")).otherwise(time).alias(time))


def _first_checks(frame: pl.DataFrame, bucket: Bucket, ledger: Ledger, *, time: bool = True, duplicates: bool = True) -> pl.DataFrame:
    """Drop rows without a subject, of nobody in the person table, without a date, and duplicates."""
    frame = ledger.drop(frame, pl.col("subject_id").is_null(), "no_subject_id")
    if bucket.known_subjects is not None:
        frame = ledger.drop(frame, ~pl.col("subject_id").is_in(bucket.known_subjects.implode()), "subject_not_in_person")
    if time:
        frame = ledger.drop(frame, pl.col("time").is_null(), "no_date")
    return drop_duplicates(frame, ledger) if duplicates else frame


def drop_duplicates(frame: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Drop all but one of the rows that are equal in everything but their id."""
    key = [name for name in ("table", "subject_id", "time", "code", "fingerprint") if name in frame.columns]
    candidates = frame.select(*key, pl.int_range(pl.len(), dtype=pl.UInt32).alias("_row"))
    candidates = candidates.filter(pl.col("fingerprint").is_duplicated() & pl.col("fingerprint").is_not_null())
    again = candidates.filter(~pl.struct(key).is_first_distinct())["_row"]
    if not again.len():
        return frame
    return ledger.drop(frame, pl.int_range(pl.len(), dtype=pl.UInt32).is_in(again.implode()), "duplicate")


def _drop_future(frame: pl.DataFrame, rules: Rules, ledger: Ledger) -> pl.DataFrame:
    return frame if rules.latest is None else ledger.drop(frame, pl.col("time") > rules.latest, "in_the_future")


def _drop_impossible(frame: pl.DataFrame, rules: Rules, ledger: Ledger) -> pl.DataFrame:
    """Drop what lies in the future or at a placeholder."""
    return ledger.drop(_drop_future(frame, rules, ledger), pl.col("time") < EARLIEST, "placeholder_date")


def _statics(bucket: Bucket, rules: Rules, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Demographic rows, and `birth` per subject."""
    statics = _first_checks(bucket.statics, bucket, ledger, time=False)
    statics = statics.with_columns(pl.col("time").dt.truncate("1d")).sort("subject_id", "code", "time", "derived", nulls_last=True)
    born = pl.col("code") == s.BIRTH
    statics = ledger.drop(statics, born & pl.col("time").is_null(), "no_date")
    never = born & ((pl.col("time") < EARLIEST_BIRTH) | (pl.col("time") > (rules.latest or LATEST_SHIFTED)))
    ledger.mend(statics, never & pl.col("derived"), "implausible_birth")
    statics = ledger.drop(statics, never, "implausible_birth")
    statics = ledger.drop(statics, born & ~pl.struct("subject_id", "code").is_first_distinct(), "birth_repeated")
    prefix = pl.col("code").str.split_exact("/", 1).struct.field("field_0")
    repeated = ~born & ~pl.struct(pl.col("subject_id"), prefix.alias("prefix")).is_first_distinct() & prefix.is_in(["gender", "race", "ethnicity"])
    statics = ledger.drop(statics, repeated, "demographic_repeated")
    births = statics.filter(born).select("subject_id", pl.col("time").alias("_birth"))
    return statics, births


def _deaths(bucket: Bucket, births: pl.DataFrame, rules: Rules, ledger: Ledger) -> pl.DataFrame:
    deaths = _first_checks(bucket.deaths, bucket, ledger)
    deaths = _judge_precision(deaths, rules, "time", "time_is_date", "group")
    deaths = _drop_impossible(deaths, rules, ledger)
    deaths = deaths.with_columns(pl.when("time_is_date").then(last_instant(pl.col("time"))).otherwise("time").alias("time"))
    deaths = deaths.join(births, on="subject_id", how="left")
    deaths = ledger.drop(deaths, pl.col("time") < pl.col("_birth"), "before_birth").drop("_birth")
    deaths = deaths.sort("subject_id", "time", "time_is_date")
    return ledger.drop(deaths, ~pl.col("subject_id").is_first_distinct(), "death_repeated")


def _death_times(deaths: pl.DataFrame) -> pl.DataFrame:
    return deaths.select("subject_id", pl.col("time").alias("_death"))


def _periods(bucket: Bucket, births: pl.DataFrame, deaths: pl.DataFrame, rules: Rules, ledger: Ledger) -> pl.DataFrame:
    """Observation periods as START and END rows (the START stands for the source's row)."""
    periods = _first_checks(bucket.periods, bucket, ledger)
    if rules.shifted and rules.latest is not None:
        periods = periods.with_columns(pl.when(pl.col("end_time") <= rules.latest).then("end_time").alias("end_time"))
    periods = ledger.drop(periods, pl.col("end_time").is_null(), "no_end_date")
    periods = _drop_future(periods, rules, ledger)
    periods = periods.join(_death_times(deaths), on="subject_id", how="left")
    periods = ledger.drop(periods, pl.col("time") > pl.col("_death"), "after_death").drop("_death")
    periods = periods.with_columns(pl.col("time").dt.truncate("1d"), last_instant(pl.col("end_time")).alias("end_time"))
    periods = periods.join(births, on="subject_id", how="left")
    ledger.mend(periods, pl.col("time") < pl.col("_birth"), "period_starts_before_birth")
    periods = periods.with_columns(pl.max_horizontal("time", "_birth").alias("time")).drop("_birth")
    reversed_ = pl.col("end_time") < pl.col("time")
    ledger.mend(periods, reversed_, "period_ends_before_start")
    periods = periods.with_columns(pl.when(reversed_).then(last_instant(pl.col("time"))).otherwise("end_time").alias("end_time"))
    if rules.latest is not None:
        ledger.mend(periods, pl.col("end_time") > rules.latest, "period_end_in_the_future")
        periods = periods.with_columns(pl.min_horizontal("end_time", pl.lit(rules.latest).cast(pl.Datetime("us"))).alias("end_time"))
    start = periods.with_columns(pl.lit(s.OBSERVATION_START).alias("code"))
    end = periods.with_columns(pl.lit(s.OBSERVATION_END).alias("code"), pl.col("end_time").alias("time"), pl.lit(True).alias("derived"))
    rows = pl.concat([start, end]).with_columns(pl.lit("day").alias("time_precision"), pl.lit(None, dtype=pl.Datetime("us")).alias("end_time"))
    closing = pl.col("code") == s.OBSERVATION_END
    return rows.with_columns(pl.when(closing).then("time").otherwise(last_instant(pl.col("time"))).alias("available_time"))


def _events(bucket: Bucket, births: pl.DataFrame, deaths: pl.DataFrame, rules: Rules, ledger: Ledger) -> pl.DataFrame:
    """The checks and mends that need no visits."""
    events = _first_checks(bucket.events, bucket, ledger)
    events = ledger.drop(events, pl.col("code").is_null(), "no_code")
    events = _judge_precision(events, rules, "time", "time_is_date", "group")
    events = _judge_precision(events, rules, "end_time", "end_is_date", "group")
    events = events.with_columns(pl.when("end_is_date").then(last_instant(pl.col("end_time"))).otherwise("end_time").alias("end_time"))
    events = _drop_impossible(events, rules, ledger)
    events = events.join(births, on="subject_id", how="left").join(_death_times(deaths), on="subject_id", how="left")
    events = ledger.drop(events, pl.col("time") < pl.col("_birth"), "before_birth")
    events = ledger.drop(events, pl.col("time") > pl.col("_death") + DAY, "after_death").drop("_birth", "_death")
    if rules.latest is not None:
        ledger.mend(events, pl.col("end_time") > rules.latest, "end_in_the_future_unknown")
        events = events.with_columns(pl.when(pl.col("end_time") <= rules.latest).then("end_time").alias("end_time"))
    ledger.mend(events, pl.col("end_time") < pl.col("time"), "end_before_start")
    return events.with_columns(pl.max_horizontal("time", "end_time").alias("_later")).with_columns(
        pl.when(pl.col("end_time").is_not_null()).then("_later").alias("end_time")
    ).drop("_later")  # fmt: skip


def _available(events: pl.DataFrame, visits: Visits, periods: pl.DataFrame, deaths: pl.DataFrame) -> pl.DataFrame:
    """When the record could know each event (RULES of time 1).

    Date only: the last instant of its day. A billing diagnosis: its visit's end. A discharge place stands at its visit's end itself, and is known
    when the patient has left.
    """
    ends = visits.standing.select(*KEY, pl.col("end_time").alias("_visit_end"), pl.col("end_is_date").alias("_visit_end_is_date"), "left_time")
    events = events.join(ends, on=KEY, how="left")
    at_end = pl.col("discharge") & pl.col("_visit_end").is_not_null()
    events = events.with_columns(
        pl.when(at_end).then("_visit_end").otherwise("time").alias("time"),
        pl.when(at_end).then("_visit_end_is_date").otherwise("time_is_date").alias("time_is_date"),
    )
    left = pl.when(at_end).then("left_time")
    events = events.with_columns(pl.max_horizontal(known(), left).alias("available_time")).drop("_visit_end", "_visit_end_is_date", "left_time")
    instants = [(events, "available_time"), (visits.standing, "time"), (visits.standing, "end_time"), (periods, "time"), (deaths, "time")]
    record = pl.concat([frame.select("subject_id", pl.col(name).alias("_record_end")) for frame, name in instants])
    return wait_for_the_bill(events, visits.standing, visits.own_ends, record.group_by("subject_id").agg(pl.col("_record_end").max()))


def _until_death(events: pl.DataFrame, deaths: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Move events after the death (by 24 h at most) to its time; nothing but a prescription lasts longer.

    The end of a drug stays as it was prescribed: cut at the death, its length would tell of the death when the drug is given.
    """
    events = events.join(_death_times(deaths), on="subject_id", how="left")
    ledger.mend(events, pl.col("time") > pl.col("_death"), "moved_to_death")
    prescribed = (pl.col("origin") == "drug_exposure").fill_null(False)
    late = ~prescribed & (pl.col("end_time") > pl.col("_death"))
    ledger.mend(events, late & (pl.col("time") <= pl.col("_death")), "end_after_death")
    until = pl.when(late).then("_death").otherwise("end_time")
    return events.with_columns(pl.min_horizontal("time", "_death").alias("time"), until.alias("end_time")).drop("_death")


def _policy_periods(rows: pl.DataFrame, periods: pl.DataFrame) -> pl.DataFrame:
    """START at the first and END at the last event, for subjects without a period of their own."""
    timed = rows.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH))
    timed = timed.join(periods.select("subject_id").unique(), on="subject_id", how="anti")
    until = pl.when("time_is_date").then(last_instant(pl.col("time"))).otherwise("time")
    last = pl.max_horizontal(until, pl.when(pl.col("code").str.starts_with(s.VISIT_PREFIX)).then("end_time"))
    bounds = timed.group_by("subject_id").agg(
        pl.col("time").min().alias("first"), pl.col("available_time").min().alias("first_known"), last.max().alias("last")
    )
    start = bounds.select("subject_id", pl.lit(s.OBSERVATION_START).alias("code"), pl.col("first").alias("time"), pl.col("first_known"))
    end = bounds.select("subject_id", pl.lit(s.OBSERVATION_END).alias("code"), pl.col("last").alias("time"), pl.col("last").alias("first_known"))
    at_a_day = (pl.col("time") == pl.col("time").dt.truncate("1d")) | (pl.col("time") == last_instant(pl.col("time")))
    rows = pl.concat([start, end]).with_columns(at_a_day.alias("time_is_date"))
    return rows.with_columns(
        pl.max_horizontal("time", "first_known").alias("available_time"),
        precision().alias("time_precision"),
        pl.lit("observation_period").alias("origin"),
        pl.lit(FIRST_TO_LAST).alias("table"),
        pl.lit(True).alias("derived"),
    )


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Sorted as `events.sort_events` does, with every further column as a tie-break, so that the order of the input does not show."""
    keys = ["subject_id", "time", "_rank", "code", "numeric_value", "unit", "text_value", "visit_id"]
    keys += ["operator", "end_time", "available_time", "origin"]
    return rows.with_columns(rank_expression().alias("_rank")).sort(keys, nulls_last=False).drop("_rank")


def canonicalise(bucket: Bucket, rules: Rules, ledger: Ledger) -> pl.DataFrame:
    """One bucket as an EventTable; every row kept, dropped or mended is counted in `ledger`.

    The result keeps the invariants that `events.validate_events` checks.
    """
    if bucket.native is not None:
        ledger.keep(bucket.native)
        return conform(_in_order(bucket.native))
    statics, births = _statics(bucket, rules, ledger)
    deaths = _deaths(bucket, births, rules, ledger)
    periods = _periods(bucket, births, deaths, rules, ledger)
    visits = _first_checks(bucket.visits, bucket, ledger, duplicates=False)  # events follow a visit's double: see visit_rules
    visits = _judge_precision(visits, rules, "time", "time_is_date", "group")
    visits = _judge_precision(visits, rules, "end_time", "end_is_date", "end_group")
    visits = visits.with_columns(pl.when("end_is_date").then(last_instant(pl.col("end_time"))).otherwise("end_time").alias("end_time"))
    visits = _drop_impossible(visits, rules, ledger)
    stays = mend_visits(visits, births, deaths, rules.latest, ledger)
    events = _events(bucket, births, deaths, rules, ledger)
    events = pl.concat([events, shaped(discharges(stays.standing), EVENTS)])
    events = link(events, stays, ledger)
    events = in_emergencies(mend_details(events, stays, ledger), stays.emergencies)
    events = _until_death(_available(events, stays, periods, deaths), deaths, ledger)
    visit_rows = stays.standing.with_columns(pl.max_horizontal(known(), "admitted").alias("available_time"))
    death_rows = deaths.with_columns(pl.lit(s.DEATH).alias("code"), pl.col("time").alias("available_time"))
    birth_rows = statics.with_columns(last_instant(pl.col("time")).alias("available_time"), pl.col("time").is_not_null().alias("time_is_date"))
    timed = pl.concat([events, visit_rows, death_rows, birth_rows], how="diagonal").with_columns(
        pl.when(pl.col("time").is_not_null()).then(precision()).alias("time_precision")
    )
    rows = pl.concat([timed, periods, _policy_periods(timed, periods)], how="diagonal")
    ledger.keep(rows)
    dtypes = EVENT_DTYPES | EMERGENCY_DTYPES
    return _in_order(rows).select(*dtypes).cast(pl.Schema(dtypes))

"""Rules about visits: which ones stand, where they start and end, and which events belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from cehrxgpt import visits as classes
from cehrxgpt.sources.emergency_rules import KEY, merge_emergencies
from cehrxgpt.sources.instants import last_instant
from cehrxgpt.sources.ledger import Ledger

DAY = pl.duration(days=1)
_NEVER = datetime(9999, 12, 31)


@dataclass(frozen=True)
class Visits:
    """What became of the visits of a bucket.

    Attributes:
        standing: those that stand, with `visit_class`, `left_time` (the end as the source has it, where it has one: a day visit may last
            for days there), `admitted` and `emergencies` (see `emergency_rules`).
        merged: subject_id, visit_id, `_into` of those that another one stands for, and `_emergency`: the emergency visit that it was then.
        emergencies: subject_id, visit_id, `_into`, code, time, end_time of the emergency visits that went into an admission.
        own_ends: subject_id, `named_visit`, `_own_end` of every visit that a row may name, as it ended by itself.
    """

    standing: pl.DataFrame
    merged: pl.DataFrame
    emergencies: pl.DataFrame
    own_ends: pl.DataFrame


def mend_visits(visits: pl.DataFrame, births: pl.DataFrame, deaths: pl.DataFrame, latest: datetime | None, ledger: Ledger) -> Visits:
    """The visits that stand, and what became of the others.

    Nothing here may depend on how a visit ends while it is not yet known: a concept has hours inside, or is an admission, by itself; a length
    only changes what class a reader calls it.
    """
    visits = visits.sort("subject_id", "visit_id", "time", "end_time", "code", nulls_last=True)
    visits = ledger.drop(visits, pl.col("visit_id").is_null(), "no_visit_id")
    visits, doubles = _drop_repeated(visits, ledger)
    visits = visits.join(births, on="subject_id", how="left").join(
        deaths.select("subject_id", pl.col("time").alias("_death")), on="subject_id", how="left"
    )
    visits = ledger.drop(visits, pl.col("time") < pl.col("_birth"), "before_birth")
    visits = ledger.drop(visits, pl.col("time") > pl.col("_death") + DAY, "after_death")
    if latest is not None:
        ledger.mend(visits, pl.col("end_time") > latest, "visit_end_in_the_future_unknown")
        visits = visits.with_columns(pl.when(pl.col("end_time") <= latest).then("end_time").alias("end_time"))
    visits = _mend_ends(visits, ledger)
    visits = visits.with_columns(classes.classify(pl.col("code"), pl.lit(None, dtype=pl.Int64)).alias("visit_class"))
    visits = _one_day(visits, ledger).drop("_birth", "_death")
    ends = visits.select("subject_id", pl.col("visit_id").alias("named_visit"), pl.coalesce("left_time", "end_time").alias("_own_end"))
    of_doubles = doubles.join(ends.rename({"named_visit": "_into"}), on=["subject_id", "_into"], how="inner")
    ends = pl.concat([ends, of_doubles.select("subject_id", pl.col("visit_id").alias("named_visit"), "_own_end")])
    visits, emergencies = merge_emergencies(visits, ledger)
    merged = emergencies.select(*KEY, "_into", pl.col("visit_id").alias("_emergency"))
    further = merged.select("subject_id", pl.col("visit_id").alias("_into"), pl.col("_into").alias("_further"), "_emergency")
    onwards = doubles.join(further, on=["subject_id", "_into"], how="left")
    onwards = onwards.select(*KEY, pl.coalesce("_further", "_into").alias("_into"), "_emergency")
    return Visits(visits, pl.concat([merged, onwards]), emergencies, ends)


def _drop_repeated(visits: pl.DataFrame, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Keep one visit for each id, the earliest, and of those that are equal in everything but their id the first, which stands for the others."""
    again = pl.col("fingerprint").is_not_null() & ~pl.struct("table", *KEY, "time", "fingerprint").is_first_distinct()
    visits = ledger.drop(visits, again, "duplicate")
    visits = ledger.drop(visits, ~pl.struct(KEY).is_first_distinct(), "visit_id_repeated")
    first = pl.col("visit_id").first().over("table", "subject_id", "time", "fingerprint")
    visits = visits.with_columns(pl.when(pl.col("fingerprint").is_not_null()).then(first).alias("_into"))
    double = (pl.col("_into") != pl.col("visit_id")).fill_null(False)
    doubles = visits.filter(double).select(*KEY, "_into")
    return ledger.drop(visits, double, "duplicate").drop("_into"), doubles


def _mend_ends(visits: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """An end before the start becomes the start; nothing starts or ends after the death."""
    ledger.mend(visits, pl.col("end_time").is_null(), "visit_end_unknown")
    backwards = (pl.col("end_time") < pl.col("time")).fill_null(False)
    ledger.mend(visits, backwards, "visit_ends_before_start")
    visits = visits.with_columns(
        pl.when(backwards).then("time").otherwise("end_time").alias("end_time"),
        (pl.col("end_is_date") & ~backwards).alias("end_is_date"),
    )
    ledger.mend(visits, pl.col("time") > pl.col("_death"), "moved_to_death")
    ledger.mend(visits, (pl.col("end_time") > pl.col("_death")) & (pl.col("time") <= pl.col("_death")), "visit_ends_after_death")
    clipped = [pl.when(pl.col(name).is_not_null()).then(pl.min_horizontal(name, "_death")).alias(name) for name in ("time", "end_time")]
    moved = (pl.col("end_time") > pl.col("_death")).fill_null(False)
    return visits.with_columns(*clipped, (pl.col("end_is_date") & ~moved).alias("end_is_date"))


def _one_day(visits: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """A day visit that spans days, or whose end is not known, ends with its first day; what its end brings is known at `left_time`."""
    visits = visits.with_columns(pl.col("end_time").alias("left_time"))
    last = last_instant(pl.col("time"))
    of_a_day = ~classes.is_span(pl.col("visit_class"))
    ledger.mend(visits, of_a_day & (pl.col("end_time") > last), "day_visit_spanned_days")
    cut = of_a_day & (pl.col("end_time") > last).fill_null(True)
    end = pl.when(cut).then(pl.min_horizontal(last, "_death")).otherwise("end_time")
    return visits.with_columns(end.alias("end_time"), (pl.col("end_is_date") | cut).alias("end_is_date"))


def discharges(visits: pl.DataFrame) -> pl.DataFrame:
    """Derived rows for the discharge places that visits carry themselves."""
    leaving = visits.filter(pl.col("discharge_code").is_not_null() & pl.col("left_time").is_not_null())
    return leaving.select(
        "subject_id",
        "visit_id",
        pl.col("end_time").alias("time"),
        pl.col("end_is_date").alias("time_is_date"),
        pl.col("discharge_code").alias("code"),
        pl.lit(True).alias("discharge"),
        pl.lit(True).alias("derived"),
        "origin",
        "table",
    )


def link(events: pl.DataFrame, visits: Visits, ledger: Ledger) -> pl.DataFrame:
    """Events with the visit they belong to, `named_visit` as the row has it and `emergency_id`, the emergency visit it was in first.

    Links to merged visits follow the merge; links to visits that are not there, over 24 h away, or to another day of a day visit are
    cut; events without a visit that lie inside a span visit are linked to it.
    """
    events = events.join(visits.merged, on=KEY, how="left")
    events = ledger.drop(events, pl.col("discharge") & pl.col("_into").is_not_null(), "merged_into_admission")
    events = events.with_columns(
        pl.coalesce("_into", "visit_id").alias("visit_id"), pl.col("visit_id").alias("named_visit"), pl.col("_emergency").alias("emergency_id")
    )
    spans = visits.standing.select(
        *KEY, pl.col("time").alias("_start"), pl.col("end_time").alias("_end"), classes.is_span(pl.col("visit_class")).alias("_span")
    )  # fmt: skip
    events = events.drop("_into", "_emergency").join(spans, on=KEY, how="left")
    linked, there = pl.col("visit_id").is_not_null(), pl.col("_start").is_not_null()
    events = ledger.drop(events, pl.col("discharge") & ~there, "visit_absent")
    unknown = linked & ~there
    far = (pl.col("time") < pl.col("_start") - DAY) | (pl.col("time") > pl.col("_end") + DAY)
    other_day = ~pl.col("_span") & (pl.col("time").dt.truncate("1d") != pl.col("_start").dt.truncate("1d"))
    far, other_day = far.fill_null(False), other_day.fill_null(False)
    clinical = ~pl.col("discharge")
    ledger.mend(events, unknown, "unlinked_visit_absent")
    ledger.mend(events, clinical & far & ~other_day, "unlinked_over_24h_outside")
    ledger.mend(events, clinical & other_day, "unlinked_other_day_of_day_visit")
    cut = unknown | (clinical & (far | other_day))
    kept = [pl.when(~cut).then(name).alias(name) for name in ("visit_id", "emergency_id")]
    return _link_inside(events.with_columns(kept).drop("_start", "_end", "_span"), visits.standing, ledger)


def _link_inside(events: pl.DataFrame, visits: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Link what has no visit to the span visit around it: the latest to start, or else the one that lasts longest.

    One without a known end is around all that follows, as for the timeline: that is how a visit looks while it goes on.
    """
    spans = visits.filter(classes.is_span(pl.col("visit_class"))).with_columns(pl.col("end_time").fill_null(_NEVER))
    spans = spans.sort("time", "end_time", "visit_id")
    loose = events.filter(pl.col("visit_id").is_null())
    if not spans.height or not loose.height:
        return events
    # Of all visits that started by then, one is around the event exactly if the latest end so far is: no pairwise comparison.
    longest = pl.col("end_time").cum_max().over("subject_id")
    spans = spans.select(
        "subject_id",
        pl.col("time").alias("_start"),
        pl.col("end_time").alias("_end"),
        pl.col("visit_id").alias("_last"),
        longest.alias("_reach"),
        pl.when(pl.col("end_time") == longest).then("visit_id").forward_fill().over("subject_id").alias("_longest"),
    )
    found = loose.sort("time").join_asof(spans, left_on="time", right_on="_start", by="subject_id", strategy="backward", check_sortedness=False)
    inside = pl.when(pl.col("time") <= pl.col("_end")).then("_last").when(pl.col("time") <= pl.col("_reach")).then("_longest")
    found = found.with_columns(inside.alias("visit_id"))
    ledger.mend(found, pl.col("visit_id").is_not_null(), "linked_inside_visit")
    return pl.concat([events.filter(pl.col("visit_id").is_not_null()), found.select(events.columns)])

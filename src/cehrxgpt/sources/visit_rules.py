"""Rules about visits: which ones stand, where they start and end, and which events belong to them."""

from __future__ import annotations

from datetime import datetime

import polars as pl

from cehrxgpt import visits as classes
from cehrxgpt.sources.instants import last_instant
from cehrxgpt.sources.ledger import Ledger

DAY = pl.duration(days=1)
_KEY = ["subject_id", "visit_id"]


def mend_visits(
    visits: pl.DataFrame, births: pl.DataFrame, deaths: pl.DataFrame, latest: datetime | None, ledger: Ledger
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The visits that stand, with `visit_class`, and `merged`: subject, visit_id, `_into` of those that another one stands for."""
    visits = visits.sort("subject_id", "visit_id", "time", "end_time", "code", nulls_last=True)
    visits = ledger.drop(visits, pl.col("visit_id").is_null(), "no_visit_id")
    visits, doubles = _drop_doubles(visits, ledger)
    visits = ledger.drop(visits, ~pl.struct(_KEY).is_first_distinct(), "visit_id_repeated")
    visits = visits.join(births, on="subject_id", how="left").join(
        deaths.select("subject_id", pl.col("time").alias("_death")), on="subject_id", how="left"
    )
    visits = ledger.drop(visits, pl.col("time") < pl.col("_birth"), "before_birth")
    visits = ledger.drop(visits, pl.col("time") > pl.col("_death") + DAY, "after_death")
    if latest is not None:
        ledger.mend(visits, pl.col("end_time") > latest, "visit_end_in_the_future_unknown")
        visits = visits.with_columns(pl.when(pl.col("end_time") <= latest).then("end_time").alias("end_time"))
    visits = _mend_ends(visits, ledger)
    visits = visits.with_columns(classes.classify(pl.col("code"), (pl.col("end_time") - pl.col("time")).dt.total_minutes()).alias("visit_class"))
    visits = _one_day(visits, ledger)
    visits, merged = _merge_emergencies(visits, ledger)
    onwards = doubles.join(merged.rename({"visit_id": "_into", "_into": "_further"}), on=["subject_id", "_into"], how="left")
    onwards = onwards.select(*_KEY, pl.coalesce("_further", "_into").alias("_into"))
    return visits.drop("_birth", "_death"), pl.concat([merged, onwards])


def _drop_doubles(visits: pl.DataFrame, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop visits that are equal in everything but their id; the first of them stands for the others."""
    first = pl.col("visit_id").first().over("table", "subject_id", "time", "fingerprint")
    visits = visits.with_columns(pl.when(pl.col("fingerprint").is_not_null()).then(first).alias("_into"))
    double = (pl.col("_into") != pl.col("visit_id")).fill_null(False)
    doubles = visits.filter(double).select(*_KEY, "_into").unique(_KEY)
    visits = ledger.drop(visits, double, "duplicate").drop("_into")
    again = pl.col("fingerprint").is_not_null() & ~pl.struct("table", *_KEY, "time", "fingerprint").is_first_distinct()
    return ledger.drop(visits, again, "duplicate"), doubles


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
    """A day visit that spans days ends with its first day."""
    last = last_instant(pl.col("time"))
    spanning = (~classes.is_span(pl.col("visit_class")) & (pl.col("end_time") > last)).fill_null(False)
    ledger.mend(visits, spanning, "day_visit_spanned_days")
    return visits.with_columns(
        pl.when(spanning).then(last).otherwise("end_time").alias("end_time"), (pl.col("end_is_date") | spanning).alias("end_is_date")
    )


def _merge_emergencies(visits: pl.DataFrame, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame]:
    """An emergency visit during which an admission starts becomes part of it: the admission wins and starts when it did.

    The record cannot know of the admission before it happens: `admitted` keeps that instant for the visit's `available_time`.
    """
    visits = visits.with_columns(pl.lit(None, dtype=pl.Datetime("us")).alias("admitted"))
    pairs = _admissions_from(visits)
    merged = pairs.select("subject_id", "visit_id", "_into")
    if not merged.height:
        return visits, merged
    starts = (
        pairs.sort("time").group_by("subject_id", "_into").agg(pl.col("time").first().alias("_start"), pl.col("time_is_date").first().alias("_day"))
    )
    flagged = visits.join(merged, on=_KEY, how="left")
    flagged = ledger.drop(flagged, pl.col("_into").is_not_null(), "merged_into_admission").drop("_into")
    flagged = flagged.join(starts, left_on=_KEY, right_on=["subject_id", "_into"], how="left")
    moved = (pl.col("_start") != pl.col("time")).fill_null(False)
    ledger.mend(flagged, moved, "admission_start_moved_to_emergency")
    flagged = flagged.with_columns(
        pl.when(moved).then(pl.when("time_is_date").then(last_instant(pl.col("time"))).otherwise("time")).alias("admitted"),
        pl.when(moved).then("_start").otherwise("time").alias("time"),
        pl.when(moved).then("_day").otherwise("time_is_date").alias("time_is_date"),
    )
    return flagged.drop("_start", "_day"), merged


def _admissions_from(visits: pl.DataFrame) -> pl.DataFrame:
    """The emergency visits that became an admission, with the admission's id as `_into`: the first that starts while they last.

    An admission without hours may have started at any hour of its day up to its end: an emergency visit that began on that day became
    it, unless another admission starts, by its own time, while the visit lasts.
    """
    starts = pl.col("time").alias("_admitted"), pl.col("visit_id").alias("_into")
    admissions = visits.filter(pl.col("visit_class") == "inpatient").sort("time", "visit_id")
    emergencies = visits.filter((pl.col("visit_class") == "emergency") & pl.col("end_time").is_not_null()).sort("time", "visit_id")
    during = emergencies.join_asof(
        admissions.select("subject_id", *starts), left_on="time", right_on="_admitted", by="subject_id", strategy="forward", check_sortedness=False
    ).filter(pl.col("_admitted") <= pl.col("end_time"))
    dated = admissions.filter("time_is_date").select("subject_id", pl.col("end_time").alias("_until"), *starts)
    day = pl.col("time").dt.truncate("1d")
    same_day = emergencies.join(dated, left_on=["subject_id", day], right_on=["subject_id", "_admitted"], maintain_order="left_right")
    same_day = same_day.filter((pl.col("time") <= pl.col("_until")).fill_null(True))
    pairs = pl.concat([during.select(*emergencies.columns, "_into"), same_day.select(*emergencies.columns, "_into")])
    return pairs.unique(_KEY, keep="first", maintain_order=True)


def discharges(visits: pl.DataFrame) -> pl.DataFrame:
    """Derived rows for the discharge places that visits carry themselves."""
    leaving = visits.filter(pl.col("discharge_code").is_not_null() & pl.col("end_time").is_not_null())
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


def link(events: pl.DataFrame, visits: pl.DataFrame, merged: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Events with the visit they belong to.

    Links to merged visits follow the merge; links to visits that are not there, over 24 h away, or to another day of a day visit are
    cut; events without a visit that lie inside a span visit are linked to it.
    """
    events = events.join(merged, on=_KEY, how="left")
    events = ledger.drop(events, pl.col("discharge") & pl.col("_into").is_not_null(), "merged_into_admission")
    events = events.with_columns(pl.coalesce("_into", "visit_id").alias("visit_id")).drop("_into")
    spans = visits.select(
        *_KEY, pl.col("time").alias("_start"), pl.col("end_time").alias("_end"), classes.is_span(pl.col("visit_class")).alias("_span")
    )  # fmt: skip
    events = events.join(spans, on=_KEY, how="left")
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
    events = events.with_columns(pl.when(~cut).then("visit_id").alias("visit_id")).drop("_start", "_end", "_span")
    return _link_inside(events, visits, ledger)


def _link_inside(events: pl.DataFrame, visits: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Link what has no visit to the span visit around it: the latest to start, or else the one that lasts longest."""
    spans = visits.filter(classes.is_span(pl.col("visit_class")) & pl.col("end_time").is_not_null()).sort("time", "end_time", "visit_id")
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

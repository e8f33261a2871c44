"""Emergency visits that become an admission: one visit afterwards, and until then what the record knew: an emergency visit.

Whether one becomes an admission is decided by what is known when the admission begins: the concepts as they are when a visit begins (a
length that makes a stay inpatient is not known yet), and that the emergency visit has not ended. One whose end is not known lasts a day.
"""

from __future__ import annotations

import polars as pl

from cehrxgpt import visits as classes
from cehrxgpt.events import EMERGENCY_DTYPES
from cehrxgpt.sources.instants import known, precision
from cehrxgpt.sources.ledger import Ledger

KEY = ["subject_id", "visit_id"]
UNENDED = pl.duration(days=1)


def merge_emergencies(visits: pl.DataFrame, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame]:
    """An emergency visit during which an admission starts becomes part of it: the admission wins and starts when it did.

    The record cannot know of the admission before it happens: `admitted` keeps that instant for the visit's `available_time`, and
    `emergencies` what stands in its place until then (see `events.cut_history`).

    Returns:
        The visits that stand, with `admitted` and `emergencies`; and the emergency visits that went into one: KEY, `_into`, code, time, end_time.
    """
    nothing = pl.lit(None, dtype=EMERGENCY_DTYPES["emergencies"]).alias("emergencies")
    visits = visits.with_columns(pl.lit(None, dtype=pl.Datetime("us")).alias("admitted"), nothing)
    pairs = _admissions_from(visits)
    merged = pairs.select(*KEY, "_into", "code", "time", "end_time")
    if not merged.height:
        return visits, merged
    flagged = visits.join(merged.select(*KEY, "_into"), on=KEY, how="left")
    flagged = ledger.drop(flagged, pl.col("_into").is_not_null(), "merged_into_admission").drop("_into", "emergencies")
    flagged = flagged.join(_first(pairs), on=KEY, how="left")
    moved = (pl.col("_start") != pl.col("time")).fill_null(False)
    ledger.mend(flagged, moved, "admission_start_moved_to_emergency")
    flagged = flagged.with_columns(
        pl.when(moved).then(known()).alias("admitted"),
        pl.when(moved).then("emergencies").alias("emergencies"),
        pl.when(moved).then("_start").otherwise("time").alias("time"),
        pl.when(moved).then("_day").otherwise("time_is_date").alias("time_is_date"),
    )
    return flagged.drop("_start", "_day"), merged


def _first(pairs: pl.DataFrame) -> pl.DataFrame:
    """Of each admission (KEY): start of its first emergency visit, whether that is a date, and all of them as they were."""
    as_they_were = (
        "visit_id", "code", "time", precision().alias("time_precision"), "end_time", known().alias("available_time"),
        pl.col("discharge_code").alias("discharge"),
    )  # fmt: skip
    pairs = pairs.select(
        "subject_id", pl.col("_into").alias("visit_id"), pl.col("time").alias("_start"), pl.col("time_is_date").alias("_day"),
        pl.struct(*as_they_were).alias("emergencies"),
    )  # fmt: skip
    ordered = pairs.sort("_start", pl.col("emergencies").struct.field("visit_id"))
    return ordered.group_by(KEY, maintain_order=True).agg(pl.col("_start", "_day").first(), pl.col("emergencies"))


def _admissions_from(visits: pl.DataFrame) -> pl.DataFrame:
    """The emergency visits that became an admission, with the admission's id as `_into`: the first that starts while they last.

    An admission without hours may have started at any hour of its day up to its end: an emergency visit that began on that day became
    it, unless another admission starts, by its own time, while the visit lasts.
    """
    starts = pl.col("time").alias("_admitted"), pl.col("visit_id").alias("_into")
    admissions = visits.filter(pl.col("visit_class") == "inpatient").sort("time", "visit_id")
    emergencies = visits.filter(pl.col("visit_class") == "emergency").sort("time", "visit_id")
    stay = pl.when(classes.is_ambiguous(pl.col("code"))).then(pl.col("time") + pl.duration(minutes=classes.stay_minutes()))
    lasts = pl.min_horizontal(pl.col("end_time").fill_null(pl.col("time") + UNENDED), stay)
    during = emergencies.join_asof(
        admissions.select("subject_id", *starts), left_on="time", right_on="_admitted", by="subject_id", strategy="forward", check_sortedness=False
    ).filter(pl.col("_admitted") <= lasts)
    dated = admissions.filter("time_is_date").select("subject_id", pl.col("end_time").alias("_until"), *starts)
    day = pl.col("time").dt.truncate("1d")
    same_day = emergencies.join(dated, left_on=["subject_id", day], right_on=["subject_id", "_admitted"], maintain_order="left_right")
    same_day = same_day.filter((pl.col("time") <= pl.col("_until")).fill_null(True))
    pairs = pl.concat([during.select(*emergencies.columns, "_into"), same_day.select(*emergencies.columns, "_into")])
    return pairs.unique(KEY, keep="first", maintain_order=True)


def in_emergencies(events: pl.DataFrame, emergencies: pl.DataFrame) -> pl.DataFrame:
    """`emergency_id` also of rows of an admission that did not name the emergency visit but happened during it."""
    if emergencies.is_empty():
        return events
    began = emergencies.select("subject_id", pl.col("_into").alias("visit_id"), pl.col("visit_id").alias("_emergency"), "time", "end_time")
    open_ = pl.col("visit_id").is_not_null() & pl.col("emergency_id").is_null()
    there = events.filter(open_).join(began, on=KEY, how="semi")
    others = pl.concat([events.filter(~open_), events.filter(open_).join(began, on=KEY, how="anti")])
    began = began.rename({"time": "_began", "end_time": "_ended"}).sort("_began", "_emergency")
    found = there.sort("time").join_asof(
        began, left_on="time", right_on="_began", by=KEY, strategy="backward", check_sortedness=False
    )  # fmt: skip
    during = (pl.col("time") <= pl.col("_ended")).fill_null(pl.col("_began").is_not_null())
    found = found.with_columns(pl.when(during).then("_emergency").alias("emergency_id"))
    return pl.concat([others, found.select(events.columns)])

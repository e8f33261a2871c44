"""Rules about visit details: which ones say something, and which are stays in intensive care inside a visit."""

from __future__ import annotations

import polars as pl

from cehrxgpt import visits as classes
from cehrxgpt.schema import DETAIL_PREFIX, ICU_PREFIX, VISIT_PREFIX
from cehrxgpt.sources.ledger import Ledger
from cehrxgpt.sources.visit_rules import Visits

DETAIL = "visit_detail"


def _detail_of(code: str) -> pl.Expr:
    """`visit_detail/<concept>` of a visit's concept."""
    return pl.lit(DETAIL_PREFIX) + pl.col(code).str.strip_prefix(VISIT_PREFIX)


def mend_details(events: pl.DataFrame, visits: Visits, ledger: Ledger) -> pl.DataFrame:
    """`events` (linked to their visits) with the visit details as they are kept.

    A detail with the concept of its own visit, or of the emergency visit that went into it, says nothing that the visit does not, and is
    dropped. A stay in intensive care lies inside a visit that has hours: one that crosses the visit's start or end is cut there; one
    outside every such visit becomes an event `visit_detail/...`, which no sentence has to nest. Stays that overlap are left as they are:
    several units are several facts, and only the sequence makes one stay of them.
    """
    details = events.filter(pl.col("origin") == DETAIL)
    if details.is_empty():
        return events
    own = visits.standing.select(
        "subject_id",
        "visit_id",
        pl.col("time").alias("_start"),
        pl.col("end_time").alias("_end"),
        pl.col("time_is_date").alias("_start_is_date"),
        _detail_of("code").alias("_code"),
        classes.is_span(pl.col("visit_class")).alias("_span"),
    )
    details = details.join(own, on=["subject_id", "visit_id"], how="left")
    before = visits.emergencies.select("subject_id", pl.col("visit_id").alias("emergency_id"), _detail_of("code").alias("_first_code"))
    details = details.join(before, on=["subject_id", "emergency_id"], how="left")
    said = (pl.col("code") == pl.col("_code")) | (pl.col("code") == pl.col("_first_code")).fill_null(False)
    details = ledger.drop(details, said, "repeats_its_visit")
    icu = pl.col("code").str.starts_with(ICU_PREFIX)
    apart = (pl.col("time") > pl.col("_end")) | (pl.col("end_time") < pl.col("_start"))
    outside = icu & (~pl.col("_span").fill_null(False) | apart.fill_null(False))
    ledger.mend(details, outside, "intensive_care_outside_every_stay")
    renamed = pl.lit(DETAIL_PREFIX) + pl.col("code").str.strip_prefix(ICU_PREFIX)
    details = details.with_columns(pl.when(outside).then(renamed).otherwise("code").alias("code"))
    early, late = icu & (pl.col("time") < pl.col("_start")), icu & (pl.col("end_time") > pl.col("_end"))
    ledger.mend(details, early | late, "intensive_care_cut_to_its_visit")
    details = details.with_columns(
        pl.when(early).then("_start").otherwise("time").alias("time"),
        pl.when(late).then("_end").otherwise("end_time").alias("end_time"),
        # moved to another day it begins as the visit does; moved from midnight to the visit's hour, the hour is no more known than before
        pl.when(early & (pl.col("time") < pl.col("_start").dt.truncate("1d"))).then("_start_is_date").otherwise("time_is_date").alias("time_is_date"),
        (pl.col("end_is_date") & ~late.fill_null(False)).alias("end_is_date"),
    )
    return pl.concat([events.filter(pl.col("origin").ne_missing(DETAIL)), details.select(events.columns)])

"""Diagnoses written for the bill: when the record could know them (RULES of time 1)."""

from __future__ import annotations

from datetime import datetime

import polars as pl

_NEVER = datetime(9999, 12, 31)


def wait_for_the_bill(events: pl.DataFrame, visits: pl.DataFrame, own_ends: pl.DataFrame, record_ends: pl.DataFrame) -> pl.DataFrame:
    """`events` with the `available_time` of bills not before the end of the visit that they are of.

    That is the visit that the row names, even where its date is too far from it to belong there; where it names none that is there, the
    visits around it, of a row with a date only around any time of that day. A visit whose end is not known ends with the record.

    Args:
        events: with `available_time` as the row's own time has it, and `named_visit`.
        visits: those that stand.
        own_ends: subject_id, named_visit, `_own_end` of every visit that a row may name.
        record_ends: subject_id, `_record_end`.
    """
    bills = events.filter("billing")
    if bills.is_empty():
        return events
    bills = bills.join(own_ends.with_columns(pl.lit(True).alias("_there")), on=["subject_id", "named_visit"], how="left")
    bills = bills.join(record_ends, on="subject_id", how="left")
    # Of all visits begun by then, one is around the row exactly if the latest end so far is not before it.
    reach = pl.col("end_time").fill_null(_NEVER).cum_max().over("subject_id").alias("_reach")
    around = visits.sort("time").select("subject_id", pl.col("time").alias("_begun"), reach)
    bills = bills.sort("available_time").join_asof(
        around, left_on="available_time", right_on="_begun", by="subject_id", strategy="backward", check_sortedness=False
    )
    around_it = pl.when(pl.col("_reach") >= pl.col("time")).then(pl.when(pl.col("_reach") < _NEVER).then("_reach").otherwise("_record_end"))
    waits = pl.when("_there").then(pl.coalesce("_own_end", "_record_end")).otherwise(around_it)
    bills = bills.with_columns(pl.max_horizontal("available_time", waits).alias("available_time"))
    return pl.concat([events.filter(~pl.col("billing")), bills.select(events.columns)])

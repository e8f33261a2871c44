"""Instants of a day, and when and how exactly a time is known, as expressions of `time` and `time_is_date`."""

from __future__ import annotations

import polars as pl

_LAST = pl.duration(microseconds=86_400_000_000 - 1)


def last_instant(time: pl.Expr) -> pl.Expr:
    """23:59:59.999999 of each date."""
    return time.dt.truncate("1d") + _LAST


def known() -> pl.Expr:
    """When the record could know of what happens then: where only the date is known, by the end of that day."""
    return pl.when("time_is_date").then(last_instant(pl.col("time"))).otherwise("time")


def precision() -> pl.Expr:
    """`day`, `minute` or `second`."""
    seconds = (pl.col("time").dt.second() != 0) | (pl.col("time").dt.microsecond() != 0)
    return pl.when("time_is_date").then(pl.lit("day")).when(seconds).then(pl.lit("second")).otherwise(pl.lit("minute"))

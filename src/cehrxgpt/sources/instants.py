"""What a date without a time means as an instant."""

from __future__ import annotations

import polars as pl

_LAST = pl.duration(microseconds=86_400_000_000 - 1)


def last_instant(time: pl.Expr) -> pl.Expr:
    """23:59:59.999999 of each date."""
    return time.dt.truncate("1d") + _LAST

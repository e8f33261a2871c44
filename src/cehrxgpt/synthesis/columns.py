"""Expressions that every table's writer needs: concepts, source values, dates, and the standard's columns in their order."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from cehrxgpt.synthesis import cdm


def concept(rest: pl.Expr) -> pl.Expr:
    """The concept id in the text after a code's prefix; 0 where it is none."""
    return pl.when(rest.str.contains(r"^-?\d{1,18}$")).then(rest).otherwise(pl.lit("0")).cast(pl.Int64)


def source(code: pl.Expr, rest: pl.Expr) -> pl.Expr:
    """The source value of concept-0 codes: what follows `<prefix>/0/`, else the whole code; null for real concepts."""
    kept = rest.str.strip_prefix("0/")
    return (
        pl.when(concept(rest) != 0).then(pl.lit(None, dtype=pl.String))
        .when(rest == "0").then(pl.lit(None, dtype=pl.String))
        .when(rest.str.starts_with("0/")).then(kept)
        .otherwise(code)
    )  # fmt: skip


def dated(stem: str, time: str = "time") -> list[pl.Expr]:
    """`<stem>_date` and `<stem>_datetime` (null where only the date is known)."""
    moment = pl.col(time)
    return [
        moment.dt.date().alias(f"{stem}_date"),
        pl.when(pl.col("time_precision").fill_null("second") != "day").then(moment).alias(f"{stem}_datetime"),
    ]


def fill(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """All columns of the table in the standard's order; absent ones are null."""
    columns = cdm.TABLES[table]
    return frame.select(
        pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in columns.items()
    )


def mapped(values: Mapping[str, int], rest: pl.Expr) -> pl.Expr:
    """A concept id by name (case ignored) for text that is not a number; 0 where the name is unknown."""
    return rest.str.to_lowercase().replace_strict(values, default=0, return_dtype=pl.Int64)

"""What every source hands to `canonicalise`: five frames with the rows of one bucket of subjects, still as the source has them.

All frames carry the bookkeeping columns
    table        source table the row is counted under
    derived      true where the row has no source row of its own (a race read from a column, a discharge place)
    fingerprint  hash of everything in the source row but its identifiers: two rows with the same one are duplicates; null = unique
    group        rows whose times are judged together: is midnight a time there, or the lack of one?
`time_is_date` / `end_is_date` mark times that came from a date column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import polars as pl

_TIME = pl.Datetime("us")
_BOOK = {"table": pl.String(), "derived": pl.Boolean(), "fingerprint": pl.UInt64()}

EVENTS: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": _TIME,
    "time_is_date": pl.Boolean(),
    "group": pl.String(),
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "unit": pl.String(),
    "operator": pl.String(),
    "end_time": _TIME,
    "end_is_date": pl.Boolean(),
    "visit_id": pl.Int64(),
    "origin": pl.String(),
    "billing": pl.Boolean(),  # known only when its visit has ended
    "discharge": pl.Boolean(),  # a discharge place: stands at its visit's end
    **_BOOK,
}
VISITS: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "visit_id": pl.Int64(),
    "time": _TIME,
    "time_is_date": pl.Boolean(),
    "group": pl.String(),
    "end_time": _TIME,
    "end_is_date": pl.Boolean(),
    "end_group": pl.String(),
    "code": pl.String(),  # Visit/...
    "discharge_code": pl.String(),  # discharge/... where the visit's own row has it
    "origin": pl.String(),
    **_BOOK,
}
PERIODS: dict[str, pl.DataType] = {"subject_id": pl.Int64(), "time": _TIME, "end_time": _TIME, "origin": pl.String(), **_BOOK}
DEATHS: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": _TIME,
    "time_is_date": pl.Boolean(),
    "group": pl.String(),
    "origin": pl.String(),
    **_BOOK,
}
STATICS: dict[str, pl.DataType] = {  # demographics; `time` is null except for the birth
    "subject_id": pl.Int64(),
    "time": _TIME,
    "code": pl.String(),
    "origin": pl.String(),
    **_BOOK,
}


def shaped(frame: pl.DataFrame, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """`frame` with exactly the columns of `schema`; absent flags become false, other absent columns null."""
    columns = []
    for name, dtype in schema.items():
        if name in frame.columns:
            column = pl.col(name).cast(dtype)
            columns.append(column.fill_null(False) if dtype == pl.Boolean() else column)
        else:
            columns.append(pl.lit(False if dtype == pl.Boolean() else None, dtype=dtype).alias(name))
    return frame.select(columns)


def _empty(schema: dict[str, pl.DataType]) -> Callable[[], pl.DataFrame]:
    return lambda: pl.DataFrame(schema=schema)


@dataclass
class Bucket:
    """The rows of some subjects; a subject is in one bucket only. Frames that are not given are empty."""

    events: pl.DataFrame = field(default_factory=_empty(EVENTS))
    visits: pl.DataFrame = field(default_factory=_empty(VISITS))
    periods: pl.DataFrame = field(default_factory=_empty(PERIODS))
    deaths: pl.DataFrame = field(default_factory=_empty(DEATHS))
    statics: pl.DataFrame = field(default_factory=_empty(STATICS))
    known_subjects: pl.Series | None = None  # the person table; None = whoever has a row is a subject
    native: pl.DataFrame | None = None  # an EventTable already: taken as it is, the rest is empty

"""Typed columns out of a source table, tolerant of how they are stored and strict about what they hold.

A reader asks for a column as an id, a number, a text or an instant. A missing column is null. What cannot be read as asked is
remembered, and `check` turns it into one error that names the file, the column and what would be right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from cehrxgpt.errors import SchemaError
from cehrxgpt.sources.database import reading, rows
from cehrxgpt.sources.locate import SourceTable

_OFFSET = r"([0-9])\s*(Z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)$"  # of a time zone, after a time of day
_UTC = r"\s*(Z|UTC)$"
_FIRST, _LAST = ibis.timestamp("0001-01-02"), ibis.timestamp("9999-12-30 23:59:59.999999")
_COMPACT = r"^([0-9]{4})([0-9]{2})([0-9]{2})(\.0)?$"
_A_TIME = "a date or time such as 2011-05-17 or 2011-05-17 08:30:00"
DOUBTFUL_SHARE = 0.2


def _wall_clock(zone: str, instant: ir.TimestampValue) -> ir.TimestampValue:
    """What the clock on a wall of the zone showed."""

    @ibis.udf.scalar.builtin(name="timezone", signature=((dt.string, dt.Timestamp(timezone="UTC")), dt.timestamp))
    def timezone(zone, instant):  # type: ignore[no-untyped-def]
        """The database's own."""

    return timezone(ibis.literal(zone), instant)


def hashed(value: ir.Value) -> ir.IntegerValue:
    """The database's own hash of a value (a struct, an id) as an unsigned 64-bit number; the same within one run."""

    @ibis.udf.scalar.builtin(name="hash", signature=((value.type(),), dt.uint64))
    def function(value):  # type: ignore[no-untyped-def]
        """Ibis's own `hash` goes through text to become signed."""

    return function(value)


def _finite(time: ir.TimestampValue) -> ir.TimestampValue:
    """Infinite times as the last and the first of the four-digit years."""
    time = time.cast("timestamp(6)")
    return (time > _LAST).ifelse(_LAST, (time < _FIRST).ifelse(_FIRST, time)).cast("timestamp(6)")


@dataclass
class Columns:
    """Access to the columns of one source table.

    Attributes:
        time_zone: whose wall clock instants with a time zone are brought to; empty = see `instant`.
        read: what was asked for, with its raw and its typed expression.
        zoned: whether a time in a column has a time zone; `check` replaces the expressions by their counts in `zones`.
        doubtful: columns of times of which `check` found more than DOUBTFUL_SHARE unreadable: how many, of how many.
    """

    source: SourceTable
    time_zone: str = ""
    read: dict[str, tuple[ir.Value, ir.Value, str, bool]] = field(default_factory=dict)
    zoned: dict[str, ir.BooleanValue] = field(default_factory=dict)
    zones: dict[str, int] = field(default_factory=dict)
    doubtful: dict[str, tuple[int, int]] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether any of the columns is there."""
        return any(name in self.source.relation.columns for name in names)

    def require(self, *names: str) -> None:
        """Raise `SchemaError` unless one of the columns is there."""
        if not self.has(*names):
            there = ", ".join(self.source.relation.columns)
            table = self.source.name
            raise SchemaError(f"{self.source.where}: column '{names[0]}' is missing; the OMOP table {table} needs it (columns there: {there})")

    def text(self, name: str) -> ir.StringValue:
        """The column as trimmed text; empty = null."""
        if not self.has(name):
            return ibis.null("string")
        return self.source.relation[name].cast("string").strip().nullif("")

    def integer(self, name: str) -> ir.IntegerValue:
        """The column as a signed 64-bit id; every value must be one."""
        return self._typed(name, "int64", "a whole number (signed 64-bit)", strict=True)

    def number(self, name: str) -> ir.FloatingValue:
        """The column as a number; a column without one readable value is an error, single ones become null."""
        return self._typed(name, "float64", "a number", strict=False)

    def instant(self, name: str) -> ir.TimestampValue:
        """The column as a time of the local clock, which OMOP and MEDS mean.

        Without `time_zone`, an offset in text is dropped (the clock's reading stands beside it), and a zoned Parquet or database time, which is
        an instant and no reading, is read as UTC. With it, both are brought to that zone's clock. Infinite times become far ones, which the
        rules for the future and for the time before birth find.
        """
        if not self.has(name):
            return ibis.null("timestamp(6)")
        column = self.source.relation[name]
        kind = column.type()
        if kind.is_date():
            return _finite(column.cast("timestamp"))
        if kind.is_timestamp():
            if kind.timezone is not None:
                self.zoned[name] = column.notnull()
                column = _wall_clock(self.time_zone or "UTC", column)
            return _finite(column)
        text = self.text(name)
        plain = text.re_replace(_COMPACT, r"\1-\2-\3")
        zoned = (plain.length() > 10) & plain.re_search(_OFFSET)
        typed = zoned.ifelse(plain.re_replace(_OFFSET, r"\1"), plain).try_cast("timestamp(6)")
        if self.time_zone:
            instant = plain.re_replace(_UTC, "+00").try_cast(dt.Timestamp(timezone="UTC"))
            typed = zoned.ifelse(_wall_clock(self.time_zone, instant), typed)
        self.zoned[name] = zoned
        typed = _finite(typed)
        self.read[name] = (text, typed, _A_TIME, False)
        return typed

    def _typed(self, name: str, dtype: str, expected: str, *, strict: bool) -> ir.Value:
        if not self.has(name):
            return ibis.null(dtype)
        column = self.source.relation[name]
        if column.type() == dt.dtype(dtype):
            return column
        if isinstance(column, ir.FloatingColumn):  # a missing id as data frames keep it
            column = column.isnan().ifelse(ibis.null(column.type()), column)
        raw = column if column.type().is_numeric() else self.text(name)
        typed = raw.try_cast(dtype)
        if dtype == "int64":  # the database rounds 1.5 to 2
            typed = (typed.cast("float64") == raw.try_cast("float64")).ifelse(typed, ibis.null(dtype))
        self.read[name] = (raw, typed, expected, strict)
        return typed

    def check(self) -> tuple[int, dict[str, int]]:
        """Rows of the table, and per column the values that could not be read and become null.

        Raises:
            SchemaError: an id column with an unreadable value, or any column without a readable one.
            SourceError: the file itself cannot be read.
        """
        counts = {"_rows": self.source.relation.count()}
        for name, (text, typed, _, _) in self.read.items():
            counts[f"{name}.there"] = text.count()
            counts[f"{name}.good"] = typed.count()
        counts |= {f"{name}.zoned": zoned.sum().fill_null(0) for name, zoned in self.zoned.items()}
        with reading(self.source.where, f"the OMOP table {self.source.name}"):
            found = rows(self.source.relation.aggregate(**counts))[0]
        self.zones = {name: int(found[f"{name}.zoned"]) for name in self.zoned if found[f"{name}.zoned"]}
        unreadable = {}
        for name, (_, _, expected, strict) in self.read.items():
            there, good = found[f"{name}.there"], found[f"{name}.good"]
            if there > good and (strict or good == 0):
                raise SchemaError(f"{self.source.where}: column '{name}' has {there - good} of {there} values that are not {expected}")
            if there > good:
                unreadable[name] = there - good
            if expected == _A_TIME and there - good > DOUBTFUL_SHARE * there:
                self.doubtful[name] = (there - good, there)
        return int(found["_rows"]), unreadable

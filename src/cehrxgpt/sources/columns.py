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

_OFFSET = r"\s*(Z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)$"  # of a time zone, after a time of day
_COMPACT = r"^([0-9]{4})([0-9]{2})([0-9]{2})(\.0)?$"


@ibis.udf.scalar.builtin(name="epoch_us", signature=((dt.timestamp,), dt.int64))
def _epoch_us(time):  # type: ignore[no-untyped-def]
    """Microseconds since 1970 in UTC; does not depend on the session's time zone."""


@ibis.udf.scalar.builtin(name="make_timestamp", signature=((dt.int64,), dt.timestamp))
def _make_timestamp(microseconds):  # type: ignore[no-untyped-def]
    """The inverse, without a time zone."""


def hashed(value: ir.Value) -> ir.IntegerValue:
    """The database's own hash of a value (a struct, an id) as an unsigned 64-bit number; the same within one run."""

    @ibis.udf.scalar.builtin(name="hash", signature=((value.type(),), dt.uint64))
    def function(value):  # type: ignore[no-untyped-def]
        """Ibis's own `hash` goes through text to become signed."""

    return function(value)


@dataclass
class Columns:
    """Access to the columns of one source table; `read` collects what was asked for, with its raw and its typed expression."""

    source: SourceTable
    read: dict[str, tuple[ir.Value, ir.Value, str, bool]] = field(default_factory=dict)

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
        """The column as a time of the local clock: an offset in text is dropped, a zoned Parquet time is read as UTC."""
        if not self.has(name):
            return ibis.null("timestamp(6)")
        column = self.source.relation[name]
        kind = column.type()
        if kind.is_timestamp() or kind.is_date():
            return _make_timestamp(_epoch_us(column.cast("timestamp") if kind.is_date() else column))
        text = self.text(name)
        plain = text.re_replace(_COMPACT, r"\1-\2-\3")
        plain = (plain.length() > 10).ifelse(plain.re_replace(_OFFSET, ""), plain)
        typed = plain.try_cast("timestamp(6)")
        self.read[name] = (text, typed, "a date or time such as 2011-05-17 or 2011-05-17 08:30:00", False)
        return typed

    def _typed(self, name: str, dtype: str, expected: str, *, strict: bool) -> ir.Value:
        if not self.has(name):
            return ibis.null(dtype)
        column = self.source.relation[name]
        if column.type() == dt.dtype(dtype):
            return column
        raw = column if column.type().is_numeric() else self.text(name)
        typed = raw.try_cast(dtype)
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
        with reading(self.source.where, f"the OMOP table {self.source.name}"):
            found = rows(self.source.relation.aggregate(**counts))[0]
        unreadable = {}
        for name, (_, _, expected, strict) in self.read.items():
            there, good = found[f"{name}.there"], found[f"{name}.good"]
            if there > good and (strict or good == 0):
                raise SchemaError(f"{self.source.where}: column '{name}' has {there - good} of {there} values that are not {expected}")
            if there > good:
                unreadable[name] = there - good
        return int(found["_rows"]), unreadable

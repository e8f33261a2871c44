"""The book of an ingest: every source row read is kept or dropped for a named reason, and what was mended or derived stands apart.

`read` comes from counting the source, `kept` from the rows that were written, and `dropped` from the rules that set rows aside. They
are counted in different places on purpose: if they do not add up, something vanished unseen, and that is a fault of ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from cehrxgpt.errors import CehrxgptError


@dataclass
class Ledger:
    """Counts by source table (and reason)."""

    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    mended: Counter[tuple[str, str]] = field(default_factory=Counter)
    derived: Counter[tuple[str, str]] = field(default_factory=Counter)

    def drop(self, frame: pl.DataFrame, condition: pl.Expr, reason: str) -> pl.DataFrame:
        """Set aside the rows of `frame` (columns `table`, `derived`) that meet `condition`; null counts as not met."""
        met = _met(frame, condition)
        if not met.any():  # most rules find nothing in most frames: no copy
            return frame
        self._add(self.dropped, frame.lazy().filter(met & ~frame["derived"]), reason)
        return frame.filter(~met)

    def mend(self, frame: pl.DataFrame, condition: pl.Expr, reason: str) -> None:
        """Count the rows of `frame` that meet `condition` as mended; the caller mends them."""
        met = _met(frame, condition)
        if met.any():
            self._add(self.mended, frame.lazy().filter(met), reason)

    def keep(self, frame: pl.DataFrame) -> None:
        """Count the rows that are written: source rows as kept, the others as derived (by the kind of their code)."""
        for table, number in frame.lazy().filter(~pl.col("derived")).group_by("table").len().collect().iter_rows():
            self.kept[table] += number
        derived = frame.lazy().filter(pl.col("derived")).group_by("table", _kind_of_code().alias("kind")).len()
        for table, name, number in derived.collect().iter_rows():
            self.derived[table, name] += number

    def update(self, other: Ledger) -> None:
        """Add what another ledger has counted."""
        for mine, theirs in ((self.read, other.read), (self.kept, other.kept)):
            mine.update(theirs)
        for counts, more in ((self.dropped, other.dropped), (self.mended, other.mended), (self.derived, other.derived)):
            counts.update(more)

    @staticmethod
    def _add(counter: Counter[tuple[str, str]], rows: pl.LazyFrame, reason: str) -> None:
        for table, number in rows.select("table").group_by("table").len().collect().iter_rows():
            counter[table, reason] += number

    def tables(self) -> dict[str, dict[str, Any]]:
        """Per source table: read, kept, dropped by reason.

        Raises:
            CehrxgptError: read is not kept + dropped somewhere.
        """
        result: dict[str, dict[str, Any]] = {}
        for table in sorted(set(self.read) | set(self.kept) | {name for name, _ in self.dropped}):
            dropped = {reason: number for (name, reason), number in sorted(self.dropped.items()) if name == table}
            result[table] = {"read": self.read[table], "kept": self.kept[table], "dropped": dropped}
            if self.read[table] != self.kept[table] + sum(dropped.values()):
                raise CehrxgptError(
                    f"ingest lost count of table {table}: read {self.read[table]}, kept {self.kept[table]}, dropped {sum(dropped.values())}; "
                    "this is a fault of the program, please report it"
                )
        return result

    @staticmethod
    def nested(counter: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
        """table -> reason -> count."""
        result: dict[str, dict[str, int]] = {}
        for (table, reason), number in sorted(counter.items()):
            result.setdefault(table, {})[reason] = number
        return result


def _met(frame: pl.DataFrame, condition: pl.Expr) -> pl.Series:
    return frame.select(condition.fill_null(False).alias("_met")).to_series()


def _kind_of_code() -> pl.Expr:
    """`MEDS_BIRTH`, `OBSERVATION`, `Visit`, `discharge`, `gender`, ...: what stands before the first slash."""
    return pl.col("code").str.split_exact("/", 1).struct.field("field_0")

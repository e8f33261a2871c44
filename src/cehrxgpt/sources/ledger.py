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
        flagged = frame.with_columns(condition.fill_null(False).alias("_drop"))
        gone = flagged.filter(pl.col("_drop") & ~pl.col("derived"))
        if gone.height:
            self._add(self.dropped, gone, reason)
        return flagged.filter(~pl.col("_drop")).drop("_drop")

    def mend(self, frame: pl.DataFrame, condition: pl.Expr, reason: str) -> None:
        """Count the rows of `frame` that meet `condition` as mended; the caller mends them."""
        self._add(self.mended, frame.filter(condition.fill_null(False)), reason)

    def keep(self, frame: pl.DataFrame) -> None:
        """Count the rows that are written: source rows as kept, the others as derived (by the kind of their code)."""
        for table, derived, name, number in (
            frame.group_by("table", "derived", pl.when("derived").then(_kind_of_code()).alias("kind")).len().sort("table", "kind").iter_rows()
        ):
            if derived:
                self.derived[table, name] += number
            else:
                self.kept[table] += number

    @staticmethod
    def _add(counter: Counter[tuple[str, str]], frame: pl.DataFrame, reason: str) -> None:
        for table, number in frame.group_by("table").len().iter_rows():
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


def _kind_of_code() -> pl.Expr:
    """`MEDS_BIRTH`, `OBSERVATION`, `Visit`, `discharge`, `gender`, ...: what stands before the first slash."""
    return pl.col("code").str.split_exact("/", 1).struct.field("field_0")

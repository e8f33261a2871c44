"""What the tables' writers share while chunks go by: running keys, counts of what was dropped or changed, concepts that were used."""

from __future__ import annotations

from collections import Counter

import polars as pl


class Account:
    """Carried from chunk to chunk.

    Attributes:
        counts: "events/...", "dropped/<reason>", "changed/<reason>", "concept_zero/<table>".
        concepts: concept id -> (code, domain), of the concepts used.
    """

    def __init__(self) -> None:
        self.next_key: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.concepts: dict[int, tuple[str, str]] = {}

    def keys(self, frame: pl.DataFrame, table: str, column: str) -> pl.DataFrame:
        """Add a primary key that goes on where the last chunk stopped."""
        first = self.next_key[table] + 1
        self.next_key[table] += frame.height
        return frame.with_columns(pl.int_range(first, first + frame.height, dtype=pl.Int64).alias(column))

    def drop(self, frame: pl.DataFrame, keep: pl.Expr, reason: str) -> pl.DataFrame:
        """Filter, counting what goes."""
        kept = frame.filter(keep)
        self.counts[f"dropped/{reason}"] += frame.height - kept.height
        return kept

    def note(self, frame: pl.DataFrame, domain: str) -> None:
        """Remember which concepts were used, for the concept table. `frame`: `_concept`, `code`."""
        for concept, code in frame.filter(pl.col("_concept") != 0).select("_concept", "code").unique().iter_rows():
            self.concepts.setdefault(concept, (code, domain))

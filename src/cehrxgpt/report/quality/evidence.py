"""What findings are drawn from, and what one finding is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cehrxgpt.report.markup import is_number
from cehrxgpt.report.quality.facts import Facts, Part

HIGH, MEDIUM, LOW = "high", "medium", "low"
SEVERITIES = (HIGH, MEDIUM, LOW)
KINDS = ("completeness", "conformance", "plausibility", "fitness")


@dataclass(frozen=True)
class Task:
    """What the findings need to know of one task.

    Attributes:
        held_out_positive: None where the data has no splits.
        absent: what the data lacks of what the task asks for.
        judged: rows with and without the outcome among those that were forecast; None where none were.
    """

    name: str
    rows: int
    positive: int
    unknown: int
    held_out_positive: int | None = None
    absent: str = ""
    judged: tuple[int, int] | None = None


@dataclass(frozen=True)
class Evidence:
    """What the findings are drawn from; every piece may be missing.

    Attributes:
        facts: counts of the events.
        ingest, tokenized: the stages' own accounts, `ingest.json` and `tokenize.json`.
        tasks: the run's tasks.
    """

    facts: Facts | None = None
    ingest: dict[str, Any] = field(default_factory=dict)
    tokenized: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()

    def ledger(self, book: str, *reasons: str) -> Part | None:
        """Rows that the ingest dropped or mended for these reasons, of all rows read; None where it left no account."""
        tables = self.ingest.get("tables")
        if not isinstance(tables, dict):
            return None
        books = {name: one.get("dropped") for name, one in tables.items()} if book == "dropped" else self.ingest.get(book) or {}
        found = {
            name: sum(n for reason, n in one.items() if reason in reasons and is_number(n)) for name, one in books.items() if isinstance(one, dict)
        }
        where = sorted(((name, n) for name, n in found.items() if n), key=lambda pair: (-pair[1], pair[0]))
        return Part(sum(found.values()), sum(one.get("read") or 0 for one in tables.values() if isinstance(one, dict)), tuple(where[:3]))


@dataclass(frozen=True)
class Finding:
    """One finding; `count` and `of` are None where nothing is counted.

    Attributes:
        where: (name, count) of the largest contributors, most first; a name alone where its count says nothing.
    """

    severity: str
    kind: str
    title: str
    why: str
    advice: str
    count: int | None = None
    of: int | None = None
    unit: str = ""
    where: tuple[tuple[str, int | None], ...] = ()

    @property
    def share(self) -> float:
        return self.count / self.of if self.count is not None and self.of else 1.0

    @property
    def of_people(self) -> bool:
        """Whether what is counted is people or their rows, and not codes."""
        return not self.unit.endswith("codes")

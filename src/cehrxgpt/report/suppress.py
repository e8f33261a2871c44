"""Small counts kept from the page, which may leave the house: one to ten is written "<11", and nothing beside it gives it away.

A hidden count could be had back by subtraction where the total and the other parts stand in plain figures. So among the parts of a
total, and the total, never exactly one figure is hidden: the next smallest is hidden with it, written as a bound that is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cehrxgpt import schema as s

SMALL_CELL = s.SMALL_CELL
"""Codes of fewer subjects are never named, and cells of fewer are not told apart."""

UNDER = f"<{SMALL_CELL}"
HIDDEN = f"≥{SMALL_CELL}"
"""What a figure hidden beside a small one is known to be."""


def is_small(value: Any) -> bool:
    """1 to 10: nobody is no secret."""
    return isinstance(value, (int, float)) and 0 < value < SMALL_CELL


def plain(value: Any) -> str:
    """12,345; "<11" for 1 to 10; an en dash for nothing. For a count that is no part of a total on the page."""
    if not isinstance(value, (int, float)):
        return "–"
    return UNDER if is_small(value) else f"{round(value):,}"


def share(part: float, whole: float, digits: int = 1) -> str:
    """Share as a percentage; empty where either count is small, or what is left of the whole, since the share would give it away."""
    if not whole or is_small(part) or is_small(whole) or is_small(whole - part):
        return ""
    least = 10.0**-digits
    percent = 100 * part / whole
    return f"<{least:g}%" if 0 < percent < least / 2 else f"{percent:.{digits}f}%"


def hidden_keys(counts: Mapping[str, int], lines: Iterable[Sequence[str]]) -> set[str]:
    """Which counts are to be hidden.

    The small ones, and then, as long as a line has exactly one figure hidden, the smallest of its others that is not zero.

    Args:
        counts: every count by a key of its own.
        lines: keys of figures that are bound by one sum: the parts and their total.
    """
    hidden = {key for key, value in counts.items() if is_small(value)}
    listed = [line for line in lines if len(line) > 1]
    changed = True
    while changed:
        changed = False
        for line in listed:
            free = [key for key in line if key not in hidden and counts[key] > 0]
            if free and len(hidden.intersection(line)) == 1:
                hidden.add(min(free, key=lambda key: (counts[key], key)))
                changed = True
    return hidden


class Counts:
    """Counts that stand on the page together, and how each is written.

    Args:
        counts: every count by a key of its own.
        lines: keys of figures that are bound by one sum: the parts and their total.
    """

    def __init__(self, counts: Mapping[str, int], lines: Iterable[Sequence[str]] = ()):
        self.counts = dict(counts)
        self.hidden = hidden_keys(self.counts, lines)

    def __getitem__(self, key: str) -> str:
        value = self.counts[key]
        return f"{value:,}" if key not in self.hidden else UNDER if is_small(value) else HIDDEN

    def share(self, key: str, whole: str) -> str:
        """Share of one count in another, empty where either is hidden."""
        return "" if {key, whole} & self.hidden else share(self.counts[key], self.counts[whole])


def parts(counts: Sequence[int]) -> list[str]:
    """Counts that add up to a total on the page, as text."""
    return [one if isinstance(one, str) else f"{one:,}" for one in figures(counts)[:-1]]


def figures(counts: Sequence[int]) -> list[int | str]:
    """Counts and behind them their total: numbers, and text for those that are hidden."""
    keyed = {str(index): n for index, n in enumerate([*counts, sum(counts)])}
    said = Counts(keyed, [list(keyed)])
    return [said[key] if key in said.hidden else n for key, n in keyed.items()]


@dataclass(frozen=True)
class Pooled:
    """Reasons whose counts are told together, and their sum."""

    names: tuple[str, ...]
    count: int


def pool(reasons: Iterable[tuple[str, int]]) -> list[Pooled]:
    """Reasons and their counts, largest first; those under eleven are told together, with the next smallest while they are still few."""
    ranked = sorted(((name, n) for name, n in reasons if n > 0), key=lambda pair: (-pair[1], pair[0]))
    kept = [Pooled((name,), n) for name, n in ranked if n >= SMALL_CELL]
    few = [(name, n) for name, n in ranked if n < SMALL_CELL]
    if not few:
        return kept
    names, total = [name for name, _ in few], sum(n for _, n in few)
    if (len(few) == 1 or total < SMALL_CELL) and kept:
        last = kept.pop()
        names, total = [*last.names, *names], total + last.count
    return [*kept, Pooled(tuple(names), total)]

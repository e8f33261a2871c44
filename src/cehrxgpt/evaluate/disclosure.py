"""Whose outcomes may be summed in what is told of a task, so that no difference of two sums is of few people.

Metrics, bins of a calibration curve and net benefits are sums of outcomes over sets of rows: everybody, a level of a subgroup, a bin, those above a
threshold. Of two sets that differ by a few people the two sums tell what became of these few. So any two sets of which something is told, those of
all methods and of all tables together, differ by `schema.SMALL_CELL` people at least, or by none; and as a sum over everybody is told too, each set
stands for the rest as well. Unions of a subgroup's levels and of neighbouring bins count as told with them. Asked first is told first: levels, then
bins, then thresholds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.evaluate import calibration
from cehrxgpt.evaluate.net_benefit import THRESHOLDS
from cehrxgpt.evaluate.rows import KEY, Judged, Mask

_Part = TypeVar("_Part")


class Told:
    """Sets of a task's n rows of which sums have been told.

    Args:
        subject_id: int[n], the patient of each row.
        least: people by which any two sets differ, if they do.
    """

    def __init__(self, subject_id: npt.ArrayLike, least: int = s.SMALL_CELL) -> None:
        self._person, self._least = np.asarray(subject_id), least
        self._rows_of_one = int(np.unique(self._person, return_counts=True)[1].max(initial=0))
        self._sets = np.zeros((64, len(np.packbits(np.zeros(self._person.size, dtype=bool)))), dtype=np.uint8)
        self._count = 1  # nobody, whose complement is everybody
        self._loose: list[list[Mask]] = []

    def may(self, rows: Mask) -> bool:
        """Whether a sum over these rows, bool[n], gives nobody away."""
        return self._apart(rows) and all(map(self._apart, itertools.chain(*self._tied([rows]))))

    def add(self, rows: Mask) -> None:
        """A sum over these rows, bool[n], is told."""
        tied = self._tied([rows])
        self._loose = [sets for sets in self._loose if not any(sets is one for one in tied)]
        for one in (rows, *itertools.chain(*tied)):
            self._add(one)

    def may_loose(self, sets: list[Mask], beside: list[Mask]) -> bool:
        """Whether sums over the differences of these sets, bool[n] each, give nobody away where those `beside` them are told."""
        every = [*sets, *itertools.chain(*self._tied(sets))]
        others = Told(self._person, self._least)
        if any(map(self._knows, every)):
            for one in beside:
                others._add(one)
            return all(self._apart(one) and others._apart(one) for one in every)
        for one in every:
            if not others._apart(one):
                return False
            others._add(one)
        return True

    def add_loose(self, sets: list[Mask]) -> None:
        """Sums over the differences of these sets are told, but of none of them: so all are as soon as one is, or the rest of one."""
        if any(map(self._knows, sets)):
            for one in sets:
                self.add(one)
        else:
            self._loose.append(sets)

    def _tied(self, rows: list[Mask]) -> list[list[Mask]]:
        """Loose sets of which one is among these rows, or the rest of them, or among such sets."""
        tied: list[list[Mask]] = []
        reached, left = list(rows), list(self._loose)
        while reached:
            one = reached.pop()
            met = [sets for sets in left if any(np.array_equal(one, other) or np.array_equal(~one, other) for other in sets)]
            left = [sets for sets in left if not any(sets is other for other in met)]
            tied += met
            reached += itertools.chain(*met)
        return tied

    def _knows(self, rows: Mask) -> bool:
        apart = np.bitwise_count(self._sets[: self._count] ^ np.packbits(rows)).sum(axis=1, dtype=np.int64)
        return bool(((apart == 0) | (apart == rows.size)).any())

    def _apart(self, rows: Mask) -> bool:
        """Whether these rows differ from all that is told by people enough, or by none."""
        differences = self._sets[: self._count] ^ np.packbits(rows)
        apart = np.bitwise_count(differences).sum(axis=1, dtype=np.int64)
        near = np.minimum(apart, rows.size - apart)
        if ((near > 0) & (near < self._least)).any():
            return False
        enough = self._least * self._rows_of_one  # rows that are of people enough, whosever they are
        for place in np.flatnonzero((near > 0) & (near < enough)):
            differing = np.unpackbits(differences[place], count=rows.size).astype(bool)
            parts = (part for part in (differing, ~differing) if np.count_nonzero(part) < enough)
            if any(np.unique(self._person[part]).size < self._least for part in parts):
                return False
        return True

    def _add(self, rows: Mask) -> None:
        if self._count == len(self._sets):
            self._sets = np.concatenate([self._sets, np.zeros_like(self._sets)])
        self._sets[self._count] = np.packbits(rows)
        self._count += 1


class Disclosure:
    """What may be told of one task.

    Args:
        methods: method -> its rows, the same ones in the same order (`rows.shared`).
        groups: see `predictions.evaluate_predictions`.
        bins: of the calibration curve.

    Attributes:
        levels: subgroup -> level -> its rows, bool[n], of those that may be shown.
        bins: method -> which bins of its calibration curve may say what was observed, bool[bins].
        thresholds: method -> at which of `net_benefit.THRESHOLDS` the net benefit may be told, bool[m]; found when first asked for.
    """

    def __init__(self, methods: Mapping[str, Judged], groups: pl.DataFrame | None = None, bins: int = 10) -> None:
        first = next(iter(methods.values()))
        self._methods, self._truth, self._person = methods, first.truth, first.subject_id
        self._told = Told(self._person)
        self.levels: dict[str, dict[str, Mask]] = {}
        if groups is not None:
            placed = first.table.select(KEY).with_row_index("_row").join(groups, on=list(KEY), maintain_order="left")
            for subgroup in groups["subgroup"].unique(maintain_order=True).to_list():
                self._add_levels(subgroup, placed.filter(pl.col("subgroup") == subgroup))
        self.bins = {method: self._add_bins(rows, bins) for method, rows in methods.items()}

    def _add_levels(self, subgroup: str, placed: pl.DataFrame) -> None:
        """The levels that are large enough; not the next smallest either, where what everybody has more than those shown would be small."""
        rows = {level: self._mask(placed.filter(pl.col("level") == level)["_row"].to_numpy()) for level in placed["level"].unique().sort().to_list()}
        fewest = {level: self._fewest(mask) for level, mask in rows.items()}
        small: list[str | None] = [level for level, mask in rows.items() if fewest[level] < s.SMALL_CELL or not self._told.may(mask)]
        rest = sorted((level for level in rows if level not in small), key=lambda level: fewest[level])
        nowhere = ~np.logical_or.reduce([*rows.values(), self._mask()])
        if nowhere.any() and (small or self._fewest(nowhere) < s.SMALL_CELL):
            small.append(None)
        of_level = {**rows, None: nowhere}
        while True:
            hidden = _hidden(small, rest, lambda levels: self._fewest(np.logical_or.reduce([of_level[level] for level in levels])))
            self.levels[subgroup] = {level: mask for level, mask in rows.items() if level not in hidden}
            unions = _unions(list(self.levels[subgroup].values()))
            if all(map(self._told.may, unions)):
                break
            shown = [level for level in rest if level not in hidden]
            small, rest = [*hidden, shown[0]], shown[1:]  # the smallest goes, until no union of the others gives anybody away
        for union in unions:
            self._told.add(union)

    def _add_bins(self, rows: Judged, bins: int) -> Mask:
        """The bins, but small ones and those of which few people part what is told already: the bin, what lies below an edge of it, neighbours."""
        number = calibration.bins_of(rows.probability, bins=bins)
        members = [number == one for one in range(int(number.max(initial=-1)) + 1)]
        below = list(np.logical_or.accumulate(np.array(members)))[:-1]  # of the last it is everybody
        inside = {(first, last): below[last] & ~below[first - 1] for last in range(1, len(below)) for first in range(1, last + 1)}
        apart = [last for last, mask in enumerate(below) if not self._told.may(mask)]
        small = {index for index, mask in enumerate(members) if self._people(mask) < s.SMALL_CELL or not self._told.may(mask)}
        small |= {*apart, *(last + 1 for last in apart)} | {last for (_, last), mask in inside.items() if not self._told.may(mask)}
        while True:
            rest = sorted((index for index in range(len(members)) if index not in small), key=lambda index: self._people(members[index]))
            hidden = set(_hidden(sorted(small), rest, lambda those: self._people(np.logical_or.reduce([members[index] for index in those]))))
            # What lies below an edge is told where all bins below it are, or all above; edges of other bins are known from one another alone.
            known, loose = [], dict[int, list[Mask]]()  # loose: by the last bin
            for last, mask in enumerate(below):
                if not hidden & {*range(last + 1)} or not hidden & {*range(last + 1, len(members))}:
                    known.append(mask)
                elif last not in hidden:
                    loose[last] = [*loose.pop(last - 1), mask]
                elif last + 1 not in hidden:
                    loose[last] = [mask]
            known += [mask for index, mask in enumerate(members) if index not in hidden]
            known += [mask for (first, last), mask in inside.items() if not hidden & {*range(first, last + 1)}]
            lost = {last for last, sets in loose.items() if not self._told.may_loose(sets, known)}
            if not lost:
                break
            small = hidden | lost
        for mask in known:
            self._told.add(mask)
        for sets in loose.values():
            self._told.add_loose(sets)
        return np.array([index not in hidden for index in range(len(members))], dtype=bool)

    @cached_property
    def thresholds(self) -> dict[str, Mask]:
        """As above; the highest of all methods come first."""
        told: dict[str, list[bool]] = {method: [] for method in self._methods}
        for threshold in reversed(THRESHOLDS):
            for method, rows in self._methods.items():
                treated = rows.probability >= threshold
                told[method].append(self._told.may(treated))
                if told[method][-1]:
                    self._told.add(treated)
        return {method: np.array(found[::-1], dtype=bool) for method, found in told.items()}

    def _mask(self, places: npt.ArrayLike = ()) -> Mask:
        found = np.zeros(self._person.size, dtype=bool)
        found[np.asarray(places, dtype=np.int64)] = True
        return found

    def _people(self, rows: Mask) -> int:
        return int(np.unique(self._person[rows]).size)

    def _fewest(self, rows: Mask) -> int:
        """People with the outcome among these rows, or without it, whichever are fewer."""
        return min(self._people(rows & self._truth), self._people(rows & ~self._truth))


def _unions(parts: list[Mask], most: int = 8) -> list[Mask]:
    """Of disjoint sets, all unions of some of them, themselves included; of more than `most` those of one and of two."""
    counts = range(1, len(parts) + 1) if len(parts) <= most else (1, 2)
    return [np.logical_or.reduce(some) for count in counts for some in itertools.combinations(parts, count)]


def _hidden(small: list[_Part], rest: list[_Part], people: Callable[[list[_Part]], float]) -> list[_Part]:
    """The small parts of what is known whole, and of the `rest`, smallest first, as many as it takes: one part alone, or parts that together have
    few `people`, would be told by subtraction."""
    hidden, rest = list(small), list(rest)
    while rest and hidden and (len(hidden) == 1 or people(hidden) < s.SMALL_CELL):
        hidden.append(rest.pop(0))
    return hidden

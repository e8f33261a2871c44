"""From entries to a population: markers, effects said at the other end, prevalences, appointments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.declare import CARE_MARKERS, Floats, Level
from cehrxgpt.simulate.populations.full.entry import Entry, Medicine

_TWICE = 0.7  # log odds


class Share:
    """Share of newcomers who bring a disease: by age, linear in the log odds; `men`: odds ratio of men to women; `only`: of one sex alone."""

    def __init__(self, by_age: Mapping[float, float], men: float, only: str = ""):
        self.ages = sorted(by_age)
        shares = np.array([by_age[age] for age in self.ages])
        self.logits = np.log(shares / (1 - shares))
        # so that the shares given are those of both sexes together: neither sex has it more than twice as often as that
        more = _TWICE if only else min(abs(float(np.log(men))) / 2, _TWICE)
        self.men: float
        self.women: float
        self.men, self.women = (more, more - float(np.log(men))) if men >= 1 else (more + float(np.log(men)), more)
        if only:
            self.men = self.women = more
        self.only = only
        self.youngest = self.ages[0]

    def __call__(self, age: Floats, male: npt.NDArray[np.bool_]) -> Floats:
        logit = np.interp(age, self.ages, self.logits) + np.where(male, self.men, self.women)
        never = (age < self.youngest - 5) | ((self.only == "women") & male) | ((self.only == "men") & ~male)
        return np.where(never, 0.0, 1 / (1 + np.exp(-logit)))


def hazards(entries: Sequence[Entry], medicines: Sequence[Medicine]) -> tuple[Entry, ...]:
    """The entries with what others do to them (`raises`, `effects`) among their own terms, and with the markers they set."""
    said: dict[str, dict[str, float]] = {entry.name: {} for entry in entries}
    for source, effects in [(one.name, one.raises) for one in entries] + [(one.name, one.effects) for one in medicines]:
        for target, value in effects.items():
            if target not in said:
                raise ValueError(f"{source} acts on '{target}', which is no entry; there are {', '.join(said)}")
            if source in next(one for one in entries if one.name == target).terms:
                raise ValueError(f"the effect of {source} on {target} is said twice, there and here")
            said[target][source] = value
    return tuple(
        replace(
            entry,
            terms={**entry.terms, **said[entry.name]},
            sets=entry.sets or (entry.name,),
            forbids=(*entry.forbids, *((entry.name,) if entry.chronic and entry.name not in entry.forbids else ())),
        )
        for entry in entries
    )


def markers(entries: Sequence[Entry], medicines: Sequence[Medicine]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """First markers (what begins once) and latest markers."""
    first = tuple(entry.name for entry in entries if entry.chronic)
    starts = tuple(dict.fromkeys(medicine.starts for medicine in medicines if medicine.starts))
    return first, (*(entry.name for entry in entries if not entry.chronic), *starts, "intensive_care", *CARE_MARKERS)


def flags(entries: Sequence[Entry], names: Sequence[str]) -> tuple[str, ...]:
    """Markers that some hazard has a term for, and every disease that begins once."""
    used = {term for entry in entries for term in entry.terms}
    return tuple(name for name in names if name in used or any(entry.name == name and entry.chronic for entry in entries))


def levels(declared: Sequence[Level], entries: Sequence[Entry], medicines: Sequence[Medicine]) -> tuple[Level, ...]:
    """The levels with all that moves them."""
    moved: dict[str, dict[str, float]] = {level.name: {} for level in declared}
    for source, shifts in [(one.name, one.shifts) for one in entries] + [(one.name, one.shifts) for one in medicines]:
        for level, value in shifts.items():
            moved[level][source] = value
    return tuple(replace(level, moved_by={**level.moved_by, **moved[level.name]}) for level in declared)


def tiers(entries: Sequence[Entry]) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """Appointments: the rarest first, so that the most frequent wins."""
    days = sorted({entry.seen_every_days for entry in entries if entry.seen_every_days is not None}, reverse=True)
    return tuple((every, tuple(entry.name for entry in entries if entry.seen_every_days == every)) for every in days)

"""One declarative entry per disease or event of the full population: its hazard, and all that the record shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cehrxgpt.simulate.declare import Hazard, Treatment


@dataclass(frozen=True, kw_only=True)
class Done:
    """Something done (a procedure, a short course of a drug, a device) where a disease begins or an event is met, by `chance`."""

    concept: int
    name: str
    chance: float = 1.0
    days: float = 7.0


@dataclass(frozen=True, kw_only=True)
class Medicine(Treatment):
    """A lasting treatment with an effect.

    Attributes:
        concept: ingredient; products: what a hospital writes that records the product.
        label: its name.
        shifts: level -> how far it moves the target.
        effects: hazard -> log rate ratio while it is taken.
        refill: chance that it is written again at a check-up.
    """

    concept: int
    label: str
    products: Mapping[int, str] = field(default_factory=dict)
    shifts: Mapping[str, float] = field(default_factory=dict)
    effects: Mapping[str, float] = field(default_factory=dict)
    refill: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Entry(Hazard):
    """A disease or an event; the hazard's fields (see `declare.Hazard`), and:

    Attributes:
        label: name of the usual concept; codes: the usual concept, then finer ones, with their names.
        chronic: it begins once; otherwise it may come again, and the latest time counts.
        noted: chance that it is coded at the visit where it begins (never above 1, whatever the hospital's habit).
        again: chance that it is coded at a later check-up, emergency visit, stay.
        fades_days: in which the habit of coding an acute event again falls to 1/e; None: it does not.
        ruled_out: event -> chance that the code is written there although the disease is not.
        brought: age -> share of newcomers who have it; men: odds ratio of men, where `by_age` does not say that only one sex can have it.
        seen_every_days: how often people with it are called.
        shifts: level -> how far it moves the target.
        raises: hazard -> log rate ratio in those who have (had) it: what it does to other entries, said here.
        workup, remedies, devices: what is done where it begins or is met.
        tests: laboratory panel -> chance that it is ordered there; follows: the same, added at every later check-up.
        medicines: treatments of its own.
        hidden: not coded at all (a state of the body nobody knows of).
    """

    label: str
    codes: Mapping[int, str] = field(default_factory=dict)
    chronic: bool = False
    noted: float = 0.9
    again: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fades_days: float | None = None
    ruled_out: Mapping[str, float] = field(default_factory=dict)
    brought: Mapping[float, float] = field(default_factory=dict)
    brought_men: float = 1.0
    seen_every_days: float | None = None
    shifts: Mapping[str, float] = field(default_factory=dict)
    raises: Mapping[str, float] = field(default_factory=dict)
    workup: tuple[Done, ...] = ()
    remedies: tuple[Done, ...] = ()
    devices: tuple[Done, ...] = ()
    tests: Mapping[str, float] = field(default_factory=dict)
    follows: Mapping[str, float] = field(default_factory=dict)
    medicines: tuple[Medicine, ...] = ()
    hidden: bool = False

    @property
    def only(self) -> str:
        """The one sex that can have it, `women` or `men`, as `by_age` says; empty: both."""
        return "".join(self.by_age) if len(self.by_age) == 1 and "all" not in self.by_age else ""


def chronic(name: str, label: str, codes: Mapping[int, str], rates: Mapping[str, Mapping[float, float]], **rest: object) -> Entry:
    """A disease that begins once: met in the clinic, coded again at later visits, unless said otherwise."""
    rest = {"again": (0.22, 0.10, 0.55), **rest}
    return Entry(name=name, label=label, codes=codes, by_age=rates, chronic=True, **rest)  # type: ignore[arg-type]


def acute(name: str, label: str, codes: Mapping[int, str], rates: Mapping[str, Mapping[float, float]], **rest: object) -> Entry:
    """An event that may come again."""
    return Entry(name=name, label=label, codes=codes, by_age=rates, **rest)  # type: ignore[arg-type]


HOSPITAL = (0.0, 0.0, 1.0)
EMERGENCY = (0.0, 1.0, 0.0)
CLINIC = (1.0, 0.0, 0.0)

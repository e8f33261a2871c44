"""What a population is made of: frozen declarations, and nothing that runs.

A **hazard** is one thing that can happen, a rate per year of the form

    rate(t) = per_year * by_age(t) * by_month(t) * by_year(t)
              * exp( sum_f terms[f] * feature_f(t)  +  sum_m a_m * exp(-(t - last m) / tau_m) )

over features of the state (age, sex, diseases, latent levels, treatments, in hospital) and the *time since* earlier events m (`since`).
All `a_m` are positive, so between events a rate can only fall but for age and calendar, whose rise is known beforehand; the sampler relies on
that (`process`). A **treatment** begins at visits by chance where there is an indication; a **level** is a latent laboratory value that is drawn
towards a target. A **population** holds all of them, who comes in (`Intake`), how people are cared for (`Care`), the writer that turns
lives into records, and the tasks with a true risk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cehrxgpt.simulate.lives import Lives
    from cehrxgpt.simulate.truth_tasks import TrueTask

Floats = npt.NDArray[np.float64]

AGE_CENTRE, AGE_SCALE = 65.0, 10.0  # the feature "age": decades above 65
PEOPLE = ("age", "male", "black", "frailty")
WHERE = ("in_hospital", "hospice")
CARE_MARKERS = ("admission", "discharge", "earlier_discharge")  # every population's last markers, set by the engine


@dataclass(frozen=True, kw_only=True)
class Next:
    """What an event leads to: `event` after about `days` (spread `sd_days`), with a chance."""

    event: str
    days: float
    sd_days: float = 1.0
    chance: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """One thing that can happen.

    Attributes:
        per_year: rate of the reference patient; 1 where `by_age` gives the rates.
        by_age: "all", or "women" and "men" -> {age: rate}, log-linear between the ages given; a sex that is not given: never.
        by_month: twelve rate ratios, January first (seasons).
        by_year: {calendar year: rate ratio}, constant until the next year given; before the first: nought.
        terms: log rate ratio per unit of each feature.
        since: marker -> (log rate ratio at the moment of the marker, days in which it falls to 1/e).
        requires, forbids: markers that must, or must not, have been set.
        sets: markers it sets (a first marker only when it is not set yet).
        visit: chance that it is met at an outpatient, emergency or inpatient visit.
        stay_days: median length of the stay, where it leads to one.
        longer_stay_days: (a, b): inside a stay it puts the discharge off to at least a to a + b days from then.
        intensive: chance of intensive care at once, where it is met in hospital.
        in_stay: it can happen inside a hospital stay too; the others wait outside.
        by_day: arranged beforehand: it happens in working hours, and nobody waits in the emergency room.
        leads_to: events that it schedules; one of them happens (or none, with what is left of the chances).
    """

    name: str
    per_year: float = 1.0
    by_age: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    by_month: tuple[float, ...] = ()
    by_year: Mapping[int, float] = field(default_factory=dict)
    terms: Mapping[str, float] = field(default_factory=dict)
    since: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    visit: tuple[float, float, float] = (1.0, 0.0, 0.0)
    stay_days: float = 4.0
    longer_stay_days: tuple[float, float] | None = None
    intensive: float = 0.0
    in_stay: bool = False
    by_day: bool = False
    leads_to: tuple[Next, ...] = ()

    def __post_init__(self) -> None:
        if self.per_year < 0 or any(a < 0 or tau <= 0 for a, tau in self.since.values()):
            raise ValueError(f"hazard {self.name}: the rate, the effects in `since` and their days must be positive")
        if abs(sum(self.visit) - 1) > 1e-9:
            raise ValueError(f"hazard {self.name}: the chances in `visit` must add up to 1")
        if self.by_age and set(self.by_age) - {"all", "women", "men"}:
            raise ValueError(f"hazard {self.name}: by_age is for 'all', or for 'women' and 'men'")
        if self.by_month and len(self.by_month) != 12:
            raise ValueError(f"hazard {self.name}: by_month needs twelve rate ratios, not {len(self.by_month)}")
        if sum(one.chance for one in self.leads_to) > 1 + 1e-9:
            raise ValueError(f"hazard {self.name}: the chances in `leads_to` add up to more than 1")

    def check(self, features: tuple[str, ...], markers: tuple[str, ...], names: tuple[str, ...]) -> None:
        """Every name it uses is there.

        Raises:
            ValueError: one is not; the message lists those that are.
        """
        for name in self.terms:
            if name not in features:
                raise ValueError(f"hazard {self.name}: no feature '{name}'; there are {', '.join(features)}")
        for name in (*self.since, *self.requires, *self.forbids, *self.sets):
            if name not in markers:
                raise ValueError(f"hazard {self.name}: no marker '{name}'; there are {', '.join(markers)}")
        for one in self.leads_to:
            if one.event not in names:
                raise ValueError(f"hazard {self.name}: leads to '{one.event}', which is no hazard; there are {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """Who may get a drug: any of `indications` (markers) that have been set, and a chance to begin at each meeting with a physician.

    Attributes:
        when_new, later: the chance at the diagnosis itself, and at any later visit.
        stop: the chance to be off it after a check-up.
        uptake: (calendar year of half the final use, years from there to 73%); a falling drug has negative years. None: always in use.
        forbids: markers that speak against it.
        starts: marker of its latest start, so that hazards may depend on the time since.
    """

    name: str
    indications: tuple[str, ...]
    when_new: float
    later: float
    stop: float = 0.02
    uptake: tuple[float, float] | None = None
    forbids: tuple[str, ...] = ()
    starts: str = ""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A latent laboratory value: Ornstein-Uhlenbeck towards rest + age + sex + own offset + what moves it.

    As a feature it is (level - centre) / scale. `offset_sd` is between people, `noise_sd` within one, stationary.
    """

    name: str
    centre: float
    scale: float
    offset_sd: float
    noise_sd: float
    rest: float
    moved_by: Mapping[str, float] = field(default_factory=dict)
    per_decade: float = 0.0
    male: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where people go after a stay: log odds = -(intercept) + terms, over "age", "frailty" and diseases."""

    concept: int
    intercept: float
    terms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Care:
    """How people are seen.

    Attributes:
        checkup_days: between appointments, of those with none of the diseases in `tiers`.
        tiers: (days, diseases), the later ones winning.
        no_follow_up: hazards after which an outpatient is not called back within weeks.
        places: after a stay: hospice, nursing home; the rest goes home.
        home: the concept of home.
        intake_minutes: from an admission in which nothing else can happen; what is written on admission is written in them.
        intensive_days: (median, log standard deviation) of a stay in intensive care; the plan of discharge counts from its end.
        intensive_terms: log ratio of the median, over "age", "frailty" and markers that were set before it.
    """

    checkup_days: float
    tiers: tuple[tuple[float, tuple[str, ...]], ...]
    no_follow_up: tuple[str, ...]
    hospice: Place
    nursing: Place
    home: int
    intake_minutes: float = 120.0
    intensive_days: tuple[float, float] = (2.0, 0.9)
    intensive_terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Intake:
    """Who enters.

    Attributes:
        ages: keys -> ages in years at the first visit.
        years: observation lasts years[0] + years[1] * uniform.
        male: share of men.
        races: cumulative shares.
        brought: disease -> (age, male) -> share of people who bring it with them.
        brought_years: it began brought_years[0] + brought_years[1] * uniform years ago.
    """

    ages: Callable[[npt.NDArray[np.uint64]], Floats]
    years: tuple[float, float]
    male: float
    races: tuple[float, ...]
    brought: Mapping[str, Callable[[Floats, npt.NDArray[np.bool_]], Floats]]
    brought_years: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Population:
    """A whole population, declared. Names are derived: `markers`, `features`, `index` of the hazards.

    Attributes:
        name: what `simulate --population` takes.
        first_markers: time of the first of something; latest_markers: of the latest. The last of these are CARE_MARKERS.
        flags: markers that are also features "has had".
        memory_days: in which a latent level forgets.
        first_day, last_day: ISO dates between which all observation lies.
        write: lives, and the hospital that keeps the records -> tables (see `cdm.Tables`).
        vocabulary: the hospital -> frames of concept and concept_ancestor.
        tasks: library tasks with a true risk.
        compact: truth/states.parquet in 32 bits, with nulls for what never was.
    """

    name: str
    hazards: tuple[Hazard, ...]
    treatments: tuple[Treatment, ...]
    levels: tuple[Level, ...]
    memory_days: float
    first_markers: tuple[str, ...]
    latest_markers: tuple[str, ...]
    flags: tuple[str, ...]
    care: Care
    intake: Mapping[str, Intake]  # by hospital
    first_day: str
    last_day: str
    tasks: Mapping[str, TrueTask]
    write: Callable[[Lives, str], Any]
    vocabulary: Callable[[str], dict[str, Any]]
    compact: bool = True

    def __post_init__(self) -> None:
        for hazard in self.hazards:
            hazard.check(self.features, self.markers, self.names)
        if self.latest_markers[-len(CARE_MARKERS) :] != CARE_MARKERS:
            raise ValueError(f"population {self.name}: the last of latest_markers must be {', '.join(CARE_MARKERS)}")
        for treatment in self.treatments:
            for name in (*treatment.indications, *treatment.forbids, *filter(None, (treatment.starts,))):
                if name not in self.markers:
                    raise ValueError(f"treatment {treatment.name}: no marker '{name}'; there are {', '.join(self.markers)}")
        for level in self.levels:
            for name in level.moved_by:
                if name not in (*self.markers, *self.treatment_names):
                    raise ValueError(f"level {level.name}: moved by '{name}', which is neither a marker nor a treatment")
        if "death" not in self.names:
            raise ValueError(f"population {self.name}: one hazard must be 'death'")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the hazards."""
        return tuple(hazard.name for hazard in self.hazards)

    @cached_property
    def index(self) -> dict[str, int]:
        """Hazard -> position."""
        return {name: position for position, name in enumerate(self.names)}

    @cached_property
    def death(self) -> int:
        """Position of death."""
        return self.index["death"]

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """All markers, the first ones first."""
        return self.first_markers + self.latest_markers

    @cached_property
    def marker(self) -> dict[str, int]:
        """Marker -> row of `State.last`."""
        return {name: position for position, name in enumerate(self.markers)}

    @cached_property
    def treatment_names(self) -> tuple[str, ...]:
        """Names of the treatments."""
        return tuple(treatment.name for treatment in self.treatments)

    @cached_property
    def level_names(self) -> tuple[str, ...]:
        """Names of the latent levels."""
        return tuple(level.name for level in self.levels)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """age: decades above 65; frailty: latent, standard normal; levels: (level - centre) / scale; the others 0 or 1."""
        return (*PEOPLE, *self.flags, *self.level_names, *self.treatment_names, *WHERE)

    @cached_property
    def schedules(self) -> bool:
        """Does any event lead to another on a day of its own?"""
        return any(hazard.leads_to for hazard in self.hazards)

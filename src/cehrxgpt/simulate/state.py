"""Everything that drives a patient's hazards, as columns: one row per patient (or per re-simulated future of one).

The process is Markov in this state: whoever knows it, and the clock, knows the distribution of the future. That is what makes a true
risk computable at any instant. Times are minutes since 1970-01-01 (float64, whole minutes at every event), NEVER where nothing happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.declare import Population
from cehrxgpt.simulate.draws import Keys

DAY = 1440.0
YEAR = 365.25 * DAY
NEVER = -1e12
OUTSIDE = np.inf  # `discharge_at` of someone who is not in hospital; `due` of someone for whom nothing is scheduled

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# `event` beyond the hazards' indices: they count from the end, as in tables that hold them behind the hazards
ENTRY, CHECKUP, DISCHARGE = -3, -2, -1
_ON_DISK = 103  # the events of `core` were numbered 100 to 102 when its tables were pinned
# `visit`: where the event was met
AT_OUTPATIENT, AT_EMERGENCY, AT_INPATIENT, IN_STAY, NOWHERE = range(5)


@dataclass
class State:
    """Columns over n rows; two-dimensional ones are [kind, n], so that each kind is contiguous."""

    population: Population
    row: npt.NDArray[np.int64]  # whose state this is
    key: Keys
    step: npt.NDArray[np.uint64]  # draws made so far
    clock: Floats  # nothing can happen before it
    birth: Floats
    male: npt.NDArray[np.bool_]
    race: npt.NDArray[np.int8]  # index into the races
    frailty: Floats  # latent, standard normal
    offset: Floats  # [levels, n] a patient's own level
    lab: Floats  # [levels, n] latent level at lab_time (creatinine: log)
    lab_time: Floats
    last: Floats  # [markers, n]
    treated: npt.NDArray[np.bool_]  # [treatments, n]
    next_visit: Floats  # the appointment
    due: Floats  # when a scheduled event comes, OUTSIDE where there is none
    due_event: npt.NDArray[np.int16]  # which hazard's event that is
    discharge_at: Floats  # planned end of the stay, OUTSIDE when there is none
    stay_days: Floats  # median of the length that the stay was planned from; 0 where the plan has been put off since
    icu_until: Floats  # planned end of the latest stay in intensive care, NEVER when there was none
    hospice: npt.NDArray[np.bool_]
    # the transition that led here
    event: npt.NDArray[np.int16]
    visit: npt.NDArray[np.int8]
    time: Floats
    visit_end: Floats
    place: npt.NDArray[np.int32]  # discharge place, 0 = none

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: Rows | npt.NDArray[np.bool_]) -> State:
        """A copy of these rows (repeats allowed)."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return State(self.population, **{name: np.take(getattr(self, name), rows, axis=-1) for name in COLUMNS})

    def put(self, rows: Rows, part: State) -> None:
        """Write `part` over these rows."""
        for name in COLUMNS:
            getattr(self, name)[..., rows] = getattr(part, name)

    @staticmethod
    def concatenate(parts: Sequence[State]) -> State:
        """Rows of all parts, one after the other."""
        return State(parts[0].population, **{name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in COLUMNS})

    def since(self, marker: str) -> Floats:
        """When the marker was set, [n]; NEVER where it was not."""
        return self.last[self.population.marker[marker]]

    def has(self, marker: str) -> npt.NDArray[np.bool_]:
        """Whether the marker has ever been set, [n]."""
        return self.since(marker) > NEVER

    def on(self, treatment: str) -> npt.NDArray[np.bool_]:
        """Whether the treatment is being taken, [n]."""
        return self.treated[self.population.treatment_names.index(treatment)]

    def level(self, name: str) -> Floats:
        """The latent level, [n]."""
        return self.lab[self.population.level_names.index(name)]

    def is_event(self, *names: str) -> npt.NDArray[np.bool_]:
        """Whether the transition that led here was one of these hazards' events, [n]."""
        return np.isin(self.event, [self.population.index[name] for name in names])

    @property
    def in_stay(self) -> npt.NDArray[np.bool_]:
        """Whether the patient lies in hospital, [n]."""
        return self.discharge_at < OUTSIDE

    @property
    def planned_from(self) -> Floats:
        """The instant that the plan of discharge counts from: the end of intensive care in this stay, else the admission, [n]."""
        return np.maximum(self.since("admission"), self.icu_until)

    @property
    def age(self) -> Floats:
        """Age at the clock, in years [n]."""
        return (self.clock - self.birth) / YEAR


COLUMNS = tuple(entry.name for entry in fields(State) if entry.name != "population")
_SCHEDULE = ("due", "due_event", "stay_days", "icu_until")  # columns that a population without scheduled events has no use for
_TIMES = ("clock", "birth", "lab_time", "next_visit", "due", "discharge_at", "icu_until", "time", "visit_end")


def _kinds(population: Population) -> dict[str, tuple[str, ...]]:
    levels = population.level_names
    return {"offset": levels, "lab": levels, "last": population.markers, "treated": population.treatment_names}


def _compact(name: str, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Times as whole minutes in 32 bits, the smallest number for NEVER and the largest for OUTSIDE; numbers in single precision."""
    if name in _TIMES or name.startswith("last_"):
        whole = np.nan_to_num(values.astype(np.float64), posinf=2.0**31 - 1)
        return np.ceil(np.clip(whole, -(2.0**31), 2.0**31 - 1)).astype(np.int32)
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _expand(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if values.dtype == np.int32:
        times = values.astype(np.float64)
        return np.where(times >= 2.0**31 - 1, OUTSIDE, np.where(times <= -(2.0**31), NEVER, times))
    return values.astype(np.float64) if values.dtype == np.float32 else values


def to_columns(state: State) -> dict[str, npt.NDArray[np.generic]]:
    """The state as flat named columns, ready for a table; `from_columns` is its inverse."""
    population = state.population
    kinds = _kinds(population)
    columns: dict[str, npt.NDArray[np.generic]] = {}
    for name in COLUMNS:
        value = getattr(state, name)
        if name in kinds:
            columns |= {f"{name}_{kind}": value[position] for position, kind in enumerate(kinds[name])}
        elif population.schedules or name not in _SCHEDULE:
            columns[name] = value
    if population.compact:
        return {name: _compact(name, value) for name, value in columns.items()}
    columns["event"] = np.where(state.event < 0, state.event + _ON_DISK, state.event).astype(np.int16)
    return columns


def from_columns(population: Population, columns: Mapping[str, npt.NDArray[np.generic]]) -> State:
    """A state from the columns that `to_columns` made."""
    kinds = _kinds(population)
    n = len(columns["event"])
    absent = {"due": np.full(n, OUTSIDE), "due_event": np.zeros(n, dtype=np.int16), "stay_days": np.zeros(n), "icu_until": np.full(n, NEVER)}
    columns = {**absent, **columns}
    if population.compact:
        columns = {name: value if name == "place" else _expand(value) for name, value in columns.items()}
    else:
        event = np.asarray(columns["event"])
        columns["event"] = np.where(event >= _ON_DISK - 3, event - _ON_DISK, event).astype(np.int16)
    values = {name: np.stack([columns[f"{name}_{kind}"] for kind in kinds[name]]) if name in kinds else columns[name] for name in COLUMNS}
    return State(population, **values)  # type: ignore[arg-type]

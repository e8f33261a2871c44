"""Everything that drives a patient's hazards, as columns: one row per patient (or per re-simulated future of one).

The process is Markov in this state: whoever knows it, and the clock, knows the distribution of the future. That is what makes a true
risk computable at any instant. Times are minutes since 1970-01-01 (float64, whole minutes at every event), NEVER where nothing happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.draws import Keys
from cehrxgpt.simulate.hazards import LABS, MARKERS, TREATMENT_NAMES

DAY = 1440.0
YEAR = 365.25 * DAY
NEVER = -1e12
OUTSIDE = np.inf  # `discharge_at` of someone who is not in hospital

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

MARKER = {name: position for position, name in enumerate(MARKERS)}

# `event` beyond the hazards' indices
ENTRY, CHECKUP, DISCHARGE = 100, 101, 102
# `visit`: where the event was met
AT_OUTPATIENT, AT_EMERGENCY, AT_INPATIENT, IN_STAY, NOWHERE = range(5)


@dataclass
class State:
    """Columns over n rows; two-dimensional ones are [kind, n], so that each kind is contiguous."""

    row: npt.NDArray[np.int64]  # whose state this is
    key: Keys
    step: npt.NDArray[np.uint64]  # draws made so far
    clock: Floats  # nothing can happen before it
    birth: Floats
    male: npt.NDArray[np.bool_]
    race: npt.NDArray[np.int8]  # index into concepts.RACES
    frailty: Floats  # latent, standard normal
    offset: Floats  # [LABS, n] a patient's own level
    lab: Floats  # [LABS, n] latent level at lab_time (creatinine: log)
    lab_time: Floats
    last: Floats  # [MARKERS, n]
    treated: npt.NDArray[np.bool_]  # [TREATMENTS, n]
    next_visit: Floats  # the appointment
    discharge_at: Floats  # planned end of the stay, OUTSIDE when there is none
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
        return State(**{field.name: np.take(getattr(self, field.name), rows, axis=-1) for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[State]) -> State:
        """Rows of all parts, one after the other."""
        return State(**{field.name: np.concatenate([getattr(part, field.name) for part in parts], axis=-1) for field in fields(State)})

    def has(self, marker: str) -> npt.NDArray[np.bool_]:
        """Whether the marker has ever been set, [n]."""
        return self.last[MARKER[marker]] > NEVER

    @property
    def in_stay(self) -> npt.NDArray[np.bool_]:
        """Whether the patient lies in hospital, [n]."""
        return self.discharge_at < OUTSIDE

    @property
    def age(self) -> Floats:
        """Age at the clock, in years [n]."""
        return (self.clock - self.birth) / YEAR


def to_columns(state: State) -> dict[str, npt.NDArray[np.generic]]:
    """The state as flat named columns, ready for a table; `from_columns` is its inverse."""
    kinds = {"offset": LABS, "lab": LABS, "last": MARKERS, "treated": TREATMENT_NAMES}
    columns: dict[str, npt.NDArray[np.generic]] = {}
    for field in fields(State):
        value = getattr(state, field.name)
        if field.name in kinds:
            columns |= {f"{field.name}_{name}": value[position] for position, name in enumerate(kinds[field.name])}
        else:
            columns[field.name] = value
    return columns


def from_columns(columns: dict[str, npt.NDArray[np.generic]]) -> State:
    """A state from the columns that `to_columns` made."""
    kinds = {"offset": LABS, "lab": LABS, "last": MARKERS, "treated": TREATMENT_NAMES}
    values = {
        field.name: np.stack([columns[f"{field.name}_{name}"] for name in kinds[field.name]]) if field.name in kinds else columns[field.name]
        for field in fields(State)
    }
    return State(**values)  # type: ignore[arg-type]

"""How a hospital books a visit: its concept, the wait before an admission, the parts of a stay. Functions of the state and the habits alone."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.concepts import EMERGENCY, INPATIENT
from cehrxgpt.simulate.draws import uniform
from cehrxgpt.simulate.populations.full.hospitals import Hospital
from cehrxgpt.simulate.state import AT_EMERGENCY, AT_INPATIENT, AT_OUTPATIENT, CHECKUP, DAY, DISCHARGE, IN_STAY, YEAR, Floats, State

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BOTH, OBSERVATION, TELEHEALTH, HOME_VISIT, DAY_SURGERY = 262, 581385, 5083, 581476, 8883
TELEHEALTH_SINCE = (2020.2 - 1970) * YEAR


def purpose(*words: str) -> int:
    """A purpose of draws of its own for these words: entries may come and go without changing each other's."""
    return (1 << 32) + crc32(" ".join(words).encode())


def draw(s: State, *words: str, rows: Ints | None = None) -> Floats:
    """A uniform draw for each state (of these rows), that belongs to these words."""
    if rows is not None:
        return uniform(s.key[rows], s.step[rows], purpose(*words))
    return uniform(s.key, s.step, purpose(*words))


def _unplanned(s: State) -> Mask:
    by_day = [position for position, hazard in enumerate(s.population.hazards) if hazard.by_day]
    return (s.visit == AT_INPATIENT) & ~np.isin(s.event, by_day)


def waits(s: State, hospital: Hospital) -> Floats:
    """Minutes in the emergency room before the admission, as a visit of their own; 0 where there is none."""
    low, high = hospital.boarding_minutes
    two = _unplanned(s) & (draw(s, "one row") >= hospital.one_row) & ~_observed(s, hospital)
    return np.where(two, np.floor(low + (high - low) * draw(s, "boarding")), 0.0)


def _observed(s: State, hospital: Hospital) -> Mask:
    short = (s.visit_end - s.time < DAY) & _unplanned(s)
    return short & (draw(s, "observation") < hospital.observation)


def concepts(s: State, hospital: Hospital) -> Ints:
    """The visit concept of each state that opens a visit."""
    outpatient = np.where(draw(s, "office") < 0.9, hospital.office, 9202)
    remote = (s.event == CHECKUP) & (s.time > TELEHEALTH_SINCE) & (draw(s, "telehealth") < hospital.telehealth)
    outpatient = np.where(remote, TELEHEALTH, outpatient)
    outpatient = np.where((s.age > 82) & (draw(s, "home visit") < 0.08), HOME_VISIT, outpatient)
    outpatient = np.where(s.is_event("day_surgery", "screening"), DAY_SURGERY, outpatient)
    inpatient = np.where(_unplanned(s) & (waits(s, hospital) == 0), BOTH, INPATIENT)
    inpatient = np.where(_observed(s, hospital), OBSERVATION, inpatient)
    return np.where(s.visit == AT_OUTPATIENT, outpatient, np.where(s.visit == AT_EMERGENCY, EMERGENCY, inpatient)).astype(np.int64)


def admitted(s: State, hospital: Hospital) -> tuple[Mask, Floats]:
    """Which states are an inpatient admission in the record, and when it says so."""
    return (s.visit == AT_INPATIENT) & (concepts(s, hospital) != OBSERVATION), s.time + waits(s, hospital)


def details(s: State, hospital: Hospital, visit_of: Ints, starts: Floats, ends: Floats) -> dict[str, npt.NDArray[np.generic]]:
    """visit_detail of the stays with intensive care: the ward before, each stay in intensive care, the ward after it.

    Args:
        s: all states, in order; visit_of, starts, ends: the visit (from 1) of each, and its start and end in the record.
    """
    inside = (s.visit == AT_INPATIENT) | ((s.visit == IN_STAY) & (s.event != DISCHARGE) & ~s.is_event("death"))
    rows = np.flatnonzero(inside & (s.since("intensive_care") == s.time))
    part, visit, opened, stop = s.take(rows), visit_of[rows], starts[rows], ends[rows]
    start = np.minimum(np.maximum(part.time, opened), stop - 1)
    finish = np.maximum(np.minimum(part.icu_until, stop), start)
    fresh = np.ones(len(rows) + 1, dtype=bool)  # the first of its visit
    fresh[1:-1] = visit[1:] != visit[:-1]
    until = np.where(fresh[1:], stop, np.append(start[1:], 0.0))
    pieces = [(hospital.ward, opened, np.where(fresh[:-1], start, opened)), (hospital.icu, start, finish), (hospital.ward, finish, until)]
    columns: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in ("subject_row", "visit_id", "concept", "start", "end")}
    for concept, begin, end in pieces:
        keep = end > begin
        values = (part.row, visit, np.full(len(rows), concept), begin, end)
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value[keep])
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    order = np.lexsort((joined["start"], joined["visit_id"]))
    return {name: values[order] for name, values in joined.items()}

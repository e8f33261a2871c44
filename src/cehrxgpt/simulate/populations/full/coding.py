"""Which diagnoses are written at which visit, and under which code: a function of the state and the hospital's habits alone.

The writer of the tables and the judge of re-simulated futures share it, so that a true risk is of what the record will show: delays, codes of
diseases only thought of, codes written again at later visits, codes without a concept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.populations.full.entry import Entry
from cehrxgpt.simulate.populations.full.hospitals import Hospital
from cehrxgpt.simulate.populations.full.visits import draw, waits
from cehrxgpt.simulate.state import AT_INPATIENT, AT_OUTPATIENT, CHECKUP, DAY, DISCHARGE, ENTRY, IN_STAY, YEAR, Floats, State

Ints = npt.NDArray[np.int64]
NONE = -1  # no code is written
AT_MINUTE = np.array([15, 45, 50, 0, 0])  # after the visit's start, by where it is met: outpatient, emergency, inpatient, in a stay
_AFTER_PLANNED_FOLLOW_UP = 0.6  # at an unplanned clinic visit known diseases are coded less often than at a check-up


def chance(s: State, entry: Entry, hospital: Hospital) -> Floats:
    """Chance that the disease is coded at each state's visit."""
    since = s.since(entry.name)
    opening = s.visit <= AT_INPATIENT
    written = opening | ((s.visit == IN_STAY) & (s.event != DISCHARGE))
    begins = written & (since == s.time)
    habit = np.where(s.visit >= AT_INPATIENT, 1.0, hospital.noted)  # what is met in hospital is coded in any hospital
    known = (since > -1e11) & ~begins & opening
    where = np.array([*entry.again, 0.0, 0.0])[s.visit] * hospital.again
    where = where * np.where((s.visit == AT_OUTPATIENT) & (s.event != CHECKUP) & (s.event != ENTRY), _AFTER_PLANNED_FOLLOW_UP, 1.0)
    if entry.fades_days is not None:
        where = where * np.exp((np.maximum(since, -1e9) - s.time) / (entry.fades_days * DAY))
    found = np.where(begins, np.minimum(entry.noted * habit, 1.0), np.where(known, where, 0.0))
    for event, share in entry.ruled_out.items():
        found = np.where(~begins & ~known & written & s.is_event(event), share * hospital.ruled_out, found)
    return np.minimum(found, 1.0)


def coded(s: State, entry: Entry, hospital: Hospital) -> Ints:
    """The concept under which the disease is coded at each state's visit: NONE where it is not, 0 where the code has no concept, [n]."""
    if entry.hidden or not entry.codes:
        return np.full(len(s), NONE, dtype=np.int64)
    found = np.full(len(s), NONE, dtype=np.int64)
    likely = chance(s, entry, hospital)
    rows = np.flatnonzero((likely > 0) & ~s.is_event("death"))
    rows = rows[draw(s, "code", entry.name, rows=rows) < likely[rows]]
    choices = np.array(list(entry.codes), dtype=np.int64)
    before, after = hospital.finer
    share = np.where(s.time[rows] / YEAR + 1970 < hospital.change, before, after)
    pick = draw(s, "finer", entry.name, rows=rows)
    finer = 1 + np.floor(pick / np.maximum(share, 1e-9) * (len(choices) - 1)).astype(np.int64)
    concept = choices[np.where((pick < share) & (len(choices) > 1), np.minimum(finer, len(choices) - 1), 0)]
    found[rows] = np.where(draw(s, "unmapped", entry.name, rows=rows) < hospital.unmapped, 0, concept)
    return found


def coded_at(s: State, hospital: Hospital) -> Floats:
    """The minute at which each state's diagnoses are written."""
    return s.time + AT_MINUTE[s.visit] + np.where(s.visit == AT_INPATIENT, waits(s, hospital), 0.0)

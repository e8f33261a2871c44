"""What an event does to the state: where it is met, what it sets, labs, treatments, the next appointment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate import concepts
from cehrxgpt.simulate import hazards as h
from cehrxgpt.simulate.draws import normal, uniform
from cehrxgpt.simulate.state import (
    AT_EMERGENCY,
    AT_INPATIENT,
    AT_OUTPATIENT,
    CHECKUP,
    DAY,
    DISCHARGE,
    ENTRY,
    IN_STAY,
    MARKER,
    NEVER,
    NOWHERE,
    OUTSIDE,
    Floats,
    State,
)

INTAKE = 120.0  # minutes from admission in which nothing else can happen; diagnoses on admission are written in them
OPEN, CLOSE = 480, 1020  # outpatient hours
# purposes of draws
KIND, HOUR, STAY, STAY2, HOURS, NEXT, PLACE, DRUG, LAB = 10, 11, 12, 13, 14, 15, 16, 20, 40


def working_hours(time: Floats, draw: Floats) -> Floats:
    """The instant itself inside outpatient hours of a weekday, else a random minute of the next such day."""
    day = np.floor(time / DAY)
    minute = time - day * DAY
    weekday = np.mod(day + 3, 7)  # 1970-01-01 was a Thursday; 0 = Monday
    inside = (minute >= OPEN) & (minute < CLOSE) & (weekday < 5)
    day = day + ((minute >= CLOSE) | (weekday >= 5))
    weekday = np.mod(day + 3, 7)
    day = day + np.where(weekday >= 5, 7 - weekday, 0)
    return np.where(inside, np.ceil(time), day * DAY + OPEN + np.floor(draw * (CLOSE - OPEN)))


def afternoon(day: Floats, draw: Floats) -> Floats:
    """A minute between 10 and 17 h of a day (counted from 1970): when people are sent home."""
    return np.floor(day) * DAY + 600 + np.floor(draw * 420)


class Transitions:
    """Applies events to rows of state, in place."""

    def __init__(self, entries: Sequence[h.Hazard]):
        special = 3  # entry, check-up, discharge stand behind the hazards in these tables
        n = len(entries)
        self.count = n
        self.visit = np.zeros((n + special, 3))
        self.visit[:, 0] = 1
        self.stay_days = np.ones(n + special)
        self.sets = np.zeros((len(h.MARKERS), n + special), dtype=bool)
        for j, entry in enumerate(entries):
            self.visit[j] = entry.visit
            self.stay_days[j] = entry.stay_days
            for marker in entry.sets:
                self.sets[MARKER[marker], j] = True

    def _index(self, event: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
        return np.where(event >= ENTRY, self.count + event - ENTRY, event).astype(np.int64)

    def place_in_time(self, part: State) -> Floats:
        """Decide where each event is met and when exactly; sets `visit` and `time`, returns `time`."""
        index = self._index(part.event)
        draw = uniform(part.key, part.step, KIND)
        chances = np.cumsum(self.visit[index], axis=1)
        part.visit = ((draw > chances[:, 0]).astype(np.int8) + (draw > chances[:, 1])).astype(np.int8)
        part.visit[part.in_stay] = IN_STAY
        part.visit[(part.event == h.DEATH) & ~part.in_stay] = NOWHERE
        part.time = np.ceil(part.clock)
        outpatient = part.visit == AT_OUTPATIENT
        part.time = np.where(outpatient, working_hours(part.clock, uniform(part.key, part.step, HOUR)), part.time)
        return part.time

    def apply(self, part: State) -> None:
        """Carry the events out; `event`, `visit` and `time` are set already."""
        index = self._index(part.event)
        part.clock = part.time.copy()
        part.visit_end = part.time.copy()
        part.place = np.zeros(len(part), dtype=np.int32)
        for m, name in enumerate(h.MARKERS):
            hit = self.sets[m, index]
            if name in h.FIRST_MARKERS:
                hit = hit & (part.last[m] <= NEVER)
            part.last[m] = np.where(hit, part.time, part.last[m])
        alive = part.event != h.DEATH
        self._move_labs(part)
        self._discharge(part)
        self._treat(part, alive)
        self._open_visit(part, index)
        self._appoint(part)
        part.discharge_at = np.where(alive, part.discharge_at, OUTSIDE)
        part.visit_end = np.where(alive, part.visit_end, part.time)

    def _move_labs(self, part: State) -> None:
        """Ornstein-Uhlenbeck step from the last update to now, towards a level that diseases and treatments set."""
        keep = np.exp(-np.maximum(part.time - part.lab_time, 0) / (h.LAB_MEMORY_DAYS * DAY))
        for position, (rest, moved_by) in enumerate(h.LAB_TARGET):
            target = rest + part.offset[position]
            for name, value in moved_by.items():
                flag = part.treated[h.TREATMENT_NAMES.index(name)] if name in h.TREATMENT_NAMES else part.has(name)
                target = target + value * flag
            spread = h.LAB_NOISE_SD[position] * np.sqrt(1 - keep**2)
            part.lab[position] = target + (part.lab[position] - target) * keep + spread * normal(part.key, part.step, LAB + 2 * position)
        part.lab_time = part.time.copy()

    def _discharge(self, part: State) -> None:
        leaves = part.event == DISCHARGE
        if not leaves.any():
            return
        marker = MARKER["discharge"]
        part.last[MARKER["earlier_discharge"]] = np.where(leaves, part.last[marker], part.last[MARKER["earlier_discharge"]])
        part.last[marker] = np.where(leaves, part.time, part.last[marker])
        part.discharge_at = np.where(leaves, OUTSIDE, part.discharge_at)
        decades = (part.age - h.AGE_CENTRE) / h.AGE_SCALE
        nursing = 1 / (1 + np.exp(2.1 - 0.6 * decades - 0.3 * part.frailty - 0.8 * part.has("stroke")))
        hospice = 1 / (1 + np.exp(5.0 - 0.6 * decades - 0.6 * part.frailty - 0.6 * part.has("heart_failure")))
        draw = uniform(part.key, part.step, PLACE)
        place = np.where(draw < hospice, concepts.HOSPICE, np.where(draw < hospice + (1 - hospice) * nursing, concepts.NURSING, concepts.HOME))
        part.place = np.where(leaves, place, 0).astype(np.int32)
        part.hospice = part.hospice | (part.place == concepts.HOSPICE)

    def _treat(self, part: State, alive: npt.NDArray[np.bool_]) -> None:
        met = alive & (part.visit != AT_EMERGENCY)
        for position, treatment in enumerate(h.TREATMENTS):
            indicated = np.zeros(len(part), dtype=bool)
            new = np.zeros(len(part), dtype=bool)
            for name in treatment.indications:
                indicated |= part.has(name)
                new |= part.last[MARKER[name]] == part.time
            new |= part.event == ENTRY
            chance = np.where(new, treatment.when_new, treatment.later)
            draw = uniform(part.key, part.step, DRUG + position)
            on = part.treated[position]
            stops = on & (part.event == CHECKUP) & (draw < treatment.stop)
            part.treated[position] = (on & ~stops) | (~on & met & indicated & (draw < chance))

    def _open_visit(self, part: State, index: npt.NDArray[np.int64]) -> None:
        hours, stay = uniform(part.key, part.step, HOURS), normal(part.key, part.step, STAY)
        outpatient, emergency, inpatient = part.visit == AT_OUTPATIENT, part.visit == AT_EMERGENCY, part.visit == AT_INPATIENT
        length = np.where(outpatient, 20 + np.floor(hours * 30), np.where(emergency, 120 + np.floor(hours * 360), 0.0))
        part.visit_end = part.time + length
        days = np.clip(np.round(self.stay_days[index] * np.exp(0.6 * stay)), 1, 40)
        planned = afternoon(np.floor(part.time / DAY) + days, hours)
        part.discharge_at = np.where(inpatient, planned, part.discharge_at)
        operated = (part.visit == IN_STAY) & (part.event == h.INDEX["bypass"])
        longer = afternoon(np.floor(part.time / DAY) + 5 + np.floor(3 * hours), hours)
        part.discharge_at = np.where(operated, np.maximum(part.discharge_at, longer), part.discharge_at)
        part.visit_end = np.where(inpatient | ((part.visit == IN_STAY) & part.in_stay), part.discharge_at, part.visit_end)
        part.clock = np.where(inpatient, part.time + INTAKE, np.where(part.visit == IN_STAY, part.time, part.visit_end))
        part.last[MARKER["admission"]] = np.where(inpatient, part.time, part.last[MARKER["admission"]])

    def _appoint(self, part: State) -> None:
        serious = part.has("diabetes") | part.has("coronary_disease") | part.has("heart_failure")
        chronic = serious | part.has("hypertension") | part.has("hyperlipidemia") | part.has("kidney_disease") | part.has("lung_disease")
        days = np.where(serious, h.CHECKUP_DAYS[2], np.where(chronic, h.CHECKUP_DAYS[1], h.CHECKUP_DAYS[0]))
        draw = uniform(part.key, part.step, NEXT)
        regular = part.time + days * DAY * (0.7 + 0.6 * draw)
        soon = part.time + (7 + 14 * draw) * DAY
        moved = np.where((part.event == CHECKUP) | (part.event == ENTRY), regular, part.next_visit)
        moved = np.where(part.event == DISCHARGE, np.minimum(np.maximum(moved, part.time + 3 * DAY), soon), moved)
        onset = (part.event < self.count) & (part.visit == AT_OUTPATIENT)
        moved = np.where(onset & (part.event != h.INDEX["clinic"]), np.minimum(np.maximum(moved, part.time + 14 * DAY), part.time + 45 * DAY), moved)
        part.next_visit = working_hours(moved, uniform(part.key, part.step, NEXT + 200))

"""What is measured, when and how: more often in those who have the disease, and where the last value was bad. Missing, and not at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.concepts import ABOVE, BELOW
from cehrxgpt.simulate.draws import normal, uniform
from cehrxgpt.simulate.populations.full.entry import Entry
from cehrxgpt.simulate.populations.full.hospitals import Hospital, Unit
from cehrxgpt.simulate.populations.full.panels import DAILY, PANELS, ROUTINE, TESTS, VITALS, Test
from cehrxgpt.simulate.populations.full.visits import draw, purpose
from cehrxgpt.simulate.state import AT_EMERGENCY, AT_INPATIENT, AT_OUTPATIENT, CHECKUP, DAY, DISCHARGE, ENTRY, NOWHERE, Floats, State

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of one test at states' visits: `value` [n] (NaN: none), `operator`, `answer` and `unit` [n] (concepts; 0: none)."""

    rows: Ints
    time: Floats
    concept: int
    source: str
    unit_text: str
    value: Floats
    operator: Ints
    answer: Ints
    unit: Ints


Put = Callable[[Results], None]

BY_NAME = {test.name: test for test in TESTS}
LAB_AT, VITALS_AT = np.array([17, 75, 60, 25, 0]), np.array([4, 9, 20, 10, 0])
_WORRYING = {"sugar": ("hba1c", 6.3, 0.2), "metabolic": ("creatinine", 0.3, 0.12), "blood": ("haemoglobin", -11.5, 0.15)}  # above (negative: below)


class Laboratory:
    """All measurements of one lot of lives."""

    def __init__(self, s: State, hospital: Hospital, entries: Sequence[Entry], visit_of: Ints, ends: Floats, wait: Floats):
        self.s, self.hospital, self.entries = s, hospital, entries
        self.visit_of, self.ends, self.wait = visit_of, ends, wait

    def write(self, put: Put) -> None:
        """Hand every measurement to `put`."""
        for panel, chance in self._orders().items():
            rows = np.flatnonzero(chance > 0)
            rows = rows[draw(self.s, "order", panel, rows=rows) < chance[rows]]
            minutes = VITALS_AT if panel in VITALS else LAB_AT
            time = self.s.time[rows] + minutes[self.s.visit[rows]] + self.wait[rows]
            self._measure(panel, rows, time, np.zeros(len(rows), dtype=np.uint64), put)
        for panel, share in DAILY.items():
            self._rounds(panel, share, put)

    def _orders(self) -> dict[str, Floats]:
        """Chance that each panel is ordered at each state's visit."""
        s = self.s
        opening = s.visit <= AT_INPATIENT
        planned = (s.visit == AT_OUTPATIENT) & ((s.event == CHECKUP) | (s.event == ENTRY))
        where = np.select([planned, s.visit == AT_OUTPATIENT, s.visit == AT_EMERGENCY, s.visit == AT_INPATIENT], [0, 1, 2, 3], 4)
        chances = {panel: np.array([*ROUTINE.get(panel, (0.0,) * 4), 0.0])[where] for panel, tests in PANELS.items() if tests}
        for entry in self.entries:
            if entry.tests:
                fresh = (s.since(entry.name) == s.time) & (s.event != DISCHARGE) & (s.visit != NOWHERE) & ~s.is_event("death")
                for panel, chance in entry.tests.items():
                    if panel in chances:
                        chances[panel] = np.where(fresh, np.maximum(chances[panel], chance), chances[panel])
            if entry.follows:
                known = planned & s.has(entry.name)
                for panel, chance in entry.follows.items():
                    chances[panel] = chances[panel] + chance * known
        for panel, (level, limit, more) in _WORRYING.items():
            bad = s.level(level) > limit if limit > 0 else s.level(level) < -limit
            chances[panel] = chances[panel] + more * (bad & planned)
        habits = {panel: self.hospital.vitals if panel in VITALS else self.hospital.tests for panel in chances}
        return {panel: np.where(opening | (chance > 0), np.minimum(chance * habits[panel], 0.98), 0.0) for panel, chance in chances.items()}

    def _rounds(self, panel: str, share: float, put: Put) -> None:
        """The morning round of every day of a stay."""
        s = self.s
        stays = np.flatnonzero(s.visit == AT_INPATIENT)
        end = self.ends[self.visit_of[stays] - 1]
        first = np.floor(s.time[stays] / DAY) + 1
        days = np.maximum(np.floor(end / DAY) - first + 1, 0).astype(np.int64)
        rows = np.repeat(stays, days)
        day = np.arange(len(rows)) - np.repeat(np.cumsum(days) - days, days)
        pick = uniform(s.key[rows], s.step[rows] * np.uint64(64) + day.astype(np.uint64), purpose("round", panel))
        share *= self.hospital.vitals if panel in VITALS else self.hospital.tests
        time = (np.repeat(first, days) + day) * DAY + 330 + np.floor(pick / share * 90)
        keep = (pick < share) & (time < np.repeat(end, days)) & (time > s.time[rows] + self.wait[rows])
        self._measure(panel, rows[keep], time[keep], (day[keep] + 1).astype(np.uint64), put)

    def _measure(self, panel: str, rows: Ints, time: Floats, day: npt.NDArray[np.uint64], put: Put) -> None:
        if not len(rows):
            return
        for name in PANELS[panel]:
            lost = np.zeros(len(rows), dtype=bool)
            if panel not in VITALS:
                lost = uniform(self.s.key[rows], self.s.step[rows] * np.uint64(64) + day, purpose("lost", name)) < self.hospital.lost
            put(self._results(BY_NAME[name], rows, time, self.value(BY_NAME[name], rows, time, day), lost))

    def _results(self, test: Test, rows: Ints, time: Floats, value: Floats, lost: npt.NDArray[np.bool_]) -> Results:
        """As the hospital writes them: its unit and digits, signs beyond what its device can tell, answers of test strips."""
        habits = self.hospital
        unit = habits.units.get(test.name, Unit(concept=test.unit, text=test.text, digits=test.digits))
        least, most = habits.limits.get(test.name, (-np.inf, np.inf))
        sign = np.where(lost, 0, np.where(value < least, BELOW, np.where(value > most, ABOVE, 0)))
        number = np.round(np.clip(value, least, most) * unit.factor + unit.offset, unit.digits)
        answer = np.zeros(len(rows), dtype=np.int64)
        if test.positive_above is not None:
            answer = np.where(lost, 0, np.where(value > test.positive_above, habits.positive, habits.negative))
            number = np.full(len(rows), np.nan)
        return Results(
            rows=rows, time=time, concept=test.concept, source=f"{habits.test_prefix}-{test.name}", unit_text=unit.text,
            value=np.where(lost, np.nan, number), operator=sign, answer=answer, unit=np.where(lost, 0, unit.concept),
        )  # fmt: skip

    def value(self, test: Test, rows: Ints, time: Floats, day: npt.NDArray[np.uint64]) -> Floats:
        """What is measured, in the usual unit."""
        s = self.s
        error = test.error_sd * normal(s.key[rows], s.step[rows] * np.uint64(64) + day, purpose("error", test.name))
        if test.made is not None:
            level = test.made(*(self.value(BY_NAME[name], rows, time, day) for name in test.of))
        elif test.latent:
            level = s.level(test.name)[rows]
        else:
            level = np.full(len(rows), test.mean) + test.male * s.male[rows]
            if test.own_sd:
                level = level + test.own_sd * normal(s.key[rows] ^ np.uint64(purpose("own", test.name)), 0, 7)
            for name, slope in test.by.items():
                level = level + slope * s.level(name)[rows]
        for name, shift in test.by_disease.items():
            level = level + shift * s.has(name)[rows]
        for name, (shift, decay_days) in test.acute.items():
            level = level + shift * np.exp((np.maximum(s.since(name)[rows], -1e9) - time) / (decay_days * DAY))
        found: Floats = np.exp(level + error) if test.logarithmic else level + error
        return np.maximum(found, test.low)

"""From lives to records: what a hospital would have written down. One pass per kind of entry, vectorised over all visits.

Nothing here changes a hazard. Every first diagnosis is written at its visit (the record knows what the state knows); everything else is written
down only sometimes, and more often for the sick: the record is missing, and not at random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.declare import AGE_CENTRE, AGE_SCALE
from cehrxgpt.simulate.draws import normal, uniform
from cehrxgpt.simulate.lives import Lives
from cehrxgpt.simulate.populations.core import background, concepts
from cehrxgpt.simulate.state import (
    AT_EMERGENCY,
    AT_INPATIENT,
    AT_OUTPATIENT,
    CHECKUP,
    DAY,
    DISCHARGE,
    ENTRY,
    IN_STAY,
    NOWHERE,
    YEAR,
    Floats,
    State,
)
from cehrxgpt.simulate.tables import Table, Tables

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# minutes after the visit's start at which things are written: outpatient, emergency, inpatient, in a stay
DIAGNOSIS_AT, DRUG_AT, LAB_AT, PROCEDURE_AT, VITALS_AT = (
    (8, 90, 75, 0, 0),
    (18, 110, 100, 0, 0),
    (15, 45, 40, 0, 0),
    (12, 60, 90, 0, 0),
    (3, 8, 15, 0, 0),
)
REPEAT = (0.13, 0.10, 0.5)  # chance that a known chronic disease is written again at a visit
MORNING_ROUND = (("creatinine", 0.2), ("potassium", 0.15), ("hemoglobin", 0.15), ("leukocytes", 0.1), ("sodium", 0.05), ("glucose", 0.1))
CHRONIC = tuple(name for name in concepts.CONDITIONS if name not in ("infarction", "stroke"))


def write(lives: Lives, hospital: str) -> Tables:
    """What the one hospital wrote down of these lives."""
    records = Records(lives)
    records.write()
    return Tables(visits=records.visits, tables=records.tables, deaths=records.deaths)


class Records:
    """Visits and everything written at them; `tables` after `write()`.

    Attributes:
        visits: columns subject_id, visit_id, concept, start, end, place (minutes; place 0 = none).
        tables: condition, drug, procedure, measurement: subject_id, visit_id, concept, time, and `end` (drug) or `value`, `unit`.
        deaths: subject_id, time, in_stay.
    """

    def __init__(self, lives: Lives):
        self.s: State = lives.states
        s = self.s
        population = s.population
        self.death = population.death
        opens = s.visit <= AT_INPATIENT
        self.visit_of = np.cumsum(opens) - 1  # of each state; meaningless for NOWHERE
        self.at = np.flatnonzero(opens)
        self.kind = s.visit[self.at].astype(np.int64)
        self.subject = lives.subject_id[s.row]
        end = s.visit_end[self.at].copy()
        place = np.zeros(len(self.at), dtype=np.int64)
        closes = np.flatnonzero((s.visit == IN_STAY) & ((s.event == DISCHARGE) | (s.event == self.death)))
        end[self.visit_of[closes]] = s.time[closes]
        place[self.visit_of[closes]] = np.where(s.event[closes] == self.death, concepts.EXPIRED, s.place[closes])
        self.visits = {
            "subject_id": self.subject[self.at], "visit_id": np.arange(1, len(self.at) + 1, dtype=np.int64), "start": s.time[self.at], "end": end,
            "concept": np.array([concepts.OUTPATIENT, concepts.EMERGENCY, concepts.INPATIENT])[self.kind], "place": place,
        }  # fmt: skip
        base = ("subject_id", "visit_id", "concept", "time")
        self.tables = {
            "condition": Table(base), "procedure": Table(base), "drug": Table((*base, "end")), "measurement": Table((*base, "value", "unit")),
        }  # fmt: skip
        died = np.flatnonzero(s.event == self.death)
        self.deaths = {"subject_id": self.subject[died], "time": s.time[died], "in_stay": s.visit[died] == IN_STAY}

    def write(self) -> None:
        """Fill the tables."""
        self._diagnoses()
        self._treatments()
        self._operations()
        self._complaints()
        self._longstanding()
        self._checkups()
        self._clinic_labs()
        self._hospital_labs()

    # -- helpers -------------------------------------------------------------------------------------------------------------------
    def _draw(self, states: Ints, purpose: int) -> Floats:
        return uniform(self.s.key[states], self.s.step[states], 3000 + purpose)

    def _put(self, table: str, states: Ints, concept: Ints | int, minutes: tuple[int, ...], **more: npt.NDArray[Any] | float) -> None:
        """Rows written at the visits of these states, `minutes` (by where the visit is) after the state's own time."""
        if not len(states):
            return
        time = self.s.time[states] + np.array(minutes)[self.s.visit[states]]
        if table == "drug":
            more = {"end": time + (np.asarray(more.pop("days")) - 1) * DAY, **more}
        ids = self.visit_of[states] + 1
        concept = np.broadcast_to(np.asarray(concept, dtype=np.int64), states.shape).copy()
        self.tables[table].add(subject_id=self.subject[states], visit_id=ids, concept=concept, time=time, **more)

    # -- what drives the hazards ---------------------------------------------------------------------------------------------------
    def _diagnoses(self) -> None:
        s, meeting = self.s, self.s.visit != NOWHERE
        opening = np.zeros(len(s), dtype=bool)
        opening[self.at] = True
        repeat = np.array([*REPEAT, 0.0, 0.0])[s.visit]
        for number, (name, concept) in enumerate(concepts.CONDITIONS.items()):
            has = s.has(name)
            new = meeting & ((s.since(name) == s.time) | ((s.event == ENTRY) & has))
            if name == "heart_failure":
                new |= s.is_event("decompensation")
            self._put("condition", np.flatnonzero(new), concept, DIAGNOSIS_AT)
            for code, _, chance in background.DIAGNOSIS_PROCEDURES.get(name, ()):
                rows = np.flatnonzero(new & (s.event != ENTRY))
                self._put("procedure", rows[self._draw(rows, 900 + number) < chance], code, PROCEDURE_AT)
            if name in CHRONIC:
                again = np.flatnonzero(has & ~new & opening)
                self._put("condition", again[self._draw(again, number) < repeat[again]], concept, DIAGNOSIS_AT)
        pain = np.flatnonzero(s.is_event("chest_pain"))
        self._put("condition", pain, concepts.CHEST_PAIN, DIAGNOSIS_AT)
        for code, _, chance in background.DIAGNOSIS_PROCEDURES["chest_pain"]:
            self._put("procedure", pain[self._draw(pain, 890) < chance], code, PROCEDURE_AT)

    def _treatments(self) -> None:
        s = self.s
        first = np.r_[True, s.row[1:] != s.row[:-1]]
        for number, name in enumerate(s.population.treatment_names):
            on = s.treated[number]
            before = np.r_[False, on[:-1]] & ~first
            concept = concepts.TREATMENTS[name]
            new = np.flatnonzero(on & ~before & (s.visit != NOWHERE))
            self._put("drug", new, concept, DRUG_AT, days=90.0)
            refill = np.flatnonzero(on & before & (s.event == CHECKUP))
            self._put("drug", refill[self._draw(refill, 100 + number) < 0.25], concept, DRUG_AT, days=90.0)
            stay = np.flatnonzero(on & before & (s.visit == AT_INPATIENT))
            stay = stay[self._draw(stay, 120 + number) < 0.5]
            days = np.ceil((self.visits["end"][self.visit_of[stay]] - s.time[stay]) / DAY)
            self._put("drug", stay, concept, DRUG_AT, days=np.maximum(days, 1.0))

    def _operations(self) -> None:
        s = self.s
        for name, concept in concepts.PROCEDURES.items():
            rows = np.flatnonzero(s.is_event(name))
            self._put("procedure", rows, concept, (0, 0, 110, 0, 0))
            elective = rows[s.visit[rows] == AT_INPATIENT]
            self._put("condition", elective, concepts.CONDITIONS["coronary_disease"], (0, 0, 100, 0, 0))
            self._put("drug", rows, 1112807, (0, 0, 115, 0, 0), days=30.0)
        stented = np.flatnonzero(s.is_event("coronary_intervention"))
        self._put("drug", stented, 1322184, (0, 0, 118, 0, 0), days=90.0)
        pain = np.flatnonzero((s.is_event("chest_pain")) | (s.is_event("infarction")))
        self._put("drug", pain[self._draw(pain, 140) < 0.5], 1361711, DRUG_AT, days=1.0)

    # -- the rest of life ----------------------------------------------------------------------------------------------------------
    def _complaints(self) -> None:
        s = self.s
        for offset, (name, entries) in enumerate(
            (("clinic", background.CLINIC), ("emergency", background.EMERGENCY), ("illness", background.ILLNESS))
        ):
            rows = np.flatnonzero(s.is_event(name))
            decades, male = (s.age[rows] - AGE_CENTRE) / AGE_SCALE, s.male[rows]
            weight = np.stack([entry.weight * np.exp(entry.age * decades + entry.male * male) for entry in entries])
            share = np.cumsum(weight, axis=0)
            chosen = (share < self._draw(rows, 200 + offset) * share[-1]).sum(axis=0)
            concept = np.array([entry.concept for entry in entries])[chosen]
            drug, procedure = (np.array([getattr(entry, part) for entry in entries])[chosen] for part in ("drug", "procedure"))
            self._put("condition", rows, concept, DIAGNOSIS_AT)
            gets = (drug > 0) & (self._draw(rows, 210 + offset) < 0.6)
            self._put("drug", rows[gets], drug[gets], DRUG_AT, days=7.0)
            done = (procedure > 0) & (self._draw(rows, 220 + offset) < 0.7)
            self._put("procedure", rows[done], procedure[done], PROCEDURE_AT)

    def _longstanding(self) -> None:
        s = self.s
        first = np.flatnonzero(np.r_[True, s.row[1:] != s.row[:-1]])
        person = np.cumsum(np.r_[True, s.row[1:] != s.row[:-1]]) - 1
        decades = (s.age[first] - AGE_CENTRE) / AGE_SCALE
        planned = np.flatnonzero((s.visit == AT_OUTPATIENT) & ((s.event == CHECKUP) | (s.event == ENTRY)))
        for number, entry in enumerate(background.LONGSTANDING):
            rate = entry.per_year * np.exp(entry.age * decades + entry.male * s.male[first])
            onset = s.time[first] - 8 * YEAR - np.log(uniform(s.key[first], 0, 2000 + number)) / rate * YEAR
            rows = planned[s.time[planned] >= onset[person[planned]]]
            rows = rows[self._draw(rows, 300 + number) < 0.07]
            self._put("condition", rows, entry.concept, DIAGNOSIS_AT)
            if entry.drug:
                gets = rows[self._draw(rows, 340 + number) < 0.6]
                self._put("drug", gets, entry.drug, DRUG_AT, days=60.0)

    def _checkups(self) -> None:
        s = self.s
        rows = np.flatnonzero((s.event == CHECKUP) | (s.event == ENTRY))
        for number, (concept, _, woman, man) in enumerate(background.CHECKUP_PROCEDURES):
            chance = np.where(s.male[rows], man, woman)
            self._put("procedure", rows[self._draw(rows, 400 + number) < chance], concept, PROCEDURE_AT)

    # -- measurements --------------------------------------------------------------------------------------------------------------
    def _level(self, name: str, states: Ints, purpose: int) -> Floats:
        """A measured value: the latent level, or one that follows from the diseases, with its own error."""
        s = self.s
        noise = normal(s.key[states], s.step[states], 3000 + purpose)
        if name in s.population.level_names:
            level = s.lab[s.population.level_names.index(name), states]
            if name == "creatinine":
                return np.round(np.exp(np.clip(level + 0.04 * noise, -1.2, 2.6)), 2)
            error, digits, low = {"hba1c": (0.12, 1, 4.0), "systolic": (4.0, 0, 75.0), "ldl": (5.0, 0, 20.0)}[name]
            return np.round(np.maximum(level + error * noise, low), digits)
        failing = s.has("heart_failure")[states]
        sugar, salt = s.lab[0, states], s.lab[1, states]
        mean, sd, digits, low = {
            "diastolic": (40 + 0.29 * s.lab[2, states], 6.0, 0, 35.0),
            "heart_rate": (74 + 6 * failing - 7 * s.treated[4, states], 9.0, 0, 38.0),
            "bmi": (27.5 + 1.5 * s.has("diabetes")[states] + 4.5 * uniform(s.key[states], 0, 2500), 0.4, 1, 15.0),
            "potassium": (4.1 + 0.3 * salt, 0.35, 1, 2.5),
            "sodium": (139.5 - 1.5 * failing, 2.6, 0, 118.0),
            "glucose": (28.7 * sugar - 62, 18.0, 0, 45.0),
            "hemoglobin": (13.2 + 1.2 * s.male[states] - 1.2 * salt, 1.1, 1, 5.5),
            "leukocytes": (7.2 + 2.5 * (s.visit[states] == AT_INPATIENT), 2.0, 1, 1.5),
            "ntprobnp": (np.exp(4.8 + 2.2 * failing + 0.8 * salt + 0.6 * noise), 0.0, 0, 5.0),
        }[name]
        return np.round(np.maximum(mean + sd * noise, low), digits)

    def _measure(self, name: str, states: Ints, purpose: int, minutes: tuple[int, ...]) -> None:
        concept, unit = concepts.MEASUREMENTS[name]
        self._put("measurement", states, concept, minutes, value=self._level(name, states, purpose), unit=float(unit))

    def _clinic_labs(self) -> None:
        """More often for those with the disease the test is about, and when the last level was bad: missing, not at random."""
        s = self.s
        opening = s.visit <= AT_INPATIENT
        clinic, emergency = s.visit == AT_OUTPATIENT, s.visit == AT_EMERGENCY
        heart = s.has("heart_failure") | s.has("coronary_disease")
        planned = clinic & ((s.event == CHECKUP) | (s.event == ENTRY))
        chances: dict[str, Floats] = {
            "systolic": np.where(planned, 0.25, 0.08) + 0.15 * s.has("hypertension") * planned,
            "diastolic": np.where(planned, 0.08, 0.02),
            "heart_rate": 0.03 + 0.07 * heart + 0.3 * emergency,
            "bmi": np.where(planned, 0.1, 0.0) + 0.05 * s.has("diabetes") * planned,
            "hba1c": planned * (0.06 + 0.35 * s.has("diabetes") + 0.15 * (s.lab[0] > 6.3)),
            "creatinine": planned * (0.06 + 0.1 * s.has("diabetes") + 0.25 * s.has("kidney_disease") + 0.08 * s.has("hypertension"))
            + 0.3 * emergency,
            "ldl": planned * (0.08 + 0.14 * s.has("hyperlipidemia") + 0.1 * s.has("coronary_disease")),
            "ntprobnp": (s.has("heart_failure") * 0.12) * clinic + 0.5 * (s.since("heart_failure") == s.time),
            "hemoglobin": planned * 0.06 + 0.25 * emergency,
            "potassium": planned * (0.04 + 0.1 * s.treated[6]),
        }
        for number, (name, chance) in enumerate(chances.items()):
            rows = np.flatnonzero(opening & (s.visit != NOWHERE))
            rows = rows[self._draw(rows, 500 + number) < chance[rows]]
            self._measure(name, rows, 520 + 2 * number, VITALS_AT if name in ("systolic", "diastolic", "heart_rate", "bmi") else LAB_AT)
        new = np.flatnonzero((s.since("diabetes") == s.time) & clinic)
        self._measure("hba1c", new, 560, VITALS_AT)

    def _hospital_labs(self) -> None:
        """The morning round: some tests, every day of a stay."""
        s = self.s
        stays = self.at[self.kind == AT_INPATIENT]
        start, end = s.time[stays], self.visits["end"][self.visit_of[stays]]
        first = np.floor(start / DAY) + 1
        days = np.maximum(np.floor(end / DAY) - first + 1, 0).astype(np.int64)
        rows = np.repeat(stays, days)
        day = np.arange(len(rows)) - np.repeat(np.cumsum(days) - days, days)
        time = (np.repeat(first, days) + day) * DAY + 360
        end = np.repeat(end, days)
        for number, (name, chance) in enumerate(MORNING_ROUND):
            draw = uniform(s.key[rows], s.step[rows] * np.uint64(64) + day.astype(np.uint64), 3700 + number)
            at = time + np.floor(draw / chance * 60)
            keep = (draw < chance) & (at < end)
            self._daily(name, rows[keep], day[keep], number, at[keep])

    def _daily(self, name: str, states: Ints, day: Ints, number: int, time: Floats) -> None:
        """As `_measure`, with a draw of its own for each day."""
        if not len(states):
            return
        concept, unit = concepts.MEASUREMENTS[name]
        value = self._level(name, states, 720 + 2 * number)
        wobble = 1 + 0.04 * normal(self.s.key[states], self.s.step[states] * np.uint64(64) + day.astype(np.uint64), 3800 + 2 * number)
        digits = {"creatinine": 2, "sodium": 0, "glucose": 0}.get(name, 1)
        values = np.round(value * (1 + (wobble - 1) * (0.2 if name == "sodium" else 1.0)), digits)
        self.tables["measurement"].add(
            subject_id=self.subject[states], visit_id=self.visit_of[states] + 1, concept=np.full(len(states), concept), time=time, value=values,
            unit=float(unit),
        )  # fmt: skip

"""From lives to records: what hospital `a` or `b` would have written down. One pass per kind of entry, vectorised over all visits.

Nothing here changes a hazard. Draws belong to (person, step, what they are for), so that the two hospitals, given the same lives, differ in their
habits and in nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.concepts import EXPIRED
from cehrxgpt.simulate.declare import AGE_CENTRE, AGE_SCALE
from cehrxgpt.simulate.lives import Lives
from cehrxgpt.simulate.populations.full.coding import NONE, coded, coded_at
from cehrxgpt.simulate.populations.full.entry import Done, Entry, Medicine
from cehrxgpt.simulate.populations.full.hospitals import HOSPITALS, Hospital
from cehrxgpt.simulate.populations.full.laboratory import VITALS_AT, Laboratory, Results
from cehrxgpt.simulate.populations.full.questions import QUESTIONS
from cehrxgpt.simulate.populations.full.reasons import CHECKUP as CHECKUP_PROCEDURES
from cehrxgpt.simulate.populations.full.reasons import REASONS
from cehrxgpt.simulate.populations.full.visits import concepts, details, draw, waits
from cehrxgpt.simulate.state import AT_INPATIENT, AT_OUTPATIENT, CHECKUP, DAY, DISCHARGE, ENTRY, IN_STAY, NOWHERE, YEAR, Floats, State
from cehrxgpt.simulate.tables import Table, Tables

Ints = npt.NDArray[np.int64]

DRUG_AT = np.array([18, 110, 75, 0, 0])
DONE_AT = np.array([10, 60, 110, 0, 0])  # what is done takes place in the visit, after the diagnosis
_BASE = ("subject_id", "visit_id", "concept", "time", "source")


class Records:
    """The tables of one lot of lives; `tables` after `write()`."""

    def __init__(self, lives: Lives, hospital: Hospital):
        self.s: State = lives.states
        self.hospital = hospital
        s = self.s
        self.entries = [hazard for hazard in s.population.hazards if isinstance(hazard, Entry)]
        self.subject = lives.subject_id[s.row]
        self.wait = np.where(s.visit == AT_INPATIENT, waits(s, hospital), 0.0)
        opens = s.visit <= AT_INPATIENT
        rows_before = opens.astype(np.int64) + (self.wait > 0)
        self.visit_of = np.cumsum(rows_before)  # of each state, from 1; an admission by way of the emergency room has two
        self._visits(np.flatnonzero(opens))
        self.tables = {
            "condition": Table(_BASE), "procedure": Table(_BASE), "drug": Table((*_BASE, "end")),
            "measurement": Table((*_BASE, "value", "operator", "answer", "unit", "unit_source")), "device": Table((*_BASE, "end")),
            "observation": Table((*_BASE, "value", "answer")),
        }  # fmt: skip
        died = np.flatnonzero(s.is_event("death"))
        self.deaths = {"subject_id": self.subject[died], "time": s.time[died], "in_stay": s.visit[died] == IN_STAY}

    def _visits(self, at: Ints) -> None:
        s = self.s
        last = self.visit_of[at] - 1
        n = int(self.visit_of[-1])
        start, end, place = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
        concept, subject = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        start[last], end[last] = s.time[at] + self.wait[at], s.visit_end[at]
        concept[last], subject[last] = concepts(s, self.hospital)[at], self.subject[at]
        waited = at[self.wait[at] > 0]
        before = self.visit_of[waited] - 2
        start[before], end[before], concept[before], subject[before] = s.time[waited], s.time[waited] + self.wait[waited], 9203, self.subject[waited]
        closes = np.flatnonzero((s.visit == IN_STAY) & ((s.event == DISCHARGE) | s.is_event("death")))
        closed = self.visit_of[closes] - 1
        end[closed] = s.time[closes]
        place[closed] = np.where(s.is_event("death")[closes], EXPIRED, s.place[closes])
        self.visits = {
            "subject_id": subject, "visit_id": np.arange(1, n + 1), "concept": concept, "start": start, "end": end, "place": place,
            "source": np.array([f"{self.hospital.name}-{code}" for code in concept], dtype=object),
        }  # fmt: skip
        self.end = end

    def write(self) -> Tables:
        """Fill the tables."""
        self._diagnoses()
        self._done()
        self._medicines()
        self._reasons()
        self._checkups()
        self._questions()
        for kind in ("condition", "procedure"):  # two entries may code, or do, the same at once; a hospital writes it down once
            self.tables[kind].drop_duplicates()
        Laboratory(self.s, self.hospital, self.entries, self.visit_of, self.end, self.wait).write(self._put_test)
        visit = np.maximum(self.visit_of - 1, 0)
        parts = details(self.s, self.hospital, self.visit_of, self.visits["start"][visit], self.end[visit])
        first = self.subject[0] - self.s.row[0]
        parts["subject_id"] = parts.pop("subject_row") + first
        return Tables(self.visits, self.tables, self.deaths, parts)

    # -- helpers -------------------------------------------------------------------------------------------------------------------
    def _put(self, table: str, rows: Ints, concept: Ints | int, time: Floats, source: npt.NDArray[Any], **more: npt.NDArray[Any]) -> None:
        if len(rows):
            concept = np.broadcast_to(np.asarray(concept, dtype=np.int64), rows.shape).copy()
            self.tables[table].add(
                subject_id=self.subject[rows], visit_id=self.visit_of[rows], concept=concept, time=time, source=source, **more
            )  # fmt: skip

    def _put_test(self, found: Results) -> None:
        n = len(found.rows)
        text = np.full(n, None, dtype=object)
        text[found.unit > 0] = found.unit_text
        self._put(
            "measurement", found.rows, found.concept, found.time, np.full(n, found.source, dtype=object), value=found.value,
            operator=found.operator, answer=found.answer, unit=found.unit, unit_source=text,
        )  # fmt: skip

    def _at(self, rows: Ints, minutes: npt.NDArray[np.int64]) -> Floats:
        s = self.s
        found: Floats = s.time[rows] + minutes[s.visit[rows]] + self.wait[rows]
        return found

    def _source(self, rows: Ints, concept: Ints, kind: str) -> npt.NDArray[Any]:
        """Source codes: the hospital's prefix, and the usual concept's number (also where it has none here)."""
        before, after = self.hospital.code_prefix
        late = self.s.time[rows] / YEAR + 1970 >= self.hospital.change
        texts = {(code, new): f"{after if new else before}:{kind}{code}" for code in np.unique(concept).tolist() for new in (False, True)}
        return np.array([texts[pair] for pair in zip(concept.tolist(), late.tolist(), strict=True)], dtype=object)

    def _drug(self, rows: Ints, concept: Ints | int, days: Floats | float) -> None:
        time = self._at(rows, DRUG_AT)
        codes = np.broadcast_to(np.asarray(concept, dtype=np.int64), rows.shape)
        self._put("drug", rows, concept, time, self._source(rows, codes, "D"), end=time + (np.broadcast_to(days, rows.shape) - 1) * DAY)

    def _happen(self, rows: Ints, done: Done, word: str) -> Ints:
        return rows[draw(self.s, word, str(done.concept), rows=rows) < done.chance]

    # -- diseases ----------------------------------------------------------------------------------------------------------------------
    def _diagnoses(self) -> None:
        at = coded_at(self.s, self.hospital)
        for entry in self.entries:
            concept = coded(self.s, entry, self.hospital)
            rows = np.flatnonzero(concept != NONE)
            source = np.where(concept[rows] == 0, next(iter(entry.codes), 0), concept[rows])
            self._put("condition", rows, concept[rows], at[rows], self._source(rows, source, "C"))

    def _done(self) -> None:
        """What goes with a beginning or an event: procedures, short courses, devices."""
        s = self.s
        met = (s.visit != NOWHERE) & (s.event != ENTRY)
        for entry in self.entries:
            if not (entry.workup or entry.remedies or entry.devices):
                continue
            rows = np.flatnonzero(met & (s.since(entry.name) == s.time))
            for done in entry.workup:
                chosen = self._happen(rows, done, "workup")
                self._put("procedure", chosen, done.concept, self._at(chosen, DONE_AT), self._source(chosen, np.full(len(chosen), done.concept), "P"))
            for done in entry.remedies:
                self._drug(chosen := self._happen(rows, done, "remedy"), done.concept, np.full(len(chosen), done.days))
            for done in entry.devices:
                chosen = self._happen(rows, done, "device")
                time = self._at(chosen, DONE_AT)
                self._put("device", chosen, done.concept, time, self._source(chosen, np.full(len(chosen), done.concept), "E"), end=time)

    def _medicines(self) -> None:
        s = self.s
        first = np.r_[True, s.row[1:] != s.row[:-1]]
        for position, medicine in enumerate(s.population.treatments):
            if not isinstance(medicine, Medicine):
                continue
            on = s.treated[position]
            before = np.r_[False, on[:-1]] & ~first
            begun = on & ~before & (s.visit != NOWHERE)
            again = on & before & (s.event == CHECKUP)
            again &= draw(s, "refill", medicine.name) < medicine.refill
            rows = np.flatnonzero(begun | again)
            self._drug(rows, self._product(medicine, rows), np.full(len(rows), 90.0))
            stay = np.flatnonzero(on & before & (s.visit == AT_INPATIENT))
            stay = stay[draw(s, "ward drug", medicine.name, rows=stay) < 0.45]
            days = np.ceil((self.end[self.visit_of[stay] - 1] - s.time[stay]) / DAY)
            self._drug(stay, self._product(medicine, stay), np.maximum(days, 1.0))

    def _product(self, medicine: Medicine, rows: Ints) -> Ints:
        choices = np.array([medicine.concept, *medicine.products], dtype=np.int64)
        pick = draw(self.s, "product", medicine.name, rows=rows)
        which = 1 + np.floor(pick / self.hospital.products * (len(choices) - 1)).astype(np.int64)
        chosen: Ints = choices[np.where((pick < self.hospital.products) & (len(choices) > 1), np.minimum(which, len(choices) - 1), 0)]
        return chosen

    # -- the rest of life ----------------------------------------------------------------------------------------------------------
    def _reasons(self) -> None:
        s = self.s
        at = coded_at(s, self.hospital)
        for event, reasons in REASONS.items():
            rows = np.flatnonzero(s.is_event(event))
            decades, male = (s.age[rows] - AGE_CENTRE) / AGE_SCALE, s.male[rows]
            can = {"": np.ones(len(rows), dtype=bool), "women": ~male, "men": male}
            weights = [can[reason.only] * reason.weight * np.exp(reason.age * decades + reason.male * male) for reason in reasons]
            share = np.cumsum(weights, axis=0)
            chosen = (share < draw(s, "reason", event, rows=rows) * share[-1]).sum(axis=0)
            concept = np.array([reason.concept for reason in reasons])[chosen]
            source = self._source(rows, concept, "C")
            concept_written = np.where(draw(s, "unmapped", "reason", rows=rows) < self.hospital.unmapped, 0, concept)
            self._put("condition", rows, concept_written, at[rows], source)
            drug, procedure = (np.array([getattr(reason, part)[0] for reason in reasons])[chosen] for part in ("drug", "procedure"))
            gets = (drug > 0) & (draw(s, "reason drug", rows=rows) < 0.6)
            self._drug(rows[gets], drug[gets], 7.0)
            done = (procedure > 0) & (draw(s, "reason procedure", rows=rows) < 0.7)
            self._put("procedure", rows[done], procedure[done], self._at(rows[done], DONE_AT), self._source(rows[done], procedure[done], "P"))

    def _checkups(self) -> None:
        s = self.s
        rows = np.flatnonzero(((s.event == CHECKUP) | (s.event == ENTRY)) & (s.visit == AT_OUTPATIENT))
        for offer in CHECKUP_PROCEDURES:
            chance = np.where(s.male[rows], offer.men, offer.women) * ((s.age[rows] >= offer.ages[0]) & (s.age[rows] < offer.ages[1]))
            chosen = rows[draw(s, "checkup", str(offer.concept), rows=rows) < chance]
            self._put("procedure", chosen, offer.concept, self._at(chosen, DONE_AT), self._source(chosen, np.full(len(chosen), offer.concept), "P"))

    def _questions(self) -> None:
        s = self.s
        planned = (s.visit == AT_OUTPATIENT) & ((s.event == CHECKUP) | (s.event == ENTRY))
        asked = np.where(s.visit <= AT_INPATIENT, np.where(planned, 0, s.visit + 1), 4)  # check-up, clinic, emergency room, admission, none
        for question in QUESTIONS:
            chance = np.array([*question.chance, 0.0])[asked] * self.hospital.asks
            rows = np.flatnonzero(chance > 0)
            rows = rows[draw(s, "question", question.name, rows=rows) < chance[rows]]
            if question.holds is not None:
                rows = rows[question.holds(s)[rows]]
            value = question.number(s)[rows] if question.number is not None else np.full(len(rows), np.nan)
            answer = question.answer(s)[rows] if question.answer is not None else np.zeros(len(rows), dtype=np.int64)
            source = np.full(len(rows), f"{self.hospital.name}-{question.name}", dtype=object)
            self._put("observation", rows, question.concept, self._at(rows, VITALS_AT), source, value=value, answer=answer)


def write(lives: Lives, hospital: str) -> Tables:
    """What the hospital wrote down of these lives."""
    return Records(lives, HOSPITALS[hospital]).write()

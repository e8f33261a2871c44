"""What an event does to the state: where it is met, what it sets, labs, treatments, the next appointment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from cehrxgpt.simulate.declare import AGE_CENTRE, AGE_SCALE, Hazard, Place, Population
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
    NEVER,
    NOWHERE,
    OUTSIDE,
    YEAR,
    Floats,
    State,
)

OPEN, CLOSE = 480, 1020  # outpatient hours
# purposes of draws
KIND, HOUR, STAY, STAY2, HOURS, NEXT, PLACE, DRUG, LAB, REOPEN = 10, 11, 12, 13, 14, 15, 16, 20, 40, 215
INTENSIVE, LEAD, LEAD_DAYS, INTENSIVE_DAYS, REPLAN = 230, 231, 232, 233, 240
STAY_SD, LONGEST_STAY = 0.6, 40  # log standard deviation of the days of a stay, and the most days planned


def purpose(base: int, position: int) -> int:
    """A purpose of its own for each of many: the first twenty follow the base, the others have a range to themselves."""
    return base + position if position < 20 else 10_000 + 100 * base + position


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


def replan(state: State) -> None:
    """Draw the end of intensive care and the plan of discharge anew, in place, given that they lie ahead: nobody who asks knows the plan.

    The length of intensive care is log-normal, so given that it goes on, its log is a truncated normal. The length of a stay, from there or from
    the admission, is a whole number of days k, log-normal and rounded, and the hour of going home is uniform; given that the discharge is after
    the clock, k has weight P(k) times the chance of an hour after it. Plans that an operation has put off stand.
    """
    _replan_intensive_care(state)
    rows = np.flatnonzero(state.in_stay & (state.stay_days > 0))
    if not len(rows):
        return
    part = state.take(rows)
    origin = np.floor(part.planned_from / DAY)
    days = np.arange(1, LONGEST_STAY + 1)
    edges = np.log(np.r_[1e-9, days[:-1] + 0.5, 1e9] / part.stay_days[:, None]) / STAY_SD
    weight = np.diff(ndtr(edges), axis=1)
    # the share of hours of going home, on that day, that lie after the clock
    opens = (origin[:, None] + days) * DAY + 600
    passed = np.clip((part.clock[:, None] - opens) / 420, 0, 1)
    weight *= 1 - passed
    share = np.cumsum(weight, axis=1)
    pick = uniform(part.key, 0, REPLAN) * share[:, -1]
    k = np.minimum((share <= pick[:, None]).sum(axis=1), LONGEST_STAY - 1)
    low = passed[np.arange(len(rows)), k]
    hour = low + (1 - low) * uniform(part.key, 0, REPLAN + 1)
    planned = np.maximum(afternoon(origin + k + 1, hour), part.clock)
    state.discharge_at[rows] = np.where(share[:, -1] > 0, planned, part.discharge_at)


def _replan_intensive_care(state: State) -> None:
    rows = np.flatnonzero(state.in_stay & (state.icu_until > state.clock))
    if not len(rows):
        return
    part = state.take(rows)
    sd = part.population.care.intensive_days[1]
    begun = part.since("intensive_care")
    median = _intensive_median(part, begun)
    passed = ndtr(np.log(np.maximum(part.clock - begun, 1.0) / (median * DAY)) / sd)
    days = median * np.exp(sd * ndtri(passed + (1 - passed) * uniform(part.key, 0, REPLAN + 2)))
    state.icu_until[rows] = np.maximum(begun + np.floor(np.minimum(days, LONGEST_STAY) * DAY), part.clock + 1)


def _intensive_median(part: State, begun: Floats) -> Floats:
    """Median days of the stay in intensive care that began then: a function of what does not change while it lasts, [n]."""
    care = part.population.care
    log = np.full(len(part), np.log(care.intensive_days[0]))
    for name, weight in care.intensive_terms.items():
        if name == "age":
            log += weight * ((begun - part.birth) / YEAR - AGE_CENTRE) / AGE_SCALE
        else:
            log += weight * (part.frailty if name == "frailty" else ((part.since(name) > NEVER) & (part.since(name) < begun)))
    return np.exp(log)


class Transitions:
    """Applies events to rows of state, in place."""

    def __init__(self, population: Population, entries: Sequence[Hazard]):
        special = 3  # entry, check-up, discharge stand behind the hazards in these tables, where their negative numbers find them
        n = len(entries)
        self.population = population
        self.visit = np.zeros((n + special, 3))
        self.visit[:, 0] = 1
        self.stay_days = np.ones(n + special)
        self.intensive = np.zeros(n + special)
        self.by_day = np.zeros(n + special, dtype=bool)
        self.sets = np.zeros((len(population.markers), n + special), dtype=bool)
        self.no_follow_up = np.zeros(n + special, dtype=bool)
        for j, entry in enumerate(entries):
            self.visit[j] = entry.visit
            self.stay_days[j] = entry.stay_days
            self.intensive[j] = entry.intensive
            self.by_day[j] = entry.by_day
            self.no_follow_up[j] = entry.name in population.care.no_follow_up
            for marker in entry.sets:
                self.sets[population.marker[marker], j] = True
        self.longer = [(j, *entry.longer_stay_days) for j, entry in enumerate(entries) if entry.longer_stay_days]
        self.leads = [(j, entry.leads_to) for j, entry in enumerate(entries) if entry.leads_to]

    def place_in_time(self, part: State) -> Floats:
        """Decide where each event is met and when exactly; sets `visit` and `time`, returns `time`."""
        index = part.event.astype(np.int64)
        draw = uniform(part.key, part.step, KIND)
        chances = np.cumsum(self.visit[index], axis=1)
        part.visit = ((draw > chances[:, 0]).astype(np.int8) + (draw > chances[:, 1])).astype(np.int8)
        part.visit[part.in_stay] = IN_STAY
        part.visit[(part.event == self.population.death) & ~part.in_stay] = NOWHERE
        part.time = np.ceil(part.clock)
        outpatient = (part.visit == AT_OUTPATIENT) | (self.by_day[index] & (part.visit == AT_INPATIENT))
        part.time = np.where(outpatient, working_hours(part.clock, uniform(part.key, part.step, HOUR)), part.time)
        return part.time

    def apply(self, part: State) -> None:
        """Carry the events out; `event`, `visit` and `time` are set already."""
        index = part.event.astype(np.int64)
        part.clock = part.time.copy()
        part.visit_end = part.time.copy()
        part.place = np.zeros(len(part), dtype=np.int32)
        for m in range(len(self.population.markers)):
            hit = self.sets[m, index]
            if m < len(self.population.first_markers):
                hit = hit & (part.last[m] <= NEVER)
            part.last[m] = np.where(hit, part.time, part.last[m])
        alive = part.event != self.population.death
        self._move_labs(part)
        self._discharge(part)
        self._treat(part, alive)
        self._open_visit(part, index)
        self._appoint(part, index)
        if self.population.schedules:
            self._schedule(part)
        part.discharge_at = np.where(alive, part.discharge_at, OUTSIDE)
        part.visit_end = np.where(alive, part.visit_end, part.time)

    def _move_labs(self, part: State) -> None:
        """Ornstein-Uhlenbeck step from the last update to now, towards a level that age, diseases and treatments set."""
        keep = np.exp(-np.maximum(part.time - part.lab_time, 0) / (self.population.memory_days * DAY))
        for position, level in enumerate(self.population.levels):
            target = level.rest + part.offset[position]
            if level.per_decade:
                target = target + level.per_decade * (part.age - AGE_CENTRE) / AGE_SCALE
            if level.male:
                target = target + level.male * part.male
            for name, value in level.moved_by.items():
                flag = part.on(name) if name in self.population.treatment_names else part.has(name)
                target = target + value * flag
            spread = level.noise_sd * np.sqrt(1 - keep**2)
            noise = normal(part.key, part.step, LAB + 2 * position)
            part.lab[position] = target + (part.lab[position] - target) * keep + spread * noise
        part.lab_time = part.time.copy()

    def _discharge(self, part: State) -> None:
        leaves = part.event == DISCHARGE
        if not leaves.any():
            return
        marker = self.population.marker
        earlier, latest = marker["earlier_discharge"], marker["discharge"]
        part.last[earlier] = np.where(leaves, part.last[latest], part.last[earlier])
        part.last[latest] = np.where(leaves, part.time, part.last[latest])
        part.discharge_at = np.where(leaves, OUTSIDE, part.discharge_at)
        care = self.population.care
        nursing, hospice = _chance(part, care.nursing), _chance(part, care.hospice)
        draw = uniform(part.key, part.step, PLACE)
        elsewhere = np.where(draw < hospice + (1 - hospice) * nursing, care.nursing.concept, care.home)
        part.place = np.where(leaves, np.where(draw < hospice, care.hospice.concept, elsewhere), 0).astype(np.int32)
        part.hospice = part.hospice | (part.place == care.hospice.concept)

    def _treat(self, part: State, alive: npt.NDArray[np.bool_]) -> None:
        met = alive & (part.visit != AT_EMERGENCY)
        for position, treatment in enumerate(self.population.treatments):
            indicated = np.zeros(len(part), dtype=bool)
            new = np.zeros(len(part), dtype=bool)
            for name in treatment.indications:
                indicated |= part.has(name)
                new |= part.since(name) == part.time
            new |= part.event == ENTRY
            for name in treatment.forbids:
                indicated &= ~part.has(name)
            chance = np.where(new, treatment.when_new, treatment.later)
            if treatment.uptake is not None:
                half, width = treatment.uptake
                chance = chance / (1 + np.exp(-(part.time / YEAR + 1970 - half) / width))
            draw = uniform(part.key, part.step, purpose(DRUG, position))
            on = part.treated[position]
            stops = on & (part.event == CHECKUP) & (draw < treatment.stop)
            starts = ~on & met & indicated & (draw < chance)
            part.treated[position] = (on & ~stops) | starts
            if treatment.starts:
                m = self.population.marker[treatment.starts]
                part.last[m] = np.where(starts, part.time, part.last[m])

    def _open_visit(self, part: State, index: npt.NDArray[np.int64]) -> None:
        hours, stay = uniform(part.key, part.step, HOURS), normal(part.key, part.step, STAY)
        outpatient, emergency, inpatient = part.visit == AT_OUTPATIENT, part.visit == AT_EMERGENCY, part.visit == AT_INPATIENT
        length = np.where(outpatient, 20 + np.floor(hours * 30), np.where(emergency, 120 + np.floor(hours * 360), 0.0))
        part.visit_end = part.time + length
        planned_anew = inpatient | self._intensive(part, index)
        median = self.stay_days[index]
        days = np.clip(np.round(median * np.exp(STAY_SD * stay)), 1, LONGEST_STAY)
        part.stay_days = np.where(planned_anew, median, part.stay_days)
        m = self.population.marker["admission"]
        part.last[m] = np.where(inpatient, part.time, part.last[m])
        planned = afternoon(np.floor(part.planned_from / DAY) + days, hours)
        part.discharge_at = np.where(planned_anew, planned, part.discharge_at)
        for j, at_least, further in self.longer:
            operated = (part.visit == IN_STAY) & (part.event == j)
            longer = afternoon(np.floor(part.time / DAY) + at_least + np.floor(further * hours), hours)
            part.stay_days = np.where(operated & (longer > part.discharge_at), 0.0, part.stay_days)
            part.discharge_at = np.where(operated, np.maximum(part.discharge_at, longer), part.discharge_at)
        part.visit_end = np.where(inpatient | ((part.visit == IN_STAY) & part.in_stay), part.discharge_at, part.visit_end)
        part.clock = np.where(inpatient, part.time + self.population.care.intake_minutes, np.where(part.visit == IN_STAY, part.time, part.visit_end))

    def _intensive(self, part: State, index: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Who goes to intensive care, with the planned end; who lies there already stays as planned."""
        if "intensive_care" not in self.population.marker:
            return np.zeros(len(part), dtype=bool)
        m = self.population.marker["intensive_care"]
        severe = uniform(part.key, part.step, INTENSIVE) < self.intensive[index]
        severe &= ((part.visit == AT_INPATIENT) | ((part.visit == IN_STAY) & part.in_stay)) & (part.icu_until <= part.time)
        part.last[m] = np.where(severe, part.time, part.last[m])
        median, sd = _intensive_median(part, part.time), self.population.care.intensive_days[1]
        days = np.minimum(median * np.exp(sd * normal(part.key, part.step, INTENSIVE_DAYS)), LONGEST_STAY)
        part.icu_until = np.where(severe, part.time + np.floor(np.maximum(days, 0.3) * DAY), part.icu_until)
        return severe

    def _appoint(self, part: State, index: npt.NDArray[np.int64]) -> None:
        care = self.population.care
        days = np.full(len(part), care.checkup_days)
        for every, names in care.tiers:
            applies = np.zeros(len(part), dtype=bool)
            for name in names:
                applies |= part.has(name)
            days = np.where(applies, every, days)
        draw = uniform(part.key, part.step, NEXT)
        regular = part.time + days * DAY * (0.7 + 0.6 * draw)
        soon = part.time + (7 + 14 * draw) * DAY
        moved = np.where((part.event == CHECKUP) | (part.event == ENTRY), regular, part.next_visit)
        moved = np.where(part.event == DISCHARGE, np.minimum(np.maximum(moved, part.time + 3 * DAY), soon), moved)
        onset = (part.event >= 0) & (part.visit == AT_OUTPATIENT) & ~self.no_follow_up[index]
        moved = np.where(onset, np.minimum(np.maximum(moved, part.time + 14 * DAY), part.time + 45 * DAY), moved)
        part.next_visit = working_hours(moved, uniform(part.key, part.step, REOPEN))

    def _schedule(self, part: State) -> None:
        """What was due has come, or comes the day after a stay that is in its way; then what this event leads to."""
        done = (part.event == part.due_event) & (part.due <= part.time)
        part.due = np.where(done, OUTSIDE, part.due)
        draw = uniform(part.key, part.step, LEAD)
        noise = normal(part.key, part.step, LEAD_DAYS)
        for j, following in self.leads:
            low = 0.0
            for one in following:
                hit = (part.event == j) & (draw >= low) & (draw < low + one.chance) & (part.due == OUTSIDE)
                at = np.floor(part.time + np.maximum(one.days + one.sd_days * noise, 1.0) * DAY)
                part.due = np.where(hit, at, part.due)
                part.due_event = np.where(hit, self.population.index[one.event], part.due_event).astype(np.int16)
                low += one.chance


def _chance(part: State, place: Place) -> Floats:
    """Logistic in age, frailty and diseases."""
    against = np.full(len(part), place.intercept)
    for name, weight in place.terms.items():
        value = (part.age - AGE_CENTRE) / AGE_SCALE if name == "age" else part.frailty if name == "frailty" else part.has(name)
        against = against - weight * value
    return 1 / (1 + np.exp(against))

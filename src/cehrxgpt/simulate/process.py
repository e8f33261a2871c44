"""The process itself: patients move from event to event in continuous time, all of them at once.

Competing hazards are sampled by thinning (Lewis and Shedler, 1979): between events every hazard can only fall, but for age and calendar, so
the sum of the present hazards, at the highest that age and calendar will make of them before the bound is renewed, bounds what is to come; a
candidate drawn from the bound is accepted as event j with probability hazard_j(then) / bound. No time grid, so no discretisation error; the
state is Markov, so a run may be stopped at any instant and taken up again. Cost: two evaluations of the hazards per candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.declare import AGE_CENTRE, AGE_SCALE, Hazard, Population
from cehrxgpt.simulate.draws import uniform
from cehrxgpt.simulate.state import CHECKUP, DAY, DISCHARGE, NEVER, OUTSIDE, YEAR, Floats, Rows, State
from cehrxgpt.simulate.transitions import Transitions

GAP, ACCEPT = 1, 2  # purposes of draws; transitions use 10 and above
CAP_DAYS = 120.0  # the bound is renewed at least this often

Sink = Callable[[State], None]
Stop = Callable[[State], npt.NDArray[np.bool_]]

_AGES_PER_YEAR, _OLDEST = 10, 125  # rates by age are constant within a tenth of a year
_FIRST_MONTH, _MONTHS = (1990 - 1970) * 12, 12 * 60  # rates by calendar are constant within a month of 30.4 days
_MONTH = YEAR / 12
_NOUGHT = np.float32(-80.0)  # log of a rate that never happens


class Hazards:
    """The declared hazards, compiled: `rates` of all of them for all patients is one sparse product and one exponential."""

    def __init__(self, population: Population, entries: Sequence[Hazard] | None = None):
        self.population = population
        self.entries = tuple(population.hazards if entries is None else entries)
        features, index = population.features, population.features.index
        self.decays = sorted({(marker, tau) for entry in self.entries for marker, (_, tau) in entry.since.items()})
        width = len(features) + len(self.decays) + 1
        self.weights = np.zeros((len(self.entries), width), dtype=np.float32)
        for j, entry in enumerate(self.entries):
            self.weights[j, 0] = np.log(max(entry.per_year, 1e-30) / YEAR)
            for name, value in entry.terms.items():
                self.weights[j, 1 + index(name)] = value
            for marker, (value, tau) in entry.since.items():
                self.weights[j, 1 + len(features) + self.decays.index((marker, tau))] = value
        self.used = [[int(feature) for feature in np.flatnonzero(row) if feature] for row in self.weights]
        ageing = max(max(entry.terms.get("age", 0.0), 0.0) for entry in self.entries)
        self.slack = float(np.exp(ageing * (CAP_DAYS + 1) / 365.25 / AGE_SCALE)) * (1 + 1e-5)
        self.outside_only = np.array([not entry.in_stay for entry in self.entries])
        self.needs_free_schedule = np.array([bool(entry.leads_to) for entry in self.entries])
        self.by_age = [j for j, entry in enumerate(self.entries) if entry.by_age]
        self.by_calendar = [j for j, entry in enumerate(self.entries) if entry.by_month or entry.by_year]
        self.ages, self.ages_bound = _with_bound(_age_table(self.entries, self.by_age), round(CAP_DAYS / 365.25 * _AGES_PER_YEAR) + 2)
        self.months, self.months_bound = _with_bound(_month_table(self.entries, self.by_calendar), int(CAP_DAYS / 30) + 2)

    def rates(self, state: State, rows: Rows | None = None, *, bound: bool = False) -> npt.NDArray[np.float32]:
        """Rates per minute, [hazards, n], at each row's clock (`rows`: only of these; `bound`: at the highest that age and calendar will make
        of them within CAP_DAYS)."""
        pick = slice(None) if rows is None else rows
        clock, last = state.clock[pick], state.last[:, pick]
        has = last > NEVER
        marker = self.population.marker
        x = np.empty((self.weights.shape[1], len(clock)), dtype=np.float32)
        x[0] = 1
        x[1] = ((clock - state.birth[pick]) / YEAR - AGE_CENTRE) / AGE_SCALE
        x[2], x[3], x[4] = state.male[pick], state.race[pick] == 1, state.frailty[pick]
        at = 5
        for name in self.population.flags:
            x[at] = has[marker[name]]
            at += 1
        for position, level in enumerate(self.population.levels):
            x[at] = (state.lab[position, pick] - level.centre) / level.scale
            at += 1
        x[at : at + len(state.treated)] = state.treated[:, pick]
        at += len(state.treated)
        in_stay = state.in_stay[pick]
        x[at], x[at + 1] = in_stay, state.hospice[pick]
        at += 2
        for name, tau in self.decays:
            x[at] = (last[marker[name]] - clock) / (tau * DAY)
            at += 1
        np.exp(x[at - len(self.decays) :], out=x[at - len(self.decays) :])
        rates = self._combine(x)
        self._add_tables(rates, state, pick, clock, bound=bound)
        np.exp(rates, out=rates)
        for j, entry in enumerate(self.entries):
            for name in entry.requires:
                rates[j] *= has[marker[name]]
            for name in entry.forbids:
                rates[j] *= ~has[marker[name]]
        rates[self.outside_only] *= ~in_stay
        if self.population.schedules:
            rates[self.needs_free_schedule] *= state.due[pick] == OUTSIDE
        return rates

    def _add_tables(self, rates: npt.NDArray[np.float32], state: State, pick: slice | Rows, clock: Floats, *, bound: bool) -> None:
        if self.by_age:
            years = np.clip((clock - state.birth[pick]) / YEAR * _AGES_PER_YEAR, 0, _OLDEST * _AGES_PER_YEAR - 1).astype(np.intp)
            rates[self.by_age] += (self.ages_bound if bound else self.ages)[:, years + state.male[pick] * (_OLDEST * _AGES_PER_YEAR)]
        if self.by_calendar:
            month = np.clip(np.floor(clock / _MONTH) - _FIRST_MONTH, 0, _MONTHS - 1).astype(np.intp)
            rates[self.by_calendar] += (self.months_bound if bound else self.months)[:, month]

    def _combine(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`weights @ x`, element by element: most weights are nought, and unlike a BLAS product no last bit depends on the batch's size."""
        total = np.empty((len(self.weights), x.shape[1]), dtype=np.float32)
        product = np.empty(x.shape[1], dtype=np.float32)
        for j, features in enumerate(self.used):
            total[j] = self.weights[j, 0]
            for feature in features:
                np.multiply(x[feature], self.weights[j, feature], out=product)
                total[j] += product
        return total


def _age_table(entries: Sequence[Hazard], wanted: list[int]) -> npt.NDArray[np.float32]:
    """Log rate ratios [hazards, 2 sexes, tenths of a year]; log-linear between the declared ages, level beyond them."""
    middle = (np.arange(_OLDEST * _AGES_PER_YEAR) + 0.5) / _AGES_PER_YEAR
    table = np.full((len(wanted), 2, len(middle)), _NOUGHT, dtype=np.float32)
    for row, j in enumerate(wanted):
        for position, sex in enumerate(("women", "men")):
            rates = entries[j].by_age.get(sex, entries[j].by_age.get("all"))
            if rates:
                ages = sorted(rates)
                table[row, position] = np.interp(middle, ages, [np.log(max(rates[age], 1e-30)) for age in ages])
    return np.maximum(table, _NOUGHT)


def _month_table(entries: Sequence[Hazard], wanted: list[int]) -> npt.NDArray[np.float32]:
    """Log rate ratios [hazards, 1, months from 1990]."""
    month = np.arange(_FIRST_MONTH, _FIRST_MONTH + _MONTHS)
    table = np.zeros((len(wanted), 1, _MONTHS))
    for row, j in enumerate(wanted):
        if entries[j].by_month:
            table[row, 0] += np.log(entries[j].by_month)[month % 12]
        if entries[j].by_year:
            years = sorted(entries[j].by_year)
            ratios = np.array([0.0, *(entries[j].by_year[year] for year in years)])
            table[row, 0] += np.log(np.maximum(ratios[np.searchsorted(years, 1970 + month // 12, side="right")], 1e-30))
    return np.maximum(table, _NOUGHT).astype(np.float32)


def _with_bound(table: npt.NDArray[np.float32], ahead: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The table [hazards, k, m] with its last axes joined, and its highest value from each cell to `ahead` cells later."""
    bound = table.copy()
    for step in range(1, ahead + 1):
        bound[..., :-step] = np.maximum(bound[..., :-step], table[..., step:])
    flat = (len(table), table.shape[1] * table.shape[2])
    return table.reshape(flat), bound.reshape(flat)


class Process:
    """Hazards plus what follows from each event; `run` moves rows of state forward."""

    def __init__(self, population: Population, entries: Sequence[Hazard] | None = None):
        self.population = population
        self.hazards = Hazards(population, entries)
        self.transitions = Transitions(population, self.hazards.entries)

    def run(self, state: State, until: Floats, *, sink: Sink | None = None, finish_stay: bool = False, stop: Stop | None = None) -> State:
        """Move every row to its death or to `until` (minutes, [n] by `state.row`), whichever is first.

        Args:
            state: rows to move; not changed.
            until: the last instant of each row, indexed by `state.row`.
            sink: receives the state of the rows that had an event, directly after it.
            finish_stay: a row in hospital at `until` goes on to its discharge or death.
            stop: which rows that just had an event stop there, beside those that died.

        Returns:
            The rows that met death or `stop`, in no order, as they were then.
        """
        state = state.take(np.arange(len(state)))
        met: list[State] = []
        while len(state):
            accepted, kind, planned, ended = self._advance(state, until[state.row], finish_stay)
            rows = np.concatenate([accepted, planned])
            event = np.concatenate([kind, self._planned(state, planned)])
            if len(rows):
                order = np.argsort(rows, kind="stable")
                rows, event = rows[order], event[order]
                part = state.take(rows)
                part.event = event.astype(np.int16)
                late = self.transitions.place_in_time(part) > until[part.row]
                if finish_stay:
                    late &= ~part.in_stay
                ended[rows[late]] = True
                if late.any():
                    rows, part = rows[~late], part.take(~late)
                self.transitions.apply(part)
                if sink is not None and len(part):
                    sink(part)
                final = part.event == self.population.death
                if stop is not None and len(part):
                    final = final | stop(part)
                if final.any():
                    met.append(part.take(final))
                ended[rows[final]] = True
                state.put(rows, part)
            if ended.any():
                state = state.take(~ended)
        return State.concatenate(met) if met else state

    def _planned(self, state: State, rows: Rows) -> Rows:
        """What comes at a planned moment: the discharge, a scheduled event, or the appointment."""
        scheduled = state.due[rows] <= state.next_visit[rows]
        return np.where(state.in_stay[rows], DISCHARGE, np.where(scheduled, state.due_event[rows], CHECKUP))

    def _advance(self, state: State, until: Floats, finish_stay: bool) -> tuple[Rows, Rows, Rows, npt.NDArray[np.bool_]]:
        """Move clocks to the next thing; returns rows with an event, its hazard, rows at a planned moment, and who has ended."""
        state.step += np.uint64(1)
        bound = self.hazards.rates(state, bound=True).sum(axis=0, dtype=np.float64) * self.hazards.slack
        candidate = state.clock - np.log(uniform(state.key, state.step, GAP)) / bound
        in_stay = state.in_stay
        appointment = np.maximum(np.where(in_stay, state.discharge_at, np.minimum(state.next_visit, state.due)), state.clock)
        limit = np.where(in_stay, np.inf, until) if finish_stay else until
        renew = state.clock + CAP_DAYS * DAY
        other = np.minimum(np.minimum(appointment, limit), renew)
        is_candidate = candidate < other
        state.clock = np.where(is_candidate, candidate, other)
        is_planned = ~is_candidate & (appointment == other) & (appointment <= limit)
        ended = ~is_candidate & ~is_planned & (limit <= renew)
        rows = np.flatnonzero(is_candidate)
        kind = self._choose(state, rows, bound)
        accepted = kind < len(self.hazards.entries)
        return rows[accepted], kind[accepted], np.flatnonzero(is_planned), ended

    def _choose(self, state: State, rows: Rows, bound: Floats) -> Rows:
        """Which hazard a candidate is (their number: none, it is thinned out)."""
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        share = np.cumsum(self.hazards.rates(state, rows), axis=0, dtype=np.float64)
        pointer = uniform(state.key[rows], state.step[rows], ACCEPT) * bound[rows]
        return (share <= pointer).sum(axis=0)

"""The process itself: patients move from event to event in continuous time, all of them at once.

Competing hazards are sampled by thinning (Lewis and Shedler, 1979): between events every hazard can only fall, apart from ageing, so
the sum of the present hazards times a small allowance bounds what is to come; a candidate drawn from the bound is accepted as event j
with probability hazard_j(then) / bound. No time grid, so no discretisation error; the state is Markov, so a run may be stopped at any instant
and taken up again. Cost: two evaluations of the hazards per candidate, some 15 candidates per patient-year, about 1 µs each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate import hazards as h
from cehrxgpt.simulate.draws import uniform
from cehrxgpt.simulate.state import CHECKUP, DAY, DISCHARGE, MARKER, NEVER, YEAR, Floats, Rows, State
from cehrxgpt.simulate.transitions import Transitions

GAP, ACCEPT = 1, 2  # purposes of draws; transitions use 10 and above
CAP_DAYS = 120.0  # the bound is renewed at least this often

Sink = Callable[[State], None]


class Hazards:
    """The declared hazards, compiled: `rates` of all of them for all patients is one sparse product and one exponential."""

    def __init__(self, entries: Sequence[h.Hazard] = h.HAZARDS):
        self.entries = tuple(entries)
        self.decays = sorted({(marker, tau) for entry in entries for marker, (_, tau) in entry.since.items()})
        width = len(h.FEATURES) + len(self.decays) + 1
        self.weights = np.zeros((len(entries), width), dtype=np.float32)
        for j, entry in enumerate(entries):
            self.weights[j, 0] = np.log(entry.per_year / YEAR)
            for name, value in entry.terms.items():
                self.weights[j, 1 + h.FEATURES.index(name)] = value
            for marker, (value, tau) in entry.since.items():
                self.weights[j, 1 + len(h.FEATURES) + self.decays.index((marker, tau))] = value
        self.used = [[int(feature) for feature in np.flatnonzero(row) if feature] for row in self.weights]
        ageing = max(max(entry.terms.get("age", 0.0), 0.0) for entry in entries)
        self.slack = float(np.exp(ageing * (CAP_DAYS + 1) / 365.25 / h.AGE_SCALE)) * (1 + 1e-5)
        self.outside_only = np.array([not entry.in_stay for entry in entries])

    def rates(self, state: State, rows: Rows | None = None) -> npt.NDArray[np.float32]:
        """Rates per minute, [hazards, n], at each row's clock (`rows`: only of these)."""
        pick = slice(None) if rows is None else rows
        clock, last = state.clock[pick], state.last[:, pick]
        has = last > NEVER
        x = np.empty((self.weights.shape[1], len(clock)), dtype=np.float32)
        x[0] = 1
        x[1] = ((clock - state.birth[pick]) / YEAR - h.AGE_CENTRE) / h.AGE_SCALE
        x[2], x[3], x[4] = state.male[pick], state.race[pick] == 1, state.frailty[pick]
        at = 5
        for name in h.FLAGS:
            x[at] = has[MARKER[name]]
            at += 1
        for position, (centre, scale) in enumerate(zip(h.LAB_CENTRE, h.LAB_SCALE, strict=True)):
            x[at] = (state.lab[position, pick] - centre) / scale
            at += 1
        x[at : at + len(h.TREATMENT_NAMES)] = state.treated[:, pick]
        at += len(h.TREATMENT_NAMES)
        in_stay = state.in_stay[pick]
        x[at], x[at + 1] = in_stay, state.hospice[pick]
        at += 2
        for marker, tau in self.decays:
            x[at] = (last[MARKER[marker]] - clock) / (tau * DAY)
            at += 1
        np.exp(x[at - len(self.decays) :], out=x[at - len(self.decays) :])
        rates = self._combine(x)
        np.exp(rates, out=rates)
        for j, entry in enumerate(self.entries):
            for marker in entry.requires:
                rates[j] *= has[MARKER[marker]]
            for marker in entry.forbids:
                rates[j] *= ~has[MARKER[marker]]
        rates[self.outside_only] *= ~in_stay
        return rates

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


class Process:
    """Hazards plus what follows from each event; `run` moves rows of state forward."""

    def __init__(self, entries: Sequence[h.Hazard] = h.HAZARDS):
        self.hazards = Hazards(entries)
        self.transitions = Transitions(self.hazards.entries)

    def run(self, state: State, until: Floats, *, sink: Sink | None = None, finish_stay: bool = False, stop_at: int | None = None) -> State:
        """Move every row to its death or to `until` (minutes, [n] by `state.row`), whichever is first.

        Args:
            state: rows to move; not changed.
            until: the last instant of each row, indexed by `state.row`.
            sink: receives the state of the rows that had an event, directly after it.
            finish_stay: a row in hospital at `until` goes on to its discharge or death.
            stop_at: rows stop as soon as this hazard's event happens too.

        Returns:
            The rows that met death or `stop_at`, in no order, as they were then.
        """
        state = state.take(np.arange(len(state)))
        met: list[State] = []
        while len(state):
            accepted, kind, planned, ended = self._advance(state, until[state.row], finish_stay)
            rows = np.concatenate([accepted, planned])
            event = np.concatenate([kind, np.where(state.in_stay[planned], DISCHARGE, CHECKUP)])
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
                final = (part.event == h.DEATH) if stop_at is None else (part.event == h.DEATH) | (part.event == stop_at)
                if final.any():
                    met.append(part.take(final))
                ended[rows[final]] = True
                _write_back(state, rows, part)
            if ended.any():
                state = state.take(~ended)
        return State.concatenate(met) if met else state

    def _advance(self, state: State, until: Floats, finish_stay: bool) -> tuple[Rows, Rows, Rows, npt.NDArray[np.bool_]]:
        """Move clocks to the next thing; returns rows with an event, its hazard, rows at a planned moment, and who has ended."""
        state.step += np.uint64(1)
        bound = self.hazards.rates(state).sum(axis=0, dtype=np.float64) * self.hazards.slack
        candidate = state.clock - np.log(uniform(state.key, state.step, GAP)) / bound
        in_stay = state.in_stay
        appointment = np.maximum(np.where(in_stay, state.discharge_at, state.next_visit), state.clock)
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


def _write_back(state: State, rows: Rows, part: State) -> None:
    for name, column in vars(part).items():
        getattr(state, name)[..., rows] = column

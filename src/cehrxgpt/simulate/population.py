"""The people: who enters, when, and with which diseases; then their lives, kept as one state per event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate import hazards as h
from cehrxgpt.simulate.draws import make_keys, normal, uniform
from cehrxgpt.simulate.process import Process
from cehrxgpt.simulate.state import AT_OUTPATIENT, DAY, ENTRY, MARKER, NEVER, OUTSIDE, YEAR, Floats, State
from cehrxgpt.simulate.transitions import working_hours

FIRST_DAY = float(np.datetime64("2008-01-01", "D").astype(np.int64))
LAST_DAY = float(np.datetime64("2024-01-01", "D").astype(np.int64))
CHUNK = 5_000  # people simulated at a time


@dataclass(frozen=True)
class Population:
    """`states` in order of subject and time, one per event; `end` is the planned last minute of observation, per subject."""

    subject_id: npt.NDArray[np.int64]
    start: Floats
    end: Floats
    states: State


def newcomers(subject_id: npt.NDArray[np.int64], seed: int) -> tuple[State, Floats]:
    """States of people just before their first visit, and the end of their observation."""
    n = len(subject_id)
    key = make_keys(seed, subject_id)

    def draw(purpose: int) -> Floats:
        return uniform(key, 0, 1000 + purpose)

    years = 4.0 + 6.0 * draw(0)
    first = FIRST_DAY + draw(1) * (LAST_DAY - FIRST_DAY - years * 365.25)
    start = working_hours(np.floor(first) * DAY + 480, draw(2))
    age = np.clip(64.0 + 10.5 * normal(key, 0, 1010), 40.0, 88.0)
    state = State(
        row=np.arange(n, dtype=np.int64), key=key, step=np.zeros(n, dtype=np.uint64), clock=start, birth=np.floor((start - age * YEAR) / DAY) * DAY,
        male=draw(3) < 0.48, race=np.searchsorted([0.62, 0.80, 0.90], draw(4)).astype(np.int8), frailty=normal(key, 0, 1020),
        offset=np.stack([sd * normal(key, 0, 1030 + 2 * i) for i, sd in enumerate(h.LAB_OFFSET_SD)]), lab=np.zeros((len(h.LABS), n)),
        lab_time=np.full(n, NEVER), last=np.full((len(h.MARKERS), n), NEVER), treated=np.zeros((len(h.TREATMENTS), n), dtype=bool),
        next_visit=start.copy(), discharge_at=np.full(n, OUTSIDE), hospice=np.zeros(n, dtype=bool), event=np.full(n, ENTRY, dtype=np.int16),
        visit=np.full(n, AT_OUTPATIENT, dtype=np.int8), time=start.copy(), visit_end=start.copy(), place=np.zeros(n, dtype=np.int32),
    )  # fmt: skip
    for position, (name, (share, slope)) in enumerate(h.PREVALENCE.items()):
        odds = share / (1 - share) * np.exp(slope * (age - h.AGE_CENTRE) / h.AGE_SCALE)
        brought = draw(50 + position) < odds / (1 + odds)
        # long ago: what the record cannot date no longer drives a hazard
        since = start - np.floor((8 + 9 * draw(70 + position)) * 365.25) * DAY
        state.last[MARKER[name]] = np.where(brought, since, NEVER)
    return state, np.floor(start / DAY + years * 365.25) * DAY


def live(patients: int, seed: int, *, progress: Callable[[int, int], None] | None = None) -> Population:
    """Simulate `patients` people, ids 1..patients; a person's life depends on (seed, id) alone."""
    process = Process()
    parts: list[State] = []
    starts, ends = [], []
    for low in range(0, patients, CHUNK):
        subject_id = np.arange(low + 1, min(low + CHUNK, patients) + 1, dtype=np.int64)
        state, end = newcomers(subject_id, seed)
        starts.append(state.time.copy())
        ends.append(end)
        log: list[State] = []
        process.transitions.apply(state)  # the first visit
        log.append(state.take(np.arange(len(state))))
        process.run(state, end, sink=log.append, finish_stay=True)
        lives = State.concatenate(log)
        lives = lives.take(np.lexsort((lives.step, lives.row)))
        lives.row += low
        parts.append(lives)
        if progress is not None:
            progress(len(subject_id), patients)
    return Population(np.arange(1, patients + 1, dtype=np.int64), np.concatenate(starts), np.concatenate(ends), State.concatenate(parts))

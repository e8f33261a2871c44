"""The people: who enters, when, and with which diseases; then their lives, kept as one state per event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.declare import Intake, Population
from cehrxgpt.simulate.draws import make_keys, normal, uniform
from cehrxgpt.simulate.process import Process
from cehrxgpt.simulate.state import AT_OUTPATIENT, DAY, ENTRY, NEVER, OUTSIDE, YEAR, Floats, State
from cehrxgpt.simulate.transitions import purpose, working_hours

CHUNK = 2_000  # people simulated at a time


@dataclass(frozen=True)
class Lives:
    """`states` in order of subject and time, one per event; `end` is the planned last minute of observation, per subject.

    `states.row` counts from 0 within these lives.
    """

    subject_id: npt.NDArray[np.int64]
    start: Floats
    end: Floats
    states: State


def _day(iso: str) -> float:
    return float(np.datetime64(iso, "D").astype(np.int64))


def newcomers(population: Population, intake: Intake, subject_id: npt.NDArray[np.int64], seed: int) -> tuple[State, Floats]:
    """States of people just before their first visit, and the end of their observation."""
    n = len(subject_id)
    key = make_keys(seed, subject_id)

    def draw(number: int) -> Floats:
        return uniform(key, 0, 1000 + number)

    first_day, last_day = _day(population.first_day), _day(population.last_day)
    years = intake.years[0] + intake.years[1] * draw(0)
    first = first_day + draw(1) * (last_day - first_day - years * 365.25)
    start = working_hours(np.floor(first) * DAY + 480, draw(2))
    age = intake.ages(key)
    state = State(
        population, row=np.arange(n, dtype=np.int64), key=key, step=np.zeros(n, dtype=np.uint64), clock=start,
        birth=np.floor((start - age * YEAR) / DAY) * DAY, male=draw(3) < intake.male,
        race=np.searchsorted(intake.races, draw(4)).astype(np.int8), frailty=normal(key, 0, 1020),
        offset=np.stack([level.offset_sd * normal(key, 0, 1030 + 2 * i) for i, level in enumerate(population.levels)]),
        lab=np.zeros((len(population.levels), n)), lab_time=np.full(n, NEVER), last=np.full((len(population.markers), n), NEVER),
        treated=np.zeros((len(population.treatments), n), dtype=bool), next_visit=start.copy(), due=np.full(n, OUTSIDE),
        due_event=np.zeros(n, dtype=np.int16), discharge_at=np.full(n, OUTSIDE), stay_days=np.zeros(n), icu_until=np.full(n, NEVER),
        hospice=np.zeros(n, dtype=bool),
        event=np.full(n, ENTRY, dtype=np.int16), visit=np.full(n, AT_OUTPATIENT, dtype=np.int8), time=start.copy(), visit_end=start.copy(),
        place=np.zeros(n, dtype=np.int32),
    )  # fmt: skip
    for position, (name, share) in enumerate(intake.brought.items()):
        brought = draw(purpose(50, position)) < share(age, state.male)
        # long ago: what the record cannot date no longer drives a hazard
        low, spread = intake.brought_years
        since = start - np.floor((low + spread * draw(purpose(70, position))) * 365.25) * DAY
        state.last[population.marker[name]] = np.where(brought, since, NEVER)
    return state, np.floor(start / DAY + years * 365.25) * DAY


def live(
    population: Population, patients: int, seed: int, *, hospital: str = "a", progress: Callable[[int, int], None] | None = None
) -> Iterator[Lives]:
    """Simulate `patients` people, ids 1..patients, some at a time; a person's life depends on (seed, id) and who enters the hospital alone."""
    process = Process(population)
    for low in range(0, patients, CHUNK):
        subject_id = np.arange(low + 1, min(low + CHUNK, patients) + 1, dtype=np.int64)
        state, end = newcomers(population, population.intake[hospital], subject_id, seed)
        start = state.time.copy()
        log: list[State] = []
        process.transitions.apply(state)  # the first visit
        log.append(state.take(np.arange(len(state))))
        process.run(state, end, sink=log.append, finish_stay=True)
        lives = State.concatenate(log)
        lives = lives.take(np.lexsort((lives.step, lives.row)))
        yield Lives(subject_id, start, end, lives)
        if progress is not None:
            progress(len(subject_id), patients)

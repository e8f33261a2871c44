"""Rows, people and tasks that the tests of tasks share."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

import polars as pl
from hypothesis import strategies as st

from cehrxgpt import schema as s
from cehrxgpt.events import conform, sort_events
from cehrxgpt.tasks import Criterion, Index, Outcome, Task
from cehrxgpt.tasks.definition import ConceptSet

START = datetime(2020, 1, 1)
SETS = {name: ConceptSet(condition=(number,)) for number, name in enumerate(("a", "b", "c"), start=1)}


def day_end(moment: datetime) -> datetime:
    return moment.replace(hour=23, minute=59, second=59, microsecond=999_999)


def row(subject, code, time, *, end=None, visit=None, day=False, known=None, value=None, unit=None, sign=None):
    available = known or (day_end(time) if day else time)
    return {
        "subject_id": subject,
        "code": code,
        "time": time,
        "end_time": end,
        "visit_id": visit,
        "available_time": available,
        "time_precision": "day" if day else "minute",
        "numeric_value": value,
        "unit": unit,
        "operator": sign,
    }


def table(rows) -> pl.DataFrame:
    schema = {"subject_id": pl.Int64, "code": pl.String, "time": pl.Datetime("us"), "end_time": pl.Datetime("us"), "visit_id": pl.Int64}
    schema |= {"available_time": pl.Datetime("us"), "time_precision": pl.String}
    schema |= {"numeric_value": pl.Float32, "unit": pl.String, "operator": pl.String}
    return sort_events(conform(pl.DataFrame(rows, schema=schema)))


BYSTANDER = [  # somebody who has everything, long ago, so that no task is refused for want of its concepts
    *(row(99, f"condition/{number}", datetime(2001, 1, 1), value=5.0, unit="u") for number in (1, 2, 3)),
    row(99, "Visit/9201", datetime(2001, 1, 1), end=datetime(2001, 1, 1, 5), visit=900),
    row(99, "Visit/9202", datetime(2001, 1, 1), end=datetime(2001, 1, 1), visit=901),
    row(99, "Visit/8870", datetime(2001, 1, 1), end=datetime(2001, 1, 1, 1), visit=902),
    row(99, "discharge/8536", datetime(2001, 1, 1, 5), visit=900),
    row(99, s.DEATH, datetime(2001, 1, 2)),
]

AB = {name: SETS[name] for name in ("a", "b")}


def simple(**changes) -> Task:
    fixed = {"name": "t", "description": "", "index": Index(concepts="a"), "outcome": Outcome(concepts="b"), "horizon_days": 10, "concept_sets": AB}
    return Task(**(fixed | changes))


def random_people(rng: Random, count: int):
    """Rows of `count` people, on a coarse grid of instants so that things coincide."""

    def moment(day):
        return START + timedelta(days=rng.randint(0, 8), hours=0 if day else rng.choice([0, 12]))

    rows, visit_id = [], 0
    for subject in range(1, count + 1):
        mine = []
        for _ in range(rng.randint(1, 6)):
            day = rng.random() < 0.4
            result = {
                "value": rng.choice([None, 4.5, 5.0, 5.5, 6.0]),
                "unit": rng.choice([None, "u"]),
                "sign": rng.choice([None, None, "<", ">", "<=", ">="]),
            }
            mine.append(row(subject, f"condition/{rng.randint(1, 3)}", moment(day), day=day, **result))
        for _ in range(rng.randint(0, 3)):
            visit_id += 1
            day = rng.random() < 0.4
            time, length = moment(day), rng.choice([None, 0, 12, 24, 36, 72])
            end = None if length is None else time + timedelta(hours=length)
            end = end.replace(hour=0) if end is not None and day else end
            mine.append(row(subject, f"Visit/{rng.choice([9201, 9202, 8870])}", time, end=end, visit=visit_id, day=day))
            if rng.random() < 0.6:
                left = end or (moment(day) if rng.random() < 0.3 else None)
                if left is not None:
                    mine.append(row(subject, f"discharge/{rng.choice([8536, 1])}", left, visit=visit_id, day=day))
            if rng.random() < 0.5:
                known = None if end is None else rng.choice([None, end, end + timedelta(hours=12)])
                mine.append(row(subject, f"condition/{rng.randint(1, 3)}", time, visit=visit_id, known=known))
        if rng.random() < 0.4:
            ends = [one["end_time"] for one in mine if one["end_time"] is not None]
            death = rng.choice([moment(False), *ends])
            day = rng.random() < 0.5
            death = day_end(death) if day else death
            mine = [one for one in mine if one["time"] <= death]
            mine.append(row(subject, s.DEATH, death, day=day))
        if rng.random() < 0.5:
            mine.append(row(subject, s.OBSERVATION_END, moment(False)))
        if rng.random() < 0.3:
            mine.append(row(subject, s.BIRTH, datetime(1950, 5, 17)))
        rows += mine
    return rows


people = st.builds(lambda seed: random_people(Random(seed), 15), st.integers(0, 2**32 - 1))


_BOUNDS = [{}, {"above": 5}, {"at_least": 5}, {"below": 5}, {"at_most": 5.5}, {"at_least": 5, "below": 5.5}, {"above": 4.5, "at_most": 5.5}]


@st.composite
def outcomes(draw, depth=2):
    """Plain outcomes, with and without values, and `any` and `all` of them."""
    kind = draw(st.sampled_from(["concepts", "concepts", "visit", "visit", "death", "any", "all"] if depth else ["concepts", "visit", "death"]))
    if kind in ("any", "all"):
        return Outcome(**{kind: tuple(draw(st.lists(outcomes(depth - 1), min_size=2, max_size=3)))})
    if kind == "concepts":
        bounds = draw(st.sampled_from(_BOUNDS))
        return Outcome(concepts=draw(st.sampled_from("bbc")), unit=draw(st.sampled_from([None, "u"])) if bounds else None, **bounds)
    return Outcome(death=True) if kind == "death" else Outcome(visit=draw(st.sampled_from([("inpatient",), ("emergency", "outpatient")])))


@st.composite
def tasks(draw):
    indices = [
        Index(
            visit=("inpatient",), at="end", contains=draw(st.sampled_from([None, "a"])), occurrence=draw(st.sampled_from(["each", "first", "last"]))
        ),
        Index(visit=("inpatient", "emergency"), at="end", discharge=(8536,)),
        Index(visit=("inpatient",), at="start", hours_after=draw(st.sampled_from([0, 24, 48]))),
        Index(concepts="a", occurrence=draw(st.sampled_from(["each", "first", "last"]))),
        Index(concepts="a", also=("c",), occurrence="first"),
        Index(concepts="a", above=5, occurrence=draw(st.sampled_from(["each", "first"]))),
        Index(concepts="a", at_most=5.5, unit="u", also=("c",), occurrence="first"),
        Index(days_after_first_event=draw(st.integers(0, 10))),
    ]
    index = draw(st.sampled_from(indices))
    outcome = draw(outcomes())
    stay = bool(index.visit) and index.at == "start" and draw(st.booleans())
    horizon: float | str | None = draw(st.sampled_from([1, 2, 5]))
    gap = draw(st.sampled_from([0, 0, 2]))
    if stay:
        gap, horizon = 0, "stay"
        if draw(st.booleans()):
            outcome, horizon = Outcome(stay_over_days=2.5), None
    of_onset = not outcome.death and outcome.stay_over_days is None and not any(leaf.death for _, leaf in outcome.leaves())
    first = of_onset and gap == 0 and draw(st.booleans())
    again = of_onset and not first and draw(st.booleans())
    inclusion = draw(
        st.sampled_from([(), (Criterion(concepts="c"),), (Criterion(concepts="a", within_days=5, count=2),), (Criterion(concepts="a", at_least=5),)])
    )
    exclusion = draw(st.sampled_from([(), (Criterion(concepts="c"),), (Criterion(concepts="b", below=5.5, unit="u"),)]))
    competing = draw(st.sampled_from([(), (), (Outcome(concepts="c"),), (Outcome(visit=("outpatient",)), Outcome(concepts="a", above=5))]))
    censoring = draw(st.sampled_from(["observation_period", "closed_world", "grace_days"]))
    names = {index.concepts, *index.also, index.contains, *(c.concepts for c in (*inclusion, *exclusion))}
    names |= {leaf.concepts for one in (outcome, *competing) for _, leaf in one.leaves()}
    return Task(
        name="t",
        description="",
        index=index,
        outcome=outcome,
        horizon_days=horizon,
        concept_sets={name: SETS[name] for name in sorted(names - {None})},
        inclusion=inclusion,
        exclusion=exclusion,
        history_days=draw(st.sampled_from([0, 0, 5])),
        gap_days=gap,
        first_onset=first,
        recurrence=again,
        competing=competing,
        censoring=censoring,
        grace_days=5 if censoring == "grace_days" else 0,
    )

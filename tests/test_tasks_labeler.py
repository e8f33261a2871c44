"""Labels against a slow, obvious labeler in plain Python; and what a label may not depend on."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import schema as s
from cehrxgpt.events import conform, sort_events
from cehrxgpt.tasks import Criterion, Index, Outcome, Task, label
from cehrxgpt.tasks.definition import ConceptSet
from cehrxgpt.visits import class_of

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


# -- the oracle ------------------------------------------------------------------------------------------------------------------


def after(event, moment):
    return event["time"] >= moment and event["available_time"] > moment


def in_set(task, name, event):
    return event["code"] in task.concept_sets[name].patterns


def allowed_by(event):
    """Some of the numbers that a result may stand for, all decisive ones among them; values and bounds are halves."""
    value = event["numeric_value"]
    if value is None or value != value:
        return []
    more, less = [value + step for step in (0.25, 0.5, 1, 100)], [value - step for step in (0.25, 0.5, 1, 100)]
    return {None: [value], ">": more, ">=": [value, *more], "<": less, "<=": [value, *less]}[event["operator"]]


def is_meant(task, asked, event):
    """Is the event of the concepts, and do all numbers that it may stand for lie in the range?"""
    if not in_set(task, asked.concepts, event):
        return False
    if (asked.above, asked.at_least, asked.below, asked.at_most) == (None, None, None, None):
        return True
    if asked.unit is not None and event["unit"] != asked.unit:
        return False
    numbers = allowed_by(event)
    return bool(numbers) and all(
        (asked.above is None or number > asked.above)
        and (asked.at_least is None or number >= asked.at_least)
        and (asked.below is None or number < asked.below)
        and (asked.at_most is None or number <= asked.at_most)
        for number in numbers
    )


def had(task, asked, events, moment):
    """Has the outcome been there at the moment?"""
    if asked.any or asked.all:
        return (any if asked.any else all)(had(task, part, events, moment) for part in asked.any or asked.all)
    before = [e for e in events if not after(e, moment)]
    if asked.concepts:
        return any(is_meant(task, asked, e) for e in before)
    return any(is_visit(e, asked.visit, moment) for e in before)


def first_time(task, asked, events, opens, closes):
    """When the outcome is first there in the window, or None."""
    if asked.any or asked.all:
        times = [first_time(task, part, events, opens, closes) for part in asked.any or asked.all]
        if asked.any:
            return min((time for time in times if time is not None), default=None)
        return None if None in times else max(times)
    hits = []
    for e in events:
        same_day = task.horizon_days == "stay" and e["code"] == s.DEATH and e["time"].date() == closes.date()
        if not after(e, opens) or not (e["time"] <= closes or same_day):
            continue
        if asked.death and e["code"] == s.DEATH:
            hits.append(e["time"])
        if asked.concepts and is_meant(task, asked, e):
            hits.append(e["time"])
        if asked.visit and is_visit(e, asked.visit):
            hits.append(e["time"])
    return min(hits, default=None)


def visit_minutes(event, until=None):
    if until is not None and (event["end_time"] is None or event["end_time"] > until):
        return (until - event["time"]).total_seconds() // 60 + 1
    return None if event["end_time"] is None else (event["end_time"] - event["time"]).total_seconds() / 60


def is_visit(event, classes, until=None):
    return event["code"].startswith("Visit/") and class_of(event["code"], visit_minutes(event, until)) in classes


def slow_index(task, events):
    """(prediction time, stay start, stay end) of one person."""
    index, found = task.index, []
    if index.visit:
        for event in events:
            if index.at == "end":
                if not is_visit(event, index.visit) or event["end_time"] is None:
                    continue
                moment = day_end(event["end_time"]) if event["time_precision"] == "day" else event["end_time"]
                places = [e for e in events if e["code"].startswith("discharge/") and e["visit_id"] == event["visit_id"] is not None]
                if index.discharge and not any(e["code"] in [f"discharge/{p}" for p in index.discharge] for e in places):
                    continue
                moment = max([moment] + [e["available_time"] for e in places])
            else:
                moment = max(event["time"] + timedelta(hours=index.hours_after), event["available_time"])
                if not is_visit(event, index.visit, moment) or not (event["end_time"] is None or event["end_time"] > moment):
                    continue
            inside = [e for e in events if e["visit_id"] == event["visit_id"] is not None and e["available_time"] <= moment]
            if index.contains and not any(in_set(task, index.contains, e) for e in inside):
                continue
            found.append((moment, event["time"], event["end_time"]))
    elif index.concepts and index.also:
        firsts = [[e["available_time"] for e in events if in_set(task, name, e)] for name in index.also]
        firsts.append([e["available_time"] for e in events if is_meant(task, index, e)])
        if all(firsts):
            found.append((max(min(times) for times in firsts), None, None))
    elif index.concepts:
        found = [(e["available_time"], None, None) for e in events if is_meant(task, index, e)]
    else:
        marks = (s.OBSERVATION_START, s.OBSERVATION_END, s.BIRTH)
        times = [e["time"] for e in events if e["code"] not in marks]
        if times:
            found.append((min(times) + timedelta(days=index.days_after_first_event), None, None))
    far = datetime(2100, 1, 1)
    found.sort(key=lambda one: (one[0], one[1] or far, one[2] or datetime(1900, 1, 1)))
    distinct = {}
    for one in found:
        distinct.setdefault(one[0], one)
    ordered = [distinct[moment] for moment in sorted(distinct)]
    if index.occurrence == "each" or not ordered:
        return ordered
    return [ordered[0] if index.occurrence == "first" else ordered[-1]]


def slow_label(task, events, moment, stay_start, stay_end):
    """The label of one row, or "drop"."""
    content = [e for e in events if e["code"] != s.BIRTH]
    until = max([e["available_time"] for e in content] + [e["end_time"] for e in content if e["code"].startswith("Visit/") and e["end_time"]])
    since = min(e["time"] for e in content)
    grace = timedelta(days=task.grace_days)
    died_in_stay = bool(task.index.visit) and task.index.at == "end" and not task.index.discharge
    for e in events:
        if e["code"] == s.DEATH and (not after(e, moment) or (died_in_stay and e["time"].date() == stay_end.date())):
            return "drop"
    if task.censoring != "closed_world" and until + grace < moment:
        return "drop"
    if task.history_days and since > moment - timedelta(days=task.history_days):
        return "drop"
    for one in task.inclusion:
        known = [e for e in events if is_meant(task, one, e) and e["available_time"] <= moment]
        if one.within_days:
            known = [e for e in known if e["time"] > moment - timedelta(days=one.within_days)]
        if len(known) < one.count:
            return "drop"
    if any(is_meant(task, one, e) and not after(e, moment) for one in task.exclusion for e in events):
        return "drop"
    if (task.first_onset or task.recurrence) and had(task, task.outcome, events, moment) != task.recurrence:
        return "drop"
    death = min([e["time"] for e in events if e["code"] == s.DEATH and after(e, moment)], default=None)
    opens = moment + timedelta(days=task.gap_days)
    outcome = None
    if task.outcome.stay_over_days is not None:
        if stay_end is None:
            return None
        limit = stay_start + timedelta(days=task.outcome.stay_over_days)
        closes = min(limit, stay_end)
        outcome = limit if stay_end > limit else None
    else:
        closes = stay_end if task.horizon_days == "stay" else opens + timedelta(days=task.horizon_days)
        if closes is None:
            return None
        outcome = first_time(task, task.outcome, events, opens, closes)
    others = [first_time(task, one, events, moment, closes) for one in task.competing]
    competing = min((time for time in others if time is not None), default=None)
    if competing is not None and (outcome is None or competing < outcome):
        return False
    if outcome is not None:
        return True
    if death is not None and death <= closes:
        return False
    if task.censoring == "closed_world" or until + grace >= closes:
        return False
    return None


def slow_labels(task, rows):
    labels = {}
    for subject in sorted({r["subject_id"] for r in rows}):
        events = [r for r in rows if r["subject_id"] == subject]
        for moment, stay_start, stay_end in slow_index(task, events):
            value = slow_label(task, events, moment, stay_start, stay_end)
            if value != "drop":
                labels[subject, moment] = value
    return labels


# -- random people and tasks -----------------------------------------------------------------------------------------------------


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
            if end is not None and rng.random() < 0.6:
                mine.append(row(subject, f"discharge/{rng.choice([8536, 1])}", end, visit=visit_id, day=day))
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
            outcome, horizon = Outcome(stay_over_days=2), None
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


def as_dict(labels: pl.DataFrame):
    return {(r["subject_id"], r["prediction_time"]): r["boolean_value"] for r in labels.to_dicts()}


BYSTANDER = [  # somebody who has everything, long ago, so that no task is refused for want of its concepts
    *(row(99, f"condition/{number}", datetime(2001, 1, 1), value=5.0, unit="u") for number in (1, 2, 3)),
    row(99, "Visit/9201", datetime(2001, 1, 1), end=datetime(2001, 1, 1, 5), visit=900),
    row(99, "Visit/9202", datetime(2001, 1, 1), end=datetime(2001, 1, 1), visit=901),
    row(99, "Visit/8870", datetime(2001, 1, 1), end=datetime(2001, 1, 1, 1), visit=902),
    row(99, "discharge/8536", datetime(2001, 1, 1, 5), visit=900),
    row(99, s.DEATH, datetime(2001, 1, 2)),
]


@settings(deadline=None, max_examples=120)
@given(people, tasks())
def test_labels_equal_brute_force(rows, task):
    found = label(table(rows + BYSTANDER), task).labels.filter(pl.col("subject_id") != 99)
    assert as_dict(found) == slow_labels(task, rows)
    s.check_columns(found.to_arrow(), s.LABEL_SCHEMA, where="labels")
    assert found["end_reason"].is_in(list(s.END_REASONS)).all()
    assert found.select((pl.col("observed") == (pl.col("end_reason") == "outcome")).all()).item()
    assert found.select((pl.col("boolean_value").is_null() == (pl.col("end_reason") == "censored")).all()).item()
    assert (found["time_to_event_days"] >= 0).all()


@settings(deadline=None, max_examples=25)
@given(people, tasks(), st.integers(1, 3))
def test_what_comes_after_the_window_changes_nothing(rows, task, code):
    """RULES 23: a row keeps its label when anything is appended after its window has closed (`last` alone looks ahead)."""
    if task.index.occurrence == "last" or task.in_stay:
        task = replace(task, index=replace(task.index, occurrence="each"))
    late = START + timedelta(days=400)
    alive = {r["subject_id"] for r in rows} - {r["subject_id"] for r in rows if r["code"] == s.DEATH}
    more = [row(subject, f"condition/{code}", late) for subject in alive]
    more += [row(subject, "Visit/9201", late, end=late + timedelta(days=3), visit=1000 + subject) for subject in alive]
    before, now = as_dict(label(table(rows + BYSTANDER), task).labels), as_dict(label(table(rows + more + BYSTANDER), task).labels)
    for key, value in before.items():
        # Longer observation turns what was censored into a negative; nothing else moves.
        assert now[key] == value or (value is None and now[key] is False)


def test_order_of_rows_does_not_matter():
    rows = [row(1, "condition/1", START), row(1, "condition/2", START + timedelta(days=3)), row(1, s.OBSERVATION_END, START + timedelta(days=90))]
    task = Task(
        name="t", description="", index=Index(concepts="a"), outcome=Outcome(concepts="b"), horizon_days=10, concept_sets=dict(list(SETS.items())[:2])
    )
    shuffled = table(rows).sample(fraction=1, shuffle=True, seed=1)
    assert label(table(rows), task).labels.equals(label(shuffled, task).labels)


AB = {name: SETS[name] for name in ("a", "b")}


def simple(**changes) -> Task:
    fixed = {"name": "t", "description": "", "index": Index(concepts="a"), "outcome": Outcome(concepts="b"), "horizon_days": 10, "concept_sets": AB}
    return Task(**(fixed | changes))


def one(rows, task):
    (found,) = label(table(rows), task).labels.to_dicts()
    return found


def test_death_before_the_outcome_is_a_negative_not_null():
    rows = [row(1, "condition/1", START), row(1, s.DEATH, START + timedelta(days=2)), *BYSTANDER]
    found = label(table(rows), simple()).labels.filter(pl.col("subject_id") == 1).to_dicts()[0]
    assert found["boolean_value"] is False
    assert found["end_reason"] == "death"
    assert found["time_to_event_days"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("policy", "grace", "value", "reason"),
    [
        ("observation_period", 0, None, "censored"),
        ("closed_world", 0, False, "horizon"),
        ("grace_days", 7, False, "horizon"),
        ("grace_days", 5, None, "censored"),
    ],
)
def test_silence_is_read_as_the_policy_says(policy, grace, value, reason):
    rows = [row(1, "condition/1", START), row(1, s.OBSERVATION_END, START + timedelta(days=4)), *BYSTANDER]
    found = label(table(rows), simple(censoring=policy, grace_days=grace)).labels.filter(pl.col("subject_id") == 1).to_dicts()[0]
    assert (found["boolean_value"], found["end_reason"]) == (value, reason)


def test_the_policy_can_be_overridden():
    rows = [row(1, "condition/1", START), *BYSTANDER]
    labels = label(table(rows), simple(), censoring="closed_world").labels.filter(pl.col("subject_id") == 1)
    assert labels["boolean_value"].to_list() == [False]


def test_date_only_event_on_the_index_day_is_neither_history_nor_outcome():
    noon = START + timedelta(hours=12)
    rows = [row(1, "condition/1", noon), row(1, "condition/2", START, day=True), row(1, s.OBSERVATION_END, START + timedelta(days=90))]
    assert one(rows, simple())["boolean_value"] is False
    assert label(table(rows), simple(first_onset=True)).labels.is_empty()  # it happened before, as far as anyone can say
    at_midnight = [row(1, "condition/1", START), *rows[1:]]
    assert one(at_midnight, simple())["boolean_value"] is True


def test_what_is_known_at_the_prediction_time_is_input():
    rows = [row(1, "condition/1", START), row(1, "condition/2", START), row(1, s.OBSERVATION_END, START + timedelta(days=90))]
    assert one(rows, simple())["boolean_value"] is False
    billed = [row(1, "condition/1", START, known=START + timedelta(days=3)), row(1, "condition/2", START + timedelta(days=1)), rows[2]]
    found = one(billed, simple())
    assert found["prediction_time"] == START + timedelta(days=3)
    assert found["boolean_value"] is False


def test_absent_concepts_yield_no_rows_and_a_reason():
    found = label(table([row(1, "condition/1", START), row(1, s.OBSERVATION_END, START + timedelta(days=90))]), simple())
    assert found.labels.is_empty()
    assert found.attrition[-1]["dropped_subjects"] == 1
    assert found.note == "the one code of 'b' (condition/2) is not in the data"
    dead = label(table([row(1, "condition/1", START)]), simple(outcome=Outcome(death=True), concept_sets={"a": SETS["a"]}))
    assert "MEDS_DEATH" in dead.note
    stays = label(table([row(1, "condition/1", START)]), simple(outcome=Outcome(visit=("inpatient",)), concept_sets={"a": SETS["a"]}))
    assert "no visit of class inpatient" in stays.note


def test_attrition_accounts_for_every_row():
    rows = [
        row(1, "condition/1", START),
        row(1, s.OBSERVATION_END, START + timedelta(days=90)),
        row(2, "condition/2", START),
        row(2, "condition/1", START + timedelta(days=1)),
        row(3, "condition/3", START),
        row(4, s.DEATH, START),
        row(4, "condition/1", START),
    ]
    found = label(table(rows), simple(first_onset=True))
    steps = {entry["step"]: entry for entry in found.attrition}
    assert steps["subjects in the data"]["subjects"] == 4
    assert steps["index: a"]["rows"] == 3
    assert steps["index: a"]["dropped_subjects"] == 1
    assert steps["alive at the prediction time"]["dropped_rows"] == 1
    assert steps["first onset: no b before"] | {"note": ""} == {
        "step": "first onset: no b before", "subjects": 1, "rows": 1, "dropped_subjects": 1, "dropped_rows": 1, "note": ""}  # fmt: skip
    assert found.counts == {"rows": 1, "subjects": 1, "positive": 0, "negative": 1, "null": 0}


STAYS = [
    row(1, "Visit/9201", START, end=START + timedelta(hours=20), visit=1),
    row(1, "Visit/9201", START + timedelta(days=9), end=START + timedelta(days=19), visit=2),
    row(1, "condition/2", START + timedelta(days=10), visit=2),
    row(1, "discharge/8536", START + timedelta(days=19), visit=2),
    row(2, "Visit/9201", START, end=START + timedelta(hours=3), visit=3),
    row(3, "Visit/9201", START, visit=4),
    row(4, "condition/1", START),
    row(4, "condition/1", START + timedelta(days=5)),
    row(5, "condition/2", START),
]


@pytest.mark.parametrize(
    ("index", "steps"),
    [
        (
            Index(visit=("inpatient",), at="start", hours_after=24),
            [("index: visit (inpatient)", 3, 4), ("still going on 24 hours after its start", 2, 2), ("one at a time", 2, 2)],
        ),
        (
            Index(visit=("inpatient",), at="end", discharge=(8536,), contains="b", occurrence="first"),
            [
                ("index: visit (inpatient)", 3, 4), ("with an end", 2, 3), ("discharged to 8536", 1, 1), ("contains: b", 1, 1),
                ("one at a time", 1, 1), ("the first of each subject", 1, 1),
            ],
        ),
        (Index(concepts="a", occurrence="last"), [("index: a", 1, 2), ("the last of each subject", 1, 1)]),
        (Index(concepts="b", also=("a",), occurrence="first"), [("index: b", 2, 2), ("also: a", 0, 0)]),
        (Index(days_after_first_event=30), [("index: 30 days after the first event", 5, 5)]),
    ],
)  # fmt: skip
def test_nobody_who_had_an_index_event_is_said_to_have_had_none(index: Index, steps: list[tuple[str, int, int]]) -> None:
    """Each thing that an index asks for is a step of its own: a stay that is over by the prediction time was an index event."""
    used = {name: SETS[name] for name in dict.fromkeys((index.concepts, *index.also, index.contains)) if name is not None}
    asked = Task(name="t", description="", index=index, outcome=Outcome(visit=("inpatient",)), horizon_days=30, concept_sets=used)
    found = label(table(STAYS), asked).attrition
    assert [(one["step"], one["subjects"], one["rows"]) for one in found[1 : 1 + len(steps)]] == steps
    assert found[1]["dropped_subjects"] == 5 - steps[0][1]


def test_class_of_an_ambiguous_visit_is_judged_by_what_is_known():
    """An emergency room stay of two days: at admission an emergency visit, a day later an inpatient stay."""
    rows = [
        row(1, "Visit/8870", START, end=START + timedelta(days=9), visit=1),
        row(1, "Visit/9201", START + timedelta(days=50), end=START + timedelta(days=51), visit=2),
    ]
    at_once = Task(name="t", description="", index=Index(visit=("inpatient",), at="start"), outcome=Outcome(stay_over_days=7))
    later = replace(at_once, index=replace(at_once.index, hours_after=24))
    assert label(table(rows), at_once).labels["prediction_time"].to_list() == [START + timedelta(days=50)]
    found = label(table(rows), later).labels
    assert found["prediction_time"].to_list() == [START + timedelta(days=1)]
    assert found["boolean_value"].to_list() == [True]
    assert found["time_to_event_days"].to_list() == [6.0]


def test_death_in_the_stay():
    admitted, discharged = START, START + timedelta(days=4, hours=10)
    stay = row(1, "Visit/9201", admitted, end=discharged, visit=1)
    task = Task(
        name="t", description="", index=Index(visit=("inpatient",), at="start", hours_after=48), outcome=Outcome(death=True), horizon_days="stay"
    )
    for death, day, value in [
        (discharged, False, True),
        (day_end(discharged), True, True),
        (discharged + timedelta(hours=1), False, True),
        (discharged + timedelta(hours=14), False, False),
    ]:
        assert one([stay, row(1, s.DEATH, death, day=day)], task)["boolean_value"] is value


def test_who_died_in_the_stay_is_not_discharged():
    """The stay ends at midnight, the death has a day only: as some hospitals write it."""
    stay = row(1, "Visit/9201", START, end=START + timedelta(days=2), visit=1)
    rows = [stay, row(1, s.DEATH, day_end(START + timedelta(days=2)), day=True), row(1, "discharge/8536", START + timedelta(days=2), visit=1)]
    anywhere = simple(index=Index(visit=("inpatient",), at="end"), outcome=Outcome(death=True), concept_sets={})
    assert label(table(rows), anywhere).labels.is_empty()
    home = simple(index=Index(visit=("inpatient",), at="end", discharge=(8536,)), outcome=Outcome(death=True), concept_sets={})
    assert one(rows, home)["boolean_value"] is True


def test_age_is_in_completed_years():
    task = simple(inclusion=(Criterion(age_at_least=18),), outcome=Outcome(death=True), concept_sets={"a": SETS["a"]})
    rows = [row(99, s.DEATH, START)]
    rows += [row(1, s.BIRTH, datetime(2002, 1, 1)), row(1, "condition/1", START)]
    rows += [row(2, s.BIRTH, datetime(2002, 1, 2)), row(2, "condition/1", START)]
    rows += [row(3, "condition/1", START)]
    assert label(table(rows), task).labels["subject_id"].to_list() == [1]


def test_a_diagnosis_known_only_after_discharge_does_not_make_an_index_stay():
    stay = row(1, "Visit/9201", START, end=START + timedelta(days=2), visit=1)
    task = simple(index=Index(visit=("inpatient",), at="end", contains="a"))
    for known, expected in [(START + timedelta(days=2), 1), (START + timedelta(days=3), 0)]:
        inside = row(1, "condition/1", START, visit=1, known=known)
        found = label(table([stay, inside, *BYSTANDER]), task).labels
        assert found.filter(pl.col("subject_id") == 1).height == expected


END = row(1, s.OBSERVATION_END, START + timedelta(days=90))
ABC = SETS


def counted(code, day, value, **more):
    return row(1, code, START + timedelta(days=day), value=value, **more)


@pytest.mark.parametrize(
    ("value", "sign", "unit", "expected"),
    [
        (9.1, None, "u", True), (9.0, None, "u", False), (9.0, ">", "u", True), (9.0, ">=", "u", False), (8.0, ">", "u", False),
        (9.5, "<", "u", False), (12.0, "<=", "u", False), (None, None, "u", False), (float("nan"), None, "u", False),
        (9.1, None, "v", False), (9.1, None, None, False), (9.1, "~", "u", False),
    ],
)  # fmt: skip
def test_a_value_counts_where_it_proves_enough(value, sign, unit, expected):
    rows = [row(1, "condition/1", START), counted("condition/2", 3, value, sign=sign, unit=unit), END, *BYSTANDER]
    found = label(table(rows), simple(outcome=Outcome(concepts="b", above=9, unit="u"))).labels.filter(pl.col("subject_id") == 1)
    assert found["boolean_value"].to_list() == [expected]


def test_bounds_are_compared_as_numbers_are_kept():
    """9.1 as a float32 is more than 9.1."""
    rows = [row(1, "condition/1", START), counted("condition/2", 3, 9.1), END]
    assert one(rows, simple(outcome=Outcome(concepts="b", above=9.1)))["boolean_value"] is False
    assert one(rows, simple(outcome=Outcome(concepts="b", at_least=9.1)))["boolean_value"] is True


def test_numbers_or_units_that_the_data_lack_are_a_reason():
    rows = [row(1, "condition/1", START), counted("condition/2", 3, 9.5, unit="u"), counted("condition/3", 3, None), END]
    assert label(table(rows), simple(outcome=Outcome(concepts="b", above=9, unit="v"))).note == "no number of 'b' in unit v is in the data"
    without = simple(outcome=Outcome(concepts="c", above=9), concept_sets={"a": SETS["a"], "c": SETS["c"]})
    assert label(table(rows), without).note == "no number of 'c' is in the data"
    either = simple(outcome=Outcome(any=(Outcome(concepts="b", above=9, unit="u"), without.outcome)), concept_sets=ABC)
    assert label(table(rows), either).labels["boolean_value"].to_list() == [True]
    both = simple(outcome=Outcome(all=either.outcome.any), concept_sets=ABC)
    assert label(table(rows), both).note == "no number of 'c' is in the data"
    none = simple(outcome=Outcome(any=(replace(without.outcome, above=1), Outcome(visit=("inpatient",)))), concept_sets=without.concept_sets)
    assert label(table(rows), none).note == "no number of 'c' is in the data; no visit of class inpatient is in the data"


def test_all_is_there_when_the_last_of_the_parts_is():
    rows = [row(1, "condition/1", START), *(row(1, f"condition/{code}", START + timedelta(days=day)) for code, day in ((3, 2), (2, 4), (3, 6))), END]
    both = simple(outcome=Outcome(all=(Outcome(concepts="b"), Outcome(concepts="c"))), concept_sets=ABC)
    assert one(rows, both)["time_to_event_days"] == pytest.approx(4)
    assert one(rows, replace(both, outcome=Outcome(any=both.outcome.all)))["time_to_event_days"] == pytest.approx(2)
    assert one(rows, replace(both, horizon_days=3))["boolean_value"] is False


@pytest.mark.parametrize(("other", "value", "reason", "days"), [(2, False, "competing", 2), (4, True, "outcome", 4), (5, True, "outcome", 4)])
def test_what_competes_ends_follow_up(other, value, reason, days):
    rows = [row(1, "condition/1", START), row(1, "condition/2", START + timedelta(days=4)), row(1, "condition/3", START + timedelta(days=other)), END]
    found = one(rows, simple(competing=(Outcome(concepts="c"),), concept_sets=ABC))
    assert (found["boolean_value"], found["end_reason"], found["time_to_event_days"]) == (value, reason, pytest.approx(days))


def test_what_competes_before_observation_ends_is_known():
    """A competing event leaves nothing open: whoever is lost after it is a negative. It may be absent from the data."""
    rows = [row(1, "condition/1", START), row(1, "condition/3", START + timedelta(days=2)), *BYSTANDER]
    asked = simple(competing=(Outcome(concepts="c"),), concept_sets=ABC)
    found = label(table(rows), asked).labels.filter(pl.col("subject_id") == 1)
    assert found.select("boolean_value", "end_reason").rows() == [(False, "competing")]
    absent = [row(1, "condition/1", START), row(1, "condition/2", START + timedelta(days=2)), END]
    assert one(absent, asked)["boolean_value"] is True
    died = [*rows, row(1, s.DEATH, START + timedelta(days=1))]
    assert label(table(died), asked).labels.filter(pl.col("subject_id") == 1)["end_reason"].to_list() == ["death"]


def test_first_onset_and_recurrence_share_the_people_among_them():
    rows = [row(1, "condition/2", START), row(1, "condition/1", START + timedelta(days=1)), END]
    rows += [row(2, "condition/1", START + timedelta(days=1)), row(2, s.OBSERVATION_END, START + timedelta(days=90))]
    first, again = label(table(rows), simple(first_onset=True)), label(table(rows), simple(recurrence=True))
    assert (first.labels["subject_id"].to_list(), again.labels["subject_id"].to_list()) == ([2], [1])
    assert again.attrition[-1]["step"] == "recurrence: b before"
    assert again.attrition[-1]["dropped_rows"] == 1


def test_an_index_by_value_says_how_many_were_measured():
    rows = [row(1, "condition/1", START + timedelta(days=day), value=value) for day, value in ((0, 4.0), (1, 6.0), (2, 7.0))]
    rows += [row(2, "condition/1", START, value=4.0), row(2, "condition/2", START), END]
    asked = simple(index=Index(concepts="a", above=5, occurrence="first"), inclusion=(Criterion(concepts="a", below=5),))
    found = label(table(rows), asked)
    steps = [(step["step"], step["subjects"], step["rows"]) for step in found.attrition[1:4]]
    assert steps == [("index: a", 2, 4), ("value: a above 5", 1, 2), ("the first of each subject", 1, 1)]
    assert found.attrition[-1]["step"] == "included: a below 5 before"
    assert found.labels["prediction_time"].to_list() == [START + timedelta(days=1)]

"""Labels against a slow, obvious labeler in plain Python; and what a label may not depend on."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import schema as s
from cehrxgpt.tasks import Criterion, DataFacts, Index, Outcome, Task, attach_stay, label, library, outcome_in_window
from cehrxgpt.tasks.definition import ConceptSet
from oracle_labels import slow_labels
from task_samples import BYSTANDER, SETS, START, day_end, people, row, simple, table, tasks


def as_dict(labels: pl.DataFrame):
    return {(r["subject_id"], r["prediction_time"]): r["boolean_value"] for r in labels.to_dicts()}


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


def one(rows, task):
    (found,) = label(table(rows), task).labels.to_dicts()
    return found


def test_a_loss_at_a_day_s_end_comes_before_an_outcome_of_the_next_day():
    """By a microsecond, which weights for censoring hang on: who is lost on the second day was not at risk on the third."""
    midnight = START.replace(hour=0, minute=0, second=0)
    rows = [row(subject, "condition/1", midnight, day=True) for subject in (1, 2)]
    rows += [row(1, "condition/3", midnight + timedelta(days=2), day=True), row(2, "condition/2", midnight + timedelta(days=3), day=True)]
    lost, found = label(table(rows), simple()).labels.sort("subject_id").to_dicts()
    assert (lost["end_reason"], found["end_reason"]) == ("censored", "outcome")
    assert 0 < found["time_to_event_days"] - lost["time_to_event_days"] < 2e-11


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


def test_codes_that_are_not_there_beside_others_that_are():
    """Of a set of one's own each absent code is told, with its descendants by the ontology; of the library's sets none."""
    events = table([row(1, "condition/1", START), row(1, "condition/22", START + timedelta(days=3)), row(1, s.OBSERVATION_END, START)])
    sets = {"a": ConceptSet(condition=(1, 77)), "b": ConceptSet(condition=(2, 88), codes=("condition/22",))}
    found = label(events, simple(concept_sets=sets))
    told = "1 of the 2 codes of 'a' are not in the data (condition/77); 2 of the 3 codes of 'b' are not in the data (condition/2, condition/88)"
    assert found.attrition[0]["note"] == told
    facts = DataFacts.of([events])
    ontology = pl.DataFrame({"code": ["condition/22"], "parent_codes": [["condition/2"]]})
    below = told.replace("2 of the 3", "1 of the 3").replace("condition/2, ", "")
    assert facts.partly_absent(sets, ontology) == below.split("; ")
    assert label(events, replace(simple(concept_sets=sets), name="t2dm_hf_1y")).attrition[0]["note"] == told  # by what it is, not by its name
    failing = library()["t2dm_hf_1y"].concept_sets["heart_failure"]
    some = table([row(1, "condition/1", START), row(1, failing.patterns[0], START + timedelta(days=3)), row(1, s.OBSERVATION_END, START)])
    assert label(some, simple(concept_sets={"a": SETS["a"], "b": failing})).attrition[0]["note"] == ""  # though the task is one's own
    assert "codes of 'b'" in label(some, simple(concept_sets={"a": SETS["a"], "b": replace(failing, codes=("own/1",))})).attrition[0]["note"]
    diabetes = table([row(1, "condition/201826", START), row(1, "condition/316139", START), row(1, s.OBSERVATION_END, START)])
    assert label(diabetes, "t2dm_hf_1y").attrition[0]["note"] == ""


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


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.dates(date(1960, 1, 1), date(2015, 1, 1)), st.dates(date(2016, 1, 1), date(2022, 12, 31))), min_size=1, max_size=40))
def test_age_is_in_completed_years_on_every_date(dates):
    task = simple(inclusion=(Criterion(age_at_least=18, age_at_most=45),), outcome=Outcome(death=True), concept_sets={"a": SETS["a"]})
    rows, expected = [row(99, s.DEATH, START)], []
    for subject, (birth, now) in enumerate(dates, start=100):
        rows += [row(subject, s.BIRTH, datetime(*birth.timetuple()[:3])), row(subject, "condition/1", datetime(*now.timetuple()[:3]))]
        age = now.year - birth.year - ((now.month, now.day) < (birth.month, birth.day))
        expected += [subject] if 18 <= age <= 45 else []
    assert label(table(rows), task).labels["subject_id"].to_list() == expected


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


@pytest.mark.parametrize(("count", "bound", "said"), [(100, 90, True), (99, 90, False), (100, 9, False)])
def test_many_people_without_a_value_in_the_range_are_a_reason_to_look_at_its_unit(count, bound, said):
    rows = [
        replaced | {"subject_id": who}
        for who in range(1, count + 1)
        for replaced in (row(1, "condition/1", START), counted("condition/2", 3, 9.1), END)
    ]
    told = label(table(rows), simple(outcome=Outcome(concepts="b", above=bound))).note
    assert told == (f"no row has the outcome (b above {bound}, of any unit): does the range mean the unit of the data?" if said else None)


def test_numbers_or_units_that_the_data_lack_are_a_reason():
    rows = [row(1, "condition/1", START), counted("condition/2", 3, 9.5, unit="u"), counted("condition/3", 3, None), END]
    assert (
        label(table(rows), simple(outcome=Outcome(concepts="b", above=9, unit="v"))).note
        == "no number of 'b' in unit v is in the data (units there: u)"
    )
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
    assert label(table(rows), asked).attrition[0]["note"] == ""
    notes = [step["note"] for step in label(table(absent), asked).attrition]
    assert notes == ["competing: the one code of 'c' (condition/3) is not in the data", *[""] * (len(notes) - 1)]
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


def _stay(subject, *inside, end=None):
    """Two days in hospital so far, and what came then."""
    return [
        row(subject, "condition/3", START - timedelta(days=40)),
        row(subject, "Visit/9201", START, end=end, visit=subject),
        *(row(subject, code, START + timedelta(hours=hours), visit=subject) for code, hours in inside),
    ]


@pytest.mark.parametrize("censoring", ["observation_period", "closed_world"])
def test_a_stay_without_an_end_ends_with_its_discharge_or_tells_nothing(censoring):
    """Where only what is seen could count there would be positives and no negatives, which no weight repairs."""
    later = [
        row(6, "Visit/9202", START + timedelta(days=9), end=START + timedelta(days=9), visit=60),
        row(6, "condition/2", START + timedelta(days=9)),
    ]
    rows = [
        *_stay(1, ("condition/2", 40)),
        *_stay(2, (s.DEATH, 60)),
        *_stay(3, ("discharge/8536", 60)),
        *_stay(4, ("condition/2", 70), ("discharge/8536", 60)),
        *_stay(5, ("condition/1", 40)),
        *_stay(6),
        *later,
        *_stay(7, ("condition/2", 40), end=START + timedelta(hours=60)),
        *BYSTANDER,
    ]
    index = Index(visit=("inpatient",), at="start", hours_after=24)

    def said(outcome, **more):
        sets = {"b": SETS["b"]} if outcome.concepts else {}
        labels = label(table(rows), simple(index=index, outcome=outcome, concept_sets=sets, censoring=censoring, **more)).labels
        return {subject: value for subject, value in labels.select("subject_id", "boolean_value").rows() if subject < 99}

    assert said(Outcome(concepts="b"), horizon_days="stay") == {1: None, 2: None, 3: False, 4: False, 5: None, 6: None, 7: True}
    assert said(Outcome(death=True), horizon_days="stay") == {1: None, 2: None, 3: False, 4: False, 5: None, 6: None, 7: False}
    assert said(Outcome(stay_over_days=2), horizon_days=None) == {1: None, 2: None, 3: True, 4: True, 5: None, 6: None, 7: True}


def test_a_visit_that_ends_with_its_discharge_is_asked_about_then():
    rows = [*_stay(1, ("discharge/8536", 60), ("condition/2", 100)), *BYSTANDER]
    task = simple(index=Index(visit=("inpatient",), at="end"), outcome=Outcome(concepts="b"), concept_sets={"b": SETS["b"]})
    labels = label(table(rows), task).labels.filter(pl.col("subject_id") == 1)
    assert labels.select("prediction_time", "boolean_value").rows() == [(START + timedelta(hours=60), True)]


def test_the_stay_that_asks_is_meant_and_no_older_one_that_was_never_closed():
    rows = [row(1, "Visit/9201", START - timedelta(days=100), visit=7), *_stay(1, end=START + timedelta(days=3)), *BYSTANDER]
    task = simple(
        index=Index(visit=("inpatient",), at="start", hours_after=24), outcome=Outcome(stay_over_days=2), horizon_days=None, concept_sets={}
    )
    at = pl.DataFrame({"subject_id": [1], "prediction_time": [START + timedelta(days=1)]}, schema_overrides={"prediction_time": pl.Datetime("us")})
    found = attach_stay(task, table(rows), at)
    assert found.select("stay_start", "stay_end").row(0) == (START, START + timedelta(days=3))


def test_another_visits_discharge_does_not_end_a_stay():
    later = [row(1, "Visit/9201", START + timedelta(days=90), end=START + timedelta(days=92), visit=8)]
    later += [row(1, "discharge/8536", START + timedelta(days=92), visit=8)]
    task = simple(index=Index(visit=("inpatient",), at="start", hours_after=24), horizon_days="stay", concept_sets={"b": SETS["b"]})
    at = pl.DataFrame({"subject_id": [1], "prediction_time": [START + timedelta(days=1)]}, schema_overrides={"prediction_time": pl.Datetime("us")})
    assert outcome_in_window(task, table([*_stay(1), *later]), at)["window_close"].to_list() == [None]


def test_what_the_record_has_after_death_is_no_outcome():
    rows = [row(1, "condition/1", START), row(1, s.DEATH, START + timedelta(days=2)), row(1, "condition/2", START + timedelta(days=4)), *BYSTANDER]
    labels = label(table(rows), simple()).labels.filter(pl.col("subject_id") == 1)
    assert labels.select("boolean_value", "end_reason", "time_to_event_days").rows() == [(False, "death", 2.0)]


def test_an_emergency_visit_that_its_discharge_ends_days_later_is_in_the_data():
    rows = [row(1, "Visit/8870", START, visit=1), row(1, "discharge/8536", START + timedelta(days=4), visit=1)]
    rows += [row(1, "condition/2", START + timedelta(days=9)), row(1, s.OBSERVATION_END, START + timedelta(days=90))]
    task = simple(index=Index(visit=("inpatient",), at="end"), concept_sets={"b": SETS["b"]})
    assert label(table(rows), task).labels["boolean_value"].to_list() == [True]

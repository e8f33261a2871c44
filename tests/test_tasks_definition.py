"""Tasks as files: the library reads, typos are told with their line, sets widen by the data's own vocabulary."""

from __future__ import annotations

from typing import get_args, get_type_hints

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cehrxgpt.errors import InputError, TaskError
from cehrxgpt.patterns import as_pattern, read_pattern
from cehrxgpt.tasks import Criterion, Index, Outcome, Task, label, library_tasks, load_task, parse_task, resolve, task_text
from cehrxgpt.tasks.codes import matching_codes
from cehrxgpt.tasks.elsewhere import Elsewhere
from cehrxgpt.tasks.labeler import question
from cehrxgpt.tasks.words import RANGES
from task_samples import START, row, table

METHOD_TASKS = {
    "hf_readmission_30d", "copd_readmission_30d", "hospitalization_1y", "afib_stroke_1y", "cad_cabg_1y", "t2dm_hf_1y",
    "discharge_home_death_1y", "in_hospital_mortality_48h", "long_icu_stay_7d", "long_stay_7d", "readmission_30d",
}  # fmt: skip

GOOD = """\
name: mine
description: one
concept_sets:
  a: {condition: [1]}
  b: {drug: [7], codes: ["X//*", MEDS_DEATH]}
index: {concepts: a, occurrence: first}
outcome: {concepts: b}
horizon_days: 30
"""


def test_the_library_reads():
    assert set(library_tasks()) >= METHOD_TASKS
    for name in library_tasks():
        task = load_task(name)
        assert task.name == name
        assert task.description


def test_the_library_keeps_the_published_windows():
    figures = {name: (load_task(name).history_days, load_task(name).gap_days, load_task(name).horizon_days) for name in library_tasks()}
    assert figures["hf_readmission_30d"] == (360, 0, 30)
    assert figures["copd_readmission_30d"] == (720, 0, 30)
    assert figures["hospitalization_1y"] == (540, 180, 360)
    assert figures["afib_stroke_1y"] == (720, 0, 360)
    assert figures["cad_cabg_1y"] == (0, 0, 365)
    assert figures["t2dm_hf_1y"] == (0, 0, 365)
    assert load_task("t2dm_hf_1y").first_onset
    assert load_task("in_hospital_mortality_48h").index.hours_after == 48


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("horizon_days", "horizon_day", 8, "did you mean 'horizon_days'"),
        ("occurrence: first", "occurrence: once", 6, "'each' | 'first' | 'last'"),
        ("concepts: b}", "concepts: c}", 7, "'c' is used but not defined"),
        ("outcome: {concepts: b}", "outcome: {concepts: b, death: true}", 7, "exactly one"),
        ("horizon_days: 30", "horizon_days: -1", 8, "horizon_days must be at least 0.001 and at most 100,000"),
        ("horizon_days: 30", "horizon_days: .inf", 8, "at most 100,000"),
        ("horizon_days: 30", "horizon_days: .nan", 8, "at most 100,000"),
        ("horizon_days: 30", "horizon_days: 0", 8, "at least 0.001"),
        ("horizon_days: 30", "horizon_days: 30\nhistory_days: 999999999999", 9, "history_days must be at least 0 and at most 100,000"),
        ("horizon_days: 30", "horizon_days: 30\ncensoring: grace_days\ngrace_days: 999999999999", 10, "at most 100,000"),
        ("horizon_days: 30", f"horizon_days: 1{'0' * 400}", 8, "a whole number of more than 64 bits"),
        ("horizon_days: 30", f"horizon_days: {'1' * 5000}", 8, "cannot be read as int"),
        ("horizon_days: 30", "horizon_days: 2020-13-45", 8, "cannot be read as timestamp"),
        ("horizon_days: 30", "horizon_days: 030", 8, "a leading zero or a colon"),
        ("horizon_days: 30", "horizon_days: 1:30", 8, "a leading zero or a colon"),
        ("horizon_days: 30", "horizon_days: 30\n<<: {gap_days: 2}", 9, "write them out"),
        ("horizon_days: 30", "horizon_days: 30\n[gap_days]: 2", 9, "expected a word for a key"),
        ("horizon_days: 30", "horizon_days: 30\x00", 8, "special characters"),
        ("{concepts: a, occurrence: first}", "{days_after_first_event: 999999999999}", 6, "at most 100,000"),
        ("{concepts: a, occurrence: first}", "{visit: [inpatient], at: start, hours_after: 99999999999}", 6, "at most 2,400,000"),
        ("{concepts: b}", f"{{{'any: [{' * 300}concepts: b{'}]' * 300}}}", 7, "nested more than 50 deep"),
        ("condition: [1]", f"condition: {'[' * 3000}", 4, "nested more than 50 deep"),
        ("horizon_days: 30", "horizon_days: soon", 8, "horizon_days"),
        ("drug: [7]", "drugs: [7]", 5, "did you mean 'drug'"),
        ("horizon_days: 30", "horizon_days: 30\nhorizon_days: 31", 9, "stands twice"),
        ("name: mine", "name: [mine", 2, "not valid YAML"),
        ("concepts: a, occ", "visit: [hotel], occ", 6, "valid classes"),
        ("horizon_days: 30", "horizon_days: 30\ncensoring: grace_days", 9, "belong together"),
        ("horizon_days: 30", "horizon_days: 30\ngrace_days: 3", 9, "belong together"),
        ("horizon_days: 30", "horizon_days: 30\nfirst_onset: yes\ngap_days: 2", 9, "gap_days: 0"),
        ("horizon_days: 30", "horizon_days: 30\nfirst_onset: yes\nrecurrence: yes", 10, "exclude each other"),
        ("horizon_days: 30", "horizon_days: stay", 6, "needs an index visit"),
        ("  a: {condition: [1]}", "  a: {condition: [1]}\n  d: {drug: [1]}", 5, "'d' is defined but not used"),
        ("name: mine", "name: my task", 1, "may hold only letters"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path, old, new, line, says):
    refused(tmp_path, GOOD.replace(old, new, 1), line, says)


NESTED = """\
name: mine
description: the word concepts stands in every line, and so does index
concept_sets:
  a:
    condition: [1]
    codes:
      - X//1
      - "X//2*"
  b: {drug: [7]}
index:
  concepts: a
  occurrence: first
inclusion:
  - {concepts: a, at_least: 5}
  - concepts: b
    within_days: 30
    count: 2
exclusion:
  - {age_at_most: 17}
outcome:
  any:
    - concepts: a
      above: 9
      unit: [8554, "%"]
    - all:
        - {concepts: b}
        - visit: [inpatient]
competing:
  - {concepts: b}
  - any: [{concepts: a, below: 3}, {concepts: b}]
horizon_days: 30
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('- "X//2*"', '- "X//*2"', 8, "only at the end"),
        ('- "X//2*"', "- 2", 8, "codes[1]: expected text"),
        ("condition: [1]", "condition: [one]", 5, "condition[0]: expected a whole number"),
        ("condition: [1]", "condition: 1", 5, "condition: expected a list, found 1; write [1]"),
        ("  concepts: a\n  occurrence", "  concept: a\n  occurrence", 11, "did you mean 'concepts'"),
        ("occurrence: first", "occurrence: first\n  also: [b, c]", 13, "'c' is used but not defined"),
        ("occurrence: first", "occurrence: first\n  hours_after: 3", 13, "hours_after belongs to an index visit"),
        ("within_days: 30", "within_days: 0", 16, "within_days must be at least 1"),
        ("count: 2", "count: two", 17, "count: expected a whole number"),
        ("within_days: 30", "within_days: 999999999999", 16, "at most 100,000"),
        ("age_at_most: 17", "age_at_most: 17, count: 0", 19, "count must be at least 1"),
        ("age_at_most: 17", "age_at_most: 999999999999", 19, "age_at_most must be at least 0"),
        ("age_at_most: 17", "age_at_most: 17, age_at_least: 18", 19, "nobody's age is at least 18 and at most 17"),
        ("      above: 9", "      above: .nan", 23, "above must be"),
        ("      above: 9", "      above: 1e300", 23, "above must be"),
        ("- concepts: b", "- concepts: c", 15, "'c' is used but not defined"),
        ("      above: 9", "      above: nine", 23, "above: expected a number"),
        ("      above: 9", "      above: 9\n      at_least: 9", 24, "bound the same side"),
        ("      above: 9", "      above: 9\n      at_most: 9", 24, "no number lies"),
        ("      above: 9\n", "", 23, "unit belongs to a bound"),
        ("        - {concepts: b}\n", "        - {concepts: d}\n", 26, "'d' is used but not defined"),
        ("        - {concepts: b}\n", "", 25, "at least two parts"),
        ("visit: [inpatient]", "stay_over_days: 3", 27, "no part of another outcome"),
        ("visit: [inpatient]", "visit: [inpatient, hotel]", 27, "unknown class of visit 'hotel'"),
        ("visit: [inpatient]", "visit: [inpatient]\n          at_most: 3", 28, "bounds the values of concepts"),
        ("any: [{concepts: a, below: 3}", "any: [{concepts: a, beneath: 3}", 30, "unknown key 'beneath'"),
        ("  - {concepts: b}\n  - any", "  - {death: true}\n  - any", 29, "death competes always"),
        ("horizon_days: 30", "horizon_days: 30\ncompetes: []", 32, "did you mean 'competing'"),
        ("outcome:\n", "outcome: nothing\noutcomes:\n", 21, "unknown key 'outcomes'"),
        ("  any:\n", "  some:\n", 21, "unknown key 'some'"),
    ],
)
def test_nested_mistakes_are_told_with_their_line(tmp_path, old, new, line, says):
    assert parse_task(NESTED, where="x").outcome.any[0].units == ("8554", "%")
    assert old in NESTED
    refused(tmp_path, NESTED.replace(old, new, 1), line, says)


def refused(tmp_path, text, line, says):
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(TaskError) as error:
        load_task(path)
    assert str(error.value).startswith(f"{path}: line {line}:"), error.value
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


@pytest.mark.parametrize("part", [Task, Index, Criterion, Outcome, Elsewhere])
def test_every_number_has_its_range(part):
    numbers = {name for name, kind in get_type_hints(part).items() if {int, float} & {kind, *get_args(kind)} and not name.endswith(("unit", "_id"))}
    assert numbers <= set(RANGES)


@pytest.mark.parametrize("days", [1e12, -1])
def test_numbers_that_no_task_file_says_are_bounded_too(days):
    with pytest.raises(ValueError, match="grace_days must be at least 0 and at most 100,000"):
        label(table([]), parse_task(GOOD, where="x"), censoring="grace_days", grace_days=days)
    with pytest.raises(ValueError, match="grace_days must be at least 0 and at most 100,000"):
        Elsewhere(censoring="grace_days", grace_days=days)


def test_what_is_wrong_with_the_whole_is_told_at_its_top():
    for text, says in [("index: {concepts: a}\n", "'name' is required"), ("- a list\n", "a mapping of keys"), ("", "'name' is required")]:
        with pytest.raises(TaskError, match=says):
            parse_task(text, where="x")


def test_the_library_asks_for_more_than_the_method_s_tasks():
    tasks = [load_task(name) for name in library_tasks()]
    assert len(tasks) >= len(METHOD_TASKS) + 10
    assert any(task.competing for task in tasks)
    assert any(task.recurrence for task in tasks)
    assert any(task.outcome.any and any(part.by_value for part in task.outcome.any) for task in tasks)
    assert len({task.description for task in tasks}) == len(tasks)


def test_outcomes_in_words():
    outcome = parse_task(NESTED, where="x").outcome
    assert outcome.describe() == "a above 9 (unit 8554 or %) or (b and a visit (inpatient))"


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(TaskError, match="no library task 'nothing'; a task of your own"):
        load_task("nothing")
    with pytest.raises(TaskError, match=r"no library task 'T2DM_HF_1Y'; did you mean 't2dm_hf_1y'"):
        load_task("T2DM_HF_1Y")
    with pytest.raises(TaskError, match=r"no library task 't2dm_hf'; did you mean 't2dm_hf_1y'\? A task of your own"):
        load_task("t2dm_hf")
    with pytest.raises(TaskError, match="no such file"):
        load_task(tmp_path / "none.yaml")
    with pytest.raises(TaskError, match="needs an index visit"):
        parse_task(GOOD.replace("horizon_days: 30", "horizon_days: stay"), where="x")


def test_patterns():
    task = parse_task(GOOD, where="x")
    codes = ["drug/7", "drug/77", "X//1", "X//", "Y//1", "MEDS_DEATH", "condition/7"]
    assert matching_codes(task.concept_sets["b"], codes) == {"drug/7", "X//1", "X//", "MEDS_DEATH"}


@given(st.text("a*\\", min_size=1, max_size=6))
def test_every_code_can_be_written_so_that_it_alone_is_meant(code):
    assert read_pattern(as_pattern(code)) == (code, False)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [(r"A\*B", {"A*B"}), (r"A\*", {"A*"}), (r"A\**", {"A*", "A*B"}), ("A*", {"A*", "A*B", "AB"}), (r"\*", {"*"}), (r"\**", {"*", "*A"})],
)
def test_a_star_of_the_code_itself(pattern, meant):
    text = GOOD.replace('["X//*", MEDS_DEATH]', f"['{pattern}']")
    assert matching_codes(parse_task(text, where="x").concept_sets["b"], ["A*", "A*B", "AB", "*", "*A"]) == meant


@pytest.mark.parametrize("pattern", ["", "*", "**", "A*B", r"A*\*", r"A\*B*C", "A**"])
def test_stars_that_say_nothing_are_refused(tmp_path, pattern):
    refused(tmp_path, GOOD.replace('["X//*", MEDS_DEATH]', f"['{pattern}']"), 5, r"a star of the code itself is written \*")


def test_descendants_with_a_star_are_themselves_alone():
    """As in MIMIC's 'LAB//228381//dynes*sec/cm5', or at the end, where it would be a pattern."""
    codes = pl.DataFrame({"code": ["LAB//dynes*sec", "LAB//K*"], "parent_codes": [["condition/1"], ["LAB//dynes*sec"]]})
    wide = resolve(parse_task(GOOD, where="x"), codes)
    assert matching_codes(wide.concept_sets["a"], ["LAB//dynes*sec", "LAB//K*", "LAB//K2"]) == {"LAB//dynes*sec", "LAB//K*"}
    assert resolve(wide, codes) == wide


def test_sets_are_widened_by_the_data_s_vocabulary_once():
    codes = pl.DataFrame(
        {
            "code": ["condition/10", "condition/11", "condition/12", "drug/8", "condition/13"],
            "parent_codes": [["condition/1"], ["condition/10", None], ["condition/99"], ["drug/7", "condition/1x"], None],
        }
    )
    task = parse_task(GOOD, where="x")
    wide = resolve(task, codes)
    assert set(wide.concept_sets["a"].patterns) == {"condition/1", "condition/10", "condition/11"}
    assert set(wide.concept_sets["b"].patterns) == {"drug/7", "drug/8", "X//*", "MEDS_DEATH"}
    assert resolve(wide, codes) == wide
    assert resolve(task, None) == task
    assert resolve(parse_task(GOOD.replace("{condition: [1]}", "{condition: [1], descendants: false}"), where="x"), codes).concept_sets[
        "a"
    ].patterns == ("condition/1",)


def test_labels_are_written_whole(tmp_path):
    rows = [row(1, "condition/1", START), row(1, "drug/7", START.replace(day=5))]
    labelled = label(table(rows), parse_task(GOOD, where="x"))
    labelled.write(tmp_path / "labels.parquet")
    assert pl.read_parquet(tmp_path / "labels.parquet").equals(labelled.labels)
    with pytest.raises(InputError, match="exists already"):
        labelled.write(tmp_path / "labels.parquet")


def test_a_file_with_a_library_s_name_asks_what_the_library_asks(tmp_path) -> None:
    """Labels carry the name alone, so another question under it would be forecast wrongly."""
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(task_text("readmission_30d"))
    other.write_text(task_text("readmission_30d").replace("horizon_days: 30", "horizon_days: 60"))
    assert load_task(same) == load_task("readmission_30d")
    with pytest.raises(TaskError, match="a name of its own"):
        load_task(other)


def test_a_stay_that_is_longer_by_the_time_that_is_asked_is_no_question():
    index = Index(visit=("inpatient",), at="start", hours_after=48)
    with pytest.raises(ValueError, match="stay_over_days must be longer than hours_after"):
        Task(name="t", description="", index=index, outcome=Outcome(stay_over_days=2))
    Task(name="t", description="", index=index, outcome=Outcome(stay_over_days=2.5))


def test_the_stay_that_closes_a_window_is_part_of_the_question():
    """Labels about intensive care are none about the hospital; who is asked is otherwise the labels' own."""

    def asked(visit: str, **changed: object) -> str:
        index = Index(visit=(visit,), at="start")
        return question(Task(**{"name": "t", "description": "", "index": index, "outcome": Outcome(death=True)} | changed))

    for stay in ({"horizon_days": "stay"}, {"outcome": Outcome(stay_over_days=7)}):
        assert asked("inpatient", **stay) != asked("intensive_care", **stay)
        assert asked("inpatient", **stay) == asked("inpatient", **stay, history_days=30)
    assert asked("inpatient", horizon_days=30) == asked("intensive_care", horizon_days=30)

"""Index and outcome from cohort tables and label files: the labels of a slow, obvious labeler, and those of the task that says the same."""

from __future__ import annotations

import gzip
from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random

import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt import stages
from cehrxgpt.errors import CehrxgptError, ConfigError, InputError, MismatchError, SchemaError, TaskError
from cehrxgpt.events import EventDataset, conform, sort_events
from cehrxgpt.tasks import label, load_task, resolve
from cehrxgpt.tasks.cohorts import is_cohort_outcome, read_cohort
from cehrxgpt.tasks.definition import Outcome
from cehrxgpt.tasks.elsewhere import Elsewhere, label_elsewhere
from cehrxgpt.tasks.labeler import LABEL_DTYPES
from cehrxgpt.tasks.meds_labels import read_labels, read_times
from cehrxgpt.tasks.outcome import concept_events, known_at

START = datetime(2015, 3, 1)
LAST = timedelta(microseconds=86_399_999_999)
COHORT = {"cohort_definition_id": pl.Int64, "subject_id": pl.Int64, "cohort_start_date": pl.Date, "cohort_end_date": pl.Date}


def cohort(rows: list[tuple[int, int, date]]) -> pl.DataFrame:
    return pl.DataFrame([(*row, row[2] + timedelta(days=30)) for row in rows], schema=COHORT, orient="row")


# -- a slow, obvious labeler -----------------------------------------------------------------------------------------------------


def random_records(random: Random) -> tuple[pl.DataFrame, list[tuple[int, date]], list[tuple[int, date]]]:
    """Events of people 1 to 12, and index and outcome cohorts of people 1 to 14, some dates twice, some outside observation."""
    rows, entries, ends = [], [], []
    for subject in range(1, 13):
        first, length = random.randrange(40), random.randrange(20, 160)
        marks = [("OBSERVATION//START", first), ("OBSERVATION//END", first + length), ("condition/9", first + random.randrange(length))]
        if random.random() < 0.3:
            marks.append((s.DEATH, first + random.randrange(length)))
            marks = [mark for mark in marks if mark[1] <= marks[-1][1]]
        for code, day in marks:
            time = START + timedelta(days=day)
            known = time + LAST
            rows.append({"subject_id": subject, "code": code, "time": known if code == s.DEATH else time, "available_time": known})
    for into, most in ((entries, 3), (ends, 4)):
        for subject in range(1, 15):
            into += [(subject, (START + timedelta(days=random.randrange(-10, 220))).date()) for _ in range(random.randrange(most))]
        into += random.choices(into, k=2)
    schema = {"subject_id": pl.Int64, "code": pl.String, "time": pl.Datetime("us"), "available_time": pl.Datetime("us")}
    return sort_events(conform(pl.DataFrame(rows, schema=schema))), entries, ends


def slow_labels(events, entries, ends, *, horizon, gap, history, first_onset, censoring, grace):
    """(subject, prediction time) -> (value, end reason, days to event), row by row."""
    found = {}
    for subject, day in sorted(set(entries)):
        mine = [event for event in events if event["subject_id"] == subject]
        if not mine:
            continue
        index = datetime.combine(day, datetime.min.time()) + LAST
        begin, until = min(event["time"] for event in mine), max(event["available_time"] for event in mine)
        death = min((event["time"] for event in mine if event["code"] == s.DEATH), default=None)
        grace_days = timedelta(days=grace)
        if index < begin or (death is not None and death <= index):
            continue
        if censoring != "closed_world" and until + grace_days < index:
            continue
        if history and begin > index - timedelta(days=history):
            continue
        outcomes = sorted(datetime.combine(when, datetime.min.time()) for who, when in set(ends) if who == subject)
        if censoring != "closed_world":
            outcomes = [outcome for outcome in outcomes if outcome <= until + grace_days]
        if first_onset and any(outcome <= index for outcome in outcomes):
            continue
        opens, close = index + timedelta(days=gap), index + timedelta(days=gap + horizon)
        hits = [outcome for outcome in outcomes if opens <= outcome <= close and (death is None or outcome <= death)]
        if hits:
            value, reason, end = True, "outcome", hits[0]
        elif death is not None and death <= close:
            value, reason, end = False, "death", death
        elif censoring == "closed_world" or until + grace_days >= close:
            value, reason, end = False, "horizon", close
        else:
            value, reason, end = None, "censored", max(until, index)
        found[subject, index] = (value, reason, round((end - index) / timedelta(days=1), 3))
    return found


TERMS = [
    {"horizon_days": 60.0},
    {"horizon_days": 45.0, "gap_days": 10.0},
    {"horizon_days": 60.0, "history_days": 20, "first_onset": True},
    {"horizon_days": 90.0, "censoring": "closed_world", "first_onset": True},
    {"horizon_days": 60.0, "censoring": "grace_days", "grace_days": 30},
]


@pytest.mark.parametrize("terms", TERMS)
def test_labels_are_those_of_a_slow_labeler(terms: dict, tmp_path: Path) -> None:
    seen = set()
    for seed in range(12):
        events, entries, ends = random_records(Random(seed))
        both = cohort([(3, *row) for row in entries] + [(7, *row) for row in ends])
        both.write_csv(tmp_path / "cohort.csv")
        asked = Elsewhere(cohort=tmp_path / "cohort.csv", cohort_id=3, outcome=tmp_path / "cohort.csv", outcome_id=7, **terms)
        labelled = label_elsewhere(events, None, asked)
        ours = {
            (row["subject_id"], row["prediction_time"]): (row["boolean_value"], row["end_reason"], round(row["time_to_event_days"], 3))
            for row in labelled.labels.iter_rows(named=True)
        }
        names = {"horizon": "horizon_days", "gap": "gap_days", "history": "history_days"}
        plain = {short: terms.get(name, 0) for short, name in names.items()} | {"first_onset": terms.get("first_onset", False)}
        plain |= {"censoring": terms.get("censoring", "observation_period"), "grace": terms.get("grace_days", 0)}
        theirs = slow_labels(list(events.iter_rows(named=True)), entries, ends, **plain)
        assert {key: value[:2] for key, value in ours.items()} == {key: value[:2] for key, value in theirs.items()}
        assert all(abs(ours[key][2] - theirs[key][2]) < 0.002 for key in ours)
        seen |= {row[1] for row in ours.values()}
        assert labelled.attrition[-1]["rows"] == labelled.labels.height
    assert {"outcome", "death", "horizon"} <= seen


# -- a library task as cohort tables ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("population")
    stages.simulate(folder / "cdm", {"patients": 400, "seed": 5, "truth_samples": 0})
    stages.ingest(folder / "cdm", folder / "events", {})
    return folder / "events"


def diabetes_and_failure(records: pl.DataFrame, codes: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`subject_id`, `cohort_start_date`: when diabetes and a drug for it are both known; every heart failure."""
    task = resolve(load_task("t2dm_hf_1y"), codes)
    both = (concept_events(task, Outcome(concepts=name), records) for name in ("type_2_diabetes", "diabetes_drug"))
    first = [events.group_by("subject_id").agg(known_at().min()) for events in both]
    joined = first[0].join(first[1], on="subject_id", suffix="_drug")
    index = joined.select("subject_id", pl.max_horizontal("available_time", "available_time_drug").alias("cohort_start_date"))
    return index, concept_events(task, task.outcome, records).select("subject_id", pl.col("time").alias("cohort_start_date"))


def same_labels(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return one.drop("task").equals(other.drop("task"))


def test_a_library_task_as_cohort_tables_has_the_same_labels(events: Path, tmp_path: Path) -> None:
    dataset = EventDataset(events)
    index, outcome = diabetes_and_failure(dataset.read(), dataset.codes)
    for number, (name, table) in enumerate((("index", index), ("outcome", outcome)), start=1):
        table.with_columns(pl.lit(number).alias("COHORT_DEFINITION_ID")).rename(str.upper).write_parquet(tmp_path / f"{name}.parquet")
    wanted = label(dataset, "t2dm_hf_1y")
    assert wanted.counts["positive"] > 10
    both = Elsewhere(cohort=tmp_path / "index.parquet", outcome=tmp_path / "outcome.parquet", horizon_days=365.0, first_onset=True)
    found = label_elsewhere(dataset, None, both)
    assert same_labels(found.labels, wanted.labels)
    assert found.task.name == "cohort_1_to_cohort_2_365d"
    assert is_cohort_outcome(found.task.name)
    by_index = label_elsewhere(dataset, "t2dm_hf_1y", Elsewhere(cohort=tmp_path / "index.parquet"))
    assert by_index.labels.equals(wanted.labels), "the task's own name: its outcome is in the events"
    by_outcome = label_elsewhere(dataset, "t2dm_hf_1y", Elsewhere(outcome=tmp_path / "outcome.parquet"))
    assert same_labels(by_outcome.labels, wanted.labels)
    assert by_outcome.task.name == "t2dm_hf_1y_to_cohort_2"


def test_dates_alone_are_labelled_as_records_with_dates_alone(events: Path, tmp_path: Path) -> None:
    dataset = EventDataset(events)
    clinical = pl.col("code").str.contains("^(condition|drug)/")
    day = pl.col("time").dt.truncate("1d")
    dated = dataset.read().with_columns(
        pl.when(clinical).then(day).otherwise("time").alias("time"),
        pl.when(clinical).then(day + pl.duration(microseconds=86_399_999_999)).otherwise("available_time").alias("available_time"),
    )
    index, outcome = (table.with_columns(pl.col("cohort_start_date").dt.date()) for table in diabetes_and_failure(dated, dataset.codes))
    index.with_columns(pl.lit(1).alias("cohort_definition_id")).write_csv(tmp_path / "index.csv")
    with gzip.open(tmp_path / "outcome.csv.gz", "wt") as file:
        file.write(outcome.with_columns(pl.lit(1).alias("cohort_definition_id")).write_csv())
    wanted = label(dated, resolve(load_task("t2dm_hf_1y"), dataset.codes)).labels
    both = Elsewhere(cohort=tmp_path / "index.csv", outcome=tmp_path / "outcome.csv.gz", horizon_days=365.0, first_onset=True)
    assert same_labels(label_elsewhere(dated, None, both).labels, wanted)


def test_prediction_times_of_a_label_file_are_an_index(events: Path, tmp_path: Path) -> None:
    dataset = EventDataset(events)
    wanted = label(dataset, "t2dm_hf_1y")
    wanted.labels.select("subject_id", "prediction_time", pl.lit(None, dtype=pl.Boolean).alias("boolean_value")).write_parquet(
        tmp_path / "meds.parquet"
    )
    found = label_elsewhere(dataset, "t2dm_hf_1y", Elsewhere(labels=tmp_path / "meds.parquet"))
    assert found.labels.equals(wanted.labels)
    with pytest.raises(TaskError, match="about the index stay itself"):
        label_elsewhere(dataset, "long_stay_7d", Elsewhere(labels=tmp_path / "meds.parquet"))


# -- what is counted, and what is refused ----------------------------------------------------------------------------------------


def test_every_entry_is_accounted_for() -> None:
    day = {"time_precision": "day"}
    marks = [(s.OBSERVATION_START, 0), ("condition/1", 5), (s.OBSERVATION_END, 100)]
    rows = [
        {"subject_id": subject, "code": code, "time": START + timedelta(days=at), "available_time": START + timedelta(days=at) + LAST} | day
        for subject in (1, 2)
        for code, at in marks
    ]
    records = sort_events(conform(pl.DataFrame(rows).with_columns(pl.col("time", "available_time").cast(pl.Datetime("us")))))
    at = lambda days: (START + timedelta(days=days)).date()  # noqa: E731
    index = [(3, 1, at(10)), (3, 1, at(10)), (3, 1, at(-4)), (3, 2, at(140)), (3, 9, at(10))]
    outcome = [(7, 1, at(20)), (7, 1, at(20)), (7, 2, at(150)), (7, 9, at(1))]
    labelled = _label(records, index, outcome)
    steps = {step["step"]: (step["subjects"], step["rows"], step["dropped_rows"]) for step in labelled.attrition}
    assert steps == {
        "subjects in the data": (2, None, 0),
        "entries of cohort_3": (3, 5, 0),
        "each once": (3, 4, 1),
        "subjects of the data": (2, 3, 1),
        "since the record begins": (2, 2, 1),
        "index: index_cohort_3": (2, 2, 0),
        "alive at the prediction time": (2, 2, 0),
        "under observation at the prediction time": (1, 1, 1),
    }
    note = "outcome cohort_7: 4 entries, without 1 that stand twice, 1 of subjects not in the data, 1 after observation ends"
    assert labelled.attrition[0]["note"] == note
    assert labelled.labels["boolean_value"].to_list() == [True]
    assert labelled.labels["prediction_time"].to_list() == [START + timedelta(days=10) + LAST]


def _label(records, index, outcome):
    from cehrxgpt.tasks.cohorts import cohort_task
    from cehrxgpt.tasks.entries import Entries, label_entries

    def entries(name, rows):
        times = pl.DataFrame([row[1:] for row in rows], schema={"subject_id": pl.Int64, "time": pl.Date}, orient="row")
        time = pl.col("time").cast(pl.Datetime("us"))
        day = pl.lit("day").alias("time_precision")
        return Entries.of(name, "a table", times.with_columns(time, (time + pl.lit(LAST)).alias("available_time"), day))

    both = entries("cohort_3", index), entries("cohort_7", outcome)
    return label_entries(records, cohort_task(*both, horizon_days=30), index=both[0], outcome=both[1])


GOOD = "cohort_definition_id,subject_id,cohort_start_date\n"
BAD_TABLES = {
    "no such file": (None, InputError, "no such file"),
    "an empty file": ("", InputError, "empty file"),
    "no rows": (GOOD, InputError, "without rows"),
    "a missing column": ("cohort_definition_id,person_id,cohort_start_date\n1,1,2020-01-01\n", SchemaError, "'subject_id' is missing"),
    "a column twice": ("SUBJECT_ID," + GOOD + "1,1,1,2020-01-01\n", SchemaError, "stands twice"),
    "several definitions": (GOOD + "1,1,2020-01-01\n2,1,2020-01-01\n", InputError, "2 cohort definitions (1, 2); choose one with --cohort-id"),
    "no date": (GOOD + "1,1,2020-01-01\n1,2,soon\n", SchemaError, "1 of 2 values are no date such as 2020-01-31 (the first in row 2)"),
    "no header": ("1,4711,soon,A17\n1,4712,2020-01-01,A17\n", SchemaError, "(4 columns there, none of these: is the header line missing?)"),
    "the year 0": (GOOD + "1,1,0000-01-31\n", SchemaError, "1 of 1 values are no date such as 2020-01-31"),
    "a date left out": (GOOD + "1,1,\n", SchemaError, "no date"),
    "no number": (GOOD + "1,A17,2020-01-01\n", SchemaError, "'subject_id': 1 of 1 values are no whole number"),
    "ragged rows": (GOOD + "1,1,2020-01-01,5,6,7\n", InputError, "not readable as csv"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_cohort_table_is_one_clear_line(name: str, tmp_path: Path) -> None:
    text, kind, why = BAD_TABLES[name]
    path = tmp_path / "cohort.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind) as told:
        read_cohort(path)
    assert why in str(told.value)
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)
    assert "soon" not in str(told.value)
    assert "A17" not in str(told.value)
    assert "4711" not in str(told.value)


def test_cohort_tables_in_many_guises(tmp_path: Path) -> None:
    when = datetime(2020, 5, 4)
    (tmp_path / "a.csv").write_text(
        "Cohort_Definition_Id, Subject_Id ,COHORT_START_DATE\n 4,17, 2020-05-04\n4,18,2020-05-04 13:30:00\n4,19,20200504\n"
    )
    found = read_cohort(tmp_path / "a.csv", 4)
    assert found.times["time"].to_list() == [when, when.replace(hour=13, minute=30), when]
    assert found.times["available_time"].to_list() == [when + LAST, when.replace(hour=13, minute=30), when + LAST]
    with pytest.raises(InputError, match="no cohort definition 5; it has 4"):
        read_cohort(tmp_path / "a.csv", 5)
    table = pl.DataFrame({"cohort_definition_id": [4.0], "subject_id": [17.0], "cohort_start_date": [when]})
    table.with_columns(pl.col("cohort_start_date").cast(pl.Datetime("ns"))).write_parquet(tmp_path / "b.parquet")
    assert read_cohort(tmp_path / "b.parquet").times.row(0)[:2] == (17, when)
    table.with_columns(pl.col("cohort_start_date").dt.replace_time_zone("UTC")).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(SchemaError, match="without a zone"):
        read_cohort(tmp_path / "c.parquet")
    table.with_columns(pl.col("subject_id").cast(pl.Decimal(38, 0))).write_parquet(tmp_path / "decimal.parquet")
    assert read_cohort(tmp_path / "decimal.parquet").times.row(0)[:2] == (17, when)
    (tmp_path / "blank.csv").write_text("cohort_definition_id,subject_id,cohort_start_date\n4,17,2020-05-04\n\n\n")
    assert read_cohort(tmp_path / "blank.csv").times.height == 1
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="not readable as parquet"):
        read_cohort(tmp_path / "d.parquet")
    with pytest.raises(InputError, match="no cohort table by its name"):
        (tmp_path / "e.xlsx").write_bytes(b"")
        read_cohort(tmp_path / "e.xlsx")


def test_a_label_file_tells_no_names_of_columns_and_no_year_0(tmp_path: Path) -> None:
    when = pl.Series("prediction_time", [-62_167_219_200_000_000, 0]).cast(pl.Datetime("us"))
    labels = pl.DataFrame({"subject_id": [1, 2], "boolean_value": [True, False]}).with_columns(when)
    labels.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match="1 of 2 times lie outside the years 1 to 9999"):
        read_labels(tmp_path / "a.parquet")
    for days in (-719_163, 2_932_897, 2_000_000_000):  # the last of year 0, the first of year 10,000, and beyond all clocks
        strange = pl.Series("prediction_time", [days, 2_932_896], dtype=pl.Int32).cast(pl.Date)
        labels.with_columns(strange).write_parquet(tmp_path / "a.parquet")
        with pytest.raises(SchemaError, match="1 of 2 times lie outside the years 1 to 9999"):
            read_labels(tmp_path / "a.parquet")
    huge = labels.with_columns(pl.Series("subject_id", [2**63, 1], dtype=pl.UInt64), pl.lit(datetime(2020, 1, 1)).alias("prediction_time"))
    huge.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match="'subject_id': 1 of 2 numbers have more than 64 bits"):
        read_labels(tmp_path / "a.parquet")
    for missing, kind in (("subject_id", "whole numbers"), ("boolean_value", "yes and no")):
        labels.tail(1).rename({missing: "4711"}).write_parquet(tmp_path / "b.parquet")
        with pytest.raises(SchemaError, match=rf"'{missing}' is missing; expected {kind} \(3 columns there\)"):
            read_labels(tmp_path / "b.parquet")


def test_strangers_are_refused(events: Path, tmp_path: Path) -> None:
    cohort([(1, 999_999, date(2015, 1, 1))]).write_csv(tmp_path / "cohort.csv")
    with pytest.raises(MismatchError, match="none of its 1 subjects is in the data"):
        label_elsewhere(EventDataset(events), "t2dm_hf_1y", Elsewhere(cohort=tmp_path / "cohort.csv"))


@pytest.mark.parametrize(
    ("task", "settings", "why"),
    [
        (None, {}, "nothing says when to ask"),
        (None, {"outcome": Path("x.csv")}, "nothing says when to ask"),
        (None, {"cohort": Path("x.csv")}, "give --outcome TABLE"),
        (None, {"cohort": Path("x.csv"), "outcome": Path("x.csv")}, "give --horizon-days N"),
        ("t2dm_hf_1y", {"cohort": Path("x.csv"), "horizon_days": 30.0}, "--horizon-days and --task both say"),
        ("t2dm_hf_1y", {"first_onset": True}, "--first-onset and --task both say"),
    ],
)
def test_too_little_or_too_much_is_said(task: str | None, settings: dict, why: str, events: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        label_elsewhere(EventDataset(events), task, Elsewhere(**settings))


def test_settings_that_do_not_go_together(events: Path, tmp_path: Path) -> None:
    for settings, why in [
        ({"cohort": "a.csv", "labels": "b.parquet"}, "give one"),
        ({"cohort_id": 3}, "give --cohort TABLE"),
        ({"outcome_id": 3}, "give --outcome TABLE"),
        ({"censoring": "grace_days"}, "belong together"),
        ({"censoring": "never"}, "closed_world"),
    ]:
        with pytest.raises(CehrxgptError, match=why):
            stages.label(events, "t2dm_hf_1y", tmp_path / "labels.parquet", settings)


# -- MEDS label files ------------------------------------------------------------------------------------------------------------


def meds(**columns) -> pl.DataFrame:
    base = {"subject_id": [2, 1, 1], "prediction_time": [START, START, START + timedelta(days=1)], "boolean_value": [True, False, None]}
    return pl.DataFrame(base | columns)


def test_a_meds_label_file_becomes_a_label_table(tmp_path: Path) -> None:
    empty = {"integer_value": pl.Series([None] * 3, dtype=pl.Int64), "categorical_value": pl.Series([None] * 3, dtype=pl.String)}
    meds(**empty).write_parquet(tmp_path / "stroke.parquet")
    found = read_labels(tmp_path / "stroke.parquet")
    assert dict(found.schema) == LABEL_DTYPES
    assert found["subject_id"].to_list() == [1, 1, 2]
    assert found["boolean_value"].to_list() == [False, None, True]
    assert found["end_reason"].to_list() == ["horizon", "censored", "outcome"]
    assert found["time_to_event_days"].null_count() == 3
    assert set(found["task"]) == {"stroke"}
    assert set(read_labels(tmp_path / "stroke.parquet", unnamed="t2dm_hf_1y")["task"]) == {"t2dm_hf_1y"}
    named = meds(task=["a", "b", "b"])
    (tmp_path / "labels" / "train").mkdir(parents=True)
    named.head(1).with_columns(pl.col("prediction_time").cast(pl.Datetime("ns"))).write_parquet(tmp_path / "labels" / "train" / "0.parquet")
    named.tail(2).with_columns(pl.col("prediction_time").cast(pl.Datetime("ns"))).write_parquet(tmp_path / "labels" / "train" / "1.parquet")
    assert read_labels(tmp_path / "labels", unnamed="c")["task"].to_list() == ["b", "b", "a"]
    assert read_times(tmp_path / "labels").times.height == 3


OURS = {
    "time_to_event_days": pl.Series([3, 4, 5], dtype=pl.Float32),
    "observed": [True, False, False],
    "end_reason": ["outcome", "death", "censored"],
}


def test_a_label_table_without_a_task_keeps_its_times(tmp_path: Path) -> None:
    meds(**OURS).write_parquet(tmp_path / "stroke.parquet")
    found = read_labels(tmp_path / "stroke.parquet")
    assert set(found["task"]) == {"stroke"}
    assert found["time_to_event_days"].to_list() == [3, 4, 5]
    assert found["end_reason"].to_list() == OURS["end_reason"]
    assert set(read_labels(tmp_path / "stroke.parquet", unnamed="t2dm_hf_1y")["task"]) == {"t2dm_hf_1y"}


BAD_LABELS = {
    "numbers": (meds(boolean_value=[None] * 3, integer_value=[1, 2, 3]), InputError, "labels of integer_value; only yes and no"),
    "categories": (meds(categorical_value=["a", "b", "c"]).drop("boolean_value"), InputError, "labels of categorical_value"),
    "no values": (meds().drop("boolean_value"), SchemaError, "'boolean_value' is missing"),
    "zeros and ones": (meds(boolean_value=[0, 1, 1]), SchemaError, "expected true and false"),
    "no times": (meds().drop("prediction_time"), SchemaError, "'prediction_time' is missing"),
    "a time left out": (meds(prediction_time=[START, None, START]), SchemaError, "1 nulls"),
    "times as text": (meds(prediction_time=["a", "b", "c"]), SchemaError, "expected times without a zone"),
    "subjects as text": (meds(subject_id=["a", "b", "c"]), SchemaError, "expected whole numbers"),
    "no label table": (pl.DataFrame({"code": ["A"]}), SchemaError, "give labels made by: cehrxgpt label"),
    "half a label table": (meds(**OURS).drop("observed"), SchemaError, "'observed' is missing.*give labels made by: cehrxgpt label"),
    "times without reasons": (meds(task=["a"] * 3, **OURS).drop("end_reason"), SchemaError, "'end_reason' is missing"),
    "a row twice": (meds(prediction_time=[START] * 3), InputError, "2 rows share"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_label_files_are_one_clear_line(name: str, tmp_path: Path) -> None:
    frame, kind, why = BAD_LABELS[name]
    frame.write_parquet(tmp_path / "labels.parquet")
    with pytest.raises(kind, match=why):
        read_labels(tmp_path / "labels.parquet")


def test_label_folders_without_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Parquet file in the folder"):
        read_labels(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "nowhere.parquet")
    (tmp_path / "labels.csv").write_text("subject_id,prediction_time\n")
    with pytest.raises(InputError, match=r"not a readable Parquet file \(.csv is another format\)"):
        read_labels(tmp_path / "labels.csv")
    (tmp_path / "0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_labels(tmp_path)


# -- file to file ----------------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_meds_labels_go_where_labels_go(events: Path, tmp_path: Path) -> None:
    stages.tokenize(events, tmp_path / "timeline", {})
    stages.pretrain(tmp_path / "timeline", tmp_path / "model", "tiny", overrides={"steps": 2})
    figures = stages.label(events, "t2dm_hf_1y", tmp_path / "ours.parquet")
    (tmp_path / "ours.parquet").unlink()  # its attrition is no reason not to label again
    assert stages.label(events, "t2dm_hf_1y", tmp_path / "ours.parquet") == figures
    ours = pl.read_parquet(tmp_path / "ours.parquet")
    (tmp_path / "meds" / "held_out").mkdir(parents=True)
    ours.select("subject_id", "prediction_time", "boolean_value").write_parquet(tmp_path / "meds" / "held_out" / "0.parquet")
    labels, model, settings = tmp_path / "meds", tmp_path / "model", {"samples": 2, "max_new_tokens": 8}
    assert stages.embed(model, events, [labels], tmp_path / "embeddings.parquet", {})["rows"] == figures["rows"]
    assert stages.probe(tmp_path / "embeddings.parquet", labels, events, tmp_path / "probe", {})["auroc"]
    stages.forecast(model, events, [labels], tmp_path / "risk.parquet", settings, tasks=["t2dm_hf_1y"], split="held_out", max_rows=4)
    risk = pl.read_parquet(tmp_path / "risk.parquet")
    assert set(risk["task"]) == {"t2dm_hf_1y"}
    by_meds = stages.evaluate_predictions(tmp_path / "risk.parquet", [labels], None)["metrics"]
    assert by_meds["monte_carlo rows"] > 0
    # An outcome that is entering a cohort: judged against, not looked for.
    outcome = ours.filter("boolean_value").with_columns(pl.col("prediction_time") + pl.duration(days=pl.col("time_to_event_days").cast(pl.Float64)))
    table = outcome.select(pl.lit(7).alias("cohort_definition_id"), "subject_id", pl.col("prediction_time").alias("cohort_start_date"))
    table.write_parquet(tmp_path / "cohort.parquet")
    stages.label(events, "t2dm_hf_1y", tmp_path / "hidden.parquet", {"outcome": tmp_path / "cohort.parquet"})
    with pytest.raises(InputError, match="no simulated future holds"):
        stages.forecast(model, events, [tmp_path / "hidden.parquet"], tmp_path / "none.parquet", settings)
    assert not (tmp_path / "none.parquet").exists()
    with pytest.raises(MismatchError, match="the labels are of t2dm_hf_1y_to_cohort_7"):
        stages.evaluate_predictions(tmp_path / "risk.parquet", [tmp_path / "hidden.parquet"], None)
    judged = stages.evaluate_predictions(tmp_path / "risk.parquet", [tmp_path / "hidden.parquet"], None, tasks=["t2dm_hf_1y"])["metrics"]
    assert judged["monte_carlo rows"] == by_meds["monte_carlo rows"]

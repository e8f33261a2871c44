"""The full population: declared soundly, written soundly, the same lives in either hospital, and rates as declared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import cehrxgpt as cx
from cehrxgpt import cli
from cehrxgpt.events import EventDataset
from cehrxgpt.report.quality.facts import gather
from cehrxgpt.report.run import RunFolder
from cehrxgpt.simulate import SimulateConfig, add_population, populations, simulate, true_risk, true_tasks
from cehrxgpt.simulate.cdm import COLUMNS, frame
from cehrxgpt.simulate.draws import make_keys
from cehrxgpt.simulate.lives import Lives, live
from cehrxgpt.simulate.populations.full import ENTRIES, FULL, MEDICINES, build
from cehrxgpt.simulate.populations.full.coding import NONE, coded
from cehrxgpt.simulate.populations.full.entry import chronic
from cehrxgpt.simulate.populations.full.hospitals import HOSPITALS
from cehrxgpt.simulate.populations.full.panels import PANELS, VITALS
from cehrxgpt.simulate.populations.full.records import write
from cehrxgpt.simulate.populations.full.words import CLASSES, names
from cehrxgpt.simulate.process import CAP_DAYS, Hazards, Process
from cehrxgpt.simulate.state import AT_INPATIENT, DAY, NEVER, OUTSIDE, YEAR, State, from_columns, to_columns
from cehrxgpt.simulate.tables import Tables
from cehrxgpt.timeline import Timeline, decode_histories
from cehrxgpt.timeline.quantise import quantise
from test_bad_input import invoke
from test_synthesis_roundtrip import back
from test_timeline_roundtrip import canonical

PATIENTS = 450
ENTRY = {entry.name: entry for entry in ENTRIES}


@pytest.fixture(scope="module")
def lives() -> Lives:
    return next(live(FULL, PATIENTS, 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for hospital in ("a", "b"):
        made[hospital] = tmp_path_factory.mktemp("full") / hospital
        simulate(made[hospital], SimulateConfig(population="full", hospital=hospital, patients=PATIENTS, seed=3, truth_samples=0))
    return made


def read(folder: Path, table: str) -> pl.DataFrame:
    return pl.read_parquet(folder / f"{table}.parquet")


# -- declarations -------------------------------------------------------------------------------------------------------------------------
def test_there_is_enough_of_everything(folders: dict[str, Path]) -> None:
    used = set()
    for table, column in (
        ("condition_occurrence", "condition"), ("drug_exposure", "drug"), ("procedure_occurrence", "procedure"), ("measurement", "measurement"),
        ("device_exposure", "device"), ("visit_occurrence", "visit"), ("observation", "observation"),
    ):  # fmt: skip
        for folder in folders.values():
            used |= set(read(folder, table)[f"{column}_concept_id"])
    assert len(used) >= 300
    assert used >= {9201, 9202, 9203, 262, 5083, 8883, 581385, 581476, 581477}


def test_every_concept_has_a_name_and_a_domain(folders: dict[str, Path]) -> None:
    known = names(ENTRIES, MEDICINES)
    assert all(name and domain and vocabulary for name, domain, vocabulary in known.values())
    for folder in folders.values():
        concepts = set(read(folder, "concept")["concept_id"])
        assert concepts == set(known)
        for path in folder.glob("*.parquet"):
            frame = pl.read_parquet(path)
            for column in (name for name in frame.columns if name.endswith("concept_id")):
                assert set(frame[column].drop_nulls()) <= concepts | {756265}, (path.stem, column)
        ancestors = read(folder, "concept_ancestor")
        assert ancestors.select("ancestor_concept_id", "descendant_concept_id").is_duplicated().sum() == 0
        finer = ancestors.filter((pl.col("ancestor_concept_id") == 201826) & (pl.col("min_levels_of_separation") == 1))["descendant_concept_id"]
        assert set(finer) == set(ENTRY["diabetes"].codes) - {201826}
        assert set(CLASSES) <= set(ancestors["ancestor_concept_id"])
        climbs = set(ancestors.filter(pl.col("min_levels_of_separation") > 0).select("ancestor_concept_id", "descendant_concept_id").iter_rows())
        assert not climbs & {(below, above) for above, below in climbs}
        # What is worse, a stage or a product is under what it is of, whichever of them an entry writes more often.
        assert {(255573, 257004), (46271022, 443597), (46271022, 443612), (46271022, 193782), (4283893, 4294548)} <= climbs
        assert not {(193782, 443612), (1502905, 1596977)} & climbs


def test_entries_name_panels_and_events_that_exist() -> None:
    for entry in ENTRIES:
        assert set(entry.tests) | set(entry.follows) <= set(PANELS), entry.name
        assert set(entry.ruled_out) <= set(FULL.names), entry.name


def test_a_new_disease_is_one_entry() -> None:
    new = chronic(
        "psoriasis",
        "Psoriasis",
        {140168: "Psoriasis"},
        {"all": {18: 0.002, 60: 0.003}},
        brought={18: 0.02},
        raises={"depression": 0.4},
        shifts={"hba1c": 0.1},
    )
    wider = build((*ENTRIES, new))
    assert "psoriasis" in wider.marker
    assert wider.hazards[wider.index["depression"]].terms["psoriasis"] == 0.4
    assert 140168 in names((*ENTRIES, new), MEDICINES)
    assert next(live(wider, 60, 1)).states.has("psoriasis").any()
    with pytest.raises(ValueError, match="which is no entry"):
        build((*ENTRIES, dataclasses.replace(new, raises={"moonstroke": 1.0})))
    with pytest.raises(ValueError, match="no feature 'moon'"):
        build((*ENTRIES, dataclasses.replace(new, terms={"moon": 1.0})))


def test_a_population_of_ones_own_is_written_with_its_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's entries and one more: tables, names, states and true risks, also asked for later; the package's own stay as they are."""
    new = chronic("psoriasis", "Psoriasis", {140168: "Psoriasis"}, {"all": {18: 0.002}}, brought={18: 0.3}, raises={"death": 3.0})
    monkeypatch.setattr(populations, "_ADDED", {})
    with pytest.raises(ValueError, match="'full' is a population of the package"):
        add_population(build((*ENTRIES, new)))
    with pytest.raises(ValueError, match="population must be one of core, full"):
        SimulateConfig(population="with_psoriasis")
    wider = add_population(build((*ENTRIES, new), name="with_psoriasis"))
    cdm = tmp_path / "cdm"
    made = simulate(cdm, SimulateConfig(population="with_psoriasis", hospital="b", patients=120, truth_samples=20, truth_rows=10))
    assert made.prevalence["psoriasis"] > 0.2
    coded = read(cdm, "condition_occurrence").filter(condition_concept_id=140168)["person_id"].unique()
    states = pl.read_parquet(cdm / "truth" / "states.parquet")
    assert set(coded) <= set(states.filter(pl.col("last_psoriasis").is_not_null())["subject_id"])
    assert coded.len() > 10
    assert read(cdm, "concept").filter(concept_id=140168)["concept_name"].to_list() == ["Psoriasis"]
    assert set(made.truth) == set(true_tasks(cdm)) == set(wider.tasks)
    task = "emergency_visit_1y"
    truth = pl.read_parquet(cdm / "truth" / f"{task}.parquet")
    assert true_risk(cdm, truth, task, samples=20).equals(truth)
    assert json.loads((cdm / "simulate.json").read_text())["config"]["population"] == "with_psoriasis"
    assert "psoriasis" not in FULL.names


# -- the process ---------------------------------------------------------------------------------------------------------------------------
def test_the_bound_holds_through_seasons_and_birthdays(lives: Lives) -> None:
    hazards, rng = Hazards(FULL), np.random.default_rng(0)
    for _ in range(12):
        state = lives.states.take(rng.integers(0, len(lives.states), 200))
        bound = hazards.rates(state, bound=True).sum(axis=0, dtype=np.float64) * hazards.slack
        for days in rng.uniform(0, CAP_DAYS, 4):
            later = state.take(np.arange(len(state)))
            later.clock += days * DAY
            assert (hazards.rates(later).sum(axis=0, dtype=np.float64) <= bound).all()


def healthy(lives: Lives, n: int, age: float, *, year: float = 2012.0) -> State:
    """`n` copies of a person without history, at 1 January or so of a year."""
    state = lives.states.take(np.zeros(n, dtype=np.int64))
    state.row, state.key, state.step = np.arange(n), make_keys(7, np.arange(n)), np.zeros(n, dtype=np.uint64)
    state.clock = np.full(n, np.ceil((year - 1970) * YEAR))
    state.birth = state.clock - age * YEAR
    state.last[:], state.treated[:], state.discharge_at[:], state.due[:] = NEVER, False, OUTSIDE, OUTSIDE
    state.frailty[:], state.race[:], state.male[:], state.hospice[:] = 0.0, 0, False, False
    state.lab[:] = np.array([level.centre for level in FULL.levels])[:, None]
    state.next_visit[:] = state.clock + 1e6 * DAY
    return state


@pytest.mark.parametrize("name", ["hypertension", "diabetes", "influenza", "osteoarthritis"])
def test_declared_rates_by_age_and_season_come_back(lives: Lives, name: str) -> None:
    """All else made impossible: the events of three years against the integral of what is declared."""
    quiet = [dataclasses.replace(h, by_age={}, per_year=0.0) if h.name != name else dataclasses.replace(h, since={}, terms={}) for h in FULL.hazards]
    n, years = 6000, 3.0
    start = healthy(lives, n, 50.0)
    seen: list[State] = []
    Process(FULL, quiet).run(start, start.clock + years * YEAR, sink=seen.append)
    found = sum(int(part.is_event(name).sum()) for part in seen)
    entry = FULL.hazards[FULL.index[name]]
    rates = entry.by_age.get("women", entry.by_age.get("all"))
    assert rates is not None
    at = np.linspace(0, years, 3001)
    rate = np.exp(np.interp(50 + at, sorted(rates), [np.log(rates[age]) for age in sorted(rates)]))
    if entry.by_month:
        rate = rate * np.array(entry.by_month)[(np.floor((start.clock[0] + at * YEAR) / (YEAR / 12)) % 12).astype(int)]
    total = rate.mean() * years
    expected = n * (1 - np.exp(-total)) if entry.chronic else n * total
    assert abs(found - expected) < 4 * np.sqrt(expected), (found, expected)


def test_states_come_back_from_their_columns(lives: Lives) -> None:
    part = lives.states.take(np.arange(0, len(lives.states), 17))
    again = from_columns(FULL, {**to_columns(part), "row": part.row, "key": part.key, "step": part.step})
    assert np.array_equal(again.last, part.last)
    assert np.array_equal(again.due, part.due)
    assert np.array_equal(again.event, part.event)
    assert np.array_equal(again.discharge_at, part.discharge_at)
    assert np.abs(again.lab - part.lab).max() < 1e-3


def test_a_life_does_not_depend_on_company_or_on_the_lot(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cehrxgpt.simulate.lives.CHUNK", 20)
    lots = list(live(FULL, 32, 3))
    assert [len(lot.subject_id) for lot in lots] == [20, 12]
    few = State.concatenate([lot.states for lot in lots])
    many = lives.states.take(np.flatnonzero(lives.states.row < 32))
    for name in ("time", "event", "visit", "last", "lab", "treated"):
        assert np.array_equal(getattr(few, name), getattr(many, name)), name
    late = write(lots[1], "a")
    assert set(late.visits["subject_id"]) == set(range(21, 33))


def test_births_follow_pregnancies_and_men_have_none(lives: Lives) -> None:
    s = lives.states
    born = s.is_event("birth", "caesarean")
    assert born.sum() > 8
    assert not s.male[born].any()
    weeks = (s.time - s.since("pregnancy"))[born] / DAY / 7
    assert (weeks > 10).all()
    assert 18 < np.median(weeks) < 40  # counted from the first visit
    assert (s.age[born] < 50).all()


@pytest.fixture(scope="module")
def many() -> Lives:
    return next(live(FULL, 2000, 3))


def women_and_men(lives: Lives, records: Tables, table: str, *concepts: int) -> tuple[int, int]:
    """Rows of these concepts of women, and of men."""
    rows = records.tables[table].arrays()
    first = np.flatnonzero(np.r_[True, np.diff(lives.states.row) != 0])
    male = lives.states.male[first][(rows["subject_id"] - lives.subject_id[0]).astype(np.int64)]
    chosen = np.isin(rows["concept"], concepts)
    return int((chosen & ~male).sum()), int((chosen & male).sum())


def test_what_one_sex_has_the_other_has_not(many: Lives) -> None:
    """Diseases, operations, examinations: of reasons, check-ups and entries alike."""
    records = write(many, "a")
    for table, of_women, of_men in (
        ("condition", (201388,), (4129902,)), ("procedure", (4117038,), (4235738,)), ("procedure", (4234541,), (4254766,)),
        ("condition", tuple(ENTRY["breast_cancer"].codes), tuple(ENTRY["prostate"].codes)),
        ("condition", tuple(ENTRY["pregnancy"].codes), tuple(ENTRY["prostate"].codes)),
    ):  # fmt: skip
        women, men = women_and_men(many, records, table, *of_women)
        assert women > 0 == men, of_women
        women, men = women_and_men(many, records, table, *of_men)
        assert women == 0 < men, of_men
    # and men are operated on for other reasons too
    assert women_and_men(many, records, "condition", 4146173)[1] > women_and_men(many, records, "procedure", 4235738)[1]


def test_nobody_brings_a_disease_of_the_other_sex() -> None:
    assert {entry.name: entry.only for entry in ENTRIES if entry.only} == {
        "pregnancy": "women", "contraception": "women", "mammography": "women", "breast_cancer": "women", "prostate": "men",
    }  # fmt: skip
    age, male = np.full(2, 80.0), np.array([False, True])
    for name, of_women, of_men in (("prostate", False, True), ("breast_cancer", True, False), ("diabetes", True, True)):
        share = FULL.intake["a"].brought[name](age, male)
        assert ((share > 0) == [of_women, of_men]).all(), name


def test_smears_are_taken_from_21_to_65(lives: Lives) -> None:
    procedures = write(lives, "a").tables["procedure"].arrays()
    smear = procedures["concept"] == 4234541
    first = np.flatnonzero(np.r_[True, np.diff(lives.states.row) != 0])
    born = lives.states.birth[first][procedures["subject_id"][smear].astype(np.int64) - 1]
    age = (procedures["time"][smear] - born) / YEAR
    assert smear.sum() > 60
    assert age.min() >= 21
    assert age.max() < 66.01
    assert age.max() > 55


# -- the tables ------------------------------------------------------------------------------------------------------------------------
def test_columns_of_the_new_tables_are_those_of_cdm_5_4(folders: dict[str, Path], shared_data: Path) -> None:
    for table in ("visit_detail", "device_exposure", "observation"):
        header = (shared_data / "synthea27nj_omop54" / f"{table.upper()}.csv").read_text().splitlines()[0]
        assert [name.strip('"').lower() for name in header.split(",")] == list(COLUMNS[table]) == read(folders["a"], table).columns


@pytest.mark.parametrize("hospital", ["a", "b"])
def test_times_lie_in_their_visit(folders: dict[str, Path], hospital: str) -> None:
    folder = folders[hospital]
    visits = read(folder, "visit_occurrence")
    assert (visits["visit_end_datetime"] > visits["visit_start_datetime"]).all()
    ordered = visits.sort("person_id", "visit_start_datetime")
    overlap = ordered.select(pl.col("visit_start_datetime") < pl.col("visit_end_datetime").shift(1).over("person_id")).to_series()
    assert not overlap.fill_null(False).any()
    spans = visits.select("visit_occurrence_id", "person_id", start="visit_start_datetime", end="visit_end_datetime")
    for table, time in (
        ("condition_occurrence", "condition_start_datetime"), ("drug_exposure", "drug_exposure_start_datetime"),
        ("procedure_occurrence", "procedure_datetime"), ("measurement", "measurement_datetime"), ("visit_detail", "visit_detail_start_datetime"),
        ("visit_detail", "visit_detail_end_datetime"), ("observation", "observation_datetime"),
    ):  # fmt: skip
        rows = read(folder, table).select("person_id", "visit_occurrence_id", at=time)
        linked = rows.join(spans, on=["visit_occurrence_id", "person_id"])
        assert linked.height == rows.height, table
        outside = linked.filter((pl.col("at") < pl.col("start")) | (pl.col("at") > pl.col("end"))).height
        assert outside <= 0.002 * rows.height, (table, outside)  # those who die in the first hours of a stay
    detail = read(folder, "visit_detail")
    assert (detail["visit_detail_end_datetime"] > detail["visit_detail_start_datetime"]).all()
    assert set(detail["visit_detail_concept_id"]) == {32037, 8717}


@pytest.mark.parametrize("hospital", [pytest.param("a", marks=pytest.mark.slow), "b"])
def test_ingest_keeps_the_rows_and_says_why_not(folders: dict[str, Path], hospital: str, tmp_path: Path) -> None:
    cx.read_omop(folders[hospital], out=tmp_path / "events")
    report = json.loads((tmp_path / "events" / "ingest.json").read_text())
    for table, counts in report["tables"].items():
        assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
        if table == "visit_occurrence":
            assert set(counts["dropped"]) <= {"merged_into_admission"}
        else:
            assert counts["kept"] > 0.99 * counts["read"], table
            assert set(counts["dropped"]) <= {"duplicate"}
    assert not any(key.startswith("unlinked") for mends in report["mended"].values() for key in mends)


def together(folder: Path, **tests: int) -> pl.DataFrame:
    """Values of these tests, by name, that were measured at the same time."""
    rows = read(folder, "measurement").filter(pl.col("measurement_concept_id").is_in(tests.values()) & pl.col("value_as_number").is_not_null())
    wide = rows.pivot("measurement_concept_id", index=("person_id", "measurement_datetime"), values="value_as_number", aggregate_function="first")
    return wide.rename({str(concept): name for name, concept in tests.items()}).drop_nulls()


def test_lipids_and_body_measures_agree(folders: dict[str, Path]) -> None:
    """Total cholesterol holds its parts; a weight is that of the height and the body mass index beside it."""
    lipids = together(folders["a"], ldl=3028437, hdl=3007070, total=3027114, fats=3022192)
    assert lipids.height > 150
    rest = lipids["total"] - lipids["hdl"] - lipids["ldl"]
    assert (rest < 0).mean() < 0.005
    assert abs((rest - lipids["fats"] / 5).mean()) < 1
    assert np.quantile(np.abs(rest - lipids["fats"] / 5), 0.99) < 7
    lipids = together(folders["b"], ldl=3028437, hdl=3007070, total=3027114)
    assert (lipids["total"] < lipids["hdl"] + lipids["ldl"]).mean() < 0.005
    for folder in folders.values():
        body = together(folder, bmi=3038553, weight=3025315)
        tall = read(folder, "measurement").filter(measurement_concept_id=3036277).group_by("person_id").agg(pl.col("value_as_number").mean())
        body = body.join(tall, on="person_id")
        assert body.height > 300
        other = body["weight"] / (body["value_as_number"] / 100) ** 2
        assert ((other - body["bmi"]).abs() > 1).mean() < 0.01


@pytest.mark.parametrize("hospital", ["a", "b"])
def test_results_are_more_than_numbers(folders: dict[str, Path], hospital: str) -> None:
    """Answers, comparison signs, results that were lost, facts: each where it belongs and as this hospital writes it."""
    folder, habits = folders[hospital], HOSPITALS[hospital]
    rows = read(folder, "measurement").with_columns(name=pl.col("measurement_source_value").str.strip_prefix(f"{habits.test_prefix}-"))
    number, answer, sign = pl.col("value_as_number"), pl.col("value_as_concept_id"), pl.col("operator_concept_id")
    assert not rows["value_as_number"].is_nan().any()
    strips = rows.filter(pl.col("name").str.starts_with("strip_"))
    assert set(strips["value_as_concept_id"].drop_nulls()) == {habits.positive, habits.negative}
    assert strips["value_as_number"].null_count() == strips.height > 300
    assert rows.filter(~pl.col("name").str.starts_with("strip_"))["value_as_concept_id"].null_count() == rows.height - strips.height
    # a sign stands by the limit that the device tells, and nowhere beyond it
    signed = rows.filter(sign.is_not_null())
    assert set(signed["operator_concept_id"]) <= {4171756, 4172704}
    assert signed.filter(sign == 4171756).height > 30
    for name, (least, most) in habits.limits.items():
        mine = rows.filter((pl.col("name") == name) & number.is_not_null())
        assert (mine.filter(sign == 4171756)["value_as_number"] == least).all()
        assert (mine.filter(sign == 4172704)["value_as_number"] == most).all()
        assert mine["value_as_number"].min() >= least  # type: ignore[operator]
        assert mine["value_as_number"].max() <= most  # type: ignore[operator]
    # lost now and then in a panel whose other results are there
    lost = rows.filter(number.is_null() & answer.is_null())
    assert lost.select(sign.is_null() & pl.col("unit_concept_id").is_null() & pl.col("unit_source_value").is_null()).to_series().all()
    tested = rows.filter(~pl.col("name").is_in([name for panel in VITALS for name in PANELS[panel]]))
    assert abs(lost.height / tested.height - habits.lost) < 4 * np.sqrt(habits.lost / tested.height)
    blood = rows.filter(pl.col("name").is_in(PANELS["blood"])).group_by("person_id", "measurement_datetime").agg(n=number.count())
    assert 0 < (blood["n"] == len(PANELS["blood"]) - 1).mean() < 0.2
    # questions
    asked = read(folder, "observation")
    smoking = asked.filter(observation_concept_id=43054909)
    assert set(smoking["value_as_concept_id"]) == {45879404, 45883458, 45881517}
    stopped = smoking.sort("person_id", "observation_datetime").group_by("person_id", maintain_order=True).agg("value_as_concept_id")
    for answers in stopped["value_as_concept_id"].to_list():
        assert answers == sorted(answers) if 45879404 not in answers else set(answers) == {45879404}  # 45881517 smokes, 45883458 smoked once
    assert asked.filter(observation_concept_id=40766239)["value_as_number"].is_between(1, 5).all()
    assert asked.filter(observation_concept_id=4053118).select("value_as_number", "value_as_concept_id").null_count().row(0)[0] > 0


def test_strips_tell_of_infections(many: Lives) -> None:
    rows = write(many, "a").tables["measurement"].arrays()
    infected = (many.states.since("urinary_infection") == many.states.time) & (many.states.visit <= AT_INPATIENT)
    times = set(zip(many.subject_id[many.states.row[infected]].tolist(), np.floor(many.states.time[infected] / DAY).tolist(), strict=True))
    nitrite = rows["concept"] == 3021601
    when = zip(rows["subject_id"][nitrite].tolist(), np.floor(rows["time"][nitrite] / DAY).tolist(), strict=True)
    ill = np.array([pair in times for pair in when])
    positive = rows["answer"][nitrite] == 9191
    assert ill.sum() > 50
    assert positive[ill].mean() > 0.4 > 0.08 > positive[~ill].mean()


def test_nothing_is_written_twice(folders: dict[str, Path]) -> None:
    """No two rows are equal in all but their own id."""
    for folder in folders.values():
        for path in folder.glob("*.parquet"):
            rows = pl.read_parquet(path)
            assert rows.drop(f"{path.stem}_id", strict=False).is_duplicated().sum() == 0 or path.stem == "person", path.stem


# -- and on ---------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ingested(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, EventDataset]:
    root = tmp_path_factory.mktemp("events")
    return {hospital: cx.read_omop(folder, out=root / hospital / "events") for hospital, folder in folders.items()}


def test_the_report_finds_nothing_of_the_other_sex(ingested: dict[str, EventDataset]) -> None:
    for events in ingested.values():
        facts = gather(RunFolder(events.root.parent))
        assert facts is not None
        assert facts.other_sex.count == 0 < 100 < facts.other_sex.of


ANSWERED, SIGNED = pl.col("value_as_concept_id").is_not_null(), pl.col("operator_concept_id").is_not_null()


def told(folder: Path) -> dict[str, object]:
    """Of measurement and observation: rows, numbers, and rows by answer and by sign."""
    tests, asked = read(folder, "measurement"), read(folder, "observation")
    return {
        "rows": (tests.height, asked.height),
        "numbers": (tests["value_as_number"].count(), asked["value_as_number"].count()),
        "answers": sorted(pl.concat([frame.filter(ANSWERED)["value_as_concept_id"] for frame in (tests, asked)]).value_counts().rows()),
        "signs": sorted(
            tests.filter(SIGNED).group_by("measurement_concept_id", "operator_concept_id", pl.col("value_as_number").round(4)).len().rows()
        ),
    }


@pytest.mark.parametrize("hospital", ["a", "b"])
def test_answers_signs_and_lost_results_become_events_and_tokens(folders: dict[str, Path], ingested: dict[str, EventDataset], hospital: str) -> None:
    source, events = told(folders[hospital]), ingested[hospital].read()
    results = events.filter(pl.col("origin").is_in(["measurement", "observation"]))
    counts = [results.filter(origin=origin).height for origin in ("measurement", "observation")]
    assert (tuple(counts), results["numeric_value"].count()) == (source["rows"], sum(source["numbers"]))  # type: ignore[call-overload]
    answers = results.filter(pl.col("text_value").is_not_null())["text_value"].cast(pl.Int64).value_counts().rows()
    assert sorted(answers) == source["answers"]
    assert sorted(results["operator"].drop_nulls().unique()) in (["<"], ["<", ">"])
    assert results["operator"].count() == sum(row[-1] for row in source["signs"])  # type: ignore[attr-defined]
    # tokens: a category of its own for each answer, bins of their own for results below the limit; back again without loss but for the bins
    timeline = Timeline.fit(ingested[hospital])
    vocabulary = timeline.vocabulary
    words = {(code, text) for code, text in zip(vocabulary.code, vocabulary.text_value, strict=True) if text is not None}
    assert {("observation/43054909", str(answer)) for answer in (45879404, 45883458, 45881517)} <= words
    assert ("measurement/3021601", str(HOSPITALS[hospital].positive)) in words
    assert "<" in {sign for code, sign in zip(vocabulary.code, vocabulary.operator, strict=True) if code == "measurement/3020460"}
    expected = quantise(events, timeline)
    assert canonical(decode_histories(vocabulary, timeline.encode_frame(events))).equals(canonical(expected.events))


@pytest.mark.parametrize("hospital", [pytest.param("a", marks=pytest.mark.slow), "b"])
def test_answers_signs_and_lost_results_are_written_as_omop_again(
    folders: dict[str, Path], ingested: dict[str, EventDataset], hospital: str, tmp_path: Path
) -> None:
    before, after = ingested[hospital].read(), back(ingested[hospital], tmp_path)
    assert told(tmp_path / "cdm") == told(folders[hospital])
    results = pl.col("origin").is_in(["measurement", "observation"])
    said = ["subject_id", "time", "code", "numeric_value", "text_value", "unit", "operator", "origin"]
    assert before.filter(results).select(said).sort(said).equals(after.filter(results).select(said).sort(said))


# -- two hospitals ---------------------------------------------------------------------------------------------------------------------
def test_the_same_lives_written_by_two_hospitals(lives: Lives) -> None:
    """Habits act on the record alone, so the very same lives can be written twice; they differ where they should and nowhere else."""
    a, b = write(lives, "a"), write(lives, "b")
    assert {name: values.tolist() for name, values in a.deaths.items()} == {name: values.tolist() for name, values in b.deaths.items()}
    inpatient = {key: np.isin(one.visits["concept"], (9201, 262)).sum() for key, one in (("a", a), ("b", b))}
    observed = {key: (one.visits["concept"] == 581385).sum() for key, one in (("a", a), ("b", b))}
    assert inpatient["a"] + observed["a"] == inpatient["b"] + observed["b"]
    assert observed["b"] > observed["a"]
    assert (a.visits["concept"] == 262).sum() < (b.visits["concept"] == 262).sum()

    def column(one: object, table: str, name: str) -> np.ndarray:
        return one.tables[table].arrays()[name]  # type: ignore[attr-defined, no-any-return]

    # units: the same quantity in other units, of the same level
    sugar = {key: column(one, "measurement", "value")[column(one, "measurement", "concept") == 3004410] for key, one in (("a", a), ("b", b))}
    assert abs((np.nanmedian(sugar["b"]) + 23.5) / 10.929 - np.nanmedian(sugar["a"])) < 0.15
    units = {key: set(column(one, "measurement", "unit")[column(one, "measurement", "concept") == 3016723]) for key, one in (("a", a), ("b", b))}
    assert units == {"a": {0, 8840}, "b": {0, 8749}}  # a result that was lost has none
    # codes: finer ones, some without a concept, other source values
    diabetes = set(ENTRY["diabetes"].codes)
    finer = {}
    for key, one in (("a", a), ("b", b)):
        codes = column(one, "condition", "concept")
        mine = codes[np.isin(codes, list(diabetes))]
        finer[key] = (mine != 201826).mean()
    assert finer["b"] > finer["a"] + 0.2
    assert (column(a, "condition", "concept") == 0).sum() == 0
    assert 0.02 < (column(b, "condition", "concept") == 0).mean() < 0.06
    sources = [{text.split(":")[0] for text in set(column(one, "condition", "source"))} for one in (a, b)]
    assert sources == [{"9", "10"}, {"K", "KX"}]
    # habits: orders and codes written again
    per_visit = {key: len(column(one, "condition", "time")) / len(one.visits["start"]) for key, one in (("a", a), ("b", b))}
    assert per_visit["b"] < 0.9 * per_visit["a"]


@pytest.mark.slow
def test_the_biology_of_the_hospitals_is_the_same() -> None:
    """People differ, their hazards do not: infarctions, strokes and pneumonias per person-year of a like age agree."""
    events, years, ages = {}, {}, {}
    for hospital in ("a", "b"):
        lot = next(live(FULL, 900, 9, hospital=hospital))
        s = lot.states
        last = np.r_[np.diff(s.row) != 0, True]
        end = np.minimum(lot.end, np.where(s.is_event("death")[last], s.time[last], np.inf))
        birth = s.birth[last]
        ages[hospital] = (lot.start - birth) / YEAR
        low, high = np.maximum(lot.start, birth + 50 * YEAR), np.minimum(end, birth + 70 * YEAR)
        years[hospital] = np.maximum(high - low, 0).sum() / YEAR
        age = (s.time - s.birth) / YEAR
        events[hospital] = (s.is_event("infarction", "stroke", "pneumonia", "hypertension") & (age >= 50) & (age < 70)).sum()
    a, b = (events[key] / years[key] for key in ("a", "b"))
    assert events["a"] > 80
    assert abs(np.log(a / b)) < 3.5 * np.sqrt(1 / events["a"] + 1 / events["b"])
    assert ages["b"].mean() < ages["a"].mean() - 2  # who comes differs


def test_codes_come_late_wrongly_and_again(lives: Lives) -> None:
    s = lives.states
    hospital = HOSPITALS["a"]
    concept = coded(s, ENTRY["heart_failure"], hospital)
    wrong = (concept != NONE) & ~s.has("heart_failure")
    assert 0 < wrong.sum() < 0.2 * (concept != NONE).sum()  # ruled out
    begins = (s.since("diabetes") == s.time) & (s.visit <= AT_INPATIENT)
    at_once = (coded(s, ENTRY["diabetes"], hospital) != NONE)[begins]
    assert 0.5 < at_once.mean() < 1  # the others come later
    again = coded(s, ENTRY["stroke"], hospital) != NONE
    assert (again & (s.time - s.since("stroke") > DAY) & s.has("stroke")).any()


def test_calendar_trends(lives: Lives) -> None:
    s = lives.states
    year = s.time / YEAR + 1970
    assert not s.is_event("covid")[year < 2020].any()
    assert s.is_event("covid")[year > 2020].any()
    thinned = s.on("warfarin")[(year < 2013) & s.has("fibrillation")].mean(), s.on("warfarin")[(year > 2021) & s.has("fibrillation")].mean()
    assert thinned[0] > thinned[1]
    assert not s.on("empagliflozin")[year < 2012].any()
    month = np.floor(s.time / (YEAR / 12)) % 12
    flu = s.is_event("influenza")
    assert np.isin(month, (11, 0, 1))[flu].mean() > 2 * np.isin(month, (5, 6, 7))[flu].mean()


def test_progress_is_one_count_of_people_and_one_of_risks(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    config = SimulateConfig(population="full", patients=150, truth_samples=2, truth_rows=5)
    made = simulate(tmp_path / "cdm", config, progress=lambda *news: told.append(news))
    risks = [(done, total) for done, total, what in told if what == "true risks"]
    assert {what for _, _, what in told} == {"patients", "true risks"}
    assert [done for done, _ in risks] == sorted(done for done, _ in risks)
    assert {total for _, total in risks} == {sum(made.truth.values())} == {risks[-1][0]}


def test_the_command_bounds_the_true_risks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--truth-rows` is heard, there are few lines of progress, and the help tells where the time goes."""
    few = ["--population", "full", "--patients", "150", "--truth-samples", "2", "--truth-rows", "5"]
    status, progress = invoke(["simulate", *few, "--out", str(tmp_path / "cdm")], monkeypatch, capsys)
    assert status == 0
    assert sum(line.startswith("simulate:") for line in progress.splitlines()) <= 24
    heights = [pl.read_parquet(path).height for path in (tmp_path / "cdm" / "truth").glob("*_*.parquet")]
    assert (len(heights), max(heights)) == (13, 5)
    monkeypatch.setattr("sys.argv", ["cehrxgpt", "simulate", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    said = " ".join(capsys.readouterr().out.split())
    assert all(word in said for word in ("Nearly all the time", "--truth-rows", "0 leaves the risks out"))


def test_thirteen_library_tasks_have_a_truth(folders: dict[str, Path]) -> None:
    from cehrxgpt.tasks import library_tasks

    assert len(true_tasks(folders["a"])) == 13
    assert set(true_tasks(folders["a"])) <= set(library_tasks())


def test_a_column_of_texts_that_are_all_missing_is_written() -> None:
    """A part of the population may have no result with a unit of its own."""
    written = frame("measurement", {"person_id": np.arange(2), "unit_source_value": np.array([None, None], dtype=object)})
    assert written["unit_source_value"].to_list() == [None, None]
    assert written.schema["unit_source_value"] == pl.String

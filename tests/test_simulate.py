"""The simulated population: the same for the same seed, sound as a CDM, and driven by the hazards it declares."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.errors import OutputExistsError
from cehrxgpt.simulate import SimulateConfig, simulate
from cehrxgpt.simulate.cdm import COLUMNS
from cehrxgpt.simulate.declare import Hazard
from cehrxgpt.simulate.draws import make_keys, normal, uniform
from cehrxgpt.simulate.lives import Lives, live
from cehrxgpt.simulate.populations.core import CORE
from cehrxgpt.simulate.process import CAP_DAYS, Hazards, Process
from cehrxgpt.simulate.state import DAY, DISCHARGE, NEVER, OUTSIDE, State

PATIENTS = 400
EVENTS = {  # table: (id, concept, time)
    "condition_occurrence": ("condition_occurrence_id", "condition_concept_id", "condition_start_datetime"),
    "drug_exposure": ("drug_exposure_id", "drug_concept_id", "drug_exposure_start_datetime"),
    "procedure_occurrence": ("procedure_occurrence_id", "procedure_concept_id", "procedure_datetime"),
    "measurement": ("measurement_id", "measurement_concept_id", "measurement_datetime"),
}


def lived(patients: int, seed: int) -> Lives:
    return next(live(CORE, patients, seed))


@pytest.fixture(scope="module")
def cdm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulate") / "cdm"
    simulate(out, SimulateConfig(population="core", patients=PATIENTS, seed=3, truth_samples=20, truth_rows=10))
    return out


@pytest.fixture(scope="module")
def people() -> Lives:
    return lived(PATIENTS, 3)


def read(cdm: Path, table: str) -> pl.DataFrame:
    return pl.read_parquet(cdm / f"{table}.parquet")


# -- draws ------------------------------------------------------------------------------------------------------------------------------
def test_draws_are_uniform_and_normal_and_belong_to_their_key() -> None:
    key = make_keys(1, np.arange(50_000))
    u, z = uniform(key, 7, 2), normal(key, 7, 30)
    assert abs(u.mean() - 0.5) < 0.006
    assert np.abs(np.histogram(u, 20, (0, 1))[0] / 2500 - 1).max() < 0.1
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    for other in (uniform(key, 8, 2), uniform(key, 7, 3), uniform(make_keys(2, np.arange(50_000)), 7, 2)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.02
    assert np.array_equal(u[100:200], uniform(make_keys(1, np.arange(100, 200)), 7, 2))


# -- the same for the same seed ----------------------------------------------------------------------------------------------------------
def test_a_life_depends_on_seed_and_subject_alone(cdm: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "few", SimulateConfig(population="core", patients=150, seed=3, truth_samples=0))
    for table in ("person", "observation_period", "visit_occurrence", "death", *EVENTS):
        few, many = read(tmp_path / "few", table), read(cdm, table).filter(pl.col("person_id") <= 150)
        keep = [name for name in few.columns if name not in ("preceding_visit_occurrence_id",)]
        assert few.select(keep).equals(many.select(keep)), table


def test_another_seed_is_another_population(cdm: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "other", SimulateConfig(population="core", patients=20, seed=4, truth_samples=0))
    few = read(cdm, "visit_occurrence").filter(pl.col("person_id") <= 20)
    assert not few.equals(read(tmp_path / "other", "visit_occurrence"))


def test_refuses_to_overwrite_and_leaves_no_rest(cdm: Path) -> None:
    with pytest.raises(OutputExistsError, match="--force"):
        simulate(cdm, SimulateConfig(population="core", patients=5))
    assert [path.name for path in cdm.parent.iterdir()] == ["cdm"]


@pytest.mark.parametrize("bad", [{"patients": 0}, {"seed": -1}, {"seed": 2**63}, {"truth_samples": 1}, {"truth_rows": 0}])
def test_config_refuses_nonsense(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SimulateConfig(**bad)


# -- a sound CDM --------------------------------------------------------------------------------------------------------------------------
def test_columns_are_those_of_cdm_5_4(cdm: Path, shared_data: Path) -> None:
    for table, columns in COLUMNS.items():
        header = (shared_data / "synthea27nj_omop54" / f"{table.upper()}.csv").read_text().splitlines()[0]
        assert [name.strip('"').lower() for name in header.split(",")] == list(columns), table
        if table not in ("visit_detail", "device_exposure", "observation"):  # of the full population
            assert read(cdm, table).columns == list(columns), table
    assert read(cdm, "cdm_source")["cdm_version"].to_list() == ["5.4"]


def test_keys_hold(cdm: Path) -> None:
    persons, visits, concepts = read(cdm, "person"), read(cdm, "visit_occurrence"), set(read(cdm, "concept")["concept_id"])
    assert persons["person_id"].to_list() == list(range(1, PATIENTS + 1))
    assert visits["visit_occurrence_id"].is_unique().all()
    assert read(cdm, "observation_period")["person_id"].to_list() == persons["person_id"].to_list()
    for table, (key, concept, _) in EVENTS.items():
        frame = read(cdm, table)
        assert frame[key].is_unique().all()
        linked = frame.join(visits, left_on=["visit_occurrence_id", "person_id"], right_on=["visit_occurrence_id", "person_id"], how="anti")
        assert linked.height == 0, table
        assert set(frame[concept]) <= concepts
    for table, frame in ((path.stem, pl.read_parquet(path)) for path in cdm.glob("*.parquet")):
        for column in frame.columns:
            if column.endswith("concept_id") and table != "concept_ancestor":
                known = set(frame[column].drop_nulls()) <= concepts | {756265, 0}
                assert known, (table, column)


def test_times_lie_in_their_visit_and_nothing_follows_death(cdm: Path) -> None:
    visits, death = read(cdm, "visit_occurrence"), read(cdm, "death")
    last = death.select("person_id", last=pl.coalesce("death_datetime", pl.col("death_date").cast(pl.Datetime("us")).dt.offset_by("1d")))
    assert death.height > 20
    assert (visits["visit_end_datetime"] > visits["visit_start_datetime"]).all()
    assert visits.join(last, on="person_id").filter(pl.col("visit_end_datetime") > pl.col("last")).height == 0
    period = read(cdm, "observation_period")
    spans = visits.join(period, on="person_id")
    assert spans.filter(pl.col("visit_start_date") < pl.col("observation_period_start_date")).height == 0
    assert spans.filter(pl.col("visit_end_date") > pl.col("observation_period_end_date")).height == 0
    for table, (_, _, time) in EVENTS.items():
        linked = read(cdm, table).select("person_id", "visit_occurrence_id", at=time).join(visits, on="visit_occurrence_id")
        assert linked.filter((pl.col("at") < pl.col("visit_start_datetime")) | (pl.col("at") > pl.col("visit_end_datetime"))).height == 0, table
        assert linked.filter(pl.col("at").dt.second() != 0).height == 0


def test_visits_of_a_person_do_not_overlap(cdm: Path) -> None:
    visits = read(cdm, "visit_occurrence").sort("person_id", "visit_start_datetime")
    following = visits.with_columns(following=pl.col("visit_start_datetime").shift(-1).over("person_id"))
    assert following.filter(pl.col("following") < pl.col("visit_end_datetime")).height == 0


def test_places_and_classes(cdm: Path) -> None:
    visits = read(cdm, "visit_occurrence")
    assert set(visits["visit_concept_id"]) == {9201, 9202, 9203}
    stays = visits.filter(pl.col("visit_concept_id") == 9201)
    assert stays["discharged_to_concept_id"].null_count() == 0
    assert {8536, 8863} <= set(stays["discharged_to_concept_id"])
    outside = visits.filter(pl.col("visit_concept_id") != 9201)
    assert outside["discharged_to_concept_id"].null_count() == outside.height
    clinic = visits.filter(pl.col("visit_concept_id") == 9202)
    assert clinic["visit_start_datetime"].dt.hour().is_between(8, 17).all()
    assert (clinic["visit_start_datetime"].dt.weekday() <= 5).all()
    expired = stays.filter(pl.col("discharged_to_concept_id") == 4216643).join(read(cdm, "death"), on="person_id")
    assert expired.height > 0
    assert (expired["visit_end_datetime"] == expired["death_datetime"]).all()


def test_histories_look_like_records(cdm: Path) -> None:
    events = sum(read(cdm, table).height for table in ("visit_occurrence", *EVENTS))
    assert 80 < events / PATIENTS < 160
    labs = read(cdm, "measurement")
    sugar = labs.filter(pl.col("measurement_concept_id") == 3004410)
    assert sugar["unit_concept_id"].unique().to_list() == [8554]
    assert sugar["value_as_number"].is_between(3.9, 13).all()
    diabetics = read(cdm, "condition_occurrence").filter(pl.col("condition_concept_id") == 201826)["person_id"].unique()
    per_person = sugar.group_by("person_id").len()
    with_disease = per_person.filter(pl.col("person_id").is_in(diabetics.implode()))["len"].sum() / len(diabetics)
    without = per_person.filter(~pl.col("person_id").is_in(diabetics.implode()))["len"].sum() / (PATIENTS - len(diabetics))
    assert with_disease > 2 * without  # missing, not at random


def test_every_known_disease_is_in_the_record_at_its_time(cdm: Path, people: Lives) -> None:
    """What the state knows of heart failure, the record knows within two hours."""
    states = people.states
    last = states.take(np.flatnonzero(np.r_[np.diff(states.row) != 0, True]))
    onset = last.last[CORE.marker["heart_failure"]]
    truth = {int(row) + 1: int(time) for row, time in zip(last.row[onset > NEVER], onset[onset > NEVER], strict=True)}
    rows = read(cdm, "condition_occurrence").filter(pl.col("condition_concept_id") == 316139)
    first = rows.group_by("person_id").agg(pl.col("condition_start_datetime").min().dt.epoch("s") // 60)
    found = dict(first.iter_rows())
    assert found.keys() == truth.keys()
    assert all(0 <= found[person] - truth[person] <= 120 for person in found)


# -- hazards ------------------------------------------------------------------------------------------------------------------------------
def rate(state: State, name: str) -> np.ndarray:
    return Hazards(CORE).rates(state)[CORE.index[name]]


def one(people: Lives) -> State:
    """A person of 65 outside hospital, without any history."""
    state = people.states.take(np.array([0]))
    state.clock[:] = state.birth + 65 * 365.25 * DAY
    state.last[:] = NEVER
    state.treated[:] = False
    state.discharge_at[:] = OUTSIDE
    state.male[:], state.race[:], state.frailty[:], state.hospice[:] = False, 0, 0, False
    state.lab[:, 0] = [level.centre for level in CORE.levels]
    return state


def test_the_reference_patient_has_the_reference_rates(people: Lives) -> None:
    state = one(people)
    for entry in CORE.hazards:
        expected = 0.0 if entry.requires else entry.per_year
        assert rate(state, entry.name)[0] * 365.25 * DAY == pytest.approx(expected, rel=1e-4)


def test_hazards_move_the_right_way(people: Lives) -> None:
    base = one(people)

    def moved(name: str, **changes: float) -> float:
        state = base.take(np.array([0]))
        for key, value in changes.items():
            if key in CORE.marker:
                state.last[CORE.marker[key]] = state.clock - value * DAY
            elif key in CORE.treatment_names:
                state.treated[CORE.treatment_names.index(key)] = True
            elif key in CORE.level_names:
                state.lab[CORE.level_names.index(key)] += value
            elif key == "years":
                state.clock += value * 365.25 * DAY
        return float(rate(state, name)[0])

    assert moved("death", years=10) > 1.5 * moved("death")
    assert moved("diabetes", hba1c=1.0) > 2 * moved("diabetes")
    assert moved("heart_failure", diabetes=4000) > moved("heart_failure")
    assert moved("heart_failure", lisinopril=1) < moved("heart_failure")
    assert moved("stroke", fibrillation=4000) > 2 * moved("stroke", fibrillation=4000, apixaban=1)
    # how long ago matters, not only that it was
    assert moved("heart_failure", hypertension=30) > 5 * moved("heart_failure", hypertension=2500)
    assert moved("illness", discharge=1) > 4 * moved("illness", discharge=120)
    assert moved("bypass", coronary_disease=10, chest_pain=10) > 5 * moved("bypass", coronary_disease=10, chest_pain=1500)
    # what cannot be
    assert moved("bypass") == 0
    assert moved("bypass", coronary_disease=10, bypass=5) == 0
    assert moved("diabetes", diabetes=5) == 0


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), days=st.floats(0.0, CAP_DAYS))
def test_the_bound_is_a_bound(people: Lives, seed: int, days: float) -> None:
    hazards = Hazards(CORE)
    rows = np.random.default_rng(seed).integers(0, len(people.states), 300)
    state = people.states.take(rows)
    bound = hazards.rates(state, bound=True).sum(axis=0, dtype=np.float64) * hazards.slack
    state.clock += days * DAY
    assert (hazards.rates(state).sum(axis=0, dtype=np.float64) <= bound).all()


def test_thinning_gives_the_exact_cumulative_incidence(people: Lives) -> None:
    """Death alone, its hazard falling from 9 to 1 per year after a discharge: 1 - exp(-integral)."""
    quiet = [dataclasses.replace(entry, per_year=1e-12, terms={}, since={}) for entry in CORE.hazards]
    quiet[CORE.death] = dataclasses.replace(CORE.hazards[CORE.death], per_year=1.0, terms={}, since={"discharge": (np.log(9.0), 30.0)})
    n = 20_000
    state = one(people).take(np.zeros(n, dtype=np.int64))
    state.row, state.key = np.arange(n), make_keys(5, np.arange(n))
    state.last[CORE.marker["discharge"]] = state.clock
    state.next_visit += 1e5 * DAY
    for days in (20.0, 90.0, 400.0):
        grid = np.linspace(0, days, 20_001)
        middle = (grid[1:] + grid[:-1]) / 2
        exact = 1 - np.exp(-np.sum(np.exp(np.log(9.0) * np.exp(-middle / 30.0))) * days / 20_000 / 365.25)
        died = len(Process(CORE, quiet).run(state, state.clock + days * DAY)) / n
        assert abs(died - exact) < 4 * np.sqrt(exact * (1 - exact) / n)


def test_readmissions_come_early(people: Lives) -> None:
    """The hazard of an illness after a discharge: in the first 30 days well above that of days 90 to 180."""
    states = lived(2500, 11).states
    leaves = states.take(np.flatnonzero(states.event == DISCHARGE))
    ill = states.take(np.flatnonzero(states.event == CORE.index["illness"]))
    gap = (ill.time - ill.last[CORE.marker["discharge"]]) / DAY
    assert len(leaves) > 3000
    early, later = (gap < 30).sum() / 30, ((gap >= 90) & (gap < 180)).sum() / 90
    assert early > 2 * later


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"terms": {"agee": 1.0}}, "feature"),
        ({"since": {"moon": (1.0, 3.0)}}, "marker"),
        ({"visit": (0.5, 0.0, 0.0)}, "visit"),
        ({"per_year": -1.0}, "positive"),
    ],
)
def test_a_hazard_checks_itself(bad: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Hazard(**{"name": "x", "per_year": 1.0, **bad}).check(CORE.features, CORE.markers, CORE.names)  # type: ignore[arg-type]

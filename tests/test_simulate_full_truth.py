"""True risks of the full population against what the labeler finds in its records, and a model on the true inputs against the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

import cehrxgpt as cx
from cehrxgpt.errors import InputError
from cehrxgpt.simulate import SimulateConfig, simulate, true_risk, true_tasks
from cehrxgpt.simulate.draws import make_keys
from cehrxgpt.simulate.index import task_rows
from cehrxgpt.simulate.lives import live
from cehrxgpt.simulate.oracles import FOLDS, events_since, expected_auroc, formula, known_without_times, measure
from cehrxgpt.simulate.populations.full import FULL
from cehrxgpt.simulate.state import AT_INPATIENT, DAY, NEVER, State
from cehrxgpt.simulate.transitions import replan
from cehrxgpt.simulate.truth import described, resimulate, restore

PATIENTS = 800


@pytest.fixture(scope="module")
def forty_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cdm = tmp_path_factory.mktemp("oracles") / "cdm"
    simulate(cdm, SimulateConfig(population="full", patients=40_000, seed=17, truth_samples=0))
    return cdm


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, cx.EventDataset]:
    """Hospital b, whose record is the further from the truth."""
    cdm = tmp_path_factory.mktemp("truth") / "cdm"
    simulate(cdm, SimulateConfig(population="full", hospital="b", patients=PATIENTS, seed=11, truth_samples=0))
    return cdm, cx.read_omop(cdm, out=cdm.parent / "events")


def judged(cdm: Path, events: cx.EventDataset, task: str) -> pl.DataFrame:
    """The first labelled row of each subject whose planned observation covers the window, so that no outcome decides who is judged.

    A row picked at random from a subject's rows would be picked by the outcome: a readmission adds a row beside the one that it answers.
    """
    asked = FULL.tasks[task]
    labels = cx.label(events, task).labels.join(pl.read_parquet(cdm / "truth" / "people.parquet"), on="subject_id")
    if not asked.in_stay:
        labels = labels.filter(pl.col("prediction_time") + pl.duration(days=int(asked.gap_days + asked.days)) <= pl.col("planned_end"))
    labels = labels.filter(pl.col("boolean_value").is_not_null())
    return labels.sort("subject_id", "prediction_time").unique("subject_id", keep="first", maintain_order=True)


def agrees(rows: pl.DataFrame, cdm: Path, task: str, *, samples: int, groups: int) -> int:
    """Observed and expected events, in all and by groups of like risk, within 3.5 standard errors; returns the events."""
    happened = rows["boolean_value"].to_numpy()
    sorting = true_risk(cdm, rows, task, samples=samples, seed=1)["true_risk"].to_numpy()
    risk = true_risk(cdm, rows, task, samples=samples, seed=2)["true_risk"].to_numpy()
    for group in [np.arange(len(risk)), *np.array_split(np.argsort(sorting, kind="stable"), groups)]:
        error = np.sqrt((risk[group] * (1 - risk[group])).sum() * (1 + 1 / samples) + 1)
        assert abs(happened[group].sum() - risk[group].sum()) < 3.5 * error, (task, happened[group].sum(), risk[group].sum())
    return int(happened.sum())


@pytest.mark.parametrize("task", ["emergency_visit_1y", pytest.param("hospitalization_1y", marks=pytest.mark.slow), "long_stay_7d"])
def test_true_risks_agree_with_the_labels(made: tuple[Path, cx.EventDataset], task: str) -> None:
    assert agrees(judged(*made, task), made[0], task, samples=8, groups=3) >= 35


def test_the_rows_are_the_labelers(made: tuple[Path, cx.EventDataset]) -> None:
    cdm, events = made
    for task in ("hf_readmission_30d", "afib_stroke_1y", "nsaid_gi_bleed_1y", "in_hospital_mortality_48h", "cad_cabg_1y", "long_icu_stay_7d"):
        theirs = cx.label(events, task).labels.select("subject_id", "prediction_time")
        own = task_rows(cdm, FULL, task)
        both = theirs.join(own, on=theirs.columns, how="semi").height
        assert both >= 0.99 * max(theirs.height, own.height), task


def test_a_question_about_a_stay_is_asked_in_one(made: tuple[Path, cx.EventDataset]) -> None:
    cdm, _ = made
    with pytest.raises(InputError, match="outside a hospital stay"):
        true_risk(cdm, task_rows(cdm, FULL, "emergency_visit_1y"), "long_stay_7d", samples=2)


@pytest.fixture(scope="module")
def states() -> State:
    return next(live(FULL, 500, 4)).states


def test_an_operation_still_to_be_written_is_the_outcome(states: State) -> None:
    """A disease first coded on the day of its operation: asked between the code and the procedure the risk is 1, after both it is 0."""
    operated = states.take(states.is_event("bypass"))
    assert len(operated) >= 2
    for minutes, risk in ((60.0, 1.0), (60.0 + 4 * DAY, 0.0)):
        task = FULL.tasks["cad_cabg_1y"]
        found = resimulate(operated, operated.row, operated.time + minutes, task, samples=4)
        assert (found[operated.visit == AT_INPATIENT] == risk).all()


def test_discharges_drawn_anew_are_like_those_planned(states: State) -> None:
    """Of all stays that go on at 48 hours, the ends drawn anew are distributed as the ends that were planned."""
    s = states
    opened = s.take(np.flatnonzero((s.visit == 2) & (s.stay_days > 0)))
    opened.clock = opened.time + 2 * DAY
    still = opened.take(opened.discharge_at > opened.clock)
    planned = still.discharge_at.copy()
    ends = []
    for seed in range(4):
        still.key = make_keys(99, seed, np.arange(len(still)))
        again = State.concatenate([still])
        replan(again)
        assert (again.discharge_at >= again.clock).all()
        ends.append((again.discharge_at - again.time) / DAY)
    days = (planned - still.time) / DAY
    assert len(days) > 150
    for quantile in (0.25, 0.5, 0.8):
        at = np.quantile(days, quantile)
        assert abs((np.concatenate(ends) <= at).mean() - quantile) < 4 * np.sqrt(quantile * (1 - quantile) / len(days))


def test_a_logistic_model_on_the_true_inputs_is_calibrated(made: tuple[Path, cx.EventDataset]) -> None:
    """Trained on the features that drive the hazards, of half the people; slope 1 and intercept 0 on the other half."""
    cdm, events = made
    rows = judged(cdm, events, "emergency_visit_1y")
    people, _ = described(cdm)
    state = restore(cdm, people, rows.with_columns(minute=pl.col("prediction_time").dt.epoch("us") // 60_000_000))
    recent = np.exp((np.maximum(state.since("emergency"), -1e9) - rows["prediction_time"].dt.epoch("us").to_numpy() / 6e7) / (220 * DAY))
    inputs = np.column_stack(
        [state.frailty, state.race == 1, state.male, recent, state.has("depression"), state.has("anxiety"), state.has("back_pain")]
    )
    happened = rows["boolean_value"].to_numpy()
    fit = np.arange(len(rows)) % 2 == 0
    z = LogisticRegression(C=1.0).fit(inputs[fit], happened[fit]).decision_function(inputs[~fit])
    risk = 1 / (1 + np.exp(-z))
    weight = risk * (1 - risk)
    residual = happened[~fit] - risk
    assert happened.sum() > 150
    # one Newton step from slope 1 and intercept 0, with its standard errors
    design = np.column_stack([np.ones_like(z), z])
    covariance = np.linalg.inv(design.T @ (design * weight[:, None]))
    step = covariance @ (design.T @ residual)
    assert (np.abs(step) < 3.5 * np.sqrt(np.diag(covariance)) * np.sqrt(2)).all(), step  # twice the variance: the model is fitted on as many


# -- elapsed time -------------------------------------------------------------------------------------------------------------------------
def test_expected_auroc_is_that_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    score, risk = rng.normal(size=40), rng.uniform(size=40)
    weight = risk[:, None] * (1 - risk)[None, :] * (1 - np.eye(40))
    assert np.isclose(expected_auroc(score, risk), (weight * (score[:, None] > score[None, :])).sum() / weight.sum())
    assert abs(expected_auroc(rng.normal(size=40_000), rng.uniform(size=40_000)) - 0.5) < 0.01


def test_the_oracle_of_order_is_shown_no_time(made: tuple[Path, cx.EventDataset]) -> None:
    """Every elapsed time stretched, the order kept: nothing that it is shown changes, while what the oracle of times is shown does."""
    cdm, _ = made
    rows = task_rows(cdm, FULL, "readmission_30d").with_columns(minute=pl.col("prediction_time").dt.epoch("us") // 60_000_000)
    state = restore(cdm, FULL, rows)
    state.clock = rows["minute"].to_numpy().astype(np.float64)
    since, fold = events_since(cdm, rows, state), np.arange(len(rows)) % FOLDS
    slow = state.take(np.arange(len(state)))
    factor = np.random.default_rng(0).uniform(1.5, 3.0, len(rows))
    slow.last = np.where(state.last > NEVER, state.clock - (state.clock - state.last) * factor, NEVER)
    window = (0.0, 30.0)
    assert np.array_equal(known_without_times(state, since, fold, window)[0], known_without_times(slow, since, fold, window)[0], equal_nan=True)
    assert np.abs(formula(state, state.last, window) - formula(slow, slow.last, window)).max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [("hf_readmission_30d", 0.03), ("copd_readmission_30d", 0.03), ("cad_cabg_1y", 0.022)])
def test_times_beat_order(forty_thousand: Path, task: str, least: float) -> None:
    """The lower end of the interval too; and they beat the guess from the number of events between."""
    found = measure(forty_thousand, task, subjects=5000, samples=100)
    assert found.risk.sum() > 100
    assert found.interval()[0] >= least
    assert found.interval("counts")[0] > 0.01


@pytest.mark.slow
def test_all_tasks_on_a_hundred_events(tmp_path: Path) -> None:
    """Every library task, as many people as give 100 events of the rarest; a quarter of an hour."""
    cdm = tmp_path / "cdm"
    simulate(cdm, SimulateConfig(population="full", patients=120_000, seed=5, truth_samples=0))
    events = cx.read_omop(cdm, out=tmp_path / "events")
    for task in true_tasks(cdm):
        assert agrees(judged(cdm, events, task).head(20_000), cdm, task, samples=20, groups=10) >= 100, task

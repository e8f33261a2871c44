"""True risks: re-simulated futures against what really happened to the population, and against themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cehrxgpt.errors import InputError
from cehrxgpt.simulate import SimulateConfig, simulate, true_risk
from cehrxgpt.simulate.draws import make_keys
from cehrxgpt.simulate.index import index_rows
from cehrxgpt.simulate.lives import Lives, live
from cehrxgpt.simulate.populations.core import CORE
from cehrxgpt.simulate.process import Process
from cehrxgpt.simulate.simulator import choose_rows
from cehrxgpt.simulate.state import DAY, NEVER, YEAR, State
from cehrxgpt.simulate.truth import TRUTH_DTYPES, resimulate

PATIENTS = 1500
TASKS = CORE.tasks


def lived(patients: int, seed: int) -> Lives:
    return next(live(CORE, patients, seed))


@pytest.fixture(scope="module")
def cdm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("truth") / "cdm"
    simulate(out, SimulateConfig(population="core", patients=PATIENTS, seed=1, truth_samples=40, truth_rows=25))
    return out


def outcomes(cdm: Path, rows: pl.DataFrame, task: str) -> pl.DataFrame:
    """Rows whose planned observation covers the window, with `happened`: read off the tables, by brute force."""
    people = pl.read_parquet(cdm / "truth" / "people.parquet")
    if task == "t2dm_hf_1y":
        events = pl.read_parquet(cdm / "condition_occurrence.parquet").filter(pl.col("condition_concept_id") == 316139)
        events = events.select(subject_id="person_id", event="condition_start_datetime")
    elif task == "cad_cabg_1y":
        events = pl.read_parquet(cdm / "procedure_occurrence.parquet").filter(pl.col("procedure_concept_id") == 4336464)
        events = events.select(subject_id="person_id", event="procedure_datetime")
    else:
        events = pl.read_parquet(cdm / "death.parquet")
        events = events.select(subject_id="person_id", event=pl.col("death_datetime").fill_null(pl.col("death_date").cast(pl.Datetime("us"))))
    window = pl.duration(days=int(TASKS[task].days))
    rows = rows.join(people, on="subject_id").filter(pl.col("prediction_time") + window <= pl.col("planned_end"))
    first = rows.join(events, on="subject_id").filter(pl.col("event") > pl.col("prediction_time"))
    first = first.group_by("subject_id", "prediction_time").agg(event=pl.col("event").min())
    rows = rows.join(first, on=["subject_id", "prediction_time"], how="left")
    return rows.with_columns(happened=(pl.col("event") <= pl.col("prediction_time") + window).fill_null(False)).sort("subject_id", "prediction_time")


def check_calibration(cdm: Path, rows: pl.DataFrame, task: str, *, samples: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Observed and expected agree in all and in each group of like risk, within 3.5 standard errors.

    Rows are grouped by one set of futures and judged by another: to group by the futures that judge would select on their noise.
    Returns the grouping risk and the residual (what happened less the judging risk).
    """
    happened = rows["happened"].to_numpy()
    sorting = true_risk(cdm, rows, task, samples=samples, seed=100)["true_risk"].to_numpy()
    risk = true_risk(cdm, rows, task, samples=samples, seed=200)["true_risk"].to_numpy()
    for group in [np.arange(len(risk)), *np.array_split(np.argsort(sorting, kind="stable"), groups)]:
        mean = (risk[group].sum() + 0.5) / (len(group) + 1)
        error = np.sqrt(len(group) * mean * (1 - mean) * (1 + 1 / samples))
        assert abs(happened[group].sum() - risk[group].sum()) < 3.5 * error + 0.5, (task, len(group))
    return sorting, happened - risk


@pytest.mark.parametrize("task", list(TASKS))
def test_true_risk_agrees_with_what_happened(cdm: Path, task: str) -> None:
    rows = index_rows(cdm, task)
    rows = outcomes(cdm, rows.unique("subject_id", keep="first", maintain_order=True), task)
    assert rows.height > 300
    risk, _ = check_calibration(cdm, rows, task, samples=30, groups=5)
    # it ranks too: those who met the outcome had the higher risk
    assert risk[rows["happened"].to_numpy()].mean() > 1.4 * risk[~rows["happened"].to_numpy()].mean()


def test_true_risk_from_any_instant(cdm: Path) -> None:
    """700 days after entry, whatever was going on then: in a stay, between visits, the outcome already there."""
    people = pl.read_parquet(cdm / "truth" / "people.parquet")
    death = pl.read_parquet(cdm / "death.parquet").select(subject_id="person_id", death="death_date")
    rows = people.select("subject_id", prediction_time=pl.col("start") + pl.duration(days=700)).join(death, on="subject_id", how="left")
    rows = rows.filter(pl.col("death").is_null() | (pl.col("death") > pl.col("prediction_time").dt.date())).drop("death")
    rows = outcomes(cdm, rows, "discharge_home_death_1y")
    check_calibration(cdm, rows, "discharge_home_death_1y", samples=15, groups=3)


def test_the_table_and_its_error(cdm: Path) -> None:
    written = pl.read_parquet(cdm / "truth" / "cad_cabg_1y.parquet")
    assert dict(written.schema) == TRUTH_DTYPES
    assert written.height == 25
    assert written["num_resimulations"].unique().to_list() == [40]
    assert written["true_risk"].is_between(0, 1).all()
    # Repeats with other seeds scatter as the standard error says.
    few = written.head(6)
    repeats = np.stack([true_risk(cdm, few, "cad_cabg_1y", samples=200, seed=seed)["true_risk"].to_numpy() for seed in range(12)])
    claimed = true_risk(cdm, few, "cad_cabg_1y", samples=200)["std_error"].to_numpy()
    assert 0.5 < np.sqrt((repeats.var(axis=0, ddof=1)).mean() / (claimed**2).mean()) < 1.6


def test_a_risk_does_not_depend_on_the_company(cdm: Path) -> None:
    rows = index_rows(cdm, "t2dm_hf_1y").head(12)
    together = true_risk(cdm, rows, "t2dm_hf_1y", samples=50)
    alone = true_risk(cdm, rows[[7]], "t2dm_hf_1y", samples=50, threads=1)
    assert together[[7]].equals(alone)
    backwards = true_risk(cdm, rows.reverse(), "t2dm_hf_1y", samples=50)
    assert backwards.reverse().equals(together)


def test_an_outcome_that_cannot_come_has_no_risk(cdm: Path) -> None:
    """A first onset only comes once: after heart failure the risk of a first heart failure is nought."""
    rows = pl.read_parquet(cdm / "condition_occurrence.parquet").filter(pl.col("condition_concept_id") == 316139)
    rows = rows.group_by("person_id").agg(prediction_time=pl.col("condition_start_datetime").min()).head(20)
    assert true_risk(cdm, rows.rename({"person_id": "subject_id"}), "t2dm_hf_1y", samples=20)["true_risk"].sum() == 0


def test_on_the_day_of_a_death_by_date_the_record_may_still_ask(cdm: Path) -> None:
    """The death is dated to the day's end: until then it is still to come, and nothing else is; on the next day nobody is asked."""
    dated = pl.read_parquet(cdm / "death.parquet").filter(pl.col("death_datetime").is_null())
    rows = dated.select(subject_id="person_id", prediction_time=pl.col("death_date").cast(pl.Datetime("us")).dt.offset_by("1d").dt.offset_by("-1m"))
    assert rows.height > 5
    assert (true_risk(cdm, rows, "discharge_home_death_1y", samples=2)["true_risk"] == 1).all()
    assert (true_risk(cdm, rows, "cad_cabg_1y", samples=2)["true_risk"] == 0).all()
    with pytest.raises(InputError, match="after death"):
        true_risk(cdm, rows.with_columns(pl.col("prediction_time").dt.offset_by("1m")), "cad_cabg_1y")


def test_bad_questions_get_one_clear_line(cdm: Path, tmp_path: Path) -> None:
    rows = index_rows(cdm, "t2dm_hf_1y").head(2)
    with pytest.raises(InputError, match="there is one for t2dm_hf_1y, cad_cabg_1y"):
        true_risk(cdm, rows, "t2dm_hf")
    with pytest.raises(InputError, match="simulated populations only"):
        true_risk(tmp_path, rows, "t2dm_hf_1y")
    with pytest.raises(InputError, match="subject 999999"):
        true_risk(cdm, rows.with_columns(subject_id=pl.lit(999_999)), "t2dm_hf_1y")
    with pytest.raises(InputError, match="before the first visit"):
        true_risk(cdm, rows.with_columns(prediction_time=pl.datetime(1999, 1, 1)), "t2dm_hf_1y")
    death = pl.read_parquet(cdm / "death.parquet").head(1).select(subject_id="person_id", prediction_time=pl.datetime(2030, 1, 1))
    with pytest.raises(InputError, match="after death"):
        true_risk(cdm, death, "t2dm_hf_1y")
    assert true_risk(cdm, rows.head(0), "t2dm_hf_1y").height == 0


def test_rows_are_chosen_by_hash(cdm: Path) -> None:
    rows = index_rows(cdm, "discharge_home_death_1y")
    some = choose_rows(rows, 30, 1)
    assert some.height == 30
    assert some.equals(choose_rows(rows, 30, 1))
    assert choose_rows(rows, 60, 1).join(some, on=some.columns, how="semi").height == 30  # more rows are these and others
    assert choose_rows(rows, None, 1).equals(rows)


def at_index(name: str, days: float, *, people: int = 4000) -> State:
    """`people` copies of one diabetic whose `name` was `days` ago."""
    states = lived(1, 5).states.take(np.zeros(people, dtype=np.int64))
    states.row, states.key = np.arange(people), make_keys(9, np.arange(people))
    states.last[:] = NEVER
    states.clock = states.birth + 68 * YEAR
    states.last[CORE.marker["diabetes"]] = states.clock - DAY
    states.last[CORE.marker[name]] = states.clock - days * DAY
    states.next_visit = states.clock + 60 * DAY
    return states


def test_how_long_ago_changes_the_true_risk() -> None:
    """The same order of the same events, another distance: another risk."""
    risk = {}
    for days in (20.0, 1500.0):
        start = at_index("hypertension", days)
        met = Process(CORE).run(start, start.clock + 365 * DAY, stop=lambda part: part.is_event("heart_failure"))
        risk[days] = (met.event == CORE.index["heart_failure"]).mean() * len(met) / len(start)
    assert risk[20.0] > 2 * risk[1500.0]


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_calibration_by_decile(tmp_path: Path, task: str) -> None:
    simulate(tmp_path / "cdm", SimulateConfig(population="core", patients=8000, seed=21, truth_samples=0))
    rows = index_rows(tmp_path / "cdm", task).unique("subject_id", keep="first", maintain_order=True)
    rows = outcomes(tmp_path / "cdm", rows, task)
    sorting, residual = check_calibration(tmp_path / "cdm", rows, task, samples=200, groups=10)
    # and the slope of the log odds is 1
    z = np.log((sorting + 0.003) / (1 - sorting + 0.003))
    z -= z.mean()
    information = (sorting * (1 - sorting) * z**2).sum()
    assert abs((residual * z).sum() / information) < 3.5 / np.sqrt(information)


def test_resimulate_counts_progress() -> None:
    people = lived(30, 2)
    seen: list[tuple[int, int]] = []
    states = people.states.take(np.arange(10))
    resimulate(states, states.row + 1, states.clock, TASKS["t2dm_hf_1y"], samples=2000, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    assert len(seen) > 1

"""What the forecast stage writes stands together: predictions, their curves, trajectories, and nothing of another forecast."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt import stages
from cehrxgpt.errors import InputError, MismatchError, OutputExistsError
from cehrxgpt.forecast import Journal, forecast, one_pass
from cehrxgpt.forecast.futures import open_visits
from cehrxgpt.forecast.rows import refusals
from cehrxgpt.manifest import content_fingerprint
from cehrxgpt.stages.forecasting import _stamps, open_journal
from cehrxgpt.stages.judging import curves_beside
from cehrxgpt.tasks import label, load_task
from test_evaluate_predictions import labels_frame
from test_forecast_one_pass import DEATH, constant, head, small_model
from test_forecast_truth import LAST, SHARES
from toy_capabilities import OUTCOME, bare_chain, history, markov

TASK = """
name: toy
description: toy
concept_sets: {index: {condition: [1]}, outcome: {condition: [2]}}
index: {concepts: index, occurrence: last}
outcome: {concepts: outcome}
horizon_days: 30
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The stage, with a chain in place of the model in a folder."""
    (tmp_path / "toy.yaml").write_text(TASK)
    labels = labels_frame([True, False], subjects=[1, 2], task="toy").with_columns(
        pl.lit(LAST + timedelta(days=1)).cast(pl.Datetime("us")).alias("prediction_time")
    )
    labels.write_parquet(tmp_path / "labels.parquet")
    people = pl.DataFrame({"subject_id": [1, 2], "split": ["held_out"] * 2})
    monkeypatch.setattr("cehrxgpt.events.EventDataset", lambda root: SimpleNamespace(root=root, splits=["held_out"], subject_splits=people))

    def drawn(model, dataset, rows, tasks, config, *, pools, say=lambda line: None, **_):
        journal = open_journal(pools, "key", (0, 1), say)
        known = [load_task(one) for one in tasks]
        return forecast(markov(bare_chain(SHARES, 0.1, 0.05)), history(2), rows, known, config, journal=journal), journal

    monkeypatch.setattr("cehrxgpt.stages.forecasting._forecast", drawn)

    def stage(out: str, *, labels=("labels.parquet",), samples: int = 4, estimator: str = "mc", **options):
        files, settings = [tmp_path / one for one in labels], {"samples": samples, "estimator": estimator, "max_new_tokens": 64}
        settings |= {name: options.pop(name) for name in ("max_new_tokens", "target_std_error", "seed") if name in options}
        return stages.forecast(
            tmp_path / "model", tmp_path / "events", files, tmp_path / out, settings, tasks=[str(tmp_path / "toy.yaml")], **options
        )

    return stage


def test_curves_of_a_former_forecast_are_taken_away(run, tmp_path: Path) -> None:
    run("risk.parquet", curves=True)
    assert curves_beside(tmp_path / "risk.parquet").is_file()
    run("risk.parquet", samples=9, force=True)
    assert not curves_beside(tmp_path / "risk.parquet").exists()
    run("risk.parquet", curves=True, force=True)
    (tmp_path / "risk.parquet").unlink()
    with pytest.raises(OutputExistsError, match="curves"):
        run("risk.parquet")
    assert curves_beside(tmp_path / "risk.parquet").is_file()


def test_a_run_asks_the_head_beside_the_futures_and_of_the_same_rows(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = head({OUTCOME: [0.002], DEATH: [0.001]})

    def read(model, dataset, rows, tasks, *_):
        return one_pass(small_model(), history(2), rows, [load_task(one) for one in tasks], head=known)

    monkeypatch.setattr("cehrxgpt.stages.forecasting._one_pass", read)
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "heads.json").write_text('{"time_to_event": {}}')
    labels = tmp_path / "labels"
    labels.mkdir()
    both = pl.read_parquet(tmp_path / "labels.parquet")
    early = both[1:].with_columns(pl.col("prediction_time").dt.offset_by("-60y"))  # before anything is known
    pl.concat([both, early]).write_parquet(labels / "toy.parquet")
    settings = SimpleNamespace(split="held_out", max_rows=10, seed=0, estimator="mc", samples=4, max_new_tokens=64, target_std_error=None)
    stages.forecast_all(tmp_path / "model", tmp_path / "events", labels, [str(tmp_path / "toy.yaml")], tmp_path / "out", settings)
    told = pl.read_parquet(tmp_path / "out" / "toy.parquet")
    s.check_columns(told.to_arrow(), s.PREDICTION_SCHEMA, where="told")
    assert told["method"].to_list() == ["monte_carlo"] * 3 + ["time_to_event"] * 2
    assert told.filter(pl.col("method") == "time_to_event").select("subject_id", "boolean_value").rows() == [(1, True), (2, False)]
    assert told.filter(pl.col("method") == "time_to_event")["predicted_boolean_probability"].to_list() == pytest.approx(
        [constant(0.002, 0.001, 30)] * 2
    )
    (tmp_path / "model" / "heads.json").unlink()
    stages.forecast_all(tmp_path / "model", tmp_path / "events", labels, [str(tmp_path / "toy.yaml")], tmp_path / "out", settings)
    assert pl.read_parquet(tmp_path / "out" / "toy.parquet")["method"].to_list() == ["monte_carlo"] * 3, "a model without a head is not read"


def test_a_head_that_says_the_same_of_everybody_is_told(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that was trained for seconds: its risks look like any others."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "heads.json").write_text('{"time_to_event": {}}')
    two = pl.read_parquet(tmp_path / "labels.parquet")
    pl.concat([two.with_columns(pl.col("subject_id") + 2 * more) for more in range(10)]).write_parquet(tmp_path / "many.parquet")
    known = head({OUTCOME: [0.002], DEATH: [0.001]})
    for step, told in ((0.0, "gives all 20 rows the risk"), (0.0002, "the model is hardly trained, or these rows are alike"), (0.01, None)):

        def read(model, dataset, rows, tasks, *_, step=step):
            found = one_pass(small_model(), history(20), rows, [load_task(one) for one in tasks], head=known)
            risk = pl.col("predicted_boolean_probability") + step * pl.int_range(pl.len())
            return replace(found, predictions=found.predictions.with_columns(risk.alias("predicted_boolean_probability")))

        monkeypatch.setattr("cehrxgpt.stages.forecasting._one_pass", read)
        lines = run(f"{step}.parquet", labels=("many.parquet",), estimator="time_to_event")["notes"]
        assert [told in line for line in lines if line.startswith("toy: ")] == ([True] if told else [])
        (of_errors,) = run(f"{step}.two.parquet", estimator="time_to_event")["notes"]  # two people may well be alike
        assert of_errors.startswith("std_error is null")


def test_rows_of_strangers_are_told_and_kept(run, tmp_path: Path) -> None:
    """Labels made before the data were read again: those who are there are forecast, and nobody's row is lost."""
    labels = pl.read_parquet(tmp_path / "labels.parquet")
    strange = labels.with_columns(pl.col("subject_id") + 1)  # 2 and 3, of 1 and 2
    strange.write_parquet(tmp_path / "older.parquet")
    found = run("risk.parquet", labels=("older.parquet",))
    assert any(note.startswith("1 of 2 rows of") and "not in" in note for note in found["notes"])
    risks = pl.read_parquet(tmp_path / "risk.parquet")
    assert risks["note"].to_list() == [None, "the subject is not in the events"]
    assert risks["predicted_boolean_probability"].is_null().to_list() == [False, True]
    sampled = run("some.parquet", labels=("older.parquet",), max_rows=1)
    assert sampled["predicted"] == 1
    assert any(note.endswith("and are left out") for note in sampled["notes"])
    labels.with_columns(pl.col("subject_id") + 10).write_parquet(tmp_path / "others.parquet")
    with pytest.raises(MismatchError, match="2 subjects are not in"):
        run("none.parquet", labels=("others.parquet",))


def test_reasons_are_counted_without_what_differs_from_row_to_row() -> None:
    """Brackets at the end alone: those inside a name are part of it."""
    notes = ["too much is unknown (60%)", "too much is unknown (75%)", "no set: a bound of 'glucose below 54 (unit 8840)'", None]
    told = pl.DataFrame({"predicted_boolean_probability": [None, None, None, 0.1], "note": notes})
    assert refusals(told) == {"too much is unknown": 2, "no set: a bound of 'glucose below 54 (unit 8840)'": 1}


def test_a_forecast_of_nothing_says_why(run, tmp_path: Path) -> None:
    labels = pl.read_parquet(tmp_path / "labels.parquet").with_columns(pl.col("prediction_time").dt.offset_by("-60y"))
    labels.write_parquet(tmp_path / "early.parquet")
    notes = run("risk.parquet", labels=("early.parquet",))["notes"]
    assert notes == ["no row has a forecast: nothing is known before the prediction time (2)"]


def test_pools_of_an_interrupted_forecast_stay_and_are_told(run, tmp_path: Path) -> None:
    """The same output asked for with other settings in between: nothing of the first is lost."""
    left = tmp_path / ".risk.parquet.pools" / "another" / "pool-128-000000.zip"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(3 * 2**19))
    (note,) = run("risk.parquet")["notes"]
    assert note.startswith("1.5 MiB of other forecasts")
    assert str(left.parent.parent) in note
    assert [file.name for file in left.parent.parent.rglob("*")] == ["another", left.name]


def test_a_forecast_that_goes_on_says_so(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its beginning and in what it leaves."""
    monkeypatch.setattr(Journal, "clear", lambda journal: None)  # as where the process ends just before
    assert run("risk.parquet")["notes"] == []
    (tmp_path / "risk.parquet").unlink()
    said: list[str] = []
    (note,) = run("risk.parquet", say=said.append)["notes"]
    assert said == [f"going on from what was drawn before: 1 pool of futures in {tmp_path / '.risk.parquet.pools'}"]
    assert note == f"went on from what was drawn before: pools of futures in {tmp_path / '.risk.parquet.pools'} (1)"


def test_a_share_says_how_the_whole_comes_about(run, tmp_path: Path) -> None:
    """It has no output of its own, and looks like any other forecast in its figures."""
    pools, out = tmp_path / ".risk.parquet.pools", tmp_path / "risk.parquet"
    told = run(out.name, share=(1, 2))
    assert told["share"] == "2/2"
    assert told["notes"][0] == f"kept in {pools}: when all 2 shares are drawn, the same command without a share writes {out}"
    assert not out.exists()


@pytest.mark.parametrize("folder", ["risk.parquet", "risk.curves.parquet", ".risk.parquet.pools", "."])
def test_trajectories_never_replace_another_output(run, tmp_path: Path, folder: str) -> None:
    with pytest.raises((InputError, OutputExistsError)):
        run("risk.parquet", trajectories=tmp_path / folder, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"toy.yaml", "labels.parquet"}
    run("risk.parquet", trajectories=tmp_path / "futures", force=True)
    assert (tmp_path / "futures" / "trajectories.parquet").is_file()


def test_rows_that_stand_in_two_files_are_refused(run, tmp_path: Path) -> None:
    (tmp_path / "copy.parquet").write_bytes((tmp_path / "labels.parquet").read_bytes())
    with pytest.raises(InputError, match=r"2 rows of task toy stand in more than one file \(.*labels\.parquet, .*copy\.parquet\)"):
        run("risk.parquet", labels=("labels.parquet", "copy.parquet"))


def test_an_estimator_that_a_task_cannot_have_is_told(run, tmp_path: Path) -> None:
    assert (run("risk.parquet", estimator="scope")["monte_carlo_instead"], run("more.parquet", estimator="scope")["notes"]) == ({}, [])
    (tmp_path / "toy.yaml").write_text(TASK + "competing: [{concepts: index}]\n")
    figures = run("other.parquet", estimator="scope")
    assert figures["monte_carlo_instead"] == {"toy": "something but death competes with the outcome"}
    assert figures["notes"] == ["toy: by Monte Carlo, as something but death competes with the outcome"]
    assert figures["methods"] == {"monte_carlo": 2}
    assert run("last.parquet")["notes"] == []  # it was asked for


def test_what_should_compete_and_never_can_is_told(run, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(
        TASK.replace("{condition: [2]}", "{condition: [2]}, typo: {condition: [22]}") + "competing: [{concepts: typo}]\n"
    )
    figures = run("risk.parquet")
    assert figures["idle_competitors"] == {"toy": ["typo"]}
    assert figures["notes"] == ["toy: no future meets typo, which should compete: not in the vocabulary"]


def test_futures_of_an_open_stay_carry_its_id() -> None:
    """And not that of a visit within it, which is part of the stay in the tokens."""
    now = datetime(2020, 1, 5)
    rows = [(1, "Visit/9203", 1, 30), (1, "Visit/9201", 2, 10), (1, "Visit/9202", 3, 20), (2, "Visit/8870", 1, 40), (2, "Visit/9203", 3, 41)]
    frame = pl.DataFrame(
        [(subject, now, code, datetime(2020, 1, day), None, visit) for subject, code, day, visit in rows],
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "code": pl.String, "time": pl.Datetime("us"),
                "end_time": pl.Datetime("us"), "visit_id": pl.Int64},
        orient="row",
    )  # fmt: skip
    moment = int(now.replace(tzinfo=UTC).timestamp() * 1_000_000)
    assert open_visits(frame) == {(1, moment): 10, (2, moment): 40}


def test_a_task_that_no_row_asks_for_is_refused(run, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TASK.replace("name: toy", "name: mine"))
    with pytest.raises(InputError, match="--task mine: no row asks for it; the labels are of toy"):
        run("risk.parquet")


def test_what_few_tokens_or_samples_leave_open_is_told(run, tmp_path: Path) -> None:
    told = run("risk.parquet", max_new_tokens=3)
    assert told["mean_risk"]["toy"] == pytest.approx(pl.read_parquet(tmp_path / "risk.parquet")["predicted_boolean_probability"].mean(), abs=1e-4)
    assert any("end before the answer is known" in note and "--max-tokens" in note for note in told["notes"])
    told = run("none.parquet", max_new_tokens=1, samples=1, seed=3)
    assert told["completion"] == 0
    assert any("end before the answer is known" in note for note in told["notes"])
    told = run("exact.parquet", target_std_error=0.001, samples=45)
    (note,) = told["notes"]
    assert note.startswith("the standard error is above --target-std-error in 2 of 2 rows; in 2 of them --samples were used up, some of which only")
    assert told["samples_needed"] > 1000
    told = run("short.parquet", target_std_error=0.001, samples=45, max_new_tokens=3)
    assert told["samples_needed"] is None
    assert any(note.endswith("some of which only decide how many are drawn: more futures would have to be finished") for note in told["notes"])


def test_labels_of_another_definition_of_the_task_are_refused(run, tmp_path: Path) -> None:
    """A task file that is edited after labelling keeps its name, and asks something else."""
    made = label(history(2), str(tmp_path / "toy.yaml"))
    replace(made, labels=pl.read_parquet(tmp_path / "labels.parquet")).write(tmp_path / "own.parquet")
    run("risk.parquet", labels=["own.parquet"])
    for edited in (TASK.replace("30", "300"), TASK.replace("condition: [2]", "condition: [2, 3]"), TASK + "first_onset: true\n"):
        (tmp_path / "toy.yaml").write_text(edited)
        with pytest.raises(MismatchError, match=r"own.parquet: these labels were made by another definition of toy"):
            run("other.parquet", labels=["own.parquet"])
    (tmp_path / "toy.yaml").write_text(TASK + "censoring: closed_world\n")  # how silence is read, and who is asked, is the labels' own
    run("other.parquet", labels=["own.parquet"])


def test_events_behind_a_link_are_known_by_their_files_too(tmp_path: Path) -> None:
    real, dataset = tmp_path / "real" / "train", tmp_path / "events [a]"
    real.mkdir(parents=True)
    dataset.mkdir()
    pl.DataFrame({"subject_id": [1]}).write_parquet(real / "0.parquet")
    (dataset / "data").symlink_to(tmp_path / "real", target_is_directory=True)
    before, contents = _stamps(dataset), content_fingerprint(dataset)
    assert [name for name, *_ in before] == ["data/train/0.parquet"]
    pl.DataFrame({"subject_id": [1, 2]}).write_parquet(real / "0.parquet")
    assert _stamps(dataset) != before
    assert content_fingerprint(dataset) != contents

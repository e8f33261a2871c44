"""`evaluate predictions`: from files to a folder of tables and charts."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from cehrxgpt import cli, stages
from cehrxgpt import schema as s
from cehrxgpt.errors import MismatchError, OutputExistsError
from cehrxgpt.evaluate import evaluate_predictions
from cehrxgpt.report.run import RunFolder
from cehrxgpt.stages.judging import curves_beside
from test_evaluate_predictions import curves_frame, labels_frame, relabelled


@pytest.fixture
def files(tmp_path):
    """Labels of two tasks, predictions of held-out and tuning patients, and curves of one task."""
    rng = np.random.default_rng(0)
    risks, tables = [], []
    for task in ("t", "u"):
        p = rng.beta(1, 3, 400)
        labels = labels_frame((rng.random(400) < p).tolist(), task=task).with_columns(pl.col("observed").fill_null(False))
        tables.append(labels)
        risk = labels.select("subject_id", "prediction_time", "task").with_columns(pl.Series("predicted_boolean_probability", p))
        risk = risk.with_columns(pl.lit("monte_carlo").alias("method"), (pl.Series(p) >= 0.5).alias("predicted_boolean_value"))
        empty = {f.name: pl.Float64 for f in s.PREDICTION_SCHEMA} | {"boolean_value": pl.Boolean, "num_samples": pl.Int32, "note": pl.String}
        risks.append(risk.select(pl.col(n) if n in risk.columns else pl.lit(None, dtype=empty[n]).alias(n) for n in s.PREDICTION_SCHEMA.names))
        labels.write_parquet(tmp_path / f"{task}.parquet")
    every = pl.concat(risks)
    held = every.filter(pl.col("subject_id") < 200)
    held.write_parquet(tmp_path / "risk.parquet")
    every.filter(pl.col("subject_id") >= 200).write_parquet(tmp_path / "tuning.parquet")
    mine = held.filter(pl.col("task") == "t")
    p = mine["predicted_boolean_probability"].to_numpy()
    curves_frame(mine, lambda day: p * day / 30, [10.0, 20.0, 30.0]).write_parquet(tmp_path / "risk.curves.parquet")
    return tmp_path


def test_a_folder_of_tables_and_charts(files):
    labels = [files / "t.parquet", files / "u.parquet"]
    figures = stages.evaluate_predictions(files / "risk.parquet", labels, files / "out", recalibrate=f"{files / 'tuning.parquet'}:platt")
    metrics = pl.read_parquet(files / "out" / "metrics.parquet")
    s.check_columns(metrics.to_arrow(), s.METRIC_SCHEMA, where="metrics")
    assert metrics["method"].unique(maintain_order=True).to_list() == ["monte_carlo", "monte_carlo+platt", "constant"]
    assert figures["metrics"]["t monte_carlo auroc"] == pytest.approx(metrics["value"][0], abs=5e-4)
    exact = metrics.filter(pl.col("metric").is_in(["rows", "censored", "refused", "unshared"]).not_(), pl.col("value").is_not_null())
    assert exact["value"].equals(exact["value"].round_sig_figs(3))  # of 200 people: whoever has the risks does not solve exact figures for outcomes
    assert metrics.filter(pl.col("metric") == "integrated_brier").select("task", "method").rows() == [("t", "monte_carlo")]
    mapped = pl.read_parquet(files / "out" / "recalibrated.parquet")
    s.check_columns(mapped.to_arrow(), s.PREDICTION_SCHEMA, where="recalibrated")
    names = sorted(path.relative_to(files / "out").as_posix() for path in (files / "out").rglob("*") if path.is_file())
    charts = [f"{kind}.{task}.svg" for kind in ("calibration", "net_benefit") for task in ("t", "u")]
    tables = ["calibration.parquet", "metrics.parquet", "net_benefit.parquet", "recalibrated.parquet"]
    assert names == sorted(charts + tables + [f"meds/{task}.{method}.parquet" for task in "tu" for method in ("monte_carlo", "monte_carlo+platt")])
    for chart in charts:
        root = ElementTree.parse(files / "out" / chart).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        told = "".join(root.itertext())
        assert "zero-shot, Platt" in told
    with pytest.raises(OutputExistsError):
        stages.evaluate_predictions(files / "risk.parquet", labels, files / "out")


def test_a_chart_of_too_few_people_is_left_out_and_said(files):
    few = pl.read_parquet(files / "risk.parquet").filter(pl.col("task") == "u").head(60)
    few.write_parquet(files / "few.parquet")
    notes = stages.evaluate_predictions(files / "few.parquet", [files / "u.parquet"], files / "out")["notes"]
    assert "calibration.u.svg is left out: no method has two bins of 11 people or more" in notes
    assert not (files / "out" / "calibration.u.svg").exists()


def test_risks_that_are_all_but_one_are_said(files):
    """A model that knows nothing, and a map of predictions that rank the wrong way round: their slopes are chance."""

    def said(risk: pl.DataFrame, recalibrate: str | None = None) -> list[str]:
        risk.write_parquet(files / "one.parquet")
        notes = stages.evaluate_predictions(files / "one.parquet", [files / "t.parquet"], None, recalibrate=recalibrate)["notes"]
        return [note for note in notes if "constant" not in note]

    risk, tuning = (pl.read_parquet(files / f"{name}.parquet").filter(pl.col("task") == "t") for name in ("risk", "tuning"))
    assert said(risk) == []
    (note,) = said(risk.with_columns((pl.col("predicted_boolean_probability") - 0.5) * 0.01 + 0.25))
    assert note.startswith("t: zero-shot: nine in ten risks lie between 0.24")
    tuning.with_columns(pl.col("predicted_boolean_probability") * -1 + 1).write_parquet(files / "turned.parquet")
    (note,) = said(risk, f"{files / 'turned.parquet'}:platt")
    assert note.startswith(f"t: zero-shot, Platt gives all {risk.height} rows the risk 0.2")


def test_metrics_of_few_events_are_said_to_be(files):
    """Of one event an AUROC has an interval like any other."""
    risk, labels = pl.read_parquet(files / "risk.parquet"), pl.read_parquet(files / "t.parquet")
    mine = risk.filter(pl.col("task") == "t").join(
        labels.select("subject_id", "prediction_time", known="boolean_value"), on=["subject_id", "prediction_time"]
    )
    (files / "risk.curves.parquet").unlink()
    for positive, negative, which in ((10, 40, "have the outcome"), (40, 1, "do not have the outcome"), (11, 11, None)):
        rows = pl.concat([mine.filter(pl.col("known")).head(positive), mine.filter(~pl.col("known")).head(negative)])
        rows.drop("known").write_parquet(files / "risk.parquet")
        notes = stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet", files / "u.parquet"], None)["notes"]
        said = [note for note in notes if "fewer than 11 people of the judged rows" in note]
        assert said == (
            [f"t: fewer than 11 people of the judged rows {which}; metrics say little then, and their intervals are too narrow"] if which else []
        )


def test_risks_of_a_few_people_are_in_no_note(files):
    """That ten people's risks are alike would say these risks."""
    (files / "risk.curves.parquet").unlink()
    risk = pl.read_parquet(files / "risk.parquet").filter(pl.col("task") == "t").with_columns(pl.lit(0.25).alias("predicted_boolean_probability"))
    for people, told in ((10, False), (11, True)):
        risk.head(people).write_parquet(files / "risk.parquet")
        notes = stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet"], None)["notes"]
        assert any("0.2500" in note for note in notes) == told


def test_what_methods_do_not_share_and_weights_at_their_limit_are_said(files):
    (files / "risk.curves.parquet").unlink()
    risk, labels = pl.read_parquet(files / "risk.parquet").filter(pl.col("task") == "t"), pl.read_parquet(files / "t.parquet")
    other = risk.with_columns(
        pl.lit("reach").alias("method"),
        pl.when(pl.int_range(pl.len()) >= 40).then("predicted_boolean_probability").alias("predicted_boolean_probability"),
    )
    pl.concat([risk, other]).write_parquet(files / "risk.parquet")
    notes = stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet"], None)["notes"]
    (note,) = [note for note in notes if "compared on the rows that all of them predict" in note]
    assert note.endswith("left out, though predicted: zero-shot: 40")
    assert not any("stand for more" in note for note in notes)
    gone = pl.int_range(pl.len()) % 40 > 0  # all but one in forty are lost before their windows close
    lost = labels.with_columns(
        pl.when(gone).then(None).otherwise(pl.int_range(pl.len()) % 80 == 0).alias("boolean_value"),
        pl.when(gone).then(1.0).otherwise(30.0).alias("time_to_event_days"),
    )
    relabelled(lost, lost["boolean_value"]).write_parquet(files / "t.parquet")
    notes = stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet"], None)["notes"]
    (note,) = [note for note in notes if "stand for more" in note]
    assert note.startswith("t: under one in 20 was followed for long enough;")
    unfinished = risk.with_columns(pl.when(pl.int_range(pl.len()) < 80).then(0.0).otherwise(1.0).alias("completion"))
    unfinished.write_parquet(files / "risk.parquet")
    notes = stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet"], None)["notes"]
    assert any(note.startswith("t: zero-shot: no future was finished in 2 of ") for note in notes)  # all but one in forty are lost


def test_lost_rows_without_times_and_tasks_in_vain_are_said(files):
    (files / "risk.curves.parquet").unlink()
    labels = pl.read_parquet(files / "t.parquet")
    lost = labels.with_columns(pl.when(pl.int_range(pl.len()) % 4 > 0).then("boolean_value").alias("boolean_value"))
    silent = relabelled(lost, lost["boolean_value"]).with_columns(pl.lit(None, dtype=pl.Float64).alias("time_to_event_days"))
    silent.write_parquet(files / "t.parquet")
    pl.read_parquet(files / "risk.parquet").filter(pl.col("task") == "t").write_parquet(files / "risk.parquet")
    notes = stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet", files / "u.parquet"], None, tasks=["death_1y", "t2dm_hf_1y"])[
        "notes"
    ]
    assert [note for note in notes if note.startswith("--task")] == [
        f"--task {name}: no prediction is of it, and it says nothing here" for name in ("death_1y", "t2dm_hf_1y")
    ]
    assert any("labels are not known and say no time, so that no row can stand for these" in note for note in notes)


def test_both_maps_and_other_people(files):
    labels = [files / "t.parquet", files / "u.parquet"]
    figures = stages.evaluate_predictions(files / "risk.parquet", labels, None, recalibrate=str(files / "tuning.parquet"))
    assert {"t monte_carlo+platt ece", "u monte_carlo+isotonic ece"} <= set(figures["metrics"])
    with pytest.raises(MismatchError, match="200 subjects"):
        stages.evaluate_predictions(files / "risk.parquet", labels, None, recalibrate=f"{files / 'risk.parquet'}:isotonic")


def test_the_verb(files, monkeypatch, capsys):
    arguments = ["evaluate", "predictions", str(files / "risk.parquet"), "--labels", str(files / "t.parquet"), "--labels", str(files / "u.parquet")]
    monkeypatch.setattr(sys, "argv", ["cehrxgpt", *arguments, "--out", str(files / "judged"), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "u monte_carlo c_index" in json.loads(capsys.readouterr().out)["metrics"]
    assert (files / "judged" / "metrics.parquet").is_file()


def test_a_report_shows_everybody_and_no_curve_is_a_task(files):
    metrics = evaluate_predictions(
        pl.read_parquet(files / "risk.parquet").filter(pl.col("task") == "t"), pl.read_parquet(files / "t.parquet"), replicates=0
    )
    level = metrics.with_columns(pl.lit("sex").alias("subgroup"), pl.lit("female").alias("level"))
    for folder in ("evaluation", "forecast"):
        (files / "run" / folder).mkdir(parents=True)
    pl.concat([metrics, level]).write_parquet(files / "run" / "evaluation" / "metrics.parquet")
    for name in ("t.parquet", "t.curves.parquet"):
        (files / "run" / "forecast" / name).write_bytes((files / "risk.parquet").read_bytes())
    run = RunFolder(files / "run")
    assert run.metrics is not None
    assert run.metrics.height == metrics.height
    assert run.tasks == ["t"]


def test_where_curves_lie(tmp_path):
    assert curves_beside(tmp_path / "risk.parquet") == tmp_path / "risk.curves.parquet"


def test_events_that_lack_predicted_people_are_refused(files, monkeypatch):
    """Some ids are in both by chance."""
    people = pl.DataFrame({"subject_id": range(100), "split": ["held_out"] * 100})
    monkeypatch.setattr("cehrxgpt.events.EventDataset", lambda root: SimpleNamespace(root=root, subject_splits=people))
    with pytest.raises(MismatchError, match="predictions: 100 subjects are not in"):
        stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet", files / "u.parquet"], None, events=files / "events")


def test_curves_of_another_method_are_refused(files):
    pl.read_parquet(files / "risk.parquet").with_columns(pl.lit("other").alias("method")).write_parquet(files / "risk.parquet")
    with pytest.raises(MismatchError, match=r"risk.curves.parquet: curves of another forecast \(.*none is of a row of"):
        stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet", files / "u.parquet"], None)


def test_curves_of_another_forecast_are_refused(files):
    labels = [files / "t.parquet", files / "u.parquet"]
    risk = pl.read_parquet(files / "risk.parquet")
    other = risk.with_columns((pl.col("predicted_boolean_probability") * 0.9).alias("predicted_boolean_probability"))
    other.write_parquet(files / "risk.parquet")
    with pytest.raises(MismatchError, match="curves of another forecast: 200 of 200"):
        stages.evaluate_predictions(files / "risk.parquet", labels, None)
    other.with_columns(pl.lit(0.8).alias("completion")).write_parquet(
        files / "risk.parquet"
    )  # with unfinished futures, too, a curve ends at the risk
    with pytest.raises(MismatchError, match="curves of another forecast: 200 of 200"):
        stages.evaluate_predictions(files / "risk.parquet", labels, None)


def test_nothing_to_judge_is_said(files):
    (files / "risk.curves.parquet").unlink()
    risk, labels = pl.read_parquet(files / "risk.parquet"), [files / "t.parquet", files / "u.parquet"]
    risk.clear().write_parquet(files / "risk.parquet")
    assert stages.evaluate_predictions(files / "risk.parquet", labels, None)["notes"] == ["there is nothing to judge: the predictions have no row"]
    nothing = pl.lit(None, dtype=pl.Float64).alias("predicted_boolean_probability")
    risk.filter(pl.col("task") == "t").with_columns(nothing).write_parquet(files / "risk.parquet")
    notes = stages.evaluate_predictions(files / "risk.parquet", labels, None)["notes"]
    assert notes[0] == "t: zero-shot has no row with both a prediction and a known label, and so no metrics"


def test_any_name_of_a_task_or_method_makes_a_file(files):
    """A slash in a name is no folder, and names that are told apart by a sign alone stay apart."""
    for name in ("risk", "t"):
        table = pl.read_parquet(files / f"{name}.parquet").filter(pl.col("task") == "t")
        both = [table.with_columns(pl.lit(task).alias("task")) for task in ("../a/b", "../a b")]
        both = [one.with_columns(pl.lit("my/model").alias("method")) for one in both] if name == "risk" else both
        pl.concat(both).write_parquet(files / f"{name}.parquet")
    (files / "risk.curves.parquet").unlink()
    stages.evaluate_predictions(files / "risk.parquet", [files / "t.parquet"], files / "out" / "judged")
    names = sorted(
        path.relative_to(files / "out").as_posix() for path in (files / "out").rglob("*") if path.suffix == ".svg" or path.parent.name == "meds"
    )
    drawn = [f"judged/{kind}.{task}.svg" for kind in ("calibration", "net_benefit") for task in (".._a_b", ".._a_b_2")]
    assert names == sorted([*drawn, "judged/meds/.._a_b.my_model.parquet", "judged/meds/.._a_b_2.my_model.parquet"])

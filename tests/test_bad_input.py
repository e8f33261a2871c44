"""Bad input, at the command line: one clear line, exit status 2 (or 1 where the machine fails), nothing half-written."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from cehrxgpt import cli, console, stages


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small hospital, from its tables to a model."""
    folder = tmp_path_factory.mktemp("artefacts")
    stages.simulate(folder / "cdm", {"patients": 150, "seed": 3, "truth_samples": 0})
    stages.ingest(folder / "cdm", folder / "events", {})
    stages.tokenize(folder / "events", folder / "timeline", {})
    stages.pretrain(folder / "timeline", folder / "model", "tiny", overrides={"steps": 2})
    stages.label(folder / "events", "discharge_home_death_1y", folder / "labels.parquet")
    return folder


def invoke(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what stood on standard error, of one command in this process."""
    monkeypatch.setattr("sys.argv", ["cehrxgpt", *arguments])
    monkeypatch.setattr("sys.excepthook", sys.excepthook)  # put back after the test
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


CASES = {
    "an empty folder": (["ingest", "{here}/empty", "--out", "{here}/out"], "empty"),
    "no such source": (["ingest", "{here}/nowhere", "--out", "{here}/out"], "nowhere"),
    "a truncated table": (["ingest", "{here}/truncated", "--out", "{here}/out"], "condition_occurrence"),
    "a wrong column type": (["ingest", "{here}/wrong_type", "--out", "{here}/out"], "condition_concept_id"),
    "a truncated shard": (["tokenize", "{here}/bad_events", "--out", "{here}/out"], "Parquet"),
    "no event data set": (["tokenize", "{here}/empty", "--out", "{here}/out"], "ingest"),
    "an unknown recipe key": (["pretrain", "{made}/timeline", "--recipe", "{here}/recipe.yaml", "--out", "{here}/out"], "learning_rate"),
    "an unknown recipe": (["pretrain", "{made}/timeline", "--recipe", "demmo", "--out", "{here}/out"], "demo"),
    "an unknown run key": (["run", "{here}/run.yaml", "--out", "{here}/out"], "simulate"),
    "two tasks for one file of labels": (
        ["label", "{made}/events", "--task", "death_1y", "--task", "readmission_30d", "--out", "{here}/out"],
        "given 2 times",
    ),
    "an unknown task": (["label", "{made}/events", "--task", "t2dm_hf", "--out", "{here}/out"], "t2dm_hf_1y"),
    "no model": (["embed", "{here}/empty", "{made}/events", "--labels", "{made}/labels.parquet", "--out", "{here}/out"], "config.json"),
    "labels of strangers": (["forecast", "{made}/model", "{made}/events", "--labels", "{here}/strangers.parquet", "--out", "{here}/out"], "999999"),
    "labels that are no labels": (
        ["embed", "{made}/model", "{made}/events", "--labels", "{here}/other.parquet", "--out", "{here}/out"],
        "subject_id",
    ),
    "an unknown estimator": (
        ["forecast", "{made}/model", "{made}/events", "--labels", "{made}/labels.parquet", "--estimator", "magic", "--out", "{here}/out"],
        "mc",
    ),
    "futures of an estimator that draws none": (
        [
            "forecast",
            "{made}/model",
            "{made}/events",
            "--labels",
            "{made}/labels.parquet",
            "--estimator=time_to_event",
            "--samples=9",
            "--max-tokens=64",
            "--out={here}/out",
        ],
        "--samples, --max-tokens: time_to_event draws no futures",
    ),
    "an unknown split": (
        ["forecast", "{made}/model", "{made}/events", "--labels", "{made}/labels.parquet", "--split", "tset", "--out", "{here}/out"],
        "held_out",
    ),
    "hazards of a model without": (
        ["forecast", "{made}/model", "{made}/events", "--labels", "{made}/labels.parquet", "--estimator=time_to_event", "--out={here}/out"],
        "was trained without the objective time_to_event",
    ),
    "a task of one's own without its file": (
        ["forecast", "{made}/model", "{made}/events", "--labels", "{here}/own.parquet", "--out", "{here}/out"],
        "of the task mine, which is not in the library; give its file as well: --task",
    ),
    "a table in another format": (
        ["forecast", "{made}/model", "{made}/events", "--labels", "{made}/labels.parquet", "--out", "{here}/out.csv"],
        "out.csv: tables are written as Parquet",
    ),
    "true risks without re-simulations": (["run", "{here}/truth.yaml", "--out", "{here}/out"], "truth_samples is 0"),
    "nothing to inspect": (["inspect", "{here}/nowhere"], "nowhere"),
    "no run": (["report", "{here}/empty"], "empty"),
    "a page that is none": (["report", "{here}/empty", "--out", "{here}/empty/run.json", "--force"], ".html"),
    "an output inside an input": (["discover", "{made}/model", "{made}/events", "--like", "1", "--out", "{made}/model/found"], "lies inside"),
    "tokens inside their events": (["tokenize", "{made}/events", "--out", "{made}/events/timeline"], "lies inside"),
}


def prepare(here: Path, made: Path) -> None:
    (here / "empty").mkdir()
    for name in ("truncated", "wrong_type"):
        (here / name).mkdir()
        for table in ("person", "visit_occurrence", "observation_period"):
            (here / name / f"{table}.parquet").write_bytes((made / "cdm" / f"{table}.parquet").read_bytes())
    whole = (made / "cdm" / "condition_occurrence.parquet").read_bytes()
    (here / "truncated" / "condition_occurrence.parquet").write_bytes(whole[: len(whole) // 2])
    conditions = pl.read_parquet(made / "cdm" / "condition_occurrence.parquet")
    typed = conditions.with_columns((pl.col("condition_concept_id").cast(pl.String) + "x").alias("condition_concept_id"))
    typed.write_parquet(here / "wrong_type" / "condition_occurrence.parquet")
    (here / "bad_events" / "data" / "train").mkdir(parents=True)
    (here / "bad_events" / "data" / "train" / "0.parquet").write_bytes(b"PAR1 and then nothing")
    (here / "recipe.yaml").write_text("learning_rat: 0.1\n")
    (here / "run.yaml").write_text("simulat: {patients: 10}\ntasks: [t2dm_hf_1y]\n")
    (here / "truth.yaml").write_text("simulate: {patients: 10}\ntasks: [t2dm_hf_1y]\ntruth_samples: 0\n")
    labels = pl.read_parquet(made / "labels.parquet")
    labels.with_columns(pl.lit("mine").alias("task")).write_parquet(here / "own.parquet")
    labels.head(3).with_columns(pl.lit(999_999, dtype=pl.Int64).alias("subject_id")).write_parquet(here / "strangers.parquet")
    labels.select("task").write_parquet(here / "other.parquet")


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, artefacts)
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments, expected = CASES[case]
    status, errors = invoke([part.format(here=tmp_path, made=artefacts) for part in arguments] + ["--json"], monkeypatch, capsys)
    message = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2, errors
    assert len(message) == 1, errors
    assert expected in message[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_forecast_says_what_is_wrong_with_all_of_it(artefacts: Path, tmp_path: Path) -> None:
    """A model of two steps does not know the grammar; and labels may hold nothing."""
    made, labels = (artefacts / "model", artefacts / "events"), artefacts / "labels.parquet"
    found = stages.forecast(*made, [labels], tmp_path / "risk.parquet", {"samples": 2, "max_new_tokens": 32}, max_rows=3)
    assert [note for note in found["notes"] if "it is hardly trained" in note]
    pl.read_parquet(labels).clear().write_parquet(tmp_path / "none.parquet")
    found = stages.forecast(*made, [tmp_path / "none.parquet"], tmp_path / "nothing.parquet", {"samples": 2})
    assert found["notes"] == ["there is nothing to forecast: the labels have no row that was asked for"]


def test_an_output_is_never_replaced_silently(
    artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.parquet"
    out.write_text("mine")
    arguments = ["label", str(artefacts / "events"), "--task", "readmission_30d", "--out", str(out), "--json"]
    status, errors = invoke(arguments, monkeypatch, capsys)
    assert status == 2
    assert "--force" in errors
    assert out.read_text() == "mine"


def test_a_model_and_a_store_that_do_not_match(artefacts: Path, tmp_path: Path) -> None:
    from cehrxgpt.errors import MismatchError
    from cehrxgpt.store.format import TokenStore
    from cehrxgpt.timeline.vocabulary import Vocabulary

    stages.tokenize(artefacts / "events", tmp_path / "timeline", {"min_subjects": 40, "value_bins": 3})
    with pytest.raises(MismatchError) as caught:
        TokenStore(tmp_path / "timeline").check_vocabulary(Vocabulary.load(artefacts / "model"), whose="the model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", ["ingest", "tokenize", "label", "synthesize", "simulate"])
def test_a_failing_disk(verb: str, artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The disk fills while the result is being written: status 1, one line, nothing left behind."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = str(tmp_path / "out")
    arguments = {
        "ingest": ["ingest", str(artefacts / "cdm")],
        "tokenize": ["tokenize", str(artefacts / "events")],
        "label": ["label", str(artefacts / "events"), "--task", "readmission_30d"],
        "synthesize": ["synthesize", str(artefacts / "model"), "--patients", "3"],
        "simulate": ["simulate", "--patients", "30"],
    }[verb]
    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.__init__", full)
    status, errors = invoke([*arguments, "--out", out, "--json"], monkeypatch, capsys)
    assert status == 1, errors
    assert "No space left" in errors
    assert [line for line in errors.splitlines() if line.startswith("error: ")]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_whatever_polars_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wraps what the system says in words of its own."""
    from cehrxgpt.atomic import atomic_path
    from cehrxgpt.errors import StorageError

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    for words in ("parquet: File out of specification: underlying IO error: No space left on device", "Invalid thrift: transport error"):
        with pytest.raises(StorageError, match="No space left on device; nothing was left behind"), atomic_path(tmp_path / "out.parquet"):
            raise pl.exceptions.ComputeError(words)
    with pytest.raises(pl.exceptions.ComputeError, match="conversion"), atomic_path(tmp_path / "out.parquet"):
        raise pl.exceptions.ComputeError("conversion failed")
    assert list(tmp_path.iterdir()) == []


def test_exit_statuses_are_those_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    from cehrxgpt.errors import InputError, StorageError

    monkeypatch.setattr("sys.excepthook", sys.excepthook)

    def refuse() -> None:
        raise InputError("what, where, what would be right")

    def fail() -> None:
        raise StorageError("the disk is full")

    assert console.run(lambda: None) == 0
    assert console.run(refuse) == 2
    assert console.run(fail) == 1

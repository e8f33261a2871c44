"""What people see of the verbs: one clear line for a wrong option, whole sentences in the list of verbs, figures rounded, times true."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cehrxgpt import manifest, pipeline, stages
from cehrxgpt.cli import _command
from cehrxgpt.console import Console, run
from cehrxgpt.errors import InputError
from cehrxgpt.report.artefacts.artefact import columns
from cehrxgpt.report.markup import brief, number
from cehrxgpt.stages.tables import interval, method_name


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["cehrxgpt", *arguments])
    return run(_command)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("forecast", "a", "b", "--labels", "c", "--out", "d", "--samples", "0"), "'--samples': Input should be greater than or equal to 1"),
        (("forecast", "a"), "Missing argument 'EVENTS'"),
        (("nope",), "No such command 'nope'"),
        (("inspect", "x", "--nope"), "No such option: --nope"),
    ],
)
def test_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert _run(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_help_is_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--help",), ("evaluate", "--help")):
        assert _run(monkeypatch, *arguments) == 0
        said = capsys.readouterr().out
        assert "..." not in said.split("Commands:")[1]
    assert _run(monkeypatch) == 2  # nothing asked: the help, on standard error
    assert "Commands:" in capsys.readouterr().err


def test_figures_are_rounded_at_any_depth(capsys: pytest.CaptureFixture[str]) -> None:
    Console().result({"a": 102.30000000000007, "b": [{"c": 0.09267683623146512}], "n": 123456789, "s": "1.00000000001"})
    assert json.loads(capsys.readouterr().out) == {"a": 102.3, "b": [{"c": 0.0926768}], "n": 123456789, "s": "1.00000000001"}


def test_intervals_and_methods_as_people_read_them() -> None:
    assert (interval(0.5, 0.61234), interval(None, None), interval(float("nan"), 1.0)) == ("0.500 to 0.612", "-", "-")
    assert (method_name("monte_carlo"), method_name("probe"), method_name("mine")) == ("zero-shot", "probe", "mine")


def test_a_rerun_that_makes_nothing_new_keeps_the_time_of_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def work(progress: Any) -> dict[str, Any]:
        made.append("once")
        (tmp_path / "out").mkdir(exist_ok=True)
        return {"rows": 1}

    stage = pipeline.Stage("toy", (), (tmp_path / "out",), {}, work)
    (tmp_path / "manifests").mkdir()
    first = pipeline._run_stage(stage, tmp_path, console=Console(quiet=True))
    later = SimpleNamespace(now=lambda zone: (_ for _ in ()).throw(AssertionError("nothing is made, so no time is taken")))
    monkeypatch.setattr(manifest, "datetime", later)
    again = pipeline._run_stage(stage, tmp_path, console=Console(quiet=True))
    assert made == ["once"]
    assert (first["skipped"], again["skipped"]) == (False, True)
    assert first["finished"] == again["finished"]
    assert first["finished"] <= time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def test_words_are_read_from_the_left_and_a_table_fits_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["17", "0.97", "3", "Hypertension, Asthma, " * 12], ["8", "0.5", "12", "none"]]
    Console().table("Like subject 1", ["subject", "cosine", "codes shared", "the rarest of them"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110
    second = next(line for line in lines if "none" in line)
    assert "│ none " in second
    assert " 0.5 │" in second


def test_a_long_note_is_wrapped_beside_its_name() -> None:
    note = "a long note about what was carried over " * 8
    lines = columns([["", "value"], ["tokens", "12 before, 14 after"], ["remark", note], ["loss", "3.2"]])
    assert max(map(len, lines)) <= 100
    assert " ".join(line.strip().removeprefix("remark").strip() for line in lines[2:-1]) == note.strip()
    figures = columns([["name", "n"], ["a", "12"], ["b", "3"]])
    assert figures == ["  name   n", "  a     12", "  b      3"]


def test_one_minus_sign() -> None:
    for value in (-0.123456, -12.5, -123.4, -1234.5, -1e-7):
        assert "-" not in number(value)
        assert number(value).startswith("−")
        assert brief(value).startswith("−")


def test_the_last_line_has_the_figures_that_matter(tmp_path: Path) -> None:
    """What is said of each split, table and disease stands in the stage's own account."""
    made = stages.simulate(tmp_path / "cdm", {"patients": 60, "seed": 3, "truth_samples": 0})
    assert not any(isinstance(value, dict) and len(value) > 3 for value in made.values())
    stages.ingest(tmp_path / "cdm", tmp_path / "events", {})
    told = stages.tokenize(tmp_path / "events", tmp_path / "timeline", {"min_subjects": 3})
    assert not any(isinstance(value, (list, dict)) for value in told.values())
    assert json.loads((tmp_path / "timeline/tokenize.json").read_text(encoding="utf-8"))["splits"]
    with pytest.raises(InputError, match="--dialect: the source is OMOP tables"):
        stages.ingest(tmp_path / "cdm", tmp_path / "again", {"dialect": "mimic"})
    assert not (tmp_path / "again").exists()

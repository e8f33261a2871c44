"""What `benchmarks/objectives.py` counts is what the objectives count, and a run that is done is not repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from cehrxgpt.objectives import NextToken, Value
from cehrxgpt.store.loader import assemble
from cehrxgpt.timeline.kinds import TIME_KINDS, Kind
from toy_objectives import VOCABULARY, decoder, segments
from toy_store import toy_histories, toy_vocabulary

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__(name)


@pytest.mark.parametrize("labs", [(), (2, 3, 5)])
def test_nats_add_up_to_the_objectives(labs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = load("objectives_scores", monkeypatch)
    vocabulary = toy_vocabulary(labs=labs)
    model = decoder(vocabulary_size=len(vocabulary)).float()
    batch = assemble(segments(toy_histories(vocabulary, 20, seed=1)))
    with torch.inference_mode():
        hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
        nats = scores.token_nats(model, vocabulary, hidden, batch)
        objectives = [NextToken(vocabulary, values=not labs), *([Value(vocabulary)] if labs else [])]
        total, count = (sum(parts) for parts in zip(*(objective(model, hidden, batch) for objective in objectives), strict=True))
    assert float(nats.sum()) == pytest.approx(float(total), rel=1e-5)
    sums = scores._by_patient(nats, batch, scores._Kinds.of(vocabulary))
    assert sums["terms"].sum() == int(count)
    assert sums["nats"].sum() == pytest.approx(float(total), rel=1e-5)
    assert (sums["record_nats"] >= sums["what_nats"]).all()


def test_without_its_time_tokens_a_history_keeps_its_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("objectives_data", monkeypatch)
    histories = toy_histories(VOCABULARY, 12, seed=4)
    less = data.without_time(histories, VOCABULARY)
    assert len(less) == 12
    assert (less.censor_gap_days == -1).all()
    for index in range(12):
        before, after = histories.history(index), less.history(index)
        kept = ~np.isin(VOCABULARY.kind[histories.token_id[before]], [int(kind) for kind in TIME_KINDS])
        assert np.array_equal(less.token_id[after], histories.token_id[before][kept])
        assert np.array_equal(less.age_minutes[after], histories.age_minutes[before][kept])
    assert not (VOCABULARY.kind[less.token_id] == Kind.DAY_GAP).any()


def test_a_line_that_was_cut_short_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("results", monkeypatch)
    path = tmp_path / "results.jsonl"
    module.Results(path).add({"key": "a"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "ru')
    results = module.Results(path)
    assert results.has("a")
    assert not results.has("b")
    results.add({"key": "b"})
    assert [json.loads(line)["key"] for line in path.read_text(encoding="utf-8").splitlines()] == ["a", "b"]


def test_tables_go_between_the_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, page = load("results", monkeypatch), tmp_path / "page.md"
    page.write_text("before\n<a>\nold\n<b>\nafter\n", encoding="utf-8")
    for _ in range(2):
        module.write_between(page, "<a>", "<b>", "new")
        assert page.read_text(encoding="utf-8") == "before\n<a>\nnew\n<b>\nafter\n"


@pytest.mark.slow
def test_a_gap_token_can_be_read_and_no_time_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("time_gap", monkeypatch)
    assert benchmark.measure(benchmark.WAYS["token"], "modulo 3", 0, 200)["seen"] > 0.95
    assert benchmark.measure(benchmark.WAYS["nothing"], "modulo 3", 0, 50)["seen"] < 0.4


@pytest.mark.slow
def test_a_screen_in_small_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    settings = "--tokens 20000 --patients 400 --test-patients 300 --truth-samples 10 --probe-patients 400 --least-events 8 --seeds 2"
    command = [
        sys.executable,
        str(BENCHMARKS / "objectives.py"),
        "--out",
        str(tmp_path),
        "--finalists",
        "next_token,all,untimed_age",
        *settings.split(),
    ]
    first, again = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done already") == 6
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    for said in ("Screening, one seed", "Finalists", "Gamma head", "no time tokens", "true risk", "How far apart"):
        assert said in tables

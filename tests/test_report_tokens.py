"""Lengths of histories and the token budget, counted by hand on three histories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import budget, vocabulary
from cehrxgpt.report.sections.histories import PERCENTILES, fit, percentiles
from cehrxgpt.report.suppress import UNDER, Teller
from cehrxgpt.report.tokens import KINDS, open_store
from cehrxgpt.timeline.kinds import TIME_KINDS, Kind

# [PAD] prompt*7, [VS], [VE], a day, a condition, a lab
TOKENS = ["[PAD]", *(f"p{n}" for n in range(7)), "[VS]", "[VE]", "D1", "condition/1", "measurement/1 [1, 2)"]
KIND = [0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 19, 20]
PROMPT = list(range(1, 8))


def _store(root: Path, histories: list[list[int]], years: list[float]) -> Path:
    folder = root / "timeline"
    folder.mkdir(parents=True)
    frame = {"token": TOKENS, "kind": KIND, "code": [None] * 11 + ["condition/1", "measurement/1"]}
    origin = [None] * 11 + ["condition_occurrence", "measurement"]
    pl.DataFrame({**frame, "origin": origin}, schema_overrides={"kind": pl.Int8}).write_parquet(folder / "vocabulary.parquet")
    lengths = [len(one) for one in histories]
    age = [np.linspace(0, year * 365.25 * 1440, n - 6) if n else np.zeros(0) for n, year in zip(lengths, years, strict=True)]
    arrays = {
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "token_id": np.array([token for one in histories for token in one], dtype=np.int32),
        "age_minutes": np.concatenate([np.concatenate([np.zeros(min(6, n)), a]) for n, a in zip(lengths, age, strict=True)]).astype(np.int32),
        "events": np.array([10, 4, 2]),
        "unknown": np.array([6, 1, 0]),
        "split": np.array([0, 0, 2], dtype=np.int8),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


HISTORIES = [[*PROMPT, 8, 11, 12, 9, 10, 8, 12, 9], [*PROMPT, 8, 11, 9], [*PROMPT, 11]]


def test_what_a_store_holds(tmp_path: Path) -> None:
    store = open_store(_store(tmp_path, HISTORIES, [2.0, 1.0, 0.0]))
    assert store is not None
    assert store.lengths.tolist() == [15, 10, 8]
    counts = store.counts(13)
    visits, years, train = store.visits(np.array([8])), store.years(), store.in_split("train")
    assert counts is not None
    assert visits is not None
    assert years is not None
    assert train is not None
    assert counts.tolist() == [0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1, 3, 2]
    assert visits.tolist() == [2, 1, 0]
    assert np.round(years, 3).tolist() == [2.0, 1.0, 0.0]
    assert train.tolist() == [True, True, False]


def test_chunks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(_store(tmp_path, HISTORIES, [2.0, 1.0, 0.0]))
    assert store is not None
    whole, visits = store.counts(13), store.visits(np.array([8]))
    monkeypatch.setattr("cehrxgpt.report.tokens._CHUNK", 4)
    again, visits_again = store.counts(13), store.visits(np.array([8]))
    assert whole is not None
    assert again is not None
    assert visits is not None
    assert visits_again is not None
    assert again.tolist() == whole.tolist()
    assert visits_again.tolist() == visits.tolist()


def test_the_budget_adds_up(tmp_path: Path) -> None:
    store = open_store(_store(tmp_path, HISTORIES, [2.0, 1.0, 0.0]))
    assert store is not None
    counts = store.counts(13)
    assert counts is not None
    words = pl.read_parquet(tmp_path / "timeline/vocabulary.parquet")
    kinds = {name: n for name, _, n in budget.by_kind(words, counts)}
    assert kinds == {
        "prompt": 21, "visit structure": 6, "time between visits": 1, "time inside visits": 0, "plain codes": 3,
        "codes with a value bin": 2, "labs": 0, "bins of labs": 0, "codes with a category": 0, "death and end": 0,
        "intensive care": 0, "lengths of drugs": 0,
    }  # fmt: skip
    assert sum(kinds.values()) == counts.sum() == 33
    assert budget.by_origin(words, counts) == [("condition_occurrence", 3), ("measurement", 2)]
    said = str(budget.spent(words, counts, store, Teller(exact=True)))
    assert "3.0% of them tell time" in said  # 1 of 33
    assert "costs 3.67 tokens" in said  # 33 tokens, 16 events of which 7 are not read
    assert "takes 11 tokens." in said  # 33 tokens in three years


def test_the_kinds_are_those_of_the_timeline() -> None:
    """The report reads files and not the package: its table of kinds is a twin, and a test keeps it so."""
    assert sorted(kind for kinds in KINDS.values() for kind in kinds) == [int(kind) for kind in Kind if kind != Kind.PAD]
    assert {*KINDS["time between visits"], *KINDS["time inside visits"]} == {int(kind) for kind in TIME_KINDS}


def test_percentiles_leave_out_what_is_nearly_one_persons_own() -> None:
    assert percentiles(np.arange(100)) == ["–", "25", "50", "74", "–", "–", "–"]
    assert percentiles(np.arange(1100))[-1] == "1,088"
    assert percentiles(np.arange(20)) == ["–"] * len(PERCENTILES)
    assert fit(np.array([100, 512, 600, 1000]), 512) == (2, (100 + 3 * 512) / 2212)


def test_the_chapter(tmp_path: Path) -> None:
    folder = _store(tmp_path, HISTORIES, [2.0, 1.0, 0.0])
    splits = [{"split": "train", "patients": 2, "events": 14, "events_dropped": 7, "codes_kept": 2, "codes_dropped": 30}]
    (folder / "tokenize.json").write_text(json.dumps({"splits": splits, "tokens": 33}), encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"context": 12}), encoding="utf-8")
    (tmp_path / "model/manifest.json").write_text(json.dumps({"figures": {"tokens_seen": 250}}), encoding="utf-8")
    page = str(vocabulary.section(RunFolder(tmp_path)).body)
    assert f"The model reads 12 tokens at once. {UNDER.replace('<', '&lt;')} histories fit whole" in page
    assert "hold 90.9% of all tokens" in page  # (12 + 10 + 8) / 33
    assert ">250<" in page
    assert ">10.0<" in page  # epochs of 25 tokens


@pytest.mark.parametrize("histories", [[], [[]], [[*PROMPT, 11]]])
def test_nobody_an_empty_history_and_one(tmp_path: Path, histories: list[list[int]]) -> None:
    folder = tmp_path / "timeline"
    folder.mkdir()
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, histories)]).astype(np.int64))
    np.save(folder / "token_id.npy", np.array([token for one in histories for token in one], dtype=np.int32))
    pl.DataFrame({"token": TOKENS, "kind": KIND}).write_parquet(folder / "vocabulary.parquet")
    assert vocabulary.section(RunFolder(tmp_path)).body

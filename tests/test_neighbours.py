"""Patients like this one: exact, explained, and indifferent to how the vectors are scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import stages
from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset, sort_events
from cehrxgpt.features.neighbours import discover, nearest, standardise
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import Loaded, save_model
from cehrxgpt.model.transformer import Decoder
from test_probe import write_dataset
from toy_capabilities import BENIGN, OUTCOME, history, vocabulary


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 2**31))
def test_nearest_is_the_slow_search(subjects: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    units = standardise(random.integers(-2, 3, (subjects, width)).astype(np.float32))
    questions = random.permutation(subjects)[:5]
    rows, cosines = nearest(units, questions, 4)
    for question, found, cosine in zip(questions.tolist(), rows.tolist(), cosines.tolist(), strict=True):
        others = [other for other in range(subjects) if other != question]
        score = {other: float(units[question] @ units[other]) for other in others}
        assert question not in found
        assert len(found) == min(4, subjects - 1) == len(set(found))
        assert cosine == pytest.approx([score[other] for other in found], abs=1e-6)
        assert cosine == pytest.approx(sorted(score.values(), reverse=True)[: len(found)], abs=1e-6)


def test_the_scale_of_a_column_does_not_matter() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    scaled = vectors * np.array([1, 10, 100, 0.1, 5, 1], dtype=np.float32) + 3
    np.testing.assert_allclose(standardise(scaled), standardise(vectors), atol=1e-4)
    assert np.isfinite(standardise(np.ones((3, 2), dtype=np.float32))).all()


@pytest.fixture(scope="module")
def model() -> Loaded:
    words = vocabulary()
    torch.manual_seed(0)
    config = ModelConfig(vocabulary_size=len(words), width=16, layers=2, heads=2, kv_heads=2, context=64)
    return Loaded(Decoder(config).eval(), words, config, Path("toy"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people: 1, 2, 3 have one condition, 4 and 5 the other; 6 is known only by what the vocabulary lacks."""
    plain = history(6)
    code = pl.when(pl.col("subject_id").is_in([4, 5])).then(pl.lit(OUTCOME)).when(pl.col("subject_id") == 6).then(pl.lit("condition/999"))
    events = plain.with_columns(pl.when(pl.col("code") == BENIGN).then(code.otherwise(pl.lit(BENIGN))).otherwise("code").alias("code"))
    out = tmp_path_factory.mktemp("neighbours") / "events"
    write_dataset(out, sort_events(events), {subject: "train" if subject < 4 else "held_out" for subject in range(1, 7)})
    return out


def test_those_who_lived_the_same_come_first_with_what_they_share(model: Loaded, folder: Path) -> None:
    found = discover(model, EventDataset(folder), 4, count=10)
    assert found.left_out == 1
    assert found.subjects.height == 4  # fewer than asked for: there are no more
    assert found.subjects["neighbour_id"][0] == 5
    assert found.subjects["similarity"][0] == pytest.approx(1.0, abs=1e-5)
    assert found.subjects["rank"].to_list() == [1, 2, 3, 4]
    assert found.subjects["similarity"].is_sorted(descending=True)
    shared = found.shared.filter(pl.col("neighbour_id") == 5)
    assert shared["code"].to_list() == [OUTCOME]
    assert shared["prevalence"].to_list() == [None]  # of two people
    assert set(found.shared["neighbour_id"]) == {5}


@pytest.mark.parametrize(("having", "prevalence"), [(2, None), (10, None), (11, 11 / 40), (29, 29 / 40), (30, None), (39, None), (40, 1.0)])
def test_the_prevalence_of_a_few_is_not_told(model: Loaded, tmp_path: Path, having: int, prevalence: float | None) -> None:
    """Nor of all but a few."""
    events = history(40).with_columns(
        pl.when((pl.col("code") == BENIGN) & (pl.col("subject_id") <= having)).then(pl.lit(OUTCOME)).otherwise("code").alias("code")
    )
    found = discover(model, write_dataset(tmp_path / "events", sort_events(events), dict.fromkeys(range(1, 41), "train")), 1, count=1)
    assert found.shared["code"].to_list() == [OUTCOME]
    assert found.shared["prevalence"].to_list() == pytest.approx([prevalence])


def test_who_cannot_be_compared_is_told_why(model: Loaded, folder: Path) -> None:
    with pytest.raises(InputError, match="no subject 77"):
        discover(model, EventDataset(folder), 77)
    with pytest.raises(InputError, match="subject 6 cannot be embedded: most of the history's events are not in the model's vocabulary"):
        discover(model, EventDataset(folder), 6)


def test_the_stage_writes_tables_whole_and_tells_the_rarest(model: Loaded, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model.decoder, model.vocabulary, {})
    figures = stages.discover(tmp_path / "model", folder, tmp_path / "like", like=1, count=2)
    assert figures["neighbours"] == 2
    assert {path.name for path in (tmp_path / "like").iterdir()} == {"neighbours.parquet", "shared_codes.parquet"}
    assert pl.read_parquet(tmp_path / "like" / "neighbours.parquet")["neighbour_id"].to_list() == [2, 3]
    assert [row[3] for row in figures["rows"]] == [BENIGN, BENIGN]
    with pytest.raises(InputError, match="exists already"):
        stages.discover(tmp_path / "model", folder, tmp_path / "like", like=1, count=2)

"""Embeddings: nothing after the prediction time gets in, every row comes out, in order."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cehrxgpt import schema as s
from cehrxgpt.errors import SchemaError
from cehrxgpt.events import conform, sort_events
from cehrxgpt.features.embed import EXTRA, EmbedConfig, embed
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import Loaded
from cehrxgpt.model.transformer import Decoder
from toy_capabilities import BENIGN, OUTCOME, history, vocabulary

LAST = datetime(2015, 6, 1)
WIDTH = 16


@pytest.fixture(scope="module")
def model() -> Loaded:
    words = vocabulary()
    torch.manual_seed(0)
    config = ModelConfig(vocabulary_size=len(words), width=WIDTH, layers=2, heads=2, kv_heads=2, context=64)
    return Loaded(Decoder(config).eval(), words, config, Path("toy"))


def at(*rows: tuple[int, datetime]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}, orient="row")


def matrix(frame: pl.DataFrame) -> np.ndarray:
    return np.array(frame["embedding"].to_list(), dtype=np.float32)


def stays(subject: int) -> pl.DataFrame:
    """A finished stay in May and one that is going on since the tenth of June, noon."""
    rows = []
    for visit, start, end in ((1, datetime(2015, 5, 25, 8), datetime(2015, 5, 27, 9)), (2, datetime(2015, 6, 10, 12), datetime(2015, 6, 20, 9))):
        shared = {"subject_id": subject, "visit_id": visit, "time_precision": "minute"}
        rows.append(shared | {"time": start, "code": "Visit/9201", "available_time": start, "end_time": end})
        rows += [
            shared | {"time": time, "code": BENIGN, "available_time": time, "end_time": None}
            for time in (start + timedelta(hours=1), start + timedelta(hours=30))
        ]
        rows.append(shared | {"time": end, "code": "discharge/8536", "available_time": end, "end_time": None})
    kinds = dict.fromkeys(("time", "available_time", "end_time"), pl.Datetime("us"))
    return conform(pl.DataFrame(rows, schema_overrides=kinds))


@pytest.mark.parametrize("pooling", ["last", "visit_ends"])
def test_the_future_changes_nothing(model: Loaded, pooling: str) -> None:
    """Appending and permuting what comes later leaves every vector as it was, bit for bit; also inside a stay."""
    events = sort_events(pl.concat([history(3), stays(2)]))
    moments = at((1, LAST + timedelta(days=1)), (2, datetime(2015, 6, 11, 14)), (3, LAST + timedelta(days=4)), (2, datetime(2015, 5, 26)))
    config = EmbedConfig(pooling=pooling)
    plain = embed(model, events, moments, config)
    later = history(3, last=datetime(2016, 1, 1), code=OUTCOME).filter(pl.col("time") > datetime(2015, 7, 1))
    death = later.filter(pl.col("time") == pl.col("time").max()).with_columns(pl.lit(s.DEATH).alias("code"))
    assert embed(model, sort_events(pl.concat([events, later, death])), moments, config).equals(plain, null_equal=True)
    known = (pl.col("available_time") <= datetime(2015, 6, 11, 14)) | pl.col("time").is_null()
    shuffled = sort_events(
        pl.concat([events.filter(known), events.filter(~known).with_columns(pl.col("time", "available_time", "end_time") + timedelta(days=3))])
    )
    assert embed(model, shuffled, moments, config).row(1) == plain.row(1)
    assert np.isfinite(matrix(plain)).all()
    early = pl.col("time") < datetime(2015, 5, 26)
    changed = events.with_columns(pl.when(early & (pl.col("code") == BENIGN)).then(pl.lit(OUTCOME)).otherwise("code").alias("code"))
    assert not np.array_equal(matrix(embed(model, sort_events(changed), moments, config))[1], matrix(plain)[1])  # the past does change it


def test_every_row_comes_out_in_order(model: Loaded) -> None:
    time = LAST + timedelta(days=2)
    strange = history(1, code="condition/999").with_columns(pl.lit(2, dtype=pl.Int64).alias("subject_id"))
    asked = at((3, time), (2, time), (1, time), (9, time), (1, datetime(1980, 1, 1)), (1, time))
    third = history(3).filter(pl.col("subject_id") == 3)
    found = embed(model, pl.concat([history(1), strange, third]), asked)
    s.check_columns(found.to_arrow(), s.EMBEDDING_SCHEMA, where="embeddings")
    assert found.select("subject_id", "prediction_time").equals(asked)
    assert [note is None for note in found["note"]] == [True, False, True, False, False, True]
    assert found["unknown_share"].to_list() == [0, 1, 0, 1, 0, 0]
    vectors = matrix(found)
    assert vectors.shape == (6, WIDTH + EXTRA)
    assert np.isfinite(vectors).all(1).tolist() == [True, False, True, False, False, True]
    assert np.array_equal(vectors[2], vectors[5])
    assert vectors[0] == pytest.approx(vectors[2])  # the same history of another subject


def test_partly_unknown_histories_are_kept_up_to_the_limit(model: Loaded) -> None:
    half = history(1).with_columns(pl.when(pl.col("time") == LAST).then(pl.lit("condition/999")).otherwise("code").alias("code"))
    found = embed(model, half, at((1, LAST + timedelta(days=2))))
    assert (found["unknown_share"][0], found["note"][0]) == (0.5, None)
    strict = embed(model, half, at((1, LAST + timedelta(days=2))), EmbedConfig(max_unknown_share=0.4))
    assert "50%" in strict["note"][0]


def test_elapsed_time_is_appended(model: Loaded) -> None:
    moments = at((1, LAST + timedelta(days=10)), (1, LAST + timedelta(days=375)))
    vectors = matrix(embed(model, history(1), moments))
    assert vectors[:, -2] == pytest.approx(np.log1p([10, 375]), rel=1e-6)
    assert vectors[:, -1] == pytest.approx(np.array([10, 375]) / 365.25, rel=1e-6)
    assert np.array_equal(vectors[0, :-2], vectors[1, :-2])  # the model's state alone cannot tell them apart
    assert matrix(embed(model, history(1), moments, EmbedConfig(elapsed_time=False))).shape == (2, WIDTH)


def test_batching_does_not_matter(model: Loaded) -> None:
    """Padding and companions: float32 sums may differ in the last digits, no more."""
    long = pl.concat([history(1, last=LAST - timedelta(days=20 * k)) for k in range(20)]).unique(maintain_order=True)
    events = sort_events(pl.concat([long, history(3).filter(pl.col("subject_id") > 1)]))
    moments = at(*((subject, LAST + timedelta(days=1)) for subject in (1, 2, 3)))
    alone = matrix(embed(model, events, moments, EmbedConfig(batch_tokens=1)))
    assert matrix(embed(model, events, moments)) == pytest.approx(alone, abs=1e-5)
    exact = matrix(embed(model, events, moments, EmbedConfig(dtype="float64")))
    assert exact == pytest.approx(alone, abs=1e-4)


def test_bad_rows_are_refused_clearly(model: Loaded) -> None:
    with pytest.raises(SchemaError, match="'prediction_time' is missing"):
        embed(model, history(1), at((1, LAST)).drop("prediction_time"))
    with pytest.raises(SchemaError, match="null"):
        embed(model, history(1), at((1, LAST)).with_columns(pl.lit(None, dtype=pl.Datetime("us")).alias("prediction_time")))


@pytest.mark.parametrize("pooling", ["last", "visit_ends"])
def test_moments_of_a_patient_are_read_once_and_are_what_each_is_alone(model: Loaded, pooling: str) -> None:
    events = sort_events(pl.concat([stays(1), stays(2)]))
    moments = [LAST - timedelta(days=6), LAST, LAST + timedelta(days=10), LAST + timedelta(days=30)]
    rows = at(*((subject, moment) for moment in moments for subject in (1, 2)))
    config = EmbedConfig(pooling=pooling)
    readings: list[int] = []
    handle = model.decoder.register_forward_hook(lambda _, inputs, output: readings.append(len(inputs[0])))
    together = embed(model, events, rows, config)
    handle.remove()
    assert sum(readings) == 1  # both have lived the same, and every moment begins with the one before
    alone = pl.concat([embed(model, events, rows[index], config) for index in range(len(rows))])
    np.testing.assert_allclose(matrix(together), matrix(alone), atol=1e-5)
    assert len(np.unique(matrix(together).round(4), axis=0)) == len(moments)

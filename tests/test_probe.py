"""The probe and its baselines on a population whose signal is known, and on populations too small to learn from."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError, MismatchError
from cehrxgpt.events import EventDataset, conform, sort_events
from cehrxgpt.features.baselines import REGULARISATION, Examples, choose_strength, constant, lightgbm, logistic
from cehrxgpt.features.counts import count_features
from cehrxgpt.features.probe import ProbeConfig, probe, standardise
from test_evaluate_predictions import REASON, relabelled

NOW = datetime(2020, 1, 1)
SPLIT_OF = np.array([s.TRAIN, s.TRAIN, s.TRAIN, s.TUNING, s.HELD_OUT])


def event(subject, code, time, *, value=None, unit=None, known=None):
    return {
        "subject_id": subject, "code": code, "time": time, "numeric_value": value, "unit": unit,
        "available_time": time if known is None else known, "time_precision": None if time is None else "minute",
    }  # fmt: skip


def frame(rows):
    schema = {"subject_id": pl.Int64, "code": pl.String, "time": pl.Datetime("us"), "numeric_value": pl.Float32, "unit": pl.String}
    schema |= {"available_time": pl.Datetime("us"), "time_precision": pl.String}
    return sort_events(conform(pl.DataFrame(rows, schema=schema)))


def write_dataset(root, events, splits):
    """A data set of one shard per split."""
    for name in set(splits.values()):
        (root / "data" / name).mkdir(parents=True)
        inside = [subject for subject, split in splits.items() if split == name]
        events.filter(pl.col("subject_id").is_in(inside)).write_parquet(root / "data" / name / "0.parquet")
    (root / "metadata").mkdir()
    (root / "metadata" / "dataset.json").write_text(json.dumps({}))
    return EventDataset(root)


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """400 people: the number of `condition/1` and the last `measurement/2` drive the outcome; `condition/3` is noise."""
    rng = np.random.default_rng(0)
    rows, outcome, count, value = [], [], rng.poisson(2, 400), rng.normal(size=400)
    chance = 1 / (1 + np.exp(-(-1.5 + 0.8 * (count - 2) + value)))
    for subject in range(400):
        rows.append(event(subject, f"gender/{8507 + 25 * (subject % 2)}", None))
        rows.append(event(subject, s.BIRTH, NOW - timedelta(days=int(rng.integers(7000, 30000)))))
        rows += [event(subject, "condition/1", NOW - timedelta(days=int(day))) for day in rng.integers(1, 900, count[subject])]
        rows.append(event(subject, "measurement/2", NOW - timedelta(days=3), value=float(value[subject]), unit="8840"))
        rows.append(event(subject, "measurement/2", NOW - timedelta(days=9), value=float(rng.normal()), unit="8840"))
        rows += [event(subject, "condition/3", NOW - timedelta(days=int(day))) for day in rng.integers(1, 900, rng.poisson(1))]
        outcome.append(bool(rng.random() < chance[subject]))
    known = [None if i % 50 == 7 else y for i, y in enumerate(outcome)]
    labels = pl.DataFrame(
        {
            "subject_id": range(400), "prediction_time": [NOW] * 400, "boolean_value": known,
            "task": ["t"] * 400, "time_to_event_days": [30.0] * 400, "observed": outcome, "end_reason": [REASON[value] for value in known],
        },
        schema_overrides={"prediction_time": pl.Datetime("us"), "time_to_event_days": pl.Float64},
    )  # fmt: skip
    vectors = np.column_stack([count, value, rng.normal(size=(400, 6)), np.ones(400)]).astype(np.float32)
    embeddings = labels.select("subject_id", "prediction_time").with_columns(
        pl.Series("embedding", vectors.tolist(), dtype=pl.List(pl.Float32)),
        pl.lit(0.0, dtype=pl.Float32).alias("unknown_share"),
        pl.lit(None, dtype=pl.String).alias("note"),
    )
    splits = {subject: str(SPLIT_OF[subject % 5]) for subject in range(400)}
    dataset = write_dataset(tmp_path_factory.mktemp("events"), frame(rows), splits)
    return dataset, labels, embeddings


SMALL = ProbeConfig(few_shot=(50,), replicates=50, repeats=2)


@pytest.fixture(scope="module")
def result(population):
    dataset, labels, embeddings = population
    return probe(embeddings, labels, dataset, config=SMALL)


def test_the_signal_is_found(result):
    auroc = dict(result.metrics.filter(pl.col("metric") == "auroc").select("method", "value").rows())
    assert set(auroc) == {"probe", "counts+lightgbm", "counts+logistic", "age+sex", "constant"}
    assert auroc["probe"] > 0.75
    assert auroc["counts+logistic"] > 0.75
    assert auroc["counts+lightgbm"] > 0.7
    assert auroc["age+sex"] < 0.7
    assert auroc["constant"] == 0.5
    s.check_columns(result.predictions.to_arrow(), s.PREDICTION_SCHEMA, where="predictions")
    s.check_columns(result.metrics.to_arrow(), s.METRIC_SCHEMA, where="metrics")
    assert result.notes == []


def test_only_held_out_people_are_judged(result, population):
    held = set(population[0].subject_splits.filter(pl.col("split") == s.HELD_OUT)["subject_id"])
    assert set(result.predictions["subject_id"]) == held
    censored = result.metrics.filter((pl.col("metric") == "censored") & (pl.col("method") == "probe"))["value"].to_list()
    assert censored == [result.predictions.filter((pl.col("method") == "probe") & pl.col("boolean_value").is_null()).height]


def test_few_labels_then_all(result):
    assert result.few_shot["labels"].to_list()[0] == 50
    assert result.few_shot["labels"].to_list()[-1] > 200
    last = result.few_shot.row(-1, named=True)
    assert last["auroc"] == result.metrics.filter((pl.col("metric") == "auroc") & (pl.col("method") == "probe"))["value"][0]
    assert result.few_shot.row(0, named=True)["lowest"] <= result.few_shot.row(0, named=True)["auroc"]


def test_twice_the_same(result, population):
    dataset, labels, embeddings = population
    again = probe(embeddings.sample(fraction=1.0, shuffle=True, seed=3), labels, dataset, config=SMALL)
    assert again.predictions.equals(result.predictions)
    assert again.metrics.equals(result.metrics)


def test_held_out_labels_are_not_looked_at(population, result):
    dataset, labels, embeddings = population
    held = dataset.subject_splits.filter(pl.col("split") == s.HELD_OUT)["subject_id"]
    values = labels.select(pl.when(pl.col("subject_id").is_in(held.implode())).then(~pl.col("boolean_value")).otherwise("boolean_value"))
    turned = relabelled(labels, values.to_series())
    again = probe(embeddings, turned, dataset, config=SMALL)
    assert again.predictions["predicted_boolean_probability"].equals(result.predictions["predicted_boolean_probability"])


def test_features_know_nothing_of_the_future(population):
    dataset, labels, _ = population
    fit = np.arange(400) % 5 < 3
    events = dataset.read()
    later = [event(subject, f"condition/{subject % 3}", NOW + timedelta(minutes=1)) for subject in range(400)]
    hidden = [event(subject, "condition/9", NOW - timedelta(days=1), known=NOW + timedelta(days=1)) for subject in range(400)]
    before = count_features(events, labels, fit)
    after = count_features(sort_events(pl.concat([events, frame(later + hidden)])), labels, fit)
    assert before.names == after.names
    assert (before.matrix != after.matrix).nnz == 0


def test_features_by_hand():
    rows = [
        event(1, "gender/8507", None),
        event(1, s.BIRTH, NOW - timedelta(days=3650)),
        event(1, "condition/1", NOW - timedelta(days=800)),
        event(1, "condition/1", NOW),
        event(1, "measurement/2", NOW - timedelta(days=5), value=4.0, unit="a"),
        event(1, "measurement/2", NOW - timedelta(days=4), value=6.0, unit="a"),
        event(2, "measurement/2", NOW - timedelta(days=4), value=10.0, unit="a"),
        event(3, "condition/7", NOW),
    ]
    at = pl.DataFrame(
        {"subject_id": [3, 1, 2, 1], "prediction_time": [NOW, NOW, NOW, NOW - timedelta(days=1)]},
        schema_overrides={"prediction_time": pl.Datetime("us")},
    )
    features = count_features(frame(rows), at, np.array([False, True, True, False]), min_subjects=1)
    cell = {name: features.matrix[:, index].toarray().ravel() for index, name in enumerate(features.names)}
    assert set(cell) == {
        "age",
        "history",
        "sex:gender/8507",
        "count:condition/1",
        "recent:condition/1",
        "count:measurement/2",
        "recent:measurement/2",
        "last:measurement/2|a",
    }
    assert cell["count:condition/1"] == pytest.approx([0, np.log(3), 0, np.log(2)])
    assert cell["recent:condition/1"] == pytest.approx([0, np.log(2), 0, 0])
    assert cell["last:measurement/2|a"] == pytest.approx([0, -1, 1, -1])  # 6 and 10 in training
    assert cell["sex:gender/8507"].tolist() == [0, 1, 0, 1]


def test_columns_come_from_training_rows_alone():
    rows = [event(1, "condition/1", NOW), event(2, "condition/2", NOW)]
    at = pl.DataFrame({"subject_id": [1, 2], "prediction_time": [NOW, NOW]}, schema_overrides={"prediction_time": pl.Datetime("us")})
    names = count_features(frame(rows), at, np.array([True, False]), min_subjects=1).names
    assert "count:condition/1" in names
    assert "count:condition/2" not in names


def test_too_few_positives_is_a_note_not_a_number(population):
    dataset, labels, embeddings = population
    first = labels["subject_id"] < 3
    rare = relabelled(labels, first & labels["boolean_value"].is_not_null())
    found = probe(embeddings, rare, dataset, config=SMALL)
    assert any("probe: 3 positive and" in note for note in found.notes)
    assert found.predictions.filter(pl.col("method") == "probe")["predicted_boolean_probability"].null_count() == 80
    assert found.predictions.filter(pl.col("method") == "probe")["note"][0].startswith("3 positive")
    assert found.metrics.filter((pl.col("metric") == "auroc") & (pl.col("method") == "probe"))["value"].to_list() == [None]
    nobody = probe(embeddings, labels.clear(), dataset, config=SMALL)
    assert nobody.notes == ["no labels"]
    assert nobody.predictions.is_empty()


def test_what_does_not_belong_together(population, tmp_path):
    dataset, labels, embeddings = population
    with pytest.raises(MismatchError, match="1 of 400 labels have no embedding"):
        probe(embeddings.head(399), labels, dataset, config=SMALL)
    two = labels.with_columns(pl.when(pl.col("subject_id") == 0).then(pl.lit("u")).otherwise("task").alias("task"))
    with pytest.raises(InputError, match="2 tasks"):
        probe(embeddings, two, dataset, config=SMALL)
    moved = pl.lit(10_000_000) + pl.col("subject_id")
    with pytest.raises(InputError, match="400 subjects of the labels are not in"):
        probe(embeddings.with_columns(moved.alias("subject_id")), labels.with_columns(moved.alias("subject_id")), dataset, config=SMALL)


def test_written_whole(population, result, tmp_path):
    result.write(tmp_path / "probe")
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == ["few_shot.parquet", "metrics.parquet", "predictions.parquet"]
    with pytest.raises(InputError, match="exists already"):
        result.write(tmp_path / "probe")


def test_a_column_that_does_not_vary_says_nothing():
    x = np.array([[1.0, 2.0], [1.0, 4.0], [9.0, 6.0]])
    scaled = standardise(x, np.array([True, True, False]))
    assert scaled[:, 0].tolist() == [0, 0, 0]
    assert scaled[:, 1].tolist() == [-1, 1, 3]


def test_strength_is_chosen_where_it_predicts_best():
    rng = np.random.default_rng(1)
    x, subject = rng.normal(size=(300, 30)), np.arange(300)
    noise = rng.random(300) < 0.5
    fit, none = subject < 300, np.zeros(300, dtype=bool)
    assert choose_strength(x, Examples(noise, fit, none, subject)) == REGULARISATION[0]
    signal = x[:, 0] * 3 + rng.normal(size=300) > 0
    assert choose_strength(x, Examples(signal, fit, none, subject)) >= 0.1


def test_one_class_and_no_columns():
    outcome, fit = np.array([True, True, False, True]), np.array([True, True, False, True])
    from scipy import sparse

    empty, given = sparse.csr_matrix((4, 0)), Examples(outcome, fit, ~fit, np.arange(4), least=2)
    assert np.isnan(logistic(empty, given).probability).all()
    assert lightgbm(empty, given).note.startswith("3 positive and 0 negative")
    assert constant(outcome, ~outcome & fit).note == "no labelled training rows"

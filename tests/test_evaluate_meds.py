"""Predictions in the MEDS schema: `meds-evaluation` reads them and finds what we find."""

from __future__ import annotations

import meds
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from cehrxgpt.evaluate import evaluate_predictions
from cehrxgpt.evaluate.meds import MEDS_DTYPES, meds_predictions
from test_evaluate_predictions import labels_frame, predictions_frame, value


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    p = rng.random(400)
    labels = labels_frame([None if row % 50 == 0 else bool(one) for row, one in enumerate(rng.random(400) < p)])
    risks = [None if row % 30 == 0 else one for row, one in enumerate(p.tolist())]
    return predictions_frame(labels, risks, num_samples=pl.lit(50, dtype=pl.Int32)), labels


def test_only_columns_and_rows_that_it_allows(tables):
    predictions, labels = tables
    ((key, frame),) = meds_predictions(predictions, labels).items()
    assert key == ("t", "m")
    assert dict(frame.schema) == MEDS_DTYPES
    assert frame.null_count().sum_horizontal().item() == 0
    assert frame.height == int(value(evaluate_predictions(predictions, labels, replicates=0), "rows"))
    known = frame.drop("predicted_boolean_value", "predicted_boolean_probability").to_arrow()
    assert meds.LabelSchema.align(known).num_rows == frame.height
    assert known.schema.field("prediction_time").type == pa.timestamp("us")


def test_meds_evaluation_reads_them(tables):
    pytest.importorskip("meds_evaluation")
    from meds_evaluation.evaluate import evaluate_binary_classification

    predictions, labels = tables
    (frame,) = meds_predictions(predictions, labels).values()
    found = evaluate_binary_classification(frame)["samples_equally_weighted"]
    ours = evaluate_predictions(predictions, labels, replicates=0, weighted=False)
    for theirs, name in (("roc_auc_score", "auroc"), ("average_precision_score", "auprc"), ("brier_score", "brier")):
        assert found[theirs] == pytest.approx(value(ours, name), abs=1e-6)

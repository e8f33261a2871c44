"""Predictions meet their labels, or a clear word is said."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.errors import MismatchError, SchemaError
from cehrxgpt.evaluate import evaluate_predictions
from cehrxgpt.evaluate.predictions import calibration_table
from cehrxgpt.report.judging_charts import calibration_chart

T0 = datetime(2020, 1, 1)


REASON = {True: "outcome", False: "horizon", None: "censored"}


def relabelled(labels, values):
    """The labels with other values."""
    return labels.with_columns(values.alias("boolean_value"), pl.Series("end_reason", [REASON[value] for value in values.to_list()]))


def labels_frame(values, *, days=None, subjects=None, task="t"):
    count = len(values)
    reasons = [REASON[value] for value in values]
    return pl.DataFrame(
        {
            "subject_id": subjects or list(range(count)),
            "prediction_time": [T0] * count,
            "boolean_value": values,
            "task": [task] * count,
            "time_to_event_days": [float(day) for day in ([30] * count if days is None else days)],
            "observed": [value is True for value in values],
            "end_reason": reasons,
        },
        schema_overrides={"time_to_event_days": pl.Float64, "boolean_value": pl.Boolean, "prediction_time": pl.Datetime("us")},
    )


def followed(event: np.ndarray, lost: np.ndarray) -> pl.DataFrame:
    """Labels of a year of people whose outcome and whose loss come after so many days."""
    labels = labels_frame([True if e <= min(x, 365) else None if x < 365 else False for e, x in zip(event, lost, strict=True)])
    reason = pl.col("boolean_value").replace_strict({True: "outcome", False: "horizon"}, default="censored", return_dtype=pl.String)
    days = pl.Series(np.minimum(np.minimum(event, lost), 365.0), dtype=pl.Float64)
    return labels.with_columns(reason.alias("end_reason"), days.alias("time_to_event_days"))


def predictions_frame(labels, probabilities, *, method="m", **columns):
    keep = labels.select("subject_id", "prediction_time", "task")
    return keep.with_columns(pl.Series("predicted_boolean_probability", probabilities, dtype=pl.Float64), pl.lit(method).alias("method"), **columns)


def value(metrics, name, method="m"):
    (found,) = metrics.filter((pl.col("metric") == name) & (pl.col("method") == method))["value"].to_list()
    return found


def test_metric_rows():
    labels = labels_frame([False, False, True, True])
    metrics = evaluate_predictions(predictions_frame(labels, [0.1, 0.4, 0.35, 0.8]), labels, replicates=50)
    s.check_columns(metrics.to_arrow(), s.METRIC_SCHEMA, where="metrics")
    assert value(metrics, "auroc") == 0.75
    assert value(metrics, "mean_predicted") == pytest.approx(1.65 / 4)
    assert value(metrics, "rows") == 4
    assert metrics["positives"].to_list() == [2] * metrics.height
    limits = metrics.filter(pl.col("metric") == "auroc").row(0, named=True)
    assert limits["lower"] <= 0.75 <= limits["upper"]


def test_null_labels_are_counted_and_weighted():
    values, days = [True, None, False, False], [5, 10, 30, 30]
    labels = labels_frame(values, days=days)
    predictions = predictions_frame(labels, [0.9, 0.2, 0.2, 0.4])
    metrics = evaluate_predictions(predictions, labels, replicates=0)
    assert (value(metrics, "rows"), value(metrics, "censored"), value(metrics, "refused")) == (3, 1, 0)
    # One of the three observed to day 10 is lost there, so the two that stay stand for three.
    assert value(metrics, "prevalence") == pytest.approx(1 / 4)
    assert value(metrics, "brier") == pytest.approx((0.01 + 1.5 * (0.04 + 0.16)) / 4)
    plain = evaluate_predictions(predictions, labels, replicates=0, weighted=False)
    assert value(plain, "prevalence") == pytest.approx(1 / 3)


def test_refused_predictions_are_counted():
    labels = labels_frame([False, True, True])
    metrics = evaluate_predictions(predictions_frame(labels, [0.1, 0.4, None]), labels, replicates=10)
    assert (value(metrics, "rows"), value(metrics, "refused"), value(metrics, "auroc")) == (2, 1, 1.0)
    nothing = evaluate_predictions(predictions_frame(labels, [None, None, None]), labels, replicates=10)
    assert value(nothing, "auroc") is None
    assert value(nothing, "rows") == 0


def test_one_class_has_no_auroc_but_a_brier_score():
    labels = labels_frame([False, False, False])
    metrics = evaluate_predictions(predictions_frame(labels, [0.1, 0.2, 0.3]), labels, replicates=10)
    assert value(metrics, "auroc") is None
    assert value(metrics, "calibration_slope") is None
    assert value(metrics, "brier") == pytest.approx(0.14 / 3)


def test_methods_and_tasks_stand_apart():
    labels = pl.concat([labels_frame([False, True]), labels_frame([True, False], task="u")])
    predictions = pl.concat([predictions_frame(labels, [0.1, 0.9, 0.1, 0.9], method=name) for name in ("a", "b")])
    metrics = evaluate_predictions(predictions, labels, replicates=0)
    aurocs = metrics.filter(pl.col("metric") == "auroc").select("task", "method", "value").sort("task", "method").rows()
    assert aurocs == [("t", "a", 1.0), ("t", "b", 1.0), ("u", "a", 0.0), ("u", "b", 0.0)]


@pytest.mark.parametrize(
    ("column", "said", "line"),
    [
        ("end_reason", ["horizon", "horizon", "censored"], "'boolean_value' and 'end_reason' disagree in 1 of 3 rows"),
        ("end_reason", ["outcome", "outcome", "outcome"], "disagree in 2 of 3 rows"),
        ("boolean_value", [False, False, False], "disagree in 2 of 3 rows"),
        ("time_to_event_days", [float("nan"), -1.0, 30.0], "'time_to_event_days': 2 of 3 values are no time"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(column: str, said: list[object], line: str) -> None:
    labels = labels_frame([True, False, None])
    predictions = predictions_frame(labels, [0.1, 0.4, 0.2])
    evaluate_predictions(predictions, labels, replicates=0)
    with pytest.raises(SchemaError, match=line):
        evaluate_predictions(predictions, labels.with_columns(pl.Series(column, said, dtype=labels.schema[column])), replicates=0)


def test_labels_of_others_are_a_mismatch():
    labels = labels_frame([False, True], subjects=[1, 2])
    predictions = predictions_frame(labels, [0.1, 0.9])
    with pytest.raises(MismatchError, match=r"2 of 2 predictions have no label \(2 of their subjects are not in the labels at all"):
        evaluate_predictions(predictions, labels_frame([False, True], subjects=[8, 9]))
    with pytest.raises(MismatchError, match="at other prediction times"):
        evaluate_predictions(predictions.with_columns(pl.col("prediction_time") + timedelta(days=1)), labels)
    with pytest.raises(MismatchError, match="the labels are of t, the predictions of u"):
        evaluate_predictions(predictions.with_columns(pl.lit("u").alias("task")), labels)
    with pytest.raises(MismatchError, match=rf"{2 * predictions.height} rows share their .* as of t by m; expected one each"):
        evaluate_predictions(pl.concat([predictions, predictions]), labels)
    with pytest.raises(MismatchError, match="stands twice"):
        evaluate_predictions(predictions, pl.concat([labels, labels]))
    with pytest.raises(SchemaError, match="'method' is missing"):
        evaluate_predictions(predictions.drop("method"), labels)


def test_a_label_more_is_no_harm():
    labels = labels_frame([False, True, None])
    metrics = evaluate_predictions(predictions_frame(labels.head(2), [0.1, 0.9]), labels, replicates=0)
    assert value(metrics, "censored") == 0


def censored_population(rng, rows):
    """The whole truth, what is seen of it, and risks; half are lost within a year on average, negatives the likelier to be so."""
    p = rng.beta(1, 4, rows)
    event = np.where(rng.random(rows) < p, rng.uniform(0, 365, rows), np.inf)
    lost = rng.exponential(400, rows)
    truth, seen = event <= 365, np.minimum(np.minimum(event, 365.0), lost)
    known = lost >= np.minimum(event, 365.0)
    values = [bool(one) if there else None for one, there in zip(truth, known, strict=True)]
    return p, labels_frame(truth.tolist(), days=np.minimum(event, 365.0)), labels_frame(values, days=seen)


def test_weights_undo_censoring_in_every_metric():
    p, whole, seen = censored_population(np.random.default_rng(0), 30_000)
    predictions = predictions_frame(whole, p)
    truth, found, naive = (
        evaluate_predictions(predictions, labels, replicates=0, weighted=weighted)
        for labels, weighted in ((whole, True), (seen, True), (seen, False))
    )
    for name, near in {"auroc": 0.01, "auprc": 0.02, "brier": 0.005, "prevalence": 0.006, "calibration_intercept": 0.06, "ece": 0.01}.items():
        assert value(found, name) == pytest.approx(value(truth, name), abs=near), name
    for name in ("auprc", "brier", "prevalence", "calibration_intercept", "ece"):
        assert abs(value(naive, name) - value(truth, name)) > 3 * abs(value(found, name) - value(truth, name)), name


def test_perfect_predictions_and_a_constant():
    truth = np.random.default_rng(0).random(2000) < 0.2
    labels = labels_frame(truth.tolist(), days=np.where(truth, 10, 30))
    perfect = evaluate_predictions(predictions_frame(labels, truth.astype(float)), labels, replicates=0)
    assert [value(perfect, name) for name in ("auroc", "auprc", "brier", "ece", "c_index")] == [1, 1, 0, 0, 1]
    constant = evaluate_predictions(predictions_frame(labels, np.full(2000, truth.mean())), labels, replicates=0)
    assert (value(constant, "auroc"), value(constant, "c_index"), value(constant, "calibration_slope")) == (0.5, 0.5, None)
    assert value(constant, "brier") == pytest.approx(truth.mean() * (1 - truth.mean()))
    assert (value(constant, "ece"), value(constant, "calibration_intercept")) == pytest.approx((0, 0), abs=1e-9)


def test_the_order_of_rows_is_no_matter():
    rng = np.random.default_rng(1)
    p, _, labels = censored_population(rng, 500)
    predictions = predictions_frame(labels, p)
    mixed = evaluate_predictions(predictions.sample(fraction=1, shuffle=True, seed=1), labels.sample(fraction=1, shuffle=True, seed=2), replicates=0)
    assert mixed["value"].to_list() == pytest.approx(evaluate_predictions(predictions, labels, replicates=0)["value"].to_list())


def curves_frame(predictions, incidence, days):
    keys = predictions.select("subject_id", "prediction_time", "task", "method")
    parts = [
        keys.with_columns(pl.lit(day, dtype=pl.Float32).alias("days"), pl.Series("cumulative_incidence", incidence(day), dtype=pl.Float64))
        for day in days
    ]
    return pl.concat(parts).with_columns(pl.lit(None, dtype=pl.Float64).alias("std_error"))


def test_curves_are_judged_over_the_horizon():
    p, _, labels = censored_population(np.random.default_rng(2), 2000)
    predictions = predictions_frame(labels, p)
    days = [0.0, 73.0, 146.0, 219.0, 292.0, 365.0, 730.0]
    right = curves_frame(predictions, lambda day: p * min(day / 365, 1), days)
    found = evaluate_predictions(predictions, labels, curves=right, replicates=20)
    row = found.filter(pl.col("metric") == "integrated_brier").row(0, named=True)
    assert row["lower"] < row["value"] < row["upper"]
    late = curves_frame(predictions, lambda day: p * min(day / 365, 1) ** 4, days)
    assert value(evaluate_predictions(predictions, labels, curves=late, replicates=0), "integrated_brier") > row["value"]
    # Grids of their own: read by straight lines, which these curves are.
    odd = pl.concat(
        [
            right.filter(pl.col("subject_id") < 1000),
            curves_frame(predictions, lambda day: p * day / 365, [50.0, 365.0]).filter(pl.col("subject_id") >= 1000),
        ]
    )
    own = evaluate_predictions(predictions, labels, curves=odd, replicates=0)
    assert value(own, "integrated_brier") == pytest.approx(row["value"], rel=0.03)
    assert "integrated_brier" not in evaluate_predictions(predictions, labels, replicates=0)["metric"].to_list()
    # Labels that do not say when are judged by neither metric of time.
    silent = labels.with_columns(pl.when(pl.col("end_reason") != "outcome").then("time_to_event_days").alias("time_to_event_days"))
    when = evaluate_predictions(predictions, silent, curves=right, replicates=0).filter(pl.col("metric").is_in(["c_index", "integrated_brier"]))
    assert when["value"].is_null().all()
    assert "integrated_brier" not in evaluate_predictions(predictions, labels, curves=right.clear(), replicates=0)["metric"].to_list()
    with pytest.raises(MismatchError, match="1 of 2000 predictions of m have none"):
        evaluate_predictions(predictions, labels, curves=right.filter(pl.col("subject_id") != 5), replicates=0)


def test_shares_of_few_samples_have_a_slope():
    rng = np.random.default_rng(0)
    p = rng.random(2000) * 0.5
    labels = labels_frame((rng.random(2000) < p).tolist())
    shares = rng.binomial(16, p) / 16
    assert (shares == 0).any()
    predictions = predictions_frame(labels, shares, num_samples=pl.lit(16, dtype=pl.Int32))
    metrics = evaluate_predictions(predictions, labels, replicates=0)
    assert 0.3 < value(metrics, "calibration_slope") < 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01])
def test_what_is_no_probability_is_refused(value):
    labels = labels_frame([True, False, True])
    with pytest.raises(SchemaError, match="1 of 2 values are no probability") as told:
        evaluate_predictions(predictions_frame(labels, [value, 1.0, None]), labels)
    assert str(value) not in str(told.value)


def test_small_bins_tell_the_predicted_risk_only():
    """Two heaps of risks: the one of ten people is hidden, and with it the next smallest, or subtraction would tell."""
    people = [10, 40, 60, 90]
    labels = labels_frame([row % 3 == 0 for row in range(sum(people))])
    predictions = predictions_frame(labels, np.repeat([0.1, 0.3, 0.5, 0.7], people).tolist())
    table = calibration_table(predictions, labels, bins=200, replicates=5)
    assert table["predicted"].to_list() == pytest.approx([0.1, 0.3, 0.5, 0.7])
    for column in ("observed", "lower", "upper", "rows", "subjects"):
        assert table[column].is_null().to_list() == [True, True, False, False]
    assert table["subjects"].to_list() == [None, None, 60, 90]
    drawn = calibration_chart(table, "t")
    assert drawn is not None
    assert drawn.count("predicted 10%") == 0
    assert calibration_chart(table.head(3), "t") is None


@pytest.mark.parametrize(("people", "hidden"), [([3, 5, 40, 60], 3), ([3, 4, 5, 60], 3), ([11, 40], 0), ([3, 5], 2), ([10], 1)])
def test_small_bins_are_no_small_group_together(people: list[int], hidden: int):
    """Rows and outcomes of all bins are known, so that what the hidden ones have together is told by subtraction."""
    labels = labels_frame([row % 3 == 0 for row in range(sum(people))])
    predictions = predictions_frame(labels, np.repeat(np.linspace(0.1, 0.7, len(people)), people).tolist())
    table = calibration_table(predictions, labels, bins=200, replicates=5)
    assert table["observed"].is_null().to_list() == [True] * hidden + [False] * (len(people) - hidden)


def test_two_methods_that_differ_by_one_person_do_not_tell_of_them():
    """Bins of a and b hold the same people but for one who has moved to the top: what both have observed would say what became of them."""
    rng = np.random.default_rng(7)
    p = np.sort(rng.random(400))
    labels = labels_frame((rng.random(400) < p).tolist())
    moved = p.copy()
    moved[5] = 0.9999
    curves = calibration_table(
        pl.concat([predictions_frame(labels, p, method="a"), predictions_frame(labels, moved, method="b")]), labels, replicates=0
    )
    told = {method: curves.filter(pl.col("method") == method)["observed"].is_not_null().sum() for method in ("a", "b")}
    assert told == {"a": 10, "b": 0}
    # Methods that rank alike share their bins, others differ by many.
    other = predictions_frame(labels, rng.random(400), method="b")
    for second in (predictions_frame(labels, p**2, method="b"), other):
        assert calibration_table(pl.concat([predictions_frame(labels, p, method="a"), second]), labels, replicates=0)["observed"].null_count() == 0


def test_times_that_are_not_known_are_neither_early_losses_nor_ranked() -> None:
    """Who is free at an untold time was seen to the end; of outcomes that say no time there is no C-index."""
    rng = np.random.default_rng(4)
    event, lost = rng.exponential(600, 4000), rng.exponential(400, 4000)
    labels = followed(event, lost)
    untold = pl.when(pl.col("end_reason") != "horizon").then("time_to_event_days").alias("time_to_event_days")
    told = [
        dict(evaluate_predictions(predictions_frame(one, rng.random(4000).tolist()), one, replicates=0).select("metric", "value").rows())
        for one in (labels, labels.with_columns(untold), labels.with_columns(pl.lit(None, dtype=pl.Float64).alias("time_to_event_days")))
    ]
    assert told[1]["prevalence"] == pytest.approx(told[0]["prevalence"], rel=0.01)  # the last time that is told stands for the end
    assert told[0]["c_index"] == pytest.approx(0.5, abs=0.05)
    assert np.isnan(told[2]["c_index"] if told[2]["c_index"] is not None else np.nan)
    with pytest.raises(SchemaError, match="'end_reason' holds 'Horizon'; expected one of outcome"):
        evaluate_predictions(predictions_frame(labels, [0.5] * 4000), labels.with_columns(pl.col("end_reason").str.replace("h", "H", literal=True)))

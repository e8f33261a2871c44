"""Recalibration is fitted on some patients and judged on others."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.errors import ConfigError, InputError, MismatchError
from cehrxgpt.evaluate import calibration, evaluate_predictions
from cehrxgpt.evaluate.recalibrate import fit_isotonic, fit_platt, recalibrate
from test_evaluate_predictions import labels_frame, predictions_frame, relabelled, value


def population(rng, subjects, *, censor=False):
    """Labels, and predictions that are too extreme and too high."""
    p = rng.beta(1, 3, len(subjects))
    truth = (rng.random(p.size) < p).tolist()
    lost = (rng.random(p.size) < 0.3) if censor else np.zeros(p.size, dtype=bool)
    labels = labels_frame([None if gone else one for one, gone in zip(truth, lost, strict=True)], subjects=subjects)
    raw = 1 / (1 + np.exp(-(1.2 + 2 * calibration.logit(p))))
    return labels, predictions_frame(labels, raw, lower_bound=pl.Series(raw * 0.9), upper_bound=pl.Series(raw), std_error=pl.lit(0.1))


@pytest.fixture(scope="module")
def both():
    rng = np.random.default_rng(0)
    tuning = population(rng, list(range(3000)), censor=True)
    held = population(rng, list(range(5000, 9000)))
    return pl.concat([tuning[0], held[0]]), tuning[1], held[1]


def test_it_repairs_and_ranks_as_before(both):
    labels, tuning, held = both
    mapped = recalibrate(held, tuning, labels)
    assert mapped["method"].unique(maintain_order=True).to_list() == ["m+platt", "m+isotonic"]
    metrics = evaluate_predictions(pl.concat([held, mapped], how="vertical_relaxed"), labels, replicates=0)
    assert value(metrics, "calibration_slope") < 0.7
    for kind in ("platt", "isotonic"):
        assert value(metrics, "ece", f"m+{kind}") < 0.4 * value(metrics, "ece")
        assert value(metrics, "brier", f"m+{kind}") < value(metrics, "brier")
    assert value(metrics, "calibration_slope", "m+platt") == pytest.approx(1, abs=0.12)
    assert value(metrics, "auroc", "m+platt") == pytest.approx(value(metrics, "auroc"))
    assert value(metrics, "auroc", "m+isotonic") == pytest.approx(value(metrics, "auroc"), abs=0.01)
    assert (mapped["lower_bound"] <= mapped["predicted_boolean_probability"] + 1e-12).all()
    assert (mapped["upper_bound"] >= mapped["predicted_boolean_probability"] - 1e-12).all()
    assert mapped["std_error"].null_count() == mapped.height
    s.check_columns(mapped.to_arrow(), s.PREDICTION_SCHEMA, where="mapped", optional=s.PREDICTION_SCHEMA.names[2:4] + s.PREDICTION_SCHEMA.names[8:])


def test_ranks_stay_where_rows_have_numbers_of_futures_of_their_own():
    """As with a target error: none of 20 futures is less than one of 160, before the map and behind it."""
    rng = np.random.default_rng(2)
    truth = rng.random(4000) < 0.1
    labels = labels_frame(truth.tolist())
    count = np.where(rng.random(4000) < 0.5, 20, 160)
    share = rng.binomial(count, np.where(truth, 0.06, 0.02)) / count
    made = predictions_frame(labels, share, method="monte_carlo", num_samples=pl.Series(count, dtype=pl.Int32))
    tuning, held = made.filter(pl.col("subject_id") < 2000), made.filter(pl.col("subject_id") >= 2000)
    mapped = recalibrate(held, tuning, labels, ["platt"]).sort(held["predicted_boolean_probability"])
    assert mapped["predicted_boolean_probability"].is_sorted()


def test_held_out_labels_are_not_looked_at(both):
    labels, tuning, held = both
    values = labels.select(pl.when(pl.col("subject_id") >= 5000).then(~pl.col("boolean_value")).otherwise("boolean_value"))
    turned = relabelled(labels, values.to_series())
    assert recalibrate(held, tuning, turned).equals(recalibrate(held, tuning, labels))


def test_maps_by_hand():
    step = fit_isotonic([0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5], np.ones(5))
    least = 0.5 / 6  # of five rows none says never, or always
    assert step([0.05, 0.2, 0.3, 0.35, 0.4, 0.9]) == pytest.approx([least, 0.5, 0.5, (1.5 - least) / 2, 1 - least, 1 - least])
    weighted = fit_isotonic([0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5], [1, 3, 1, 1, 1])
    assert weighted([0.25]) == pytest.approx([0.75])
    same = fit_platt([0, 0, 1, 1], np.full(4, 0.5), [1, 1, 1, 5])
    assert same([0.5, 0.5]) == pytest.approx([0.75, 0.75])
    rising = 1 / (1 + np.exp(-np.array([-2.0, -1, 0, 1, 2, 3])))
    backward = fit_platt([1, 0, 1, 0, 0, 0], rising, np.ones(6))  # who is told least has it most often
    assert backward([0.1, 0.5, 0.9]) == pytest.approx([1 / 3] * 3)
    reversed_altogether = fit_platt([1, 1, 0, 0], rising[[0, 1, 3, 4]], [1, 1, 1, 3])
    assert reversed_altogether([0.1, 0.9]) == pytest.approx([1 / 3] * 2)
    with pytest.raises(InputError, match="separate"):
        fit_platt([0, 0, 1, 1], rising[[0, 1, 3, 4]], np.ones(4))


def test_no_step_is_the_share_of_a_few_people():
    rng = np.random.default_rng(2)
    p = rng.random(300)
    subjects, truth = np.arange(300) // 2, rng.random(300) < p
    step = fit_isotonic(truth, p, np.ones(300), subjects)
    ends, place = np.unique(step(p), return_inverse=True)
    flat = [one for one in range(len(ends)) if (place == one).sum() > 1]
    assert min(np.unique(subjects[place == one]).size for one in flat) >= 11
    at = np.linspace(0, 1, 200)
    assert (np.diff(step(at)) >= 0).all()
    assert np.abs(step(at) - fit_isotonic(truth, p, np.ones(300))(at)).mean() < 0.03


@pytest.mark.parametrize("greatest", [(0.3 * 3, 0.9), (1 - 2**-53, 1.0)])
def test_risks_that_differ_in_their_last_digit_are_mapped(greatest):
    p, truth = np.array([*np.linspace(0.01, 0.8, 40), *greatest]), np.arange(42) % 3 == 0
    told = fit_isotonic(truth, p, np.ones(42), np.arange(42))(p)
    assert np.isfinite(told).all()
    assert (np.diff(told) >= 0).all()


def test_a_risk_is_mapped_the_same_whatever_futures_other_rows_have(both):
    """Shares of 50 futures, fitted on tuning rows of as many: one judged row of 4 futures moves the others' mapped risks not at all."""
    labels, tuning, held = both
    shares = [
        rows.with_columns((pl.col("predicted_boolean_probability") * 50).round() / 50, num_samples=pl.lit(50), method=pl.lit("monte_carlo"))
        for rows in (tuning, held)
    ]
    few = shares[1].with_columns(num_samples=pl.when(pl.int_range(pl.len()) == 0).then(4).otherwise(50))
    found = [recalibrate(rows, shares[0], labels, ["platt"])["predicted_boolean_probability"] for rows in (shares[1], few)]
    assert found[0].equals(found[1])


def test_refusals(both):
    labels, tuning, held = both
    with pytest.raises(MismatchError, match=r"3 subjects of the tuning predictions .* \(first: 5000, 5001, 5002\)"):
        recalibrate(held, pl.concat([tuning, held.head(3)]), labels)
    with pytest.raises(ConfigError, match="platt, isotonic"):
        recalibrate(held, tuning, labels, ["plat"])
    with pytest.raises(MismatchError, match="no tuning predictions of t by other"):
        recalibrate(held.with_columns(pl.lit("other").alias("method")), tuning, labels)
    with pytest.raises(InputError, match="fewer than 11"):
        recalibrate(held, tuning.head(12), labels)


def test_refused_rows_stay_refused(both):
    labels, tuning, held = both
    gaps = held.with_columns(pl.when(pl.int_range(pl.len()) > 4).then("predicted_boolean_probability").alias("predicted_boolean_probability"))
    assert recalibrate(gaps, tuning, labels, ["platt"])["predicted_boolean_probability"].null_count() == 5


def test_mapped_risks_are_no_shares_of_futures() -> None:
    """Their logits are not kept half a future from 0, as those of 32 futures are: a right map of a rare outcome has slope 1."""
    rng = np.random.default_rng(3)
    risk = 1 / (1 + np.exp(-rng.normal(-5.5, 1.2, 20_000)))
    labels = labels_frame((rng.random(20_000) < risk).tolist())
    rows = predictions_frame(labels, risk.tolist()).with_columns(pl.lit(32).alias("num_samples"))
    slopes = {}
    for method in ("monte_carlo", "reach", "reach+platt", "monte_carlo+isotonic"):
        told = evaluate_predictions(rows.with_columns(pl.lit(method).alias("method")), labels, replicates=0)
        slopes[method] = told.filter(pl.col("metric") == "calibration_slope")["value"].item()
    assert slopes["reach"] == slopes["reach+platt"] == slopes["monte_carlo+isotonic"] == pytest.approx(1, abs=0.15)
    assert slopes["monte_carlo"] > 1.3

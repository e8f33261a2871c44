"""Metrics by hand, against scikit-learn, and under resampling."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from cehrxgpt.evaluate import calibration, discrimination
from cehrxgpt.evaluate.bootstrap import bootstrap, censoring_survival, censoring_weights, replicate_weights

Y = [0, 0, 1, 1]
P = [0.1, 0.4, 0.35, 0.8]


def test_by_hand():
    assert discrimination.auroc(Y, P)[0] == pytest.approx(3 / 4)
    assert discrimination.auroc([0, 1], [0.5, 0.5])[0] == 0.5
    assert discrimination.auprc(Y, P)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert discrimination.auprc([1, 0, 1, 0], [0.5] * 4)[0] == 0.5
    assert calibration.brier(Y, P)[0] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    assert calibration.ece(Y, [0.5, 0.5, 0.5, 0.5])[0] == 0
    assert calibration.ece([0, 0, 1, 1], [0.2, 0.2, 0.6, 0.6], bins=2)[0] == pytest.approx((0.2 + 0.4) / 2)
    assert np.isnan(discrimination.auroc([1, 1], [0.2, 0.3])[0])
    assert np.isnan(discrimination.auprc([0, 0], [0.2, 0.3])[0])
    assert np.isnan(discrimination.auroc([], [])[0])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=40))
def test_equal_to_scikit_learn_and_to_repetition(rows):
    truth, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    repeated_truth, repeated_score = np.repeat(truth, weight), np.repeat(score, weight)
    found = discrimination.auroc(truth, score, weight)[0], discrimination.auprc(truth, score, weight)[0]
    if len(set(repeated_truth)) == 2:
        assert found[0] == pytest.approx(roc_auc_score(repeated_truth, repeated_score))
        assert found[1] == pytest.approx(average_precision_score(repeated_truth, repeated_score))
    else:
        assert np.isnan(found[0])
    p = (score + 0.5) / 8
    if weight.sum():
        assert calibration.brier(truth, p, weight)[0] == pytest.approx(np.mean((np.repeat(p, weight) - repeated_truth) ** 2))


def test_slope_and_intercept_recover_what_was_done():
    rng = np.random.default_rng(0)
    lp = rng.normal(-1, 1.5, 20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 + 0.7 * lp)))
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(lp[:, None], truth)
    assert calibration.slope(truth, lp)[0] == pytest.approx(fitted.coef_[0, 0], abs=1e-4)
    assert calibration.slope(truth, lp)[0] == pytest.approx(0.7, abs=0.04)
    shifted = rng.random(20_000) < 1 / (1 + np.exp(-(lp - 0.8)))
    assert calibration.intercept(shifted, lp)[0] == pytest.approx(-0.8, abs=0.05)
    weights = np.vstack([np.ones(20_000), rng.integers(0, 3, 20_000)])
    together = calibration.slope(truth, lp, weights)
    assert together[1] == pytest.approx(calibration.slope(truth, lp, weights[1])[0], abs=1e-8)


@pytest.mark.parametrize(("risk", "futures"), [(0.1, 20), (0.01, 50), (0.002, 50)])
def test_shares_of_few_futures_of_a_right_model_are_neither_too_high_nor_too_low(risk: float, futures: int):
    """Most shares of a rare outcome are 0. Kept from there by half a future, they would count as risks, and all together as too high."""
    rng = np.random.default_rng(5)
    p = rng.beta(2, 2 / risk - 2, 100_000)
    truth, shares = rng.random(p.size) < p, rng.binomial(futures, p) / futures
    limit = 4 / np.sqrt(truth.sum())
    assert calibration.intercept(truth, calibration.logit(shares, clip=0))[0] == pytest.approx(0, abs=limit)
    assert calibration.intercept(truth, calibration.logit(shares / 2, clip=0))[0] > 0.5
    if risk < 0.05:
        assert calibration.intercept(truth, calibration.logit(shares, clip=calibration.clip_for_samples(futures)))[0] < -0.4


def test_an_intercept_that_no_shift_can_reach_is_not_told():
    for risks in (
        [0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0],
        [0.0, 0.5, 0.0],
        [1e-15, 1e-15, 1e-15],
    ):  # who was told 0 stays there: one of three cannot be two of three
        assert np.isnan(calibration.intercept([1, 0, 1], calibration.logit(risks, clip=0))[0])
    assert np.isfinite(calibration.intercept([1, 0, 1, 0], calibration.logit([0.0, 0.5, 0.9, 0.9], clip=0))[0])


def test_slope_where_there_is_none():
    assert np.isnan(calibration.slope([0, 1], [0.3, 0.3])[0])  # a constant predictor
    assert np.isnan(calibration.slope([0, 0, 1, 1], [-2.0, -1.0, 1.0, 2.0])[0])  # separated
    assert np.isnan(calibration.slope([1, 1], [0.3, 0.4])[0])
    assert np.isnan(calibration.intercept([1, 1], [0.3, 0.4])[0])
    assert calibration.intercept([0, 1], [0.0, 0.0])[0] == 0


def test_a_share_of_samples_keeps_half_a_sample_from_the_ends():
    assert calibration.clip_for_samples([np.nan, 200, 50]) == 0.5 / 51
    assert calibration.clip_for_samples([np.nan, 0]) == 1e-6
    assert np.isfinite(calibration.logit([0.0, 1.0])).all()


def test_curve_has_bins_of_equal_mass():
    rng = np.random.default_rng(1)
    p = rng.random(1000) ** 3
    curve = calibration.calibration_curve(rng.random(1000) < p, p)
    assert [point["rows"] for point in curve] == [100] * 10
    assert all(point["lower"] <= point["observed"] <= point["upper"] for point in curve)
    heaped = calibration.calibration_curve([0, 1, 1, 0], [0.25, 0.25, 0.25, 0.5])
    assert [point["rows"] for point in heaped] == [3, 1]
    assert heaped[0]["observed"] == pytest.approx(2 / 3)
    assert calibration.calibration_curve([], []) == []


def test_limits_of_the_curve_go_by_patient():
    rng = np.random.default_rng(1)
    p = np.repeat(rng.random(100), 10)
    truth = np.repeat(rng.random(100) < p[::10], 10)  # ten rows of one patient end alike
    own = calibration.calibration_curve(truth, p, bins=2, replicates=200)
    patients = calibration.calibration_curve(truth, p, bins=2, replicates=200, subject_id=np.repeat(np.arange(100), 10))
    assert all(b["upper"] - b["lower"] > 2 * (a["upper"] - a["lower"]) for a, b in zip(own, patients, strict=True))
    assert [point["subjects"] for point in patients] == [50, 50]
    nobody = calibration.calibration_curve([0] * 40, [0.1] * 40, subject_id=[1, 2] * 20)
    assert (nobody[0]["observed"], nobody[0]["subjects"]) == (0, 2)
    assert nobody[0]["upper"] > 0.5  # of two patients nothing is known


def test_a_replicate_draws_patients_with_all_their_rows():
    subject = np.array([7, 7, 7, 3, 5, 5])
    (chunk,) = replicate_weights(subject, replicates=200, seed=1)
    assert (chunk[:, :3] == chunk[:, :1]).all()
    assert (chunk[:, 4] == chunk[:, 5]).all()
    assert (chunk[:, 0] + chunk[:, 3] + chunk[:, 4] == 3).all()
    assert np.array_equal(chunk, next(replicate_weights(subject, replicates=200, seed=1)))


def test_interval_against_every_possible_resample():
    """Three patients: 27 equally likely resamples, all of them written out."""
    subject = np.array([1, 1, 2, 3])
    values = np.array([0.0, 1.0, 3.0, 10.0])
    every = []
    for drawn in product([1, 2, 3], repeat=3):
        rows = np.concatenate([values[subject == patient] for patient in drawn])
        every.append(rows.mean())
    mean = {"mean": lambda w: (w @ values) / w.sum(axis=1)}
    value, lower, upper = bootstrap(mean, subject, replicates=4000, seed=0)["mean"]
    assert value == 3.5
    assert lower == pytest.approx(np.quantile(every, 0.025, method="inverted_cdf"))
    assert upper == pytest.approx(np.quantile(every, 0.975, method="inverted_cdf"))


def test_rows_of_one_patient_widen_the_interval():
    rng = np.random.default_rng(2)
    base = rng.normal(size=100)
    repeated = np.repeat(base, 10)
    mean = {"mean": lambda w: (w @ repeated) / w.sum(axis=1)}
    _, low, high = bootstrap(mean, np.repeat(np.arange(100), 10), replicates=500)["mean"]
    _, naive_low, naive_high = bootstrap(mean, np.arange(1000), replicates=500)["mean"]
    assert high - low > 2 * (naive_high - naive_low)


def test_statistics_undefined_in_most_replicates_get_no_interval():
    lonely = {"x": lambda w: np.where(np.arange(w.shape[0]) % 3 == 0, 1.0, np.nan) if w.shape[0] > 1 else np.ones(1)}
    value, lower, upper = bootstrap(lonely, np.arange(4), replicates=30)["x"]
    assert value == 1
    assert np.isnan(lower)
    assert np.isnan(upper)


def test_kaplan_meier_by_hand():
    # At 2 one of four is lost, at 5 the one who is left: the outcome at 5 comes before the loss at 5.
    before = censoring_survival([2, 3, 5, 5], [True, False, True, False])
    assert before([1, 2, 2.5, 5, 6]).tolist() == pytest.approx([1, 1, 0.75, 0.75, 0])
    weights = censoring_weights([2, 3, 5, 5], [True, False, True, False])
    assert weights.tolist() == pytest.approx([0, 1 / 0.75, 0, 1 / 0.75])
    assert censoring_weights([1.0, 2.0], [False, False]).tolist() == [1, 1]


@pytest.mark.parametrize("step", [1, 3])
def test_weights_undo_censoring_where_times_tie(step: int):
    """Outcomes and losses known by the day, or by every third: the share of outcomes is that of those who are never lost."""
    rng = np.random.default_rng(5)
    event, lost = (np.ceil(rng.exponential(mean, 400_000) / step) * step for mean in (20.0, 6.0))
    days = np.minimum.reduce([event, lost, np.full(event.size, 12.0)])
    weights = censoring_weights(days, (lost < event) & (lost < 12))
    assert np.average(event <= days, weights=weights) == pytest.approx((event <= 12).mean(), abs=0.004)


def test_weights_undo_censoring():
    """Events at once, negatives only after a year: dropping the censored makes the outcome look twice as common."""
    rng = np.random.default_rng(3)
    event, lost = rng.exponential(2000, 40_000), rng.exponential(400, 40_000)
    truth = event <= 365
    days = np.minimum(np.minimum(event, lost), 365)
    censored = lost < np.minimum(event, 365)
    kept = ~censored
    weights = censoring_weights(days, censored)
    assert calibration.prevalence(truth[kept])[0] > truth.mean() + 0.05
    assert calibration.prevalence(truth[kept], weights[kept])[0] == pytest.approx(truth.mean(), abs=0.01)


def test_the_interval_of_the_calibration_error_holds_it():
    """It is the larger the noisier: of risks that mean what they say the replicates' own percentiles may all lie above the sample's."""
    beside = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        p = rng.beta(2, 5, 500)
        truth = rng.random(500) < p
        statistics = {"ece": lambda w, truth=truth, p=p: calibration.ece(truth, p, w)}
        value, lower, upper = bootstrap(statistics, np.arange(500), replicates=200, noisy=("ece",))["ece"]
        assert 0 <= lower <= value <= upper
        beside += value < bootstrap(statistics, np.arange(500), replicates=200)["ece"][1]
    assert beside > 0

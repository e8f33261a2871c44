"""The methods that a representation has to beat: counts with LightGBM, counts with logistic regression, age and sex alone.

Each is fitted on training rows and asked about all rows given. Where a training set has too few rows of either class, there is no
model: the prediction is null and the note says why; nothing is made up.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cehrxgpt.features.counts import CountFeatures

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

REGULARISATION = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
"""Values of C that are tried, in order; on a tie the smaller one wins."""

COUNTS_LIGHTGBM, COUNTS_LOGISTIC, AGE_SEX, CONSTANT = "counts+lightgbm", "counts+logistic", "age+sex", "constant"


@dataclass(frozen=True)
class Examples:
    """The rows that a method is asked about, and those that it learns from.

    Attributes:
        outcome: bool[rows]; what stands at rows of neither `fit` nor `tuning` is not looked at.
        fit, tuning: bool[rows]; labelled training and tuning rows.
        subject_id: int64[rows].
        weight: float64[rows], above 0 in `fit`; all alike if None.
        least: rows of each class a model needs.
        seed: of what is drawn.
    """

    outcome: Mask
    fit: Mask
    tuning: Mask
    subject_id: npt.NDArray[np.int64]
    weight: Array | None = None
    least: int = 5
    seed: int = 0

    @property
    def too_few(self) -> str | None:
        """Why no model can be fitted, or None."""
        positives, negatives = _of_each(self.outcome, self.fit)
        if min(positives, negatives) >= self.least:
            return None
        return f"{positives} positive and {negatives} negative training rows; a model needs at least {self.least} of each"

    @property
    def tunable(self) -> bool:
        """Are there tuning rows enough to choose by?"""
        return min(_of_each(self.outcome, self.tuning)) >= self.least

    @property
    def weights(self) -> Array:
        """`weight`, ones if None."""
        return np.ones(self.outcome.size) if self.weight is None else self.weight


@dataclass(frozen=True)
class Fitted:
    """Probabilities of all rows (null-like NaN where there is no model), and a note."""

    probability: Array
    note: str | None = None


def _of_each(outcome: Mask, rows: Mask) -> tuple[int, int]:
    """Positives and negatives among the rows."""
    return int((outcome & rows).sum()), int((~outcome & rows).sum())


def nothing(rows: int, note: str) -> Fitted:
    """No predictions, for a reason."""
    return Fitted(np.full(rows, np.nan), note)


def constant(outcome: Mask, fit: Mask, weight: Array | None = None) -> Fitted:
    """The training prevalence for everybody, weighted if rows are: what a calibration error of zero is worth."""
    if not fit.any():
        return nothing(outcome.size, "no labelled training rows")
    return Fitted(np.full(outcome.size, float(np.average(outcome[fit], weights=None if weight is None else weight[fit]))))


def log_loss(outcome: Mask, probability: Array, weight: Array | None = None) -> float:
    """Mean negative log-likelihood."""
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return float(-np.average(np.where(outcome, np.log(p), np.log1p(-p)), weights=weight))


def _fit_logistic(x: sparse.csr_matrix | Array, outcome: Mask, strength: float, seed: int, weight: Array) -> tuple[Array, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, solver="lbfgs", max_iter=1000, tol=1e-4, random_state=seed)
    with warnings.catch_warnings():
        # A weak penalty on separable data never quite converges; the choice of C by held-back loss passes such fits by.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, outcome, sample_weight=weight)
    return model.coef_[0], float(model.intercept_[0])


def _probability(x: sparse.csr_matrix | Array, coefficients: Array, intercept: float) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * (np.asarray(x @ coefficients).ravel() + intercept)))


def _folds(subject_id: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Fold of each row; a subject's rows stay together."""
    subjects, place = np.unique(subject_id, return_inverse=True)
    return (np.random.default_rng(seed).permutation(subjects.size) % count)[place]


def choose_strength(x: sparse.csr_matrix | Array, given: Examples) -> float:
    """C by log-loss: on the tuning rows if they have enough of each class, else by three folds over training subjects."""
    losses, outcome, fit, tuning, weight = [], given.outcome, given.fit, given.tuning, given.weights
    for strength in REGULARISATION:
        if given.tunable:
            coefficients, intercept = _fit_logistic(x[fit], outcome[fit], strength, given.seed, weight[fit])
            losses.append(log_loss(outcome[tuning], _probability(x[tuning], coefficients, intercept), weight[tuning]))
            continue
        fold, parts = _folds(given.subject_id, 3, given.seed), []
        for number in range(3):
            inside, outside = fit & (fold != number), fit & (fold == number)
            if outside.any() and len(set(outcome[inside].tolist())) == 2:
                coefficients, intercept = _fit_logistic(x[inside], outcome[inside], strength, given.seed, weight[inside])
                lost = log_loss(outcome[outside], _probability(x[outside], coefficients, intercept), weight[outside])
                parts.append((lost, float(weight[outside].sum())))
        losses.append(sum(loss * rows for loss, rows in parts) / max(sum(rows for _, rows in parts), 1) if parts else np.inf)
    return REGULARISATION[int(np.argmin(losses))]


def logistic(x: sparse.csr_matrix | Array, given: Examples) -> Fitted:
    """Logistic regression on columns that are already on a common scale; C chosen by `choose_strength`."""
    if given.too_few is not None:
        return nothing(given.outcome.size, given.too_few)
    if x.shape[1] == 0:
        return nothing(given.outcome.size, "no feature has enough training subjects")
    fit = given.fit
    coefficients, intercept = _fit_logistic(x[fit], given.outcome[fit], choose_strength(x, given), given.seed, given.weights[fit])
    return Fitted(_probability(x, coefficients, intercept))


def scale_columns(x: sparse.csr_matrix, fit: Mask) -> sparse.csr_matrix:
    """Divide columns by their root mean square over training rows (zeros stay zeros)."""
    square = np.asarray(x[fit].multiply(x[fit]).mean(axis=0)).ravel() if fit.any() else np.ones(x.shape[1])
    return sparse.csr_matrix(x @ sparse.diags(1.0 / np.sqrt(np.where(square > 0, square, 1.0))))


def lightgbm(x: sparse.csr_matrix, given: Examples, *, threads: int = 1) -> Fitted:
    """Gradient-boosted trees on rows that weigh alike, stopped on the tuning rows if they have enough of each class, else after 100 rounds."""
    if given.too_few is not None:
        return nothing(given.outcome.size, given.too_few)
    if x.shape[1] == 0:
        return nothing(given.outcome.size, "no feature has enough training subjects")
    import lightgbm as lgb

    outcome, fit, tuning = given.outcome, given.fit, given.tuning
    settings = {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": int(np.clip(fit.sum() // 50, 2, 20)),
        "feature_fraction": 0.5,
        "lambda_l2": 1.0,
        "num_threads": threads,
        "deterministic": True,
        "force_row_wise": True,
        "seed": given.seed,
        "verbosity": -1,
        "feature_pre_filter": False,
    }
    train = lgb.Dataset(x[fit], label=outcome[fit].astype(np.float64), free_raw_data=False)
    if given.tunable:
        watched = lgb.Dataset(x[tuning], label=outcome[tuning].astype(np.float64), reference=train, free_raw_data=False)
        booster = lgb.train(settings, train, num_boost_round=500, valid_sets=[watched], callbacks=[lgb.early_stopping(25, verbose=False)])
    else:
        booster = lgb.train(settings, train, num_boost_round=100)
    return Fitted(np.asarray(booster.predict(x, num_iteration=booster.best_iteration or -1, num_threads=threads), dtype=np.float64))


def age_and_sex(features: CountFeatures, given: Examples) -> Fitted:
    """Logistic regression on age and sex alone."""
    person = scale_columns(features.matrix[:, features.columns("age", "sex:")], given.fit)
    return logistic(np.asarray(person.todense()), given)


def fit_baselines(features: CountFeatures, given: Examples, *, threads: int = 1) -> dict[str, Fitted]:
    """Every baseline: method -> probabilities of all rows.

    Args:
        features: of all rows.
        given: the rows, which weigh alike.
        threads: one makes it the same on every machine.
    """
    threads = max(1, min(threads, os.cpu_count() or 1))
    return {
        COUNTS_LIGHTGBM: lightgbm(features.matrix, given, threads=threads),
        COUNTS_LOGISTIC: logistic(scale_columns(features.matrix, given.fit), given),
        AGE_SEX: age_and_sex(features, given),
        CONSTANT: constant(given.outcome, given.fit),
    }

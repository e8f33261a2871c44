"""Recalibration: a map from risks to risks, fitted on tuning predictions and judged on held-out ones.

Platt's is a line on the logit (two numbers, smooth, cannot repair what is bent); isotonic regression is the best step-wise map that never
falls (bends at will, wants hundreds of outcomes, ties what it cannot tell apart). Both are weighted for censoring. Neither turns the ranking round:
where tuning predictions rank the wrong way, all risks become the outcome's share there, as such predictions tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import ConfigError, InputError, MismatchError
from cehrxgpt.evaluate import calibration
from cehrxgpt.evaluate.predictions import by_method
from cehrxgpt.evaluate.rows import Array, Judged, clip, join_labels, share

PLATT, ISOTONIC = "platt", "isotonic"
KINDS = (PLATT, ISOTONIC)

Map = Callable[[npt.ArrayLike], Array]
"""Probabilities -> probabilities."""


def fit_platt(outcome: npt.ArrayLike, probability: npt.ArrayLike, weights: npt.ArrayLike, *, clip: float = calibration.CLIP) -> Map:
    """p -> sigmoid(a + b logit(p)), b not negative. The outcome's share where all predictions are one, or rank the wrong way round.

    Args:
        outcome, probability, weights: float[n].
        clip: how far from 0 and 1 probabilities are kept before their logits are taken, those that are mapped as those that it is fitted on.

    Raises:
        InputError: the predictions separate the outcomes perfectly; no line fits.
    """
    truth, lp = np.asarray(outcome, dtype=np.float64), calibration.logit(probability, clip=clip)
    w = np.asarray(weights, dtype=np.float64)
    # The line rises as the weighted covariance does: at b = 0 that is the slope of the likelihood.
    rises = np.ptp(lp) > 0 and float((w * (lp - np.average(lp, weights=w)) * truth).sum()) > 0
    if rises:
        a, b = (float(found[0]) for found in calibration.line(truth, lp, weights))
    else:
        a, b = float(calibration.logit(calibration.prevalence(truth, weights))[0]), 0.0
    if not np.isfinite(a + b):
        raise InputError("recalibrate: the tuning predictions separate the outcomes perfectly, so that no Platt line fits; use isotonic")
    return lambda p: 1.0 / (1.0 + np.exp(-(a + b * calibration.logit(p, clip=clip))))


def fit_isotonic(outcome: npt.ArrayLike, probability: npt.ArrayLike, weights: npt.ArrayLike, subject_id: npt.ArrayLike | None = None) -> Map:
    """The weighted least-squares map that never falls; straight between its steps, flat beyond them, and half a row of those it is fitted on away
    from 0 and 1: no n rows say that something never happens.

    Args:
        outcome, probability, weights: float[n].
        subject_id: int[n]; steps of fewer than 11 people are joined with the nearer neighbour, as a share of so few says what became of them, and
            little of anybody else. None: they are left.
    """
    from sklearn.isotonic import IsotonicRegression

    p, y, w = (np.asarray(values, dtype=np.float64) for values in (probability, outcome, weights))
    least = 0.5 / (y.size + 1.0)
    # Risks that differ in their last digit are one to it, so that the greatest may lie beyond what it has kept: clipped, not lost.
    fitted = IsotonicRegression(y_min=least, y_max=1.0 - least, out_of_bounds="clip").fit_transform(p, y, sample_weight=w)
    steps = [np.flatnonzero(fitted == value) for value in np.unique(fitted)]
    values = [float(fitted[step[0]]) for step in steps]
    person = None if subject_id is None else np.asarray(subject_id)
    while person is not None and len(steps) > 1:
        people = [np.unique(person[step]).size for step in steps]
        few = int(np.argmin(people))
        if people[few] >= s.SMALL_CELL:
            break
        sides = [side for side in (few - 1, few + 1) if 0 <= side < len(steps)]
        first = min(few, min(sides, key=lambda side: abs(values[side] - values[few])))
        joined = np.concatenate([steps[first], steps[first + 1]])
        steps[first : first + 2] = [joined]
        values[first : first + 2] = [float(np.clip(np.average(y[joined], weights=w[joined]), least, 1.0 - least))]
    ends = np.array([(p[step].min(), p[step].max()) for step in steps])
    at, to = np.unique(ends.ravel(), return_index=True)
    return lambda given: np.interp(np.asarray(given, dtype=np.float64), at, np.repeat(values, 2)[to])


def _fit(kind: str, rows: Judged) -> Map:
    if kind == PLATT:
        return fit_platt(rows.truth, rows.probability, rows.weight, clip=clip(rows.table))
    return fit_isotonic(rows.truth, rows.probability, rows.weight, rows.subject_id)


def _apply(found: Map, predictions: pl.DataFrame, method: str) -> pl.DataFrame:
    """The predictions mapped; bounds too, the standard error, which is of the raw risk, is left out."""
    columns = {}
    for name in ("predicted_boolean_probability", "lower_bound", "upper_bound"):
        if name in predictions.columns:
            given = predictions[name].cast(pl.Float64)
            mapped = found(given.fill_null(0.5).to_numpy())
            columns[name] = pl.select(pl.when(given.is_not_null()).then(pl.Series(mapped, dtype=pl.Float64))).to_series()
    fresh = predictions.with_columns(*(column.alias(name) for name, column in columns.items()), pl.lit(method).alias("method"))
    if "predicted_boolean_value" in fresh.columns:
        fresh = fresh.with_columns((pl.col("predicted_boolean_probability") >= 0.5).alias("predicted_boolean_value"))
    if "std_error" in fresh.columns:
        fresh = fresh.with_columns(pl.lit(None, dtype=pl.Float64).alias("std_error"))
    return fresh


def recalibrate(predictions: pl.DataFrame, tuning: pl.DataFrame, labels: pl.DataFrame, kinds: Sequence[str] = KINDS) -> pl.DataFrame:
    """Predictions mapped by what the tuning predictions of the same task and method say.

    Args:
        predictions: PredictionTable, to be judged.
        tuning: PredictionTable of other subjects.
        labels: LabelTable that holds a row for every tuning prediction.
        kinds: of `KINDS`.

    Returns:
        for each kind, the predictions as the method `<method>+<kind>`.

    Raises:
        ConfigError: there is no such kind.
        MismatchError: a subject is in both; a task and method has no tuning predictions; these have no label.
        InputError: too few outcomes to fit on.
    """
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong:
        raise ConfigError(f"recalibrate: no '{wrong[0]}'; valid: {', '.join(KINDS)}")
    both = predictions.select("subject_id").unique().join(tuning.select("subject_id").unique(), on="subject_id", how="semi")
    if both.height:
        first = ", ".join(map(str, both["subject_id"].sort().head(3).to_list()))
        raise MismatchError(
            f"recalibrate: {both.height} subjects of the tuning predictions are among those to be judged (first: {first}); "
            "forecast the tuning split for the one, held_out for the other"
        )
    there = {(task, method): Judged.of(share(group)) for task, method, group in by_method(join_labels(tuning, labels))}
    parts = []
    for task, method, group in by_method(predictions):
        rows = there.get((task, method))
        if rows is None:
            raise MismatchError(f"recalibrate: no tuning predictions of {task} by {method}; there are: {', '.join(f'{t} by {m}' for t, m in there)}")
        if min(rows.subjects) < s.SMALL_CELL:
            raise InputError(
                f"recalibrate: fewer than {s.SMALL_CELL} people of the tuning rows of {task} by {method} have the outcome, or have not; "
                "forecast more of them"
            )
        parts += [_apply(_fit(kind, rows), group, f"{method}+{kind}") for kind in kinds]
    return pl.concat(parts) if parts else predictions.clear()

"""The methods that are compared: their order, their readable names and their colours, the same on every chart.

And the two curves the page draws from predictions: ROC and equal-mass calibration, in NumPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.report.run import TRUE_RISK


@dataclass(frozen=True)
class Method:
    """A method's readable label, its colour class, whether its line is dashed, and what it is in a few words."""

    label: str
    colour: str
    dashed: bool = False
    what: str = ""


METHODS: dict[str, Method] = {
    "monte_carlo": Method("zero-shot", "c1", what="share of simulated futures with the outcome; the model saw no label"),
    "time_to_event": Method("time to event", "c8", what="incidence by the hazards of the time-to-event head, read once; death competing"),
    "scope": Method("zero-shot (SCOPE)", "c7", what="summed outcome probabilities along simulated futures; no label seen"),
    "reach": Method("zero-shot (REACH)", "c6", what="futures with the outcome masked; no label seen"),
    "probe": Method("probe", "c2", what="logistic regression on the model's embedding"),
    "counts+lightgbm": Method("counts + LightGBM", "c3", what="gradient boosting on counts of codes"),
    "counts+logistic": Method("counts + logistic", "c4", what="logistic regression on counts of codes"),
    "age+sex": Method("age and sex", "c5", dashed=True, what="logistic regression on age and sex alone"),
    "constant": Method("constant", "soft", dashed=True, what="the training prevalence for everyone"),
    TRUE_RISK: Method("true risk", "ink", dashed=True, what="the risk the simulator computed: no method can do better on average"),
}
TELLING = 20
"""Rows with the outcome, and rows without it, that a metric needs to be shown: of fewer it is little better than a guess."""


def telling(positives: int | None, rows: int | None) -> bool:
    """Whether metrics of so many rows, so many of them with the outcome, are shown."""
    return positives is not None and rows is not None and positives >= TELLING and rows - positives >= TELLING


_SPARE = ("c6", "c7", "c8")


def canonical(name: str) -> str:
    """One spelling per method: `true_risk`, `True risk` and `true risk` are one."""
    plain = name.strip().lower().replace("_", " ").replace(" + ", "+")
    aliases = {
        "monte carlo": "monte_carlo",
        "mc": "monte_carlo",
        "zero-shot": "monte_carlo",
        "zero shot": "monte_carlo",
        "truth": TRUE_RISK,
        "time to event": "time_to_event",
    }
    aliases |= {
        "time to event": "time_to_event",
        "counts+lr": "counts+logistic",
        "age sex": "age+sex",
        "age and sex": "age+sex",
        "prevalence": "constant",
    }
    plain = aliases.get(plain, plain)
    return plain if plain in METHODS else name


def method(name: str) -> Method:
    """How to show a method; an unknown one keeps its name and gets a spare colour, a recalibrated one is told by its map."""
    base, _, kind = name.rpartition("+")
    if kind in ("platt", "isotonic") and base:
        raw = method(base)
        return Method(
            f"{raw.label}, {kind.replace('platt', 'Platt')}",
            _SPARE[kind == "isotonic"],
            dashed=True,
            what=f"{raw.what}; recalibrated on tuning patients",
        )
    known = METHODS.get(canonical(name))
    return known or Method(name, _SPARE[sum(name.encode()) % len(_SPARE)])


def ordered(names: list[str]) -> list[str]:
    """Methods in the page's order; unknown ones last, by name."""
    places = {name: index for index, name in enumerate(METHODS)}
    return sorted(set(names), key=lambda name: (places.get(canonical(name), len(places)), name))


def outcome_and_risk(predictions: pl.DataFrame, name: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Outcome and probability of one method, of the rows that have both; censored rows are left out."""
    rows = predictions.filter((pl.col("method") == name) & pl.col("boolean_value").is_not_null() & pl.col("probability").is_finite())
    return rows["boolean_value"].to_numpy().astype(bool), rows["probability"].to_numpy().astype(np.float64)


def roc(
    outcome: npt.NDArray[np.bool_], risk: npt.NDArray[np.float64], *, points: int = 160
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """(false positive rate, true positive rate), at most about `points` of them; None without both outcomes.

    Equal risks are one step: the curve is a straight line across ties, so its area is the AUROC.
    """
    positives = int(outcome.sum())
    negatives = len(outcome) - positives
    if not positives or not negatives:
        return None
    order = np.argsort(-risk, kind="stable")
    hits, sorted_risk = np.cumsum(outcome[order]), risk[order]
    last = np.append(np.flatnonzero(np.diff(sorted_risk)), len(risk) - 1)
    true_rate = np.concatenate([[0.0], hits[last] / positives])
    false_rate = np.concatenate([[0.0], (last + 1 - hits[last]) / negatives])
    if len(last) > points:
        # Keep the steps that move the curve most evenly along its length.
        travelled = np.cumsum(np.concatenate([[0.0], np.hypot(np.diff(true_rate), np.diff(false_rate))]))
        kept = np.unique(np.searchsorted(travelled, np.linspace(0, travelled[-1], points)).clip(0, len(travelled) - 1))
        true_rate, false_rate = true_rate[kept], false_rate[kept]
    return false_rate, true_rate


@dataclass(frozen=True)
class CalibrationBin:
    """One bin of equal mass: mean predicted risk, observed share with a 95% Wilson interval, rows."""

    predicted: float
    observed: float
    lower: float
    upper: float
    rows: int


def calibration(
    outcome: npt.NDArray[np.bool_], risk: npt.NDArray[np.float64], *, bins: int = 10, min_rows: int = 20, least: int = 1
) -> list[CalibrationBin]:
    """Equal-mass bins of predicted risk; rows of equal risk are never parted, and no bin has fewer than `min_rows` rows.

    With few rows there are fewer bins; with fewer than `min_rows` rows there is none.

    Args:
        least: a bin has none, or so many, with the outcome, and likewise without it: of real people a share would tell of fewer.
    """
    total = len(risk)
    if total < min_rows:
        return []
    order = np.argsort(risk, kind="stable")
    sorted_risk, sorted_outcome = risk[order], outcome[order]
    size = max(total / bins, min_rows)
    ends = np.append(np.flatnonzero(np.diff(sorted_risk)) + 1, total)
    cuts = [0]
    hits = np.concatenate([[0], np.cumsum(sorted_outcome)])

    def told(start: int, stop: int) -> bool:
        positives = int(hits[stop] - hits[start])
        return all(not n or n >= least for n in (positives, stop - start - positives))

    for end in ends.tolist():
        if end - cuts[-1] >= size and total - end >= min(size, min_rows) and told(cuts[-1], end) and told(end, total):
            cuts.append(end)
    cuts.append(total)
    found = []
    for start, stop in pairwise(cuts):
        rows, positives = stop - start, int(sorted_outcome[start:stop].sum())
        lower, upper = wilson(positives, rows)
        found.append(CalibrationBin(float(sorted_risk[start:stop].mean()), positives / rows, lower, upper, rows))
    return found


def wilson(positives: int, rows: int) -> tuple[float, float]:
    """95% interval of a share."""
    if not rows:
        return math.nan, math.nan
    z, share = 1.959964, positives / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)

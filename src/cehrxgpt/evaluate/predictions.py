"""Predictions against labels: tidy metric rows with intervals by patient.

Labels that are null (censored) have no outcome to compare with. They are counted, and the rows that remain are weighted by the inverse
of their chance of having been observed (Kaplan-Meier on the follow-up that the labels carry), AUROC, Brier score and calibration
included; without that, metrics describe the patients who happen to be followed for long.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import MismatchError
from cehrxgpt.evaluate import calibration, discrimination
from cehrxgpt.evaluate.bootstrap import bootstrap, censoring_weights

KEY = ("task", "subject_id", "prediction_time")

METRIC_DTYPES: dict[str, pl.DataType] = {
    "task": pl.String(),
    "method": pl.String(),
    "metric": pl.String(),
    "value": pl.Float64(),
    "lower": pl.Float64(),
    "upper": pl.Float64(),
    "subjects": pl.Int64(),
    "positives": pl.Int64(),
}
"""Metric rows as Polars types (twin of `schema.METRIC_SCHEMA`)."""

METRICS = ("auroc", "auprc", "brier", "calibration_slope", "calibration_intercept", "ece", "prevalence", "mean_predicted")
COUNTS = ("rows", "censored", "refused")


def join_labels(predictions: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """The predictions with their labels: columns of `predictions` plus `label`, `time_to_event_days`, `end_reason`.

    Raises:
        MismatchError: a prediction has no label (another task, other subjects, other times), or a key stands twice.
        SchemaError: either table is not what it should be.
    """
    needed = ["subject_id", "prediction_time", "predicted_boolean_probability", "task", "method"]
    s.check_columns(
        predictions.to_arrow(), s.PREDICTION_SCHEMA, where="predictions", optional=[f.name for f in s.PREDICTION_SCHEMA if f.name not in needed]
    )
    s.check_columns(labels.to_arrow(), s.LABEL_SCHEMA, where="labels", optional=("observed",))
    if labels.select(KEY).is_duplicated().any():
        raise MismatchError("labels: a (task, subject_id, prediction_time) stands twice; expected one label each")
    if predictions.select(*KEY, "method").is_duplicated().any():
        raise MismatchError("predictions: a (task, method, subject_id, prediction_time) stands twice; expected one prediction each")
    there = labels.select(
        *(pl.col(name) for name in KEY), pl.col("boolean_value").alias("label"), "time_to_event_days", "end_reason", pl.lit(True).alias("_labelled")
    )
    predictions = predictions.select(pl.exclude("label", "time_to_event_days", "end_reason"))
    typed = predictions.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    joined = typed.join(there.with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))), on=list(KEY), how="left", maintain_order="left")
    lost = joined.filter(pl.col("_labelled").is_null())
    if lost.height:
        tasks = set(labels["task"].to_list())
        wrong = sorted(set(lost["task"].to_list()) - tasks)
        strangers = lost.join(labels.select("subject_id"), on="subject_id", how="anti")["subject_id"].n_unique()
        why = f"{strangers} of their subjects are not in the labels at all" if strangers else "the subjects are there, at other prediction times"
        if wrong:
            why = f"the labels are of {', '.join(sorted(tasks)) or 'no task'}, the predictions of {', '.join(wrong)}"
        raise MismatchError(f"{lost.height} of {joined.height} predictions have no label ({why}); give the labels that the predictions were made for")
    return joined.drop("_labelled")


def _statistics(truth: npt.NDArray[np.bool_], p: npt.NDArray[np.float64], clip: npt.NDArray[np.float64], bins: int) -> dict[str, Callable]:
    lp = calibration.logit(p, clip=clip)
    return {
        "auroc": lambda w: discrimination.auroc(truth, p, w),
        "auprc": lambda w: discrimination.auprc(truth, p, w),
        "brier": lambda w: calibration.brier(truth, p, w),
        "calibration_slope": lambda w: calibration.slope(truth, lp, w),
        "calibration_intercept": lambda w: calibration.intercept(truth, lp, w),
        "ece": lambda w: calibration.ece(truth, p, w, bins=bins),
        "prevalence": lambda w: calibration.prevalence(truth, w),
        "mean_predicted": lambda w: calibration.prevalence(p, w),
    }


def ipcw(joined: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Censoring weights of joined rows, float64[n] (0 where the label is null; all 1 where none is)."""
    lost = joined["label"].is_null().to_numpy()
    if not lost.any():
        return np.ones(joined.height)
    return censoring_weights(joined["time_to_event_days"].cast(pl.Float64).fill_null(0.0).to_numpy(), lost)


def evaluate_predictions(
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    replicates: int = 1000,
    seed: int = 0,
    bins: int = 10,
    weighted: bool = True,
) -> pl.DataFrame:
    """Metric rows of every (task, method).

    Args:
        predictions: PredictionTable; probabilities may be null (refused), which is counted and left out.
        labels: LabelTable that holds a row for every prediction; it may hold more.
        replicates, seed: of the bootstrap by patient (95% percentile intervals; centred for the calibration error, which grows with noise).
        bins: of the calibration error, of equal mass.
        weighted: weight for censoring; False leaves censored rows out and does no more.

    Returns:
        METRIC_SCHEMA rows: the metrics of `METRICS` (value null where not defined, such as AUROC with one class), then `rows`
        (compared), `censored` and `refused` (left out). `subjects` and `positives` count the rows that were compared.

    Raises:
        MismatchError: the two tables do not belong together.
    """
    joined = join_labels(predictions, labels)
    parts = [pl.DataFrame(schema=METRIC_DTYPES)]
    for (task, method), group in joined.group_by("task", "method", maintain_order=True):
        parts.append(_metrics_of(str(task), str(method), group, replicates=replicates, seed=seed, bins=bins, weighted=weighted))
    return pl.concat(parts)


def _metrics_of(task: str, method: str, group: pl.DataFrame, *, replicates: int, seed: int, bins: int, weighted: bool) -> pl.DataFrame:
    weights = ipcw(group) if weighted else np.ones(group.height)
    refused = group["predicted_boolean_probability"].is_null()
    censored = group["label"].is_null()
    use = (~refused & ~censored).to_numpy()
    rows = group.filter(pl.Series(use)).with_row_index("_row")
    truth = rows["label"].cast(pl.Boolean).to_numpy().astype(bool)
    p = rows["predicted_boolean_probability"].cast(pl.Float64).to_numpy()
    samples = rows["num_samples"].cast(pl.Float64).to_numpy() if "num_samples" in rows.columns else None
    clip = calibration.clip_for_samples(samples, rows.height)
    found = dict.fromkeys(METRICS, (np.nan, np.nan, np.nan))
    if rows.height:
        statistics = _statistics(truth, p, clip, bins)
        found = bootstrap(statistics, rows["subject_id"].to_numpy(), weights=weights[use], replicates=replicates, seed=seed, noisy=("ece",))
    counts = {"rows": rows.height, "censored": int(censored.sum()), "refused": int((refused & ~censored).sum())}
    every = {**found, **{name: (float(count), np.nan, np.nan) for name, count in counts.items()}}
    columns = {
        "task": [task] * len(every),
        "method": [method] * len(every),
        "metric": list(every),
        "value": [value for value, _, _ in every.values()],
        "lower": [lower for _, lower, _ in every.values()],
        "upper": [upper for _, _, upper in every.values()],
        "subjects": [rows["subject_id"].n_unique()] * len(every),
        "positives": [int(truth.sum())] * len(every),
    }
    return pl.DataFrame(columns, schema=METRIC_DTYPES).with_columns(pl.col("value", "lower", "upper").fill_nan(None))

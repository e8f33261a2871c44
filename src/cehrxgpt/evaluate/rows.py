"""Predictions beside their labels: the rows that every metric is made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import MismatchError, SchemaError
from cehrxgpt.evaluate import calibration
from cehrxgpt.evaluate.bootstrap import censoring_weights
from cehrxgpt.evaluate.time_to_event import FREE, FollowUp, ending

KEY = ("task", "subject_id", "prediction_time")

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def join_labels(predictions: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """The predictions with their labels: columns of `predictions` plus `label`, `time_to_event_days`, `end_reason`.

    Raises:
        MismatchError: a prediction has no label (another task, other subjects, other times), or a key stands twice.
        SchemaError: either table is not what it should be; a probability is none; labels contradict themselves.
    """
    needed = ["subject_id", "prediction_time", "predicted_boolean_probability", "task", "method"]
    s.check_columns(
        predictions.to_arrow(), s.PREDICTION_SCHEMA, where="predictions", optional=[f.name for f in s.PREDICTION_SCHEMA if f.name not in needed]
    )
    if labels.schema.get("time_to_event_days") == pl.Float32:  # as label files once had it
        labels = labels.with_columns(pl.col("time_to_event_days").cast(pl.Float64))
    s.check_columns(labels.to_arrow(), s.LABEL_SCHEMA, where="labels", optional=("observed",))
    told = predictions["predicted_boolean_probability"].drop_nulls()
    wrong = int((~told.is_between(0, 1)).sum())  # NaN is not between
    if wrong:
        raise SchemaError(
            f"predictions: column 'predicted_boolean_probability': {wrong} of {told.len()} values are no probability; expected 0 to 1 or null"
        )
    _check_labels(labels)
    if labels.select(KEY).is_duplicated().any():
        raise MismatchError("labels: a (task, subject_id, prediction_time) stands twice; expected one label each")
    twice = predictions.filter(predictions.select(*KEY, "method").is_duplicated())
    if twice.height:
        task, method = twice.select("task", "method").row(0)
        raise MismatchError(
            f"predictions: {twice.height} rows share their (task, method, subject_id, prediction_time), as of {task} by {method}; expected one each "
            "(where scope or reach cannot tell a task, their files hold monte_carlo rows too: keep those of one file)"
        )
    there = labels.select(
        *(pl.col(name) for name in KEY), pl.col("boolean_value").alias("label"), "time_to_event_days", "end_reason", pl.lit(True).alias("_labelled")
    )
    predictions = predictions.select(pl.exclude("label", "time_to_event_days", "end_reason"))
    typed = predictions.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    joined = typed.join(there.with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))), on=list(KEY), how="left", maintain_order="left")
    lost = joined.filter(pl.col("_labelled").is_null())
    if lost.height:
        tasks = set(labels["task"].to_list())
        strange = sorted(set(lost["task"].to_list()) - tasks)
        strangers = lost.join(labels.select("subject_id"), on="subject_id", how="anti")["subject_id"].n_unique()
        why = f"{strangers} of their subjects are not in the labels at all" if strangers else "the subjects are there, at other prediction times"
        if strange:
            why = f"the labels are of {', '.join(sorted(tasks)) or 'no task'}, the predictions of {', '.join(strange)}"
        raise MismatchError(f"{lost.height} of {joined.height} predictions have no label ({why}); give the labels that the predictions were made for")
    return joined.drop("_labelled")


def _check_labels(labels: pl.DataFrame) -> None:
    """Raise where rows of labels contradict themselves: some metrics look at the value, others at how and when it ended."""
    strange = labels.filter(~pl.col("end_reason").is_in(s.END_REASONS))["end_reason"].unique().sort().to_list()
    if strange:
        raise SchemaError(f"labels: column 'end_reason' holds '{strange[0]}'; expected one of {', '.join(s.END_REASONS)}")
    value, ended = pl.col("boolean_value"), pl.col("end_reason")
    expected = pl.when(ended == "censored").then(None).otherwise(ended == "outcome")
    torn = labels.filter(value.ne_missing(expected)).height
    if torn:
        raise SchemaError(
            f"labels: columns 'boolean_value' and 'end_reason' disagree in {torn} of {labels.height} rows; expected true with outcome, null with "
            "censored, and false with anything else"
        )
    days = labels["time_to_event_days"].cast(pl.Float64).drop_nulls()
    wrong = int((~(days.is_finite() & (days >= 0))).sum())
    if wrong:
        raise SchemaError(f"labels: column 'time_to_event_days': {wrong} of {days.len()} values are no time; expected 0 or more, or null")


def ipcw(joined: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Censoring weights of joined rows, float64[n] (0 where the label is null; all 1 where none is)."""
    lost = joined["label"].is_null().to_numpy()
    if not lost.any():
        return np.ones(joined.height)
    return censoring_weights(_days(joined), lost)


SHARED = "_shared"


def share(predictions: pl.DataFrame) -> pl.DataFrame:
    """Predictions, joined or not, with `_shared`: is the row predicted, and by every method of its task? One that predicts nothing at all does not
    count.

    Raises:
        MismatchError: the methods of a task have no row in common.
    """
    told = predictions.filter(pl.col("predicted_boolean_probability").is_not_null())
    by_task = told.group_by("task").agg(pl.col("method").n_unique().alias("_methods"))
    by_row = told.group_by(KEY).len("_told").join(by_task, on="task")
    shared = by_row.filter(pl.col("_told") == pl.col("_methods")).select(*KEY, pl.lit(True).alias(SHARED))
    for task in by_task["task"].sort().to_list():
        if not (shared["task"] == task).any():
            counts = told.filter(pl.col("task") == task).group_by("method", maintain_order=True).len().rows()
            each = ", ".join(f"{method}: {rows:,}" for method, rows in counts)
            raise MismatchError(f"predictions: no row of {task} is predicted by all of its methods ({each} rows); judge them one by one")
    placed = predictions.join(shared, on=list(KEY), how="left", maintain_order="left")
    return placed.with_columns(pl.col(SHARED).fill_null(False) & pl.col("predicted_boolean_probability").is_not_null())


def check_groups(groups: pl.DataFrame) -> pl.DataFrame:
    """Levels of rows in subgroups (`subgroups.subgroup_levels`), without rows whose level or subgroup is null.

    Raises:
        SchemaError: it is no table of levels.
        MismatchError: a row has two levels in one subgroup.
    """
    lacking = [name for name in (*KEY, "subgroup", "level") if name not in getattr(groups, "columns", ())]
    if lacking:
        raise SchemaError(f"groups: no column '{lacking[0]}'; give the table that subgroup_levels makes")
    known = groups.drop_nulls(["subgroup", "level"]).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    if twice := int(known.select(*KEY, "subgroup").is_duplicated().sum()):
        raise MismatchError(f"groups: {twice} rows share a (task, subject_id, prediction_time, subgroup); expected one level for each")
    return known


LEFT_OUT = {
    "censored": pl.col("label").is_null(),
    "refused": pl.col("label").is_not_null() & pl.col("predicted_boolean_probability").is_null(),
    "unshared": pl.col("label").is_not_null() & pl.col("predicted_boolean_probability").is_not_null() & ~pl.col(SHARED),
}
"""Which joined rows are not judged: the label is not known; it is, the prediction is not there; it is, that of another method is not."""


@dataclass(frozen=True)
class Judged:
    """The n rows of one task and method that every method of the task predicts and whose label is known.

    Attributes:
        table: the rows.
        truth: bool[n].
        probability: float64[n].
        weight: float64[n], of censoring.
        logit: float64[n], of the probability, kept `clip` away from 0 and 1.
        counts: `rows`, and those that are `LEFT_OUT`.
    """

    table: pl.DataFrame
    truth: Mask
    probability: Array
    weight: Array
    logit: Array
    counts: dict[str, int]

    @classmethod
    def of(cls, group: pl.DataFrame, *, weighted: bool = True) -> Judged:
        """From joined rows of one task and method that know what is `share`d; weights are estimated on these, lost ones included."""
        asked = group.filter(SHARED)
        weights = ipcw(asked) if weighted else np.ones(asked.height)
        known = asked["label"].is_not_null()
        rows = asked.filter(known)
        p = rows["predicted_boolean_probability"].cast(pl.Float64).to_numpy()
        left_out = group.select(**LEFT_OUT).sum()
        counts = {"rows": rows.height} | {name: int(left_out[name][0]) for name in LEFT_OUT}
        truth = rows["label"].cast(pl.Boolean).to_numpy().astype(bool)
        return cls(rows, truth, p, weights[known.to_numpy()], calibration.logit(p, clip=clip(rows)), counts)

    @property
    def subject_id(self) -> npt.NDArray[np.int64]:
        """int64[n]."""
        return self.table["subject_id"].to_numpy()

    @property
    def subjects(self) -> tuple[int, int, int]:
        """How many people there are, with the outcome, and without it (once or more)."""
        who = self.subject_id
        return np.unique(who).size, np.unique(who[self.truth]).size, np.unique(who[~self.truth]).size


def clip(rows: pl.DataFrame) -> float:
    """How far from 0 and 1 the logit keeps the probabilities of a method: SCOPE's and REACH's are no shares of their futures and may be smaller
    than half of one, and so may mapped risks, whose method has a plus in its name."""
    if "num_samples" not in rows.columns:
        return calibration.CLIP
    shares = rows.filter(~pl.col("method").is_in(["scope", "reach"]) & ~pl.col("method").str.contains("+", literal=True))
    return calibration.clip_for_samples(shares["num_samples"].cast(pl.Float64).fill_null(0).to_numpy())


def ended(group: pl.DataFrame, *, weighted: bool = True) -> FollowUp:
    """When and how labels of one task ended."""
    return FollowUp.of(_days(group), ending(group["end_reason"].to_list()), weighted=weighted)


def _days(group: pl.DataFrame) -> Array:
    """When labels ended, float64[n]. Those from elsewhere may not say: who is free counts as seen to the end, who is not as gone at once."""
    days = group["time_to_event_days"].cast(pl.Float64)
    free = pl.Series(ending(group["end_reason"].to_list()) == FREE)
    return pl.select(pl.when(free).then(days.fill_null(days.max() or 0.0)).otherwise(days).fill_null(0.0)).to_series().to_numpy()

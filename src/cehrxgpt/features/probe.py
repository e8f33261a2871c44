"""The linear probe: how much of an outcome can be read off an embedding by a straight line.

Logistic regression on standardised embeddings, its strength chosen on tuning rows; beside it the baselines on the very same rows and
splits; and a few-shot curve: the same probe given only 100, 1,000, 10,000 and all training labels. Everything is fitted on `train`,
chosen on `tuning` and judged on `held_out` patients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path
from cehrxgpt.errors import InputError, MismatchError
from cehrxgpt.evaluate.predictions import METRIC_DTYPES, evaluate_predictions
from cehrxgpt.events import EventDataset
from cehrxgpt.features.baselines import Examples, Fitted, fit_baselines, logistic, nothing
from cehrxgpt.features.counts import KEY, count_features, split_rows

PROBE = "probe"

PREDICTION_DTYPES: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean(),
    "predicted_boolean_value": pl.Boolean(),
    "predicted_boolean_probability": pl.Float64(),
    "task": pl.String(),
    "method": pl.String(),
    "std_error": pl.Float64(),
    "num_samples": pl.Int32(),
    "completion": pl.Float64(),
    "lower_bound": pl.Float64(),
    "upper_bound": pl.Float64(),
    "note": pl.String(),
}
"""PredictionTable as Polars types (twin of `schema.PREDICTION_SCHEMA`)."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of the probe and its baselines.

    Attributes:
        few_shot: numbers of training labels of the curve; those above what there is are left out, all are always in.
        repeats: draws of each number (the median of their AUROC is told, with the lowest and the highest).
        baselines: fit counts + LightGBM, counts + logistic regression, age and sex, and the constant beside the probe.
        min_positives: rows of each class that a model needs.
        min_subjects: training subjects that a count column needs.
        replicates: of the bootstrap by patient.
        seed, threads: one thread gives the same figures on every machine.
    """

    few_shot: tuple[int, ...] = (100, 1_000, 10_000)
    repeats: int = 3
    baselines: bool = True
    min_positives: int = 5
    min_subjects: int = 5
    replicates: int = 1000
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if any(count < 2 for count in self.few_shot) or self.repeats < 1 or self.min_positives < 2:
            raise ValueError("few_shot needs numbers of at least 2, repeats at least 1, min_positives at least 2")
        if self.replicates < 0 or self.threads < 1:
            raise ValueError("replicates must not be negative, threads must be positive")


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` found.

    Attributes:
        predictions: PREDICTION rows of all methods on held-out rows.
        metrics: METRIC rows of all methods.
        few_shot: `task`, `method`, `labels` (training labels given), `positives` (of them, median), `auroc`, `lowest`, `highest`.
        notes: why a method or a figure is missing.
    """

    predictions: pl.DataFrame
    metrics: pl.DataFrame
    few_shot: pl.DataFrame
    notes: list[str] = field(default_factory=list)

    def write(self, out: str | Path, *, force: bool = False) -> None:
        """`predictions.parquet`, `metrics.parquet`, `few_shot.parquet` in a new folder, atomically."""
        with atomic_path(out, folder=True, force=force) as partial:
            self.predictions.write_parquet(partial / "predictions.parquet")
            self.metrics.write_parquet(partial / "metrics.parquet")
            self.few_shot.write_parquet(partial / "few_shot.parquet")


@dataclass(frozen=True)
class _Rows:
    """Label rows with their vectors and the masks that say what each is for."""

    table: pl.DataFrame
    vectors: npt.NDArray[np.float64]  # [rows, width]
    outcome: npt.NDArray[np.bool_]  # False where the label is null
    usable: npt.NDArray[np.bool_]  # the label is known and there is a vector
    split: npt.NDArray[np.str_]

    def of(self, split: str) -> npt.NDArray[np.bool_]:
        """Usable rows of a split."""
        return self.usable & (self.split == split)


def _rows(embeddings: pl.DataFrame, labels: pl.DataFrame, dataset: EventDataset) -> _Rows:
    s.check_columns(embeddings.to_arrow(), s.EMBEDDING_SCHEMA, where="embeddings", optional=("unknown_share", "note"))
    s.check_columns(labels.to_arrow(), s.LABEL_SCHEMA, where="labels", optional=("observed",))
    tasks = labels["task"].unique().to_list()
    if len(tasks) != 1:
        raise InputError(f"probe: the labels are of {len(tasks)} tasks ({', '.join(sorted(tasks)) or 'none'}); give the labels of one")
    at = [pl.col("subject_id"), pl.col("prediction_time").cast(pl.Datetime("us"))]
    labels = labels.with_columns(at)
    if labels.select(KEY).is_duplicated().any():
        raise MismatchError("labels: a (subject_id, prediction_time) stands twice; expected one label each")
    known = embeddings.with_columns(at).select(*KEY, "embedding").unique(list(KEY), keep="first", maintain_order=True)
    table = labels.join(known, on=list(KEY), how="left", maintain_order="left")
    lost = table.filter(pl.col("embedding").is_null())
    if lost.height:
        raise MismatchError(f"{lost.height} of {table.height} labels have no embedding; embed the same label file that you probe")
    widths = table["embedding"].list.len().unique().to_list()
    if len(widths) > 1:
        raise MismatchError(f"embeddings: vectors of {', '.join(map(str, sorted(widths)))} numbers; expected one width (of one model)")
    width = widths[0] if widths else 0
    vectors = table["embedding"].explode(empty_as_null=True, keep_nulls=True).cast(pl.Float64).to_numpy().reshape(table.height, width)
    finite = np.isfinite(vectors).all(axis=1)
    outcome = table["boolean_value"].fill_null(False).to_numpy().astype(bool)
    usable = table["boolean_value"].is_not_null().to_numpy() & finite
    split = split_rows(dataset, table).to_numpy().astype(str)
    return _Rows(table.drop("embedding"), np.where(finite[:, None], vectors, 0.0), outcome, usable, split)


def standardise(vectors: npt.NDArray[np.float64], fit: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Mean 0 and variance 1 over the rows `fit`; columns that do not vary there become 0."""
    if not fit.any():
        return np.zeros_like(vectors)
    mean, spread = vectors[fit].mean(axis=0), vectors[fit].std(axis=0)
    varies = spread > 1e-12
    return np.where(varies, (vectors - mean) / np.where(varies, spread, 1.0), 0.0)


def _examples(rows: _Rows, fit: npt.NDArray[np.bool_], tuning: npt.NDArray[np.bool_], config: ProbeConfig) -> Examples:
    return Examples(rows.outcome, fit, tuning, rows.table["subject_id"].to_numpy(), least=config.min_positives, seed=config.seed)


def _probe(rows: _Rows, given: Examples) -> Fitted:
    if rows.vectors.shape[1] == 0:
        return nothing(rows.table.height, "the embeddings are empty")
    return logistic(standardise(rows.vectors, given.fit), given)


def _predictions(rows: _Rows, method: str, fitted: Fitted) -> pl.DataFrame:
    """PREDICTION rows of the held-out rows, censored ones included (they are asked about; only judging leaves them out)."""
    held = rows.split == s.HELD_OUT
    probability = pl.Series(fitted.probability[held], dtype=pl.Float64).fill_nan(None)
    frame = rows.table.filter(pl.Series(held)).select(*KEY, "boolean_value", "task")
    frame = frame.with_columns(
        probability.alias("predicted_boolean_probability"), pl.lit(method).alias("method"), pl.lit(fitted.note, dtype=pl.String).alias("note")
    )
    frame = frame.with_columns((pl.col("predicted_boolean_probability") >= 0.5).alias("predicted_boolean_value"))
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None).alias(name)).cast(dtype) for name, dtype in PREDICTION_DTYPES.items()
    )


def _draw(rows: _Rows, count: int, seed: int) -> npt.NDArray[np.bool_]:
    """`count` of the training rows, at random."""
    there = np.flatnonzero(rows.of(s.TRAIN))
    chosen = np.zeros(rows.split.size, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(there)[:count]] = True
    return chosen


def _few_shot(rows: _Rows, labels: pl.DataFrame, config: ProbeConfig) -> pl.DataFrame:
    """AUROC on held-out rows of probes given few labels."""
    there, result = int(rows.of(s.TRAIN).sum()), []
    task = rows.table["task"][0] if rows.table.height else ""
    for count in [*sorted({count for count in config.few_shot if count < there}), there]:
        found, positives = [], []
        for repeat in range(config.repeats if count < there else 1):
            fit = _draw(rows, count, config.seed + repeat)
            # Few labels are all there is: the strength is then chosen by folds among them, not on further tuning labels.
            fitted = _probe(rows, _examples(rows, fit, rows.of(s.TUNING) & (count == there), config))
            metrics = evaluate_predictions(_predictions(rows, PROBE, fitted), labels, replicates=0)
            found += [value for value in metrics.filter(pl.col("metric") == "auroc")["value"].to_list() if value is not None]
            positives.append(int((fit & rows.outcome).sum()))
        middle = {"labels": count, "positives": int(np.median(positives)), "auroc": float(np.median(found)) if found else None}
        result.append({"task": task, "method": PROBE, **middle, "lowest": min(found, default=None), "highest": max(found, default=None)})
    types = {"task": pl.String, "method": pl.String, "labels": pl.Int64, "positives": pl.Int64}
    return pl.DataFrame(result, schema={**types, "auroc": pl.Float64, "lowest": pl.Float64, "highest": pl.Float64})


def probe(
    embeddings: pl.DataFrame,
    labels: pl.DataFrame,
    dataset: EventDataset,
    out: str | Path | None = None,
    config: ProbeConfig | None = None,
    *,
    force: bool = False,
) -> ProbeResult:
    """Fit the probe and the baselines on training patients, judge them on held-out ones.

    Args:
        embeddings: EMBEDDING rows; there may be more than are labelled.
        labels: LabelTable of one task, all splits.
        dataset: the events that the labels were made from: splits, and what the baselines count.
        out: a folder to write to as well.
        config: see `ProbeConfig`.
        force: replace `out`.

    Raises:
        InputError: labels of no or of several tasks; subjects that the data set does not have.
        MismatchError: labels without an embedding.
    """
    config = config or ProbeConfig()
    if labels.is_empty():
        result = ProbeResult(pl.DataFrame(schema=PREDICTION_DTYPES), pl.DataFrame(schema=METRIC_DTYPES), _empty_curve(), ["no labels"])
    else:
        import lightgbm  # noqa: F401
        import sklearn.linear_model  # noqa: F401
        from threadpoolctl import threadpool_limits

        # Limits reach only the libraries that are loaded, hence the imports. One thread, unless asked for more: sums in one order,
        # and no spinning for cores that others use.
        with threadpool_limits(limits=config.threads):
            result = _run(_rows(embeddings, labels, dataset), labels, dataset, config)
    if out is not None:
        result.write(out, force=force)
    return result


def _empty_curve() -> pl.DataFrame:
    types = {"task": pl.String, "method": pl.String, "labels": pl.Int64, "positives": pl.Int64}
    return pl.DataFrame(schema={**types, "auroc": pl.Float64, "lowest": pl.Float64, "highest": pl.Float64})


def _run(rows: _Rows, labels: pl.DataFrame, dataset: EventDataset, config: ProbeConfig) -> ProbeResult:
    given = _examples(rows, rows.of(s.TRAIN), rows.of(s.TUNING), config)
    fitted = {PROBE: _probe(rows, given)}
    if config.baselines:
        features = count_features(dataset, rows.table, given.fit, min_subjects=config.min_subjects)
        fitted |= fit_baselines(features, given, threads=config.threads)
    predictions = pl.concat([_predictions(rows, method, found) for method, found in fitted.items()])
    metrics = evaluate_predictions(predictions, labels, replicates=config.replicates, seed=config.seed)
    notes = [f"{method}: {found.note}" for method, found in fitted.items() if found.note is not None]
    without = int((rows.table["boolean_value"].is_not_null().to_numpy() & ~rows.usable).sum())
    if without:
        notes.append(f"{without} rows have an embedding that is not finite and were left out of fitting")
    if predictions.is_empty():
        notes.append(f"no label is of a {s.HELD_OUT} subject; nothing to judge")
    return ProbeResult(predictions, metrics, _few_shot(rows, labels, config), notes)

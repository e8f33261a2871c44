"""Predictions as the MEDS prediction schema has them, which `meds-evaluation` reads.

It allows its own five columns and no others, one task and method a file, no null outcomes and no null probabilities: so the rows whose
label is known and whose prediction is there, unweighted.
"""

from __future__ import annotations

import polars as pl

from cehrxgpt.evaluate.rows import join_labels

MEDS_DTYPES: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean(),
    "predicted_boolean_value": pl.Boolean(),
    "predicted_boolean_probability": pl.Float32(),
}


def meds_predictions(predictions: pl.DataFrame, labels: pl.DataFrame) -> dict[tuple[str, str], pl.DataFrame]:
    """(task, method) -> MEDS_DTYPES rows; the label comes from `labels`.

    Raises:
        MismatchError: see `rows.join_labels`.
    """
    joined = join_labels(predictions, labels).filter(pl.col("label").is_not_null() & pl.col("predicted_boolean_probability").is_not_null())
    decided = (pl.col("predicted_boolean_probability") >= 0.5).alias("predicted_boolean_value")
    joined = joined.with_columns(pl.col("label").alias("boolean_value"), decided)
    parts = joined.group_by("task", "method", maintain_order=True)
    return {(str(task), str(method)): rows.select(pl.col(name).cast(dtype) for name, dtype in MEDS_DTYPES.items()) for (task, method), rows in parts}

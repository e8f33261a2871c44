"""Counts of codes: the plain features that any learned representation has to beat.

Per (subject, prediction time): how often each code occurred, over all known history and over the last year, the last value of each
code and unit, age, sex, and how much history there is. Histories are cut by `events.cut_history`, as for embeddings and rollouts, so
a feature can know nothing that was not available at the prediction time. The columns are chosen on training rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset, cut_history

KEY = ("subject_id", "prediction_time")
RECENT_DAYS = 365
CHUNK_EVENTS = 2_000_000  # history rows held at once
_DAYS_PER_YEAR = 365.25
_NEEDED = ("subject_id", "time", "code", "numeric_value", "text_value", "unit", "end_time", "available_time", "visit_id")
_UNCOUNTED = (s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END)


@dataclass(frozen=True)
class CountFeatures:
    """A sparse matrix with its row key and column names.

    Attributes:
        matrix: float64 CSR [rows, columns]; rows in the order of `at`.
        names: of the columns; "count:<code>", "recent:<code>", "last:<code>|<unit>", "age", "age_unknown", "sex:<code>", "history".
    """

    matrix: sparse.csr_matrix
    names: tuple[str, ...]

    def columns(self, *prefixes: str) -> npt.NDArray[np.int64]:
        """Indices of the columns whose name begins with one of these."""
        return np.array([index for index, name in enumerate(self.names) if name.startswith(prefixes)], dtype=np.int64)


def _chunks(events: pl.DataFrame, at: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut `at` into pieces whose copied histories stay below CHUNK_EVENTS rows."""
    sizes = events.group_by("subject_id").len()
    cost = at.join(sizes, on="subject_id", how="left", maintain_order="left")["len"].fill_null(0).cum_sum().to_numpy()
    piece = cost // CHUNK_EVENTS
    for number in np.unique(piece):
        yield at.filter(pl.Series(piece == number))


def _long(histories: pl.DataFrame) -> pl.DataFrame:
    """`_row`, `name`, `value`: every feature of every history of one chunk."""
    counted = histories.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in(list(_UNCOUNTED)))
    recent = counted.filter(pl.col("time") > pl.col("prediction_time") - pl.duration(days=RECENT_DAYS))
    parts = [
        frame.group_by("_row", (pl.lit(prefix) + pl.col("code")).alias("name")).agg(pl.len().cast(pl.Float64).log1p().alias("value"))
        for prefix, frame in (("count:", counted), ("recent:", recent))
    ]
    valued = counted.filter(pl.col("numeric_value").is_finite())
    name = (pl.lit("last:") + pl.col("code") + "|" + pl.col("unit").fill_null("")).alias("name")
    parts.append(
        valued.sort("_row", "time", "numeric_value").group_by("_row", name).agg(pl.col("numeric_value").last().cast(pl.Float64).alias("value"))
    )
    sex = histories.filter(pl.col("code").str.starts_with(s.GENDER_PREFIX)).group_by("_row").agg(pl.col("code").min())
    parts.append(sex.select("_row", (pl.lit("sex:") + pl.col("code")).alias("name"), pl.lit(1.0).alias("value")))
    years = (pl.col("prediction_time") - pl.col("time")).dt.total_seconds() / (86_400 * _DAYS_PER_YEAR)
    births = histories.filter(pl.col("code") == s.BIRTH).group_by("_row").agg(years.max().alias("value"))
    parts.append(births.select("_row", pl.lit("age").alias("name"), "value"))
    history = counted.group_by("_row").agg(years.max().alias("value"))
    parts.append(history.select("_row", pl.lit("history").alias("name"), "value"))
    return pl.concat([part.select(pl.col("_row").cast(pl.UInt32), "name", "value") for part in parts])


def _long_of(dataset: EventDataset | pl.DataFrame, at: pl.DataFrame) -> pl.DataFrame:
    keyed = at.select(*KEY).with_row_index("_row").with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    if keyed.select(*KEY).is_duplicated().any():
        raise InputError("features: a (subject_id, prediction_time) stands twice among the rows; expected distinct rows")
    frames = [dataset] if isinstance(dataset, pl.DataFrame) else (frame for _, frame in dataset.iter_shards())
    parts = [pl.DataFrame(schema={"_row": pl.UInt32, "name": pl.String, "value": pl.Float64})]
    for frame in frames:
        here = keyed.join(frame.select(pl.col("subject_id").unique()), on="subject_id", how="semi")
        mine = frame.select(_NEEDED).join(here.select("subject_id").unique(), on="subject_id", how="semi")
        for piece in _chunks(mine, here):
            histories = cut_history(mine, piece.select(*KEY)).join(piece, on=list(KEY), how="inner")
            parts.append(_long(histories))
    return pl.concat(parts)


def count_features(
    dataset: EventDataset | pl.DataFrame,
    at: pl.DataFrame,
    fit_rows: npt.NDArray[np.bool_],
    *,
    min_subjects: int = 5,
    max_columns: int = 20_000,
) -> CountFeatures:
    """Features of every row of `at`.

    Args:
        dataset: the events.
        at: `subject_id`, `prediction_time`, distinct.
        fit_rows: bool[rows]; the training rows, which alone choose the columns and their scale.
        min_subjects: a column needs so many training subjects who have it.
        max_columns: keep the most frequent ones (all of age, sex and history are kept).

    Returns:
        the matrix. Values ("last:", "age", "history") are standardised by training rows, 0 where missing; counts are log(1 + n).
    """
    long = _long_of(dataset, at)
    flags = pl.DataFrame({"_row": np.arange(at.height, dtype=np.uint32), "_fit": fit_rows, "subject_id": at["subject_id"]})
    fitted = long.join(flags.filter(pl.col("_fit")), on="_row", how="inner")
    spread = fitted.group_by("name").agg(pl.col("subject_id").n_unique().alias("subjects"))
    always = pl.col("name").str.starts_with("sex:") | pl.col("name").is_in(["age", "history"])
    columns = spread.filter(always | (pl.col("subjects") >= min_subjects)).sort(~always, "subjects", "name", descending=[False, True, False])
    columns = columns.head(max_columns).with_row_index("_column")
    cells = long.join(columns, on="name", how="inner").sort("_row", "_column")
    row, column = cells["_row"].to_numpy().astype(np.int64), cells["_column"].to_numpy().astype(np.int64)
    names = tuple(columns["name"].to_list())
    values = _standardise(cells["value"].to_numpy(), row, column, names, fit_rows)
    return CountFeatures(sparse.csr_matrix((values, (row, column)), shape=(at.height, len(names))), names)


def _standardise(
    values: npt.NDArray[np.float64],
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    names: tuple[str, ...],
    fit_rows: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Cells of measured columns less the mean, over the standard deviation, of their column's training cells (NumPy: the same sum order always)."""
    measured = np.array([name.startswith("last:") or name in ("age", "history") for name in names], dtype=bool)
    if not measured.any():
        return values
    inside, width = fit_rows[row], len(names)
    count = np.maximum(np.bincount(column[inside], minlength=width), 1)
    mean = np.where(measured, np.bincount(column[inside], weights=values[inside], minlength=width) / count, 0.0)
    centred = values - mean[column]
    spread = np.sqrt(np.bincount(column[inside], weights=centred[inside] ** 2, minlength=width) / count)
    return centred / np.where(measured & (spread > 0), spread, 1.0)[column]


def split_rows(dataset: EventDataset, at: pl.DataFrame) -> pl.Series:
    """The split of each row's subject, in the order of `at`.

    Raises:
        InputError: a subject is not in the data set.
    """
    joined = at.select("subject_id").join(dataset.subject_splits, on="subject_id", how="left", maintain_order="left")
    strangers = joined.filter(pl.col("split").is_null())["subject_id"].n_unique()
    if strangers:
        raise InputError(f"{strangers} subjects of the labels are not in {dataset.root}; give the events that the labels were made from")
    return joined["split"]

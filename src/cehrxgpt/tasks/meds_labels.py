"""Label files of the Medical Event Data Standard: one Parquet file, or a folder of shards.

    subject_id, prediction_time, boolean_value  (and integer_value, float_value, categorical_value, which are no yes or no)

They say less than a LabelTable: neither when an outcome came, nor whether a negative died or was followed to the end. What they do not say stays
null, and a negative counts as one whose window was seen to its end: that is what its maker claims by giving it. A file that says either is a
LabelTable, whole but for the task's name.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import cast

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError, SchemaError, no_parquet
from cehrxgpt.tasks.entries import Entries
from cehrxgpt.tasks.labeler import LABEL_DTYPES

OTHER_VALUES = ("integer_value", "float_value", "categorical_value")
_FIRST_DAY, _LAST_DAY = ((date(year, month, day) - date(1970, 1, 1)).days for year, month, day in ((1, 1, 1), (9999, 12, 31)))
_EXPECTED = "labels made by: cehrxgpt label EVENTS --task NAME --out LABELS.parquet, or a MEDS label file or folder"


def read_labels(path: str | Path, *, unnamed: str | None = None) -> pl.DataFrame:
    """A LabelTable from a file or folder, ours or of MEDS.

    Args:
        path: a Parquet file, or a folder of them at any depth.
        unnamed: the task's name where the file says none; default: the name of the file or folder.

    Raises:
        InputError: nothing there, unreadable, labels of another kind than yes and no, or a (task, subject, time) stands twice.
        SchemaError: a column is missing or of a wrong type.
    """
    path = Path(path)
    frame, name = _read(path), unnamed or path.stem
    if not {"time_to_event_days", "end_reason"} & set(frame.columns):
        frame = _completed(_typed(frame, path), path, name)
    elif "task" not in frame.columns:
        frame = _typed(frame, path).with_columns(pl.lit(name).alias("task"))
    if frame.schema.get("time_to_event_days") == pl.Float32:  # as label files once had it
        frame = frame.with_columns(pl.col("time_to_event_days").cast(pl.Float64))
    try:
        s.check_columns(frame.to_arrow(), s.LABEL_SCHEMA, where=str(path))
    except SchemaError as error:
        raise SchemaError(f"{error}; give {_EXPECTED}") from error
    frame = frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    doubles = int(frame.select("task", "subject_id", "prediction_time").is_duplicated().sum())
    if doubles:
        raise InputError(f"{path}: {doubles} rows share task, subject_id and prediction_time with another; expected one row each")
    return frame


def read_times(path: str | Path) -> Entries:
    """The prediction times of a label file as index entries; what it says of outcomes is not read.

    Raises:
        InputError, SchemaError: see `read_labels`.
    """
    path = Path(path)
    frame = _typed(_read(path), path)
    if frame.is_empty():
        raise InputError(f"{path}: a label file without rows; expected one row per subject and prediction time")
    time = pl.col("prediction_time")
    times = frame.select("subject_id", time.alias("time"), time.alias("available_time"), pl.lit("second").alias("time_precision"))
    return Entries.of("labels", str(path), times)


def _read(path: Path) -> pl.DataFrame:
    """All shards as one frame (values of every kind kept)."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
        if not files:
            raise InputError(f"{path}: no Parquet file in the folder; expected {_EXPECTED}")
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"{path}: no such file; expected {_EXPECTED}")
    frames = []
    for file in files:
        try:
            frames.append(pl.read_parquet(file, glob=False))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{no_parquet(file)}; expected {_EXPECTED}") from error
    try:
        return pl.concat(frames, how="diagonal_relaxed", rechunk=False) if len(frames) > 1 else frames[0]
    except pl.exceptions.PolarsError as error:
        raise _other_kind(path, "its files have columns of different types, and are no shards of one table") from error


def _other_kind(path: Path, what: str) -> SchemaError:
    """That a table is none of labels, and what would be one."""
    return SchemaError(f"{path}: {what}; give {_EXPECTED}")


def _typed(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    """With subject_id and prediction_time as a LabelTable has them: whole numbers and times of any width."""
    for name, kind in (("subject_id", "whole numbers"), ("prediction_time", "times")):
        if name not in frame.columns:
            raise _other_kind(path, f"column '{name}' is missing; expected {kind} ({frame.width} columns there)")
    number, time = frame.schema["subject_id"], frame.schema["prediction_time"]
    if not number.is_integer():
        raise _other_kind(path, f"column 'subject_id' is {number}; expected whole numbers")
    if not (time == pl.Date or (isinstance(time, pl.Datetime) and time.time_zone is None)):
        raise _other_kind(path, f"column 'prediction_time' is {time}; expected times without a zone")
    for name in ("subject_id", "prediction_time"):
        if frame[name].null_count():
            raise SchemaError(f"{path}: column '{name}' holds {frame[name].null_count()} nulls; none are allowed")
    count = frame["prediction_time"].to_physical()  # days, or parts of a second; a cast of what lies beyond all years would overflow
    a_day = 1 if time == pl.Date else {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}[cast(pl.Datetime, time).time_unit]
    beyond = int((~(count // a_day).is_between(_FIRST_DAY, _LAST_DAY)).sum())
    if beyond:
        raise SchemaError(f"{path}: column 'prediction_time': {beyond} of {frame.height} times lie outside the years 1 to 9999")
    numbers = frame["subject_id"].cast(pl.Int64, strict=False)
    if numbers.null_count():
        raise SchemaError(f"{path}: column 'subject_id': {numbers.null_count()} of {frame.height} numbers have more than 64 bits")
    return frame.with_columns(numbers, pl.col("prediction_time").cast(pl.Datetime("us")))


def _completed(frame: pl.DataFrame, path: Path, task: str) -> pl.DataFrame:
    """A MEDS label table as a LabelTable."""
    others = [name for name in OTHER_VALUES if name in frame.columns and frame[name].null_count() < frame.height]
    if "boolean_value" not in frame.columns or (others and frame["boolean_value"].null_count() == frame.height):
        if not others:
            raise _other_kind(path, f"column 'boolean_value' is missing; expected yes and no ({frame.width} columns there)")
        raise InputError(f"{path}: labels of {', '.join(others)}; only yes and no (boolean_value) can be asked here, so choose a threshold")
    if frame.schema["boolean_value"] not in (pl.Boolean, pl.Null):
        raise _other_kind(path, f"column 'boolean_value' is {frame.schema['boolean_value']}; expected true and false")
    value = pl.col("boolean_value").cast(pl.Boolean)
    named = "task" in frame.columns and frame.schema["task"] in (pl.String, pl.Categorical)
    completed = frame.with_columns(
        value.alias("boolean_value"),
        (pl.col("task").cast(pl.String).fill_null(task) if named else pl.lit(task)).alias("task"),
        value.fill_null(False).alias("observed"),
        pl.when(value).then(pl.lit("outcome")).when(~value).then(pl.lit("horizon")).otherwise(pl.lit("censored")).alias("end_reason"),
        pl.lit(None, dtype=pl.Float64).alias("time_to_event_days"),
    )
    ordered = completed.select(pl.col(name).cast(dtype) for name, dtype in LABEL_DTYPES.items())
    return ordered.sort("subject_id", "prediction_time", maintain_order=True)

"""OMOP `cohort` tables, as ATLAS writes them: who is in a cohort, and from when on.

    cohort_definition_id, subject_id, cohort_start_date, cohort_end_date

A start without an hour is a day: known at its end as an index, and an outcome of that day (docs/tasks.md). The end of a membership is not used.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from cehrxgpt.config import from_dict
from cehrxgpt.errors import InputError, SchemaError
from cehrxgpt.tasks.definition import Task
from cehrxgpt.tasks.entries import INDEX, OUTCOME, Entries

COLUMNS = ("cohort_definition_id", "subject_id", "cohort_start_date")
_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".txt": "\t"}
_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y%m%d")
_LAST_INSTANT = pl.duration(microseconds=86_399_999_999, time_unit="us")


def read_cohort(path: str | Path, cohort_id: int | None = None, *, option: str = "--cohort-id") -> Entries:
    """One cohort of a table (Parquet, or CSV or TSV, gzipped or not; any letter case).

    Args:
        path: the table.
        cohort_id: the cohort definition; needed where the table holds several.
        option: what says `cohort_id` on the command line, for messages.

    Raises:
        InputError: no such file, unreadable, empty, several definitions and none chosen, or the chosen one is not there.
        SchemaError: a column is missing, or holds what is no number or no date.
    """
    path = Path(path)
    table = _lowered(_read(path), path)
    if table.is_empty():
        raise InputError(f"{path}: a cohort table without rows; expected one row per subject and entry")
    table = table.select(
        _numbers(table, "cohort_definition_id", path).alias("definition"),
        _numbers(table, "subject_id", path).alias("subject_id"),
        _instants(table, "cohort_start_date", path).alias("time"),
    )
    known = table["definition"].unique().sort().to_list()
    if cohort_id is None and len(known) > 1:
        raise InputError(f"{path}: {len(known)} cohort definitions ({_listed(known)}); choose one with {option}")
    if cohort_id is not None and cohort_id not in known:
        raise InputError(f"{path}: no cohort definition {cohort_id}; it has {_listed(known)}")
    chosen = known[0] if cohort_id is None else cohort_id
    times = table.filter(pl.col("definition") == chosen).select("subject_id", "time")
    a_day = pl.col("time") == pl.col("time").dt.truncate("1d")
    times = times.with_columns(
        pl.when(a_day).then(pl.col("time") + _LAST_INSTANT).otherwise("time").alias("available_time"),
        pl.when(a_day).then(pl.lit("day")).otherwise(pl.lit("second")).alias("time_precision"),
    )
    return Entries.of(f"cohort_{chosen}", str(path), times)


def cohort_task(
    index: Entries,
    outcome: Entries,
    *,
    horizon_days: float,
    gap_days: float = 0,
    history_days: int = 0,
    first_onset: bool = False,
) -> Task:
    """A task of which both index and outcome are entries; the keys are those of a task file, and silence after observation ends is null.

    Raises:
        ConfigError: one of them is out of range.
    """
    window = f"{horizon_days:g}d" + (f"_after_{gap_days:g}d" if gap_days else "")
    terms = {"horizon_days": horizon_days, "gap_days": gap_days, "history_days": history_days, "first_onset": first_onset}
    sets = {f"index_{index.name}": INDEX, f"outcome_{outcome.name}": OUTCOME}
    values = {
        "name": f"{index.name}_to_{outcome.name}_{window}",
        "description": f"{outcome.name} within {horizon_days:g} days of {index.name}",
        "concept_sets": {name: {"codes": [code], "descendants": False} for name, code in sets.items()},
        "index": {"concepts": f"index_{index.name}"},
        "outcome": {"concepts": f"outcome_{outcome.name}"},
    }
    return from_dict(Task, values | terms, where=f"{index.name} to {outcome.name}")


def is_cohort_outcome(task: str) -> bool:
    """Is a task of this name about entering a cohort, which no simulated future can show?"""
    return re.search(r"_to_cohort_-?\d+", task) is not None


def _read(path: Path) -> pl.DataFrame:
    kind = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an OMOP cohort table (Parquet or CSV)")
    if kind != ".parquet" and kind not in _SEPARATORS:
        raise InputError(f"{path}: no cohort table by its name; expected .parquet, {', '.join(_SEPARATORS)}")
    try:
        if kind == ".parquet":
            return pl.read_parquet(path, glob=False)
        table = pl.read_csv(path, separator=_SEPARATORS[kind], infer_schema=False, glob=False)
        while table.height and all(value is None for value in table.row(-1)):  # blank lines at the end
            table = table.head(-1)
        return table
    except pl.exceptions.NoDataError:
        raise InputError(f"{path}: an empty file; expected an OMOP cohort table") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as {kind.removeprefix('.')} (truncated or damaged?); expected an OMOP cohort table") from error


def _lowered(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    lowered = [name.strip().lower() for name in table.columns]
    twice = sorted({name for name in lowered if lowered.count(name) > 1} & set(COLUMNS))
    if twice:
        raise SchemaError(f"{path}: column '{twice[0]}' stands twice, in other letter case; expected one")
    missing = [name for name in COLUMNS if name not in lowered]
    if missing:
        # The names are not told: without a header line they are a patient's values.
        there = f"{len(lowered)} columns there" + ("" if len(missing) < len(COLUMNS) else ", none of these: is the header line missing?")
        raise SchemaError(f"{path}: column '{missing[0]}' is missing; expected {', '.join(COLUMNS)} ({there})")
    return table.select(pl.col(old).alias(new) for old, new in zip(table.columns, lowered) if new in COLUMNS)


def _numbers(table: pl.DataFrame, name: str, path: Path) -> pl.Series:
    column = table[name]
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif column.dtype.is_float() or column.dtype.is_decimal():
        column = column.set(column.cast(pl.Float64) % 1 != 0, None)
    elif not column.dtype.is_integer():
        raise SchemaError(f"{path}: column '{name}' is {column.dtype}; expected whole numbers")
    number = column.cast(pl.Int64, strict=False)
    _refuse(number, name, path, "whole number")
    return number


def _instants(table: pl.DataFrame, name: str, path: Path) -> pl.Series:
    column = table[name]
    if column.dtype == pl.String:
        text = pl.col(name).str.strip_chars()
        instant = table.select(pl.coalesce(text.str.to_datetime(form, time_unit="us", strict=False) for form in _FORMATS))[name]
    elif column.dtype == pl.Date or (isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is None):
        instant = column.cast(pl.Datetime("us"))
    else:
        raise SchemaError(f"{path}: column '{name}' is {column.dtype}; expected dates, or times without a zone")
    in_calendar = instant.dt.year().is_between(1, 9999).fill_null(False)
    instant = instant.set(~in_calendar, None)
    _refuse(instant, name, path, "date such as 2020-01-31")
    return instant


def _refuse(column: pl.Series, name: str, path: Path, kind: str) -> None:
    """Raise where a value was not read; the message gives the row, never the value."""
    bad = column.is_null()
    if bad.any():
        raise SchemaError(f"{path}: column '{name}': {bad.sum()} of {bad.len()} values are no {kind} (the first in row {bad.arg_true()[0] + 1})")


def _listed(definitions: list[int]) -> str:
    return ", ".join(map(str, definitions[:10])) + (", ..." if len(definitions) > 10 else "")

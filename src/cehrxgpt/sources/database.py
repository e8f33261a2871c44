"""The embedded database: one DuckDB process behind Ibis, with a memory limit and a folder to spill to.

Errors of the database are turned into ours: what is wrong with a source file names the file (never a line's content), what is wrong
with the machine says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import polars as pl
from ibis.backends.duckdb import Backend
from ibis.common.exceptions import TableNotFound

from cehrxgpt.errors import SourceError, StorageError
from cehrxgpt.sources.config import IngestConfig

MAX_LINE_MIB = 32  # of delimited text: a row with its notes; the database reads in pieces of this size anyway
GIB_PER_THREAD = 0.2  # rows written by bucket are gathered up to this limit and spilled beyond it; more was no faster


def connect(config: IngestConfig, spill: Path) -> Backend:
    """A fresh in-memory database that spills to `spill`."""
    return ibis.duckdb.connect(
        threads=config.threads,
        memory_limit=f"{int((config.memory_limit_gib or config.threads * GIB_PER_THREAD) * 1024)}MiB",
        temp_directory=str(spill),
        preserve_insertion_order=False,
        autoinstall_known_extensions=False,
        autoload_known_extensions=False,
    )


@contextmanager
def without_ibis_warnings() -> Iterator[None]:
    """Ibis 12 calls names that DuckDB 2 has renamed; that is between the two of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"fetch_\w+\(\) is deprecated", category=DeprecationWarning)
        yield


def quoted(text: str | Path) -> str:
    """A SQL string literal."""
    return "'" + str(text).replace("'", "''") + "'"


@contextmanager
def reading(what: str | Path, expected: str) -> Iterator[None]:
    """Turn database errors inside the block into one line about `what`, which should have been `expected`."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise StorageError(f"{what}: the database ran out of memory or of space to spill to; raise memory_limit_gib or free some disk") from error
    except duckdb.IOException as error:
        if "space" in str(error).lower() and "device" in str(error).lower():
            raise StorageError(f"{what}: no space left on the device while reading; free some disk") from error
        if "could not set lock" in str(error).lower():
            raise SourceError(f"{what}: another program has it open for writing; close it there and try again") from error
        raise SourceError(f"{what}: cannot be read (truncated, damaged or of another kind?); expected {expected}") from error
    except TableNotFound as error:
        raise SourceError(f"{what}: cannot be read (it refers to a table, view or column that does not exist); expected {expected}") from error
    except duckdb.Error as error:
        raise SourceError(f"{what}: cannot be read ({_kind_of_fault(error)}); expected {expected}") from error


def _kind_of_fault(error: duckdb.Error) -> str:
    """A few words for a database error, without the data that its own message may quote."""
    text = str(error).split("Possible fixes", 1)[0]  # what follows lists every option by name
    line = text.split("Line:", 1)[1].split()[0] if "Line:" in text else ""
    place = f" at line {line}" if line.isdigit() else ""
    for sign, words in (
        ("not utf-8", "not UTF-8 text"),
        ("Invalid unicode", "not UTF-8 text"),
        ("Expected Number of Columns", "a row has too many or too few columns"),
        ("unterminated quote", "a quoted field is not closed properly, or some lines end in another way than the first"),
        ("invalid state", "some lines end in another way than the first, as in \\n and \\r\\n"),
        ("Maximum line size", f"a line is longer than {MAX_LINE_MIB} MiB"),
        ("does not exist", "it refers to a table, view or column that does not exist"),
        ("Parquet", "not a Parquet file"),
        ("magic bytes", "not a Parquet file"),
    ):
        if sign.lower() in text.lower():
            return words + place
    return type(error).__name__ + place


def fetch(expression: ir.Table) -> pl.DataFrame:
    """A result. Ibis's own ways out of the database import pandas, which costs a small ingest a tenth of its time."""
    backend: Any = expression.get_backend()
    return pl.DataFrame(pl.from_arrow(backend.con.sql(backend.compile(expression)).to_arrow_table()))


def rows(expression: ir.Table) -> list[dict[str, Any]]:
    """The rows of a small result."""
    return fetch(expression).to_dicts()


def midnight_counts(table: ir.Table) -> pl.DataFrame:
    """Of columns `group` and `time`: per group how many times there are, exactly at midnight, and in the year 2100 or later."""
    tallies = {"midnights": (table.time == table.time.truncate("D")).sum().fill_null(0), "late": (table.time.year() >= 2100).sum().fill_null(0)}
    counted = table.group_by("group").aggregate(rows=table.time.count(), **tallies)
    return fetch(counted).select("group", pl.col("rows", "midnights", "late").cast(pl.Int64))

"""OMOP tables of a PostgreSQL database, copied through ADBC to Parquet, so that the ingest goes on as from a folder.

All tables are read in one transaction (repeatable read, read only): they show the same moment although they are read one after the other.
Record batches are written as they come (binary COPY, some 16 MiB at a time), so memory does not grow with a table; the copy lies in the
output's partial folder and goes with it. Whole rows are copied, because a duplicate is a row equal in everything but its id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend

from cehrxgpt.errors import SourceError
from cehrxgpt.sources.locate import TABLES, SourceTable, read_file
from cehrxgpt.sources.url import PostgresUrl

VOCABULARY = ("concept", "concept_ancestor")
_PLAIN = ("int2", "int4", "int8", "float4", "float8", "bool", "varchar", "text", "bpchar")
_INSTANTS = ("date", "timestamp", "timestamptz")
_CATALOGUE = """
SELECT n.nspname AS schema, c.relname AS "table", a.attname AS "column", t.typname AS "type",
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS allowed
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND n.nspname !~ '^(pg_|information_schema$)'
ORDER BY n.nspname, c.relname, a.attnum
"""


@dataclass(frozen=True)
class _Table:
    """A table of the database: `columns` are (name, type)."""

    schema: str
    name: str
    columns: tuple[tuple[str, str], ...]
    allowed: bool


@contextmanager
def _connection(url: PostgresUrl) -> Iterator[Any]:
    """A connection inside one read-only snapshot.

    Raises:
        SourceError: the driver is missing, or the server does not let us in.
    """
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError as error:
        raise SourceError(f"{url.shown}: the PostgreSQL driver is not installed; install it with: pip install 'cehrxgpt[postgres]'") from error
    try:
        connection = dbapi.connect(url.uri, autocommit=True)
    except dbapi.Error as error:
        # Not chained: the driver's own words may hold the password.
        raise SourceError(f"{url.shown}: cannot connect ({_reason(url, error)}); check host, port, database, user and password") from None
    try:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection
    finally:
        connection.close()


def _reason(url: PostgresUrl, error: Exception) -> str:
    """What the server or the driver said, on one line."""
    text = url.scrub(str(error))
    for noise in ("INTERNAL: ", "IO: ", "[libpq] ", "Failed to connect: "):
        text = text.replace(noise, "")
    return text[:300]


def _catalogue(url: PostgresUrl, connection: Any) -> list[_Table]:
    """Every table, view and foreign table outside the system's schemas."""
    with connection.cursor() as cursor:
        cursor.execute(_CATALOGUE)
        rows = cursor.fetch_arrow_table().to_pylist()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["schema"], row["table"]), []).append(row)
    return [
        _Table(schema, name, tuple((row["column"], row["type"]) for row in columns), columns[0]["allowed"])
        for (schema, name), columns in found.items()
    ]  # fmt: skip


def _of_schema(tables: list[_Table], url: PostgresUrl, schema: str) -> dict[str, _Table]:
    found: dict[str, _Table] = {}
    for table in tables:
        name = table.name.lower()
        if table.schema != schema or name not in TABLES:
            continue
        if name in found:
            raise SourceError(f"{url.shown}: schema {schema} has the tables {found[name].name} and {table.name}; keep one")
        found[name] = table
    return found


def choose_schemas(tables: list[_Table], url: PostgresUrl, asked: tuple[str, ...]) -> dict[str, _Table]:
    """OMOP table name -> the table to read.

    Args:
        asked: schemas to look in, in this order; none = the one schema with OMOP tables, and the vocabulary's if it lies elsewhere.

    Raises:
        SourceError: no such schema, no OMOP tables, several candidates, or a table that we may not read.
    """
    every = sorted({table.schema for table in tables})
    missing = [name for name in asked if name not in every]
    if missing:
        raise SourceError(f"{url.shown}: schema '{missing[0]}' has no tables or is not there; schemas with tables: {', '.join(every) or 'none'}")
    by_schema = {schema: _of_schema(tables, url, schema) for schema in asked or every}
    order = list(asked) or _search(by_schema, url)
    found: dict[str, _Table] = {}
    for schema in order:
        found |= {name: table for name, table in by_schema[schema].items() if name not in found}
    if not set(found) - set(VOCABULARY):
        where = f"schema {', '.join(order)}" if order else f"any schema ({', '.join(every) or 'none has tables'})"
        raise SourceError(f"{url.shown}: no OMOP tables in {where}; expected person, visit_occurrence, condition_occurrence, ...")
    denied = [f"{table.schema}.{table.name}" for table in found.values() if not table.allowed]
    if denied:
        raise SourceError(f"{url.shown}: permission denied for {', '.join(denied)}; ask for USAGE on the schema and SELECT on its tables")
    return {name: found[name] for name in TABLES if name in found}


def _search(by_schema: dict[str, dict[str, _Table]], url: PostgresUrl) -> list[str]:
    clinical = [name for name, tables in by_schema.items() if "person" in tables or len(set(tables) - set(VOCABULARY)) >= 2]
    if len(clinical) > 1:
        names = ", ".join(clinical)
        raise SourceError(f"{url.shown}: OMOP tables are in the schemas {names}; name one with --schema, or ?schema={clinical[0]} in the URL")
    vocabulary = [name for name, tables in by_schema.items() if name not in clinical and "concept" in tables]
    return clinical + (vocabulary if clinical and len(vocabulary) == 1 else [])


def quoted_name(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _column(name: str, kind: str) -> str:
    """A column as the driver can carry it and the reader understands it.

    Infinite and absurd dates are pulled to the years 1 and 9999, where the rules for dates before birth and in the future find them. A numeric
    id stays exact as text, other numerics become doubles; types that no OMOP column has become text.
    """
    column = quoted_name(name)
    if kind in _INSTANTS:
        low, high = f"'0001-01-02'::{kind}", f"'9999-12-30'::{kind}"
        column = f"CASE WHEN {column} < {low} THEN {low} WHEN {column} > {high} THEN {high} ELSE {column} END"
    elif kind == "numeric":
        column += "::text" if name.lower().endswith("_id") else "::double precision"
    elif kind not in _PLAIN:
        column += "::text"
    return f"{column} AS {quoted_name(name)}"


def _batches(reader: pa.RecordBatchReader, what: str) -> Iterator[pa.RecordBatch]:
    """The batches of a table. What goes wrong half-way is the database's fault, whichever error Arrow makes of it; it may quote a value."""
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError):
            raise SourceError(f"{what}: reading broke off (the server went away, or a view fails on some row); nothing was written") from None
        yield batch


def _copy(connection: Any, table: _Table, path: Path, what: str) -> None:
    """Stream one table to Parquet; bounded by one record batch."""
    columns = ", ".join(_column(name, kind) for name, kind in table.columns)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM {quoted_name(table.schema)}.{quoted_name(table.name)}")
        with cursor.fetch_record_batch() as reader, pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
            for batch in _batches(reader, what):
                writer.write_batch(batch)


def open_postgres(
    backend: Backend, url: PostgresUrl, schemas: tuple[str, ...], folder: Path, tell: Callable[[str], None]
) -> tuple[dict[str, SourceTable], list[str]]:
    """The OMOP tables of a database as copies under `folder`, and the names of tables that are not read.

    Args:
        schemas: see `choose_schemas`.
        tell: called with what is being copied.

    Raises:
        SourceError: see `_connection` and `choose_schemas`; or a table cannot be read.
    """
    folder.mkdir(parents=True)
    with _connection(url) as connection:
        from adbc_driver_postgresql import dbapi

        try:
            catalogue = _catalogue(url, connection)
            chosen = choose_schemas(catalogue, url, schemas)
            for name, table in chosen.items():
                place = f"{table.schema}.{table.name}"
                tell(f"copying {place}")
                _copy(connection, table, folder / f"{name}.parquet", f"{url.shown}: table {place}")
        except dbapi.Error as error:  # a view's error may quote a value: only its kind is shown
            state = getattr(error, "sqlstate", None) or type(error).__name__
            raise SourceError(f"{url.shown}: cannot be read (SQLSTATE {state}); expected OMOP tables that the user may read") from None
    tables = {}
    for name, table in chosen.items():
        place = f"{table.schema}.{table.name}"
        tables[name] = read_file(backend, name, folder / f"{name}.parquet", where=f"{url.shown}: table {place}", file=place)
    used = {table.schema for table in chosen.values()}
    return tables, [table.name.lower() for table in catalogue if table.schema in used and table.name.lower() not in TABLES]

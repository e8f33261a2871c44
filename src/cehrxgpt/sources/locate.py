"""Find the OMOP tables of a folder or a DuckDB file and make them readable under one name each.

A folder may hold CSV, CSV.GZ, TSV, TXT or Parquet, in any letter case, with a prefix before the table's name (`2b_concept.csv`), or a
folder of Parquet parts per table. Text is read as text: types are judged column by column afterwards, so that one bad value names its
file and column instead of confusing a sniffer.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis.expr.types as ir
from ibis.backends.duckdb import Backend

from cehrxgpt.errors import SourceError
from cehrxgpt.sources.database import MAX_LINE_MIB, quoted, reading

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
DATABASE_SUFFIXES = (".duckdb", ".ddb", ".db")
TABLES = (
    "person",
    "observation_period",
    "visit_occurrence",
    "condition_occurrence",
    "drug_exposure",
    "procedure_occurrence",
    "measurement",
    "observation",
    "device_exposure",
    "visit_detail",
    "death",
    "concept",
    "concept_ancestor",
)
_KNOWN_OTHERS = (  # OMOP tables that are not read: their names end like those that are
    "note",
    "specimen",
    "condition_era",
    "drug_era",
    "dose_era",
    "payer_plan_period",
    "cost",
    "episode",
    "survey_conduct",
)
_OMOP_COLUMN = re.compile(r"[a-z]+(_[a-z]+)*_(id|date|datetime|source_value|as_number|as_string|of_birth|supply|name|low|high)")
_LOOKED_AT = 1 << 18  # bytes
_NULLS = ["", "NULL", "null", "\\N", "NA", "NaN", "nan"]  # not "None": it is a result of some tests


@dataclass(frozen=True)
class SourceTable:
    """One table: `relation` has lower-case column names; `where` names its file in messages; `file` is what ingest.json says."""

    name: str
    relation: ir.Table
    where: str
    file: str


def _stem(path: Path) -> str | None:
    """The table part of a file's name, lower case; None where it is no table file."""
    name = path.name.lower()
    if path.is_dir():
        stem = name.removesuffix(".parquet")
        return stem if any(path.glob("*.parquet")) else None
    for suffix in sorted((*TEXT_SUFFIXES, ".parquet"), key=len, reverse=True):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return None


def _check_parts(folder: Path) -> None:
    """Raise `SourceError` where a folder with a table's name holds table files that would not be read."""
    if not any(folder.name.lower().removesuffix(".parquet").endswith(table) for table in TABLES):
        return
    held = [path for path in folder.rglob("*") if path.is_file() and path.name.lower().endswith((*TEXT_SUFFIXES, ".parquet"))]
    unread = sorted(path for path in held if path.parent != folder or path.suffix != ".parquet")
    if unread:
        where = unread[0].relative_to(folder.parent)
        raise SourceError(f"{folder}: {len(unread)} of {len(held)} table files in it are not read (first: {where}); expected {folder.name}/*.parquet")


def find_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """OMOP table name -> its file (or folder of parts), and the other table files' names.

    Raises:
        SourceError: two files could be the same table.
    """
    exact: dict[str, list[Path]] = {}
    prefixed: dict[str, list[Path]] = {}
    others = []
    for path in sorted(folder.iterdir()):
        stem = _stem(path)
        if path.is_dir() and not path.name.startswith("."):
            _check_parts(path)
        if stem is None or path.name.startswith("."):
            continue
        table = next((name for name in TABLES if stem == name), None)
        ending = next((name for name in TABLES if stem.endswith("_" + name)), None)
        if table is not None:
            exact.setdefault(table, []).append(path)
        elif ending is not None and stem not in _KNOWN_OTHERS:
            prefixed.setdefault(ending, []).append(path)
        else:
            others.append(stem)
    found = {}
    for table in TABLES:
        candidates = exact.get(table) or prefixed.get(table) or []
        others += [_stem(path) or path.name for path in prefixed.get(table, []) if path not in candidates]
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates)
            raise SourceError(f"{folder}: {len(candidates)} files could be the table {table} ({names}); keep one")
        if candidates:
            found[table] = candidates[0]
    return found, others


def looks_like_omop(folder: Path) -> bool:
    """Whether the folder holds a person table or at least two clinical tables."""
    found = set(find_files(folder)[0]) - {"concept", "concept_ancestor"}
    return "person" in found or len(found) >= 2


def is_omop_column(name: str) -> bool:
    """Whether a name is built as those of OMOP columns are, so that it can be said: without a header line, a patient's values stand in its place."""
    return _OMOP_COLUMN.fullmatch(name) is not None


def _header(path: Path) -> str:
    """First line of a text file.

    Raises:
        SourceError: empty, not readable, or not UTF-8.
    """
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
            line = file.readline(1 << 20)
    except (OSError, EOFError) as error:
        raise SourceError(f"{path}: cannot be read (truncated or not gzip?); expected delimited text with a header line") from error
    try:
        text = line.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text; convert it to UTF-8") from error
    if not text.strip():
        raise SourceError(f"{path}: the file is empty; expected a header line with the table's columns")
    return text


def _quoted_fields(path: Path) -> bool:
    """Whether quotes enclose fields of a tab-separated file, by its first lines.

    Vocabulary downloads have bare quotes inside names and no quoting; databases quote the fields that need it, and no header does. Quotes enclose
    where there are any and every row read with them has as many fields as the header.
    """
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        content = file.read(_LOOKED_AT)
    lines = content.decode("utf-8-sig", errors="replace").splitlines(keepends=True)
    if '"' not in "".join(lines):
        return False
    reader, widths = csv.reader(lines, delimiter="\t", strict=True), []
    try:
        widths = [len(row) for row in reader if row]
    except csv.Error:
        if len(content) < _LOOKED_AT or reader.line_num < len(lines):
            return False  # not because the last field was cut short
    return len(set(widths[:-1])) <= 1


def _text_scan(path: Path) -> str:
    header = _header(path)
    delimiter = max(("\t", ",", ";", "|"), key=header.count)
    quote = "" if delimiter == "\t" and not header.startswith('"') and not _quoted_fields(path) else '"'
    nulls = ", ".join(quoted(value) for value in _NULLS)
    return (
        f"read_csv({quoted(path)}, header=true, all_varchar=true, auto_detect=false, columns={_columns(path, header, delimiter)}, "
        f"delim={quoted(delimiter)}, quote={quoted(quote)}, escape={quoted(quote)}, nullstr=[{nulls}], "
        f"max_line_size={MAX_LINE_MIB << 20}, buffer_size={MAX_LINE_MIB << 20})"
    )


def _columns(path: Path, header: str, delimiter: str) -> str:
    names = [name.strip().strip('"').strip().lower() for name in header.split(delimiter)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        said = [name for name in twice if is_omop_column(name)]
        what = (
            f"column '{said[0]}' stands twice in the first line; keep one" if said else "two columns have the same name; is the header line missing?"
        )
        raise SourceError(f"{path}: {what}")
    return "{" + ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in names) + "}"


def read_file(connection: Backend, table: str, path: Path, *, where: str = "", file: str = "") -> SourceTable:
    """The file, or folder of Parquet parts, of one table; `where` and `file` say what it is a copy of.

    Raises:
        SourceError: it cannot be read.
    """
    parquet = path.is_dir() or path.name.lower().endswith(".parquet")
    if parquet:
        scan = f"read_parquet({quoted(path / '*.parquet' if path.is_dir() else path)}, union_by_name=true)"
        expected = f"a Parquet file with the OMOP table {table}"
    else:
        scan, expected = _text_scan(path), f"delimited text with the OMOP table {table}"
    view = f"source_{table}"
    with reading(where or path, expected):
        connection.raw_sql(f'CREATE VIEW "{view}" AS SELECT * FROM {scan}')
        relation = _lower_case(connection.table(view), where or path)
    return SourceTable(table, relation, where or str(path), file or path.name)


def _lower_case(relation: ir.Table, where: object) -> ir.Table:
    names = [name.lower() for name in relation.columns]
    if len(set(names)) < len(names):
        raise SourceError(f"{where}: two columns have the same name apart from letter case; keep one")
    return relation.rename(dict(zip(names, relation.columns, strict=True)))


def open_folder(connection: Backend, folder: Path) -> tuple[dict[str, SourceTable], list[str]]:
    """The OMOP tables of a folder, and the names of table files that are not read.

    Raises:
        SourceError: nothing there, not OMOP, or a file that cannot be read.
    """
    found, others = find_files(folder)
    if not found:
        raise SourceError(
            f"{folder}: no OMOP tables found; expected files like person.csv, visit_occurrence.csv.gz, drug_exposure.parquet (any letter case)"
        )
    return {table: read_file(connection, table, path) for table, path in found.items()}, others


def open_duckdb(connection: Backend, path: Path, schemas: Sequence[str] = ()) -> tuple[dict[str, SourceTable], list[str]]:
    """The OMOP tables of a DuckDB file, in the first of these schemas that has one or, where none is named, in whatever schema they are.

    Raises:
        SourceError: not a DuckDB file, no such schema, no OMOP tables, or none is named and the same table is in two schemas.
    """
    with reading(path, "a DuckDB database file"):
        connection.raw_sql(f"ATTACH {quoted(path)} AS source (READ_ONLY)")
        listed = connection.raw_sql(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_catalog = 'source' ORDER BY ALL"
        ).fetchall()
    there = sorted({schema for schema, _ in listed})
    if absent := [schema for schema in schemas if schema not in there]:
        raise SourceError(f"{path}: no schema {', '.join(absent)} with tables; there is {', '.join(there) or 'none'}")
    found: dict[str, tuple[str, str]] = {}
    others = []
    for schema, name in [row for wanted in schemas for row in listed if row[0] == wanted] if schemas else listed:
        table = name.lower()
        if table not in TABLES:
            others.append(table)
        elif table not in found:
            found[table] = (schema, name)
        elif not schemas:
            raise SourceError(f"{path}: table {table} is in the schemas {found[table][0]} and {schema}; name one with --schema")
    if not found:
        raise SourceError(f"{path}: no OMOP tables found; expected person, visit_occurrence, condition_occurrence, ...")
    tables = {}
    for table, (schema, name) in found.items():
        where = f"{path}: table {table}"
        with reading(where, f"the OMOP table {table}"):
            relation = connection.table(name, database=("source", schema))
        tables[table] = SourceTable(table, _lower_case(relation, path), where, name)
    return tables, others

"""Files: the Parquet tables that travel, JSON accounts, logs, recipes, pages; each by what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.report.artefacts.artefact import Artefact, interval, say
from cehrxgpt.report.artefacts.made import made_from
from cehrxgpt.report.markup import percent
from cehrxgpt.report.methods import method
from cehrxgpt.report.sections.data import flatten

_KINDS: tuple[tuple[str, set[str]], ...] = (
    ("embeddings", {"subject_id", "prediction_time", "embedding"}),
    ("predictions", {"subject_id", "prediction_time", "predicted_boolean_probability", "method"}),
    ("labels", {"subject_id", "prediction_time", "boolean_value", "task"}),
    ("true risks", {"subject_id", "prediction_time", "true_risk"}),
    ("nearest patients", {"subject_id", "neighbour_id", "rank", "similarity"}),
    ("codes shared with the nearest patients", {"neighbour_id", "code", "prevalence"}),
    ("simulated futures as events", {"subject_id", "prediction_time", "sample_id", "time", "code"}),
    ("simulated futures, one row each", {"subject_id", "prediction_time", "sample_id", "stop_reason"}),
    ("a shard of events", {"subject_id", "time", "code"}),
    ("metrics", {"task", "method", "metric", "value"}),
    ("a few-shot curve", {"task", "labels", "auroc"}),
    ("a vocabulary", {"token", "kind", "amount"}),
    ("splits of subjects", {"subject_id", "split"}),
    ("codes with their names", {"code", "description"}),
)
_NEXT = {
    "embeddings": "cehrxgpt probe {path} --labels LABELS.parquet --events EVENTS --out PROBE",
    "predictions": "cehrxgpt evaluate predictions {path} --labels LABELS.parquet",
    "labels": "cehrxgpt forecast MODEL EVENTS --labels {path} --out RISK.parquet",
    "simulated futures as events": "cehrxgpt inspect {path} --subject ID",
}
_ACCOUNTS: tuple[tuple[str, set[str], str], ...] = (
    ("a stage's manifest", {"key", "stage"}, ""),
    ("the account of an ingest", {"tables", "calendar"}, "cehrxgpt inspect {parent}"),
    ("the account of a tokenize", {"tokens", "splits", "codes_kept"}, "cehrxgpt inspect {parent}"),
    ("the account of a run", {"recipe", "stages"}, "cehrxgpt report {parent} --force"),
    ("a model's configuration", {"vocabulary_size", "layers", "width"}, "cehrxgpt inspect {parent}"),
)


def table_kind(frame: pl.DataFrame) -> str:
    """What a table is, by its columns."""
    return next((name for name, needed in _KINDS if needed <= set(frame.columns)), "a table")


def describe_file(path: Path) -> Artefact:
    """Any file.

    Raises:
        InputError: it is nothing we know, or it cannot be read.
    """
    if path.suffix in (".json", ".jsonl"):
        return _json(path) if path.suffix == ".json" else _log(path)
    if path.suffix in (".yaml", ".yml"):
        return _yaml(path)
    if path.suffix == ".html":
        return Artefact(path.name, "a page", made=made_from(path), next=[f"open {path}"])
    if path.suffix in (".duckdb", ".db"):
        kind = "a database file, of OMOP tables if it is for us"
        return Artefact(path.name, kind, made=made_from(path), next=[f"cehrxgpt ingest {path} --out EVENTS"])
    if path.suffix != ".parquet":
        raise InputError(f"{path}: not an artefact of ours (expected a folder, a Parquet table, a JSON account, a recipe or a page)")
    return describe_table(path, read_table(path))


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet table.

    Raises:
        InputError: it is none.
    """
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: not readable Parquet (truncated or damaged?)") from error


def describe_table(path: Path, frame: pl.DataFrame) -> Artefact:
    """A Parquet table."""
    kind = table_kind(frame)
    found = Artefact(path.name, f"{kind}, {frame.height:,} rows")
    if "subject_id" in frame.columns:
        found.facts.append(("subjects", frame["subject_id"].n_unique()))
    _particulars(kind, frame, found)
    nulls = [[name, str(dtype).split("(")[0], frame[name].null_count()] for name, dtype in frame.schema.items()]
    found.tables.append(("columns", ["name", "type", "null"], nulls, 2))
    found.made = made_from(path)
    found.next = [_NEXT[kind].format(path=path)] if kind in _NEXT else []
    return found


def _particulars(kind: str, frame: pl.DataFrame, found: Artefact) -> None:
    """What a known table says in a few lines."""
    if kind == "labels":
        value = pl.col("boolean_value")
        grouped = frame.group_by("task").agg(value.sum().alias("yes"), (~value).sum().alias("no"), value.is_null().sum().alias("unknown"))
        found.tables.append(("", ["task", "positive", "negative", "null"], [list(row) for row in grouped.sort("task").iter_rows()], 1))
    elif kind == "predictions":
        risk = pl.col("predicted_boolean_probability")
        grouped = frame.group_by("method").agg(
            pl.len(), risk.null_count().alias("refused"), risk.mean().alias("mean"), risk.min().alias("low"), risk.max().alias("high")
        )
        body = [[_method(row[0]), row[1], row[2], *(percent(v) for v in row[3:])] for row in grouped.sort("method").iter_rows()]
        found.tables.append(("", ["method", "rows", "refused", "mean risk", "lowest", "highest"], body, 1))
    elif kind == "embeddings" and frame.height:
        found.facts.append(("numbers each", frame["embedding"].list.len()[0]))
    elif kind == "metrics":
        shown = frame.head(60).to_dicts()
        rows = [[r["task"], _method(r["method"]), r["metric"], r["value"], interval(r.get("lower"), r.get("upper"))] for r in shown]
        found.tables.append(("", ["task", "method", "metric", "value", "95% interval"], rows, 3))
    elif kind == "a shard of events":
        found.facts += [("codes", frame["code"].n_unique()), ("visits", frame.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX)).height)]
    elif kind == "a vocabulary":
        found.facts.append(("kinds of token", frame["kind"].n_unique()))
    elif kind == "simulated futures, one row each":
        ends = frame.group_by("stop_reason").len().sort("stop_reason")
        found.tables.append(("", ["stopped by", "futures"], [list(row) for row in ends.iter_rows()], 1))
    elif kind == "splits of subjects":
        found.tables.append(("", ["split", "subjects"], [list(row) for row in frame.group_by("split").len().sort("split").iter_rows()], 1))


def _method(name: Any) -> str:
    label = method(str(name)).label
    return label if label == name else f"{label} ({name})"


def few_lines(one: Artefact) -> str:
    """The first table of a description in one line, for a list of files."""
    heads, rows = (one.tables[0][1], one.tables[0][2]) if one.tables and one.tables[0][0] != "columns" else ((), [])
    return "; ".join(f"{head} {say(cell)}" for head, cell in zip(heads, rows[0], strict=False)) if len(rows) == 1 else ""


# -- text files -------------------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable text") from error


def _json(path: Path) -> Artefact:
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not readable JSON") from error
    if isinstance(value, list) and value and all(isinstance(row, dict) and "step" in row for row in value):
        rows = [[row.get("step"), row.get("subjects"), row.get("rows"), row.get("note") or ""] for row in value]
        return Artefact(path.name, "the attrition of a task", tables=[("", ["step", "subjects", "rows", "note"], rows, 1)], made=made_from(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: not an artefact of ours (a JSON file that is no object)")
    kind, _, following = next((one for one in _ACCOUNTS if one[1] <= set(value)), ("a JSON account", set(), ""))
    facts = [(name, item) for name, item in flatten(value)][:80]
    return Artefact(path.name, kind, facts, made=made_from(path), next=[following.format(parent=path.parent)] if following else [])


def _log(path: Path) -> Artefact:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    try:
        last = json.loads(lines[-1]) if lines else {}
    except ValueError:
        last = {}
    found = Artefact(path.name, f"a log of {len(lines):,} lines", [("last line", "")] if last else [], made=made_from(path))
    found.facts = [(f"last {name}", item) for name, item in flatten(last)][:20]
    found.next = [f"cehrxgpt inspect {path.parent}"]
    return found


def _yaml(path: Path) -> Artefact:
    from cehrxgpt.config import read_yaml

    value = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a recipe or task (expected names and values)")
    facts = [(name, item) for name, item in flatten(value)][:60]
    if "tasks" in value:
        return Artefact(path.name, "the recipe of a run", facts, next=[f"cehrxgpt run {path}"])
    if "outcome" in value:
        return Artefact(path.name, "a task", facts, next=[f"cehrxgpt label EVENTS --task {path} --out LABELS.parquet"])
    return Artefact(path.name, "settings", facts)

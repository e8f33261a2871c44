"""Artefacts as plain text, for the terminal: what a folder or file is, and one subject's timeline. Lines of text, no markup.

An artefact is recognised by what it holds, not by its name. Terminal control characters in the data are taken out, so that a name in
somebody's vocabulary cannot repaint the screen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.report.markup import count, duration, is_number, number, percent, short_count
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections.data import flatten, split_counts
from cehrxgpt.report.sections.provenance import stages
from cehrxgpt.report.sections.training import curve, parameters
from cehrxgpt.report.timeline_text import subject_lines

_CDM_TABLES = ("person", "observation_period", "visit_occurrence", "condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement")
_TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


def inspect_path(path: str | Path, subject: int | None = None) -> list[str]:
    """What an artefact is, as lines; or, with `subject`, that subject's rows in it.

    Knows runs, event data sets, token stores, models, OMOP folders, manifests, and the Parquet tables that travel.

    Raises:
        InputError: there is nothing at `path`, it is nothing we know, it cannot be read, or it has no such subject.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    lines = _folder(path, subject) if path.is_dir() else _file(path, subject)
    return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else " " for character in line)


def _columns(rows: Iterable[Sequence[str]], *, indent: str = "  ", left: int = 1) -> list[str]:
    """Rows of cells as aligned columns: the first `left` to the left, figures to the right."""
    listed = [list(row) for row in rows]
    if not listed:
        return []
    widths = [max(len(row[index]) for row in listed) for index in range(len(listed[0]))]
    aligned = [[cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))] for row in listed]
    return [(indent + "  ".join(row)).rstrip() for row in aligned]


# -- folders ----------------------------------------------------------------------------------------------------------------------


def _folder(path: Path, subject: int | None) -> list[str]:
    kinds: list[tuple[bool, Callable[[Path], list[str]]]] = [
        (any((path / name).exists() for name in ("run.json", "manifests", "events/data")), _run),
        (any(path.glob("data/*/*.parquet")), _events),
        ((path / "model.safetensors").is_file() or ((path / "config.json").is_file() and (path / "vocabulary.parquet").is_file()), _model),
        ((path / "tokenize.json").is_file() or (path / "meta.json").is_file(), _store),
        (bool(_cdm_files(path)), _cdm),
    ]
    for there, describe in kinds:
        if not there:
            continue
        if subject is None:
            return describe(path)
        if describe is _events:
            return _subject_of_folder(path, subject)
        if describe is _run and (path / "events").is_dir():
            return _subject_of_folder(path / "events", subject)
        raise InputError(f"{path}: one subject's timeline is read from an event data set (cehrxgpt inspect EVENTS --subject {subject})")
    if parts := sorted(path.glob("*.parquet")):
        return [f"{path.name}: a folder of {len(parts)} Parquet files; the first is", *_file(parts[0], subject)]
    raise InputError(f"{path}: not an artefact of ours (expected a run, event data set, token store, model, OMOP folder or Parquet table)")


def _subject_of_folder(path: Path, subject: int) -> list[str]:
    run = RunFolder(path.parent)
    events = _scan(path).filter(pl.col("subject_id") == subject).collect()
    if events.is_empty():
        raise InputError(f"{path}: no subject {subject} in it")
    names = _names(path / "metadata" / "codes.parquet", run)
    split = events["split"][0]
    return [f"subject {subject} of {path.name}, split {split}", *subject_lines(events, subject, names)]


def _scan(path: Path) -> pl.LazyFrame:
    run = RunFolder(path.parent)
    events = run.scan_events(path.name)
    if events is None or run.problems:
        raise InputError(f"{path}: {run.problems[0] if run.problems else 'no readable shards'}; ingest again")
    return events


def _names(path: Path, run: RunFolder) -> dict[str, str]:
    frame = run.parquet(str(path.relative_to(run.root))) if path.is_file() else None
    if frame is None or not {"code", "description"} <= set(frame.columns):
        return {}
    named = frame.select("code", "description").drop_nulls()
    return dict(zip(named["code"].to_list(), named["description"].to_list(), strict=True))


def _events(path: Path) -> list[str]:
    events = _scan(path)
    counts = split_counts(events)
    columns = ("subjects", "events", "visits", "values", "deaths")
    rows = [["split", *columns], *([r["split"], *(count(r[c]) for c in columns)] for r in counts.to_dicts())]
    rows.append(["all", *(count(value) for value in counts.select(pl.col(*columns).sum()).row(0))])
    first, last = counts["first"].min(), counts["last"].max()
    lines = [f"{path.name}: an event data set", *_columns(rows)]
    if isinstance(first, datetime) and isinstance(last, datetime):
        lines.append(f"  events from {first:%Y-%m} to {last:%Y-%m}")
    ingest = RunFolder(path).json("ingest.json") or {}
    tables = ingest.get("tables")
    if isinstance(tables, dict):
        body = [[name, count(one.get("read")), count(one.get("kept")), count(_lost(one))] for name, one in tables.items() if isinstance(one, dict)]
        lines += ["", "  rows of the source tables", *_columns([["table", "read", "kept", "dropped"], *body], indent="    ")]
    examples = events.select("subject_id").head(3).unique().sort("subject_id").collect()["subject_id"].to_list()
    hint = f"cehrxgpt inspect {path} --subject {examples[0]}" if examples else ""
    return [*lines, "", f"  one timeline: {hint}"] if hint else lines


def _lost(account: dict[str, Any]) -> Any:
    dropped = account.get("dropped")
    return sum(n for n in dropped.values() if is_number(n)) if isinstance(dropped, dict) else dropped


def _run(path: Path) -> list[str]:
    run = RunFolder(path)
    facts = run.json("run.json") or {}
    lines = [f"{path.name}: a run" + (f", finished {facts['finished']}" if facts.get("finished") else ", not finished")]
    rows = [
        [str(stage.get("name")), "skipped" if stage.get("skipped") else str(stage.get("status")), duration(stage.get("seconds"))]
        for stage in stages(run)
    ]
    lines += _columns([["stage", "status", "time"], *rows], left=2) if rows else []
    metrics = run.metrics
    if metrics is not None:
        auroc = metrics.filter(pl.col("metric").str.to_lowercase() == "auroc")
        body = [
            [r["task"], r["method"], number(r["value"]), f"{number(r['lower'])} to {number(r['upper'])}", count(r["positives"])]
            for r in auroc.to_dicts()
        ]
        lines += ["", *_columns([["task", "method", "AUROC", "95% interval", "positives"], *body], left=2)]
    there = [child.name for child in sorted(path.iterdir()) if not child.name.startswith(".")]
    return [*lines, "", f"  holds {', '.join(there)}"]


def _store(path: Path) -> list[str]:
    run = RunFolder(path)
    facts = {**(run.json("meta.json") or {}), **(run.json("tokenize.json") or {})}
    vocabulary = run.parquet("vocabulary.parquet")
    rows = [[name.replace("_", " "), _scalar(value)] for name, value in flatten(facts, depth=2) if not isinstance(value, list)]
    if vocabulary is not None and not is_number(facts.get("vocabulary")):
        rows.append(["vocabulary", count(vocabulary.height)])
    return [f"{path.name}: a token store", *_columns(rows[:60], left=2)]


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or not is_number(value):
        return str(value)
    return count(value) if float(value).is_integer() else number(value, 4)


def _model(path: Path) -> list[str]:
    run = RunFolder(path.parent)
    config = run.json(f"{path.name}/config.json") or {}
    weights = parameters(run, path.name)
    rows = [["parameters", f"{count(weights)} ({short_count(weights)})" if weights else "weights are missing"]]
    rows += [[name.replace("_", " "), _scalar(value)] for name, value in flatten(config)]
    log = run.json_lines(f"{path.name}/train.jsonl")
    steps, tuning = curve(log, "tuning_loss", "tuning.loss", "tuning")
    if steps:
        best = min(range(len(tuning)), key=tuning.__getitem__)
        rows.append(["best tuning loss", f"{number(tuning[best])} at step {count(steps[best])}"])
    return [f"{path.name}: a model", *_columns(rows[:40], left=2), *_adapted(run.json(f"{path.name}/adapt.json"))]


def _adapted(facts: dict[str, Any] | None) -> list[str]:
    """The transfer report of a model that was adapted to another data set."""
    if facts is None:
        return []
    rows = [[name.replace("_", " "), _scalar(value)] for name, value in flatten(facts, depth=4) if not isinstance(value, list)]
    shown = [row for row in rows if not row[0].startswith("training")]
    return ["", "  adapted to another data set", *_columns(shown[:60], indent="    ", left=2)]


def _cdm_files(path: Path) -> dict[str, Path]:
    """OMOP table name -> file, in any letter case; a folder of Parquet parts counts as a file."""
    found = {}
    for child in sorted(path.iterdir()):
        stem = child.name.lower()
        for suffix in _TABLE_SUFFIXES:
            stem = stem.removesuffix(suffix)
        if stem in _CDM_TABLES and (child.is_dir() or child.name.lower().endswith(_TABLE_SUFFIXES)):
            found[stem] = child
    return found if "person" in found else {}


def _cdm(path: Path) -> list[str]:
    rows = []
    for child in sorted(path.iterdir()):
        if child.name.startswith(".") or not (child.name.lower().endswith(_TABLE_SUFFIXES) or child.is_dir()):
            continue
        size = sum(part.stat().st_size for part in child.rglob("*") if part.is_file()) if child.is_dir() else child.stat().st_size
        rows.append([child.name, _parquet_rows(child), _size(size)])
    note = "  not an event data set yet; make one with: cehrxgpt ingest " + f"{path} --out EVENTS"
    return [
        f"{path.name}: OMOP tables ({len(_cdm_files(path))} of the {len(_CDM_TABLES)} main ones)",
        *_columns([["file", "rows", "size"], *rows]),
        "",
        note,
    ]


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _parquet_rows(path: Path) -> str:
    if not path.name.lower().endswith(".parquet") or path.is_dir():
        return "–"
    try:
        return count(pl.scan_parquet(path).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError):
        return "unreadable"


# -- files ------------------------------------------------------------------------------------------------------------------------


def _file(path: Path, subject: int | None) -> list[str]:
    if path.suffix == ".json":
        return _json(path, subject)
    if path.suffix != ".parquet":
        raise InputError(f"{path}: not an artefact of ours (expected a folder, a Parquet table or a JSON manifest)")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: not readable Parquet (truncated or damaged?)") from error
    if subject is not None:
        return _subject_of_table(path, frame, subject)
    return [f"{path.name}: {_table_kind(frame)}, {count(frame.height)} rows", *_table_facts(frame), *_column_lines(frame)]


def _json(path: Path, subject: int | None) -> list[str]:
    if subject is not None:
        raise InputError(f"{path}: a JSON file has no subjects; give an event data set")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not an artefact of ours (a JSON file that is no object)")
    kind = "a stage's manifest" if {"key", "stage"} <= set(value) else "a JSON account"
    return [f"{path.name}: {kind}", *_columns([[name, _scalar(item)] for name, item in flatten(value)][:80], left=2)]


_KINDS: tuple[tuple[str, set[str]], ...] = (
    ("embeddings", {"subject_id", "prediction_time", "embedding"}),
    ("predictions", {"subject_id", "prediction_time", "predicted_boolean_probability", "method"}),
    ("labels", {"subject_id", "prediction_time", "boolean_value", "task"}),
    ("true risks", {"subject_id", "prediction_time", "true_risk"}),
    ("simulated futures as events", {"subject_id", "prediction_time", "sample_id", "time", "code"}),
    ("simulated futures, one row each", {"subject_id", "prediction_time", "sample_id", "stop_reason"}),
    ("a shard of events", {"subject_id", "time", "code"}),
    ("metrics", {"task", "method", "metric", "value"}),
    ("a vocabulary", {"token", "kind", "amount"}),
)


def _table_kind(frame: pl.DataFrame) -> str:
    return next((name for name, needed in _KINDS if needed <= set(frame.columns)), "a table")


def _table_facts(frame: pl.DataFrame) -> list[str]:
    """What a known table says in a few lines."""
    there, lines = set(frame.columns), []
    if "subject_id" in there:
        lines.append(f"  {count(frame['subject_id'].n_unique())} subjects")
    kind = _table_kind(frame)
    if kind == "labels":
        grouped = frame.group_by("task").agg(
            pl.col("boolean_value").sum().alias("positive"),
            (~pl.col("boolean_value")).sum().alias("negative"),
            pl.col("boolean_value").is_null().sum().alias("null"),
        )
        lines += _columns(
            [["task", "positive", "negative", "null"], *([str(row[0]), *(count(n) for n in row[1:])] for row in grouped.sort("task").iter_rows())]
        )
    elif kind == "predictions":
        risk = pl.col("predicted_boolean_probability")
        grouped = frame.group_by("method").agg(
            pl.len(), risk.null_count().alias("refused"), risk.mean().alias("mean"), risk.min().alias("low"), risk.max().alias("high")
        )
        body = [[str(r[0]), count(r[1]), count(r[2]), *(percent(v) for v in r[3:])] for r in grouped.sort("method").iter_rows()]
        lines += _columns([["method", "rows", "refused", "mean risk", "lowest", "highest"], *body])
    elif kind == "embeddings" and frame.height:
        lines.append(f"  {count(frame['embedding'].list.len()[0])} numbers each")
    elif kind == "metrics":
        body = [[str(r["task"]), str(r["method"]), str(r["metric"]), number(r["value"])] for r in frame.head(60).to_dicts()]
        lines += _columns([["task", "method", "metric", "value"], *body], left=3)
    elif kind == "a shard of events":
        lines.append(
            f"  {count(frame['code'].n_unique())} codes, {count(frame.filter(pl.col('code').str.starts_with(s.VISIT_PREFIX)).height)} visits"
        )
    elif kind == "a vocabulary":
        lines.append(f"  {count(frame['kind'].n_unique())} kinds of token")
    elif kind == "simulated futures, one row each":
        lines += _columns([[str(reason), count(n)] for reason, n in frame.group_by("stop_reason").len().sort("stop_reason").iter_rows()])
    return lines


def _column_lines(frame: pl.DataFrame) -> list[str]:
    rows = [[name, str(dtype).split("(")[0], f"{count(frame[name].null_count())} null"] for name, dtype in frame.schema.items()]
    return ["  columns", *_columns(rows, indent="    ", left=2)]


def _subject_of_table(path: Path, frame: pl.DataFrame, subject: int) -> list[str]:
    if "subject_id" not in frame.columns:
        raise InputError(f"{path}: has no column 'subject_id'; give events, labels or predictions")
    own = frame.filter(pl.col("subject_id") == subject)
    if own.is_empty():
        raise InputError(f"{path}: no subject {subject} in it")
    if _table_kind(frame) == "a shard of events":
        return [f"subject {subject} of {path.name}", *subject_lines(own, subject, {})]
    if _table_kind(frame) == "simulated futures as events":
        lines = [f"subject {subject} of {path.name}"]
        for (at, sample), part in own.sort("prediction_time", "sample_id").group_by("prediction_time", "sample_id", maintain_order=True):
            lines += ["", f"from {at}, future {sample}", *subject_lines(part.drop("prediction_time", "sample_id"), subject, {})]
        return lines
    shown = own.select(name for name, dtype in own.schema.items() if not isinstance(dtype, pl.List)).head(50)
    return [
        f"subject {subject} of {path.name}, {count(own.height)} rows",
        *_columns([shown.columns, *([_cell(v) for v in row] for row in shown.iter_rows())], left=99),
    ]


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

"""Folders: runs, event data sets, token stores, models, OMOP tables, and what the stages of a run leave in folders of their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt.errors import InputError
from cehrxgpt.report import suppress
from cehrxgpt.report.artefacts.artefact import Artefact, interval, size
from cehrxgpt.report.artefacts.files import describe_file, few_lines
from cehrxgpt.report.artefacts.made import made_from
from cehrxgpt.report.markup import duration, is_number, readable, short_count
from cehrxgpt.report.methods import method
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections.data import flatten, split_counts
from cehrxgpt.report.sections.provenance import stages
from cehrxgpt.report.sections.training import curve, parameters

CDM_TABLES = ("person", "observation_period", "visit_occurrence", "condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement")
_TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


def kind_of(path: Path) -> Callable[[Path], Artefact] | None:
    """What describes the folder, None for one that is nothing we know."""
    kinds: list[tuple[bool, Callable[[Path], Artefact]]] = [
        (any((path / name).exists() for name in ("run.json", "manifests", "events/data")), run),
        (any(path.glob("data/*/*.parquet")), events),
        ((path / "model.safetensors").is_file() or ((path / "config.json").is_file() and (path / "vocabulary.parquet").is_file()), model),
        ((path / "tokenize.json").is_file() or (path / "meta.json").is_file(), store),
        (bool(cdm_files(path)), cdm),
        (any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")), tables),
    ]
    return next((describe for there, describe in kinds if there), None)


def scan(path: Path) -> pl.LazyFrame:
    """All rows of an event data set.

    Raises:
        InputError: a shard cannot be read.
    """
    found = RunFolder(path.parent)
    frame = found.scan_events(path.name)
    if frame is None or found.problems:
        raise InputError(f"{path}: {found.problems[0] if found.problems else 'no readable shards'}; ingest again")
    return frame


def run(path: Path) -> Artefact:
    """A run: its stages, the AUROCs, what it holds."""
    folder = RunFolder(path)
    facts = folder.json("run.json") or {}
    finished = facts.get("finished")
    found = Artefact(path.name, f"a run, finished {str(finished).replace('T', ' ')[:16]}" if finished else "a run, not finished")
    rows = [[stage.get("name"), "held" if stage.get("skipped") else stage.get("status"), duration(stage.get("seconds"))] for stage in stages(folder)]
    if rows:
        found.tables.append(("", ["stage", "status", "time"], rows, 2))
    metrics = folder.metrics
    if metrics is not None:
        auroc = metrics.filter(pl.col("metric").str.to_lowercase() == "auroc").to_dicts()
        body = [[r["task"], method(r["method"]).label, r["value"], interval(r["lower"], r["upper"]), r["positives"]] for r in auroc]
        found.tables.append(("", ["task", "method", "AUROC", "95% interval", "positives"], body, 2))
    found.facts.append(("holds", ", ".join(child.name for child in sorted(path.iterdir()) if not child.name.startswith("."))))
    versions = facts.get("versions")
    if isinstance(versions, dict) and versions.get("cehrxgpt"):
        found.made.append(("by", f"cehrxgpt {versions['cehrxgpt']}"))
    page = path / "report.html"
    found.next = [f"open {page}" if page.exists() else f"cehrxgpt report {path}"]
    return found


def events(path: Path) -> Artefact:
    """An event data set: its splits, the account of its ingest."""
    frame = scan(path)
    counts = split_counts(frame)
    names = ["subjects", "events", "visits", "values", "deaths"]
    told = [suppress.figures(counts[name].fill_null(0).to_list()) for name in names]
    rows = [list(row) for row in zip([*counts["split"], "all"], *told, strict=True)]
    ingest = RunFolder(path).json("ingest.json") or {}
    found = Artefact(path.name, "an event data set" if ingest else "an event data set (MEDS), not ingested by us")
    found.tables.append(("", ["split", *names], rows, 1))
    first, last = counts["first"].min(), counts["last"].max()
    if isinstance(first, datetime) and isinstance(last, datetime):
        found.facts.append(("events from", f"{first:%Y-%m} to {last:%Y-%m}"))
    found.facts += [(key.replace("_", " "), ingest[key]) for key in ("calendar", "observation_policy", "codes") if ingest.get(key)]
    accounts = ingest.get("tables")
    if isinstance(accounts, dict):
        body = [[name, one.get("read"), one.get("kept"), lost(one)] for name, one in accounts.items() if isinstance(one, dict)]
        found.tables.append(("rows of the source tables", ["table", "read", "kept", "dropped"], body, 1))
        if reasons := _reasons(accounts):
            found.tables.append(("why rows were dropped", ["table", "reason", "rows"], reasons, 2))
    source = [("source", ingest["source"])] if ingest.get("source") else []
    found.made = [*source, *([("format", ingest["format"])] if ingest.get("format") else []), *made_from(path)]
    example = frame.select("subject_id").head(1).collect()["subject_id"].to_list()
    found.next = [f"cehrxgpt tokenize {path} --out TIMELINE" if ingest else f"cehrxgpt ingest {path} --out EVENTS"]
    found.next += [f"cehrxgpt inspect {path} --subject {example[0]}"] if example else []
    return found


def lost(account: dict[str, Any]) -> Any:
    """Rows that a table's account says were dropped."""
    dropped = account.get("dropped")
    return sum(n for n in dropped.values() if is_number(n)) if isinstance(dropped, dict) else dropped


def _reasons(accounts: dict[str, Any]) -> list[list[Any]]:
    """Table, reason and rows of what was dropped: tables in their order, the most frequent reason first."""
    found: list[list[Any]] = []
    for name, one in accounts.items():
        dropped = one.get("dropped") if isinstance(one, dict) else None
        counted = [(why, n) for why, n in dropped.items() if is_number(n)] if isinstance(dropped, dict) else []
        found += [[name, readable(why), n] for why, n in sorted(counted, key=lambda pair: (-pair[1], pair[0]))]
    return found


def store(path: Path) -> Artefact:
    """A token store."""
    folder = RunFolder(path)
    facts = {**(folder.json("meta.json") or {}), **(folder.json("tokenize.json") or {})}
    vocabulary = folder.parquet("vocabulary.parquet")
    found = Artefact(path.name, "a token store")
    found.facts = [(name.replace("_", " "), value) for name, value in flatten(_told(facts), depth=2) if not isinstance(value, list)][:60]
    if vocabulary is not None and not is_number(facts.get("vocabulary")):
        found.facts.append(("vocabulary", vocabulary.height))
    splits = [one for one in facts.get("splits") or [] if isinstance(one, dict)]
    if splits:
        sums, lengths = ["patients", "tokens", "events", "events_dropped"], ["length_p50", "length_p90"]
        told = [suppress.figures([one.get(key) or 0 for one in splits])[:-1] for key in sums]
        few = [suppress.is_small(one.get("patients")) for one in splits]
        body = [
            [one.get("split"), *row, *(None if small else one.get(key) for key in lengths)]
            for one, small, *row in zip(splits, few, *told, strict=True)
        ]
        found.tables.append(("", [key.replace("_", " ") for key in ["split", *sums, *lengths]], body, 1))
    found.made = made_from(path)
    found.next = [f"cehrxgpt pretrain {path} --recipe demo --out MODEL", f"cehrxgpt inspect {path} --subject ID"]
    return found


_COUNTED = {"patients": "", "patients_without_tokens": "", "histories": "", "events": "", "events_dropped": "dropped_share"}
_COUNTED |= {"events_rolled_up": "rolled_up_share", "events_backed_off": "backed_off_share"}


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    """`tokenize.json` with small counts of patients and of their events hidden, and the shares that would give them away."""
    hidden = [(name, share) for name, share in _COUNTED.items() if suppress.is_small(facts.get(name))]
    return {**facts, **{name: suppress.UNDER for name, _ in hidden}, **{share: None for _, share in hidden if share in facts}}


def model(path: Path) -> Artefact:
    """A model: its size, its settings, its best loss."""
    folder = RunFolder(path.parent)
    weights = parameters(folder, path.name)
    found = Artefact(path.name, "a model")
    found.facts = [("parameters", f"{weights:,} ({short_count(weights)})" if weights else "weights are missing")]
    found.facts += [(name.replace("_", " "), value) for name, value in flatten(folder.json(f"{path.name}/config.json") or {})][:40]
    steps, tuning = curve(folder.json_lines(f"{path.name}/train.jsonl"), "tuning_loss", "tuning.loss", "tuning")
    if steps:
        best = min(range(len(tuning)), key=tuning.__getitem__)
        found.facts.append(("best tuning loss", f"{tuning[best]:.3f} at step {int(steps[best]):,}"))
    transfer = flatten(folder.json(f"{path.name}/adapt.json") or {}, depth=4)
    if transfer:
        rows = [[name.replace("_", " "), value] for name, value in transfer if not name.startswith("training")]
        found.tables.append(("adapted to another data set", ["", "value"], rows[:60], 1))
    found.made = made_from(path)
    found.next = [
        f"cehrxgpt forecast {path} EVENTS --labels LABELS.parquet --out RISK.parquet",
        f"cehrxgpt embed {path} EVENTS --labels LABELS.parquet --out EMB.parquet",
        f"cehrxgpt synthesize {path} --patients 1000 --out CDM",
    ]
    return found


def cdm_files(path: Path) -> dict[str, Path]:
    """OMOP table name -> file, in any letter case; a folder of Parquet parts counts as a file. Empty without a person table."""
    found = {}
    for child in sorted(path.iterdir()):
        stem = child.name.lower()
        for suffix in _TABLE_SUFFIXES:
            stem = stem.removesuffix(suffix)
        if stem in CDM_TABLES and (child.is_dir() or child.name.lower().endswith(_TABLE_SUFFIXES)):
            found[stem] = child
    return found if "person" in found else {}


def cdm(path: Path) -> Artefact:
    """A folder of OMOP tables."""
    rows: list[list[Any]] = []
    for child in sorted(path.iterdir()):
        if child.name.startswith(".") or not (child.name.lower().endswith(_TABLE_SUFFIXES) or child.is_dir()):
            continue
        total = sum(part.stat().st_size for part in child.rglob("*") if part.is_file()) if child.is_dir() else child.stat().st_size
        rows.append([child.name, _parquet_rows(child), size(total)])
    found = Artefact(path.name, f"OMOP tables ({len(cdm_files(path))} of the {len(CDM_TABLES)} main ones)", made=made_from(path))
    found.tables.append(("", ["file", "rows", "size"], rows, 1))
    found.facts += [("with true risks of", ", ".join(RunFolder(path).stems("truth")))] if (path / "truth").is_dir() else []
    found.next = [f"cehrxgpt ingest {path} --out EVENTS"]
    return found


def _parquet_rows(path: Path) -> Any:
    if not path.name.lower().endswith(".parquet") or path.is_dir():
        return None
    try:
        return pl.scan_parquet(path).select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError):
        return "unreadable"


def tables(path: Path) -> Artefact:
    """A folder of Parquet tables: each by its kind, the first described."""
    files = sorted(file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern))
    described = [describe_file(file) for file in files[:40]]
    rows = [[str(file.relative_to(path)), one.kind, few_lines(one)] for file, one in zip(files, described, strict=False)]
    kinds = sorted({one.kind.split(",")[0] for one in described})
    word = "table" if len(files) == 1 else "tables"
    found = Artefact(path.name, f"a folder of {len(files)} Parquet {word}: {'; '.join(kinds)}", made=made_from(path), next=described[0].next)
    found.tables.append(("", ["file", "what", ""], rows, 3))
    return found

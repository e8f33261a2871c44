"""`inspect`: what an artefact is, or one subject's record, as plain lines and as figures for programs.

An artefact is recognised by what it holds, not by its name. Terminal control characters in the data are taken out, so that a name in
somebody's vocabulary cannot repaint the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt.errors import InputError
from cehrxgpt.report.artefacts.artefact import columns
from cehrxgpt.report.artefacts.files import describe_file, read_table, table_kind
from cehrxgpt.report.artefacts.folders import events as describe_events
from cehrxgpt.report.artefacts.folders import kind_of, scan
from cehrxgpt.report.artefacts.folders import run as describe_run
from cehrxgpt.report.history import bin_edges, read_history
from cehrxgpt.report.patient_page import patient_page
from cehrxgpt.report.run import RunFolder, spoken
from cehrxgpt.report.timeline_text import figures, subject_lines, summary_lines, visit_lines


@dataclass(frozen=True)
class View:
    """How to show one subject: visit by visit, every event, or one visit in full (counted from 1)."""

    full: bool = False
    visit: int | None = None


def inspect_path(path: str | Path, subject: int | None = None, view: View | None = None) -> list[str]:
    """What an artefact is, as lines; or, with `subject`, that subject's record.

    Knows runs, event data sets, token stores, models, OMOP folders, accounts and manifests, recipes, and the Parquet tables that travel.

    Raises:
        InputError: there is nothing at `path`, it is nothing we know, it cannot be read, or it has no such subject.
    """
    return inspect_artefact(path, subject, view)[0]


def inspect_artefact(path: str | Path, subject: int | None = None, view: View | None = None) -> tuple[list[str], dict[str, Any]]:
    """`inspect_path`, and the same as figures.

    Raises:
        InputError: as `inspect_path`.
    """
    path = _there(path)
    if subject is None:
        describe = kind_of(path) if path.is_dir() else describe_file
        if describe is None:
            raise InputError(f"{path}: not an artefact of ours (expected a run, event data set, token store, model, OMOP folder or Parquet table)")
        found = describe(path)
        lines, said = found.lines(), found.figures()
    else:
        lines, said = _subject(path, subject, view or View())
    return [printable(line) for line in lines], {"path": str(path), **said}


def subject_page(path: str | Path, subject: int) -> str:
    """One subject's record as an HTML page, from an event data set or a run.

    Raises:
        InputError: it is neither, or has no such subject.
    """
    root = _events_folder(_there(path), subject)
    events, run = _own(root, subject), RunFolder(root.parent)
    simulated = run.simulated or (root.name == "synthetic_events")
    names = _names(root, run)
    return patient_page(events, subject, names, bin_edges(run.parquet("timeline/vocabulary.parquet")), source=root.name, simulated=simulated)


def printable(line: str) -> str:
    """The line without characters that would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in line)


def _there(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        near = path.parent
        while not near.exists():
            near = near.parent
        there = sorted(child.name for child in near.iterdir() if not child.name.startswith("."))[:8] if near.is_dir() else []
        hint = f"; {near} holds {', '.join(there)}" if there and near != Path() else ""
        raise InputError(f"{path}: no such file or folder{hint}")
    return path


# -- one subject ------------------------------------------------------------------------------------------------------------------


def _events_folder(path: Path, subject: int) -> Path:
    """The event data set at `path`, or inside the run at it."""
    describe = kind_of(path) if path.is_dir() else None
    if describe is describe_events:
        return path
    if describe is describe_run and (path / "events").is_dir():
        return path / "events"
    if describe is None and path.is_dir():
        raise InputError(f"{path}: not an artefact of ours (expected a run or an event data set)")
    raise InputError(f"{path}: one subject's record is read from an event data set (cehrxgpt inspect EVENTS --subject {subject})")


def _own(root: Path, subject: int) -> pl.DataFrame:
    events = scan(root).filter(pl.col("subject_id") == subject).collect()
    if events.is_empty():
        some = scan(root).select("subject_id").unique().sort("subject_id").head(3).collect()["subject_id"].to_list()
        raise InputError(f"{root}: no subject {subject} in it" + (f"; there are {', '.join(map(str, some))}, ..." if some else ""))
    return events


def _names(root: Path, run: RunFolder) -> dict[str, str]:
    frame = run.parquet(str((root / "metadata" / "codes.parquet").relative_to(run.root)))
    if frame is None or not {"code", "description"} <= set(frame.columns):
        return {}
    return spoken(frame)


def _subject(path: Path, subject: int, view: View) -> tuple[list[str], dict[str, Any]]:
    if path.is_file():
        return _of_table(path, subject), {"subject": subject}
    root = _events_folder(path, subject)
    events = _own(root, subject)
    names = _names(root, RunFolder(root.parent))
    head = f"subject {subject} of {root.name}, split {events['split'][0]}"
    history = read_history(events, subject, names)
    if view.visit is not None:
        if not 1 <= view.visit <= history.stays.height:
            raise InputError(f"subject {subject}: no visit {view.visit}; there are {history.stays.height:,}")
        body = visit_lines(events, subject, names, view.visit)
    else:
        body = subject_lines(events, subject, names) if view.full else summary_lines(history, names)
    return [head, *body], {"subject": subject, "split": events["split"][0], **figures(history)}


def _of_table(path: Path, subject: int) -> list[str]:
    if path.suffix != ".parquet":
        raise InputError(f"{path}: only tables have subjects; give an event data set")
    frame = read_table(path)
    if "subject_id" not in frame.columns:
        raise InputError(f"{path}: has no column 'subject_id'; give events, labels or predictions")
    own = frame.filter(pl.col("subject_id") == subject)
    if own.is_empty():
        raise InputError(f"{path}: no subject {subject} in it")
    if table_kind(frame) == "a shard of events":
        return [f"subject {subject} of {path.name}", *subject_lines(own, subject, {})]
    if table_kind(frame) == "simulated futures as events":
        lines = [f"subject {subject} of {path.name}"]
        for (at, sample), part in own.sort("prediction_time", "sample_id").group_by("prediction_time", "sample_id", maintain_order=True):
            lines += ["", f"from {at}, future {sample}", *subject_lines(part.drop("prediction_time", "sample_id"), subject, {})]
        return lines
    shown = own.select(name for name, dtype in own.schema.items() if not isinstance(dtype, pl.List)).head(50)
    rows: list[Sequence[str]] = [shown.columns, *([_cell(v) for v in row] for row in shown.iter_rows())]
    return [f"subject {subject} of {path.name}, {own.height:,} rows", *columns(rows, left=99)]


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

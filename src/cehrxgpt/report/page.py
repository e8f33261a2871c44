"""The page: chapters in the order a reader asks for them, around one column, with a table of contents. One file, no script.

The result is self-contained by construction and says so to the browser: its content security policy allows inline styles and nothing
else, so a page that tried to fetch anything, or a name in the data that tried to be a script, would do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.errors import InputError
from cehrxgpt.report import suppress
from cehrxgpt.report.document import document
from cehrxgpt.report.markup import Markup, Section, count, duration, is_number, number, paragraph, readable, short_count, tag, tiles
from cehrxgpt.report.methods import canonical
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs, attrition, data, forecast, patient, provenance, quality, synthetic, tasks, training, vocabulary

_TELLING_POSITIVES = 20  # an AUROC of fewer is no headline
_ARTEFACTS = ("run.json", "events", "timeline", "model", "labels", "probe", "forecast", "evaluation", "synthetic", "synthetic_events")


def report(run_folder: str | Path, out: str | Path | None = None, force: bool = True, *, patient: int | str | None = "auto") -> Path:
    """Write the report of a run as one self-contained HTML file.

    Args:
        run_folder: a run's folder; every artefact in it is optional, and a chapter without inputs is left out and named.
        out: the file; default `run_folder/report.html`.
        force: replace a file that is there.
        patient: whose timeline to show. "auto" shows nobody real: a held-out subject of a simulated population, else one whom the model
            wrote. A subject id shows that person, real or not; None (or "none") leaves single persons out of the page altogether.

    Returns:
        Path of the file.

    Raises:
        InputError: there is no such folder, nothing in it is of a run, or `patient` is none of the above or nobody in its events.
        OutputExistsError: the file is there and `force` is false.
        StorageError: the file could not be written.
    """
    return report_with_figures(run_folder, out, force, patient=patient)[0]


def report_with_figures(
    run_folder: str | Path, out: str | Path | None = None, force: bool = True, *, patient: int | str | None = "auto"
) -> tuple[Path, dict[str, Any]]:
    """`report`, and what the page says in numbers: its size, its chapters, those left out, the chapters' own figures.

    Raises:
        InputError, OutputExistsError, StorageError: as `report`.
    """
    root, whom = Path(run_folder), _patient(patient)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of a run (cehrxgpt demo makes one)")
    if not any((root / name).exists() for name in _ARTEFACTS):
        raise InputError(f"{root}: nothing to report on; a run's folder holds some of {', '.join(_ARTEFACTS)}")
    target = Path(out) if out is not None else root / "report.html"
    refuse_existing(target, force=force)
    run = RunFolder(root)
    sections, absent = _sections(run, whom)
    foot = "Made by cehrxgpt from aggregates of the run’s folder; the page is one file and asks no server for anything."
    page = document(_title(run), "Summary", _head(run, absent, whom), sections, foot)
    with atomic_path(target, force=force) as partial:
        partial.write_text(page, encoding="utf-8")
    figures: dict[str, Any] = {"bytes": target.stat().st_size, "chapters": len(sections), "left_out": [title for title, _ in absent]}
    for section in sections:
        figures |= section.figures
    return target, {**figures, "problems": len(run.problems)}


def _patient(value: int | str | None) -> patient.Patient:
    if value is None or value == "none":
        return None
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise InputError(f"patient: expected 'auto', 'none' or a subject id, found {value!r}") from None


def _sections(run: RunFolder, whom: patient.Patient) -> tuple[list[Section], list[tuple[str, str]]]:
    """The chapters, and those that are left out with the reason."""
    builders: list[tuple[str, Callable[[], Section]]] = [
        ("Data", lambda: data.section(run)),
        ("Attrition", lambda: attrition.section(run)),
        ("Data quality", lambda: quality.section(run)),
        ("Histories and tokens", lambda: vocabulary.section(run)),
        ("Training", lambda: training.training_section(run)),
        ("Predictions by task", lambda: tasks.section(run)),
        ("Forecast completion", lambda: forecast.section(run)),
        ("One patient", lambda: patient.section(run, whom)),
        ("Synthetic against real", lambda: synthetic.section(run)),
        ("Provenance", lambda: provenance.section(run)),
    ]
    sections: list[Section] = []
    absent: list[tuple[str, str]] = []
    for title, build in builders:
        if title == "One patient" and whom is None:
            absent.append((title, "left out on request"))
            continue
        try:
            sections.append(build())
        except MissingInputs as missing:
            absent.append((title, f"needs {missing}"))
    return sections, absent


# -- the head ---------------------------------------------------------------------------------------------------------------------


def _title(run: RunFolder) -> str:
    return f"cehrxgpt: {run.root.resolve().name}"


def _head(run: RunFolder, absent: list[tuple[str, str]], whom: patient.Patient) -> Markup:
    facts = run.json("run.json") or {}
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    finished = f", finished {_instant(facts['finished'])}" if isinstance(facts.get("finished"), str) else ""
    try:
        ours = version("cehrxgpt")
    except PackageNotFoundError:
        ours = "?"
    parts: list[Any] = [
        tag("p", f"cehrxgpt {ours}{finished}, page made {made}", class_="kicker"),
        tag("h1", f"Run “{run.root.resolve().name}”", id="summary"),
    ]
    if isinstance(whom, int) and not run.simulated:
        parts.append(tag("div", paragraph(tag("b", patient.REAL_PERSON)), class_="left-out"))
    if run.simulated:
        parts.append(paragraph("The population is simulated: its hazards are known, so predictions can be held against the true risk."))
    parts.append(tiles(_figures(run)))
    if glance := tasks.glance(run):
        parts += [tag("h3", "Held-out AUROC at a glance", id="glance"), glance]
    if absent:
        items = [tag("li", tag("b", title), ": ", why) for title, why in absent]
        parts.append(tag("div", paragraph("Not on this page:"), tag("ul", *items), class_="left-out"))
    if run.problems:
        items = [tag("li", problem) for problem in run.problems]
        parts.append(tag("div", paragraph("Not used, because of what is wrong with them:"), tag("ul", *items), class_="left-out"))
    return tag("header", *parts)


def _instant(value: str) -> str:
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return value[:40]


def _figures(run: RunFolder) -> list[tuple[str, Any, Any]]:
    """Headline figures, of what is there."""
    found: list[tuple[str, Any, Any]] = []
    if run.events is not None:
        counts = data.split_counts(run.events)
        total = counts.select(pl.col("subjects", "events", "visits").sum()).row(0, named=True)
        held_out = counts.filter(pl.col("split") == "held_out")["subjects"].sum()
        found.append(("subjects", short_count(total["subjects"]), f"{suppress.plain(held_out)} held out"))
        found.append(("events", short_count(total["events"]), f"{count(total['visits'])} visits"))
    if weights := training.parameters(run):
        found.append(("parameters", short_count(weights), _vocabulary_size(run)))
    speed = training.curve(run.json_lines("model/train.jsonl"), "tokens_per_second", "speed.tokens_per_second")[1]
    if speed:
        found.append(("training speed", f"{short_count(float(pl.Series(speed).median() or 0))}/s", "tokens, median"))  # type: ignore[arg-type]
    for row in tasks.metric_rows(run):
        telling = is_number(row["value"]) and (row["positives"] or 0) >= _TELLING_POSITIVES
        if row["metric"] == "auroc" and canonical(row["method"]) == "monte_carlo" and telling and len(found) < 8:
            bounds = f"{number(row['lower'], 2)} to {number(row['upper'], 2)}, " if is_number(row["lower"]) and is_number(row["upper"]) else ""
            found.append((f"zero-shot AUROC, {readable(row['task'])}", number(row["value"]), f"{bounds}{count(row['positives'])} positives"))
    if run.synthetic_events is not None:
        people = run.synthetic_events.select(pl.col("subject_id").n_unique()).collect().item()
        found.append(("synthetic patients", short_count(people), "written as OMOP tables" if run.has("synthetic") else ""))
    seconds = [stage["seconds"] for stage in provenance.stages(run) if is_number(stage.get("seconds"))]
    if seconds:
        found.append(
            (
                "time of the run",
                duration(sum(seconds) if sum(seconds) < 600 else round(sum(seconds) / 60) * 60).removesuffix(" 00 s"),
                f"{len(seconds)} stages",
            )
        )
    return found


def _vocabulary_size(run: RunFolder) -> str:
    vocabulary = run.parquet("timeline/vocabulary.parquet")
    return f"vocabulary of {count(vocabulary.height)}" if vocabulary is not None else ""

"""Stages from raw tables to a token store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.console import Progress
from cehrxgpt.errors import InputError
from cehrxgpt.stages.tables import Settings, silent

if TYPE_CHECKING:
    from cehrxgpt.events import EventDataset
    from cehrxgpt.tasks import Task
    from cehrxgpt.timeline import TimelineConfig
    from cehrxgpt.timeline.vocabulary import Vocabulary


def simulate(out: Path, settings: Settings, *, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Simulate a population as OMOP CDM 5.4 tables; `simulate.json` there says more (prevalences, rows by table)."""
    from cehrxgpt.simulate import SimulateConfig
    from cehrxgpt.simulate import simulate as run

    made = to_dict(run(out, from_dict(SimulateConfig, dict(settings), where="simulate"), force=force, progress=progress))
    told = ("out", "patients", "deaths", "events_per_patient", "years_per_patient")
    return {name: made[name] for name in told} | {"rows": sum(made["rows"].values()), "truth": made["truth"], "seconds": made["seconds"]}


def ingest(source: str | Path, out: Path, settings: Settings, *, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Raw tables to an event data set."""
    from cehrxgpt.sources import IngestConfig
    from cehrxgpt.sources import ingest as run

    _check_dialect(source, settings)
    dataset = run(source, out, from_dict(IngestConfig, dict(settings), where="ingest"), force=force, progress=progress)
    account = json.loads((dataset.root / "ingest.json").read_text(encoding="utf-8"))
    return {
        "format": account["format"],
        "subjects": account["subjects"],
        "events": account["events"]["total"],
        "visits": account["visits_recovered"]["total"],
        "dropped": sum(sum(table["dropped"].values()) for table in account["tables"].values()),
        "notes": account["notes"],
    }


def _check_dialect(source: str | Path, settings: Settings) -> None:
    """Raise `InputError` if a MEDS dialect is asked for of OMOP tables, which would not hear it."""
    from cehrxgpt.sources.locate import looks_like_omop
    from cehrxgpt.sources.url import is_url

    if settings.get("dialect", "auto") == "auto":
        return
    path = Path(source)
    if settings.get("format") == "omop" or is_url(str(source)) or path.is_file() or (path.is_dir() and looks_like_omop(path)):
        raise InputError("--dialect: the source is OMOP tables, and a dialect says how to read MEDS codes; leave it out")


def tokenize(
    events: Path,
    out: Path,
    settings: Settings,
    *,
    vocabulary: Path | None = None,
    tasks: Sequence[str | Path] = (),
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Events to a token store; fits the vocabulary on `train` unless one is given. What is true of each split stands in `tokenize.json`.

    Bounds of values that the library's tasks name, and those of `tasks` (names or files), are edges between bins, and their outcomes are what the
    time-to-event head learns.
    """
    from cehrxgpt.events import EventDataset
    from cehrxgpt.store.writer import write_store
    from cehrxgpt.tasks import load_task, resolve_all
    from cehrxgpt.timeline import Timeline, TimelineConfig

    if vocabulary is not None:
        plain = to_dict(TimelineConfig())
        unheard = [f"--{name.replace('_', '-')}" for name, value in settings.items() if value != plain[name]]
        if unheard:
            raise InputError(f"{', '.join(unheard)}: {vocabulary} was fitted already and is used as it is; leave them out, or leave out --vocabulary")
    dataset = EventDataset(events)
    refuse_existing(out, force=force, inputs=[events, *([vocabulary] if vocabulary else [])])
    asked = _with_own(tasks)
    if vocabulary is not None:
        timeline, notes = Timeline.load(vocabulary).on(dataset), []
    else:
        config = _with_edges(asked, dataset, from_dict(TimelineConfig, dict(settings), where="tokenize"))
        notes = _ontology_notes(dataset, config)
        sets = boundaries(asked) if config.roll_up or config.back_off else None
        timeline = Timeline.fit(dataset, split=s.TRAIN, config=config, concept_sets=sets)
        if config.values == "split" and not timeline.vocabulary.split_values:
            notes.append(
                f"--values split: no code has bins of numeric values from {config.min_subjects} training patients, so that nothing was split"
            )
    outcomes = _outcomes(asked, dataset, timeline.vocabulary)
    own = {load_task(task).name for task in tasks}
    notes += _unlearned(resolve_all([task for task in asked if task.name in own], dataset.codes), outcomes, timeline.vocabulary)
    facts = write_store(dataset, timeline, out, outcomes=outcomes, force=force, progress=progress)
    return {name: value for name, value in facts.items() if name != "splits"} | ({"notes": notes} if notes else {})


def _with_own(tasks: Sequence[str | Path]) -> list[Task]:
    """The library's tasks, and these."""
    from cehrxgpt.tasks import library, load_task

    return list({**library(), **{task.name: task for task in map(load_task, tasks)}}.values())


def _with_edges(tasks: Sequence[Task], dataset: EventDataset, config: TimelineConfig) -> TimelineConfig:
    """The settings with the bounds that the tasks name among the edges of value bins: no bin lies across one."""
    from cehrxgpt.tasks import resolve_all, value_edges

    asking = [task for task in tasks if any(task.valued())]
    edges = value_edges(resolve_all(asking, dataset.codes), dataset.codes["code"].to_list())
    merged = {code: tuple(sorted({*edges.get(code, ()), *config.fixed_edges.get(code, ())})) for code in sorted({*edges, *config.fixed_edges})}
    return replace(config, fixed_edges=merged)


def _outcomes(tasks: Sequence[Task], dataset: EventDataset, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Task -> the events that are its outcome, where it is a set of tokens and the vocabulary has some."""
    from cehrxgpt.forecast.cover import events_of
    from cehrxgpt.tasks import resolve_all

    found = {task.name: events_of(task, vocabulary) for task in resolve_all(tasks, dataset.codes)}
    return {name: events for name, events in found.items() if events}


def _unlearned(tasks: Sequence[Task], outcomes: Mapping[str, Sequence[int]], vocabulary: Vocabulary) -> list[str]:
    """A line for each of these tasks whose outcome the time-to-event head will not learn as such: why."""
    from cehrxgpt.tasks.tokens import HasCodes, why_no_tokens

    lines = []
    for task in tasks:
        if task.name not in outcomes:
            why = why_no_tokens(task, cast(HasCodes, vocabulary), by_stay=True) or "the vocabulary has no token of it"
            lines.append(f"{task.name}: the time-to-event head does not learn its outcome: {why}")
    return lines


def _ontology_notes(dataset: EventDataset, config: TimelineConfig) -> list[str]:
    """What of --roll-up and --back-off can do nothing with this data.

    Raises:
        InputError: either is asked for, and the data has no ontology at all.
    """
    import polars as pl

    if not (config.roll_up or config.back_off):
        return []
    codes = dataset.codes.filter(pl.col("parent_codes").list.len() > 0)
    if codes.is_empty():
        raise InputError(
            f"{dataset.root}: no code has an ancestor, so there is nothing to roll up or back off to; expected concept_ancestor among the OMOP "
            "tables, or parent_codes in the MEDS metadata/codes.parquet, at ingest"
        )
    above = set().union(*codes["parent_codes"].to_list())
    unknown = [code for code in config.roll_up if code not in above]
    return [f"--roll-up: {len(unknown)} of {len(config.roll_up)} codes are ancestor of no code here ({', '.join(unknown[:3])})"] if unknown else []


def read_codes(path: Path) -> list[str]:
    """Codes of a text file, one a line; what follows a blank and `#` is a comment.

    Raises:
        InputError: no such file, or no code in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file; expected one code a line, e.g. drug/1125315") from error
    codes = [code for line in lines if (code := line.split(" #")[0].strip()) and not code.startswith("#")]
    if not codes:
        raise InputError(f"{path}: no code in it; expected one a line, e.g. drug/1125315")
    return codes


def boundaries(tasks: Iterable[Task]) -> dict[str, Any]:
    """The concept sets of the tasks, as the timeline takes them: it may not know the tasks."""
    from cehrxgpt.timeline.back_off import ConceptSet

    return {
        f"{task.name}/{which}": ConceptSet(concepts.patterns, concepts.descendants) for task in tasks for which, concepts in task.concept_sets.items()
    }


def inspect(
    path: Path, *, subject: int | None = None, full: bool = False, visit: int | None = None, html: Path | None = None, force: bool = False
) -> tuple[list[str], dict[str, Any]]:
    """What an artefact is, or one subject's record (in a token store its tokens), as lines and as figures; `html` writes the record's page."""
    from cehrxgpt.report.text import View, inspect_artefact, printable, subject_page
    from cehrxgpt.store.format import META_FILE, TokenStore

    if subject is None:
        if full or visit is not None or html is not None:
            raise InputError("--full, --visit and --html show one subject; say whose record with --subject ID")
        return inspect_artefact(path)
    if html is not None:
        refuse_existing(html, force=force, inputs=[path])
        page = subject_page(path, subject)
        with atomic_path(html, force=force) as partial:
            partial.write_text(page, encoding="utf-8")
        said = f"{html}: the record of subject {subject} as one page; it is not for sharing"
        return [said], {"path": str(path), "subject": subject, "html": str(html)}
    if not (path / META_FILE).exists():
        return inspect_artefact(path, subject, View(full=full, visit=visit))
    from cehrxgpt.timeline.describe import describe, render
    from cehrxgpt.timeline.vocabulary import Vocabulary

    store = TokenStore(path)
    found = store.histories.subject_id == subject
    if not found.any():
        raise InputError(f"{path}: no subject {subject} among its {len(found):,}")
    lines = describe(store.histories, Vocabulary.load(path), int(found.argmax()))
    return [printable(line) for line in render(lines).splitlines()], {"path": str(path), "subject": subject, "tokens": len(lines)}

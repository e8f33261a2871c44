"""Entries from elsewhere: who entered a cohort and when, as events, so that the one labeler labels them.

A cohort table and a label file say what no event says. Their entries become events with the codes `INDEX` and `OUTCOME`, a task names those
codes as it names any other, and death, censoring, first onset and attrition are what they are for every task. Entries are never a part of the
record: observation neither begins nor ends with one, and no model sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import MismatchError, TaskError
from cehrxgpt.events import EventDataset, conform
from cehrxgpt.tasks.definition import ConceptSet, Index, Outcome, Task
from cehrxgpt.tasks.index import person_facts
from cehrxgpt.tasks.labeler import Labelled, label
from cehrxgpt.tasks.outcome import days

INDEX, OUTCOME = f"{s.ENTRY_PREFIX}index", f"{s.ENTRY_PREFIX}outcome"

Censoring = Literal["observation_period", "closed_world", "grace_days"]


@dataclass(frozen=True)
class Entries:
    """Who entered, and when.

    Attributes:
        name: what is entered, in task names and concept sets (`cohort_3`).
        source: where that is written, in messages.
        times: `subject_id`, `time`, `available_time`, `time_precision`; one row per subject and time.
        rows, subjects: as they were read, before rows that stand twice were made one.
    """

    name: str
    source: str
    times: pl.DataFrame
    rows: int
    subjects: int

    @classmethod
    def of(cls, name: str, source: str, times: pl.DataFrame) -> Entries:
        """From rows as they were read."""
        distinct = times.unique(["subject_id", "time"]).sort("subject_id", "time")
        return cls(name, source, distinct, times.height, times["subject_id"].n_unique())

    def events(self, code: str) -> pl.DataFrame:
        """The entries as an EventTable."""
        return conform(self.times.with_columns(pl.lit(code).alias("code")))


def asked_of(task: Task, *, index: Entries | None = None, outcome: Entries | None = None) -> Task:
    """The task with its index or its outcome, or both, replaced by entries; all else stays as it is.

    With another outcome it is another question, so its name says so; with another index it is asked of other people at other times, and
    forecasts look for the same outcome as before.

    Raises:
        TaskError: the task is about the index stay itself, which entries do not have, or its outcome has no window.
    """
    sets, name = dict(task.concept_sets), task.name
    if task.in_stay:
        raise TaskError(f"task {task.name} is about the index stay itself; index times and outcomes from elsewhere say nothing of a stay")
    parts: dict[str, Any] = {}
    if index is not None:
        sets[f"index_{index.name}"] = ConceptSet(codes=(INDEX,), descendants=False)
        parts["index"] = Index(concepts=f"index_{index.name}")
    if outcome is not None:
        sets[f"outcome_{outcome.name}"] = ConceptSet(codes=(OUTCOME,), descendants=False)
        parts["outcome"] = Outcome(concepts=f"outcome_{outcome.name}")
        name = f"{name}_to_{outcome.name}"
    used = _sets_of(parts.get("index", task.index), parts.get("outcome", task.outcome), task)
    return replace(task, name=name, concept_sets={key: value for key, value in sets.items() if key in used}, **parts)


def _sets_of(index: Index, outcome: Outcome, task: Task) -> set[str | None]:
    """Names of the concept sets that a task with this index and outcome would use: a task refuses those it does not use."""
    leaves = (leaf.concepts for one in (outcome, *task.competing) for _, leaf in one.leaves())
    return {index.concepts, *index.also, index.contains, *leaves, *(one.concepts for one in (*task.inclusion, *task.exclusion))}


def _frames(events: EventDataset | pl.DataFrame, split: str | None) -> Iterator[pl.DataFrame]:
    if isinstance(events, pl.DataFrame):
        yield events
    else:
        yield from (frame for _, frame in events.iter_shards(split))


def _people(events: EventDataset | pl.DataFrame, split: str | None) -> pl.DataFrame:
    """`subject_id`, `observed_from`, `observed_until` of everybody; the latter are null where nothing has a time."""
    parts = []
    for frame in _frames(events, split):
        facts = person_facts(frame).select("subject_id", "observed_from", "observed_until")
        parts.append(frame.select(pl.col("subject_id").unique()).join(facts, on="subject_id", how="left"))
    return pl.concat(parts)


def _known(entries: Entries, people: pl.DataFrame) -> pl.DataFrame:
    """The entries of subjects of the data, with the bounds of their observation.

    Raises:
        MismatchError: there are none.
    """
    known = entries.times.join(people, on="subject_id", how="inner", maintain_order="left")
    if known.is_empty():
        first = ", ".join(map(str, entries.times["subject_id"].unique().sort().head(3).to_list()))
        raise MismatchError(
            f"{entries.source}: none of its {entries.subjects} subjects is in the data (first: {first}); expected the subject_id that ingest kept"
        )
    return known


def _index_steps(entries: Entries, known: pl.DataFrame) -> tuple[list[tuple[str, int, int]], pl.DataFrame]:
    """What is left of the index entries after each step, and the entries that are left."""
    begun = known.filter(pl.col("available_time") >= pl.col("observed_from"))
    steps = [
        (f"entries of {entries.name}", entries.subjects, entries.rows),
        ("each once", entries.subjects, entries.times.height),
        ("subjects of the data", known["subject_id"].n_unique(), known.height),
        ("since the record begins", begun["subject_id"].n_unique(), begun.height),
    ]
    return steps, begun


def _outcome_note(entries: Entries, known: pl.DataFrame, *, late: int) -> str:
    """The outcome's entries, and why some do not count, in words."""
    strangers = entries.times.height - known.height
    lost = {"that stand twice": entries.rows - entries.times.height, "of subjects not in the data": strangers, "after observation ends": late}
    told = [f"{count:,} {why}" for why, count in lost.items() if count]
    return f"outcome {entries.name}: {entries.rows:,} entries" + (f", without {', '.join(told)}" if told else "")


def _insert(attrition: list[dict[str, Any]], steps: list[tuple[str, int, int]], note: str) -> list[dict[str, Any]]:
    """The attrition with the entries' steps before the labeler's own; the first step stays, and carries the note as well."""
    first = attrition[0] | {"note": "; ".join(filter(None, (note, attrition[0]["note"])))}
    if not steps:
        return [first, *attrition[1:]]
    result, before = [first], None
    for step, subjects, rows in steps:
        dropped = (0, 0) if before is None else (before[0] - subjects, before[1] - rows)
        result.append({"step": step, "subjects": subjects, "rows": rows, "dropped_subjects": dropped[0], "dropped_rows": dropped[1], "note": ""})
        before = (subjects, rows)
    for entry in attrition[1:2]:
        lost = {"dropped_subjects": steps[-1][1] - entry["subjects"], "dropped_rows": steps[-1][2] - entry["rows"]}
        result.append(entry | lost)
    return [*result, *attrition[2:]]


def label_entries(
    events: EventDataset | pl.DataFrame,
    task: Task,
    *,
    index: Entries | None = None,
    outcome: Entries | None = None,
    split: str | None = None,
    censoring: Censoring | None = None,
    grace_days: int | None = None,
) -> Labelled:
    """Label a data set for a task whose index or outcome comes from elsewhere.

    Args:
        events: a data set, or one EventTable.
        task: as `asked_of` made it from the same entries.
        index, outcome: the entries that take the place of the task's own.
        split, censoring, grace_days: as for `label`.

    Returns:
        What `label` returns. Entries of subjects that the data lacks, rows that stand twice, index entries from before the record begins and
        outcome entries from after observation ends (unless silence means no) count for nothing, and are counted in the attrition.

    Raises:
        MismatchError: none of the entries' subjects is in the data.
    """
    people = _people(events, split)
    frames: list[pl.DataFrame] = []
    steps: list[tuple[str, int, int]] = []
    note = ""
    if index is not None:
        steps, kept = _index_steps(index, _known(index, people))
        frames.append(replace(index, times=kept.drop("observed_from", "observed_until")).events(INDEX))
    if outcome is not None:
        known = _known(outcome, people)
        policy, grace = (censoring, grace_days or 0) if censoring is not None else (task.censoring, task.grace_days)
        ended = pl.col("time") > pl.col("observed_until") + days(grace if policy == "grace_days" else 0)
        kept = known if policy == "closed_world" else known.filter(~ended.fill_null(True))
        note = _outcome_note(outcome, known, late=known.height - kept.height)
        frames.append(replace(outcome, times=kept.drop("observed_from", "observed_until")).events(OUTCOME))
    labelled = label(events, task, split=split, censoring=censoring, grace_days=grace_days, entries=pl.concat(frames))
    return replace(labelled, attrition=_insert(labelled.attrition, steps, note))

"""Who is in and who is not: from rows read to events, and for each task from subjects to labels, as flow diagrams and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.report.flow import End, Step, flow
from cehrxgpt.report.markup import Section, details, figure, is_number, join, paragraph, readable, table, tag
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.suppress import Teller

_END_NAMES = {"positive": ("Outcome: yes", "c2"), "negative": ("Outcome: no", "c1"), "unknown": ("Not known", "soft")}
_END_WORDS = {"unknown": "observation ended before the outcome could be told"}
_NO_STEP = ("subjects in the data", "asked of this data")
_WORDS = {
    "alive at the prediction time": "dead by the prediction time",
    "under observation at the prediction time": "not under observation then",
    "with an end": "without a known end of the stay",
    "one at a time": "asked at the same moment as another stay",
    "the first of each subject": "after the first of the same subject",
    "the last of each subject": "before the last of the same subject",
    "still going on when it is known": "over by the time the stay is known",
}
_PREFIXES = (
    ("history of ", "with a history of under "),
    ("included: ", "without "),
    ("excluded: ", "with "),
    ("discharged to ", "not discharged to "),
    ("contains: ", "without, in the stay: "),
    ("also: ", "without "),
    ("first onset: no ", "with "),
    ("recurrence: ", "without "),
    ("value: ", "without "),
)
_OUTCOMES = ("positive", "negative", "unknown")


def section(run: RunFolder) -> Section:
    """The chapter.

    Raises:
        MissingInputs: neither an ingest account nor labels.
    """
    parts: list[Any] = []
    children: list[tuple[str, str]] = []
    ingest = run.json("events/ingest.json")
    if ingest is not None and (steps := data_steps(ingest, run.json("timeline/tokenize.json"), run.tell)):
        children.append(("flow-data", "From rows to events"))
        chart = flow(steps, (), "Flow of rows: " + "; ".join(" ".join((step.title, *step.lines, step.side_title, *step.side)) for step in steps))
        parts += [tag("h3", "From rows to events", id="flow-data"), figure(chart)]
    found = [task for task in (task_counts(run, name) for name in run.stems("labels")) if task is not None]
    for task in found:
        identifier = f"flow-{task.task}"
        children.append((identifier, readable(task.task)))
        parts += [tag("h3", readable(task.task), id=identifier), _task(task)]
    if found:
        children.append(("labels", "Labels by split"))
        parts += [tag("h3", "Labels by split", id="labels"), _label_table(found)]
    if not parts:
        raise MissingInputs("events/ingest.json or labels/")
    lead = paragraph("Who is in, who was left out, and why.")
    return Section("attrition", "Attrition", join([lead, *parts]), tuple(children))


# -- rows to events ---------------------------------------------------------------------------------------------------------------


def data_steps(ingest: dict[str, Any], tokenized: dict[str, Any] | None, tell: Teller) -> list[Step]:
    """Rows read, left out by reason, kept; events; what the model reads of them. Empty where the account names no table."""
    tables = ingest.get("tables")
    accounts = [one for one in tables.values() if isinstance(one, dict)] if isinstance(tables, dict) else []
    read, kept = (sum(one[key] for one in accounts if is_number(one.get(key))) for key in ("read", "kept"))
    if not read:
        return []
    reasons: Counter[str] = Counter()
    for one in accounts:
        reasons.update({name: n for name, n in (one.get("dropped") or {}).items() if is_number(n)} if isinstance(one.get("dropped"), dict) else {})
    side = tuple(f"{tell(n)} {readable(reason)}" for reason, n in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])) if n)
    share = tell.share(read - kept, read)
    left = f"Left out{f': {share} of rows' if share else ''}" if side else ""
    steps = [Step("Rows of the source", (f"{tell(read)} in {len(accounts)} {'table' if len(accounts) == 1 else 'tables'}",), left, side)]
    events, subjects = (ingest.get(key) or {} for key in ("events", "subjects"))
    derived = sum(n for one in (ingest.get("derived") or {}).values() if isinstance(one, dict) for n in one.values() if is_number(n))
    steps.append(Step("Rows kept", (tell(kept), *([f"and {tell(derived)} rows derived from them"] if derived else []))))
    total = events.get("total") if isinstance(events, dict) else None
    if is_number(total):
        people = tell(subjects.get("total")) if isinstance(subjects, dict) else ""
        steps.append(Step("Events", (f"{tell(total)}" + (f" of {people} subjects" if people else ""),)))
    if tokenized is not None and is_number(tokenized.get("events")) and is_number(tokenized.get("events_dropped")):
        steps += _token_steps(steps.pop(), total, tokenized, tell)
    return steps


_HEAD = "births, sex, race, and when observation starts and ends: told by a history’s head and its length"


def _token_steps(before: Step, total: Any, tokenized: dict[str, Any], tell: Teller) -> list[Step]:
    """The box of all events with who is left out at its side, then what is written as tokens, then what the model reads."""
    events, unknown = tokenized["events"], tokenized["events_dropped"]
    steps = [before]
    if is_number(total) and total > events:
        steps = [
            replace(before, side_title="Not tokens of their own", side=(f"{tell(total - events)}: {_HEAD}",)),
            Step("To be written as tokens", (tell(events),)),
        ]
    tokens = f"{tell(tokenized['tokens'])} tokens" if is_number(tokenized.get("tokens")) else ""
    after = Step("Events the model reads", tuple(line for line in (tell(events - unknown), tokens) if line))
    if not unknown:
        return [*steps, after]
    share = tell.share(unknown, events)
    side = (tell(unknown) + (f" ({share})" if share else ""),)
    return [*steps[:-1], replace(steps[-1], side_title="Codes outside the vocabulary", side=side), after]


# -- tasks ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskCounts:
    """One task's counts from subjects to labels.

    Attributes:
        reasons: the steps between the index and the labels, as they are named in the account; key `reason i`.
        splits: in order; keys `split outcome`, `split rows`, `split subjects`.
        absent: what the data lacks of what the task asks for; empty where it lacks nothing.
        tell: how counts are told.
    """

    task: str
    index: str
    reasons: tuple[str, ...]
    splits: tuple[str, ...]
    counts: Mapping[str, int]
    absent: str
    tell: Teller

    def say(self, key: str) -> str:
        """A count as the page tells it."""
        return self.tell(self.counts[key])


def task_counts(run: RunFolder, task: str) -> TaskCounts | None:
    """Counts of `labels/<task>.parquet` and its account; None where there is no such table."""
    labels = run.labels(task)
    if labels is None:
        return None
    steps = [step for step in run.json_rows(f"labels/{task}.attrition.json") if isinstance(step.get("step"), str)]
    by_split = _by_split(run, labels)
    counts = {f"{split} {key}": value for split, row in by_split.items() for key, value in row.items()}
    counts |= {f"all {key}": sum(row[key] for row in by_split.values()) for key in (*_OUTCOMES, "rows", "subjects")}
    reasons = _reasons(steps, counts)
    index = next((str(step["step"]) for step in steps if str(step["step"]).startswith("index")), "")
    absent = next((str(step.get("note") or "its concepts") for step in steps if step["step"] == "asked of this data"), "")
    return TaskCounts(task, index, reasons, tuple(by_split), counts, absent, run.tell)


def _reasons(steps: list[dict[str, Any]], counts: dict[str, int]) -> tuple[str, ...]:
    """Add the counts above the labels; returns the names of the steps at which rows were left out."""
    if steps and steps[0]["step"] == "subjects in the data" and is_number(steps[0].get("subjects")):
        counts["subjects"] = steps[0]["subjects"]
    index = next((place for place, step in enumerate(steps) if str(step["step"]).startswith("index")), None)
    if index is None:
        return ()
    counts |= {"index rows": steps[index].get("rows") or 0, "index subjects": steps[index].get("subjects") or 0}
    if "subjects" in counts:
        counts["no index"] = counts["subjects"] - counts["index subjects"]
    later = [step for step in steps[index + 1 :] if step["step"] not in _NO_STEP]
    before = [steps[index], *later]
    counts |= {
        f"reason {place}": (one.get("rows") or 0) - (step.get("rows") or 0) for place, (one, step) in enumerate(zip(before, later, strict=False))
    }
    return tuple(str(step["step"]) for step in later)


def _by_split(run: RunFolder, labels: pl.DataFrame) -> dict[str, dict[str, int]]:
    """split -> positive, negative, unknown, rows, subjects; one split "all subjects" where the data names none."""
    splits = run.parquet("events/metadata/subject_splits.parquet", ("subject_id", "split"))
    if splits is None:
        labels = labels.with_columns(pl.lit("all subjects").alias("split"))
    else:
        known = splits.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String)).unique("subject_id")
        labels = labels.join(known, on="subject_id", how="left").with_columns(pl.col("split").fill_null("none"))
    value = pl.col("boolean_value")
    counted = labels.group_by("split").agg(
        value.fill_null(False).sum().alias("positive"), (~value.fill_null(True)).sum().alias("negative"), value.is_null().sum().alias("unknown"),
        pl.len().alias("rows"), pl.col("subject_id").n_unique().alias("subjects"),
    )  # fmt: skip
    order = {split: place for place, split in enumerate(s.SPLITS)}
    rows = sorted(counted.to_dicts(), key=lambda row: (order.get(row["split"], 9), row["split"]))
    empty = dict.fromkeys((*_OUTCOMES, "rows", "subjects"), 0)
    return {row.pop("split"): row for row in rows} or {"all subjects": empty}


def task_flow(task: TaskCounts) -> tuple[list[Step], list[End]]:
    """The diagram's boxes; a step at which nobody was left out has no line."""
    known, say, steps = task.counts, task.say, []
    if "subjects" in known:
        missing = task.absent or "without an index event"
        side = (f"{say('no index')} {missing}",) if known.get("no index") else (missing,) if task.absent else ()
        steps.append(Step("Subjects in the data", (say("subjects"),), "Not asked about" if side else "", side))
    if "index rows" in known:
        what = readable(task.index.removeprefix("index: "))
        lines = (what, f"{say('index rows')} events of {say('index subjects')} subjects")
        lost = tuple(f"{say(f'reason {place}')} {left_out(name)}" for place, name in enumerate(task.reasons) if known[f"reason {place}"])
        steps.append(Step("Index events", lines, "Left out" if lost else "", lost))
    steps.append(Step("Prediction times", (f"{say('all rows')} of {say('all subjects')} subjects",)))
    ends = [_end(task, key) for key in _OUTCOMES] if known["all rows"] else []
    return steps, ends


def _end(task: TaskCounts, key: str) -> End:
    title, colour = _END_NAMES[key]
    share = task.tell.share(task.counts[f"all {key}"], task.counts["all rows"])
    words = (_END_WORDS[key],) if key in _END_WORDS and task.counts[f"all {key}"] else ()
    return End(title, (task.say(f"all {key}") + (f" ({share})" if share else ""), *words), colour)


def left_out(step: str) -> str:
    """What a step of the account says of those it left out."""
    if step in _WORDS:
        return _WORDS[step]
    if step.startswith("still going on ") and step.endswith(" after its start"):
        return f"in a stay that was over within {step.removeprefix('still going on ').removesuffix(' after its start')}"
    for prefix, words in _PREFIXES:
        if step.startswith(prefix):
            return words + readable(step.removeprefix(prefix))
    return "at: " + readable(step)


def _task(task: TaskCounts) -> Any:
    steps, ends = task_flow(task)
    words = "; ".join(" ".join((step.title, *step.lines, step.side_title, *step.side)) for step in steps)
    words += "; " + "; ".join(f"{end.title} {' '.join(end.lines)}" for end in ends)
    say, known = task.say, task.counts
    rows = [["Subjects in the data", say("subjects"), ""]] if "subjects" in known else []
    if "index rows" in known:
        rows.append([readable(task.index), say("index subjects"), say("index rows")])
        rows += [[f"left out: {left_out(name)}", "", say(f"reason {place}")] for place, name in enumerate(task.reasons)]
    rows.append(["Labels", say("all subjects"), say("all rows")])
    same = details("The same as a table", table(["Step", "Subjects", "Rows"], rows, caption=f"Attrition of {readable(task.task)}"))
    return join([figure(flow(steps, ends, f"Flow diagram of {readable(task.task)}: {words}")), same])


def _label_table(tasks: list[TaskCounts]) -> Any:
    rows = []
    for task in tasks:
        for place, split in enumerate(task.splits):
            counts = {name: task.counts[f"{split} {name}"] for name in ("rows", "subjects", *_OUTCOMES)}
            share = task.tell.share(counts["positive"], counts["positive"] + counts["negative"])
            rows.append([readable(task.task) if place == 0 else "", readable(split), *map(task.tell, counts.values()), share or "–"])
    heads = ["Task", "Split", "Rows", "Subjects", "Outcome: yes", "Outcome: no", "Not known", "Share of yes"]
    note = "Not known: observation ended before the outcome could be told; such rows are neither. The share is of rows whose outcome is known."
    return join([paragraph(note), table(heads, rows, caption="Label rows by task and split", left=2, class_="grouped")])

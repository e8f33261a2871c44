"""Findings: what was found, where, how many of how many, why it matters, what to do. The worst first.

Every check is a row of `rules.RULES` (a part of a whole against thresholds) or a function below (the splits, the tasks, the
calendar). A check that finds nothing is kept by name, because "nothing found" means something only where it was looked for.
The kinds follow Kahn's framework, as the OHDSI Data Quality Dashboard does: completeness, conformance, plausibility; a fourth
asks whether the data is fit for the tasks of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cehrxgpt import schema as s
from cehrxgpt.report.markup import is_number, readable
from cehrxgpt.report.quality.evidence import HIGH, LOW, MEDIUM, SEVERITIES, Evidence, Finding, Task
from cehrxgpt.report.quality.facts import Facts
from cehrxgpt.report.quality.rules import RULES

_FEW_SUBJECTS, _TELLING_POSITIVES, _TELLING_HELD_OUT = 1000, 20, 100


@dataclass(frozen=True)
class Verdict:
    """The findings, worst first, and the names of the checks that found nothing."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]


def judge(evidence: Evidence) -> Verdict:
    """All checks that the evidence allows."""
    findings: list[Finding] = []
    passed: list[str] = []
    for rule in RULES:
        part = rule.part(evidence)
        if part is None or not part.of:
            continue
        severity = rule.severity(part)
        if severity is None:
            passed.append(rule.title)
            continue
        findings.append(Finding(severity, rule.kind, rule.title, rule.why, rule.advice, part.count, part.of, rule.unit, part.where))
    for name, found in _others(evidence):
        passed += [name] if found is None else []
        findings += [found] if found is not None else []
    findings.sort(key=lambda one: (SEVERITIES.index(one.severity), -one.share, one.title))
    return Verdict(tuple(findings), tuple(passed))


def _others(evidence: Evidence) -> Iterator[tuple[str, Finding | None]]:
    """(name of the check, finding or None)."""
    if evidence.facts is not None:
        yield "The population is large enough to learn from", _size(evidence.facts)
        yield "Splits are there and large enough", _splits(evidence.facts)
        yield "Visits were recovered", _no_visits(evidence.facts)
    if evidence.ingest:
        yield "Visits are of several classes", _one_class(evidence.ingest)
        yield "The calendar is the true one", _calendar(evidence.ingest)
        yield "The data has observation periods of its own", _observation(evidence.ingest)
        yield "No table was lost whole", _notes(evidence.ingest)
        yield "The dates of every table can be read", _dates(evidence.ingest)
    for task in evidence.tasks:
        yield f"The data can answer {readable(task.name)}", _task(task)


def _size(facts: Facts) -> Finding | None:
    if facts.subjects >= _FEW_SUBJECTS:
        return None
    why = "A model trained from nothing on so few people learns little more than the commonest codes; intervals of all metrics will be wide."
    advice = "Use the data to adapt a model that was trained elsewhere (cehrxgpt adapt), or ingest more of it."
    return Finding(MEDIUM, "fitness", "Few subjects", why, advice, facts.subjects, None, "subjects")


def _splits(facts: Facts) -> Finding | None:
    missing = [split for split in s.SPLITS if not facts.splits.get(split)]
    few = [split for split in (s.TUNING, s.HELD_OUT) if 0 < facts.splits.get(split, 0) < _TELLING_HELD_OUT]
    if not missing and not few:
        return None
    advice = "Give other shares under “splits” when you ingest, or pool data; the model learns from train, stops by tuning, is judged on held_out."
    if missing:
        title = f"No subject in {' and '.join(map(readable, missing))}"
        return Finding(HIGH, "fitness", title, "Without it the model cannot be fitted, stopped or judged fairly.", advice)
    counted = tuple((readable(split), facts.splits[split]) for split in few)
    why = "Metrics of so few people have intervals so wide that methods cannot be told apart."
    return Finding(MEDIUM, "fitness", "A small split", why, advice, where=counted, unit="subjects")


def _no_visits(facts: Facts) -> Finding | None:
    if facts.visits or not facts.clinical:
        return None
    why = "No task that starts at an admission or a discharge can be asked, and no stay has hours inside."
    return Finding(HIGH, "completeness", "No visit was recovered", why, "Check that visit_occurrence belongs to this extract and has dates.")


def _one_class(ingest: dict[str, Any]) -> Finding | None:
    visits = {name: n for name, n in (ingest.get("visits_recovered") or {}).items() if name != "total" and is_number(n)}
    total = sum(visits.values())
    if total < 100 or max(visits.values()) < 0.99 * total:
        return None
    name = max(visits, key=lambda key: visits[key])
    why = f"Records are mostly outpatient visits. Where all are {name}, the concept often stands for something else, and rates per visit mislead."
    advice = "Look up what visit_concept_id stands for at the source; a stay of no hours is hardly an admission."
    return Finding(MEDIUM, "plausibility", f"Nearly every visit is {name}", why, advice, visits[name], total, "visits")


def _calendar(ingest: dict[str, Any]) -> Finding | None:
    if ingest.get("calendar") != "shifted":
        return None
    why = "The release moved each person's dates to hide them. Calendar years, seasons and trends mean nothing; intervals within a person hold."
    return Finding(LOW, "plausibility", "Dates are shifted", why, "Nothing to do: the model is told no year. Do not split by time or plot by year.")


def _observation(ingest: dict[str, Any]) -> Finding | None:
    policy = str(ingest.get("observation_policy") or "")
    if "first_to_last" not in policy:
        return None
    title = "Some subjects have no observation period" if "," in policy else "The data has no observation periods"
    why = "Follow-up was taken from the first to the last event. Who stays well and stays away looks unobserved, so risks come out too high."
    return Finding(MEDIUM, "completeness", title, why, "Supply observation_period (enrolment, or the extract's start and end) and ingest again.")


def _notes(ingest: dict[str, Any]) -> Finding | None:
    notes = [str(note) for note in ingest.get("notes") or [] if str(note).endswith("rows were dropped")]
    if not notes:
        return None
    why = "A table whose rows are all set aside is often one whose dates, keys or names were not understood."
    advice = "See the reason under “What the ingest kept”; some reasons are as they should be (a row that only ends a visit)."
    return Finding(LOW, "conformance", "A table was set aside whole", why, advice, where=tuple((note, None) for note in notes[:4]))


def _dates(ingest: dict[str, Any]) -> Finding | None:
    tables = ingest.get("unreadable_dates")
    listed = [(table, one) for table, one in tables.items() if isinstance(one, dict)] if isinstance(tables, dict) else []
    pairs = [(f"{table}.{column}", pair) for table, one in listed for column, pair in one.items() if isinstance(pair, list) and len(pair) == 2]
    columns = [(name, bad, there) for name, (bad, there) in pairs if is_number(bad) and is_number(there) and there]
    if not columns:
        return None
    columns.sort(key=lambda column: (-column[1] / column[2], column[0]))
    bad, there = sum(column[1] for column in columns), sum(column[2] for column in columns)
    severity = HIGH if columns[0][1] * 2 >= columns[0][2] else MEDIUM
    why = "They were set to null. A row without any date is left out; one with another date keeps that, and a visit or drug without an end is open."
    advice = "Write the dates of the columns named as 2011-05-17 (or 2011-05-17 08:30:00) and ingest again; the mended data may say something else."
    title = "Many dates of a table cannot be read"
    return Finding(severity, "conformance", title, why, advice, bad, there, "dates", tuple((name, n) for name, n, _ in columns[:3]))


def _task(task: Task) -> Finding | None:
    name = readable(task.name)
    if task.absent or not task.rows:
        why = "No label could be made, so nothing is said of this task. It is not that nobody has the outcome: it cannot be told."
        advice = "Choose another task, or map the source's codes to the concepts that it names (cehrxgpt tasks show)."
        return Finding(HIGH, "fitness", f"{name}: the data cannot answer it", why, advice, where=((task.absent, None),) if task.absent else ())
    known = task.rows - task.unknown
    if not task.positive or task.positive == known:
        which = "nobody has the outcome" if not task.positive else "everybody has the outcome"
        why = "Nothing can be ranked or learned; AUROC is undefined."
        advice = "Check that the outcome's concepts are those the source uses, and that its table is in the extract."
        return Finding(HIGH, "fitness", f"{name}: {which}", why, advice, task.positive, known, "rows with a known outcome")
    if task.held_out_positive is not None and task.held_out_positive < _TELLING_POSITIVES:
        why = f"Fewer than {_TELLING_POSITIVES} outcomes among the held-out subjects: AUROC and calibration are little better than guesses."
        advice = "Hold out a larger share, pool data, or judge by cross-validation outside this program; do not compare methods on it."
        return Finding(MEDIUM, "fitness", f"{name}: few outcomes to judge by", why, advice, task.held_out_positive, None, "held-out outcomes")
    if task.unknown > 0.2 * task.rows:
        why = "Their observation ended before the outcome could be told. If leaving has to do with the outcome, what is known is not typical."
        advice = "Compare who is known with who is not; give “grace_days” or another censoring in the task file if the periods are too strict."
        severity = MEDIUM if task.unknown > 0.4 * task.rows else LOW
        return Finding(severity, "fitness", f"{name}: many outcomes are not known", why, advice, task.unknown, task.rows, "label rows")
    return None

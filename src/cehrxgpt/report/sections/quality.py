"""Data-quality findings, ranked: what, where, how many of how many, why it matters, what to do."""

from __future__ import annotations

from typing import Any

from cehrxgpt import schema as s
from cehrxgpt.report import suppress
from cehrxgpt.report.markup import Markup, Section, details, join, note, paragraph, table, tag
from cehrxgpt.report.quality.evidence import KINDS, SEVERITIES, Evidence, Finding, Task
from cehrxgpt.report.quality.facts import account, gather
from cehrxgpt.report.quality.findings import Verdict, judge
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.sections.attrition import task_counts

_MARKS = {"high": "▲", "medium": "◆", "low": "●"}
_MEANINGS = {
    "high": "a result that rests on it is wrong or cannot be had",
    "medium": "a result may be biased or imprecise; say so where it is told",
    "low": "worth knowing",
}


def evidence(run: RunFolder) -> Evidence:
    """What the run's folder offers to judge by."""
    tasks = []
    for name in run.stems("labels"):
        found = task_counts(run, name)
        if found is None:
            continue
        counts = found.said.counts
        held_out = counts.get(f"{s.HELD_OUT} positive", 0) if s.HELD_OUT in found.splits else None
        tasks.append(Task(name, counts["all rows"], counts["all positive"], counts["all unknown"], held_out, found.absent))
    return Evidence(gather(run), account(run), run.json("timeline/tokenize.json") or {}, tuple(tasks))


def section(run: RunFolder) -> Section:
    """The chapter.

    Raises:
        MissingInputs: neither events nor an account of the ingest.
    """
    found = evidence(run)
    if found.facts is None and not found.ingest:
        raise MissingInputs("events/ or events/ingest.json")
    verdict = judge(found)
    parts: list[Any] = [_summary(verdict)]
    parts += [tag("ul", *(_card(one) for one in verdict.findings), class_="findings")] if verdict.findings else [note("Nothing was found.")]
    if verdict.passed:
        listed = tag("ul", *(tag("li", name) for name in verdict.passed))
        parts.append(details(f"{len(verdict.passed)} checks that found nothing worth telling", listed))
    counted = {severity: sum(one.severity == severity for one in verdict.findings) for severity in SEVERITIES}
    return Section("quality", "Data quality", join(parts), figures={"findings": counted})


def _summary(verdict: Verdict) -> Markup:
    checks = len(verdict.findings) + len(verdict.passed)
    rows = []
    for kind in KINDS:
        found = [one.severity for one in verdict.findings if one.kind == kind]
        rows.append([kind, *(str(found.count(severity)) for severity in SEVERITIES)])
    rows.append(["all", *(str(sum(one.severity == severity for one in verdict.findings)) for severity in SEVERITIES)])
    meanings = "; ".join(f"{_MARKS[severity]} {severity}: {_MEANINGS[severity]}" for severity in SEVERITIES)
    lead = paragraph(f"{checks} checks; {len(verdict.findings)} found something. {meanings}.")
    return join([lead, table(["Kind", *SEVERITIES], rows, caption="Findings by kind and severity", class_="sum")])


def how_many(one: Finding) -> str:
    """How many of how many, small counts hidden."""
    if one.count is None:
        return ""
    if one.of is None:
        return f"{suppress.plain(one.count)} {one.unit}"
    inside, _ = suppress.parts([one.count, one.of - one.count])
    share = suppress.share(one.count, one.of)
    return f"{inside} of {one.of:,} {one.unit}" + (f" ({share})" if share else "")


def _where(one: Finding) -> str:
    numbers = [n for _, n in one.where if n is not None]
    told = suppress.parts(numbers) if numbers and sum(numbers) == one.count else [suppress.plain(n) for n in numbers]
    said = iter(told)
    return "; ".join(name if n is None else f"{name} {next(said)}" for name, n in one.where)


def _card(one: Finding) -> Markup:
    head = [tag("span", f"{_MARKS[one.severity]} {one.severity}", class_=f"severity {one.severity}"), " ", tag("b", one.title)]
    counted = how_many(one)
    lines: list[Any] = [tag("p", *head, *([": ", counted] if counted else []), class_="head")]
    if where := _where(one):
        lines.append(tag("p", f"Where: {where}.", class_="note"))
    lines.append(tag("p", one.why, " ", tag("b", "What to do: "), one.advice))
    return tag("li", *lines, class_=one.severity)

"""Data-quality findings, ranked: what, where, how many of how many, why it matters, what to do."""

from __future__ import annotations

from typing import Any

from cehrxgpt import schema as s
from cehrxgpt.report.markup import Markup, Section, details, join, note, paragraph, table, tag
from cehrxgpt.report.quality.evidence import KINDS, SEVERITIES, Evidence, Finding, Task
from cehrxgpt.report.quality.facts import account, gather
from cehrxgpt.report.quality.findings import Verdict, judge
from cehrxgpt.report.run import KEY, RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.sections.attrition import task_counts
from cehrxgpt.report.suppress import Teller

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
        counts = found.counts
        held_out = counts.get(f"{s.HELD_OUT} positive", 0) if s.HELD_OUT in found.splits else None
        tasks.append(Task(name, counts["all rows"], counts["all positive"], counts["all unknown"], held_out, found.absent, _judged(run, name)))
    return Evidence(gather(run), account(run), run.json("timeline/tokenize.json") or {}, tuple(tasks))


def _judged(run: RunFolder, task: str) -> tuple[int, int] | None:
    """Rows with and without the outcome among those that were forecast: what the methods are judged by; None without a forecast."""
    asked, labels = run.parquet(f"forecast/{task}.parquet", KEY), run.labels(task)
    if asked is None or labels is None:
        return None
    value = labels.join(asked.select(KEY).unique(), on=KEY, how="semi")["boolean_value"].drop_nulls()
    return int(value.sum()), int((~value).sum())


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
    parts += [tag("ul", *(_card(one, run.tell) for one in verdict.findings), class_="findings")] if verdict.findings else [note("Nothing was found.")]
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


def how_many(one: Finding, tell: Teller) -> str:
    """How many of how many."""
    if one.count is None:
        return ""
    say = tell if one.of_people else Teller(exact=True)
    if one.of is None:
        return f"{say(one.count)} {one.unit}"
    share = say.share(one.count, one.of)
    return f"{say(one.count)} of {say(one.of)} {one.unit}" + (f" ({share})" if share else "")


def _card(one: Finding, tell: Teller) -> Markup:
    head = [tag("span", f"{_MARKS[one.severity]} {one.severity}", class_=f"severity {one.severity}"), " ", tag("b", one.title)]
    counted = how_many(one, tell)
    lines: list[Any] = [tag("p", *head, *([": ", counted] if counted else []), class_="head")]
    if where := "; ".join(tell.text(name) if n is None else f"{name} {tell(n)}" for name, n in one.where):
        lines.append(tag("p", f"Where: {where}.", class_="note"))
    lines.append(tag("p", one.why, " ", tag("b", "What to do: "), one.advice))
    return tag("li", *lines, class_=one.severity)

"""One subject's record as a page of its own: an explicit act, of people who may see the record. The shared report never does this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.report.document import document
from cehrxgpt.report.history import History, labs, lanes, read_history
from cehrxgpt.report.history_chart import INTENSIVE, LABS, LANES, VISIT_COLOURS, drawn_edges, history_chart, time_axis
from cehrxgpt.report.history_tables import codes_table, day, days_table, labs_table, visits_table
from cehrxgpt.report.markup import Markup, Section, count, figure, join, legend, note, paragraph, tag, tiles
from cehrxgpt.report.svg import responsive

Edges = Mapping[tuple[str, str | None], Sequence[float]]


def patient_page(events: pl.DataFrame, subject: int, names: Mapping[str, str], edges: Edges, *, source: str, simulated: bool = False) -> str:
    """The page as text.

    Args:
        events: rows of an EventTable; only those of `subject` are used.
        names: code -> readable name.
        edges: (code, unit) -> edges of the value bins, from `history.bin_edges`.
        source: the name of the data set.
        simulated: nobody real stands behind it, and the page does not warn.
    """
    history = read_history(events, subject, names)
    kicker = f"from {source}" + (", simulated" if simulated else "")
    head: list[Any] = [
        tag("p", kicker, class_="kicker"),
        tag("h1", f"Subject {subject}", id="summary"),
        paragraph(*who(history, names, history.last)),
    ]
    if not simulated:
        warning = "This page shows one person’s record with its dates. Treat it as you would treat the record itself; it is not for sharing."
        head.append(tag("div", paragraph(tag("b", warning)), class_="left-out"))
    head.append(tiles(_figures(history)))
    sections = [Section("timeline", "Timeline", drawing(history, names, edges)), Section("visits", "Visits", visits_table(history))]
    for group, title, *_ in LANES:
        if body := codes_table(history, group, title):
            sections.append(Section(group, title, body))
    if body := labs_table(history, names):
        sections.append(Section("values", "Values", body))
    if body := days_table(history):
        sections.append(Section("days", "Every day", body))
    foot = "Made by cehrxgpt; the page is one file and asks no server for anything."
    return document(f"Subject {subject} of {source}", "Who", tag("header", *head), sections, foot)


def who(history: History, names: Mapping[str, str], at: datetime | None) -> list[str]:
    """Age, sex and race in words, how long watched, alive or not."""
    facts = []
    if history.born is not None and at is not None:
        years = int((at - history.born).days / 365.25)
        facts.append(f"aged {years}" if years < 90 else "aged 90 or more")  # very old people are few
    facts += [said for code in history.static if (said := demographic(names, code))]
    if history.died is not None and (at is None or history.died <= at):
        facts.append(f"died {day(history.died)}")
    begin, end = history.observed
    if begin is not None and end is not None:
        facts.append(f"observed {day(begin)} to {day(end)}")
    said = "; ".join(facts) or "nothing is known of who they are"
    return [said[0].upper() + said[1:], "."]


_KNOWN = {
    "gender/8532": "female", "gender/8507": "male", "race/8515": "Asian", "race/8516": "Black or African American", "race/8527": "White",
    "race/8557": "Native Hawaiian or other Pacific Islander", "race/8657": "American Indian or Alaska Native",
}  # fmt: skip


def demographic(names: Mapping[str, str], code: str) -> str:
    """Sex or race in words; empty for any other code."""
    kind, _, value = code.partition("/")
    if f"{kind}/" not in (s.GENDER_PREFIX, s.RACE_PREFIX):
        return ""
    return _KNOWN.get(code) or names.get(code) or (f"{kind} {value}" if value not in ("", "0") else f"{kind} unknown")


def _figures(history: History) -> list[tuple[str, Any, Any]]:
    classes = history.stays.group_by("class").len().sort("len", descending=True)
    kinds = ", ".join(f"{count(n)} {name}" for name, n in classes.iter_rows())
    years = "" if history.first is None or history.last is None else f"{day(history.first)} to {day(history.last)}"
    found: list[tuple[str, Any, Any]] = [("visits", count(history.stays.height), kinds)]
    if icu := history.units.height:
        found.append(("intensive care", count(icu), "stay" if icu == 1 else "stays"))
    found += [(title.lower(), count(lanes(history, group).height), "different") for group, title, *_ in LANES[:3]]
    found.append(("events", count(history.rows.height), years))
    return found


def drawing(history: History, names: Mapping[str, str], edges: Edges) -> Markup:
    """The timeline with its legend and how to read it."""
    if history.first is None:
        return note("There is no dated event.")
    classes = [name for name in VISIT_COLOURS if name in set(history.stays["class"].to_list())]
    keys = [(name, f"{VISIT_COLOURS[name]} box") for name in classes]
    keys += [("intensive care", f"{INTENSIVE} box")] if history.units.height else []
    words = f"{count(history.stays.height)} visits, {day(history.first)} to {day(history.last)}"
    chart = responsive(
        lambda width: history_chart(width, history, names, edges),
        f"Timeline of subject {history.subject}: {words}. The tables of this page hold the same.",
    )
    hidden = [f"{count(total - limit)} more {title.lower()}" for group, title, _, limit in LANES if (total := lanes(history, group).height) > limit]
    more = labs(history, names).filter(pl.col("n") > 1).height
    hidden += [f"{count(more - LABS)} more values"] if more > LABS else []
    said = _how_to_read(history, names, edges)
    return join([legend(keys) if keys else "", figure(chart, said + (f" Not drawn: {', '.join(hidden)}." if hidden else ""))])


def _how_to_read(history: History, names: Mapping[str, str], edges: Edges) -> str:
    """The caption of the drawing: of what is in it, and of nothing else."""
    groups = {group for group, *_ in LANES if lanes(history, group).height}
    said = ["All rows share one axis"]
    said[0] += "; a grey band is a silence, shortened." if time_axis(history).folds else "."
    said += ["A stay without an end still goes on."] if history.until is not None and history.stays["end_time"].null_count() else []
    said += ["Dots are days of record" + (", the ringed dot of a condition its first." if "conditions" in groups else ".")] if groups else []
    said += ["Pale bars are drug eras (exposures up to 30 days apart are one)."] if "drugs" in groups else []
    if drawn_edges(history, names, edges):
        said.append("Values: faint lines are the edges of the bins the model reads them in.")
    return " ".join(said)

"""One subject's timeline as plain text: visits as headings, what they hold indented, codes with names.

Three ways: `summary_lines`, visit by visit, what a reader of the record asks for first; `visit_lines`, one visit in full; `subject_lines`,
every event.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.errors import InputError
from cehrxgpt.report.folded import duration_words, stay_words
from cehrxgpt.report.history import History, lanes
from cehrxgpt.report.markup import brief, is_number, shorten
from cehrxgpt.report.patient_page import who
from cehrxgpt.report.run import EVENT_COLUMNS
from cehrxgpt.report.units import unit_name


def subject_lines(events: pl.DataFrame, subject: int, names: Mapping[str, str]) -> list[str]:
    """One subject's timeline: visits as headings with what they hold indented, bare events between them, codes with names.

    Args:
        events: rows of an EventTable (only those of `subject` are used); missing extra columns read as null.
        subject: whose.
        names: code -> readable name.

    Raises:
        InputError: the subject has no row.
    """
    own = events.filter(pl.col("subject_id") == subject)
    if own.is_empty():
        raise InputError(f"no subject {subject} among the events")
    own = own.with_columns(pl.lit(None, dtype=dtype).alias(name) for name, dtype in EVENT_COLUMNS.items() if name not in own.columns)
    rows = own.select(list(EVENT_COLUMNS)).to_dicts()
    static = [_named(row["code"], names) for row in rows if row["time"] is None]
    lines = [f"  {', '.join(static)}"] if static else []
    stays = {
        row["visit_id"]: row for row in rows if row["code"].startswith(s.VISIT_PREFIX) and row["visit_id"] is not None and row["time"] is not None
    }
    inside: dict[int, list[dict[str, Any]]] = {identifier: [] for identifier in stays}
    top: list[dict[str, Any]] = []
    for row in rows:
        if row["time"] is None:
            continue
        linked = row["visit_id"] in stays and row is not stays[row["visit_id"]]
        (inside[row["visit_id"]] if linked else top).append(row)
    day = None
    for row in top:
        if row["visit_id"] in stays and row is stays[row["visit_id"]]:
            lines += ["", _visit_line(row, names), *(_event_line(one, names, indent="    ", from_day=row["time"]) for one in inside[row["visit_id"]])]
            day = None
        else:
            if day != row["time"].date():
                lines += [""] if day is None and lines else []
                day = row["time"].date()
            lines.append(_event_line(row, names, indent="  ", from_day=None))
    return lines


def visit_lines(events: pl.DataFrame, subject: int, names: Mapping[str, str], number: int) -> list[str]:
    """One visit with all it holds; `number` counts the visits from 1, in order of time."""
    own = events.filter((pl.col("subject_id") == subject) & pl.col("time").is_not_null())
    stays = own.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX)).sort("time", "visit_id")
    identifier, start = stays.select("visit_id", "time").row(number - 1)
    linked = pl.col("visit_id") == identifier if identifier is not None else (pl.col("time") == start)
    return [f"visit {number} of {stays.height:,}", *subject_lines(own.filter(linked), subject, names)]


def figures(history: History) -> dict[str, Any]:
    """The record in numbers, for programs."""
    first, last = history.first, history.last
    return {
        "first": None if first is None else first.isoformat(), "last": None if last is None else last.isoformat(),
        "died": None if history.died is None else history.died.isoformat(), "visits": history.stays.height,
        "intensive_care_stays": history.units.height, "events": history.rows.height,
        **{group: lanes(history, group).height for group in ("conditions", "drugs", "procedures")},
    }  # fmt: skip


_WIDTH = 120  # columns
_SHOWN = 6  # names of one group on one line
_WORDS = {"conditions": "conditions", "drugs": "drugs", "procedures": "procedures", "labs": "values", "other": "other"}


def summary_lines(history: History, names: Mapping[str, str]) -> list[str]:
    """Who, conditions when first seen, then visit by visit: what kind, how long, units inside, and names by group with numbers' ranges.

    Days outside visits stand between the visits; a silence of over half a year is told.
    """
    lines = [f"  {''.join(who(history, names, history.last))}", ""]
    conditions = lanes(history, "conditions").sort("first", "name")
    if conditions.height:
        lines.append(f"  conditions first seen ({conditions.height:,})")
        shown = conditions.head(30).to_dicts()
        often = [f", on {row['days']:,} days" if row["days"] > 1 else "" for row in shown]
        lines += [f"    {row['first']:%Y-%m-%d}  {_brief(row['name'], row['code'])}{more}" for row, more in zip(shown, often, strict=True)]
        lines += [f"    and {conditions.height - 30:,} more"] if conditions.height > 30 else []
    blocks = _blocks(history)
    said = _said(history, names)
    before: datetime | None = None
    for number, when, end, heading, key in blocks:
        if before is not None and (when - before).days > 183:
            lines += ["", f"  ... {duration_words((when - before).total_seconds() / 86400)} without a record ..."]
        lines += ["", f"{f'#{number}':<5}{heading}" if number else f"     {when:%Y-%m-%d}  outside visits"]
        for line in said.get(key, []):
            lines += textwrap.wrap(line, _WIDTH, initial_indent=" " * 7, subsequent_indent=" " * 19, break_on_hyphens=False)
        before = max(filter(None, (before, when, end)))
    if history.died is not None:
        lines += ["", f"     {history.died:%Y-%m-%d}  DEATH"]
    return lines


Key = tuple[int | None, date | None]


def _blocks(history: History) -> list[tuple[int, datetime, datetime | None, str, Key]]:
    """(number of the visit or 0, start, end, heading, key of what it holds) of visits and of days outside them, in order."""
    found: list[tuple[int, datetime, datetime | None, str, Key]] = []
    for number, row in enumerate(history.stays.to_dicts(), start=1):
        length = "end unknown" if row["end_time"] is None else stay_words(row)
        heading = f"{_stamp(row['time'], dated=row['dated'])}  [{row['class']}] {_brief(row['name'], row['code'])}, {length}"
        found.append((number, row["time"], row["end_time"], heading, (row["visit_id"], None)))
    for (day,), part in _outside(history).group_by("day", maintain_order=True):
        found.append((0, part["time"][0], None, "", (None, day)))
    return sorted(found, key=lambda block: (block[1], block[0]))


def _outside(history: History) -> pl.DataFrame:
    known = history.stays["visit_id"].drop_nulls()
    bare = history.rows.filter(pl.col("visit_id").is_null() | ~pl.col("visit_id").is_in(known.implode()))
    return bare.with_columns(pl.col("time").dt.date().alias("day")).sort("time")


def _said(history: History, names: Mapping[str, str]) -> dict[Key, list[str]]:
    """What each visit, and each day outside them, holds: a line per group."""
    known = history.stays["visit_id"].drop_nulls()
    inside = pl.col("visit_id").is_in(known.implode()).fill_null(False)
    rows = history.rows.with_columns(
        pl.when(inside).then("visit_id").alias("visit"), pl.when(~inside).then(pl.col("time").dt.date()).alias("day"),
        pl.when(pl.col("numeric_value").is_not_null()).then(pl.lit("labs")).otherwise(pl.col("group")).alias("group"),
    )  # fmt: skip
    value = pl.col("numeric_value")
    counted = rows.group_by("visit", "day", "group", "name", "unit").agg(
        pl.len().alias("n"), value.count().alias("values"), value.min().alias("low"), value.max().alias("high"), value.last().alias("last"),
        pl.col("text_value").last().alias("text"),
    )  # fmt: skip
    counted = counted.sort(["n", "name"], descending=[True, False])
    found: dict[Key, list[str]] = {}
    for unit in history.units.to_dicts():
        length = "" if unit["end_time"] is None else f", {duration_words((unit['end_time'] - unit['time']).total_seconds() / 86400)}"
        found.setdefault((unit["visit_id"], None), []).append(f"{'unit':<11} {unit['name']} from {unit['time']:%Y-%m-%d %H:%M}{length}")
    for group, word in _WORDS.items():
        for (visit, day), part in counted.filter(pl.col("group") == group).group_by("visit", "day", maintain_order=True):
            told = [_item(row, names) for row in part.head(_SHOWN).to_dicts()]
            more = f"; and {part.height - _SHOWN:,} more" if part.height > _SHOWN else ""
            found.setdefault((visit, day), []).append(f"{word:<11} {'; '.join(told)}{more}")
    return found


def _item(row: dict[str, Any], names: Mapping[str, str]) -> str:
    name, unit = shorten(row["name"], 60), unit_name(names, row["unit"])
    if row["values"] > 1:
        return f"{name} {brief(row['low'])} to {brief(row['high'])}, last {brief(row['last'])} {unit}".rstrip() + f" ({row['values']:,} values)"
    if row["values"]:
        return f"{name} {brief(row['last'])} {unit}".rstrip()
    text = f" = {names.get(row['text'], row['text'])}" if row["text"] else ""
    return name + text + (f" ({row['n']:,} times)" if row["n"] > 1 else "")


def _brief(name: str, code: str) -> str:
    return f"{shorten(name, 70)} ({code})" if name != code else code


def _named(code: str, names: Mapping[str, str]) -> str:
    known = {s.BIRTH: "birth", s.DEATH: "DEATH", s.OBSERVATION_START: "observation begins", s.OBSERVATION_END: "observation ends"}
    name = names.get(code) or ("Intensive care" if code.startswith(s.ICU_PREFIX) else None)
    return f"{name} ({code})" if name and name != code else known.get(code, code)


def _visit_line(row: dict[str, Any], names: Mapping[str, str]) -> str:
    end = row["end_time"]
    minutes = (end - row["time"]).total_seconds() / 60 if end is not None else None
    kind = visits.class_of(row["code"], minutes)
    dated = row["time_precision"] == "day"
    one_day = dated and end is not None and end.date() == row["time"].date()
    until = ", end unknown" if end is None else "" if one_day else f" to {_stamp(end, dated=dated)}"
    return f"{_stamp(row['time'], dated=dated)}{until}  [{kind}] {_named(row['code'], names)}"


def _stamp(value: datetime, *, dated: bool) -> str:
    """2011-04-29 14:05; the day alone of what is known by its day."""
    return f"{value:%Y-%m-%d}" if dated else f"{value:%Y-%m-%d %H:%M}"


def _event_line(row: dict[str, Any], names: Mapping[str, str], *, indent: str, from_day: datetime | None) -> str:
    """`from_day`: of the visit's start; events of that day show the time alone."""
    same = from_day is not None and row["time"].date() == from_day.date()
    dated = row["time_precision"] == "day" or row["code"] == s.BIRTH
    stamp = ("" if dated else f"{row['time']:%H:%M}").rjust(16) if same else _stamp(row["time"], dated=dated).ljust(16)
    value = ""
    if is_number(row["numeric_value"]):
        value = f" {row['operator'] or '='} {brief(row['numeric_value'])} {unit_name(names, row['unit'])}".rstrip()
    elif row["text_value"]:
        value = f" = {names.get(row['text_value'], row['text_value'])}"
    until = f" until {row['end_time']:%Y-%m-%d}" if row["end_time"] is not None and row["end_time"].date() != row["time"].date() else ""
    return f"{indent}{stamp}  {_named(row['code'], names)}{value}{until}"

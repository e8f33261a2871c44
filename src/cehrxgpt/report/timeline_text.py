"""One subject's timeline as plain text: visits as headings, what they hold indented, codes with names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.errors import InputError
from cehrxgpt.report.markup import is_number
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


def _named(code: str, names: Mapping[str, str]) -> str:
    known = {s.BIRTH: "birth", s.DEATH: "DEATH", s.OBSERVATION_START: "observation begins", s.OBSERVATION_END: "observation ends"}
    name = names.get(code) or ("Intensive care" if code.startswith(s.ICU_PREFIX) else None)
    return f"{name} ({code})" if name and name != code else known.get(code, code)


def _visit_line(row: dict[str, Any], names: Mapping[str, str]) -> str:
    end = row["end_time"]
    minutes = (end - row["time"]).total_seconds() / 60 if end is not None else None
    kind = visits.class_of(row["code"], minutes)
    until = f" to {end:%Y-%m-%d %H:%M}" if end is not None else ", end unknown"
    return f"{row['time']:%Y-%m-%d %H:%M}{until}  [{kind}] {_named(row['code'], names)}"


def _event_line(row: dict[str, Any], names: Mapping[str, str], *, indent: str, from_day: datetime | None) -> str:
    """`from_day`: of the visit's start; events of that day show the time alone."""
    same = from_day is not None and row["time"].date() == from_day.date()
    stamp = f"{row['time']:%H:%M}".rjust(16) if same else f"{row['time']:%Y-%m-%d %H:%M}"
    value = ""
    if is_number(row["numeric_value"]):
        value = f" {row['operator'] or '='} {row['numeric_value']:.5g} {unit_name(names, row['unit'])}".rstrip()
    elif row["text_value"]:
        value = f" = {names.get(row['text_value'], row['text_value'])}"
    until = f" until {row['end_time']:%Y-%m-%d}" if row["end_time"] is not None and row["end_time"].date() != row["time"].date() else ""
    return f"{indent}{stamp}  {_named(row['code'], names)}{value}{until}"

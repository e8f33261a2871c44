"""One subject's record as tables: what the drawing shows, for those who cannot see it, and what it has no room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from cehrxgpt.report.folded import stay_words
from cehrxgpt.report.history import History, eras, labs, lanes
from cehrxgpt.report.markup import Markup, count, details, join, note, number, shorten, table, tag

_VISITS, _LINES, _DAYS, _PER_DAY = 200, 200, 400, 14


def day(value: datetime | None) -> str:
    """2011-04-29; an en dash for nothing."""
    return "–" if value is None else f"{value:%Y-%m-%d}"


def clock(value: datetime | None, *, dated: bool = False) -> str:
    """2011-04-29 14:05; the hour only where there is one."""
    return "–" if value is None else f"{value:%Y-%m-%d}" if dated or (value.hour, value.minute) == (0, 0) else f"{value:%Y-%m-%d %H:%M}"


def _cut(rows: list[list[Any]], limit: int, what: str) -> tuple[list[list[Any]], Markup]:
    return rows[:limit], note(f"{count(len(rows) - limit)} more {what} are not listed.") if len(rows) > limit else Markup("")


def visits_table(history: History) -> Markup:
    """Visits, the latest first, with the units inside."""
    if history.stays.is_empty():
        return note("The record has no visit.")
    inside = history.units.drop_nulls("visit_id").group_by("visit_id").agg(pl.col("name").unique(maintain_order=True))
    units = {identifier: ", ".join(found) for identifier, found in inside.iter_rows()}
    rows = []
    for row in reversed(history.stays.to_dicts()):
        when = [*(clock(row[name], dated=row["dated"]) for name in ("time", "end_time")), stay_words(row, cut=history.until is not None)]
        rows.append([*when, row["class"], shorten(row["name"], 50), units.get(row["visit_id"], ""), count(row["events"])])
    kept, more = _cut(rows, _VISITS, "visits")
    heads = ["Start", "End", "Length", "Class", "Visit", "Units", "Events"]
    many = "1 visit" if len(rows) == 1 else f"{count(len(rows))} visits, the latest first"
    return join([table(heads, kept, caption=many, left=6), more])


def codes_table(history: History, group: str, title: str) -> Markup:
    """Names of a group, in the order in which they were first seen; of drugs, the eras and the days they cover."""
    found = lanes(history, group).sort("first", "name")
    if found.is_empty():
        return Markup("")
    heads = ["First seen", "Name", "Code", "Last", "Days recorded"]
    covered: dict[str, tuple[int, float]] = {}
    if group == "drugs":
        heads += ["Eras", "Days covered"]
        length = (pl.col("end") - pl.col("start")).dt.total_seconds() / 86400
        merged = eras(history).with_columns(length.alias("d")).group_by("name").agg(pl.len().alias("n"), pl.col("d").sum())
        covered = {name: (n, d) for name, n, d in merged.iter_rows()}
    rows = []
    for row in found.to_dicts():
        cells = [day(row["first"]), shorten(row["name"], 70), _codes(row["codes"]), day(row["last"]), count(row["days"])]
        rows.append([*cells, *((count(covered[row["name"]][0]), number(covered[row["name"]][1], 0)) if covered else ())])
    kept, more = _cut(rows, _LINES, "names")
    return join([table(heads, kept, caption=f"{title}, {count(len(rows))} in the order in which they were first seen", left=4), more])


def _codes(codes: Sequence[str]) -> Markup:
    """The codes of one name, in the order in which they were first used."""
    shown = join([tag("code", shorten(code, 60)) for code in codes[:3]], ", ")
    return join([shown, f" and {count(len(codes) - 3)} more"]) if len(codes) > 3 else shown


def labs_table(history: History, names: Mapping[str, str]) -> Markup:
    """Numbers by name and unit."""
    rows = []
    for row in labs(history, names).to_dicts():
        span = f"{number(row['low'], 2)} to {number(row['high'], 2)}"
        what = [shorten(row["name"], 60), row["shown"], number(row["value"], 2)]
        rows.append([*what, day(row["last"]), span, count(row["n"]), day(row["first"])])
    if not rows:
        return Markup("")
    kept, more = _cut(rows, _LINES, "values")
    heads = ["Name", "Unit", "Last value", "On", "Range", "Values", "First"]
    return join([table(heads, kept, caption=f"{count(len(rows))} measurements with numbers, those of most days first", left=2), more])


def days_table(history: History) -> Markup:
    """What was recorded on each day, the latest first: names, with how often if more than once."""
    counted = history.rows.group_by(pl.col("time").dt.date().alias("d"), "group", "name").agg(
        pl.len().alias("n"), pl.col("numeric_value").last().alias("v"), pl.col("numeric_value").count().alias("values")
    )
    counted = counted.sort(["d", "group", "n", "name"], descending=[True, False, True, False])
    said = (
        pl.when((pl.col("values") == 1) & (pl.col("n") == 1)).then(pl.format("{} {}", "name", pl.col("v").round_sig_figs(4)))
        .when(pl.col("n") > 1).then(pl.format("{} ({} times)", "name", "n")).otherwise(pl.col("name"))
    )  # fmt: skip
    daily = counted.group_by("d", maintain_order=True).agg(said.head(_PER_DAY).alias("what"), pl.len().alias("names"), pl.col("n").sum())
    rows = []
    for when, what, names, n in daily.iter_rows():
        more = f"; and {count(names - _PER_DAY)} more" if names > _PER_DAY else ""
        rows.append([f"{when:%Y-%m-%d}", "; ".join(shorten(one, 60) for one in what) + more, count(n)])
    if not rows:
        return Markup("")
    kept, rest = _cut(rows, _DAYS, "days")
    shown = table(["Day", "Recorded", "Events"], kept, caption=f"{count(len(rows))} days with a record, the latest first", left=2)
    return details("Day by day", shown, rest)

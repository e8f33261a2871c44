"""The data: how much came in, what the ingest kept and why it dropped the rest, splits, what the records hold."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.report import suppress
from cehrxgpt.report.markup import (
    Markup,
    Section,
    count,
    details,
    figure,
    is_number,
    join,
    note,
    number,
    paragraph,
    percent,
    readable,
    shorten,
    table,
    tag,
)
from cehrxgpt.report.quality.facts import clinical
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.suppress import SMALL_CELL
from cehrxgpt.report.svg import Axis, Chart, grid


def split_counts(events: pl.LazyFrame) -> pl.DataFrame:
    """Per split: subjects, events, visits, values, deaths, first and last time."""
    return (
        events.group_by("split")
        .agg(
            pl.col("subject_id").n_unique().alias("subjects"),
            pl.len().alias("events"),
            pl.col("code").str.starts_with(s.VISIT_PREFIX).sum().alias("visits"),
            pl.col("numeric_value").is_not_null().sum().alias("values"),
            (pl.col("code") == s.DEATH).sum().alias("deaths"),
            pl.col("time").filter(clinical()).min().alias("first"),
            pl.col("time").filter(clinical()).max().alias("last"),
        )
        .collect()
        .sort(pl.col("split").replace_strict(list(s.SPLITS), [0, 1, 2], default=3), "split")
    )


def section(run: RunFolder) -> Section:
    """The chapter.

    Raises:
        MissingInputs: neither events nor an ingest account.
    """
    ingest = run.json("events/ingest.json")
    parts: list[Any] = []
    children: list[tuple[str, str]] = []

    def add(identifier: str, title: str, *content: Any) -> None:
        children.append((identifier, title))
        parts.extend([tag("h3", title, id=identifier), *content])

    figures = {}
    if run.events is not None:
        people, rows = run.events.select(pl.col("subject_id").n_unique().alias("subjects"), pl.len()).collect().row(0)
        figures = {"subjects": suppress.figures([people])[0], "events": rows}
        parts.append(_overview(run, run.events))
        parts += [_charts(run, run.events), _visits(run.events)]
    if ingest is not None:
        add("ingest", "What the ingest kept", _ingest(ingest))
    if run.events is not None:
        add("codes", "Most common codes", _codes(run, run.events))
    if not parts:
        raise MissingInputs("events/ or events/ingest.json")
    return Section("data", "Data", join(parts), tuple(children), figures)


def _overview(run: RunFolder, events: pl.LazyFrame) -> Markup:
    counts = split_counts(events)
    columns = ["subjects", "events", "visits", "values", "deaths"]
    total = {"split": "all", **counts.select(pl.col(columns).sum()).row(0, named=True)}
    listed = [*counts.to_dicts(), *([total] if counts.height > 1 else [])]
    keyed = {f"{row['split']} {name}": row[name] for row in listed for name in columns}
    said = suppress.Counts(keyed, [[f"{row['split']} {name}" for row in listed] for name in columns])
    rows = [[readable(row["split"]), *(said[f"{row['split']} {name}"] for name in columns)] for row in listed]
    facts = _facts(run)
    first, last = counts["first"].min(), counts["last"].max()
    span = ""
    if isinstance(first, datetime) and isinstance(last, datetime):
        span = f"Events run from {first:%B %Y} to {last:%B %Y}. "
        span += "The release moved its dates to other centuries, so years are not used. " if _shifted(run) else ""
    policy = facts.get("observation_policy")
    extra = f"End of observation: {readable(str(policy))}. " if policy else ""
    fitted = "Vocabulary, value bins and model saw the training split alone; results below are of the held-out split." if run.has("model") else ""
    return join(
        [
            paragraph(span, extra, fitted),
            table(
                ["Split", "Subjects", "Events", "Visits", "Values", "Deaths"],
                rows,
                caption="Subjects and events by split",
                class_="sum" if len(rows) > 1 else "",
            ),
        ]
    )


def _facts(run: RunFolder) -> dict[str, Any]:
    """Our own part of the data set's metadata."""
    facts = (run.json("events/metadata/dataset.json") or {}).get("cehrxgpt")
    return facts if isinstance(facts, dict) else {}


def _shifted(run: RunFolder) -> bool:
    return _facts(run).get("calendar") == "shifted"


def _charts(run: RunFolder, events: pl.LazyFrame) -> Markup:
    per_subject, per_year = pl.collect_all(
        [
            events.filter(pl.col("time").is_not_null()).group_by("subject_id").len(),
            events.filter(clinical()).group_by(pl.col("time").dt.year().alias("year")).len().sort("year"),
        ]
    )
    charts = []
    if per_subject.height:
        values = per_subject["len"].to_numpy()
        low, middle, high = (float(np.quantile(values, q)) for q in (0.1, 0.5, 0.9))
        caption = f"Events per subject: median {count(middle)}"
        caption += f"; one in ten has fewer than {count(low)}, one in ten more than {count(high)}." if len(values) >= 10 * SMALL_CELL else "."
        charts.append(figure(log_histogram(values, "events").svg(caption), caption))
    if per_year.height and not _shifted(run):  # years of a shifted calendar say nothing
        charts.append(figure(_years(per_year).svg("Events by calendar year"), "Events by calendar year."))
    return grid(charts)


def _visits(events: pl.LazyFrame) -> Markup:
    """Visits by class; classes of fewer than eleven subjects keep their count of visits and no more."""
    minutes = (pl.col("end_time") - pl.col("time")).dt.total_minutes()
    found = (
        events.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX))
        .select("subject_id", minutes.alias("minutes"), visits.classify(pl.col("code"), minutes).alias("class"))
        .group_by("class")
        .agg(pl.len().alias("visits"), pl.col("subject_id").n_unique().alias("subjects"), (pl.col("minutes").median() / 60).alias("hours"))
        .collect()
    )
    if found.is_empty():
        return note("No visit was recovered: every event stands outside a visit.")
    known = {row["class"]: row for row in found.to_dicts()}
    rows = []
    for name in visits.CLASSES:
        if (row := known.get(name)) is not None:
            enough = row["subjects"] >= SMALL_CELL
            rows.append([name, suppress.plain(row["visits"]), suppress.plain(row["subjects"]), number(row["hours"], 1) if enough else None])
    return table(["Class", "Visits", "Subjects", "Median length, hours"], rows, caption="Visits recovered, by class")


def log_histogram(values: Any, unit: str, *, per: str = "subject", least: float = 1.0, mark: tuple[float, str] | None = None) -> Chart:
    """Histogram of positive counts on a log axis.

    The outermost bins end where eleven values lie beyond (at the 0.5th and 99.5th percentile of many), so that no single extreme is
    shown; few values make few bins, and a bar of one to ten is drawn pale, at one height.

    Args:
        least: the axis starts here at the lowest.
        mark: (value, name) of a line across.
    """
    values = np.asarray(values, dtype=float)
    tail = min(0.25, max(0.005, SMALL_CELL / len(values)))
    low, high = max(least, float(np.quantile(values, tail))), max(2 * least, float(np.quantile(values, 1 - tail)))
    high = max(high, low * 3)
    if mark is not None and low < mark[0] < 4 * high:
        high = max(high, mark[0] * 1.05)
    edges = np.geomspace(low, high, 1 + int(np.clip(len(values) / 15, 5, 24)))
    heights, _ = np.histogram(np.clip(values, low, high), edges)
    chart = Chart(
        360,
        230,
        Axis.logarithmic(low, high),
        Axis.linear(0, max(1, heights.max()), target=4, snap=True, whole=True),
        x_title=f"{unit} per {per}",
        y_title=f"{per}s",
    )
    few = (heights > 0) & (heights < SMALL_CELL)
    spans = [f"{number(a, 0 if a >= 10 else 1)} to {number(b, 0 if b >= 10 else 1)} {unit}" for a, b in pairwise(edges.tolist())]
    titles = [f"{span}: {suppress.plain(height)} {per}s" for span, height in zip(spans, heights.tolist(), strict=True)]
    chart.bars(edges.tolist(), np.where(few, 0, heights).tolist(), "fill c1", titles)
    chart.bars(edges.tolist(), np.where(few, SMALL_CELL / 2, 0).tolist(), "fill pale c1", titles)
    if mark is not None and low < mark[0] <= high:
        chart.vertical(mark[0], mark[1])
    return chart


def _years(per_year: pl.DataFrame) -> Chart:
    known = dict(zip(per_year["year"].to_list(), per_year["len"].to_list(), strict=True))
    years = list(range(min(known), max(known) + 1))
    heights = [known.get(year, 0) for year in years]
    step = max(1, -(-len(years) // 5))
    ticks = tuple((year + 0.5, str(year)) for year in years if year % step == 0 or len(years) <= 5)
    chart = Chart(
        360,
        230,
        Axis(years[0], years[-1] + 1, ticks),
        Axis.linear(0, max(heights), target=4, label=_thousands, snap=True),
        x_title="year",
        y_title="events",
    )
    chart.bars([*years, years[-1] + 1], heights, "fill c1", [f"{year}: {height:,} events" for year, height in zip(years, heights, strict=True)])
    return chart


def _thousands(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e4 else f"{value:,.10g}"


def _codes(run: RunFolder, events: pl.LazyFrame) -> Markup:
    subjects = events.select(pl.col("subject_id").n_unique()).collect().item()
    common = (
        events.filter(clinical())
        .group_by("code")
        .agg(
            pl.col("subject_id").n_unique().alias("subjects"), pl.len().alias("events"), pl.col("numeric_value").is_not_null().mean().alias("valued")
        )
        .filter(pl.col("subjects") >= SMALL_CELL)
        .sort("subjects", "events", "code", descending=[True, True, False])
        .collect()
    )
    if common.is_empty():
        return note(f"No code was recorded in {SMALL_CELL} subjects or more.")
    rows = [
        [
            shorten(run.names[r["code"]], 60) if r["code"] in run.names else None,
            tag("code", shorten(r["code"], 60)),
            count(r["subjects"]),
            percent(r["subjects"] / subjects),
            count(r["events"]),
            percent(r["valued"], 0),
        ]
        for r in common.head(20).to_dicts()
    ]
    heads = ["Name", "Code", "Subjects", "Share", "Events", "With a value"]
    shown = table(
        heads, rows, caption=f"The {len(rows)} codes that most subjects have, of {common.height:,} in {SMALL_CELL} subjects or more", left=2
    )
    return shown


# -- ingest -----------------------------------------------------------------------------------------------------------------------


def _items(value: Any) -> list[tuple[str, Any]]:
    """(name, content) pairs of a mapping, or of a list of objects that carry a `table` or `name`."""
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, list):
        return [(str(item.get("table", item.get("name", index))), item) for index, item in enumerate(value) if isinstance(item, dict)]
    return []


_UNSAID = ("dates", "files", "source", "settings", "versions", "subjects", "events", "visits_recovered")
"""Entries of ingest.json that the page shows elsewhere, or not at all: exact first and last dates, names of files."""


def _ingest(ingest: dict[str, Any]) -> Markup:
    rows, drops = [], []
    accounts = [(name, account) for name, account in _items(ingest.get("tables")) if isinstance(account, dict)]
    for name, account in sorted(accounts, key=lambda pair: -(pair[1].get("read") or 0)):
        dropped = account.get("dropped", 0)
        reasons = [(reason, n) for reason, n in _items(dropped) if is_number(n) and n]
        lost = sum(n for _, n in reasons) if isinstance(dropped, dict) else dropped
        found = {"read": account.get("read"), "kept": account.get("kept"), "lost": lost}
        pooled = suppress.pool(reasons)
        keyed = {key: n for key, n in found.items() if is_number(n)} | {str(place): one.count for place, one in enumerate(pooled)}
        said = suppress.Counts(keyed, [[key for key in found if key in keyed], ["lost", *map(str, range(len(pooled)))] if "lost" in keyed else []])
        share = suppress.share(lost, found["read"]) if is_number(found["read"]) and is_number(lost) and "lost" not in said.hidden else ""
        rows.append([name, *(said[key] if key in keyed else "–" for key in found), share])
        drops += [[name, ", ".join(map(readable, one.names)), said[str(place)]] for place, one in enumerate(pooled)]
    parts = []
    if rows:
        parts.append(paragraph("Every row that was read was kept, or dropped for a stated reason."))
        parts.append(_folded(["Table", "Read", "Kept", "Dropped", "Share dropped"], rows, caption="Rows read from each source table"))
    if drops:
        parts.append(_folded(["Table", "Reason", "Rows"], drops, caption="Why rows were dropped", left=2))
    for key, title in (("mended", "Rows mended rather than dropped"), ("derived", "Rows derived from others")):
        rows_found = [[name, readable(reason), suppress.plain(n)] for name, reasons in _items(ingest.get(key)) for reason, n in _pairs(reasons)]
        if rows_found:
            parts.append(details(title, table(["Table", "What", "Rows"], rows_found, caption=title, left=2)))
    rest = [
        (readable(name), value) for name, value in flatten({k: v for k, v in ingest.items() if k not in ("tables", "mended", "derived", *_UNSAID)})
    ]
    if rest:
        cells = [
            [name, shorten(number(v, 2) if isinstance(v, float) else suppress.plain(v) if is_number(v) else str(v), 120)] for name, v in rest[:60]
        ]
        parts.append(details("More from the ingest's account", table(["What", "Value"], cells, caption="Other entries of ingest.json", left=2)))
    return join(parts)


def _pairs(reasons: Any) -> list[tuple[str, Any]]:
    """Reason and count: of a mapping, or of a bare count."""
    return [(reason, n) for reason, n in _items(reasons) if is_number(n)] if isinstance(reasons, dict) else [("", reasons)]


def _folded(headers: list[str], rows: list[list[Any]], *, caption: str, left: int = 1, limit: int = 14) -> Markup:
    """A table; one that is longer than `limit` shows its first rows, and all of them behind a line."""
    if len(rows) <= limit:
        return table(headers, rows, caption=caption, left=left)
    first = table(headers, rows[: limit - 2], caption=f"{caption}: the first {limit - 2} of {len(rows)}", left=left)
    return join([first, details(f"All {len(rows)}", table(headers, rows, caption=caption, left=left))])


def flatten(value: Any, prefix: str = "", *, depth: int = 3) -> list[tuple[str, Any]]:
    """Nested mappings as (path, scalar) pairs; short lists of scalars become text, the rest is left out."""
    found: list[tuple[str, Any]] = []
    if isinstance(value, dict) and depth:
        for key, item in value.items():
            found += flatten(item, f"{prefix}{' · ' if prefix else ''}{key}", depth=depth - 1)
    elif isinstance(value, list):
        if value and all(isinstance(item, (str, int, float)) for item in value) and len(value) <= 12:
            found.append((prefix, ", ".join(str(item) for item in value)))
    elif value is not None and not isinstance(value, dict):
        found.append((prefix, value))
    return found


def scalar(value: Any) -> str:
    """One entry of a stage's account, as text."""
    if isinstance(value, bool) or not is_number(value):
        return shorten(str(value), 160)
    return count(value) if float(value).is_integer() else number(value, 4)

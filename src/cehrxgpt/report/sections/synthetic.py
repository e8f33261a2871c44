"""Synthetic against real people: how often each code occurs, ages and sexes, events per patient. Aggregates only."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.report.markup import (
    Markup,
    Section,
    count,
    details,
    figure,
    is_number,
    join,
    legend,
    note,
    number,
    paragraph,
    percent,
    readable,
    shorten,
    table,
    tag,
)
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.suppress import SMALL_CELL, Teller
from cehrxgpt.report.svg import Axis, Chart, grid, responsive

_SIDES = (("real", "c1"), ("synthetic", "c2"))
_FEMALE, _MALE = ("8532", "F", "FEMALE"), ("8507", "M", "MALE")
_DECADES = 10  # 0-9 ... 90 and over


def section(run: RunFolder) -> Section:
    """The chapter.

    Raises:
        MissingInputs: nothing synthetic in the run.
    """
    rows = run.parquet("evaluation/fidelity.parquet")
    pairs = _prevalence(run, rows)
    people = _people(run)
    summary = _summary(run, rows)
    if summary is None and pairs is None and people is None:
        raise MissingInputs("evaluation/fidelity.parquet, synthetic_events/")
    parts: list[Any] = [_sentence(run)]
    if pairs is not None and pairs.height:
        parts += [_scatter(run, pairs), _differences(run, pairs)]
    if people is not None:
        parts.append(_people_charts(people, run.tell))
    if summary is not None:
        parts.append(summary)
    return Section("synthetic", "Synthetic against real", join(parts))


def _sides(run: RunFolder) -> tuple[pl.LazyFrame, pl.LazyFrame] | None:
    """Real events (those the model learned from, where there is a training split) and synthetic ones."""
    if run.events is None or run.synthetic_events is None:
        return None
    train = run.events.filter(pl.col("split") == s.TRAIN)
    return (run.events if train.head(1).collect().is_empty() else train), run.synthetic_events


def _sentence(run: RunFolder) -> Markup:
    tables = len({path.name.split(".")[0].lower() for path in (run.root / "synthetic").glob("*.parquet")})
    written = f" They were written as OMOP tables ({tables} files) and read back by the ingest that reads real ones." if tables else ""
    return paragraph("The model wrote new histories from demographics that it drew; they are held against the training split.", written)


# -- prevalence -------------------------------------------------------------------------------------------------------------------


def _prevalence(run: RunFolder, rows: pl.DataFrame | None) -> pl.DataFrame | None:
    """`code`, `real`, `synthetic` (shares of subjects), `real_subjects`; codes of fewer than 11 real and 11 synthetic subjects left out."""
    for frame in (run.parquet("evaluation/prevalence.parquet"), rows):
        if frame is None or "code" not in frame.columns:
            continue
        real = next((name for name in ("real_prevalence", "real") if name in frame.columns), None)
        synthetic = next((name for name in ("synthetic_prevalence", "synthetic") if name in frame.columns), None)
        if real and synthetic:
            return frame.select(
                pl.col("code").cast(pl.String), pl.col(real).cast(pl.Float64).alias("real"), pl.col(synthetic).cast(pl.Float64).alias("synthetic")
            ).drop_nulls()
    sides = _sides(run)
    if sides is None:
        return None
    counted, totals = [], []
    for events in sides:
        dated = events.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in([s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END]))
        counts, total = pl.collect_all(
            [dated.group_by("code").agg(pl.col("subject_id").n_unique().alias("n")), events.select(pl.col("subject_id").n_unique())]
        )
        counted.append(counts)
        totals.append(max(1, int(total.item())))
    both = counted[0].join(counted[1], on="code", how="full", coalesce=True, suffix="_synthetic").fill_null(0)
    kept = both.filter((pl.col("n") >= SMALL_CELL) | (pl.col("n_synthetic") >= SMALL_CELL))
    # Of real people shares are of rounded counts: who has not a code that nearly all have is told no more than who has a rare one.
    shares = pl.Series("real", run.tell.many(kept["n"].to_numpy()) / max(run.tell.many([totals[0]])[0], 1))
    found = kept.select("code", shares.clip(0, 1), (pl.col("n_synthetic") / totals[1]).alias("synthetic"))
    return found.sort("real", "code", descending=[True, False])


def _groups(pairs: pl.DataFrame) -> list[tuple[str, str, pl.DataFrame]]:
    named = (("conditions", "c2", "condition/"), ("drugs", "c3", "drug/"), ("procedures", "c4", "procedure/"), ("measurements", "c1", "measurement/"))
    code, found, taken = pl.col("code"), [], pl.lit(False)
    for label, colour, prefix in named:
        rows = pairs.filter(code.str.starts_with(prefix))
        taken = taken | code.str.starts_with(prefix)
        if rows.height:
            found.append((label, colour, rows))
    rest = pairs.filter(~taken)
    return [*found, ("other", "c5", rest)] if rest.height else found


def _scatter(run: RunFolder, pairs: pl.DataFrame) -> Markup:
    positive = np.concatenate([pairs["real"].to_numpy(), pairs["synthetic"].to_numpy()])
    positive = positive[positive > 0]
    low = float(positive.min()) / 2 if len(positive) else 1e-3
    groups = _groups(pairs)
    spoken = "Share of subjects with each code, synthetic against real"
    chart = responsive(lambda width: _scatter_chart(run, pairs, low, width), spoken, wide=500)
    never = pairs.filter(pl.col("synthetic") == 0).height
    caption = (
        f"One dot per code, {count(pairs.height)} codes that at least {SMALL_CELL} subjects have; ringed: the largest differences, listed below. "
    )
    caption += "On the dashed line real and synthetic agree; the pale lines are half and twice."
    caption += f" {count(never)} codes were never generated (at the bottom edge)." if never else ""
    return join(
        [
            legend([(label, f"{colour} dot") for label, colour, _ in groups]),
            figure(chart, caption),
        ]
    )


def _scatter_chart(run: RunFolder, pairs: pl.DataFrame, low: float, width: int) -> Chart:
    axis = Axis.logarithmic(low, 1.0, label=lambda value: f"{100 * value:.4g}%")
    chart = Chart(width, width * 0.92, axis, axis, x_title="real: share of subjects with the code", y_title="synthetic", margin=(26, 14, 42, 52))
    for factor in (0.5, 2.0):
        ends = (max(low, low / factor), min(1.0, 1.0 / factor))
        chart.line(ends, [end * factor for end in ends], "soft thin pale")
    chart.line([low, 1], [low, 1], "soft thin dash")
    for _, colour, rows in _groups(pairs):
        shown = rows.head(1500)
        chart.dots(shown["real"].clip(low).to_numpy(), shown["synthetic"].clip(low).to_numpy(), f"{colour} small")
    for row in _largest(pairs, 12).to_dicts():
        title = f"{run.name(row['code'])}: real {percent(row['real'])}, synthetic {percent(row['synthetic'])}"
        chart.dot(max(row["real"], low), max(row["synthetic"], low), "outline ink", title, radius=4.5)
    return chart


def _largest(pairs: pl.DataFrame, limit: int) -> pl.DataFrame:
    return pairs.sort((pl.col("real") - pl.col("synthetic")).abs(), "code", descending=[True, False]).head(limit)


def _differences(run: RunFolder, pairs: pl.DataFrame) -> Markup:
    rows = []
    for row in _largest(pairs, 12).to_dicts():
        name = run.name(row["code"])
        ratio = row["synthetic"] / row["real"] if row["real"] else None
        difference = 100 * (row["synthetic"] - row["real"])
        sign = "+" if difference > 0 else ""
        rows.append(
            [
                shorten(name, 60),
                tag("code", shorten(row["code"], 50)),
                percent(row["real"]),
                percent(row["synthetic"]),
                f"{sign}{number(difference, 1)}",
                number(ratio, 2),
            ]
        )
    heads = ["Name", "Code", "Real", "Synthetic", "Difference, points", "Ratio"]
    return table(heads, rows, caption="The codes whose shares of subjects differ most", left=2)


# -- people -----------------------------------------------------------------------------------------------------------------------


def _people(run: RunFolder) -> dict[str, pl.DataFrame] | None:
    """Per side one row per subject: `age` at the first event, `sex`, `events`; only ever shown as histograms."""
    sides = _sides(run)
    if sides is None:
        return None
    found = {}
    structural = [s.BIRTH, s.DEATH, s.OBSERVATION_START, s.OBSERVATION_END]
    for side, events in zip(("real", "synthetic"), sides, strict=True):
        code, dated = pl.col("code"), pl.col("time").is_not_null() & ~pl.col("code").is_in(structural)
        gender = code.filter(code.str.starts_with(s.GENDER_PREFIX)).first().str.strip_prefix(s.GENDER_PREFIX).str.to_uppercase()
        found[side] = (
            events.group_by("subject_id")
            .agg(
                ((pl.col("time").filter(dated).min() - pl.col("time").filter(code == s.BIRTH).min()).dt.total_days() / 365.25).alias("age"),
                pl.when(gender.is_in(_FEMALE))
                .then(pl.lit("female"))
                .when(gender.is_in(_MALE))
                .then(pl.lit("male"))
                .otherwise(pl.lit("other"))
                .alias("sex"),
                dated.sum().alias("events"),
            )
            .collect()
        )
    return found if all(frame.height for frame in found.values()) else None


def _people_charts(people: dict[str, pl.DataFrame], tell: Teller) -> Markup:
    parts: list[Any] = [legend([(side, f"{colour} box") for side, colour in _SIDES])]
    charts = []
    pyramid = _pyramid(people, tell)
    if pyramid is not None:
        charts.append(pyramid)
    charts.append(_events_chart(people, tell))
    return join([*parts, grid(charts)])


def _shares(frame: pl.DataFrame, sex: str, tell: Teller) -> Any:
    """Share of all subjects who are of this sex, per decade of age; of real people cells of fewer than eleven count as none."""
    ages = frame.filter((pl.col("sex") == sex) & pl.col("age").is_not_null())["age"].to_numpy()
    counts = np.bincount(np.clip(ages // 10, 0, _DECADES - 1).astype(int), minlength=_DECADES)
    return tell.many(counts) / max(float(tell.many([frame.height])[0]), 1)


def _pyramid(people: dict[str, pl.DataFrame], tell: Teller) -> Markup | None:
    tells = {"real": tell, "synthetic": Teller(exact=True)}  # nobody stands behind a synthetic cell
    shares = {(side, sex): _shares(people[side], sex, tells[side]) for side, _ in _SIDES for sex in ("female", "male")}
    top = max(float(values.max()) for values in shares.values())
    if top <= 0:
        return None
    high = Axis.linear(0, top, target=3, snap=True).high
    ticks = Axis.linear(0, high, target=2).ticks
    both = tuple(sorted((sign * value, f"{100 * value:.4g}%") for value, _ in ticks for sign in ((-1, 1) if value else (1,))))
    chart = Chart(
        360, 330, Axis(-high, high, both), Axis(0, _DECADES, ()), margin=(34, 10, 40, 44), x_title="share of subjects", y_title="age at first event"
    )
    step = (chart.height - chart.top - chart.bottom) / _DECADES
    for decade in range(_DECADES):
        top_edge = float(chart.at_y(decade + 1))
        chart.label(chart.left - 6, top_edge + step / 2 + 4, "90+" if decade == _DECADES - 1 else f"{10 * decade}–{10 * decade + 9}", anchor="end")
        for sex, sign in (("female", -1), ("male", 1)):
            for index, (side, colour) in enumerate(_SIDES):
                share = float(shares[side, sex][decade])
                edge, zero = float(chart.at_x(sign * share)), float(chart.at_x(0))
                title = f"{side}, {sex}, {10 * decade} to {10 * decade + 9}: {percent(share)}"
                chart.box(min(edge, zero), top_edge + 3 + index * (step - 6) / 2, abs(edge - zero), (step - 6) / 2, f"fill {colour}", title=title)
    chart.raw(f"M{float(chart.at_x(0)):.1f} {chart.top}V{chart.height - chart.bottom}", "axis")
    chart.label(float(chart.at_x(-high / 2)), 30, "female", anchor="middle", class_="strong")
    chart.label(float(chart.at_x(high / 2)), 30, "male", anchor="middle", class_="strong")
    hidden = "" if tell.exact else f" Cells of fewer than {SMALL_CELL} real subjects are drawn empty."
    return figure(chart.svg("Ages and sexes of real and synthetic subjects"), f"Age and sex.{hidden}")


def _events_chart(people: dict[str, pl.DataFrame], tell: Teller) -> Markup:
    values = {side: people[side]["events"].to_numpy().clip(1).astype(float) for side, _ in _SIDES}
    together = np.concatenate(list(values.values()))
    low, high = float(np.quantile(together, 0.005)), float(np.quantile(together, 0.995))
    edges = np.geomspace(max(low, 1), max(high, low * 3, 3), 19)
    counts = {side: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for side, v in values.items()}
    heights = {"real": tell.many(counts["real"]) / len(values["real"]), "synthetic": counts["synthetic"] / len(values["synthetic"])}
    top = max(float(h.max()) for h in heights.values())
    chart = Chart(
        360, 330, Axis.logarithmic(float(edges[0]), float(edges[-1])), Axis.linear(0, top, target=4, label=lambda v: f"{100 * v:.4g}%", snap=True),
        x_title="events per subject", y_title="share of subjects",
    )  # fmt: skip
    for side, colour in _SIDES:
        chart.steps([*edges.tolist()], [*heights[side].tolist(), float(heights[side][-1])], colour)
    medians = ", ".join(f"{side} {count(float(np.median(values[side])))}" for side, _ in _SIDES)
    return figure(chart.svg("Events per subject, real and synthetic"), f"Events per subject; medians: {medians}.")


def _as_told(run: RunFolder, row: dict[str, Any]) -> dict[str, Any]:
    """A share of real people as every share of the page: times the number of people it would be a count."""
    sides = _sides(run) if row["metric"] == "dead_mean_real" and is_number(row["value"]) and not run.tell.exact else None
    if sides is None:
        return row
    people = int(sides[0].select(pl.col("subject_id").n_unique()).collect().item())
    return {**row, "value": run.tell.ratio(round(row["value"] * people), people)}


def _summary(run: RunFolder, rows: pl.DataFrame | None) -> Markup | None:
    """Metric rows of `fidelity.parquet`: one line per metric, one column per thing compared with the real data."""
    if rows is None or not {"metric", "value"} <= set(rows.columns):
        return None
    listed = [_as_told(run, row) for row in rows.filter(pl.col("metric").is_not_null() & pl.col("value").is_not_null()).to_dicts()]
    if not listed:
        return None
    methods = list(dict.fromkeys(str(row.get("method", "synthetic")) for row in listed))
    cells = {(row["metric"], str(row.get("method", "synthetic"))): row for row in listed}
    metrics = dict.fromkeys(row["metric"] for row in listed)
    body = [[readable(metric), *(_with_interval(cells.get((metric, name))) for name in methods)] for metric in metrics]
    heads = ["Metric", *(readable(name) for name in methods)]
    inner = table(heads, body, caption="Fidelity: value and 95% interval")
    reference = (
        note("The column held out compares real people with real people: what two samples of the same population differ by.")
        if len(methods) > 1
        else ""
    )
    return details("All fidelity metrics", reference, inner)


def _with_interval(row: dict[str, Any] | None) -> Any:
    if row is None:
        return None
    ends = (row.get("lower"), row.get("upper"))
    value = number(row["value"])
    return join([value, tag("span", f"{number(ends[0])} to {number(ends[1])}", class_="ci")]) if all(is_number(end) for end in ends) else value

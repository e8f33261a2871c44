"""One subject: the record up to the prediction time, then the futures the model simulated beside what happened.

The only place of the page that shows a single person. By itself it shows nobody real: of a simulated population a held-out subject, else
one that the model wrote. A real person is shown only when asked for by id, and the page then says so at its head.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.errors import InputError
from cehrxgpt.report.history import bin_edges, read_history
from cehrxgpt.report.history_chart import VISIT_COLOURS
from cehrxgpt.report.history_tables import visits_table
from cehrxgpt.report.markup import (
    Markup,
    Section,
    count,
    day,
    details,
    figure,
    is_number,
    join,
    legend,
    number,
    paragraph,
    percent,
    readable,
    shorten,
    table,
    tag,
)
from cehrxgpt.report.methods import method, ordered
from cehrxgpt.report.patient_page import demographic, drawing, who
from cehrxgpt.report.quality.facts import clinical
from cehrxgpt.report.run import EVENT_COLUMNS, KEY, RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.sections.patient_charts import incidence_chart, lab_chart, raster_chart
from cehrxgpt.report.svg import responsive
from cehrxgpt.report.units import unit_name

Patient = int | Literal["auto"] | None

REAL_PERSON = "This page shows one real person’s record with its dates, because it was asked for. It is not for sharing."
_CANDIDATES = 200


@dataclass(frozen=True)
class Case:
    """One subject at one prediction time; `futures` and `samples` are empty where none were kept."""

    subject: int
    at: datetime
    past: pl.DataFrame
    actual: pl.DataFrame  # real events after the prediction time, up to the horizon
    futures: pl.DataFrame  # simulated events, with sample_id
    samples: pl.DataFrame  # one row per future: sample_id, end_time, stop_reason
    horizon_days: float
    observed_days: float  # how long the subject was really observed after the prediction time, at most the horizon


def section(run: RunFolder, patient: Patient) -> Section:
    """The chapter about one subject.

    Raises:
        MissingInputs: no events, no forecast of anybody, or no event of the subject asked for.
        InputError: the subject asked for is not in the events.
    """
    if patient == "auto" and not run.simulated:
        return _synthetic(run)
    if isinstance(patient, int) and (run.events is None or run.events.filter(pl.col("subject_id") == patient).head(1).collect().is_empty()):
        raise InputError(f"patient: no subject {patient} in {run.root / 'events'}")
    if run.events is None:
        raise MissingInputs("events/")
    case = _choose(run, patient)
    has_futures = not case.samples.is_empty()
    held_out = ", held out from training," if _split(run, case.subject) == s.HELD_OUT else ""
    parts: list[Any] = [] if run.simulated else [tag("div", paragraph(tag("b", REAL_PERSON)), class_="left-out")]
    parts += [
        paragraph(f"Subject {case.subject}{held_out} as the record stood on {day(case.at)}{', the prediction time' if has_futures else ''}."),
        _demographics(run, case),
        tag("h3", "The record so far", id="patient-record"),
        _record(run, case),
    ]
    children = [("patient-record", "The record so far")]
    if has_futures and (labs := _labs(run, case)):
        parts += [tag("h3", "Values, and where the futures take them", id="patient-labs"), labs]
        children.append(("patient-labs", "Values"))
    if has_futures:
        parts += [tag("h3", f"{len(case.samples)} simulated futures", id="patient-futures"), _futures(run, case)]
        children.append(("patient-futures", "Simulated futures"))
    if risks := _risks(run, case):
        parts.append(risks)
    return Section("patient", "One patient, and their simulated futures" if has_futures else "One patient", join(parts), tuple(children))


def _synthetic(run: RunFolder) -> Section:
    """A patient whom the model wrote, where the population is real and nobody was asked for."""
    events = run.synthetic_events
    if events is None:
        raise MissingInputs("--patient ID: nobody real is shown unless asked for by id, and there is no synthetic patient to show instead")
    few = events.select("subject_id").unique().sort("subject_id").head(_CANDIDATES).collect()
    own = events.filter(pl.col("subject_id").is_in(few["subject_id"].implode())).drop("split").collect()
    last = own.filter(clinical()).group_by("subject_id").agg(pl.col("time").max().alias("prediction_time")).sort("subject_id")
    if last.is_empty():
        raise MissingInputs("a synthetic patient with an event")
    subject, _ = _most_telling(own, last)
    history = read_history(own, subject, run.names)
    said = "Nobody real stands behind this record: the model wrote it. A real person is shown only when asked for (cehrxgpt report DIR --patient ID)."
    shown = drawing(history, run.names, bin_edges(run.parquet("timeline/vocabulary.parquet")))
    body = [paragraph(said), paragraph(*who(history, run.names, history.last)), shown, details("Visits as a table", visits_table(history))]
    return Section("patient", "One synthetic patient", join(body))


# -- choosing and loading ---------------------------------------------------------------------------------------------------------


def _read_trajectories(run: RunFolder) -> pl.DataFrame:
    needed = ("subject_id", "prediction_time", "sample_id", "time", "code")
    frames = [run.parquet(f"forecast/trajectories/{stem}.parquet", needed) for stem in run.stems("forecast/trajectories")]
    wanted = {**EVENT_COLUMNS, "prediction_time": pl.Datetime("us"), "sample_id": pl.Int32()}
    found = [
        frame.select(pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in wanted.items())
        for frame in frames
        if frame is not None
    ]
    return pl.concat(found) if found else pl.DataFrame(schema=wanted)


def _split(run: RunFolder, subject: int) -> str | None:
    assert run.events is not None
    found = run.events.filter(pl.col("subject_id") == subject).select("split").head(1).collect()
    return found.item() if found.height else None


def _candidates(run: RunFolder, trajectories: pl.DataFrame) -> pl.DataFrame:
    """(subject, prediction time) pairs that have futures as events, else a forecast, else a label."""
    if trajectories.height:
        return trajectories.select(KEY).unique().sort(KEY)
    for folder in ("forecast", "labels"):
        frames = [run.parquet(f"{folder}/{stem}.parquet", KEY) for stem in run.stems(folder) if not stem.endswith("attrition")]
        found = [
            frame.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
            for frame in frames
            if frame is not None
        ]
        if found and (pairs := pl.concat(found).unique().sort(KEY)).height:
            return pairs
    return pl.DataFrame(schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})


def _choose(run: RunFolder, patient: Patient) -> Case:
    assert run.events is not None
    trajectories = _read_trajectories(run)
    candidates = _candidates(run, trajectories)
    if patient != "auto" and patient is not None:
        candidates = candidates.filter(pl.col("subject_id") == patient)
        if candidates.is_empty():
            last = run.events.filter((pl.col("subject_id") == patient) & clinical()).select(pl.col("time").max()).collect().item()
            if last is None:
                raise MissingInputs(f"events of subject {patient}")
            candidates = pl.DataFrame({"subject_id": [patient], "prediction_time": [last]}, schema_overrides={"prediction_time": pl.Datetime("us")})
    elif patient == "auto":
        held_out = run.events.filter(pl.col("split") == s.HELD_OUT).select("subject_id").unique().collect()
        candidates = candidates.join(held_out, on="subject_id", how="semi").head(_CANDIDATES)
    if candidates.is_empty():
        raise MissingInputs("forecast/trajectories/*.parquet or forecast/<task>.parquet of a held-out subject")
    events = run.events.filter(pl.col("subject_id").is_in(candidates["subject_id"].unique().implode())).drop("split").collect()
    subject, at = _most_telling(events, candidates)
    return _load(run, events.filter(pl.col("subject_id") == subject), trajectories, subject, at)


def _most_telling(events: pl.DataFrame, candidates: pl.DataFrame) -> tuple[int, datetime]:
    """The pair whose record has something of everything: visits, several codes, values that repeat; ties go to the smallest id."""
    past = candidates.join(events.filter(pl.col("time").is_not_null()), on="subject_id").filter(pl.col("time") <= pl.col("prediction_time"))
    counted = past.group_by(KEY).agg(
        pl.col("code").filter(clinical()).n_unique().clip(0, 25).alias("codes"),
        pl.col("code").str.starts_with(s.VISIT_PREFIX).sum().clip(0, 15).alias("visits"),
        pl.col("numeric_value").is_not_null().sum().clip(0, 40).alias("values"),
        pl.len().alias("rows"),
    )
    score = pl.col("codes") / 25 + pl.col("visits") / 15 + pl.col("values") / 40 - (pl.col("rows") > 1500).cast(pl.Float64)
    ranked = (
        candidates.join(counted, on=KEY, how="left")
        .with_columns(score.fill_null(-9).alias("_score"))
        .sort(["_score", *KEY], descending=[True, False, False])
    )
    best = ranked.row(0, named=True)
    return best["subject_id"], best["prediction_time"]


def _load(run: RunFolder, events: pl.DataFrame, trajectories: pl.DataFrame, subject: int, at: datetime) -> Case:
    mine = (pl.col("subject_id") == subject) & (pl.col("prediction_time") == at)
    samples = run.parquet("forecast/samples.parquet", (*KEY, "sample_id", "end_time", "stop_reason"))
    chosen = samples.filter(mine) if samples is not None else pl.DataFrame()
    futures = trajectories.filter(mine)
    if chosen.is_empty() and not futures.is_empty():
        chosen = futures.group_by("sample_id").agg(pl.col("time").max().alias("end_time")).with_columns(pl.lit("horizon").alias("stop_reason"))
    horizon = 365.0
    if not chosen.is_empty():
        # Futures of several tasks share one pool: the longest says how far it was simulated.
        horizon = max(1.0, max((end - at) / timedelta(days=1) for end in chosen["end_time"].to_list()))
    limit = at + timedelta(days=horizon)
    timed = events.filter(pl.col("time").is_not_null())
    after = timed.filter(pl.col("time") > at)
    observed = max([(time - at) / timedelta(days=1) for time in after["time"].to_list()], default=0.0)
    return Case(
        subject,
        at,
        events.filter(pl.col("time").is_null() | (pl.col("time") <= at)),
        after.filter(pl.col("time") <= limit),
        futures,
        chosen,
        horizon,
        min(observed, horizon),
    )


# -- parts ------------------------------------------------------------------------------------------------------------------------


def _demographics(run: RunFolder, case: Case) -> Markup:
    static = case.past.filter(pl.col("code").str.starts_with(s.GENDER_PREFIX) | pl.col("code").str.starts_with(s.RACE_PREFIX))["code"].to_list()
    born = case.past.filter(pl.col("code") == s.BIRTH)["time"].min()
    facts = []
    if isinstance(born, datetime):
        years = int((case.at - born).days / 365.25)
        facts.append(f"aged {years}" if years < 90 else "aged 90 or more")  # very old people are few
    facts += [demographic(run.names, code) for code in static]
    rows = case.past.filter(clinical())
    seen = case.past.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX)).height
    facts.append(f"{count(rows.height)} events and {count(seen)} visits so far")
    said = "; ".join(facts)
    return paragraph(said[0].upper() + said[1:], ".")


def with_class(events: pl.DataFrame) -> pl.DataFrame:
    """Visit rows with their class (`visits.CLASSES`)."""
    stays = events.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX))
    minutes = (pl.col("end_time") - pl.col("time")).dt.total_minutes()
    return stays.with_columns(visits.classify(pl.col("code"), minutes).alias("class"))


def _record(run: RunFolder, case: Case) -> Markup:
    """The drawing of the record up to the prediction time, and the last of it as a table."""
    history = read_history(case.past, case.subject, run.names)
    edges = bin_edges(run.parquet("timeline/vocabulary.parquet"))
    return join([drawing(history, run.names, edges), details("Visits as a table", visits_table(history)), _last_events(run, case)])


def _last_events(run: RunFolder, case: Case, limit: int = 60) -> Markup:
    rows = case.past.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH)).sort("time", "code").tail(limit)
    body = [
        [f"{row['time']:%Y-%m-%d %H:%M}", shorten(run.name(row["code"]), 70), tag("code", shorten(row["code"], 60)), _value(run, row)]
        for row in rows.to_dicts()
    ]
    return details(
        f"The last {rows.height} events as a table", table(["Time", "Name", "Code", "Value"], body, caption=f"Events before {day(case.at)}", left=4)
    )


def _value(run: RunFolder, row: dict[str, Any]) -> str:
    unit = unit_name(run.names, row.get("unit"))
    if is_number(row["numeric_value"]):
        return f"{row['numeric_value']:.4g} {unit}".strip()
    return shorten(run.name(row["text_value"]), 40) if row["text_value"] else ""


def _labs(run: RunFolder, case: Case, limit: int = 6) -> Markup | None:
    values = case.past.filter(pl.col("numeric_value").is_not_null() & clinical())
    counted = values.group_by("code", "unit").agg(pl.len().alias("n"), pl.col("time").dt.date().n_unique().alias("days")).filter(pl.col("n") >= 3)
    charts = []
    for code, unit, *_ in counted.sort("days", "n", "code", descending=[True, True, False]).head(limit).iter_rows():
        same = (pl.col("code") == code) & pl.col("unit").eq_missing(pl.lit(unit, dtype=pl.String)) & pl.col("numeric_value").is_not_null()
        title = shorten(run.name(code), 36) + (f", {unit_name(run.names, unit)}" if unit_name(run.names, unit) else "")
        chart = lab_chart(title, case.at, case.horizon_days, values.filter(same), case.futures.filter(same), case.actual.filter(same))
        charts.append(figure(chart.svg(f"Values of {run.name(code)} over time")))
    if not charts:
        return None
    entries = [("recorded", "ink")]
    if case.futures["numeric_value"].count():
        entries += [("simulated: middle of the futures, and 8 in 10 of them", "c1"), ("what happened", "ink dot")]
    return join([legend(entries), tag("div", *charts, class_="charts")])


_RASTER_CAPTION = (
    "Each row is one future the model wrote from the prediction time on; the shaded row on top is what the record says happened. "
    "A row ends early at death, at the first outcome that was asked for, or when the future ran out of tokens."
)


def _futures(run: RunFolder, case: Case) -> Markup:
    simulated, actual = with_class(case.futures), with_class(case.actual)
    shown = sorted(set(simulated["class"].to_list()) | set(actual["class"].to_list()), key=visits.CLASSES.index)
    parts: list[Any] = []
    outcomes: list[tuple[str, str, pl.Expr]] = [("death", "ink", pl.col("code") == s.DEATH)]
    first = {"death": _first_days(case, case.futures.filter(outcomes[0][2]))}
    for name in ("inpatient", "emergency"):
        first[f"{name} visit"] = _first_days(case, simulated.filter(pl.col("class") == name))
    curves = [(name, VISIT_COLOURS.get(name.split(" ")[0], "ink"), found) for name, found in first.items() if found]
    raster = responsive(
        lambda width: raster_chart(width, case, simulated, actual),
        f"{case.samples.height} simulated futures as rows: visits, events and deaths over time",
    )
    keys = [(f"{name} visit", f"{VISIT_COLOURS[name]} box") for name in shown]
    parts += [legend([*keys, ("other event", "soft dot"), ("death", "ink cross")])]
    parts.append(figure(raster, _RASTER_CAPTION))
    if curves:
        parts.append(legend([(name, colour) for name, colour, _ in curves]))
        chart = responsive(
            lambda width: incidence_chart(width, case.horizon_days, case.samples.height, curves), "Share of futures with a first event by day"
        )
        parts.append(
            figure(chart, "Share of the futures in which the event has happened by that day (futures that ended early stay in the denominator).")
        )
    parts.append(_foretold(run, case))
    return join(parts)


def _first_days(case: Case, rows: pl.DataFrame) -> list[float]:
    """Days from the prediction time to each future's first such row, sorted."""
    first = rows.group_by("sample_id").agg(pl.col("time").min())
    return sorted((time - case.at) / timedelta(days=1) for time in first["time"].to_list() if time is not None)


def _foretold(run: RunFolder, case: Case) -> Markup:
    """The codes most futures hold, whether they are new, and whether they happened."""
    counted = case.futures.filter(clinical()).group_by("code").agg(pl.col("sample_id").n_unique().alias("futures"), pl.len().alias("n"))
    counted = counted.sort("futures", "n", "code", descending=[True, True, False]).head(12)
    if counted.is_empty():
        return Markup("")
    before, after = set(case.past["code"].to_list()), set(case.actual["code"].to_list())
    total = case.samples.height
    rows = [
        [shorten(run.name(code), 60), percent(futures / total, 0), "yes" if code in before else "new", "yes" if code in after else "no"]
        for code, futures, _ in counted.iter_rows()
    ]
    heads = ["Code", "Share of futures", "Recorded before", "Happened"]
    return details("What the futures hold most often", table(heads, rows, caption=f"Commonest codes in {total} futures"))


def _risks(run: RunFolder, case: Case) -> Markup | None:
    rows, names = [], []
    found: dict[str, dict[str, Any]] = {}
    for task in run.tasks:
        mine = run.predictions(task).filter((pl.col("subject_id") == case.subject) & (pl.col("prediction_time") == case.at))
        if mine.height:
            found[task] = {row["method"]: row for row in mine.to_dicts()}
            names += list(found[task])
    if not found:
        return None
    columns = ordered(names)
    for task, by_method in found.items():
        outcome = next((row["boolean_value"] for row in by_method.values() if row["boolean_value"] is not None), None)
        said = "unknown" if outcome is None else "yes" if outcome else "no"
        rows.append([readable(task), *(_risk(by_method.get(name)) for name in columns), said])
    caption = "This subject’s risks (± standard error) and what happened"
    return table(["Task", *(method(name).label for name in columns), "Outcome"], rows, caption=caption)


def _risk(row: dict[str, Any] | None) -> str | None:
    if row is None or not is_number(row["probability"]):
        return None
    return percent(row["probability"]) + (f" ± {number(100 * row['std_error'], 1)}" if is_number(row["std_error"]) else "")

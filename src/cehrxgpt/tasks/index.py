"""Who is asked about, and when: index events, and what the history must and must not hold."""

from __future__ import annotations

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.events import completed_years
from cehrxgpt.tasks.codes import discharge_codes, visit_class
from cehrxgpt.tasks.definition import Criterion, Task, Valued
from cehrxgpt.tasks.outcome import asked_at, concept_events, days, is_after, known_at, visit_rows, with_codes

_INSTANT = pl.Datetime("us")
_NO_STAY = (pl.lit(None, dtype=_INSTANT).alias("stay_start"), pl.lit(None, dtype=_INSTANT).alias("stay_end"))


def known_end() -> pl.Expr:
    """When the end of each Visit row is known: at its end, or at the end of that day where it has no time of day."""
    last_instant = pl.col("end_time").dt.truncate("1d") + pl.duration(microseconds=86_399_999_999, time_unit="us")
    return pl.when(pl.col("time_precision") == "day").then(last_instant).otherwise(pl.col("end_time"))


Step = tuple[str, pl.DataFrame]
"""What was asked of the index events in a step, and those that are left after it."""


def _visits_at_end(task: Task, events: pl.DataFrame) -> list[Step]:
    """Visits, those that have ended, and those of them with the place of discharge asked for.

    Asked about when the visit's end, and the place of discharge, are known.
    """
    stays = visit_rows(events).filter(visit_class().is_in(list(task.index.visit)))
    stays = stays.select(
        "subject_id", "visit_id", pl.col("time").alias("stay_start"), pl.col("end_time").alias("stay_end"), known_end().alias("_end")
    )
    ended = stays.filter(pl.col("stay_end").is_not_null())
    steps = [(f"index: visit ({', '.join(task.index.visit)})", stays), ("with an end", ended)]
    places = events.filter(pl.col("code").str.starts_with(s.DISCHARGE_PREFIX) & pl.col("visit_id").is_not_null())
    if task.index.discharge:
        ended = ended.join(with_codes(places, discharge_codes(task)), on=["subject_id", "visit_id"], how="semi")
        steps.append((f"discharged to {' or '.join(map(str, task.index.discharge))}", ended))
    said = places.group_by("subject_id", "visit_id").agg(known_at().max().alias("_said"))
    if task.about_intensive_care:
        said = said.clear()  # the visit's place of discharge is not what ends a stay inside it
    ended = ended.join(said, on=["subject_id", "visit_id"], how="left").with_columns(pl.max_horizontal("_end", "_said").alias("prediction_time"))
    return [*steps[:-1], (steps[-1][0], ended)]


def _visits_at_start(task: Task, events: pl.DataFrame) -> list[Step]:
    """Visits, classed by what is known `hours_after` their start, and those still going on then."""
    stays = visit_rows(events).with_columns(asked_at(task).alias("prediction_time"))
    stays = stays.filter(visit_class(pl.col("prediction_time")).is_in(list(task.index.visit)))
    stays = stays.select("subject_id", "visit_id", "prediction_time", pl.col("time").alias("stay_start"), pl.col("end_time").alias("stay_end"))
    going_on = stays.filter(pl.col("stay_end").is_null() | (pl.col("stay_end") > pl.col("prediction_time")))
    when = f"{task.index.hours_after} hours after its start" if task.index.hours_after else "when it is known"
    return [(f"index: visit ({', '.join(task.index.visit)})", stays), (f"still going on {when}", going_on)]


def _visit_index(task: Task, events: pl.DataFrame) -> list[Step]:
    steps = _visits_at_end(task, events) if task.index.at == "end" else _visits_at_start(task, events)
    if task.index.contains is not None:
        stays = steps[-1][1]
        inside = concept_events(task, Valued(concepts=task.index.contains), events).select("subject_id", "visit_id", known_at().alias("_known"))
        inside = stays.select("subject_id", "visit_id", "prediction_time").join(inside, on=["subject_id", "visit_id"], how="inner")
        inside = inside.filter(pl.col("_known") <= pl.col("prediction_time"))
        steps.append((f"contains: {task.index.contains}", stays.join(inside, on=["subject_id", "visit_id", "prediction_time"], how="semi")))
    return [*steps, ("one at a time", _distinct(steps[-1][1]))]


def _concept_index(task: Task, events: pl.DataFrame) -> list[Step]:
    found = concept_events(task, task.index, events).select("subject_id", known_at().alias("prediction_time"), *_NO_STAY)
    index = f"index: {task.index.concepts}"
    steps: list[Step] = []
    if task.index.by_value:  # how often it is measured, and how often so
        every = concept_events(task, Valued(concepts=task.index.concepts), events).select(
            "subject_id", known_at().alias("prediction_time"), *_NO_STAY
        )
        steps = [(index, _distinct(every))]
        index = f"value: {task.index.describe_concepts()}"
    if not task.index.also:
        return [*steps, (index, _distinct(found))]
    rows = found.group_by("subject_id").agg(pl.col("prediction_time").min())
    if steps:  # one row per subject from here on
        steps = [(steps[0][0], steps[0][1].unique("subject_id", keep="first"))]
    steps.append((index, rows))
    for other in task.index.also:
        first = concept_events(task, Valued(concepts=other), events).group_by("subject_id").agg(known_at().min().alias("_also"))
        rows = rows.join(first, on="subject_id").with_columns(pl.max_horizontal("prediction_time", "_also").alias("prediction_time")).drop("_also")
        steps.append((f"also: {other}", rows))
    return [*steps[:-1], (steps[-1][0], rows.select("subject_id", "prediction_time", *_NO_STAY))]


def _distinct(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per (subject, prediction time): of several stays the one that began first."""
    rows = rows.select("subject_id", "prediction_time", "stay_start", "stay_end")
    return rows.sort("subject_id", "prediction_time", "stay_start", "stay_end").unique(["subject_id", "prediction_time"], keep="first")


def _recorded(events: pl.DataFrame) -> pl.DataFrame:
    """Timed rows of the record: all but birth and entries from elsewhere."""
    return events.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH) & ~pl.col("code").str.starts_with(s.ENTRY_PREFIX))


def _content(events: pl.DataFrame) -> pl.DataFrame:
    """Those of them that say something happened: all but the marks of observation."""
    return _recorded(events).filter(~pl.col("code").is_in([s.OBSERVATION_START, s.OBSERVATION_END]))


def index_steps(task: Task, events: pl.DataFrame) -> list[Step]:
    """Every index event of one shard, and what is left of them after each thing that the index asks for; the same steps for every shard.

    The rows of the last step: `subject_id`, `prediction_time`, `stay_start`, `stay_end` (null unless it is a visit), distinct in (subject,
    prediction time), sorted; `occurrence` is already applied.
    """
    if task.index.visit:
        steps = _visit_index(task, events)
    elif task.index.concepts is not None:
        steps = _concept_index(task, events)
    else:
        first = _content(events).group_by("subject_id").agg(pl.col("time").min())
        after = (pl.col("time") + days(task.index.days_after_first_event or 0)).alias("prediction_time")
        steps = [(f"index: {task.index.days_after_first_event} days after the first event", first.select("subject_id", after, *_NO_STAY))]
    rows = steps[-1][1].sort("subject_id", "prediction_time")
    if task.index.occurrence == "each" or task.index.also or task.index.days_after_first_event is not None:
        return [*steps[:-1], (steps[-1][0], rows)]  # no subject has more than are asked for
    chosen = rows.unique("subject_id", keep=task.index.occurrence).sort("subject_id", "prediction_time")
    return [*steps, (f"the {task.index.occurrence} of each subject", chosen)]


def person_facts(events: pl.DataFrame) -> pl.DataFrame:
    """Per subject: `observed_from`, `observed_until`, `birth`.

    Observation begins at the earlier of OBSERVATION//START and the first event, and ends at the later of OBSERVATION//END, the time
    the last event became known, and the end of the last visit.
    """
    timed = _recorded(events)
    is_visit = pl.col("code").str.starts_with(s.VISIT_PREFIX)
    until = pl.max_horizontal(known_at(), pl.when(is_visit).then(pl.col("end_time")))
    facts = timed.group_by("subject_id").agg(pl.col("time").min().alias("observed_from"), until.max().alias("observed_until"))
    births = events.filter(pl.col("code") == s.BIRTH).group_by("subject_id").agg(pl.col("time").min().alias("birth"))
    return facts.join(births, on="subject_id", how="left")


def history_holds(task: Task, criterion: Criterion, events: pl.DataFrame, rows: pl.DataFrame, *, known: bool) -> pl.Series:
    """Does each row's history meet the criterion? Boolean, in the order of `rows`.

    Args:
        task: whose concept sets are meant.
        criterion: what to look for.
        events: the shard.
        rows: `subject_id`, `prediction_time`, `birth`.
        known: True: what the record knew at the prediction time (inclusion); False: all that is not after it (exclusion), so that
            something of the index day whose hour is not known counts too.
    """
    if criterion.by_age:
        age = completed_years(pl.col("prediction_time"), pl.col("birth"))
        low, high = criterion.age_at_least, criterion.age_at_most
        met = (age >= low if low is not None else pl.lit(True)) & (age <= high if high is not None else pl.lit(True))
        return rows.select(met.fill_null(False).alias("met"))["met"]
    found = concept_events(task, criterion, events) if criterion.concepts is not None else visit_rows(events)
    keyed = rows.select("subject_id", "prediction_time").with_row_index("_row")
    found = found.select("subject_id", "time", "code", "end_time", "available_time").join(keyed, on="subject_id", how="inner")
    before = known_at() <= pl.col("prediction_time") if known else ~is_after("prediction_time")
    found = found.filter(before)
    if criterion.within_days is not None:
        found = found.filter(pl.col("time") > pl.col("prediction_time") - days(criterion.within_days))
    if criterion.visit:
        found = found.filter(visit_class(pl.col("prediction_time")).is_in(list(criterion.visit)))
    enough = found.group_by("_row").agg(pl.len().alias("_count")).filter(pl.col("_count") >= criterion.count)
    return keyed["_row"].is_in(enough["_row"].implode())

"""Event tables for the timeline's tests: written by hand, and drawn by hypothesis."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import strategies as st

from cehrxgpt.events import conform, sort_events

START = datetime(2010, 1, 1)
VISIT_CODES = ("Visit/9201", "Visit/9203", "Visit/9202", "Visit/581385", "Visit/8883", "Visit/424242")
CODES = ("condition/1", "condition/2", "drug/3", "measurement/4", "measurement/5", "procedure/6", "device/7")
ICU_CODES = ("VisitDetail/32037", "VisitDetail/581379")  # the first one is the more common
ORIGINS = {"drug": "drug_exposure"}  # of the prefixes whose origin matters
END_OF_DAY = timedelta(days=1) - timedelta(microseconds=1)


def row(subject: int, time: datetime | None, code: str, **more: Any) -> dict[str, Any]:
    """One event; `available_time` is `time` unless `day=True`, which makes it a row known by its date only."""
    day = more.pop("day", False)
    if day and time is not None:
        time = datetime(time.year, time.month, time.day)
    available = None if time is None else time + END_OF_DAY if day else time
    precision = None if time is None else "day" if day else "minute"
    return {"subject_id": subject, "time": time, "code": code, "available_time": available, "time_precision": precision} | more


def table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a sorted EventTable."""
    names: dict[str, None] = {}
    for one in rows:
        names.update(dict.fromkeys(one))
    kept = {name: [one.get(name) for one in rows] for name in names}
    overrides = {"time": pl.Datetime("us"), "end_time": pl.Datetime("us"), "available_time": pl.Datetime("us"), "numeric_value": pl.Float32}
    frame = pl.DataFrame(kept, schema_overrides={name: dtype for name, dtype in overrides.items() if name in kept}, strict=False)
    return sort_events(conform(frame))


def static(subject: int, birth: datetime | None = datetime(1950, 5, 17)) -> list[dict[str, Any]]:
    """Gender, race and birth."""
    rows = [row(subject, None, "gender/8532", origin="person"), row(subject, None, "race/8527", origin="person")]
    return rows if birth is None else [*rows, row(subject, birth, "MEDS_BIRTH")]


# -- drawn ------------------------------------------------------------------------------------------------------------------------

_minutes = st.one_of(
    st.integers(0, 60),
    st.integers(0, 3 * 1440),
    st.integers(0, 80 * 1440),
    st.integers(1078, 1083).map(lambda days: days * 1440 + 600),
    st.integers(0, 4000 * 1440),
    st.integers(0, 10).map(lambda days: days * 1440),
)
_lengths = st.one_of(st.none(), st.just(0), st.integers(0, 50), st.integers(0, 4 * 1440), st.integers(0, 100 * 1440))


@st.composite
def histories(draw: st.DrawFn, *, subjects: int = 3, ends: bool = True, icu: bool = True) -> pl.DataFrame:
    """Whatever an EventTable may hold: overlapping and nested visits, several units on a date, long gaps, deaths inside visits, rows
    known by their date only, values with and without signs, categories, visits without an end, bare events, empty visits, codes nobody
    knows, drugs and devices with ends, intensive care inside, across and outside of visits, overlapping, without an end."""
    rows: list[dict[str, Any]] = []
    for subject in range(draw(st.integers(1, subjects))):
        mine: list[dict[str, Any]] = []
        visits = []
        for number in range(draw(st.integers(0, 5))):
            start = START + timedelta(minutes=draw(_minutes))
            length = draw(_lengths) if ends else draw(_lengths.filter(lambda value: value is not None))
            end = None if length is None else start + timedelta(minutes=length)
            code = draw(st.sampled_from(VISIT_CODES))
            visits.append((number - 2, start, end))
            mine.append(row(subject, start, code, end_time=end, visit_id=number - 2, origin="visit_occurrence"))
            if end is not None and draw(st.booleans()):
                mine.append(row(subject, end, draw(st.sampled_from(("discharge/8536", "discharge/77"))), visit_id=number - 2))
        for _ in range(draw(st.integers(0, 3)) if icu else 0):
            link, around, _ = draw(st.sampled_from([*visits, (None, START, None)]))
            begin = around + timedelta(minutes=draw(st.one_of(st.just(0), st.integers(-2000, 6000))))
            stay = draw(st.one_of(st.none(), st.integers(-60, 5000)))
            end = None if stay is None else begin + timedelta(minutes=stay)
            mine.append(row(subject, begin, draw(st.sampled_from(ICU_CODES)), end_time=end, visit_id=link, origin="visit_detail"))
        for _ in range(draw(st.integers(0, 8))):
            visit, link = None, None
            if visits and draw(st.booleans()):
                link, visit, _ = draw(st.sampled_from(visits))
            near = draw(st.one_of(st.just(0), st.integers(-1600, 3000)))
            time = START + timedelta(minutes=draw(_minutes)) if visit is None else visit + timedelta(minutes=near)
            value = draw(st.one_of(st.none(), st.floats(-5, 25, width=32), st.just(float("nan"))))
            more = {
                "numeric_value": value,
                "unit": draw(st.sampled_from((None, "8840", "mg"))),
                "text_value": draw(st.sampled_from((None, "high", "low", "___", "rare"))),
                "operator": draw(st.sampled_from((None, None, "<", ">="))),
                "visit_id": link,
                "day": draw(st.booleans()),
                "origin": "x",
            }
            length = draw(st.one_of(st.none(), st.integers(-100, 200 * 1440)))
            if length is not None:
                more["end_time"] = time + timedelta(minutes=length)
            mine.append(row(subject, time, draw(st.sampled_from((*CODES, "unheard/9"))), **more))
        if mine and draw(st.booleans()):
            last = max(one["time"] for one in mine)
            death = last + timedelta(minutes=draw(st.integers(0, 2000)))
            if draw(st.booleans()):
                death = datetime(death.year, death.month, death.day) + END_OF_DAY
            mine.append(row(subject, death, "MEDS_DEATH", origin="death"))
        if mine and draw(st.booleans()):
            mine.append(row(subject, max(one["time"] for one in mine) + timedelta(days=draw(st.integers(0, 900))), "OBSERVATION//END"))
        rows += [*static(subject, draw(st.sampled_from((None, datetime(1950, 5, 17), datetime(1990, 1, 31))))), *mine]
    return table(rows)


def training_table(*, icu: bool = True) -> pl.DataFrame:
    """A table in which every code, unit, category, sign and value of `histories` is frequent enough for a vocabulary."""
    rows: list[dict[str, Any]] = []
    for subject in range(40):
        rows += static(subject)
        begin = START + timedelta(days=subject * 7)
        for number, code in enumerate(VISIT_CODES[:5]):
            start = begin + timedelta(days=40 * number, hours=number)
            rows.append(row(subject, start, code, end_time=start + timedelta(hours=3), visit_id=number, origin="visit_occurrence"))
            rows.append(row(subject, start + timedelta(hours=3), "discharge/8536", visit_id=number, origin="visit_occurrence"))
        for number, code in enumerate(CODES):
            time = begin + timedelta(days=11 * number, minutes=77 * number)
            origin = ORIGINS.get(code.split("/")[0], code.split("/")[0])
            rows.append(row(subject, time, code, text_value=("high", "low")[subject % 2], origin=origin))
            if code.startswith("measurement"):
                for unit in (None, "8840"):
                    values = {"numeric_value": 1.0 + subject % 13 if subject % 3 else 5.0, "unit": unit}
                    rows.append(row(subject, time + timedelta(hours=1), code, origin="measurement", **values))
                    signed = {"numeric_value": 0.5 + subject % 4, "unit": "8840", "operator": "<"}
                    rows.append(row(subject, time + timedelta(hours=2), code, origin="measurement", **signed))
        if icu:
            unit = ICU_CODES[subject % 3 == 0]
            rows.append(row(subject, begin, unit, end_time=begin + timedelta(hours=1), visit_id=0, origin="visit_detail"))
        drug = {"origin": "drug_exposure", "end_time": begin + timedelta(days=14, minutes=subject)}
        rows.append(row(subject, begin + timedelta(days=5), "drug/3", **drug))
    return table(rows)

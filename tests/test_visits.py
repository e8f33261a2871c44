"""Visit classes: the expression equals its plain twin, and duration turns an ambiguous concept into a stay."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import visits

CODES = [
    "Visit/9201",
    "Visit/262",
    "Visit/9203",
    "Visit/8870",
    "Visit/581385",
    "Visit/8883",
    "Visit/38004207",
    "Visit/9202",
    "Visit/0",
    "Visit/0/ODD",
]
CODES += [f"Visit/{name}" for name in visits.CLASSES]


@pytest.mark.parametrize(
    ("code", "minutes", "expected"),
    [
        ("Visit/9201", None, "inpatient"),
        ("Visit/9201", 10, "inpatient"),
        ("Visit/262", 600, "inpatient"),
        ("Visit/9203", 6000, "emergency"),
        ("Visit/8870", 1440, "emergency"),
        ("Visit/8870", 1441, "inpatient"),
        ("Visit/8870", None, "emergency"),
        ("Visit/581385", 600, "observation"),
        ("Visit/581385", 3000, "inpatient"),
        ("Visit/8883", 3000, "inpatient"),
        ("Visit/8883", 0, "observation"),
        ("Visit/9202", 99999, "outpatient"),
        ("Visit/2000000123", 99999, "other"),
        ("Visit/emergency", 99999, "emergency"),
    ],
)
def test_class_of(code: str, minutes: int | None, expected: str) -> None:
    assert visits.class_of(code, minutes) == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(CODES), st.none() | st.floats(0, 1e5)), min_size=1, max_size=20))
def test_expression_equals_plain_twin(rows: list[tuple[str, float | None]]) -> None:
    frame = pl.DataFrame(rows, schema={"code": pl.String, "minutes": pl.Float64}, orient="row")
    found = frame.select(visits.classify(pl.col("code"), pl.col("minutes")).alias("c")).with_columns(
        visits.rank(pl.col("c")).alias("rank"), visits.is_span(pl.col("c")).alias("span")
    )
    expected = [visits.class_of(code, minutes) for code, minutes in rows]
    assert found["c"].to_list() == expected
    assert found["rank"].to_list() == [len(visits.CLASSES) - 1 - visits.CLASSES.index(name) for name in expected]
    assert found["span"].to_list() == [name in visits.SPAN_CLASSES for name in expected]


def test_classes_are_spans_or_days() -> None:
    assert set(visits.SPAN_CLASSES) | set(visits.DAY_CLASSES) == set(visits.CLASSES)
    assert not set(visits.SPAN_CLASSES) & set(visits.DAY_CLASSES)
    assert set(visits.listed_codes().values()) <= set(visits.CLASSES)
    assert visits.is_listed("Visit/9201")
    assert not visits.is_listed("Visit/1")


@pytest.mark.parametrize("code", CODES)
def test_hours_do_not_depend_on_the_duration(code: str) -> None:
    """What a visit will have been is not known while it goes on."""
    assert len({visits.class_of(code, minutes) in visits.SPAN_CLASSES for minutes in (None, 0, 1440, 1441, 1e6)}) == 1


def test_import_needs_no_polars() -> None:
    code = "import sys, cehrxgpt.visits as v; v.class_of('Visit/9201'); assert 'polars' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_intensive_care_and_visits_with_hours() -> None:
    """Intensive care lies inside visits that have hours."""
    assert {32037, 581379} <= set(visits.intensive_care())
    assert [code for code in ("Visit/9201", "Visit/8870", "Visit/8883", "Visit/9202", "Visit/other", "Visit/7") if visits.has_hours(code)] == [
        "Visit/9201",
        "Visit/8870",
        "Visit/8883",
    ]

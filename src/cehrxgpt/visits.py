"""Classes of visits: which stays have hours inside, which are one calendar day, and how a visit concept falls into them.

One small file (`visit_classes.yaml`) serves ingest, timeline and tasks. A concept that sites use both for a few hours and for days
of stay (an emergency room that keeps its patients, an observation room) is inpatient when it lasts over 24 hours. The duration changes
what a visit is called, never whether it has hours inside: that is known when it begins.

Polars is imported only by the functions that build expressions, so that the file can be read without the data stack.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cehrxgpt.config import read_yaml
from cehrxgpt.errors import ConfigError
from cehrxgpt.schema import VISIT_PREFIX

if TYPE_CHECKING:
    import polars as pl

CLASSES = ("inpatient", "emergency", "observation", "outpatient", "other")
"""All classes, highest rank first: where two visits overlap, the higher one names the whole."""

SPAN_CLASSES = ("inpatient", "emergency", "observation")
"""Visits that have hours inside."""

DAY_CLASSES = ("outpatient", "other")
"""Visits that are one calendar day."""

_FILE = Path(__file__).with_name("visit_classes.yaml")


@cache
def _table() -> tuple[dict[str, str], frozenset[str], int]:
    """(code -> class, ambiguous codes, minutes beyond which those are stays)."""
    content = read_yaml(_FILE)
    concepts = content["concepts"]
    if set(concepts) - set(CLASSES):
        raise ConfigError(f"{_FILE.name}: unknown class in 'concepts'; valid classes: {', '.join(CLASSES)}")
    classes = {f"{VISIT_PREFIX}{name}": name for name in CLASSES}
    for name, identifiers in concepts.items():
        for identifier in identifiers:
            code = f"{VISIT_PREFIX}{identifier}"
            if code in classes:
                raise ConfigError(f"{_FILE.name}: concept {identifier} stands under two classes; keep one")
            classes[code] = name
    ambiguous = frozenset(f"{VISIT_PREFIX}{identifier}" for identifier in content["ambiguous"])
    if not ambiguous <= set(classes):
        raise ConfigError(f"{_FILE.name}: every concept under 'ambiguous' also needs its class under 'concepts'")
    if not all(classes[code] in SPAN_CLASSES for code in ambiguous):
        raise ConfigError(f"{_FILE.name}: concepts under 'ambiguous' need a class with hours inside ({', '.join(SPAN_CLASSES)})")
    return classes, ambiguous, int(content["stay_hours"]) * 60


def class_of(code: str, duration_minutes: float | None = None) -> str:
    """Class of one visit; the plain twin of `classify`. `code` is the whole `Visit/...` string; an unknown duration is None."""
    classes, ambiguous, stay = _table()
    if code in ambiguous and duration_minutes is not None and duration_minutes > stay:
        return "inpatient"
    return classes.get(code, "other")


@cache
def intensive_care() -> tuple[int, ...]:
    """Concepts of visit details that are a stay in intensive care."""
    return tuple(int(identifier) for identifier in read_yaml(_FILE)["intensive_care"])


@cache
def has_hours(code: str) -> bool:
    """Whether visits of this `Visit/...` code have hours inside, however long they last."""
    return class_of(code) in SPAN_CLASSES


def is_listed(code: str) -> bool:
    """Whether the file names the code (others are `other` for want of anything better)."""
    return code in _table()[0]


def listed_codes() -> dict[str, str]:
    """Every `Visit/...` code of the file with its plain class."""
    return dict(_table()[0])


def classify(code: pl.Expr, duration_minutes: pl.Expr) -> pl.Expr:
    """Class of each visit row, as a string expression.

    Args:
        code: the full `Visit/...` string.
        duration_minutes: end minus start; null where the end is unknown (the concept's plain class). Of a stay that is still
            open the time elapsed so far may be passed.
    """
    import polars as pl

    classes, ambiguous, stay = _table()
    plain = code.replace_strict(list(classes), list(classes.values()), default="other", return_dtype=pl.String)
    long_stay = (code.is_in(sorted(ambiguous)) & (duration_minutes > stay)).fill_null(False)
    return pl.when(long_stay).then(pl.lit("inpatient")).otherwise(plain)


def is_ambiguous(code: pl.Expr) -> pl.Expr:
    """True where the concept is one that becomes an inpatient stay when it lasts over `stay_minutes`."""
    return code.is_in(sorted(_table()[1]))


def stay_minutes() -> int:
    """Beyond which an ambiguous visit is a stay."""
    return _table()[2]


def rank(visit_class: pl.Expr) -> pl.Expr:
    """Rank of each class as Int8, 4 (inpatient) to 0 (other): where visits overlap, the highest wins."""
    import polars as pl

    return visit_class.replace_strict(list(CLASSES), list(range(len(CLASSES) - 1, -1, -1)), default=0, return_dtype=pl.Int8)


def is_span(visit_class: pl.Expr) -> pl.Expr:
    """True where visits of the class have hours inside."""
    return visit_class.is_in(list(SPAN_CLASSES))

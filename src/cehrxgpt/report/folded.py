"""A time axis that folds long silences: what happened keeps its scale, years without a record shrink to a labelled gap.

A record of five admissions in ten years would otherwise be five specks. A gap is folded when it is long against the record (a
seventh of it or more), long in itself (over 60 days) and long against the record's own rhythm (ten times its median gap), so that a
yearly check-up stays a yearly check-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np

from cehrxgpt.report.svg import Axis, date_ticks, days

_LEAST_DAYS, _LEAST_SHARE, _TIMES_MEDIAN = 60.0, 1 / 7, 10.0
_FOLD_SHARE, _FOLDS_AT_MOST = 0.05, 0.4


@dataclass(frozen=True)
class Fold:
    """A folded gap, in days since 1970, and how long it is in words."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class FoldedAxis(Axis):
    """An `Axis` of dates whose folds take a fixed share of the width each.

    Attributes:
        folds: in order.
        knots: days since 1970 and fractions between which the axis is linear.
    """

    folds: tuple[Fold, ...] = ()
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def fraction(self, value: Any) -> Any:
        """0 at `low`, 1 at `high`; arrays allowed; beyond the ends it stays at them."""
        return np.interp(np.asarray(value, dtype=float), *self.knots)

    @classmethod
    def of(cls, times: Sequence[datetime | date], *, target: int = 7) -> FoldedAxis:
        """An axis for these times, with about `target` ticks."""
        spots = np.unique(np.array([days(time) for time in times], dtype=float))
        low, high = (float(spots[0]), float(spots[-1])) if len(spots) else (0.0, 1.0)
        pad = max((high - low) * 0.01, 0.5)
        low, high = low - pad, high + pad
        folds = _folds(spots)
        starts = [low, *(fold.end for fold in folds)]
        ends = [*(fold.start for fold in folds), high]
        each = min(_FOLD_SHARE, _FOLDS_AT_MOST / max(1, len(folds)))
        open_days = sum(ends) - sum(starts)
        scale = (1 - each * len(folds)) / open_days
        xs, fs, at = [], [], 0.0
        ticks: list[tuple[float, str]] = []
        for start, end in zip(starts, ends, strict=True):
            width = (end - start) * scale
            xs += [start, end]
            fs += [at, at + width]
            # Single days are told only where the whole record is short.
            fine = width > 0.08 and (end - start > 62 or high - low < 500)
            inside = _ticks(start, end, max(1, round(target * width)), least=2 if width > 0.3 else 1) if fine else []
            ticks += inside or [(start, _date(start + pad if start == low else start))]
            at += width + each
        return cls(low, high, tuple(ticks), folds=folds, knots=(tuple(xs), tuple(fs)))


def _ticks(low: float, high: float, target: int, *, least: int) -> list[tuple[float, str]]:
    """About `target` ticks, and at least so many where closer ones give them: one date alone gives no scale."""
    found: list[tuple[float, str]] = []
    for more in range(target, 2 * target + 3):
        found = date_ticks(low, high, more)
        if len(found) >= least:
            break
    return found


def _date(value: float) -> str:
    return (datetime(1970, 1, 1) + timedelta(days=value)).strftime("%b %Y")


def _folds(spots: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[Fold, ...]:
    whole = np.unique(np.floor(spots))
    if len(whole) < 3:
        return ()
    gaps = np.diff(whole)
    least = max(_LEAST_DAYS, _LEAST_SHARE * float(whole[-1] - whole[0]), _TIMES_MEDIAN * float(np.median(gaps)))
    found = []
    for place in np.flatnonzero(gaps >= least):
        # A little of the silence stays on either side, so that the last event before it does not touch the fold.
        margin = min(5.0, 0.02 * gaps[place])
        found.append(Fold(float(whole[place] + 1 + margin), float(whole[place + 1] - margin), duration_words(float(gaps[place]))))
    return tuple(fold for fold in found if fold.end > fold.start)


def duration_words(length_days: float) -> str:
    """3.2 y, 7 mo, 12 d, 5 h: one figure and its unit."""
    if length_days >= 548:
        return f"{length_days / 365.25:.1f} y"
    if length_days >= 60:
        return f"{length_days / 30.44:.0f} mo"
    if length_days >= 2:
        return f"{length_days:.0f} d"
    return f"{length_days * 24:.0f} h" if length_days >= 2 / 24 else f"{length_days * 1440:.0f} min"


def stay_words(row: Mapping[str, Any], *, cut: bool = False) -> str:
    """How long a stay was: `time`, `end_time`, and `dated` where it is known by its days alone.

    Args:
        cut: the record ends at an instant at which a stay without an end still goes on.
    """
    start, end = row["time"], row["end_time"]
    if end is None:
        return "still going on" if cut else "not known"
    if row.get("dated"):
        length = (end.date() - start.date()).days + 1
        return "1 day" if length == 1 else f"{length:,} days"
    return duration_words((end - start).total_seconds() / 86400)

"""What a task with a true risk asks of a re-simulated future, judged as the labeler would judge the record of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.simulate.state import DAY, DISCHARGE, IN_STAY, Floats, State

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """Where futures are judged, by their `row`: from `open` (exclusive) to `close` (minutes); `admitted`: the stay going on at the start."""

    open: Floats
    close: Floats
    admitted: Floats
    hospital: str

    def holds(self, part: State, at: Floats) -> Mask:
        """Which of these instants lie in the window of their row."""
        return (at > self.open[part.row]) & (at <= self.close[part.row])


Outcome = Callable[[State, Window], Mask]
"""Which rows of a transition are the outcome."""


@dataclass(frozen=True)
class Event:
    """A hazard's event, whatever the record says of it."""

    name: str

    def __call__(self, part: State, window: Window) -> Mask:
        """See `Outcome`."""
        return part.is_event(self.name)


@dataclass(frozen=True)
class Death:
    """Death as the record dates it: to the minute in hospital, to the day elsewhere, which then stands at the day's end."""

    def __call__(self, part: State, window: Window) -> Mask:
        """See `Outcome`."""
        at = np.where(part.visit == IN_STAY, part.time, (np.floor(part.time / DAY) + 1) * DAY)
        return part.is_event("death") & window.holds(part, at)


@dataclass(frozen=True)
class DeathInStay:
    """Death before the end of the stay that was going on, or elsewhere on the day it ended."""

    def __call__(self, part: State, window: Window) -> Mask:
        """See `Outcome`."""
        same = part.since("admission") == window.admitted[part.row]
        that_day = np.floor(part.since("discharge") / DAY) == np.floor(part.time / DAY)
        return part.is_event("death") & same & ((part.visit == IN_STAY) | that_day)


@dataclass(frozen=True)
class IntensiveCareEnds:
    """Intensive care that was going on ends in the window, as planned."""

    def __call__(self, part: State, window: Window) -> Mask:
        """See `Outcome`."""
        return part.icu_until <= window.close[part.row]


@dataclass(frozen=True)
class StayEnds:
    """The stay that was going on ends, by discharge or death."""

    def __call__(self, part: State, window: Window) -> Mask:
        """See `Outcome`."""
        return (part.event == DISCHARGE) | part.is_event("death")


@dataclass(frozen=True, kw_only=True)
class TrueTask:
    """A library task.

    Attributes:
        outcome: see `Outcome`.
        days: length of the window.
        settled: rows of a re-simulated start that are the outcome already: by the plan, drawn anew, or by what is still to be written of
            the last event.
        gap_days: the window opens so long after the prediction time.
        number: tells the tasks' random futures apart.
        stay_over_days: asked in a stay; the outcome is that it has not ended (`outcome` is its end) so many days after the admission.
        in_stay: asked in a stay; in_intensive_care: so many hours after intensive care began, `stay_over_days` counting from there.
        rows: folder -> `subject_id`, `prediction_time` of everyone who is asked, found in the tables without the labeler; None: `index`
            knows them.
    """

    outcome: Outcome
    days: float
    number: int
    gap_days: float = 0.0
    stay_over_days: float | None = None
    in_stay: bool = False
    in_intensive_care: float | None = None
    settled: Outcome | None = None
    rows: Callable[[Path], pl.DataFrame] | None = None


def window_of(task: TrueTask, states: State, instant: Floats, hospital: str) -> Window:
    """The window of each row of `states`, asked at `instant` (minutes)."""
    admitted = states.since("admission")
    open_at = instant + task.gap_days * DAY
    # the record dates intensive care by the minutes in the emergency room too, which are no part of the state; the instant knows
    began = admitted if task.in_intensive_care is None else instant - task.in_intensive_care * DAY / 24
    close = began + task.stay_over_days * DAY if task.stay_over_days is not None else open_at + task.days * DAY
    return Window(open_at, close, admitted, hospital)

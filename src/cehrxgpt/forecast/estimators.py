"""From sampled futures to a risk: Monte Carlo with honest denominators. NumPy only.

Of the `n` futures of one prediction time, some had the outcome, some reached an end without it (the horizon, death), and some ran
out of tokens before either: *unfinished*. An unfinished future is neither dropped (that divides by too few, and is biased upward) nor
a negative (biased downward). The point estimate is Aalen-Johansen on simulated time: each future starts with mass 1/n, and the mass of
an unfinished one goes in equal parts to the futures that were still running when it stopped (redistribution to the right).
What is left when none was still running goes on at the average rate of all futures of that prediction time: with k outcomes and d
deaths in T days of simulated window and r days of it to go, at (k + 1/2) / (T + r) and d / (T + r) a day. Where the window has no known
close (a stay), it takes the Jeffreys mean of the decided futures, (k + 1/2) / (m + 1).

Running out of tokens is informative (sicker patients use more tokens), so with unfinished futures no unbiasedness is claimed: the
bounds say what the risk would be if none, or all, of them had the outcome. The estimate always lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import InputError

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Risk:
    """One entry per prediction time, float64[R]."""

    probability: Float
    std_error: Float
    completion: Float  # share of futures whose answer is known
    lower_bound: Float
    upper_bound: Float


def jeffreys_std_error(probability: Float, decided: Float) -> Float:
    """Standard deviation of Beta(p m + 1/2, (1 - p) m + 1/2), [R]: never 0, also where all futures agree."""
    a, b = probability * decided + 0.5, (1 - probability) * decided + 0.5
    return np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))


def _rest(found: Float, decided: Float, died: Float, exposure: Float, remaining: Float | None) -> Float:
    """Risk of what is left over, [R]; `exposure` and `remaining` in minutes of the window."""
    if remaining is None:
        return (found + 0.5) / (decided + 1)
    time = np.maximum(exposure + remaining, 1)
    outcome_rate, death_rate = (found + 0.5) / time, died / time
    either = outcome_rate + death_rate
    return outcome_rate / either * -np.expm1(-either * remaining)


def monte_carlo(
    outcome: Bool,
    unfinished: Bool,
    end_minutes: npt.NDArray[np.int64],
    *,
    died: Bool | None = None,
    open_minutes: int = 0,
    close_minutes: int | None = None,
) -> Risk:
    """The risk of R prediction times from n futures each.

    Args:
        outcome: bool[R, n]; the outcome was seen within the window.
        unfinished: bool[R, n]; the answer is not known: the budget ended before the window did, without the outcome. An entry
            that has the outcome is not unfinished, whatever is said here.
        end_minutes: int64[R, n], from the prediction time: the outcome's time, death, the window's close, or where the budget ran out.
        died: bool[R, n]; ended by death without the outcome. None: nobody.
        open_minutes, close_minutes: of the window, from the prediction time; None: the close is not known.

    Raises:
        InputError: shapes differ, or there is not one future.
    """
    if outcome.ndim != 2 or outcome.shape != unfinished.shape or outcome.shape != end_minutes.shape or outcome.shape[1] == 0:
        shapes = f"{outcome.shape}, {unfinished.shape}, {end_minutes.shape}"
        raise InputError(f"futures: expected three arrays of one shape [rows, samples >= 1], found {shapes}")
    unfinished = unfinished & ~outcome
    samples = outcome.shape[1]
    # At equal times the decided stand before the unfinished, as deaths do before censorings in Kaplan-Meier.
    order = np.lexsort((unfinished, end_minutes), axis=1)
    outcome_sorted, unfinished_sorted = np.take_along_axis(outcome, order, 1), np.take_along_axis(unfinished, order, 1)
    still_running = samples - 1 - np.arange(samples)
    spread = np.where(unfinished_sorted & (still_running > 0), 1 + 1 / np.maximum(still_running, 1), 1.0)
    mass = np.cumprod(np.concatenate([np.full((len(outcome), 1), 1 / samples), spread[:, :-1]], axis=1), axis=1)
    found, undecided = outcome.sum(1).astype(np.float64), unfinished.sum(1).astype(np.float64)
    decided = samples - undecided
    deaths = np.zeros(len(outcome)) if died is None else (died & ~outcome).sum(1).astype(np.float64)
    exposure = np.maximum(end_minutes - open_minutes, 0).sum(1).astype(np.float64)
    remaining = None if close_minutes is None else np.maximum(close_minutes - np.maximum(end_minutes.max(1), open_minutes), 0).astype(np.float64)
    left_over = np.where(unfinished_sorted[:, -1], mass[:, -1], 0.0)
    probability = np.where(outcome_sorted, mass, 0.0).sum(1) + left_over * _rest(found, decided, deaths, exposure, remaining)
    lower, upper = found / samples, (found + undecided) / samples
    probability = np.clip(probability, lower, upper)
    return Risk(probability, jeffreys_std_error(probability, decided), decided / samples, lower, upper)

"""From sampled futures to risks, three ways, with honest denominators. NumPy only.

Each of the `n` futures of one prediction time says something about the risk, bit by bit along its way: *increments*, numbers that it
adds to the risk at times of its own. The risk is the mean over futures of their sums, and the cumulative incidence at t the mean of the
sums until t. With p the probability of the outcome just before a token is drawn (arXiv 2602.03730 for the last two):

    Monte Carlo   1 at the first outcome; nothing else.
    SCOPE         p at every draw until the first outcome: what chance the outcome had, whether or not it was drawn. The mean of
                  a sum, which in one future, and in the mean of few, can exceed 1.
    REACH         the outcome is masked, and futures are drawn without it; p times what is left of 1 after the earlier draws. It sums to
                  1 - prod(1 - p).

All three are unbiased for the model's own risk. `increments.py` reads them off a pool of futures.

**Unfinished futures** ran out of tokens before the window closed, without the outcome. Such a one is neither dropped (that divides by too
few, and is biased upward) nor a negative (biased downward). The point estimate is Aalen-Johansen on simulated time: each future starts
with mass 1/n, and the mass of an unfinished one goes in equal parts to the futures that were still running when it stopped
(redistribution to the right), so that their later increments count for more. What is left when none was still running goes on at the
average rate of all futures of that prediction time: with k outcomes and d deaths in T days of simulated window and r days of it to
go, at (k + 1/2) / (T + r) and d / (T + r) a day. Where the window has no known close (a stay), it takes the Jeffreys mean of the decided
futures, (k + 1/2) / (m + 1).

Running out of tokens is informative (sicker patients use more tokens), so with unfinished futures no unbiasedness is claimed: the
bounds say what the risk would be if none, or all, of them had the outcome. The estimate always lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import InputError

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """What P prediction times with n futures each say about one task.

    Attributes:
        future: int64[I], row of each increment in the flattened futures (prediction time * n + sample).
        minutes: int64[I], its time from the prediction time.
        amount: float64[I].
        outcome: bool[P, n]; the outcome was seen within the window.
        unfinished: bool[P, n]; the answer is not known: the budget ended before the window did, without the outcome. An entry that has
            the outcome is not unfinished, whatever is said here.
        died: bool[P, n]; ended by death, or another competing event, without the outcome.
        end_minutes: int64[P, n], from the prediction time: the outcome's time, death, the window's close, or where the budget ran out.
        chance_span: int64[P, 2], minutes from the prediction time from which and up to which increments are probabilities (SCOPE, REACH), while
            those outside are outcomes; None: all are outcomes (Monte Carlo).
        rest: float64[P, n]; what is left of 1 at the end of each future: what the increments to come of an unfinished one can add at most, in
            the mean, and what the death at the end of another counts for. 1, but for REACH, whose futures go on behind chances of the outcome.
    """

    future: Int
    minutes: Int
    amount: Float
    outcome: Bool
    unfinished: Bool
    died: Bool
    end_minutes: Int
    chance_span: Int | None
    rest: Float

    def __post_init__(self) -> None:
        shapes = {self.outcome.shape, self.unfinished.shape, self.died.shape, self.end_minutes.shape}
        if len(shapes) > 1 or self.outcome.ndim != 2 or self.outcome.shape[1] == 0:
            raise InputError(f"futures: expected arrays of one shape [rows, samples >= 1], found {', '.join(map(str, sorted(shapes)))}")

    @property
    def shape(self) -> tuple[int, int]:
        """(P, n)."""
        return self.outcome.shape

    def take(self, rows: Int) -> Evidence:
        """Of these prediction times."""
        place = np.full(self.shape[0], -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        at, sample = np.divmod(self.future, self.shape[1])
        kept = place[at] >= 0
        wide = {name: getattr(self, name)[rows] for name in ("outcome", "unfinished", "died", "end_minutes", "rest")}
        future = place[at[kept]] * self.shape[1] + sample[kept]
        chance_span = None if self.chance_span is None else self.chance_span[rows]
        return Evidence(future=future, minutes=self.minutes[kept], amount=self.amount[kept], chance_span=chance_span, **wide)

    def without(self, samples: Bool) -> Evidence:
        """But for these futures of each prediction time, bool[n]."""
        at, sample = np.divmod(self.future, self.shape[1])
        kept, place = ~samples[sample], np.cumsum(~samples) - 1
        wide = {name: getattr(self, name)[:, ~samples] for name in ("outcome", "unfinished", "died", "end_minutes", "rest")}
        future = at[kept] * int(np.count_nonzero(~samples)) + place[sample[kept]]
        return Evidence(future=future, minutes=self.minutes[kept], amount=self.amount[kept], chance_span=self.chance_span, **wide)

    def beside(self, other: Evidence) -> Evidence:
        """With further futures of the same prediction times."""
        total = self.shape[1] + other.shape[1]
        futures = []
        for part, before in ((self, 0), (other, self.shape[1])):
            at, sample = np.divmod(part.future, part.shape[1])
            futures.append(at * total + before + sample)
        wide = {
            name: np.concatenate([getattr(self, name), getattr(other, name)], axis=1)
            for name in ("outcome", "unfinished", "died", "end_minutes", "rest")
        }
        both = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ("minutes", "amount")}
        return Evidence(future=np.concatenate(futures), chance_span=self.chance_span, **both, **wide)


@dataclass(frozen=True)
class Risk:
    """One entry per prediction time, float64[P].

    Attributes:
        probability, std_error: NaN error where it cannot be told from one future.
        completion: share of futures whose answer is known.
        lower_bound, upper_bound: see the module's docstring.
    """

    probability: Float
    std_error: Float
    completion: Float
    lower_bound: Float
    upper_bound: Float


def monte_carlo(outcome: Bool, unfinished: Bool, end_minutes: Int, *, died: Bool | None = None) -> Evidence:
    """The evidence of Monte Carlo; arguments as in `Evidence`, all [P, n]."""
    found = np.flatnonzero(outcome)
    return Evidence(
        future=found,
        minutes=end_minutes.ravel()[found],
        amount=np.ones(len(found)),
        outcome=outcome,
        unfinished=unfinished & ~outcome if outcome.shape == unfinished.shape else unfinished,
        died=np.zeros_like(outcome) if died is None else died,
        end_minutes=end_minutes,
        chance_span=None,
        rest=np.ones(outcome.shape),
    )


def jeffreys_std_error(probability: Float, decided: Float) -> Float:
    """Standard deviation of Beta(p m + 1/2, (1 - p) m + 1/2), [P]: never 0, also where all futures agree."""
    return _beta_std(probability * decided + 0.5, (1 - probability) * decided + 0.5)


def _beta_std(a: Float, b: Float) -> Float:
    """Standard deviation of Beta(a, b)."""
    return np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))


def _rest(found: Float, decided: Float, died: Float, exposure: Float, remaining: Float | None) -> Float:
    """Risk of what is left over, [P]; `exposure` and `remaining` in minutes of the window."""
    of_decided = (np.minimum(found, decided) + 0.5) / (decided + 1)
    if remaining is None:
        return of_decided
    time = np.maximum(exposure + remaining, 1)
    outcome_rate, death_rate = (found + 0.5) / time, died / time
    either = outcome_rate + death_rate
    # Nothing of the window remains where the answer is yet to be told at its close: how long a visit lasts.
    return np.where(remaining > 0, outcome_rate / either * -np.expm1(-either * remaining), of_decided)


def _mean_left(rest: Float) -> Float:
    """Of 1, what has been left on average along a future that ends with `rest` left, at a steady rate: (1 - r) / -log r."""
    spent = -np.log(np.maximum(rest, 1e-12))
    return np.where(spent < 1e-9, 1.0, -np.expm1(-spent) / np.maximum(spent, 1e-9))


class _Masses:
    """How much each future counts, times n, as time goes on: more, once others have stopped unfinished while it was still running.

    `left_over`: mass of those that stopped when none was running, float64[P]; `effective`: how many futures the known answers are worth, float64[P].
    """

    def __init__(self, evidence: Evidence):
        rows, samples = evidence.shape
        # At equal times the decided stand before the unfinished, as deaths do before censorings in Kaplan-Meier.
        order = np.lexsort((evidence.unfinished, evidence.end_minutes), axis=1)
        unfinished = np.take_along_axis(evidence.unfinished, order, 1)
        running = samples - 1 - np.arange(samples)
        factor = np.where(unfinished & (running > 0), 1 + 1 / np.maximum(running, 1), 1.0)
        self.mass = np.cumprod(factor, axis=1)
        counted = np.where(unfinished, 0.0, self.mass)
        # Kish: as many futures that count alike would say as much as those whose answer is known and which count for more the later they end.
        self.effective = counted.sum(axis=1) ** 2 / np.maximum((counted**2).sum(axis=1), 1.0)
        self.left_over = np.where(unfinished[:, -1], self.mass[:, -1], 0.0) / samples  # none was running when the last one stopped
        self.stops = np.flatnonzero(unfinished)
        ends = np.take_along_axis(evidence.end_minutes, order, 1)
        self.span = int(ends.max(initial=0)) + 2
        self.keys = (np.arange(rows)[:, None] * self.span + ends).ravel()[self.stops]
        self.samples = samples

    def at(self, row: Int, minutes: Int) -> Float:
        """Of a future of these prediction times that is still running then."""
        if not len(self.stops):
            return np.ones(len(row))
        last = np.searchsorted(self.keys, row * self.span + np.minimum(minutes, self.span - 1), side="left") - 1
        stop = self.stops[np.maximum(last, 0)]
        mine = (last >= 0) & (stop // self.samples == row)
        return np.where(mine, self.mass.ravel()[stop], 1.0)


def estimate(evidence: Evidence, *, open_minutes: int = 0, close_minutes: int | None = None, expect_little: bool = True) -> Risk:
    """The risk of every prediction time.

    Args:
        evidence: of the prediction times.
        open_minutes, close_minutes: the window, from the prediction time; None: the close is not known.
        expect_little: see `_unseen_error`. Not where the error decides how many to draw: rows in which chance has shown nothing yet would draw the
            fewest.
    """
    found = _point(evidence, open_minutes, close_minutes)
    if evidence.chance_span is not None:
        close = np.array([evidence.end_minutes.max(initial=0) if close_minutes is None else close_minutes])
        unseen = _unseen_error(evidence, evidence.chance_span, close, open_minutes, found.decided, expect_little=expect_little)[:, 0]
        drawn = _mean_error(found.weighted, found.outcomes, found.decided, unseen)
        error = np.hypot(drawn, found.left_over * jeffreys_std_error(found.later, found.decided))
    else:
        drawn = (1 - found.left_over) * jeffreys_std_error(found.probability, found.effective)
        error = np.hypot(drawn, found.left_over * jeffreys_std_error(found.later, found.decided))
    spread = _jackknife_error(evidence, open_minutes, close_minutes)
    return Risk(found.probability, np.fmax(error, spread), found.decided / evidence.shape[1], found.lower, found.upper)


@dataclass(frozen=True)
class _Point:
    """What an estimate and its error are made of, float64[P], but for `weighted`: the sum of each future as it counts, float64[P, n]."""

    probability: Float
    lower: Float
    upper: Float
    weighted: Float
    outcomes: Float
    decided: Float
    effective: Float
    left_over: Float
    later: Float


def _point(evidence: Evidence, open_minutes: int, close_minutes: int | None) -> _Point:
    samples = evidence.shape[1]
    masses, row = _Masses(evidence), evidence.future // samples
    weighted = _sums(evidence, evidence.amount * masses.at(row, evidence.minutes))
    plain = _sums(evidence, evidence.amount)
    undecided = evidence.unfinished.sum(1).astype(np.float64)
    decided = samples - undecided
    found = plain.sum(1)
    deaths = ((evidence.died & ~evidence.outcome) * evidence.rest).sum(1)
    exposure = (np.maximum(evidence.end_minutes - open_minutes, 0) * _mean_left(evidence.rest)).sum(1)
    last = np.maximum(evidence.end_minutes.max(1), open_minutes)
    remaining = None if close_minutes is None else np.maximum(close_minutes - last, 0).astype(np.float64)
    later = _rest(found, decided, deaths, exposure, remaining)
    left_over = masses.left_over * (evidence.unfinished * evidence.rest).sum(1) / np.maximum(undecided, 1)
    lower = np.minimum(found / samples, 1.0)
    upper = np.minimum((found + (evidence.unfinished * evidence.rest).sum(1)) / samples, 1.0)
    probability = np.clip(weighted.sum(1) / samples + left_over * later, lower, upper)
    return _Point(probability, lower, upper, weighted, found, decided, masses.effective, left_over, later)


def _jackknife_error(evidence: Evidence, open_minutes: int, close_minutes: int | None, most: int = 20) -> Float:
    """Standard error by leaving out a group of futures at a time, `most` groups at most, float64[P]; NaN where all are finished, or there is one.

    One future that stops unfinished moves what all others count for, which no variance of their sums sees (Efron and Tibshirani 1993, chapter 11).
    """
    rows, samples = evidence.shape
    error, some = np.full(rows, np.nan), np.flatnonzero(evidence.unfinished.any(axis=1))
    groups = min(samples, most)
    if not len(some) or groups < 2:
        return error
    mine = evidence.take(some)
    group = np.arange(samples) * groups // samples
    without = np.array([_point(mine.without(group == one), open_minutes, close_minutes).probability for one in range(groups)])
    error[some] = np.sqrt((groups - 1) / groups * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return error


def futures_needed(std_error: Float, futures: int, target: float) -> Float:
    """How many futures, not these, make the standard error `target` where so many `futures` have had `std_error`, [P].

    Stein's two-stage sample size (Annals of Mathematical Statistics 1945, 16:243): the error falls with the root of the number, and the first
    futures' error is itself unsure, which the quantile of Student's t in place of the normal one allows for.
    """
    from scipy.stats import norm, t

    unsure = float(t.ppf(0.975, futures - 1) / norm.ppf(0.975))
    return np.ceil(futures * (unsure * np.nan_to_num(std_error, nan=np.inf) / target) ** 2)


def _sums(evidence: Evidence, amount: Float) -> Float:
    """Of each future, [P, n]."""
    rows, samples = evidence.shape
    return np.bincount(evidence.future, amount, minlength=rows * samples).astype(np.float64).reshape(rows, samples)


def _mean_error(values: Float, found: Float, decided: Float, unseen: Float) -> Float:
    """Standard error of the mean along the second axis, as of the futures whose answer is known, and of what is `unseen`; where nothing was
    `found` in any future that of Monte Carlo, as zeros that agree say no more than that. NaN where there is one future."""
    if values.shape[1] == 1:
        return np.full(found.shape, np.nan)
    silent = jeffreys_std_error(np.zeros_like(found), decided)
    return np.where(found > 0, np.hypot(values.std(axis=1, ddof=1) / np.sqrt(np.maximum(decided, 1.0)), unseen), silent)


def _unseen_error(evidence: Evidence, span: Int, grid_minutes: Int, open_minutes: int, decided: Float, *, expect_little: bool = True) -> Float:
    """Error of what is counted by each time of the grid where all futures agree in it, float64[P, G]; 0 where their spread says it.

    That none of m futures (or each) has the outcome on a date on which outcomes are counted does not say that none has. As in Jeffreys' error one
    further future is thought of, split in two; but the share with the outcome is what the chances on the other dates promise for as long a
    time, not a half: of a few days in a long window little is expected, and a half would drown the rest. Without `expect_little` it is a half.
    """
    rows, samples = evidence.shape
    row, grid = evidence.future // samples, len(grid_minutes)
    by_chance = (evidence.minutes >= span[row, 0]) & (evidence.minutes < span[row, 1])
    place = np.searchsorted(grid_minutes, evidence.minutes, side="left")

    def until(which: Bool, amount: Float) -> Float:
        use = which & (place < grid)
        return np.bincount(row[use] * grid + place[use], amount[use], minlength=rows * grid).astype(np.float64).reshape(rows, grid).cumsum(axis=1)

    seen, chance = until(~by_chance, np.ones(len(row))), until(by_chance, evidence.amount) / samples
    begins, ends = np.maximum(span, open_minutes).T[:, :, None]
    whole = np.clip(grid_minutes, begins, ends) - begins
    partial = np.maximum(grid_minutes - open_minutes, 0) - whole
    promised = np.where(expect_little & (whole > 0), 1 - (1 - np.minimum(chance, 1.0)) ** (partial / np.maximum(whole, 1)), 0.5)
    error = _beta_std(seen + promised, np.maximum(decided[:, None] - seen, 0.0) + 1 - promised)
    return np.where((partial > 0) & ((seen == 0) | (seen >= decided[:, None])), error, 0.0)


@dataclass(frozen=True)
class Curves:
    """Cumulative incidence on a grid of G times: float64[P, G] each.

    Attributes:
        incidence, std_error: of the outcome, death competing.
        death: share that died, or met another competing event, before it.
    """

    incidence: Float
    std_error: Float
    death: Float


def curves(evidence: Evidence, grid_minutes: Int, risk: Risk | None = None, *, open_minutes: int = 0) -> Curves:
    """How the risk builds up to the window's close, the last time of the grid.

    Args:
        evidence: of the prediction times.
        grid_minutes: int64[G], times from the prediction time, ascending.
        risk: as estimated, where curves end; what it adds for unfinished futures comes evenly from where the last one stopped to the close. None:
            nothing is added.
        open_minutes: when the window opens.
    """
    rows, samples = evidence.shape
    masses, grid = _Masses(evidence), len(grid_minutes)
    row = evidence.future // samples
    place = np.searchsorted(grid_minutes, evidence.minutes, side="left")
    amount, inside = evidence.amount * masses.at(row, evidence.minutes), place < grid
    flat = np.bincount(evidence.future[inside] * grid + place[inside], amount[inside], minlength=rows * samples * grid)
    by_future = flat.astype(np.float64).reshape(rows, samples, grid).cumsum(axis=2)
    incidence = by_future.mean(axis=1)
    if risk is not None:
        last = evidence.end_minutes.max(axis=1, keepdims=True)
        gone = np.clip((grid_minutes - last) / np.maximum(grid_minutes[-1] - last, 1), 0.0, 1.0)
        gone[:, -1] = 1.0
        incidence = incidence + gone * np.maximum(risk.probability - incidence[:, -1], 0.0)[:, None]
        # What unfinished futures hand on may come to more than the risk, which is held to its bounds: REACH's count for less than 1 by then.
        incidence = np.minimum(incidence, risk.probability[:, None])
    incidence = np.minimum(incidence, 1.0)
    finished = (samples - evidence.unfinished.sum(1)).astype(np.float64)
    decided = np.broadcast_to(finished[:, None], incidence.shape)
    if evidence.chance_span is None:
        error = jeffreys_std_error(incidence, decided)
    else:
        unseen = _unseen_error(evidence, evidence.chance_span, grid_minutes, open_minutes, finished)
        error = _mean_error(by_future, by_future.sum(axis=1), decided, unseen)
    error[:, np.asarray(grid_minutes) <= open_minutes] = 0.0  # nothing counts yet
    if risk is not None:
        error[:, -1] = risk.std_error
    dead = np.flatnonzero(evidence.died & ~evidence.outcome)
    when = evidence.end_minutes.ravel()[dead]
    place = np.searchsorted(grid_minutes, when, side="left")
    at, inside = dead // samples, place < grid
    weight = masses.at(at, when) * evidence.rest.ravel()[dead]
    deaths = np.bincount(at[inside] * grid + place[inside], weight[inside], minlength=rows * grid).reshape(rows, grid).cumsum(axis=1)
    return Curves(incidence, error, deaths / samples)

"""What elapsed time is worth: the true risk as seen by an oracle that knows times, and by ones that know only order, or order and counts.

All are shown whatever drives the hazards and is no elapsed time: age, sex, race, the unseen frailty, levels and offsets, treatments, hospice,
which markers are set, month and year of the question, and the population's own formula of all hazards with every effect of elapsed time left out.

- `order` is shown the order of the latest events of each kind;
- `counts` also how many events of any kind have come since each of them, and the formula with each elapsed time guessed from that number (the
  mean of its logarithm among other people with as many);
- `times` also the days since each of them, and the formula with the real ones.

Each is a boosted regression of the true risk on what it is shown, cross-validated over subjects, one row each. The AUROC is that
expected under the true risks, so outcomes add no noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.simulate.index import task_rows
from cehrxgpt.simulate.process import Hazards
from cehrxgpt.simulate.simulator import choose_rows
from cehrxgpt.simulate.state import DAY, NEVER, YEAR, Floats, State
from cehrxgpt.simulate.truth import STATES_FILE, described, restore, true_risk

FOLDS = 5
_LONG_AGO = 1e5 * DAY
_MOMENTS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)  # of the window


@dataclass(frozen=True)
class Oracles:
    """One task's true risks [n], and the cross-validated scores of the oracles [n] each."""

    risk: Floats
    order: Floats
    counts: Floats
    times: Floats

    def gain(self, over: str = "order") -> float:
        """AUROC of the oracle of times over another."""
        return expected_auroc(self.times, self.risk) - expected_auroc(getattr(self, over), self.risk)

    def interval(self, over: str = "order", *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap of the gain over subjects."""
        rng = np.random.default_rng(seed)
        lots = (rng.integers(0, len(self.risk), len(self.risk)) for _ in range(draws))
        gains = [Oracles(self.risk[rows], self.order[rows], self.counts[rows], self.times[rows]).gain(over) for rows in lots]
        low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def expected_auroc(score: Floats, risk: Floats) -> float:
    """AUROC of `score` in expectation over independent outcomes that follow `risk`; ties as they come."""
    risk = risk[np.argsort(score, kind="stable")]
    lower = np.cumsum(1 - risk) - (1 - risk)  # nobody is compared with himself
    return float((risk * lower).sum() / (risk.sum() * (1 - risk).sum() - (risk * (1 - risk)).sum()))


def measure(cdm: Path, task: str, *, subjects: int | None = 5000, samples: int = 200, threads: int = 2, seed: int = 0) -> Oracles:
    """Ask the oracles of one task: one row of each of at most `subjects` people, chosen at random, true risks from `samples` futures each."""
    people, _ = described(cdm)
    rows = task_rows(cdm, people, task).sample(fraction=1.0, shuffle=True, seed=1)
    rows = rows.unique("subject_id", keep="first", maintain_order=True).sort("subject_id", "prediction_time")
    rows = choose_rows(rows, subjects, seed)
    risk = true_risk(cdm, rows, task, samples=samples, seed=seed, threads=threads)["true_risk"].to_numpy()
    rows = rows.with_columns(minute=pl.col("prediction_time").dt.epoch("us") // 60_000_000)
    state = restore(cdm, people, rows)
    state.clock = rows["minute"].to_numpy().astype(np.float64)
    since = events_since(cdm, rows, state)
    fold = np.random.default_rng(seed).permutation(len(rows)) % FOLDS
    asked = people.tasks[task]
    window = (asked.gap_days, asked.gap_days + asked.days)
    ordered, counted = known_without_times(state, since, fold, window)
    days = np.where(state.last > NEVER, (state.clock - state.last) / DAY, np.nan)
    shown = (ordered, counted, np.column_stack([counted, days.T, formula(state, state.last, window)]))
    return Oracles(risk, *(regress(features, risk, fold) for features in shown))


def events_since(cdm: Path, rows: pl.DataFrame, state: State) -> Floats:
    """Number of events of any kind from each marker's latest time to the question, itself included, [markers, n]; NaN where it is not set."""
    moments = pl.read_parquet(cdm / "truth" / STATES_FILE, columns=["subject_id", "time"]).sort("subject_id", "time")
    moments = moments.filter(pl.col("subject_id").is_in(rows["subject_id"].unique().implode()))
    times = {key[0]: group["time"].to_numpy() for key, group in moments.group_by("subject_id")}
    found = np.full(state.last.shape, np.nan)
    for i, subject in enumerate(rows["subject_id"].to_list()):
        now = np.searchsorted(times[subject], state.clock[i], side="right")
        found[:, i] = now - np.searchsorted(times[subject], state.last[:, i])
    return np.where(state.last > NEVER, found, np.nan)


def known_without_times(state: State, since: Floats, fold: npt.NDArray[np.int64], window: tuple[float, float]) -> tuple[Floats, Floats]:
    """What the oracles of order and of counts are shown, [n, features]; guesses about a fold are made from the others."""
    age, calendar = state.age, state.clock / YEAR + 1970
    has = state.last > NEVER
    order = np.where(has, np.argsort(np.argsort(-state.last, axis=0), axis=0), np.nan)
    plain = [age, state.male, state.race, state.frailty, state.hospice, calendar, calendar % 1, *state.lab, *state.offset, *state.treated, *has]
    timeless = formula(state, _at(state, np.full(since.shape, _LONG_AGO)), window)
    ordered = np.column_stack([*plain, *order, timeless])
    return ordered, np.column_stack([ordered, *since, formula(state, _guess(state, since, fold), window)])


def _at(state: State, elapsed: Floats) -> Floats:
    return np.where(state.last > NEVER, state.clock - elapsed, NEVER)


def _guess(state: State, since: Floats, fold: npt.NDArray[np.int64]) -> Floats:
    """`last` with each elapsed time replaced by the mean (of the logarithm) in other folds among people with a like number of events since."""
    guessed = np.full(since.shape, _LONG_AGO)
    elapsed = np.log(np.maximum(state.clock - state.last, 1.0))
    bands = np.r_[np.arange(12), 14, 17, 20, 25, 30, 40, 55, 80, np.inf]
    for m in range(len(since)):
        has = np.flatnonzero(state.last[m] > NEVER)
        band = np.digitize(since[m, has], bands)
        for one in range(FOLDS):
            fit, test = has[fold[has] != one], has[fold[has] == one]
            if len(fit) and len(test):
                total = np.bincount(band[fold[has] != one], elapsed[m, fit], minlength=len(bands) + 1)
                count = np.bincount(band[fold[has] != one], minlength=len(bands) + 1)
                mean = (total + elapsed[m, fit].mean()) / (count + 1)
                guessed[m, test] = np.exp(mean[band[fold[has] == one]])
    return _at(state, guessed)


def formula(state: State, last: Floats, window: tuple[float, float]) -> Floats:
    """Log of all declared hazards per year, on average over the window while nothing happens, with the markers' times as given, and of all that
    is met at each kind of visit, [n, hazards + 3]."""
    hazards = Hazards(state.population)
    asked = state.take(np.arange(len(state)))
    asked.last = last
    rates = np.zeros((len(state), len(state.population.hazards)))
    for share in _MOMENTS:
        asked.clock = state.clock + (window[0] + share * (window[1] - window[0])) * DAY
        rates += hazards.rates(asked).astype(np.float64).T * YEAR / len(_MOMENTS)
    visits = rates @ np.array([hazard.visit for hazard in state.population.hazards])
    return np.log(np.column_stack([rates, visits]) + 1e-9)


def regress(features: Floats, risk: Floats, fold: npt.NDArray[np.int64]) -> Floats:
    """Cross-validated boosted regression of the risk on what is shown, by cross-entropy."""
    import lightgbm

    score = np.zeros(len(risk))
    settings = {"objective": "cross_entropy", "learning_rate": 0.03, "num_leaves": 15, "min_data_in_leaf": 20, "feature_fraction": 0.3, "verbose": -1}
    settings |= {"num_threads": 1, "deterministic": True, "force_row_wise": True, "seed": 0}
    for one in range(FOLDS):
        fit, test = fold != one, fold == one
        model = lightgbm.train(settings, lightgbm.Dataset(features[fit], risk[fit]), num_boost_round=250)
        score[test] = model.predict(features[test], raw_score=True)
    return score

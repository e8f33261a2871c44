"""Three estimators against exact risks of Markov chains: unbiased, with standard errors that mean what they say."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy.stats import f as f_distribution

from cehrxgpt.forecast import ForecastConfig, forecast
from cehrxgpt.forecast.estimators import Evidence, estimate
from cehrxgpt.forecast.futures import draw_pool, make_cases
from cehrxgpt.forecast.increments import expected, observed, whole_dates
from cehrxgpt.forecast.verdict import judge
from cehrxgpt.tasks import outcome_tokens, parse_task
from cehrxgpt.timeline.moments import encode_moments
from cehrxgpt.timeline.timeline import Timeline
from test_forecast_truth import LAST, SHARES, at, task
from toy_capabilities import BENIGN, OUTCOME, bare_chain, gaps, history, markov

REPEATS, FUTURES = 10_000, 2
METHODS = ("monte_carlo", "scope", "reach")


def exact(outcome: float, death: float, *, elapsed: int, close: int, open_day: int = 0, shares: dict[int, float] = SHARES) -> float:
    """Probability of the outcome after `open_day` and by `close`, days from the prediction, made at noon `elapsed` days after the last event.

    What has no hour happens after a noon from the next day on. Dynamic programming over the days on which events can fall.
    """
    limit, opens = elapsed + close, elapsed + open_day
    found = np.zeros(limit + 1)  # by day: the risk, an event that does not count having just happened on it

    def later(day: int, gaps_from_here: dict[int, float]) -> float:
        ahead = [(day + gap, share) for gap, share in gaps_from_here.items() if day + gap <= limit]
        return sum(share * (outcome * (1.0 if then > opens else found[then]) + (1 - outcome - death) * found[then]) for then, share in ahead)

    for day in range(limit, -1, -1):
        found[day] = later(day, shares)
    first = {gap: share for gap, share in shares.items() if gap >= max(elapsed, 1)}
    return later(0, first) / sum(first.values())


def visits_chain(visit: float, death: float) -> dict[str, dict[str, float]]:
    """Every event is an inpatient visit, a benign code or death; visits begin at nine."""
    table = {code: gaps(SHARES) for code in (BENIGN, "[VE]")}
    table |= {f"D{days}": {"[VS]": visit, "MEDS_DEATH": death, BENIGN: 1 - visit - death} for days in SHARES}
    return table | {"[VS]": {"Visit/9201": 1.0}, "Visit/9201": {"i-H9": 1.0}, "i-H9": {"discharge/8536": 1.0}, "discharge/8536": {"[VE]": 1.0}}


def drawn(model, asked, method: str, *, elapsed: int, stop: bool = True, repeats: int = REPEATS) -> Evidence:
    """One prediction time with `repeats` x FUTURES futures."""
    moments = next(iter(encode_moments(Timeline(model.vocabulary), history(1), at(1, LAST + timedelta(days=elapsed, hours=12)))))
    cases = make_cases(moments, [0], model.vocabulary, Timeline(model.vocabulary).grammar, 300)
    tokens = outcome_tokens(asked, model.vocabulary)
    assert tokens is not None
    masked = method == "reach"
    pool = draw_pool(
        model.decoder,
        model.vocabulary,
        cases,
        horizon_minutes=[round(asked.follow_days * 1440)],
        samples=repeats * FUTURES,
        seed=5,
        max_new_tokens=100,
        batch_rows=8192,
        stop_tokens=tokens if stop else None,
        masked_tokens=tokens if masked else None,
        dates=whole_dates(asked, cases),
        watched=tokens[None],
    )
    verdict = judge(asked, pool)
    return observed(verdict, pool) if method == "monte_carlo" else expected(asked, verdict, pool, 0, tokens, masked=masked)


def split(evidence: Evidence, futures: int) -> Evidence:
    """The futures as repeats of so many each."""
    wide = {name: getattr(evidence, name).reshape(-1, futures) for name in ("outcome", "unfinished", "died", "end_minutes", "rest")}
    chance_span = None if evidence.chance_span is None else np.repeat(evidence.chance_span, evidence.outcome.size // futures, axis=0)
    return Evidence(future=evidence.future, minutes=evidence.minutes, amount=evidence.amount, chance_span=chance_span, **wide)


VISITS = parse_task(
    "name: visits\ndescription: toy\nconcept_sets: {index: {condition: [1]}}\nindex: {concepts: index, occurrence: last}\n"
    "outcome: {visit: [inpatient]}\nhorizon_days: 30\n",
    where="toy",
)

CASES = {
    "an event a day ago": (bare_chain(SHARES, 0.1, 0.05), task(), 1, lambda: exact(0.1, 0.05, elapsed=1, close=30)),
    "between two events": (bare_chain(SHARES, 0.1, 0.05), task(), 9, lambda: exact(0.1, 0.05, elapsed=9, close=30)),
    "rare": (bare_chain(SHARES, 0.01, 0.02), task(), 3, lambda: exact(0.01, 0.02, elapsed=3, close=30)),
    "after a hold-off": (bare_chain(SHARES, 0.1, 0.05), task(horizon=20, gap=10), 4, lambda: exact(0.1, 0.05, elapsed=4, close=30, open_day=10)),
    "visits": (visits_chain(0.1, 0.05), VISITS, 2, lambda: exact(0.1, 0.05, elapsed=2, close=30)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_estimator_is_unbiased_with_errors_that_mean_what_they_say(case: str) -> None:
    table, asked, elapsed, truth_of = CASES[case]
    model, truth = markov(table), truth_of()
    spread = {}
    for method in METHODS:
        evidence = drawn(model, asked, method, elapsed=elapsed)
        assert not evidence.unfinished.any()
        each = estimate(split(evidence, 1)).probability if method != "scope" else np.bincount(evidence.future, evidence.amount, REPEATS * FUTURES)
        repeats = each.reshape(REPEATS, FUTURES).mean(axis=1)
        assert abs(repeats.mean() - truth) < 3 * repeats.std(ddof=1) / np.sqrt(REPEATS), method
        many = estimate(split(evidence, 50))
        claimed, actual = (many.std_error**2).mean(), each.reshape(-1, 50).mean(axis=1).var(ddof=1)
        assert 0.75 < claimed / actual < 1.33, method  # 400 repeats know their variance to within 7%, Jeffreys' half an outcome adds some
        spread[method] = repeats.var(ddof=1)
    limit = f_distribution.ppf(0.999, REPEATS - 1, REPEATS - 1)
    assert spread["reach"] / spread["monte_carlo"] < limit
    if case != "visits":  # a visit is decided when it opens, one token before its type, which then has probability 1
        assert spread["reach"] < 0.8 * spread["monte_carlo"]


def test_what_follows_the_first_outcome_adds_nothing() -> None:
    """An outcome that makes another likely, in futures that go on behind it: sums that went on as well would say far too much."""
    table = bare_chain(SHARES, 0.1, 0.05)
    table |= {OUTCOME: {"D2": 1.0}, "D2": {OUTCOME: 0.9, BENIGN: 0.1}}
    model, asked = markov(table), task()
    truth = exact(0.1, 0.05, elapsed=3, close=30)
    for method in METHODS:
        evidence = drawn(model, asked, method, elapsed=3, stop=False, repeats=2_000)
        totals = np.bincount(evidence.future, evidence.amount, evidence.outcome.size)
        assert abs(totals.mean() - truth) < 3 * totals.std() / np.sqrt(len(totals)), method


def test_the_exact_risk_is_what_it_says() -> None:
    """By hand: one possible gap of one day, three days, no deaths."""
    daily = {1: 1.0}
    assert exact(0.25, 0.0, elapsed=0, close=3, shares=daily) == pytest.approx(1 - 0.75**3)
    assert exact(0.25, 0.0, elapsed=0, close=3, open_day=1, shares=daily) == pytest.approx(1 - 0.75**2)


def test_a_stranger_s_history_says_nothing() -> None:
    """Negative control: forecasts from shuffled histories lose the signal."""
    table = bare_chain(SHARES, 0.1, 0.05)
    # Who had the outcome last sees it again soon; the others hardly ever.
    table |= {BENIGN: {"D30": 1.0}, OUTCOME: {"D4": 1.0}, "D30": {BENIGN: 0.97, OUTCOME: 0.03}, "D4": {OUTCOME: 0.7, BENIGN: 0.3}}
    model = markov(table)
    high = np.arange(1, 41) % 2 == 0
    parts = [
        history(1, code=OUTCOME if sick else BENIGN).with_columns(pl.lit(subject, dtype=pl.Int64).alias("subject_id"))
        for subject, sick in enumerate(high, 1)
    ]
    rows = at(40, datetime(2015, 6, 2))
    config = ForecastConfig(samples=30, estimator="scope")
    own = forecast(model, pl.concat(parts), rows, [task()], config).predictions["predicted_boolean_probability"].to_numpy()
    assert own[high].min() > own[~high].max()
    order = np.random.default_rng(0).permutation(40)
    swapped = [part.with_columns(pl.lit(int(order[place]) + 1, dtype=pl.Int64).alias("subject_id")) for place, part in enumerate(parts)]
    others = forecast(model, pl.concat(swapped).sort("subject_id", maintain_order=True), rows, [task()], config).predictions
    risk = others["predicted_boolean_probability"].to_numpy()
    ranks = (risk[high][:, None] > risk[~high]).mean() + 0.5 * (risk[high][:, None] == risk[~high]).mean()
    assert abs(ranks - 0.5) < 0.25

"""The next gap: where batches say it, its parts, its Gamma distribution, and that rates do not move with the follow-up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cehrxgpt.objectives.gamma import log_interval
from cehrxgpt.objectives.gaps import GapObjective, find_gaps, gap_tables
from cehrxgpt.objectives.time_decomposition import TimeDecomposition, parts_of
from cehrxgpt.objectives.time_to_visit import TimeToVisit
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.loader import Segment, assemble
from cehrxgpt.timeline.grammar import Grammar
from toy_objectives import VOCABULARY
from toy_store import toy_histories, toy_vocabulary

PROMPT = toy_histories(VOCABULARY, 1, seed=0).token_id[:7]
FOREVER = math.inf


def history(names: list[str], censor_gap_days: int = -1) -> Segment:
    token = np.concatenate([PROMPT, [VOCABULARY.id_of(name) for name in names]]).astype(np.int32)
    _, age = Grammar(VOCABULARY).follow(token[None])
    return Segment(token, age[0].astype(np.int32), np.full(len(token), np.nan, dtype=np.float32), 0, censor_gap_days)


def gaps_of(batch: PackedBatch) -> list[tuple[int, int, bool]]:
    found = find_gaps(batch, *gap_tables(VOCABULARY))
    return list(zip(found.place.tolist(), found.days.tolist(), found.open.tolist(), strict=True))


def test_every_gap_is_found_where_it_begins() -> None:
    names = ["condition/1", "D5", "condition/2", "D0", "[VS]", "visit:9201", "i-D2", "condition/3", "[VE]", "Y3", "D7", "condition/4"]
    one = history(names, censor_gap_days=40)
    assert gaps_of(assemble([one])) == [(7, 5, False), (9, 0, False), (15, 3 * 365 + 7, False), (18, 41, True)]
    # Cut behind the year token, only the year is known; cut behind the gap, nothing has changed.
    cut = Segment(one.token_id[:17], one.age_minutes[:17], one.value[:17], 0, -1)
    assert gaps_of(assemble([cut]))[-1] == (15, 1095, True)
    short = history(["condition/1", "Y2"])
    assert gaps_of(assemble([short])) == [(7, 1080, True)]
    # Rows and segments do not borrow from each other.
    packed = assemble([cut, history(["condition/1", "D9", "condition/1"])], width=40)
    assert gaps_of(packed)[-2:] == [(15, 1095, True), (17 + 7, 9, False)]


def test_a_long_gap_of_one_token_is_open() -> None:
    vocabulary = toy_vocabulary(long_gap="token")
    token = np.concatenate([PROMPT, [vocabulary.id_of(name) for name in ("condition/1", "LT", "condition/2")]])
    batch = assemble([Segment(token, np.zeros(len(token)), np.full(len(token), np.nan, dtype=np.float32), 0, -1)])
    found = find_gaps(batch, *gap_tables(vocabulary))
    assert (found.place.tolist(), found.days.tolist(), found.open.tolist()) == ([7], [1080], [True])


# -- years, months, days ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12_000), min_size=1, max_size=20))
def test_parts_are_those_of_the_method(days: list[int]) -> None:
    years, months, rest = (part.tolist() for part in parts_of(torch.tensor(days), 99))
    assert years == [gap // 365 for gap in days]
    assert months == [gap % 365 // 30 for gap in days]
    assert rest == [gap % 365 % 30 for gap in days]


class Fixed(torch.nn.Module):
    """In place of a decoder, whose head this objective does not need."""


def _decomposed(model: TimeDecomposition, hidden: Tensor, gap: int, *, censored: bool) -> float:
    if censored:
        batch = assemble([history(["condition/1"], censor_gap_days=gap - 1)])
    else:
        names = [f"D{gap}"] if gap < 1080 else [f"Y{gap // 365}", f"D{gap % 365}"]
        batch = assemble([history(["condition/1", *names, "condition/1"])])
    total, count = model(Fixed(), hidden.expand(*batch.token_id.shape, -1), batch)
    assert int(count) == 1
    return float(total.detach())


def test_what_is_at_least_so_long_is_the_sum_of_all_that_are() -> None:
    torch.manual_seed(0)
    model = TimeDecomposition(VOCABULARY, 8).double()
    model.heads.weight.data.normal_()
    hidden = torch.randn(8, dtype=torch.float64)
    years, months, days = (logp[0].exp().tolist() for logp in model.log_probabilities(hidden[None]))
    for gap in (1, 40, 364, 365, 500, 3650):
        # Triples in order; a twelfth month has five days, and what the heads give to more is never a target.
        least = (gap // 365, gap % 365 // 30, gap % 365 % 30)
        at_least = math.fsum(p * q * r for y, p in enumerate(years) for m, q in enumerate(months) for d, r in enumerate(days) if (y, m, d) >= least)
        assert _decomposed(model, hidden, gap, censored=True) == pytest.approx(-math.log(at_least), rel=1e-9)
        assert _decomposed(model, hidden, gap, censored=False) == pytest.approx(-math.log(years[least[0]] * months[least[1]] * days[least[2]]))
    assert math.isfinite(_decomposed(model, hidden, 365 * model.sizes[0] + 5000, censored=True))


# -- Gamma -----------------------------------------------------------------------------------------------------------------------------


@given(st.floats(-2.9, 2.9), st.floats(-2.9, 9.8), st.integers(0, 20_000))
@settings(deadline=None, max_examples=200)
def test_the_interval_likelihood_is_that_of_gamma(log_k: float, log_mean: float, day: int) -> None:
    k, rate = math.exp(log_k), math.exp(log_k - log_mean)
    given_ = [torch.tensor([x], dtype=torch.float64) for x in (log_k, log_k - log_mean)]
    exact, beyond = (float(log_interval(*given_, torch.tensor([float(day)]), torch.tensor([high]))) for high in (day + 1.0, FOREVER))
    assert math.isfinite(exact)
    assert math.isfinite(beyond)
    law = scipy.stats.gamma(k, scale=1 / rate)
    tail = law.logsf(day)
    if tail > -500:
        assert beyond == pytest.approx(tail, rel=1e-6, abs=1e-9)
        mass = law.cdf(day + 1) - law.cdf(day) if law.cdf(day + 1) < 0.5 else law.sf(day) - law.sf(day + 1)
        if mass > 1e-200:
            assert exact == pytest.approx(math.log(mass), rel=1e-6, abs=1e-6)
    assert exact <= beyond + 1e-9


def test_its_gradient_is_the_slope_in_both_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    log_k = (torch.rand(40, generator=generator, dtype=torch.float64) * 5 - 2.5).requires_grad_()
    log_rate = (torch.rand(40, generator=generator, dtype=torch.float64) * 6 - 5).requires_grad_()
    low = torch.randint(0, 400, (40,), generator=generator).double()
    high = torch.where(torch.arange(40) % 3 == 0, FOREVER, low + 1)
    assert torch.autograd.gradcheck(lambda a, b: log_interval(a, b, low, high), (log_k, log_rate), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("day", [0, 1, 40_000])
@pytest.mark.parametrize("corner", [(-3.0, -9.0), (-3.0, 7.0), (3.0, -9.0), (3.0, 6.0)])
def test_corners_are_finite_in_float32(day: int, corner: tuple[float, float]) -> None:
    given_ = [torch.tensor([x], requires_grad=True) for x in corner]
    for high in (day + 1.0, FOREVER):
        value = log_interval(*given_, torch.tensor([float(day)]), torch.tensor([high]))
        gradients = torch.autograd.grad(value.sum(), given_)
        assert all(torch.isfinite(x).all() for x in (value, *gradients))


# -- RULES 7: halve the follow-up, the rate stays -----------------------------------------------------------------------------------


def _people(follow_up_days: float, mean_days: float, *, censoring: bool, people: int = 600) -> PackedBatch:
    """People whose gaps are exponential, watched for so long; visits are all one can see."""
    random = np.random.default_rng(7)
    histories: list[Segment] = []
    for _ in range(people):
        names, clock = ["condition/1"], 0.0
        while (gap := float(random.exponential(mean_days))) and clock + gap < follow_up_days:
            names += [f"D{int(clock + gap) - int(clock)}", "condition/1"]
            clock += gap
        left = int(follow_up_days) - int(clock) - 1
        histories.append(history(names, censor_gap_days=left if censoring and left >= 0 else -1))
    return assemble(histories)


def _fit(objective: GapObjective, batch: PackedBatch) -> None:
    """Fit the heads to states that say nothing."""
    hidden = torch.ones(*batch.token_id.shape, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total, count = objective(Fixed(), hidden, batch)
        (total / count).backward()
        return (total / count).detach()

    optimizer.step(closure)


def _gamma_mean(follow_up_days: float, mean_days: float, *, censoring: bool) -> float:
    objective = TimeToVisit(VOCABULARY, 1).double()
    _fit(objective, _people(follow_up_days, mean_days, censoring=censoring))
    log_k, log_rate = objective.parameters_of(torch.ones(1, 1, dtype=torch.float64))
    return float((log_k - log_rate).exp().detach())


def test_halving_the_follow_up_does_not_move_the_gamma_rate() -> None:
    mean = 120.0
    assert _gamma_mean(600, mean, censoring=True) == pytest.approx(mean, rel=0.08)
    assert _gamma_mean(300, mean, censoring=True) == pytest.approx(mean, rel=0.1)
    # The negative control.
    assert _gamma_mean(300, mean, censoring=False) < 0.8 * mean


def _decomposed_mean(follow_up_days: float, mean_days: float, *, censoring: bool) -> float:
    """Mean gap by the survival to 150 days, which both follow-ups reach."""
    objective = TimeDecomposition(VOCABULARY, 1).double()
    _fit(objective, _people(follow_up_days, mean_days, censoring=censoring))
    return 150 / _decomposed(objective, torch.ones(1, dtype=torch.float64), 150, censored=True)


def test_halving_the_follow_up_does_not_move_the_rate_of_years_months_and_days() -> None:
    mean = 120.0
    assert _decomposed_mean(600, mean, censoring=True) == pytest.approx(mean, rel=0.08)
    assert _decomposed_mean(300, mean, censoring=True) == pytest.approx(mean, rel=0.1)
    # The negative control.
    assert _decomposed_mean(300, mean, censoring=False) < 0.8 * mean

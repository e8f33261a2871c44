"""Next token with the censored last gap: what it is, what it must not depend on, and that it estimates rates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cehrxgpt.errors import ConfigError
from cehrxgpt.objectives import NextToken, cross_entropy, read_settings
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.store.loader import Segment, assemble
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from toy_objectives import VOCABULARY, decoder, loss_of, padded, segments
from toy_store import toy_histories, toy_vocabulary

# -- what the loss must not depend on -------------------------------------------------------------------------------------------------


def test_padding_changes_nothing() -> None:
    model, objective = decoder(), NextToken(VOCABULARY)
    batch = assemble(segments(toy_histories(VOCABULARY, 3, seed=1)))
    results = []
    for columns in (0, 20, 40):
        model.zero_grad()
        total, count = loss_of(model, objective, padded(batch, columns))
        (total / count).backward()
        results.append(((total / count).item(), count, model.embedding.weight.grad.clone()))
    for value, count, gradient in results[1:]:
        assert value == pytest.approx(results[0][0], abs=1e-12)
        assert count == results[0][1]
        assert torch.allclose(gradient, results[0][2], atol=1e-12)


@given(st.integers(0, 1000), st.integers(2, 9))
@settings(deadline=None, max_examples=8)
def test_packing_and_micro_batches_change_nothing(seed: int, patients: int) -> None:
    model, objective = decoder(), NextToken(VOCABULARY)
    parts = segments(toy_histories(VOCABULARY, patients, seed=seed))
    rows = loss_of(model, objective, assemble(parts))
    packed = loss_of(model, objective, assemble(parts, width=160))
    alone = [loss_of(model, objective, assemble([part])) for part in parts]
    for total, count in (packed, (sum(total for total, _ in alone), sum(count for _, count in alone))):
        assert total.item() == pytest.approx(rows[0].item(), rel=1e-10)
        assert count == rows[1]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = decoder(), NextToken(VOCABULARY)
    batch = assemble(segments(toy_histories(VOCABULARY, 6, seed=2)))
    gradients = []
    for rows in (1 << 20, 10, 1):
        monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", rows)
        model.zero_grad()
        total, _ = loss_of(model, objective, batch)
        total.backward()
        gradients.append((total.item(), model.embedding.weight.grad.clone()))
    for value, gradient in gradients[1:]:
        assert value == pytest.approx(gradients[0][0], rel=1e-12)
        assert torch.allclose(gradient, gradients[0][1])


# -- order within a day ---------------------------------------------------------------------------------------------------------------


def _two_orders() -> tuple[PackedBatch, PackedBatch]:
    history = toy_histories(VOCABULARY, 1, seed=0, units=(1, 2))
    prompt = history.token_id[:7].tolist()
    visit = [VOCABULARY.id_of(name) for name in ("[VS]", "visit:9201", "condition/1", "condition/2", "condition/3", "[VE]")]
    tokens = np.array([*prompt, *visit])
    swapped = tokens.copy()
    swapped[[9, 10]] = tokens[[10, 9]]
    age = np.full(len(tokens), 10_000_000)
    value = np.full(len(tokens), np.nan, dtype=np.float32)
    return tuple(assemble([Segment(row, age, value, 0, -1)]) for row in (tokens, swapped))  # type: ignore[return-value]


def test_order_within_a_day_matters() -> None:
    """The prediction behind two same-day events changes when they change places; with age alone in one layer it would not."""
    for rotary, differs in (("both", True), ("order", True), ("age", False)):
        model = decoder(layers=1, rotary=rotary)
        values = []
        for batch in _two_orders():
            hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
            values.append(model.head(hidden[0, 11]).log_softmax(-1)[batch.token_id[0, 12]].item())
        assert (abs(values[0] - values[1]) > 1e-6) == differs, rotary


# -- the censored gap -----------------------------------------------------------------------------------------------------------------


class Unmoved(nn.Module):
    """Stands in for a decoder: the same log-probabilities everywhere, whatever came before."""

    log_probability: Tensor

    def head_weights(self) -> tuple[Tensor, Tensor]:
        return self.log_probability.new_zeros(len(self.log_probability), 1), self.log_probability

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, *self.head_weights())


class GapModel(Unmoved):
    """Log-probabilities as they are given."""

    def __init__(self, log_probability: Tensor):
        super().__init__()
        self.log_probability = log_probability


def _censored_batch(gap_days: list[int]) -> PackedBatch:
    shape = (len(gap_days), 1)
    zeros = torch.zeros(shape, dtype=torch.int64)
    censor = torch.tensor(gap_days)[:, None]
    return PackedBatch(zeros, zeros + 1, zeros, zeros, torch.full(shape, float("nan")), torch.full(shape, IGNORE), censor, zeros - 1)


def _beyond(vocabulary: Vocabulary, token: int, gap: int) -> bool:
    """RULES 7, said plainly: does this token say that nothing came for more than `gap` days?"""
    kind, amount = vocabulary.kind[token], int(vocabulary.amount[token])
    if kind == Kind.DAY_GAP:
        return amount > gap
    if kind == Kind.YEAR_GAP:
        return True if gap < 1080 else amount >= gap // 365
    return kind == Kind.LONG_GAP and gap < 1080


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6), st.integers(0, 99))
@settings(deadline=None, max_examples=12)
def test_censored_term_is_the_mass_of_longer_gaps(gaps: list[int], seed: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=len(VOCABULARY)))
    total, count = NextToken(VOCABULARY)(GapModel(logits), torch.zeros(len(gaps), 1, 1, dtype=torch.float64), _censored_batch(gaps))
    probability = logits.softmax(-1).tolist()
    expected = sum(-math.log(math.fsum(p for v, p in enumerate(probability) if _beyond(VOCABULARY, v, gap))) for gap in gaps)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert int(count) == len(gaps)


@pytest.mark.parametrize("gap", [1079, 1080, 1094, 1095, 30 * 365, 31 * 365 - 1, 31 * 365, 90_000])
def test_long_gaps_stay_finite(gap: int) -> None:
    """At the edges of the year tokens, and beyond the longest: there the history counts as censored on the last day that can be told."""
    logits = torch.zeros(len(VOCABULARY), dtype=torch.float64)
    total, _ = NextToken(VOCABULARY)(GapModel(logits), torch.zeros(1, 1, 1, dtype=torch.float64), _censored_batch([gap]))
    years = sum(amount >= min(gap // 365, 30) for amount in range(2, 31)) if gap >= 1080 else 29
    assert total.item() == pytest.approx(math.log(len(VOCABULARY) / years))
    one_token = toy_vocabulary(long_gap="token")
    logits = torch.zeros(len(one_token), dtype=torch.float64)
    total, _ = NextToken(one_token)(GapModel(logits), torch.zeros(1, 1, 1, dtype=torch.float64), _censored_batch([gap]))
    assert total.item() == pytest.approx(math.log(len(one_token)))


def test_censoring_can_be_left_out_and_counts_as_one_term() -> None:
    model = decoder()
    history = toy_histories(VOCABULARY, 4, seed=5)
    batch = assemble(segments(history))
    (with_term, count), (without, fewer) = (loss_of(model, NextToken(VOCABULARY, censoring=on), batch) for on in (True, False))
    open_ends = int((history.censor_gap_days >= 0).sum())
    assert count == fewer + open_ends
    assert open_ends > 0
    assert with_term.item() > without.item()
    assert fewer == int((batch.target != IGNORE).sum()) == len(history.token_id) - 4


# -- RULES 7: halve the follow-up, the rate stays -----------------------------------------------------------------------------------


class GeometricGaps(Unmoved):
    """A model with one parameter: events come with the same probability on every day. Gap tokens carry its exact distribution."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.log_odds = nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))
        kind, amount = torch.from_numpy(vocabulary.kind), torch.from_numpy(vocabulary.amount).double()
        self.day, self.year = (kind == Kind.DAY_GAP) & (amount > 0), kind == Kind.YEAR_GAP
        self.amount, self.last = amount, amount == amount[self.year].max()

    @property
    def daily(self) -> Tensor:
        return torch.sigmoid(self.log_odds)

    @property
    def log_probability(self) -> Tensor:
        survive = torch.log1p(-self.daily)
        by_day = self.daily.log() + (self.amount - 1) * survive
        first = torch.clamp(365 * self.amount, min=1080) - 1  # days survived before the year token's range begins
        width = 365 * (self.amount + 1) - 1 - first
        by_year = first * survive + torch.where(self.last, torch.zeros_like(width), torch.log(-torch.expm1(width * survive)))
        nothing = torch.full_like(by_day, -1e4)
        return torch.where(self.day, by_day, torch.where(self.year, by_year, nothing))


def _fitted_rate(follow_up_days: int, daily: float, *, censoring: bool, patients: int = 500) -> float:
    """Simulate patients whose events come with probability `daily` per day, watch them for so long, and fit the one parameter."""
    random = np.random.default_rng(follow_up_days)
    gaps, ends = [], []
    for _ in range(patients):
        clock = 0
        while (gap := int(random.geometric(daily))) <= follow_up_days - clock:
            clock += gap
            gaps.append(gap)
        ends.append(follow_up_days - clock)
    ids = {int(amount): int(token) for amount, token in VOCABULARY.amount_to_id[Kind.DAY_GAP].items()}
    seen = _censored_batch([-1] * len(gaps))
    seen = replace(seen, target=torch.tensor([ids[gap] for gap in gaps])[:, None])
    model, objective = GeometricGaps(VOCABULARY), NextToken(VOCABULARY, censoring=censoring)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        parts = [objective(model, torch.zeros(len(b.target), 1, 1, dtype=torch.float64), b) for b in (seen, _censored_batch(ends))]
        loss = sum(total for total, _ in parts) / sum(count for _, count in parts)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(model.daily.detach())


def test_halving_the_follow_up_does_not_move_the_rate() -> None:
    daily = 0.004
    whole, half = (_fitted_rate(days, daily, censoring=True) for days in (800, 400))
    assert whole == pytest.approx(daily, rel=0.08)
    assert half == pytest.approx(daily, rel=0.08)
    # The negative control: without the term the records' end passes for haste, and the more so the shorter they are.
    whole, half = (_fitted_rate(days, daily, censoring=False) for days in (800, 400))
    assert whole > 1.15 * daily
    assert half > 1.25 * whole


# -- by name --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"next": 1.0}, "unknown 'next'; valid: contrastive, "),
        ({"next_token": 0.0}, "next_token: weight is 0.0; it must be positive"),
        ({"next_token": {"weigth": 1.0}}, "unknown key 'weigth'; did you mean 'weight'"),
        ({"time_to_event": {"pieces": 0}}, "pieces is 0; it must be at least 1"),
        ({"time_to_event": {"balance": 7.0}}, "balance is 7.0; it must lie between 0 and 1"),
        ({}, "none given"),
    ],
)
def test_objectives_are_read_strictly(named: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(named)


def test_demographics_can_be_left_unpredicted() -> None:
    model, batch = decoder(), assemble(segments(toy_histories(VOCABULARY, 3, seed=4)))
    asked, unasked = NextToken(VOCABULARY), NextToken(VOCABULARY, demographics=False)
    (_, count), (total, fewer) = loss_of(model, asked, batch), loss_of(model, unasked, batch)
    assert count - fewer == 3 * (PROMPT_LENGTH - 1)
    # Nothing of the prompt's own probability is left in it: another prompt token changes the states behind, not the terms.
    hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
    swapped = replace(batch, target=batch.target.masked_fill((batch.position < PROMPT_LENGTH - 1), VOCABULARY.id_of("race:0")))
    assert unasked(model, hidden, swapped)[0].item() == pytest.approx(total.item(), rel=1e-12)

"""A model's forecasts of the next gap as distributions over days: what its losses score is what is scored here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from cehrxgpt.evaluate.gaps import log_score
from cehrxgpt.objectives import build, read_settings
from cehrxgpt.objectives.gap_forecasts import decomposition_mass, gamma_mass, gap_masses, token_mass
from cehrxgpt.objectives.gaps import find_gaps, gap_tables
from cehrxgpt.objectives.time_decomposition import TimeDecomposition
from cehrxgpt.objectives.time_to_visit import TimeToVisit
from cehrxgpt.store.loader import assemble
from cehrxgpt.timeline.kinds import Kind
from toy_objectives import VOCABULARY, decoder, segments
from toy_store import toy_histories


def test_tokens_speak_for_their_own_days_and_years_for_the_rest() -> None:
    model = decoder()
    hidden = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mass = token_mass(model, VOCABULARY, hidden)
    gap = np.isin(VOCABULARY.kind, (Kind.DAY_GAP, Kind.YEAR_GAP))
    share = model.head(hidden).softmax(-1).detach().numpy()
    assert mass.shape == (5, 1080)
    for day in (0, 1, 400, 1079):
        assert mass[:, day].tolist() == pytest.approx((share[:, VOCABULARY.id_of(f"D{day}")] / share[:, gap].sum(1)).tolist())
    assert (1 - mass.sum(1)).tolist() == pytest.approx((share[:, VOCABULARY.kind == Kind.YEAR_GAP].sum(1) / share[:, gap].sum(1)).tolist())
    assert torch.equal(token_mass(model, VOCABULARY, hidden, days=40), mass[:, :40])


def test_gamma_and_parts_are_the_distributions_that_their_losses_score() -> None:
    torch.manual_seed(0)
    model = decoder()
    objectives = build(read_settings({"next_token": 1.0, "time_to_visit": 1.0, "time_decomposition": 1.0}), {}, VOCABULARY, model.config).double()
    for head in objectives.parameters():
        head.data.normal_()
    batch = assemble(segments(toy_histories(VOCABULARY, 30, seed=2)))
    hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id).detach()
    gaps = find_gaps(batch, *gap_tables(VOCABULARY))
    at = hidden.flatten(0, 1)[gaps.place]
    masses = gap_masses(model, objectives, VOCABULARY, at)
    assert set(masses) == {"tokens", "gamma", "decomposition"}
    scores = {name: log_score(mass.detach().numpy(), gaps.days.numpy(), gaps.open.numpy()) for name, mass in masses.items()}
    assert bool(gaps.open.any())
    known = (gaps.days < 1080).numpy()  # beyond, the forecasts say less than the losses ask
    alone = torch.zeros(len(gaps.place), dtype=torch.float64)
    visit, parts = objectives["time_to_visit"], objectives["time_decomposition"]
    assert isinstance(visit, TimeToVisit)
    assert isinstance(parts, TimeDecomposition)
    for index, (state, days, is_open) in enumerate(zip(at, gaps.days.tolist(), gaps.open.tolist(), strict=True)):
        log_k, log_rate = (float(one.detach()) for one in visit.parameters_of(state[None]))
        law = scipy.stats.gamma(math.exp(log_k), scale=math.exp(-log_rate))
        alone[index] = law.logsf(days) if is_open else math.log(max(law.cdf(days + 1) - law.cdf(days), 1e-12))
    assert scores["gamma"][known] == pytest.approx(np.maximum(alone.numpy()[known], math.log(1e-12)), rel=1e-5)
    years, months, days_of = (logp.exp() for logp in parts.log_probabilities(at))
    exact = known & ~gaps.open.numpy()
    for index in np.flatnonzero(exact):
        gap = int(gaps.days[index])
        chance = float((years[index, gap // 365] * months[index, gap % 365 // 30] * days_of[index, gap % 365 % 30]).detach())
        assert scores["decomposition"][index] == pytest.approx(math.log(max(chance, 1e-12)))
    assert gamma_mass(visit, at, days=50).shape == decomposition_mass(parts, at, days=50).shape == (len(at), 50)

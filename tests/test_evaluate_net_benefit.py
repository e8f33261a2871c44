"""Net benefit by hand, and its landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from cehrxgpt.evaluate.net_benefit import THRESHOLDS, net_benefit, tellable, treat_all


def test_by_hand():
    truth, p = [1, 0, 1, 0], [0.9, 0.6, 0.3, 0.1]
    # At 0.5 two are treated, one of them rightly: 1/4 - 1/4 * 1. At 0.2 three: 2/4 - 1/4 * 1/4. At 0.3 the one at 0.3 is treated still.
    assert net_benefit(truth, p, [0.2, 0.3, 0.5, 0.95])[0] == pytest.approx([0.5 - 0.0625, 0.5 - 0.25 * 3 / 7, 0.0, 0.0])
    assert treat_all(truth, [0.2, 0.5])[0] == pytest.approx([0.5 - 0.5 * 0.25, 0.0])


def test_landmarks():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 4, 20_000)
    truth = rng.random(20_000) < p
    at = np.array(THRESHOLDS)
    perfect, everybody, model = net_benefit(truth, truth.astype(float))[0], treat_all(truth)[0], net_benefit(truth, p)[0]
    constant = net_benefit(truth, np.full(p.size, truth.mean()))[0]
    assert perfect == pytest.approx(np.full(at.size, truth.mean()))
    assert (model > np.maximum(everybody, 0) - 0.004).all()  # risks that mean what they say never harm
    assert constant == pytest.approx(np.where(at <= truth.mean(), everybody, 0))  # the prevalence for all is worth either of the two
    assert (everybody < 0)[at > truth.mean() + 0.01].all()
    weights = np.vstack([np.ones(p.size), rng.integers(0, 3, p.size)])
    both = net_benefit(truth, p, THRESHOLDS, weights)
    repeated = np.repeat(np.arange(p.size), weights[1].astype(int))
    assert both[0] == pytest.approx(model)
    assert both[1] == pytest.approx(net_benefit(truth[repeated], p[repeated])[0])


def test_nobody_is_given_away():
    """By every pair of thresholds that are told, nobody and everybody among them: 0 people lie between, or 11 and more."""
    rng = np.random.default_rng(1)
    hidden = 0
    for people, rows in ((9, 30), (40, 40), (40, 200), (3000, 3000)):
        person, p = rng.integers(0, people, rows), rng.beta(1, 6, rows)
        told = tellable(p, person, 11)
        edges = [np.inf, *np.array(THRESHOLDS)[told][::-1], -np.inf]
        for place, high in enumerate(edges):
            for low in edges[place + 1 :]:
                between = np.unique(person[(p >= low) & (p < high)]).size
                assert between == 0 or between >= 11 or people < 11
        assert told.any() == (people > 11)
        hidden += int((~told).sum())
    assert hidden > 100
    assert tellable(np.full(30, 0.2), np.arange(30), 11).all()
    assert told[THRESHOLDS.index(0.1) : THRESHOLDS.index(0.3)].all()  # of many people all that matters is there

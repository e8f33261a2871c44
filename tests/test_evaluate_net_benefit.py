"""Net benefit by hand, and its landmarks."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cehrxgpt.evaluate.net_benefit import THRESHOLDS, net_benefit, treat_all
from cehrxgpt.evaluate.predictions import net_benefit_table
from test_evaluate_predictions import labels_frame


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


@pytest.mark.parametrize(("people", "rows"), [(9, 30), (40, 40), (40, 200), (300, 300), (3000, 3000)])
def test_nobody_is_given_away(people: int, rows: int):
    """By every pair of net benefits that are told, of nobody, everybody and other methods too: the treated differ by 0 people, or 11 and more."""
    rng = np.random.default_rng(people)
    subjects = rng.integers(0, people, rows)
    labels = labels_frame((rng.random(rows) < 0.2).tolist()).with_columns(
        pl.Series("subject_id", subjects), pl.col("prediction_time") + pl.duration(minutes=pl.int_range(rows), time_unit="us")
    )
    p = rng.beta(1, 6, rows)
    risks = {"mc": p, "mc+platt": p**1.3 * 0.7, "mc+isotonic": np.round(p, 1), "reach": (p + rng.beta(1, 30, rows)).clip(0, 1)}
    key = ["task", "subject_id", "prediction_time"]
    asked = labels.select(key)
    frames = [asked.with_columns(pl.Series("predicted_boolean_probability", risk), pl.lit(name).alias("method")) for name, risk in risks.items()]
    told = net_benefit_table(pl.concat(frames), labels, replicates=10).filter(pl.col("net_benefit").is_not_null())
    treated = [risks[row["method"]] >= row["threshold"] for row in told.iter_rows(named=True)] + [np.zeros(rows, bool), np.ones(rows, bool)]
    for place, one in enumerate(treated):
        for other in treated[:place]:
            apart = np.unique(subjects[one ^ other]).size
            assert apart == 0 or apart >= 11 or {one.sum(), other.sum()} == {0, rows}
    if rows == 3000:  # of many people what matters is there; methods that rank alike share the cuts
        inside = told.filter(pl.col("threshold").is_between(0.05, 0.3))
        assert inside["method"].value_counts()["count"].sort().to_list()[0] > 5
        assert inside.height > 75  # of 104
    if people > 200:
        assert told["method"].n_unique() == len(risks)

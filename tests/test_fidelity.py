"""Fidelity of synthetic patients: hand-computed values, and the things it must notice."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.evaluate.fidelity import fidelity, kl_divergence, people, prevalence
from cehrxgpt.events import conform

START = datetime(2010, 1, 1)


def population(subjects: int, shares: dict[str, float], *, seed: int, female: float = 0.5, visits: int = 1) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for subject in range(subjects):
        rows.append((subject, None, "gender/8532" if rng.random() < female else "gender/8507", None))
        rows.append((subject, datetime(1960, 1, 1), s.BIRTH, None))
        for number in range(visits):
            at = START + timedelta(days=30 * number)
            rows.append((subject, at, "Visit/9202", at + timedelta(hours=1)))
        for code, share in shares.items():
            if rng.random() < share:
                rows += [(subject, START, code, None)] * 2  # twice: a patient counts once
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "end_time": pl.Datetime("us")}
    return conform(pl.DataFrame(rows, schema=schema, orient="row"))


def values(frame: pl.DataFrame) -> dict[str, float]:
    return dict(frame.select("metric", "value").iter_rows())


def test_prevalence_counts_patients_once() -> None:
    table = prevalence(population(40, {"condition/1": 1.0}, seed=0), population(20, {"condition/2": 1.0}, seed=0))
    rows = {row["code"]: row for row in table.iter_rows(named=True)}
    assert rows["condition/1"] == {"code": "condition/1", "real_subjects": 40, "synthetic_subjects": 0, "real": 1.0, "synthetic": 0.0}
    assert rows["condition/2"]["synthetic"] == 1.0
    assert s.BIRTH not in rows
    assert "Visit/9202" in rows


def test_rare_codes_are_left_out() -> None:
    table = prevalence(population(10, {"condition/1": 1.0}, seed=0), population(10, {"condition/1": 1.0}, seed=0))
    assert table.height == 0
    with pytest.raises(InputError, match="frequent enough"):
        fidelity(population(10, {"condition/1": 1.0}, seed=0), population(10, {"condition/1": 1.0}, seed=0))


def test_divergence_by_hand() -> None:
    assert kl_divergence(np.array([1.5, 0.5]), np.array([1.5, 0.5])) == 0
    assert kl_divergence(np.array([1.5, 0.5]), np.array([0.5, 1.5])) == pytest.approx(2 / 3 * np.log(2) + 1 / 3 * np.log(0.5))


def test_same_process_is_near_and_another_is_far() -> None:
    shares = {f"condition/{index}": (index + 1) / 25 for index in range(20)}
    other = {code: 1 - share for code, share in shares.items()}
    real = population(400, shares, seed=0)
    near, far = (values(fidelity(real, population(400, one, seed=1), bootstrap=20)) for one in (shares, other))
    assert near["prevalence_correlation"] > 0.98 > 0 > far["prevalence_correlation"]
    assert near["kl_divergence"] < 0.02 < far["kl_divergence"]
    frame = fidelity(real, population(400, shares, seed=1), bootstrap=50)
    s.check_columns(frame.to_arrow(), s.METRIC_SCHEMA, where="fidelity")
    assert frame.equals(fidelity(real, population(400, shares, seed=1), bootstrap=50))


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_intervals_hold_their_value_and_the_next_sample_s(shift: float) -> None:
    """Drawing adds noise, and these measures grow with it: the replicates' own percentiles lie beside the value."""
    shares = {f"condition/{index}": 0.2 + index / 60 for index in range(24)}
    real, others = population(150, shares, seed=0), [population(150, {c: p + shift for c, p in shares.items()}, seed=seed) for seed in range(1, 13)]
    found = fidelity(real, others[0], bootstrap=200).drop_nulls("lower")
    assert found.filter((pl.col("lower") <= pl.col("value")) & (pl.col("value") <= pl.col("upper"))).height == found.height == 4
    kl = found.filter(metric="kl_divergence").row(0, named=True)
    again = [values(fidelity(real, one, bootstrap=0))["kl_divergence"] for one in others[1:]]
    assert kl["lower"] >= 0
    assert kl["lower"] < float(np.median(again)) < kl["upper"]


def test_demographics_and_visits_are_compared() -> None:
    real = population(100, {"condition/1": 1.0}, seed=0, female=1.0, visits=1)
    synthetic = population(100, {"condition/1": 1.0}, seed=0, female=0.0, visits=3)
    found = values(fidelity(real, synthetic, bootstrap=0))
    assert found["gender_total_variation"] == 1.0
    assert found["visits_kolmogorov_smirnov"] == 1.0
    assert (found["visits_mean_real"], found["visits_mean_synthetic"]) == (1.0, 3.0)
    assert found["age_years_kolmogorov_smirnov"] == 0.0
    assert people(real)["age_years"][0] == pytest.approx(50, abs=0.01)


def test_no_patients_is_an_error() -> None:
    with pytest.raises(InputError, match="synthetic events: no subject"):
        fidelity(population(10, {"condition/1": 1.0}, seed=0), population(0, {}, seed=0))

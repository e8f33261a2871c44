"""What an evaluation tells of a task, held together: nobody's outcome is the difference of two sums."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cehrxgpt.errors import MismatchError
from cehrxgpt.evaluate import calibration, evaluate_predictions
from cehrxgpt.evaluate.disclosure import Told
from cehrxgpt.evaluate.predictions import WITHHELD, calibration_table, net_benefit_table
from test_evaluate_predictions import labels_frame, predictions_frame, value
from test_evaluate_subgroups import grouped


def apart(subjects: np.ndarray, one: np.ndarray, other: np.ndarray) -> int:
    """People of whom one of the two sets knows more than the other, or than what is outside of it: everybody's sum is told."""
    differing = one ^ other
    return min(np.unique(subjects[differing]).size, np.unique(subjects[~differing]).size)


@pytest.mark.parametrize(("people", "rows", "seed"), [(9, 40, 0), (60, 60, 1), (150, 400, 2), (400, 400, 3), (400, 400, 4), (2000, 2000, 5)])
def test_any_two_sets_of_which_an_outcome_is_told_differ_by_eleven_people_or_by_none(people: int, rows: int, seed: int) -> None:
    """Metrics of levels, bins and their edges, net benefits, of methods that refuse different rows: every pair of a folder."""
    rng = np.random.default_rng(seed)
    subjects, p = np.sort(rng.integers(0, people, rows)), rng.beta(1, 4, rows)
    labels = labels_frame((rng.random(rows) < p).tolist()).with_columns(
        pl.Series("subject_id", subjects), pl.col("prediction_time") + pl.duration(minutes=pl.int_range(rows), time_unit="us")
    )
    refused = {name: rng.choice(rows, size, replace=False) for name, size in (("a", 3), ("b", 8), ("a+platt", 0))}
    risks = {"a": p, "b": (p + rng.normal(0, 0.02, rows)).clip(0, 1), "a+platt": p**1.2}
    risks["a+platt"][refused["a"]] = np.nan
    for name, places in refused.items():
        risks[name][places] = np.nan
    predictions = pl.concat(
        [predictions_frame(labels, pl.Series(risk, dtype=pl.Float64).fill_nan(None).to_list(), method=name) for name, risk in risks.items()]
    )
    sex = np.where(np.arange(rows) < rows // 2, "f", "m")
    race = np.where(np.arange(rows) < rows // 2 + 2, "x", "y")  # but for two rows the same
    age = rng.choice(["young", "old", None], rows, p=[0.5, 0.47, 0.03]).tolist()
    levels = {"sex": sex.tolist(), "race": race.tolist(), "age": age}
    groups = pl.concat([grouped(labels, named, subgroup) for subgroup, named in levels.items()])

    metrics = evaluate_predictions(predictions, labels, groups=groups, replicates=0)
    bins = calibration_table(predictions, labels, groups=groups, replicates=0)
    benefits = net_benefit_table(predictions, labels, groups=groups, replicates=0).filter(pl.col("net_benefit").is_not_null())
    shared = ~np.any([np.isnan(risk) for risk in risks.values()], axis=0)
    assert metrics.filter(pl.col("metric") == "rows", pl.col("subgroup").is_null())["value"].to_list() == [shared.sum()] * 3

    shown = metrics.filter(pl.col("metric") == "auroc", pl.col("subgroup").is_not_null()).select("subgroup", "level").rows()
    told = [np.zeros(rows, dtype=bool), *(np.array([one == level for one in levels[subgroup]]) for subgroup, level in shown)]
    for method, risk in risks.items():
        number = np.full(rows, -1)
        number[shared] = calibration.bins_of(risk[shared])
        known = bins.filter(pl.col("method") == method)["observed"].is_not_null().to_list()
        told += [number == place for place, is_told in enumerate(known) if is_told]
        told += [(number >= 0) & (number <= place) for place in range(len(known)) if all(known[: place + 1])]
    told += [risks[row["method"]] >= row["threshold"] for row in benefits.iter_rows(named=True)]
    sets = [one[shared] for one in told]
    for place, one in enumerate(sets):
        for other in sets[:place]:
            assert apart(subjects[shared], one, other) == 0 or apart(subjects[shared], one, other) >= 11
    if people >= 400:
        names = {level for _, level in shown}
        assert {"f", "m"} <= names <= {"f", "m", "old", "young"}  # the races are the sexes but for two rows
        assert metrics.filter(pl.col("metric") == WITHHELD, pl.col("subgroup") == "race")["value"].to_list() == [2, 2, 2]
        assert bins.filter(pl.col("method") == "a")["observed"].null_count() == 0
        assert benefits.height > 10


def test_rows_of_no_level_are_not_told_by_those_of_the_others() -> None:
    """Two of 122 people have no events and so no sex: everybody less both sexes is these two."""
    labels = labels_frame([row % 2 == 0 for row in range(122)])
    predictions = predictions_frame(labels, [0.5] * 122)
    for nowhere, shown in ((2, {"m"}), (30, {"f", "m"})):
        levels = [None] * nowhere + ["f"] * (60 - nowhere) + ["m"] * 62
        metrics = evaluate_predictions(predictions, labels, groups=grouped(labels, levels), replicates=0)
        assert set(metrics["level"].drop_nulls()) == shown


def test_methods_are_compared_on_the_rows_that_all_of_them_predict() -> None:
    """One refuses the rows that are hard; alone it looks better than on rows that both know, and who refuses everything takes no row away."""
    rng = np.random.default_rng(0)
    p = rng.random(600)
    labels = labels_frame((rng.random(600) < p).tolist())
    hard = np.abs(p - 0.5) < 0.2
    picky = predictions_frame(labels, [None if one else risk for one, risk in zip(hard, p, strict=True)], method="picky")
    every, none = predictions_frame(labels, p, method="every"), predictions_frame(labels, [None] * 600, method="none")
    metrics = evaluate_predictions(pl.concat([every, picky, none]), labels, replicates=0)
    assert (
        value(metrics, "auroc", "every")
        == value(metrics, "auroc", "picky")
        > value(evaluate_predictions(every, labels, replicates=0), "auroc", "every")
    )
    counts = {method: [value(metrics, name, method) for name in ("rows", "refused", "unshared")] for method in ("every", "picky", "none")}
    left = int(hard.sum())
    assert counts == {"every": [600 - left, 0, left], "picky": [600 - left, left, 0], "none": [0, 600, 0]}
    with pytest.raises(MismatchError, match=r"no row of t is predicted by all of its methods \(picky: \d+, other: \d+ rows\); judge them one by one"):
        other = predictions_frame(labels, [risk if one else None for one, risk in zip(hard, p, strict=True)], method="other")
        evaluate_predictions(pl.concat([picky, other]), labels, replicates=0)


def test_weights_for_censoring_are_of_the_rows_that_are_compared() -> None:
    """Refused rows are lost early and all; what they are lost of says nothing of the others."""
    rng = np.random.default_rng(1)
    refused = np.arange(1000) < 500
    lost = np.where(refused, True, rng.random(1000) < 0.3)
    outcome = rng.random(1000) < 0.3
    values = [None if gone else bool(had) for gone, had in zip(lost, outcome, strict=True)]
    days = np.where(refused, 1.0, np.where(lost, 10.0, 30.0))
    labels = labels_frame(values, days=days.tolist())
    told = predictions_frame(labels, [None if one else 0.3 for one in refused])
    alone = evaluate_predictions(told.filter(pl.Series(~refused)), labels, replicates=0)
    assert value(evaluate_predictions(told, labels, replicates=0), "prevalence") == value(alone, "prevalence")


@pytest.mark.parametrize(("rows_each", "people", "may"), [(1, 10, False), (1, 11, True), (3, 10, False), (3, 11, True), (40, 2, False)])
def test_people_are_counted_and_not_rows(rows_each: int, people: int, may: bool) -> None:
    person = np.repeat(np.arange(100), rows_each)
    told = Told(person)
    told.add(person < 50)
    assert told.may(person < 50)
    assert told.may(person >= 50)  # what is left is known too
    assert told.may(person < 50 + people) == may
    assert told.may(person >= 50 + people) == may

"""What an evaluation tells of a task, held together: nobody's outcome is the difference of two sums."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest

from cehrxgpt.errors import MismatchError, SchemaError
from cehrxgpt.evaluate import calibration, evaluate_predictions
from cehrxgpt.evaluate.disclosure import Told
from cehrxgpt.evaluate.predictions import WITHHELD, calibration_table, net_benefit_table
from test_evaluate_predictions import labels_frame, predictions_frame, value
from test_evaluate_subgroups import grouped


def apart(subjects: np.ndarray, one: np.ndarray, other: np.ndarray) -> int:
    """People of whom one of the two sets knows more than the other, or than what is outside of it: everybody's sum is told."""
    differing = one ^ other
    return min(np.unique(subjects[differing]).size, np.unique(subjects[~differing]).size)


@pytest.mark.parametrize("futures", [None, 16])
@pytest.mark.parametrize(
    ("people", "rows", "seed"), [(9, 40, 0), (60, 60, 1), (150, 150, 6), (150, 400, 2), (400, 400, 3), (400, 400, 4), (2000, 2000, 5)]
)
def test_any_two_sets_of_which_an_outcome_is_told_differ_by_eleven_people_or_by_none(people: int, rows: int, seed: int, futures: int | None) -> None:
    """Metrics of levels and unions of them, bins, neighbours and what lies below edges, net benefits, of methods that refuse different rows and, as
    shares of few futures, have many ties: every pair of a folder."""
    rng = np.random.default_rng(seed)
    subjects, p = np.sort(rng.integers(0, people, rows)), rng.beta(1, 4, rows)
    if futures is not None:
        p = rng.binomial(futures, p) / futures
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

    shown = sorted(set(metrics.filter(pl.col("metric") == "auroc", pl.col("subgroup").is_not_null()).select("subgroup", "level").iter_rows()))
    told = [np.zeros(rows, dtype=bool), *(np.array([one == level for one in levels[subgroup]]) for subgroup, level in shown)]
    for subgroup in levels:
        mine = [np.array([one == level for one in levels[which]]) for which, level in shown if which == subgroup]
        told += [one | other for one, other in combinations(mine, 2)]
    for method, risk in risks.items():
        number = np.full(rows, -1)
        number[shared] = calibration.bins_of(risk[shared])
        known = bins.filter(pl.col("method") == method)["observed"].is_not_null().to_list()
        told += [number == place for place, is_told in enumerate(known) if is_told]
        told += [
            (number >= first) & (number <= last)
            for last in range(len(known))
            for first in range(last)
            if all(known[first : last + 1])  # neighbours
        ]
    told += [risks[row["method"]] >= row["threshold"] for row in benefits.iter_rows(named=True)]
    sets = [one[shared] for one in told]
    for place, one in enumerate(sets):
        for other in sets[:place]:
            assert apart(subjects[shared], one, other) == 0 or apart(subjects[shared], one, other) >= 11
    if people >= 400:
        names = {level for _, level in shown}
        assert {"f", "m"} <= names <= {"f", "m", "old", "young"}  # the races are the sexes but for two rows
        assert metrics.filter(pl.col("metric") == WITHHELD, pl.col("subgroup") == "race")["value"].to_list() == [2, 2, 2]
        assert bins.filter(pl.col("method") == "a")["observed"].null_count() == 0 or futures is not None
        assert benefits.height > (10 if futures is None else 0)


def test_rows_of_no_level_are_not_told_by_those_of_the_others() -> None:
    """Two of 122 people have no events and so no sex: everybody less both sexes is these two."""
    labels = labels_frame([row % 2 == 0 for row in range(122)])
    predictions = predictions_frame(labels, [0.5] * 122)
    for nowhere, shown in ((2, {"m"}), (30, {"f", "m"})):
        levels = [None] * nowhere + ["f"] * (60 - nowhere) + ["m"] * 62
        metrics = evaluate_predictions(predictions, labels, groups=grouped(labels, levels), replicates=0)
        assert set(metrics["level"].drop_nulls()) == shown


def test_edges_of_withheld_bins_that_stand_apart_are_told_by_no_threshold() -> None:
    """Bins of 3 and of 20 people are withheld, 40 others between them: net benefits at both edges of the three would say what became of them."""
    people = [60, 39, 3, 40, 20, 38]
    p = np.repeat([0.05, 0.10, 0.15, 0.20, 0.25, 0.40], people)
    labels = labels_frame((np.random.default_rng(0).random(200) < p).tolist())
    predictions = predictions_frame(labels, p.tolist())
    benefits = net_benefit_table(predictions, labels, replicates=0).filter(pl.col("net_benefit").is_not_null())
    treated = {int((p >= threshold).sum()) for threshold in benefits["threshold"]}
    assert not {98, 101} <= treated


def test_an_edge_that_a_level_tells_ties_the_others_of_its_bin() -> None:
    """Bins of 20, 4, 20, 3 and 60; what lies below the third is a level. So the third bin would tell what lies below the fourth, and the last
    what lies below itself: three people between."""
    p = np.repeat([0.1, 0.2, 0.3, 0.4, 0.5], [20, 4, 20, 3, 60])
    labels = labels_frame([row % 2 == 0 for row in range(107)])
    predictions, told = predictions_frame(labels, p.tolist()), {}
    for name, levels in (("alone", None), ("with it", ["low"] * 24 + ["high"] * 83)):
        groups = None if levels is None else grouped(labels, levels)
        table = calibration_table(predictions, labels, groups=groups, bins=200, replicates=0)
        told[name] = table["observed"].is_not_null().to_list()
    assert told == {"alone": [False, False, True, False, True], "with it": [False, False, False, False, True]}


def test_people_of_withheld_bins_are_counted_once() -> None:
    """Seven have a row in each of two small bins: everybody but the other bins is these seven."""
    subjects = [*range(7), *range(7), *range(7, 140)]
    p = [0.1] * 7 + [0.2] * 7 + [0.3] * 40 + [0.5] * 93
    labels = labels_frame([row % 3 == 0 for row in range(147)]).with_columns(
        pl.Series("subject_id", subjects), pl.col("prediction_time") + pl.duration(minutes=pl.int_range(147), time_unit="us")
    )
    table = calibration_table(predictions_frame(labels, p), labels, bins=200, replicates=0)
    assert table["observed"].is_null().to_list() == [True, True, True, False]


def test_a_union_of_levels_gives_nobody_away() -> None:
    """Long histories are those of two lengths and three people more."""
    rng = np.random.default_rng(4)
    labels = labels_frame((rng.random(600) < 0.4).tolist())
    days = ["a"] * 200 + ["b"] * 200 + ["c"] * 200
    events = ["x"] * 197 + ["y"] * 403
    groups = pl.concat([grouped(labels, days, "days"), grouped(labels, events, "events")])
    metrics = evaluate_predictions(predictions_frame(labels, rng.random(600)), labels, groups=groups, replicates=0)
    assert set(metrics["level"].drop_nulls()) == {"a", "b", "c"}


def test_counts_of_lost_rows_give_nobody_away() -> None:
    """One of the lost is in no level; another subgroup's lost are the same but for one."""
    labels = labels_frame([None if row < 45 else row % 3 == 0 for row in range(300)])
    predictions = predictions_frame(labels, [0.5] * 300)
    levels = {
        "whole": ["f" if row % 2 else "m" for row in range(300)],
        "lacking": [None if row == 0 else "f" if row % 2 else "m" for row in range(300)],
        "other": ["f" if (row % 2) ^ (row == 1) ^ (row >= 200) else "m" for row in range(300)],
    }
    for shown in (["whole"], ["lacking"], ["whole", "other"]):
        groups = pl.concat([grouped(labels, levels[name], name) for name in shown])
        found = evaluate_predictions(predictions, labels, groups=groups, replicates=0).filter(
            pl.col("metric") == "censored", pl.col("level").is_not_null()
        )
        told = {row["subgroup"] for row in found.iter_rows(named=True) if row["value"] is not None}
        assert told == ({"whole"} if "whole" in shown else set())
        assert {row["subgroup"] for row in found.iter_rows(named=True)} == set(shown)


def test_levels_that_are_none_or_two_are_refused_or_left_out() -> None:
    labels = labels_frame([row % 2 == 0 for row in range(60)])
    predictions, groups = predictions_frame(labels, [0.5] * 60), grouped(labels, ["f"] * 30 + ["m"] * 30)
    null = groups.with_columns(pl.when(pl.col("level") == "f").then("level").alias("level"))
    assert set(evaluate_predictions(predictions, labels, groups=null, replicates=0)["level"].drop_nulls()) == {"f"}
    with pytest.raises(MismatchError, match="groups: 120 rows share a"):
        evaluate_predictions(predictions, labels, groups=pl.concat([groups, groups]), replicates=0)
    with pytest.raises(SchemaError, match="groups: no column 'subgroup'; give the table that subgroup_levels makes"):
        evaluate_predictions(predictions, labels, groups=labels, replicates=0)


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

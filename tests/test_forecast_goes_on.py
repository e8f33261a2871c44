"""Forecasts that are interrupted, shared out, or that draw until they know enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt.config import from_dict
from cehrxgpt.errors import ConfigError, StorageError
from cehrxgpt.forecast import ForecastConfig, Journal, forecast
from cehrxgpt.forecast.journal import Found, Removed
from test_forecast_truth import LAST, SHARES, at, task
from toy_capabilities import bare_chain, exact_risk, history, markov

ROWS = at(11, LAST + timedelta(days=3))
TASKS = [task("near"), task("far", horizon=60)]
CONFIG = ForecastConfig(samples=8, moments=3, trajectories=True, curve_points=4)


def run(journal: Journal | None = None, config: ForecastConfig = CONFIG, progress=None):
    return forecast(markov(bare_chain(SHARES, 0.1, 0.05)), history(11), ROWS, TASKS, config, journal=journal, progress=progress)


def same(found, other) -> bool:
    frames = ("predictions", "samples", "trajectories", "curves")
    return all(getattr(found, name).equals(getattr(other, name)) for name in frames) and found.summary == other.summary


class Stop(Exception):
    pass


@pytest.mark.parametrize("futures", [1, 60, 80])
def test_an_interrupted_forecast_goes_on_to_the_same_end(tmp_path, futures: int) -> None:
    drawn = []

    def stop(done: int, total: int, unit: str) -> None:
        drawn.append(done)
        if done >= futures:
            raise Stop

    with pytest.raises(Stop):
        run(Journal(tmp_path / "pools", "key"), progress=stop)
    kept = len(list((tmp_path / "pools").rglob("pool-*.zip")))
    drawn.clear()
    journal = Journal(tmp_path / "pools", "key")
    assert same(run(journal, progress=lambda done, *_: drawn.append(done)), run())
    assert journal.pools_read == kept
    assert min(drawn) > 3 * 8 * kept  # and it did not begin anew


def test_shares_of_the_work_make_the_whole(tmp_path) -> None:
    for part in (2, 0, 1):
        found = run(Journal(tmp_path, "key", share=(part, 3)))
        notes = found.predictions["note"].drop_nulls()
        assert set(notes) == ({"left to another share of the work"} if part != 1 else set())
        counted = [found.summary[name] for name in ("rows", "predicted", "left_to_other_shares")]
        assert counted == [found.predictions.height - len(notes)] * 2 + [len(notes)]
        assert found.summary["refused"] == {}
    assert same(run(Journal(tmp_path, "key"), progress=lambda *_: pytest.fail("nothing was left to draw")), run())


@pytest.mark.parametrize(("parts", "pools"), [(2, 3), (3, 4), (11, 11), (40, 11)])
def test_small_work_is_divided_too(tmp_path, parts: int, pools: int) -> None:
    """Eleven prediction times are one pool; shared out they are more, and every share has one as long as there are prediction times."""
    wide = replace(CONFIG, moments=128)
    done = 0
    for part in range(parts):
        run(Journal(tmp_path, "key", share=(part, parts)), config=wide)
        before, done = done, len(list(tmp_path.rglob("pool-*.zip")))
        assert done > before or part >= 11
    assert done == pools
    assert same(run(Journal(tmp_path, "key"), config=wide, progress=lambda *_: pytest.fail("nothing was left to draw")), run(config=wide))


@pytest.mark.parametrize(("samples", "moments"), [(1, 128), (64, 128), (100, 81), (1000, 8), (100_000, 1)])
def test_many_futures_are_kept_a_few_prediction_times_at_a_time(samples: int, moments: int) -> None:
    """An interruption costs some thousand futures, however many each prediction time has; in rounds the first have twenty, and pools stay wide."""
    assert ForecastConfig(samples=samples).pool_moments == moments
    assert ForecastConfig(samples=samples + 40, target_std_error=0.02).pool_moments == 128


def test_an_interruption_of_few_prediction_times_costs_a_pool(tmp_path) -> None:
    """Eleven prediction times of 2,000 futures each: what was whole before the third pool is not drawn again."""
    many = replace(CONFIG, samples=2000, moments=128, trajectories=False)

    def stop(done: int, total: int, unit: str) -> None:
        if done > 9 * 2000:
            raise Stop

    with pytest.raises(Stop):
        run(Journal(tmp_path, "key"), config=many, progress=stop)
    assert len(list(tmp_path.rglob("pool-*.zip"))) == 2


def test_pools_that_are_there_are_used_whatever_the_share(tmp_path) -> None:
    journal = Journal(tmp_path, "key")
    assert journal.pool_size(1000, 128) == 128
    assert replace(journal, share=(0, 20)).pool_size(1000, 128) == 50
    journal.write(128, 3, pool())
    assert replace(journal, share=(1, 4)).pool_size(1000, 128) == 128  # eight pools, enough for four
    assert replace(journal, share=(1, 20)).pool_size(1000, 128) == 50
    replace(journal, share=(1, 20)).write(50, 1, pool())
    assert replace(journal, share=(1, 4)).pool_size(1000, 128) == 128  # the more is done


def test_what_the_grammar_took_away_is_told_and_kept(tmp_path) -> None:
    """A tenth behind every event (a visit's end, in no visit), and nothing behind gaps."""
    table = bare_chain(SHARES, 0.1, 0.05)
    slips = markov(table | {code: {"[VE]": 0.1, **{gap: 0.9 * share for gap, share in row.items()}} for code, row in table.items() if "D1" in row})

    def once(share=(0, 1)):
        return forecast(slips, history(11), ROWS, TASKS, CONFIG, journal=Journal(tmp_path, "key", share=share)).summary

    for part in range(2):
        once((part, 2))
    summary = once()
    removed = summary["removed_by_grammar"]
    assert 0.05 < removed["per_token"] < removed["worst_future"] <= 0.1
    gaps = removed["per_token"] * summary["tokens"] / 0.1
    assert gaps == pytest.approx(round(gaps), abs=1e-4)
    assert run().summary["removed_by_grammar"] == {"per_token": 0.0, "worst_future": 0.0}


def test_a_forecast_clears_its_own_pools_alone(tmp_path) -> None:
    """Another with the same output may have been interrupted."""
    other, own = Journal(tmp_path / "pools", "other"), Journal(tmp_path / "pools", "key")
    run(other, config=ForecastConfig(samples=2, moments=3, trajectories=True, curve_points=4))
    assert other.others() == 0
    (tmp_path / "pools" / "partial").symlink_to("gone")  # as a file of others that is renamed while sizes are looked up
    assert other.others() == 0
    (tmp_path / "pools" / "partial").unlink()
    theirs = sum(file.stat().st_size for file in tmp_path.rglob("*.zip"))
    assert same(run(own), run())
    assert own.others() == theirs
    own.clear()
    assert own.others() == theirs
    assert other.read(3, 1) is not None
    other.clear()
    assert not (tmp_path / "pools").exists()


def test_damaged_pools_are_drawn_again(tmp_path) -> None:
    run(Journal(tmp_path, "key"))
    damaged = sorted(tmp_path.rglob("pool-*.zip"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert same(run(Journal(tmp_path, "key")), run())


def pool() -> Found:
    """A small one with a frame of each kind but one."""
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    return Found(risks=[frame], notes=[frame], curves=[frame], samples=[frame], counts=Counter({"futures": 3}), removed=Removed(7, 5))


def test_no_damage_goes_unseen_or_ends_the_forecast(tmp_path) -> None:
    """Whatever byte is wrong, or missing, a pool is read as it was written or not at all."""
    journal = Journal(tmp_path, "key")
    journal.write(3, 0, pool())
    file = tmp_path / "key" / "pool-3-000000.zip"
    good, rng = file.read_bytes(), np.random.default_rng(0)
    written, none = journal.read(3, 0), 0
    assert written is not None
    for place in rng.integers(len(good), size=600):
        broken = bytearray(good)
        broken[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(broken if rng.random() < 0.8 else good[:place])
        found = journal.read(3, 0)
        none += found is None
        if found is not None:
            assert (found.counts, found.removed) == (written.counts, Removed(7, 5))
            for name in ("risks", "notes", "curves", "samples", "trajectories"):
                assert [one.to_dicts() for one in getattr(found, name)] == [one.to_dicts() for one in getattr(written, name)]
    assert none > 300


def test_a_folder_of_pools_that_is_none_is_a_storage_error(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    journal = Journal(tmp_path / "file", "key")
    with pytest.raises(StorageError, match="file"):
        journal.read(3, 0)
    with pytest.raises(StorageError, match="file"):
        journal.write(3, 0, pool())


@pytest.mark.parametrize("estimator", ["mc", "scope", "reach"])
def test_futures_are_drawn_until_the_error_is_small(estimator: str) -> None:
    config = ForecastConfig(estimator=estimator, samples=640, target_std_error=0.03, moments=4)
    told = run(config=config)
    found = told.predictions
    above = found.filter(pl.col("std_error") > 0.03)
    assert told.summary["error_above_target"] == above.height < found.height / 2
    assert (found["std_error"] < 0.045).all()
    assert found["std_error"].mean() < 0.03
    assert [note.split(" is ")[0] for note in told.notes] == ["the standard error"] * (above.height > 0)
    assert repr(told).startswith("Forecast(22 of 22 rows predicted, ")
    assert found["num_samples"].min() >= 20
    assert found["num_samples"].max() < 640
    for name, horizon in (("near", 30), ("far", 60)):
        risks = found.filter(pl.col("task") == name)
        truth = exact_risk(SHARES, 0.1, 0.05, elapsed=3, horizon=horizon)
        assert abs(risks["predicted_boolean_probability"].mean() - truth) < 3 * 0.03 / np.sqrt(11) + 0.01
    few = run(config=ForecastConfig(estimator=estimator, samples=45, target_std_error=0.0001)).predictions
    assert (few["num_samples"] == 25).all()  # the first twenty decide


def test_adaptive_futures_are_the_first_of_those_drawn_at_once() -> None:
    """The risk is that of all but those which decide how many are drawn."""
    adaptive = run(config=ForecastConfig(samples=80, target_std_error=1e-6, trajectories=True))
    once = run(config=ForecastConfig(samples=80, trajectories=True))
    assert adaptive.samples.equals(once.samples)
    order = ["subject_id", "prediction_time", "sample_id"]
    kept = [found.trajectories.sort(order, maintain_order=True) for found in (adaptive, once)]
    assert kept[0].equals(kept[1])
    assert (adaptive.predictions["num_samples"] == 60).all()
    both = once.predictions.join(adaptive.predictions, on=["task", "subject_id", "prediction_time"])
    first = run(config=ForecastConfig(samples=20)).predictions["predicted_boolean_probability"]
    of_all = 20 * first + 60 * both["predicted_boolean_probability_right"]
    assert of_all.to_list() == pytest.approx((80 * both["predicted_boolean_probability"]).to_list(), abs=0.5)  # but for unfinished futures


def test_estimators_agree_on_shared_pools_and_curves_end_at_the_risk() -> None:
    found = {one: run(config=ForecastConfig(estimator=one, samples=150, curve_points=5)) for one in ("mc", "scope", "reach")}
    for one, result in found.items():
        assert set(result.predictions["method"]) == {{"mc": "monte_carlo"}.get(one, one)}
        for name, horizon in (("near", 30), ("far", 60)):
            risks = result.predictions.filter(pl.col("task") == name)["predicted_boolean_probability"]
            truth = exact_risk(SHARES, 0.1, 0.05, elapsed=3, horizon=horizon)
            assert abs(risks.mean() - truth) < 3 * np.sqrt(truth * (1 - truth) / (11 * 150)), (one, name)
        ends = result.curves.filter(pl.col("days") == pl.col("days").max().over("task"))
        assert ends["cumulative_incidence"].to_list() == pytest.approx(result.predictions["predicted_boolean_probability"].to_list())
        assert (result.curves["cumulative_incidence"] + result.curves["competing_incidence"] <= 1 + 1e-9).all()
    assert found["reach"].predictions["std_error"].mean() < 0.8 * found["mc"].predictions["std_error"].mean()
    assert found["scope"].summary["futures"] == 11 * 150  # one pool for both tasks
    assert found["reach"].summary["futures"] == 2 * 11 * 150


def test_settings_that_contradict_each_other_are_refused() -> None:
    for settings, why in (
        ({"estimator": "magic"}, "estimator"),
        ({"least_samples": 3}, "least_samples"),
        ({"target_std_error": 2.0}, "target_std_error"),
        ({"target_std_error": 0.02, "samples": 39}, "samples is 39; with target_std_error that is the most"),
        ({"estimator": "reach", "trajectories": True}, "reach"),
    ):
        with pytest.raises(ConfigError, match=why):
            from_dict(ForecastConfig, settings, where="forecast")


def test_futures_are_kept_of_the_first_prediction_times_alone() -> None:
    every, some = run(), run(config=replace(CONFIG, trajectories_of=4))  # pools of three
    first = ROWS.head(4)
    assert every.trajectories["subject_id"].n_unique() > 4
    assert some.trajectories.equals(every.trajectories.filter(pl.col("subject_id").is_in(first["subject_id"].to_list())))
    assert some.predictions.equals(every.predictions)
    with pytest.raises(ValueError, match="trajectories_of is 0"):
        replace(CONFIG, trajectories_of=0)


def test_deaths_after_a_window_are_no_competing_events_of_it() -> None:
    """A pool that runs on for a longer task: what competes by day ten is what it is when the shorter task asks alone."""
    model = markov(bare_chain({1: 1.0}, 0.001, 0.03))
    rows = at(1, LAST + timedelta(days=1, hours=12))
    config = ForecastConfig(samples=400, curve_points=5, max_new_tokens=400)
    told = forecast(model, history(1), rows, [task("near", horizon=10), task("far", horizon=150)], config).curves
    near = told.filter(pl.col("task") == "near")["competing_incidence"].to_list()
    assert near[-1] == pytest.approx(1 - 0.969**9, abs=0.07)  # a death of the last date is dated to its end, past the window
    assert near[-1] - near[-2] < 0.1
    deaths = forecast(model, history(1), rows, [task("death", horizon=10, outcome="{death: true}"), task("far", horizon=150)], config).curves
    assert deaths.filter(pl.col("task") == "death")["competing_incidence"].to_list() == [0.0] * 5


@pytest.mark.parametrize("estimator", ["mc", "scope", "reach"])
def test_outcome_and_death_make_no_more_than_one(estimator: str) -> None:
    found = forecast(
        markov(bare_chain({1: 1.0}, 0.3, 0.3)),
        history(1),
        at(1, LAST + timedelta(days=1)),
        [task(horizon=40)],
        ForecastConfig(estimator=estimator, samples=400, curve_points=4),
    )
    end = found.curves.row(-1, named=True)
    assert end["competing_incidence"] == pytest.approx(0.5, abs=0.1)
    assert end["cumulative_incidence"] + end["competing_incidence"] == pytest.approx(1.0, abs=0.1 if estimator == "scope" else 1e-6)


@pytest.mark.parametrize("estimator", ["scope", "reach"])
def test_futures_that_all_say_nothing_do_not_say_that_they_are_sure(estimator: str) -> None:
    rare = markov(bare_chain({5: 1.0}, 0.0, 0.0))
    found = forecast(
        rare, history(1), at(1, LAST + timedelta(days=1)), [task()], ForecastConfig(estimator=estimator, samples=50, target_std_error=0.01)
    )
    assert found.predictions["std_error"][0] > 0.005
    assert found.predictions["num_samples"][0] == 30
    short = ForecastConfig(estimator=estimator, samples=40, target_std_error=0.02, max_new_tokens=1, curve_points=3)
    unfinished = run(config=short)
    assert (unfinished.predictions["num_samples"] == 20).all()
    assert (unfinished.predictions["std_error"] > 0.05).all()
    ends = unfinished.curves.filter(pl.col("days") == pl.col("days").max().over("task"))
    assert ends["cumulative_incidence"].to_list() == pytest.approx(unfinished.predictions["predicted_boolean_probability"].to_list())


def test_a_silence_that_no_token_can_say_is_no_forecast() -> None:
    found = forecast(markov(bare_chain(SHARES, 0.1, 0.05)), history(2), at(2, LAST + timedelta(days=200)), [task()], ForecastConfig(samples=4))
    assert found.predictions["predicted_boolean_probability"].null_count() == 2
    assert all("nothing happened between" in note for note in found.predictions["note"])
    assert found.summary["refused"] == {found.predictions["note"][0]: 2}


def test_rows_whose_futures_all_ran_out_say_so(tmp_path) -> None:
    """They keep their number, which lies between bounds that say nothing, whether drawn now or kept before."""
    short = replace(CONFIG, max_new_tokens=1)
    for _ in range(2):
        found = run(Journal(tmp_path, "key"), config=short)
        told, none = found.predictions.drop_nulls("note"), found.predictions.filter(pl.col("completion") == 0)
        assert told.equals(none)
        assert set(told["note"]) == {"no future was finished"}
        assert (told["task"] == "far").sum() == 11
        assert found.predictions["predicted_boolean_probability"].null_count() == 0
        assert (found.summary["predicted"], found.summary["refused"], found.summary["none_finished"]) == (22, {}, told.height)
    assert run().summary["none_finished"] == 0

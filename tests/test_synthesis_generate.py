"""Synthetic patients: what the model said of them is what the tables say, and the process behind them comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.errors import ConfigError, InputError
from cehrxgpt.events import EventDataset, validate_events
from cehrxgpt.model.hub import Loaded
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.synthesis import SynthesisConfig, check_omop, synthesize, write_synthetic
from cehrxgpt.timeline.time import age_in_months
from cehrxgpt.timeline.timeline import Timeline
from toy_capabilities import BENIGN, LABS, bare_chain, gaps, markov, vocabulary

DAYS = {
    "version": 1,
    "by": "year",
    "bands": [{"upper": 2009, "subjects": 50, "days": [100.0, 100.0]}, {"upper": None, "subjects": 50, "days": [200.0, 300.0]}],
}


def chain(*, gap: dict[int, float] | None = None, outcome: float = 0.0, death: float = 0.0, year: str = "year:2005") -> dict[str, dict[str, float]]:
    """Demographics, then labs and benign events; each lab and a stay now and then."""
    shares = gap or {10: 0.5, 30: 0.5}
    table = bare_chain(shares, outcome, death)
    prompt = {"[BOS]": year, year: "month:2", "month:2": "age:40", "age:40": "age_months:5", "age_months:5": "gender:8532", "gender:8532": "race:0"}
    table |= {token: {following: 1.0} for token, following in prompt.items()}
    table["race:0"] = {BENIGN: 1.0}
    for code, _, _ in LABS:
        table[BENIGN] = {token: share * 0.8 for token, share in table[BENIGN].items()} | {f"{code}|0": 0.2}
        table[f"{code}|0"] = gaps(shares)
    return table


def stays() -> dict[str, dict[str, float]]:
    """Admissions of one day, with an event in them, every thirty days."""
    table = chain(gap={30: 1.0}) | {
        "race:0": {"[VS]": 1.0},
        "D30": {"[VS]": 1.0},
        "[VS]": {"Visit/9201": 1.0},
        "Visit/9201": {"i-H9": 1.0},
        "i-H9": {BENIGN: 1.0},
        BENIGN: {"i-D1": 0.5, "discharge/8536": 0.5},
        "i-D1": {"i-H5": 1.0},
        "i-H5": {"discharge/8536": 1.0},
        "discharge/8536": {"[VE]": 1.0},
        "[VE]": {"D30": 1.0},
    }
    return table


@pytest.fixture(scope="module")
def drawn() -> tuple[Loaded, pl.DataFrame, dict[str, Any]]:
    model = markov(chain(death=0.02), population=DAYS)
    return model, *synthesize(model, 200, SynthesisConfig(chunk=150, batch_rows=64))


def test_patients_are_valid_events(drawn: tuple[Loaded, pl.DataFrame, dict[str, Any]]) -> None:
    _, events, summary = drawn
    validate_events(events)
    assert sorted(events["subject_id"].unique().to_list()) == list(range(1, 201))
    assert summary["patients"] == 200 == sum(summary["stopped"].values())
    births = events.filter(pl.col("code") == s.BIRTH)["time"].dt.date()
    starts = events.filter(pl.col("code") == s.OBSERVATION_START)["time"].dt.date()
    assert (starts.dt.year() == 2005).all()
    assert (starts.dt.month() == 2).all()
    assert starts.n_unique() > 20  # days of the month are drawn
    months = age_in_months(births.to_physical().to_numpy().astype(np.int64), starts.to_physical().to_numpy().astype(np.int64))
    assert (months == 40 * 12 + 5).all()  # the age that the prompt says, in completed months
    assert events.filter(pl.col("code") == "gender/8532").height == 200
    assert events.filter(pl.col("code").str.starts_with("race/")).height == 0  # unknown


def test_observation_has_the_length_of_the_population(drawn: tuple[Loaded, pl.DataFrame, dict[str, Any]]) -> None:
    _, events, summary = drawn
    by = events.group_by("subject_id").agg(
        pl.col("time").filter(pl.col("code") == s.OBSERVATION_START).first().alias("start"),
        pl.col("time").filter(pl.col("code") == s.OBSERVATION_END).first().alias("end"),
        (pl.col("code") == s.DEATH).any().alias("dead"),
        pl.col("time").filter(pl.col("code") != s.OBSERVATION_END).max().alias("last"),
    )
    lengths = by.with_columns((pl.col("end") - pl.col("start")).dt.total_days().alias("days"))
    assert (lengths.filter(~pl.col("dead"))["days"] == 100).all()
    assert (lengths.filter(pl.col("dead"))["days"] <= 100).all()
    assert (lengths["last"] <= lengths["end"]).all()
    assert lengths["dead"].sum() == summary["deaths"] > 0


def test_rates_come_back(drawn: tuple[Loaded, pl.DataFrame, dict[str, Any]]) -> None:
    """Events per patient of the chain: the share that dies, and the share of each lab."""
    _, _, summary = drawn
    # From day 0, an event at each sum of gaps up to day 100; each event after the first is a death with probability 0.02.
    alive = np.zeros(101)
    alive[0] = 1.0
    for day in range(1, 101):
        alive[day] = 0.98 * sum(0.5 * alive[day - gap] for gap in (10, 30) if day >= gap)
    deaths = sum(alive[day] / 0.98 * 0.02 for day in range(1, 101))
    # Labs stand beside the benign events and take no time of their own.
    assert abs(summary["deaths"] / 200 - deaths) < 3 * np.sqrt(deaths * (1 - deaths) / 200)


def test_values_are_drawn_inside_their_bins_with_their_own_unit(drawn: tuple[Loaded, pl.DataFrame, dict[str, Any]]) -> None:
    _, events, _ = drawn
    for code, unit, points in LABS:
        rows = events.filter(pl.col("code") == code)
        assert rows["unit"].unique().to_list() == [unit]
        assert rows["numeric_value"].n_unique() > 50
        assert points[0] <= rows["numeric_value"].min() <= rows["numeric_value"].max() <= points[-1]
    heaped = events.filter(pl.col("code") == "measurement/11")["numeric_value"]
    assert (heaped == 0).mean() == pytest.approx(0.5, abs=0.15)  # half of that bin's mass is zero, and zero is a value


def test_the_same_patients_whatever_the_batch(drawn: tuple[Loaded, pl.DataFrame, dict[str, Any]]) -> None:
    model, events, _ = drawn
    again, _ = synthesize(model, 200, SynthesisConfig(chunk=150, batch_rows=23))
    assert again.equals(events)
    fewer, _ = synthesize(model, 40, SynthesisConfig(chunk=13))
    columns = ["subject_id", "time", "code", "end_time", "visit_id"]
    assert fewer.select(columns).equals(events.filter(pl.col("subject_id") <= 40).select(columns))
    other, _ = synthesize(model, 40, SynthesisConfig(seed=1))
    assert not other.select(columns).equals(fewer.select(columns))


def test_out_of_budget_is_counted_and_kept() -> None:
    model = markov(chain(gap={1: 1.0}), population=DAYS)
    events, summary = synthesize(model, 20, SynthesisConfig(max_new_tokens=21))
    assert summary["out_of_budget"] == 20
    assert events["subject_id"].n_unique() == 20
    end = events.filter(pl.col("code") == s.OBSERVATION_END).select("subject_id", pl.col("time").dt.date().alias("end"))
    last = events.filter(pl.col("code").is_in([BENIGN, *(lab[0] for lab in LABS)])).group_by("subject_id").agg(pl.col("time").max().dt.date())
    assert (end.join(last, on="subject_id").select((pl.col("end") - pl.col("time")).dt.total_days()).to_series() <= 1).all()


def test_unknown_years_start_in_a_fixed_year() -> None:
    events, summary = synthesize(markov(chain(year="year:unknown"), population=DAYS), 5)
    assert summary["unknown_year"] == 5
    assert (events.filter(pl.col("code") == s.OBSERVATION_START)["time"].dt.year() == 2000).all()


def test_long_gaps_reject_nobody() -> None:
    days = {"version": 1, "by": "year", "bands": [{"upper": None, "subjects": 50, "days": [20000.0, 20000.0]}]}
    table = chain() | {BENIGN: {"Y12": 1.0}, "Y12": {"D300": 1.0}, "D300": {BENIGN: 1.0}}
    events, summary = synthesize(markov(table, population=days), 10)
    assert events.filter(pl.col("code") == BENIGN).height == 10 * 5  # 4,680 days apart, for 20,000 days
    assert summary["stopped"]["horizon"] == 10


def test_omop_tables_are_sound_and_read_again(tmp_path: Path) -> None:
    model = markov(stays(), population=DAYS)
    summary = write_synthetic(model, 30, tmp_path / "cdm", SynthesisConfig(chunk=11))
    assert check_omop(tmp_path / "cdm") == {}
    assert summary["written"]["rows"]["person"] == 30
    visits = pl.read_parquet(tmp_path / "cdm" / "visit_occurrence.parquet")
    assert set(visits["discharged_to_concept_id"]) == {8536}
    assert set(visits["visit_concept_id"]) == {9201}
    direct, _ = synthesize(model, 30, SynthesisConfig(chunk=11))
    back = ingest(tmp_path / "cdm", tmp_path / "events", IngestConfig()).read()
    columns = ["subject_id", "time", "code", "end_time"]
    chosen = ~pl.col("code").is_in(["race/0", "ethnicity/0", s.OBSERVATION_START, s.OBSERVATION_END])
    assert (
        back.filter(chosen)
        .select(columns)
        .sort(columns, nulls_last=False)
        .equals(direct.filter(chosen).select(columns).sort(columns, nulls_last=False))
    )
    tokens = [Timeline(vocabulary()).encode_frame(frame).token_id for frame in (direct, back.sort("subject_id", maintain_order=True))]
    assert np.array_equal(*tokens)


def test_meds_is_an_event_data_set(tmp_path: Path) -> None:
    model = markov(chain(), population=DAYS)
    summary = write_synthetic(model, 30, tmp_path / "meds", SynthesisConfig(chunk=11), format="meds")
    dataset = EventDataset(tmp_path / "meds")
    direct, _ = synthesize(model, 30, SynthesisConfig(chunk=11))
    assert dataset.read().equals(direct)
    assert len(dataset.shards()) == 3 == summary["written"]["shards"]
    assert dataset.subject_splits.height == 30


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    model = markov(chain(), population=DAYS)
    with pytest.raises(ConfigError, match="valid: omop, meds"):
        write_synthetic(model, 3, tmp_path / "x", format="fhir")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        synthesize(model, 0)
    with pytest.raises(InputError, match=r"population\.json"):
        synthesize(markov(chain()), 3)
    assert not (tmp_path / "x").exists()


def test_a_model_that_was_not_asked_who_there_is_cannot_draw_people(tmp_path: Path) -> None:
    model = replace(markov(chain(), population=DAYS), folder=tmp_path)
    for demographics in (True, False):
        said = {"next_token": {"settings": {"weight": 1.0, "demographics": demographics}, "facts": {}}}
        (tmp_path / "heads.json").write_text(json.dumps(said))
        if demographics:
            assert synthesize(model, 1)[0].height
            continue
        with pytest.raises(InputError, match="cannot draw people; train one that predicts demographics"):
            synthesize(model, 1)

"""The rules of the ingest against plain Python on generated rows, and the splits."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import schema as s
from cehrxgpt import visits as classes
from cehrxgpt.errors import InputError
from cehrxgpt.events import cut_history, sort_events, validate_events
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.sources.bucket import DEATHS, EVENTS, PERIODS, STATICS, VISITS, Bucket, shaped
from cehrxgpt.sources.canonical import Rules, canonicalise
from cehrxgpt.sources.ledger import Ledger
from cehrxgpt.sources.splits import assign_splits, subject_uniform

START = datetime(2010, 1, 1)
DAY = timedelta(days=1)
SPAN = [f"Visit/{concept}" for concept in (9201, 9203, 8870, 581385)]
SUBJECTS = 12
seeds = st.integers(0, 2**32)  # one example is a whole population: a bucket costs the same for two rows as for two thousand


def draw_events(rng: np.random.Generator, number: int = 400) -> list[Any]:
    """(subject, hour, date only, visit, billing, kind), with exact duplicates among them."""
    links = [None, None, 1, 2, 3, 9]
    return [
        (
            int(rng.integers(SUBJECTS)),
            int(rng.integers(288)),
            bool(rng.integers(2)),
            links[rng.integers(6)],
            bool(rng.integers(2)),
            int(rng.integers(3)),
        )
        for _ in range(number)
    ]


def draw_visits(rng: np.random.Generator) -> list[Any]:
    """(subject, visit, hour, length in hours, date only, code); ids repeat, ends lie before starts."""
    return [
        (
            int(rng.integers(SUBJECTS)),
            int(rng.integers(1, 4)),
            int(rng.integers(288)),
            None if rng.random() < 0.1 else int(rng.integers(-5, 60)),
            bool(rng.integers(2)),
            [*SPAN, "Visit/9202"][rng.integers(5)],
        )
        for _ in range(40)
    ]


def draw_deaths(rng: np.random.Generator) -> list[Any]:
    return [(int(rng.integers(SUBJECTS)), int(rng.integers(288)), bool(rng.integers(2))) for _ in range(6)]


def booked(table: str, rows: list[dict[str, Any]], schema: dict[str, Any]) -> pl.DataFrame:
    if not rows:
        return pl.DataFrame(schema=schema)
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return shaped(frame.with_columns(pl.lit(table).alias("table"), pl.lit(table).alias("group"), pl.lit(table).alias("origin")), schema)


def make_bucket(events: list[Any], visits: list[Any], deaths: list[Any]) -> Bucket:
    clinical = [
        {
            "subject_id": subject,
            "time": START + timedelta(hours=hour),
            "time_is_date": day,
            "visit_id": visit,
            "billing": billing,
            "code": f"condition/{kind}",
        }
        | {"fingerprint": abs(hash((subject, hour, day, visit, billing, kind)))}
        for subject, hour, day, visit, billing, kind in events
    ]
    stays = [
        {"subject_id": subject, "visit_id": visit, "time": START + timedelta(hours=hour), "time_is_date": day, "end_is_date": day, "code": code}
        | {
            "end_time": None if length is None else START + timedelta(hours=hour + length),
            "end_group": "visit:end",
            "discharge_code": "discharge/8536",
        }
        | {"fingerprint": number}
        for number, (subject, visit, hour, length, day, code) in enumerate(visits)
    ]
    gone = [
        {"subject_id": subject, "time": START + timedelta(hours=hour), "time_is_date": day, "fingerprint": n}
        for n, (subject, hour, day) in enumerate(deaths)
    ]
    people = [{"subject_id": subject, "code": "gender/0"} for subject in range(SUBJECTS)]
    people += [{"subject_id": 2, "code": s.BIRTH, "time": START + 2 * DAY, "derived": True}]
    return Bucket(
        events=booked("condition_occurrence", clinical, EVENTS),
        visits=booked("visit_occurrence", stays, VISITS),
        deaths=booked("death", gone, DEATHS),
        statics=booked("person", people, STATICS),
        periods=booked("observation_period", [], PERIODS),
        known_subjects=pl.Series(range(SUBJECTS), dtype=pl.Int64),
    )


@settings(deadline=None, max_examples=6)
@given(seeds)
def test_invariants_and_the_book(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events, visits, deaths = draw_events(rng), draw_visits(rng), draw_deaths(rng)
    ledger = Ledger()
    found = canonicalise(make_bucket(events, visits, deaths), Rules(latest=START + timedelta(days=400)), ledger)
    validate_events(found)
    assert found.equals(sort_events(found))
    ledger.read = Counter({"condition_occurrence": len(events), "visit_occurrence": len(visits), "death": len(deaths), "person": SUBJECTS})
    tables = ledger.tables()
    assert sum(row["kept"] for row in tables.values()) + sum(ledger.derived.values()) == found.height
    # Two periods' rows per subject with anything timed, whatever they are made of.
    timed = found.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH))
    assert (timed.filter(pl.col("code").str.starts_with("OBSERVATION")).group_by("subject_id").len()["len"] == 2).all()
    last = timed.group_by("subject_id").agg(pl.col("code").last() == s.OBSERVATION_END)
    assert last["code"].all()
    check_links(found)


def check_links(found: pl.DataFrame) -> None:
    """Every link is near its visit, and nothing inside a span visit is loose."""
    stays = found.filter(pl.col("code").str.starts_with("Visit/"))
    near: dict[int, list[dict[str, Any]]] = {}
    for stay in stays.to_dicts():
        length = stay["end_time"] and (stay["end_time"] - stay["time"]).total_seconds() / 60
        stay["span"] = classes.class_of(stay["code"], length) in classes.SPAN_CLASSES
        near.setdefault(stay["subject_id"], []).append(stay)
        assert stay["end_time"] is None or stay["end_time"] >= stay["time"]
        assert stay["span"] or stay["end_time"] is None or stay["end_time"].date() == stay["time"].date()
    dead = dict(found.filter(pl.col("code") == s.DEATH).select("subject_id", "time").rows())
    for row in found.filter(pl.col("code").str.starts_with("condition/")).to_dicts():
        mine = near.get(row["subject_id"], [])
        if row["visit_id"] is None:
            if row["time"] == dead.get(row["subject_id"]):
                continue  # it may have been moved there
            assert not [v for v in mine if v["span"] and v["end_time"] is not None and v["time"] <= row["time"] <= v["end_time"]]
        else:
            own = next(stay for stay in mine if stay["visit_id"] == row["visit_id"])
            assert row["time"] >= own["time"] - DAY
            assert own["end_time"] is None or row["time"] <= own["end_time"] + DAY


@settings(deadline=None, max_examples=4)
@given(seeds)
def test_what_is_kept_and_when_it_is_known(seed: int) -> None:
    """Without visits and deaths, plain Python says which rows stay, where and since when."""
    events = draw_events(np.random.default_rng(seed), 1500)
    found = canonicalise(make_bucket(events, [], []), Rules(date_only_groups=frozenset({"condition_occurrence"})), Ledger())
    expected = []
    for subject, hour, day, _, _, kind in set(events):
        time = START + timedelta(hours=hour)
        is_date = day or time.hour == 0
        time = time.replace(hour=0) if is_date else time
        if subject == 2 and time < START + 2 * DAY:
            continue
        known = time + DAY - timedelta(microseconds=1) if is_date else time
        expected.append((subject, time, f"condition/{kind}", known, "day" if is_date else "minute"))
    clinical = found.filter(pl.col("code").str.starts_with("condition"))
    assert Counter(clinical.select("subject_id", "time", "code", "available_time", "time_precision").rows()) == Counter(expected)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    rows = [(int(rng.integers(1, 3)), int(rng.integers(0, 200)), bool(rng.integers(0, 2)), None, False, int(rng.integers(0, 3))) for _ in range(60)]
    stays = [(1, n, 30 * n, 20, bool(n % 2), SPAN[n % 4]) for n in range(1, 6)]
    first = canonicalise(make_bucket(rows, stays, [(1, 180, True)]), Rules(), Ledger())
    second = canonicalise(make_bucket(rows[::-1], stays[::-1], [(1, 180, True)]), Rules(), Ledger())
    assert first.equals(second)


SHARES = {"train": 0.8, "tuning": 0.1, "held_out": 0.1}


def test_the_split_hash_is_fixed() -> None:
    """A change of these numbers moves patients between splits."""
    found = subject_uniform(np.array([0, 1, -1, 2**62], dtype=np.int64), 0)
    assert [round(value, 6) for value in found] == PINNED
    assert not np.array_equal(found, subject_uniform(np.array([0, 1, -1, 2**62], dtype=np.int64), 1))


def splitmix64(value: int) -> int:
    """SplitMix64 in unbounded integers."""
    mask = 2**64 - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


PINNED = [round((splitmix64((identifier % 2**64) ^ splitmix64(0)) >> 11) * 2.0**-53, 6) for identifier in (0, 1, -1, 2**62)]


def test_splits_have_their_shares_and_are_stable() -> None:
    ids = pl.Series(range(-5000, 5000))
    split, policy = assign_splits(ids, SHARES, 0)
    counts = dict(split.group_by("split").len().rows())
    assert policy == "hash"
    assert abs(counts["train"] - 8000) < 200
    assert abs(counts["held_out"] - 1000) < 120
    fewer, _ = assign_splits(ids.sample(3000, seed=1), SHARES, 0)
    assert fewer.join(split, on=["subject_id", "split"], how="anti").is_empty()


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=30), st.integers(0, 2**32))
def test_no_split_is_ever_empty(ids: set[int], seed: int) -> None:
    split, _ = assign_splits(pl.Series("subject_id", sorted(ids), dtype=pl.Int64), SHARES, seed)
    assert set(split["split"]) == {"train", "tuning", "held_out"}
    assert split["subject_id"].to_list() == sorted(ids)


def test_the_datas_own_split_wins() -> None:
    ids = pl.Series([1, 2, 3])
    own = pl.DataFrame({"subject_id": [1, 2, 3, 4], "split": ["train", "train", "held_out", "tuning"]})
    split, policy = assign_splits(ids, SHARES, 0, own=own)
    assert (split.rows(), policy) == ([(1, "train"), (2, "train"), (3, "held_out")], "own")
    split, policy = assign_splits(pl.Series([1, 2, 3, 50]), SHARES, 0, own=own)
    assert policy == "own_and_hash"
    assert split.head(3).rows() == [(1, "train"), (2, "train"), (3, "held_out")]
    with pytest.raises(InputError, match="2 subjects cannot fill"):
        assign_splits(pl.Series([1, 2]), SHARES, 0)
    assert assign_splits(pl.Series([1]), {"train": 1.0}, 0)[0].rows() == [(1, "train")]


@pytest.mark.parametrize("name", ["../../../elsewhere", "a/b", ".hidden", "", "a\\b", "a\nb"])
def test_a_split_names_one_folder(name: str) -> None:
    own = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", name, "held_out"]})
    with pytest.raises(InputError, match="cannot be the name of a split's folder"):
        assign_splits(pl.Series([1, 2, 3]), SHARES, 0, own=own)


def test_a_subject_is_in_one_split() -> None:
    own = pl.DataFrame({"subject_id": [1, 2, 3, 1, 2, 2], "split": ["train", "train", "held_out", "tuning", "train", "tuning"]})
    with pytest.raises(InputError, match="2 subjects are in two splits"):
        assign_splits(pl.Series([1, 2, 3]), SHARES, 0, own=own)


def test_an_admission_is_not_known_in_the_emergency_room(tmp_path: Path) -> None:
    """An emergency visit that becomes an admission at 20:00 is one visit afterwards; at noon it is an emergency visit."""
    frames = {
        "person": pl.DataFrame({"person_id": [1, 2, 3], "gender_concept_id": [8507] * 3, "year_of_birth": [1950] * 3, "race_concept_id": [0] * 3}),
        "visit_occurrence": pl.DataFrame(
            {
                "visit_occurrence_id": [10, 11, 12, 13],
                "person_id": [1, 1, 2, 3],
                "visit_concept_id": [9203, 9201, 9202, 9202],
                "visit_start_datetime": ["2015-03-01 08:00:00", "2015-03-01 20:00:00", "2015-01-01 09:00:00", "2015-01-01 09:00:00"],
                "visit_end_datetime": ["2015-03-02 02:00:00", "2015-03-09 10:00:00", "2015-01-01 10:00:00", "2015-01-01 10:00:00"],
            }
        ),
        "condition_occurrence": pl.DataFrame(
            {
                "condition_occurrence_id": [1],
                "person_id": [1],
                "condition_concept_id": [77670],
                "condition_start_datetime": ["2015-03-01 09:30:00"],
                "visit_occurrence_id": [10],
            }
        ),
    }
    (tmp_path / "cdm").mkdir()
    for name, frame in frames.items():
        frame.write_csv(tmp_path / "cdm" / f"{name}.csv")
    events = sort_events(ingest(tmp_path / "cdm", tmp_path / "events", IngestConfig()).read())
    validate_events(events)
    visits = events.filter((pl.col("subject_id") == 1) & pl.col("code").str.starts_with("Visit/"))
    assert visits["code"].to_list() == ["Visit/9201"]
    assert visits["time"].to_list() == [datetime(2015, 3, 1, 8)]
    assert visits["available_time"].to_list() == [datetime(2015, 3, 1, 20)]
    noon = cut_history(events, pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2015, 3, 1, 12)]}))
    coded = noon.filter(pl.col("code").str.starts_with("condition/") | pl.col("code").str.starts_with("Visit/"))
    assert coded.select("code", "time", "end_time", "visit_id").rows() == [
        ("Visit/9203", datetime(2015, 3, 1, 8), None, 10), ("condition/77670", datetime(2015, 3, 1, 9, 30), None, 10),
    ]  # fmt: skip
    night = cut_history(events, pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2015, 3, 1, 23)]}))
    assert "Visit/9201" in night["code"].to_list()
    assert night.filter(pl.col("code") == "condition/77670")["visit_id"].null_count() == 0

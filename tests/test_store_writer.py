"""`tokenize`: what is written is what encoding gives, counted, and whole or not at all."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cehrxgpt.errors import InputError, OutputExistsError, StorageError
from cehrxgpt.events import EventDataset
from cehrxgpt.store import format as store_format
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.writer import write_store
from cehrxgpt.timeline import Population, Timeline, TimelineConfig
from cehrxgpt.timeline.encoded import HISTORY_FIELDS, TOKEN_FIELDS, concatenate
from timeline_samples import row, static, table

START = datetime(2012, 3, 1)


def _patients(first: int, count: int, seed: int) -> pl.DataFrame:
    """Patients with a few coded days, one of the codes rare; every fifth dies."""
    random = np.random.default_rng(seed)
    rows = []
    for subject in range(first, first + count):
        rows += static(subject)
        day = START + timedelta(days=int(random.integers(0, 300)))
        for _ in range(int(random.integers(1, 9))):
            rows.append(row(subject, day, f"condition/{int(random.integers(1, 4))}", day=True))
            if random.random() < 0.05:
                rows.append(row(subject, day, f"drug/{1000 + subject}", day=True))
            day += timedelta(days=int(random.integers(1, 90)))
        if subject % 5 == 0:
            rows.append(row(subject, day, "MEDS_DEATH"))
        rows.append(row(subject, day + timedelta(days=30), "OBSERVATION//END"))
    return table(rows)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventDataset:
    root = tmp_path_factory.mktemp("events")
    shards = {"train/0": (0, 40), "train/1": (40, 30), "tuning/0": (70, 10), "held_out/0": (80, 10)}
    for name, (first, count) in shards.items():
        path = root / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        _patients(first, count, seed=first).write_parquet(path)
    return EventDataset(root)


@pytest.fixture(scope="module")
def timeline(events: EventDataset) -> Timeline:
    return Timeline.fit(events, config=TimelineConfig(min_subjects=11))


@pytest.mark.parametrize("workers", [1, 2])
def test_store_holds_what_encoding_gives(events: EventDataset, timeline: Timeline, tmp_path: Path, workers: int) -> None:
    seen: list[tuple[int, int, str]] = []
    write_store(events, timeline, tmp_path / "store", workers=workers, progress=lambda *facts: seen.append(facts))
    store = TokenStore(tmp_path / "store")
    expected = concatenate([timeline.encode_frame(frame) for split in events.splits for _, frame in events.iter_shards(split)])
    for name in (*TOKEN_FIELDS, *HISTORY_FIELDS, "offsets"):
        np.testing.assert_array_equal(getattr(store, name), getattr(expected, name))
    assert store.subject_id[store.indices("tuning")].tolist() == list(range(70, 80))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == 4
    assert store.vocabulary.fingerprint == timeline.vocabulary.fingerprint
    assert Timeline.load(tmp_path / "store").calendar == timeline.calendar


def test_tokenize_json_counts(events: EventDataset, timeline: Timeline, tmp_path: Path) -> None:
    facts = write_store(events, timeline, tmp_path / "store")
    assert facts == json.loads((tmp_path / "store" / "tokenize.json").read_text())
    frame = events.read()
    real = frame.filter(pl.col("code").str.contains("condition/|drug/|MEDS_DEATH"))
    drugs = real.filter(pl.col("code").str.starts_with("drug/"))
    assert drugs.height > 0
    assert (facts["events"], facts["events_dropped"]) == (real.height, drugs.height)
    assert facts["dropped_share"] == pytest.approx(drugs.height / real.height)
    assert (facts["codes_kept"], facts["codes_dropped"]) == (4, drugs["code"].n_unique())
    assert facts["patients"] == 90
    rows = {line["split"]: line for line in facts["splits"]}
    assert list(rows) == ["train", "tuning", "held_out"]
    assert rows["train"]["patients"] == 70
    dead = frame.filter(pl.col("code") == "MEDS_DEATH")["subject_id"].n_unique()
    assert sum(line["open_histories"] for line in rows.values()) == 90 - dead
    lengths = TokenStore(tmp_path / "store").lengths
    assert facts["tokens"] == lengths.sum()
    assert rows["train"]["length_p50"] == np.median(lengths[:70])


def test_population_is_that_of_the_training_patients(events: EventDataset, timeline: Timeline, tmp_path: Path) -> None:
    facts = write_store(events, timeline, tmp_path / "store")
    train = timeline.encode_frame(events.read("train"))
    assert facts["population"]
    assert TokenStore(tmp_path / "store").population == json.loads(json.dumps(Population.fit(train, timeline.vocabulary).to_dict()))


def test_too_few_patients_leave_no_population(events: EventDataset, timeline: Timeline, tmp_path: Path) -> None:
    root = tmp_path / "few"
    (root / "data" / "train").mkdir(parents=True)
    _patients(0, 5, seed=0).write_parquet(root / "data" / "train" / "0.parquet")
    assert not write_store(EventDataset(root), timeline, tmp_path / "store")["population"]
    assert TokenStore(tmp_path / "store").population is None


def test_fingerprint_follows_the_events(events: EventDataset, timeline: Timeline, tmp_path: Path) -> None:
    write_store(events, timeline, tmp_path / "a")
    write_store(events, timeline, tmp_path / "b")
    assert TokenStore(tmp_path / "a").fingerprint == TokenStore(tmp_path / "b").fingerprint
    root = tmp_path / "other"
    (root / "data" / "train").mkdir(parents=True)
    events.read("train").head(300).write_parquet(root / "data" / "train" / "0.parquet")
    write_store(EventDataset(root), timeline, tmp_path / "c")
    assert TokenStore(tmp_path / "c").fingerprint != TokenStore(tmp_path / "a").fingerprint


def test_a_failing_disk_leaves_nothing_behind(events: EventDataset, timeline: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(self: store_format.ArrayAppender, values: object, original: object = store_format.ArrayAppender.append) -> None:
        written.append(1)
        if len(written) > 40:
            raise OSError(28, "No space left on device")
        original(self, values)  # type: ignore[operator]

    monkeypatch.setattr(store_format.ArrayAppender, "append", full)
    with pytest.raises(StorageError, match="No space left on device; nothing was left behind"):
        write_store(events, timeline, tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_clear_line(events: EventDataset, timeline: Timeline, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError, match="--force"):
        write_store(events, timeline, tmp_path / "there")
    foreign = tmp_path / "foreign"
    (foreign / "data" / "train").mkdir(parents=True)
    table([*static(1), row(1, START, "LAB//1", day=True)]).write_parquet(foreign / "data" / "train" / "0.parquet")
    with pytest.raises(InputError, match="none of its events is in the vocabulary"):
        write_store(EventDataset(foreign), timeline, tmp_path / "store")
    shard = foreign / "data" / "train" / "0.parquet"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match="not a readable Parquet shard"):
        write_store(EventDataset(foreign), timeline, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_stands_above_the_codes_is_kept_where_the_data_knows(events: EventDataset, timeline: Timeline, tmp_path: Path) -> None:
    write_store(events, timeline, tmp_path / "without")
    assert TokenStore(tmp_path / "without").ancestors == {}
    assert TokenStore(tmp_path / "without").outcomes == {}
    shutil.copytree(events.root, tmp_path / "events")
    (tmp_path / "events" / "metadata").mkdir(exist_ok=True)
    codes = [("condition/1", ["condition/10"]), ("condition/10", ["condition/11"]), ("condition/77", ["condition/11"]), ("condition/2", None)]
    frame = pl.DataFrame(codes, schema={"code": pl.String, "parent_codes": pl.List(pl.String)}, orient="row")
    frame.with_columns(pl.lit(None, pl.String).alias("description")).write_parquet(tmp_path / "events" / "metadata" / "codes.parquet")
    write_store(EventDataset(tmp_path / "events"), timeline, tmp_path / "with", outcomes={"one_1y": (3, 4)})
    assert TokenStore(tmp_path / "with").ancestors == {"condition/1": ["condition/10", "condition/11"]}
    assert TokenStore(tmp_path / "with").outcomes == {"one_1y": [3, 4]}

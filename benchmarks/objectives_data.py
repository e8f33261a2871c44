"""What `benchmarks/objectives.py` learns from and is judged on: two simulated populations as one data set, and what is the same for all runs.

    DATA/
        train_cdm/ test_cdm/        the populations, of different seeds
        events/                     one event data set: `train` and `tuning` are of the one, `held_out` is the whole of the other
        fused/ split/ untimed/      token stores
        labels/ truth/              label tables of all splits; true risks at the held-out rows
        moments/<store>.npz         the histories behind the labels as tokens, cut to the context
        data.json                   settings and counts; written last

`untimed` is `fused` without its time tokens: ages are kept, so that rotary positions over age still know all that the tokens said.
Each part is written whole or not at all, and kept when the next run finds it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, write_json
from cehrxgpt.config import fingerprint
from cehrxgpt.errors import InputError, MismatchError
from cehrxgpt.events import EventDataset
from cehrxgpt.simulate import SimulateConfig, simulate, true_risk, true_tasks
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.stages import label_all, tokenize
from cehrxgpt.store.format import ANCESTORS_FILE, POPULATION_FILE, StoreAppender, TokenStore, write_meta
from cehrxgpt.timeline import Timeline
from cehrxgpt.timeline.encoded import TOKEN_FIELDS, EncodedHistories
from cehrxgpt.timeline.kinds import TIME_KINDS
from cehrxgpt.timeline.moments import encode_moments
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.timeline.window import last_window

STORES = ("fused", "split", "untimed")
TEST_IDS = 1_000_000_000  # added to the ids of the test population
KEY = ("subject_id", "prediction_time")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is simulated, and how much of it is looked at.

    Attributes:
        patients, test_patients: of the two populations.
        seed, test_seed: of the simulator; they must differ.
        truth_samples: re-simulated futures per held-out label.
        probe_patients: training patients whose labels the linear probe is fitted on, at most.
        context: tokens of a window.
        least_events: tasks with fewer events among the held-out labels are left out.
    """

    population: str = "core"
    patients: int = 10_000
    test_patients: int = 3_000
    seed: int = 101
    test_seed: int = 202
    truth_samples: int = 500
    probe_patients: int = 5_000
    context: int = 512
    least_events: int = 100


@dataclass(frozen=True)
class Windows:
    """Histories at M moments, cut to the context: tokens one after the other, and days from the last of them to the moment."""

    token_id: np.ndarray
    age_minutes: np.ndarray
    offsets: np.ndarray
    elapsed_days: np.ndarray

    def __len__(self) -> int:
        return len(self.elapsed_days)


class Data:
    """The folder, once `make` has filled it."""

    def __init__(self, folder: Path, settings: DataSettings):
        self.folder, self.settings = folder, settings

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides the data."""
        return fingerprint(asdict(self.settings))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Counts, by `make`."""
        return json.loads((self.folder / "data.json").read_text(encoding="utf-8"))["facts"]

    @cached_property
    def events(self) -> EventDataset:
        """Both populations."""
        return EventDataset(self.folder / "events")

    def store(self, name: str) -> TokenStore:
        """One of STORES."""
        return TokenStore(self.folder / name)

    @property
    def tasks(self) -> list[str]:
        """Those with enough events."""
        return list(self.facts["tasks"])

    def labels(self, task: str) -> pl.DataFrame:
        """Of all held-out people, and of the training people that the probe is fitted on."""
        return probed(pl.read_parquet(self.folder / "labels" / f"{task}.parquet"), self.settings)

    def truth(self, task: str) -> pl.DataFrame:
        """True risks at the held-out rows."""
        return pl.read_parquet(self.folder / "truth" / f"{task}.parquet")

    @cached_property
    def moments(self) -> pl.DataFrame:
        """KEY of every row of `windows`."""
        return moments_of(self.folder, self.settings)

    def windows(self, store: str) -> Windows:
        """The histories at `moments`."""
        with np.load(self.folder / "moments" / f"{store}.npz") as file:
            return Windows(**{name: file[name] for name in ("token_id", "age_minutes", "offsets", "elapsed_days")})

    def planned_end(self) -> dict[int, int]:
        """Held-out subject -> date (days since 1970) at which their observation was planned to end, which nothing that befell them moved."""
        people = pl.read_parquet(self.folder / "test_cdm" / "truth" / "people.parquet")
        date = (people["planned_end"].dt.epoch("us") // (MINUTES_PER_DAY * 60_000_000)).to_list()
        return dict(zip((people["subject_id"] + TEST_IDS).to_list(), date, strict=True))

    def comparable(self) -> np.ndarray:
        """Held-out histories (indices, the same in all stores) that fit into the context in every store."""
        stores = [self.store(name) for name in STORES]
        assert all(np.array_equal(stores[0].subject_id, store.subject_id) for store in stores)
        held = stores[0].indices(s.HELD_OUT)
        return held[np.all([store.lengths[held] <= self.settings.context for store in stores], axis=0)]


def make(folder: Path, settings: DataSettings, say: Any = print) -> Data:
    """Fill the folder, or go on filling it.

    Raises:
        MismatchError: it holds data of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "settings.json"
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != asdict(settings):
        raise MismatchError(f"{folder}: data of other settings; give another --out")
    write_json(begun, asdict(settings))
    if not (folder / "data.json").exists():
        _fill(folder, settings, say)
    return Data(folder, settings)


def opened(folder: Path) -> Data:
    """A folder that `make` has filled.

    Raises:
        InputError: it has not.
    """
    if not (folder / "data.json").exists():
        raise InputError(f"{folder}: no data, or not whole; run without --write first")
    return Data(folder, DataSettings(**json.loads((folder / "settings.json").read_text(encoding="utf-8"))))


def _fill(folder: Path, settings: DataSettings, say: Any) -> None:
    say("data: populations")
    for which, patients, seed in (("train", settings.patients, settings.seed), ("test", settings.test_patients, settings.test_seed)):
        if not (folder / f"{which}_cdm").exists():
            config = SimulateConfig(population=settings.population, patients=patients, seed=seed, truth_samples=0)
            simulate(folder / f"{which}_cdm", config)
        if not (folder / f"{which}_events").exists():
            splits = {s.TRAIN: 0.9, s.TUNING: 0.1} if which == "train" else {s.HELD_OUT: 1.0}
            ingest(folder / f"{which}_cdm", folder / f"{which}_events", IngestConfig(splits=splits, threads=1))
    if not (folder / "events").exists():
        join(folder / "train_events", folder / "test_events", folder / "events")
    say("data: token stores")
    for name in ("fused", "split"):
        if not (folder / name).exists():
            tokenize(folder / "events", folder / name, {"values": name})
    if not (folder / "untimed").exists():
        write_untimed(TokenStore(folder / "fused"), folder / "untimed")
    say("data: labels and true risks")
    if not (folder / "labels").exists():
        label_all(folder / "events", true_tasks(folder / "test_cdm"), folder / "labels")
    tasks = _powered(folder, settings)
    for task in tasks:
        _write_truth(folder, task, settings)
    say("data: histories behind the labels")
    write_json(folder / "tasks.json", tasks)
    for name in STORES:
        _write_windows(folder, name, settings)
    write_json(folder / "data.json", {"settings": asdict(settings), "facts": _facts(folder, tasks)})


def join(train: Path, test: Path, out: Path) -> None:
    """One event data set: all of the second becomes `held_out` of the first, under ids of its own."""
    first, second = EventDataset(train), EventDataset(test)
    other = (pl.col("subject_id") + TEST_IDS).alias("subject_id")
    with atomic_path(out, folder=True) as partial:
        shutil.copytree(train, partial, dirs_exist_ok=True)
        (partial / "data" / s.HELD_OUT).mkdir()
        for number, path in enumerate(second.shards()):
            second.read_shard(path).with_columns(other).write_parquet(partial / "data" / s.HELD_OUT / f"{number}.parquet")
        splits = pl.concat([first.subject_splits, second.subject_splits.with_columns(other, pl.lit(s.HELD_OUT).alias("split"))])
        splits.write_parquet(partial / "metadata" / "subject_splits.parquet")


def without_time(histories: EncodedHistories, vocabulary: Vocabulary) -> EncodedHistories:
    """The histories without their time tokens; ages stay, and nothing is said of the last gap, which no token could say."""
    kept = ~np.isin(vocabulary.kind[histories.token_id], [int(kind) for kind in TIME_KINDS])
    offsets = np.concatenate([[0], np.cumsum(kept)])[histories.offsets].astype(np.int64)
    tokens = {name: getattr(histories, name)[kept] for name in TOKEN_FIELDS}
    return replace(histories, **tokens, offsets=offsets, censor_gap_days=np.full(len(histories), -1, dtype=np.int32))


def write_untimed(store: TokenStore, out: Path) -> None:
    """The store without its time tokens."""
    with atomic_path(out, folder=True) as folder:
        with StoreAppender(folder) as appender:
            for number in range(len(store.splits)):
                appender.append(without_time(store.histories.subset(store.split == number), store.vocabulary), number)
        store.vocabulary.save(folder)
        for name in (POPULATION_FILE, ANCESTORS_FILE):
            if (store.folder / name).exists():
                shutil.copyfile(store.folder / name, folder / name)
        print_of = fingerprint([store.fingerprint, "untimed"])
        counts = {"histories": appender.histories, "tokens": appender.tokens}
        write_meta(folder, **counts, splits=list(store.splits), vocabulary=store.vocabulary.fingerprint, fingerprint=print_of)


def _powered(folder: Path, settings: DataSettings) -> dict[str, dict[str, int]]:
    """task -> held-out rows and events; tasks with too few are left out."""
    found = {}
    for path in sorted((folder / "labels").glob("*.parquet")):
        held = pl.read_parquet(path).filter(pl.col("subject_id") > TEST_IDS)
        counts = {"rows": held["boolean_value"].count(), "events": int(held["boolean_value"].sum()), "censored": held["boolean_value"].null_count()}
        if counts["events"] >= settings.least_events:
            found[path.stem] = counts
    return found


def _write_truth(folder: Path, task: str, settings: DataSettings) -> None:
    out = folder / "truth" / f"{task}.parquet"
    if not out.exists():
        held = pl.read_parquet(folder / "labels" / f"{task}.parquet").filter(pl.col("subject_id") > TEST_IDS)
        at = held.select((pl.col("subject_id") - TEST_IDS).alias("subject_id"), "prediction_time")
        risk = true_risk(folder / "test_cdm", at, task, samples=settings.truth_samples, threads=1)
        with atomic_path(out) as partial:
            risk.with_columns((pl.col("subject_id") + TEST_IDS).alias("subject_id")).write_parquet(partial)


def probed(labels: pl.DataFrame, settings: DataSettings) -> pl.DataFrame:
    """Labels of held-out people, and of the first training people; a simulated person's number says nothing about them."""
    return labels.filter((pl.col("subject_id") > TEST_IDS) | (pl.col("subject_id") <= settings.probe_patients))


def moments_of(folder: Path, settings: DataSettings) -> pl.DataFrame:
    """KEY of every prediction time that is embedded."""
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    parts = [probed(pl.read_parquet(folder / "labels" / f"{task}.parquet"), settings).select(KEY) for task in tasks]
    return pl.concat(parts).with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))).unique().sort(KEY)


def _write_windows(folder: Path, name: str, settings: DataSettings) -> None:
    out = folder / "moments" / f"{name}.npz"
    if out.exists():
        return
    at = moments_of(folder, settings)
    timeline = Timeline.load(folder / name)
    parts: list[Any] = [None] * at.height
    elapsed = np.zeros(at.height)
    for moments in encode_moments(timeline, EventDataset(folder / "events"), at):
        histories = moments.histories if name != "untimed" else without_time(moments.histories, timeline.vocabulary)
        elapsed[moments.index] = moments.elapsed_minutes / MINUTES_PER_DAY
        for place, row in enumerate(moments.index.tolist()):
            parts[row] = last_window(histories, timeline.vocabulary, place, settings.context)
    lengths = [len(part.token_id) for part in parts]
    arrays = {
        "token_id": np.concatenate([part.token_id for part in parts]).astype(np.int32),
        "age_minutes": np.concatenate([part.age_minutes for part in parts]).astype(np.int32),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "elapsed_days": elapsed,
    }
    with atomic_path(out) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _facts(folder: Path, tasks: dict[str, dict[str, int]]) -> dict[str, Any]:
    stores = {name: TokenStore(folder / name) for name in STORES}
    tokens = {name: {split: int(store.lengths[store.indices(split)].sum()) for split in s.SPLITS} for name, store in stores.items()}
    return {"tasks": tasks, "tokens": tokens, "vocabulary": {name: len(store.vocabulary) for name, store in stores.items()}}

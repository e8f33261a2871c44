"""`tokenize`: an event data set to a token store, shard by shard.

One shard is in memory at a time (times the number of workers); its tokens are appended to the store's files and forgotten. With
several workers, shards are encoded in threads (Polars and NumPy leave the interpreter's lock for most of it) and written in order, so that the
store does not depend on how many there were. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.config import fingerprint
from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.store.format import ANCESTORS_FILE, OUTCOMES_FILE, POPULATION_FILE, VERSION, StoreAppender, write_meta
from cehrxgpt.timeline import Timeline
from cehrxgpt.timeline.back_off import ancestors_of
from cehrxgpt.timeline.encoded import TOKEN_FIELDS, EncodedHistories, concatenate
from cehrxgpt.timeline.kinds import PROMPT_LENGTH
from cehrxgpt.timeline.population import Population

TOKENIZE_FILE = "tokenize.json"
MAX_WORKERS = 2  # more shards in memory at once would gain little: each uses Polars' threads too
ALIASED = ("events_rolled_up", "events_backed_off")
LENGTH_QUANTILES = (0.1, 0.5, 0.9, 0.99)

Progress = Callable[[int, int, str], None]
"""`progress(shards done, shards, what)`."""


@dataclass(frozen=True)
class _Encoded:
    """One shard, encoded, and how often each code stands in it."""

    histories: EncodedHistories
    codes: dict[str, int]
    rolled_up: int  # events written as an ancestor that the settings list
    backed_off: int  # events written as an ancestor because their own code is not in the vocabulary


@dataclass
class _SplitCounts:
    """What `tokenize.json` says of a split."""

    patients: int = 0
    without_tokens: int = 0
    open_histories: int = 0
    tokens: int = 0
    events: int = 0
    unknown: int = 0
    rolled_up: int = 0
    backed_off: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lengths: list[np.ndarray[Any, np.dtype[np.int64]]] = field(default_factory=list)

    def add(self, shard: _Encoded) -> None:
        """Count one shard."""
        histories = shard.histories
        self.patients += len(histories)
        self.without_tokens += int((histories.lengths == 0).sum())
        self.open_histories += int((histories.censor_gap_days >= 0).sum())
        self.tokens += len(histories.token_id)
        self.events += int(histories.events.sum())
        self.unknown += int(histories.unknown.sum())
        self.rolled_up += shard.rolled_up
        self.backed_off += shard.backed_off
        self.codes.update(shard.codes)
        self.lengths.append(histories.lengths)

    def row(self, split: str, known: set[str]) -> dict[str, Any]:
        """As one line of `tokenize.json`."""
        lengths = np.concatenate(self.lengths) if self.lengths else np.zeros(0, dtype=np.int64)
        lengths = lengths[lengths > 0]
        quantiles = np.quantile(lengths, LENGTH_QUANTILES).tolist() if len(lengths) else [0.0] * len(LENGTH_QUANTILES)
        return {
            "split": split,
            "patients": self.patients,
            "patients_without_tokens": self.without_tokens,
            "open_histories": self.open_histories,
            "tokens": self.tokens,
            "events": self.events,
            "events_dropped": self.unknown,
            "dropped_share": self.unknown / max(self.events, 1),
            "events_rolled_up": self.rolled_up,
            "events_backed_off": self.backed_off,
            "backed_off_share": self.backed_off / max(self.events, 1),
            "codes_kept": sum(code in known for code in self.codes),
            "codes_dropped": sum(code not in known for code in self.codes),
            **{f"length_p{share * 100:g}": value for share, value in zip(LENGTH_QUANTILES, quantiles, strict=True)},
        }


def _encode(dataset: EventDataset, timeline: Timeline, path: Path) -> _Encoded:
    """Encode one shard. Static rows, births and observation periods are not events that a vocabulary could drop."""
    frame = dataset.read_shard(path)
    apart = [s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END]
    counted = frame.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in(apart)).group_by("code").len()
    counts = dict(zip(counted["code"].to_list(), counted["len"].to_list(), strict=True))
    aliased = {code: count for code, count in counts.items() if code in timeline.aliases.target}
    backed_off = sum(count for code, count in aliased.items() if code in timeline.aliases.backed_off)
    return _Encoded(timeline.encode_frame(frame), counts, sum(aliased.values()) - backed_off, backed_off)


def _prompts_and_ends(histories: EncodedHistories) -> EncodedHistories:
    """Each history cut down to its prompt and its last token: all that the length of observation is read from."""
    histories = histories.subset(histories.lengths > PROMPT_LENGTH)
    place = np.concatenate([histories.offsets[:-1, None] + np.arange(PROMPT_LENGTH), histories.offsets[1:, None] - 1], axis=1).ravel()
    tokens = {name: getattr(histories, name)[place] for name in TOKEN_FIELDS}
    return replace(histories, **tokens, offsets=np.arange(len(histories) + 1, dtype=np.int64) * (PROMPT_LENGTH + 1))


def _population(ends: list[EncodedHistories], timeline: Timeline) -> dict[str, Any] | None:
    """How long training patients are observed; None where there are too few of them to say so."""
    least = int(timeline.vocabulary.settings.get("min_subjects", 11))
    if sum(len(part) for part in ends) < max(least, 1):
        return None
    return Population.fit(concatenate(ends), timeline.vocabulary, min_subjects=least).to_dict()


def _encode_all(dataset: EventDataset, timeline: Timeline, workers: int) -> Iterator[tuple[str, _Encoded]]:
    """(split, encoded shard) in the order of the data set's shards; at most `workers` + 1 of them at once."""
    # Splits of the standard come first, and the shards of one split stand together.
    paths = [path for split in dataset.splits for path in dataset.shards(split)]
    if workers <= 1 or len(paths) == 1:
        for path in paths:
            yield path.parent.name, _encode(dataset, timeline, path)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[str, Future[_Encoded]]] = deque()
        for path in paths:
            waiting.append((path.parent.name, pool.submit(_encode, dataset, timeline, path)))
            if len(waiting) > workers:
                split, future = waiting.popleft()
                yield split, future.result()
        for split, future in waiting:
            yield split, future.result()


def write_store(
    dataset: EventDataset,
    timeline: Timeline,
    out: str | Path,
    *,
    outcomes: Mapping[str, Sequence[int]] | None = None,
    workers: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encode every subject of a data set and write the token store.

    Args:
        dataset: events; every split is written.
        timeline: vocabulary and grammar to encode with, a model's own where one is to be used.
        out: TIMELINE folder to be.
        outcomes: task -> the events that are its outcome (`timeline.lasting`), for objectives that forecast events.
        workers: shards encoded at once; 0 = as many as there are threads, two at most.

    Returns:
        what `tokenize.json` holds: tokens, patients, events, codes kept and dropped with their share of events, per split too.

    Raises:
        OutputExistsError: `out` is there and `force` is false.
        InputError: not one event of the data set is in the vocabulary.
    """
    out = Path(out)
    refuse_existing(out, force=force)
    timeline = timeline.knowing(dataset)
    splits = list(dataset.splits)
    counts = {split: _SplitCounts() for split in splits}
    ends: list[EncodedHistories] = []
    shards = len(dataset.shards())
    with atomic_path(out, force=force, folder=True) as folder:
        timeline.save(folder)
        with StoreAppender(folder) as appender:
            for done, (split, shard) in enumerate(_encode_all(dataset, timeline, workers or min(MAX_WORKERS, pl.thread_pool_size())), start=1):
                appender.append(shard.histories, splits.index(split))
                counts[split].add(shard)
                if split == s.TRAIN:
                    ends.append(_prompts_and_ends(shard.histories))
                if progress is not None:
                    progress(done, shards, f"{appender.tokens:,} tokens")
        if not appender.tokens:
            raise InputError(f"{dataset.root}: none of its events is in the vocabulary ({len(timeline.vocabulary):,} tokens); fit one on this data")
        population = _population(ends, timeline)
        facts = _facts(counts, timeline) | {"population": population is not None}
        _write_json(folder / TOKENIZE_FILE, facts)
        if population is not None:
            _write_json(folder / POPULATION_FILE, population)
        if above := ancestors_of({code for code in timeline.vocabulary.code if code is not None}, dataset.codes):
            _write_json(folder / ANCESTORS_FILE, above)
        if outcomes:
            _write_json(folder / OUTCOMES_FILE, {name: list(tokens) for name, tokens in outcomes.items()})
        write_meta(
            folder,
            histories=appender.histories,
            tokens=appender.tokens,
            splits=splits,
            vocabulary=timeline.vocabulary.fingerprint,
            fingerprint=store_fingerprint(dataset, timeline),
        )
    return facts


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def store_fingerprint(dataset: EventDataset, timeline: Timeline) -> str:
    """Sixteen hex digits of what decides the tokens: events, vocabulary, calendar, formats."""
    schema = [f"{column.name}:{column.type}" for column in s.EVENT_SCHEMA]
    facts: list[Any] = [dataset.fingerprint, timeline.vocabulary.fingerprint, timeline.calendar, schema, VERSION]
    if timeline.aliases.target:
        facts.append(sorted(timeline.aliases.target.items()))
    return fingerprint(facts)


def _facts(counts: dict[str, _SplitCounts], timeline: Timeline) -> dict[str, Any]:
    """Sums first, then a line per split."""
    known = {code for code in timeline.vocabulary.code if code is not None} | timeline.aliases.target.keys()
    rows = [count.row(split, known) for split, count in counts.items()]
    codes: Counter[str] = Counter()
    for count in counts.values():
        codes.update(count.codes)
    total = {name: sum(row[name] for row in rows) for name in ("patients", "patients_without_tokens", "tokens", "events", "events_dropped", *ALIASED)}
    return {
        **total,
        "dropped_share": total["events_dropped"] / max(total["events"], 1),
        "backed_off_share": total["events_backed_off"] / max(total["events"], 1),
        "codes_kept": sum(code in known for code in codes),
        "codes_dropped": sum(code not in known for code in codes),
        "vocabulary": len(timeline.vocabulary),
        "calendar": timeline.calendar,
        "splits": rows,
    }

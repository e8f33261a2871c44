"""The token store: histories of any number as memory-mapped arrays, read without the data stack.

    TIMELINE/
        meta.json             version, fingerprints, counts
        <array>.npy           the arrays of `EncodedHistories` and `split`, one file each
        vocabulary.parquet    what the ids mean
        ancestors.json        which codes stand above those of the vocabulary, where the data brought an ontology
        outcomes.json         the events that are the outcome of a task people ask for, by name, where the writer was told any
        population.json       how long training patients are observed, where enough of them are there to say so
        timeline.json         settings of the timeline, readable
        tokenize.json         tokens, patients, codes kept and dropped

Opening costs a few system calls whatever the size: pages are read when they are touched. One history is a slice of the flat arrays.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import InputError, MismatchError
from cehrxgpt.timeline.encoded import HISTORY_FIELDS, TOKEN_FIELDS, EncodedHistories
from cehrxgpt.timeline.vocabulary import Vocabulary

META_FILE = "meta.json"
POPULATION_FILE = "population.json"
ANCESTORS_FILE = "ancestors.json"
OUTCOMES_FILE = "outcomes.json"
VERSION = 1

DTYPES: dict[str, type[np.generic]] = {
    "token_id": np.int32,
    "age_minutes": np.int32,
    "value": np.float32,
    "event_index": np.int32,
    "offsets": np.int64,
    "subject_id": np.int64,
    "start_date": np.int64,
    "birth_date": np.int64,
    "gender_token": np.int32,
    "race_token": np.int32,
    "censor_gap_days": np.int32,
    "events": np.int64,
    "unknown": np.int64,
    "split": np.int8,
}
"""Every array of a store and its type."""


def _array_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _load_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["version"]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a token store (no {META_FILE}); make one with: cehrxgpt tokenize EVENTS --out TIMELINE") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged; tokenize again") from error
    if version != VERSION:
        raise MismatchError(f"{folder}: token store of format {version}, this release reads {VERSION}; tokenize again")
    return meta


def _load_array(folder: Path, name: str, length: int) -> npt.NDArray[Any]:
    path = _array_path(folder, name)
    try:
        # An empty file cannot be mapped.
        array = np.asarray(np.load(path, mmap_mode="r" if length else None, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: missing, truncated or damaged; tokenize again") from error
    if array.dtype != DTYPES[name] or array.shape != (length,):
        raise InputError(f"{path}: holds {array.dtype}{list(array.shape)}; expected {np.dtype(DTYPES[name])}[{length}]; tokenize again")
    return array


class TokenStore:
    """A store's arrays, mapped read-only; they have the names, types and meanings of `EncodedHistories`.

    Args:
        folder: made by `write_store`.

    Attributes:
        histories: all of them, as `EncodedHistories`; the arrays are memory maps.
        split: int8[S]; index into `splits`.
        splits: names of the splits.
        meta: `meta.json`.

    Raises:
        InputError: not a store, or a file of it is damaged.
        MismatchError: the store is of another format, or its vocabulary is not the one it was written with.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.meta = _load_meta(self.folder)
        histories, tokens = int(self.meta["histories"]), int(self.meta["tokens"])
        lengths = dict.fromkeys(TOKEN_FIELDS, tokens) | dict.fromkeys(HISTORY_FIELDS, histories) | {"offsets": histories + 1, "split": histories}
        arrays = {name: _load_array(self.folder, name, lengths[name]) for name in DTYPES}
        self.splits: tuple[str, ...] = tuple(self.meta["splits"])
        self.split: npt.NDArray[np.int8] = arrays.pop("split")
        self.histories = EncodedHistories(**arrays, prediction_time=None)
        self.token_id = self.histories.token_id
        self.age_minutes = self.histories.age_minutes
        self.value = self.histories.value
        self.event_index = self.histories.event_index
        self.offsets = self.histories.offsets
        self.subject_id = self.histories.subject_id
        self.start_date = self.histories.start_date
        self.birth_date = self.histories.birth_date
        self.gender_token = self.histories.gender_token
        self.race_token = self.histories.race_token
        self.censor_gap_days = self.histories.censor_gap_days
        self.events = self.histories.events
        self.unknown = self.histories.unknown

    def __repr__(self) -> str:
        return f"TokenStore({str(self.folder)!r}, {len(self):,} histories, {self.meta['tokens']:,} tokens)"

    def __len__(self) -> int:
        return len(self.split)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per history, int64[S]."""
        return self.histories.lengths

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary the tokens were written with."""
        vocabulary = Vocabulary.load(self.folder)
        if vocabulary.fingerprint != self.meta["vocabulary"]:
            raise MismatchError(
                f"{self.folder}: tokens were written with vocabulary {self.meta['vocabulary']}, the one beside them is "
                f"{vocabulary.fingerprint}; tokenize again"
            )
        return vocabulary

    @cached_property
    def population(self) -> dict[str, Any] | None:
        """`population.json`, or None where there is none."""
        path = self.folder / POPULATION_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @cached_property
    def ancestors(self) -> dict[str, list[str]]:
        """Code of the vocabulary -> codes that stand above it; empty without an ontology."""
        path = self.folder / ANCESTORS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @cached_property
    def outcomes(self) -> dict[str, list[int]]:
        """Task -> the events that are its outcome (`timeline.lasting`); empty where the writer was told none."""
        path = self.folder / OUTCOMES_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of what was encoded; changes with the events, the vocabulary or the format."""
        return str(self.meta["fingerprint"])

    def check_vocabulary(self, vocabulary: Vocabulary, *, whose: str) -> None:
        """Raise `MismatchError` unless the tokens mean what they mean in `vocabulary`, which belongs to `whose`."""
        if vocabulary.fingerprint != self.meta["vocabulary"]:
            raise MismatchError(
                f"{self.folder}: tokens of vocabulary {self.meta['vocabulary']} do not fit {whose} with vocabulary "
                f"{vocabulary.fingerprint}; tokenize with --vocabulary of that model"
            )

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Histories of a split that have tokens, ascending; empty where the split is unknown or empty."""
        if split not in self.splits:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero((self.split == self.splits.index(split)) & (self.lengths > 0)).astype(np.int64)


class ArrayAppender:
    """One growing one-dimensional .npy file: appended to on disk, the length written into its header at the end.

    NumPy pads headers so that the length can be rewritten in place.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike):
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._file: IO[bytes] = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        facts = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, facts)

    def append(self, values: npt.ArrayLike) -> None:
        """Add values at the end."""
        array = np.ascontiguousarray(values, dtype=self.dtype)
        self._file.write(array.data)
        self.length += len(array)

    def close(self) -> None:
        """Write the final length and flush to the device."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close without finishing."""
        self._file.close()


class StoreAppender:
    """All arrays of a store, written part by part into an existing folder; never more than one part in memory.

    Used as a context manager: leaving it well completes the arrays, leaving it by an error only closes them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._arrays = {name: ArrayAppender(_array_path(folder, name), dtype) for name, dtype in DTYPES.items()}
        self._arrays["offsets"].append([0])

    def __enter__(self) -> StoreAppender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for array in self._arrays.values():
            if kind is None:
                array.close()
            else:
                array.abandon()

    @property
    def histories(self) -> int:
        """Written so far."""
        return self._arrays["subject_id"].length

    @property
    def tokens(self) -> int:
        """Written so far."""
        return self._arrays["token_id"].length

    def append(self, part: EncodedHistories, split: int) -> None:
        """Add histories; `split` is their index into the store's list of splits."""
        before = self.tokens
        for name in (*TOKEN_FIELDS, *HISTORY_FIELDS):
            self._arrays[name].append(getattr(part, name))
        self._arrays["offsets"].append(part.offsets[1:] + before)
        self._arrays["split"].append(np.full(len(part), split, dtype=np.int8))


def write_meta(folder: Path, *, histories: int, tokens: int, splits: list[str], vocabulary: str, fingerprint: str) -> None:
    """Write `meta.json`: the last file of a store, without which it is none."""
    meta = {
        "version": VERSION,
        "histories": histories,
        "tokens": tokens,
        "splits": splits,
        "vocabulary": vocabulary,
        "fingerprint": fingerprint,
    }
    (folder / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

"""One vector per (patient, prediction time): what the model makes of the history known by then.

Events are cut at the prediction time (`events.cut_history`), encoded with the model's own vocabulary, cut to the last window that fits
its context (with a recomputed prompt), and read once. The vector is the last token's state, or the mean over the ends of visits.

The model's state says where the history *ends*, not how long ago that was. So two numbers are appended: with d the days from the last event
that the embedding knows to the prediction time, log(1 + d) and d / 365.25. A probe can then tell a patient seen yesterday from one
last seen three years ago.

A history of whose events the vocabulary lacks more than `max_unknown_share` is refused: its vector is all NaN and `note` says why.
Cost: one forward pass over the windows, in batches of like length. Windows that begin with each other (moments of one patient) are read once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from cehrxgpt.events import EventDataset
from cehrxgpt.model.reading import pooled_states
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.moments import NO_SUBJECT, Moments, check_moments, encode_moments
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.timeline import Timeline
from cehrxgpt.timeline.window import last_window

if TYPE_CHECKING:
    from cehrxgpt.model.hub import Loaded
    from cehrxgpt.model.transformer import Decoder

EXTRA = 2  # columns appended after the model's state: log(1 + days), years since the last event known
_PENDING = 2048  # windows gathered before they are sorted by length and read

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How embeddings are made.

    Attributes:
        pooling: `last` = state of the last token; `visit_ends` = mean over [VE] tokens (the last token's where there are none).
        max_tokens: of a window; None = the model's context.
        batch_tokens: places read at once, padding included.
        max_unknown_share: a history with a larger share of events outside the vocabulary is refused.
        elapsed_time: append the two numbers described above.
        dtype: precision to compute in; None = the model's own.
    """

    pooling: Literal["last", "visit_ends"] = "last"
    max_tokens: int | None = None
    batch_tokens: int = 16_384
    max_unknown_share: float = 0.5
    elapsed_time: bool = True
    dtype: Literal["float32", "float64", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.pooling not in ("last", "visit_ends"):
            raise ValueError(f"pooling is '{self.pooling}'; valid: last, visit_ends")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ValueError(f"dtype is '{self.dtype}'; valid: {', '.join(_DTYPES)}")
        if self.batch_tokens < 1 or (self.max_tokens is not None and self.max_tokens < 16):
            raise ValueError("batch_tokens must be at least 1 and max_tokens at least 16")
        if not 0 <= self.max_unknown_share <= 1:
            raise ValueError(f"max_unknown_share is {self.max_unknown_share}; it must lie between 0 and 1")


@dataclass(frozen=True)
class _Window:
    row: int
    token_id: npt.NDArray[np.int32]
    age_minutes: npt.NDArray[np.int32]


def embed(
    model: Loaded,
    events: EventDataset | pl.DataFrame,
    at: pl.DataFrame,
    config: EmbedConfig | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> pl.DataFrame:
    """Embed each row of `at`.

    Args:
        model: as `load_model` gives it.
        events: a data set or an EventTable.
        at: `subject_id`, `prediction_time` (labels will do); further columns are not looked at.
        config: see `EmbedConfig`.
        progress: called with (rows done, rows asked for, "rows").

    Returns:
        EMBEDDING_SCHEMA, one row per row of `at`, in its order. `embedding` has the model's width, + 2 with `elapsed_time`.

    Raises:
        SchemaError: `at` lacks a column or has nulls.
    """
    config = config or EmbedConfig()
    keys = check_moments(at, where="rows to embed")
    distinct = keys.unique(maintain_order=True)
    width = model.config.width + EXTRA * config.elapsed_time
    vectors = np.full((distinct.height, width), np.nan, dtype=np.float32)
    unknown = np.ones(distinct.height, dtype=np.float32)
    notes: list[str | None] = [NO_SUBJECT] * distinct.height
    decoder = model.decoder
    if config.dtype is not None and _DTYPES[config.dtype] != decoder.embedding.weight.dtype:
        decoder = copy.deepcopy(decoder).to(_DTYPES[config.dtype])
    visit_end = model.vocabulary.kind == Kind.VISIT_END
    pending: list[_Window] = []
    done = 0
    for moments in encode_moments(Timeline(model.vocabulary), events, distinct):
        pending += _windows(moments, model, config, vectors, unknown, notes)
        if len(pending) >= _PENDING:
            _read(decoder, visit_end, pending, config, vectors)
            pending = []
        done += len(moments.index)
        if progress is not None:
            progress(done, distinct.height, "rows")
    _read(decoder, visit_end, pending, config, vectors)
    found = distinct.with_columns(
        pl.Series("embedding", vectors, dtype=pl.Array(pl.Float32, width)).cast(pl.List(pl.Float32)),
        pl.Series("unknown_share", unknown, dtype=pl.Float32),
        pl.Series("note", notes, dtype=pl.String),
    )
    return keys.join(found, on=["subject_id", "prediction_time"], how="left", maintain_order="left")


def _windows(
    moments: Moments, model: Loaded, config: EmbedConfig, vectors: npt.NDArray[np.float32], unknown: npt.NDArray[np.float32], notes: list[str | None]
) -> Iterator[_Window]:
    """The windows of a chunk that can be read; fills in everything but the states."""
    unknown[moments.index] = moments.histories.unknown_share
    days = moments.elapsed_minutes / MINUTES_PER_DAY
    most = min(config.max_tokens or model.config.context, model.config.context)
    for place, (row, why) in enumerate(zip(moments.index.tolist(), moments.refusal(config.max_unknown_share), strict=True)):
        notes[row] = why
        if why is None:
            if config.elapsed_time:
                vectors[row, -EXTRA:] = np.log1p(days[place]), days[place] / 365.25
            window = last_window(moments.histories, model.vocabulary, place, most)
            yield _Window(row, window.token_id, window.age_minutes)


def _read(decoder: Decoder, visit_end: npt.NDArray[np.bool_], windows: list[_Window], config: EmbedConfig, vectors: npt.NDArray[np.float32]) -> None:
    """Read the windows and write their vectors."""
    places = visit_end.__getitem__ if config.pooling == "visit_ends" else None
    sequences = [(window.token_id, window.age_minutes) for window in windows]
    pooled = pooled_states(decoder, sequences, batch_tokens=config.batch_tokens, places=places).float().numpy()
    vectors[np.array([window.row for window in windows], dtype=np.int64), : pooled.shape[1]] = pooled

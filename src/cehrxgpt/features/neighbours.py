"""Patients like this one: the nearest by embedding, exactly, and the codes that they share.

Every subject is embedded once, from all that is known of them (the end of their record), without the time since. Vectors are standardised
over the subjects, column by column, and compared by their cosine, so that no direction counts more for being wide. The search is exhaustive:
n subjects of width d cost n d multiplications per question, and no index can miss anybody.

What two people share is listed rarest first: that both had their blood pressure taken says little, that both had a lung transplant much.
How many have a code is told of no group of one to ten people, be it those who have it or those who have not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.features.embed import EmbedConfig, embed

if TYPE_CHECKING:
    from cehrxgpt.model.hub import Loaded

_BLOCK = 1024  # questions answered at once
_FRAME = (s.VISIT_PREFIX, s.DISCHARGE_PREFIX, s.OBSERVATION_START, s.OBSERVATION_END, s.BIRTH)  # what every record has
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """Who is like one subject.

    Attributes:
        subjects: `subject_id` (the one asked about), `neighbour_id`, `rank` (1 = nearest), `similarity` (cosine, -1..1), `shared_codes` (how many).
        shared: `neighbour_id`, `code`, `name`?, `prevalence` (share of all subjects who have it; null where that, or the rest, is
            one to ten people); rarest first for each neighbour.
        left_out: subjects who could not be embedded.
    """

    subjects: pl.DataFrame
    shared: pl.DataFrame
    left_out: int


def standardise(vectors: Floats) -> Floats:
    """Columns of mean 0 and deviation 1 (constant ones stay 0), then rows of length 1; float32[n, d]."""
    wide = vectors.astype(np.float64)
    deviation = wide.std(axis=0)
    wide = (wide - wide.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.where(length > 0, length, 1.0)).astype(np.float32)


def nearest(units: Floats, questions: npt.NDArray[np.int64], count: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """The `count` rows most like each question, itself apart; ties go to the earlier row.

    Args:
        units: float32[n, d], rows of length 1.
        questions: int64[q], rows.
        count: at most n - 1.

    Returns:
        int64[q, count] rows, nearest first, and their cosines, float32[q, count].
    """
    count = min(count, len(units) - 1)
    rows, cosines = [], []
    for start in range(0, len(questions), _BLOCK):
        asked = questions[start : start + _BLOCK]
        cosine = units[asked] @ units.T
        cosine[np.arange(len(asked)), asked] = -np.inf
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
        rows.append(order)
        cosines.append(np.take_along_axis(cosine, order, axis=1))
    if not rows:
        return np.zeros((0, count), dtype=np.int64), np.zeros((0, count), dtype=np.float32)
    return np.concatenate(rows), np.concatenate(cosines)


def embed_subjects(
    model: Loaded, events: EventDataset, config: EmbedConfig | None = None, *, progress: Callable[[int, int, str], None] | None = None
) -> pl.DataFrame:
    """EMBEDDING_SCHEMA, one row per subject at the end of what is known of them; sorted by subject."""
    ends = [frame.group_by("subject_id").agg(pl.col("available_time").max().alias("prediction_time")) for _, frame in events.iter_shards()]
    at = pl.concat(ends).drop_nulls().sort("subject_id")
    return embed(model, events, at, config or EmbedConfig(pooling="visit_ends", elapsed_time=False), progress=progress)


def discover(
    model: Loaded,
    events: EventDataset,
    like: int,
    *,
    count: int = 10,
    config: EmbedConfig | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Neighbours:
    """The subjects nearest to one.

    Args:
        model: as `load_model` gives it.
        events: whose subjects are compared.
        like: the subject asked about.
        count: of neighbours; fewer where there are fewer subjects.
        config: default: mean over the ends of visits, without the time since.
        progress: see `embed`.

    Raises:
        InputError: the subject is not in the data, or cannot be embedded (the message says why).
    """
    if not events.subject_splits["subject_id"].is_in([like]).any():  # before everyone is embedded
        raise InputError(f"{events.root}: no subject {like}; cehrxgpt inspect {events.root} shows what is there")
    vectors = embed_subjects(model, events, config, progress=progress)
    mine = vectors.filter(pl.col("subject_id") == like)
    if mine.is_empty():
        raise InputError(f"{events.root}: no subject {like} with a dated event; cehrxgpt inspect {events.root} shows what is there")
    if (why := mine["note"].item()) is not None:
        raise InputError(f"subject {like} cannot be embedded: {why}")
    known = vectors.filter(pl.col("note").is_null())
    units = standardise(np.stack(known["embedding"].to_list()).astype(np.float32))
    place = int(known["subject_id"].index_of(like) or 0)
    rows, cosines = nearest(units, np.array([place]), count)
    found = pl.DataFrame(
        {
            "subject_id": np.full(rows.shape[1], like, dtype=np.int64),
            "neighbour_id": known["subject_id"].to_numpy()[rows[0]],
            "rank": np.arange(1, rows.shape[1] + 1, dtype=np.int32),
            "similarity": cosines[0],
        }
    )
    shared = _shared(events, like, found["neighbour_id"])
    counts = shared.group_by("neighbour_id").agg(pl.len().cast(pl.Int32).alias("shared_codes"))
    subjects = found.join(counts, on="neighbour_id", how="left", maintain_order="left").with_columns(pl.col("shared_codes").fill_null(0))
    return Neighbours(subjects, shared, vectors.height - known.height)


def _shared(events: EventDataset, like: int, neighbours: pl.Series) -> pl.DataFrame:
    """See `Neighbours.shared`."""
    has = pl.concat([_codes(frame) for _, frame in events.iter_shards()])
    subjects = max(len(events.subject_splits), 1)
    prevalence = (
        has.group_by("code")
        .agg(pl.len().cast(pl.Int64).alias("_n"))
        .with_columns(
            pl.when(~_small(pl.col("_n")) & ~_small(subjects - pl.col("_n"))).then(pl.col("_n") / subjects).alias("prevalence"),
            pl.col("_n").clip(s.SMALL_CELL),  # nor does their order tell small counts apart
        )
    )
    mine = has.filter(pl.col("subject_id") == like).select("code")
    order = pl.DataFrame({"subject_id": neighbours, "_rank": np.arange(len(neighbours))})
    names = events.codes.select("code", pl.col("description").alias("name")).unique("code", keep="first", maintain_order=True)
    theirs = has.join(order, on="subject_id").join(mine, on="code", how="semi").join(prevalence, on="code").join(names, on="code", how="left")
    return theirs.sort("_rank", "_n", "code").select(pl.col("subject_id").alias("neighbour_id"), "code", "name", "prevalence")


def _small(count: pl.Expr) -> pl.Expr:
    return count.is_between(1, s.SMALL_CELL - 1)


def _codes(frame: pl.DataFrame) -> pl.DataFrame:
    """Distinct (subject, code) of what happened; what every record has is left out."""
    happened = frame.filter(pl.col("time").is_not_null() & ~pl.any_horizontal(*(pl.col("code").str.starts_with(prefix) for prefix in _FRAME)))
    return happened.select("subject_id", "code").unique()

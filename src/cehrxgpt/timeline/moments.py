"""What the record knew at given moments, as tokens: the one way in for embeddings and forecasts.

Histories are cut with `events.cut_history` and encoded with the model's own vocabulary (encoding belongs to the model). Shards are read one
by one and moments come in chunks, so memory is bounded by a shard and a chunk of cut histories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.errors import SchemaError
from cehrxgpt.events import EventDataset, cut_history
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.time import instant_from_datetime64
from cehrxgpt.timeline.timeline import Timeline

NO_SUBJECT = "the subject is not in the events"
NO_HISTORY = "nothing is known before the prediction time"
NO_TOKENS = "the model's vocabulary has none of the history's events"


@dataclass(frozen=True)
class Moments:
    """A chunk of n prediction times whose subjects are in the events.

    Attributes:
        index: int64[n], rows of `at`.
        histories: one per moment, in that order; without tokens where there is nothing to write.
        events: the cut histories (EventTable + `prediction_time`).
    """

    index: npt.NDArray[np.int64]
    histories: EncodedHistories
    events: pl.DataFrame

    @property
    def instant(self) -> npt.NDArray[np.int64]:
        """Prediction times as minutes since 1970-01-01, int64[n]."""
        assert self.histories.prediction_time is not None
        return instant_from_datetime64(self.histories.prediction_time)

    @property
    def elapsed_minutes(self) -> npt.NDArray[np.int64]:
        """From the decoded clock of the last token to the prediction time, int64[n]; never negative, 0 without tokens."""
        histories = self.histories
        last = np.maximum(histories.offsets[1:] - 1, 0)
        clock = histories.clock[last] if len(histories.token_id) else np.zeros(len(histories), dtype=np.int64)
        return np.where(histories.lengths > 0, np.maximum(self.instant - clock, 0), 0)

    def refusal(self, max_unknown_share: float) -> list[str | None]:
        """Why each history cannot be used, or None."""
        histories = self.histories
        return [
            NO_HISTORY
            if events == 0
            else f"most of the history's events are not in the model's vocabulary ({share:.0%})"
            if share > max_unknown_share
            else NO_TOKENS
            if length == 0
            else None
            for events, share, length in zip(histories.events, histories.unknown_share, histories.lengths, strict=True)
        ]


def check_moments(at: pl.DataFrame, *, where: str) -> pl.DataFrame:
    """`subject_id`, `prediction_time` of `at`, cast.

    Raises:
        SchemaError: a column is missing, of the wrong type, or has nulls; an id is no whole number, or a time has a zone.
    """
    if not isinstance(at, pl.DataFrame):
        raise SchemaError(f"{where}: a {type(at).__name__}; give a Polars frame (labels of `label`, pl.read_parquet, pl.from_pandas)")
    for name in ("subject_id", "prediction_time"):
        if name not in at.columns:
            raise SchemaError(f"{where}: column '{name}' is missing; expected subject_id, prediction_time")
    number, time = at["subject_id"], at.schema["prediction_time"]
    broken = int((number % 1).ne(0).sum()) if number.dtype.is_float() else 0
    if broken:
        raise SchemaError(f"{where}: column 'subject_id': {broken} of {at.height} values are no whole number")
    if isinstance(time, pl.Datetime) and time.time_zone is not None:
        raise SchemaError(
            f"{where}: column 'prediction_time' has the time zone {time.time_zone}; expected local times without a zone, as events have"
        )
    try:
        keys = at.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"{where}: subject_id must be an integer and prediction_time a timestamp") from error
    if sum(keys.null_count().row(0)):
        raise SchemaError(f"{where}: subject_id and prediction_time must not be null")
    return keys


def encode_moments(timeline: Timeline, events: EventDataset | pl.DataFrame, at: pl.DataFrame, *, rows: int = 256) -> Iterator[Moments]:
    """Encode the history of every row of `at`, in chunks of at most `rows`.

    Args:
        timeline: of the model.
        events: a data set, or an EventTable.
        at: `subject_id`, `prediction_time`; rows are distinct.
        rows: of a chunk.

    Yields:
        chunks; a row whose subject is not in the events is in none of them. The order is that of the shards.
    """
    keys = check_moments(at, where="prediction times").with_row_index("_index")
    if keys.select("subject_id", "prediction_time").is_duplicated().any():
        raise SchemaError("prediction times: a subject and time stand twice; make them distinct")
    timeline = timeline.on(events)
    frames = events.iter_shards() if isinstance(events, EventDataset) else iter([("", events)])
    for _, frame in frames:
        mine = keys.join(frame.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left").sort(
            "subject_id", "prediction_time"
        )
        for start in range(0, mine.height, rows):
            yield _encode(timeline, frame, mine.slice(start, rows))


def _encode(timeline: Timeline, frame: pl.DataFrame, chunk: pl.DataFrame) -> Moments:
    mine = frame.join(chunk.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
    cut = cut_history(mine, chunk)
    histories = timeline.encode_frame(cut, key=("subject_id", "prediction_time"))
    found = pl.DataFrame({"subject_id": histories.subject_id, "prediction_time": histories.prediction_time})
    place = chunk.join(
        found.with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))).with_row_index("_place"),
        on=["subject_id", "prediction_time"],
        how="left",
        maintain_order="left",
    )
    # A subject of whom nothing at all was known yet (no static row) has no history: it gets an empty one.
    known = place.filter(pl.col("_place").is_not_null())
    moments = Moments(known["_index"].to_numpy().astype(np.int64), histories.subset(known["_place"].to_numpy()), cut)
    missing = place.filter(pl.col("_place").is_null())
    return moments if missing.is_empty() else _with_empty(moments, missing)


def _with_empty(moments: Moments, missing: pl.DataFrame) -> Moments:
    """Append histories without events and without tokens."""
    histories, count = moments.histories, missing.height
    zeros = np.zeros(count, dtype=np.int64)
    assert histories.prediction_time is not None
    padded = EncodedHistories(
        token_id=histories.token_id,
        age_minutes=histories.age_minutes,
        value=histories.value,
        event_index=histories.event_index,
        offsets=np.concatenate([histories.offsets, np.full(count, histories.offsets[-1])]),
        subject_id=np.concatenate([histories.subject_id, missing["subject_id"].to_numpy()]),
        prediction_time=np.concatenate([histories.prediction_time, missing["prediction_time"].to_numpy().astype("datetime64[us]")]),
        start_date=np.concatenate([histories.start_date, zeros]),
        birth_date=np.concatenate([histories.birth_date, zeros]),
        gender_token=np.concatenate([histories.gender_token, zeros.astype(np.int32)]),
        race_token=np.concatenate([histories.race_token, zeros.astype(np.int32)]),
        censor_gap_days=np.concatenate([histories.censor_gap_days, np.full(count, -1, np.int32)]),
        events=np.concatenate([histories.events, zeros]),
        unknown=np.concatenate([histories.unknown, zeros]),
    )
    return Moments(np.concatenate([moments.index, missing["_index"].to_numpy().astype(np.int64)]), padded, moments.events)

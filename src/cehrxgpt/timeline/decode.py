"""Tokens to events: whole sentences, or futures that go on from a known state; vectorised over rows and tokens.

Robust where sentences are: a visit without [VE] keeps a null end, a trailing gap or step writes nothing. Times are the tokens' clock:
hours inside span visits (`time_precision` hour, available at once), days elsewhere (`time_precision` day, available at the day's end).
A death carries the last instant of its day, as every death known by its date only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import visits as visit_classes
from cehrxgpt.errors import SchemaError
from cehrxgpt.events import EVENT_DTYPES, sort_events
from cehrxgpt.timeline.clock import run_clock
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.grammar import IN_VISIT_PHASES, Phase, settled
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.lengths import days_drawn
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.vocabulary import Vocabulary

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MICROSECONDS_PER_DAY = 86_400_000_000
FUTURE_VISIT_IDS = 1 << 62  # visits begun in a simulated future are numbered from here, far from real ids
_HAPPENING = (Kind.CODE, Kind.VALUE, Kind.LAB, Kind.CATEGORY, Kind.DISCHARGE, Kind.DEATH, Kind.ICU_START)


@dataclass(frozen=True)
class _Read:
    """What the tokens say; one entry per event row, in order of the tokens."""

    row: Int  # [E] sentence
    token: Int  # [E] id
    minute: Int  # [E] on the clock
    end: Int  # [E] of a visit, or a stay in intensive care, that has ended; -1 elsewhere
    bin: Int  # [E] number of the bin within a lab's own; -1 elsewhere, and where a sentence ends between lab and bin
    length: Int  # [E] lower edge of a drug's length in days; -1 elsewhere
    visit: Int  # [E] number of the visit begun in the tokens, -1 = none
    resumed: Bool  # [E] inside the visit in which the sentence began
    stepped: Bool  # [E] inside a visit that has day or hour tokens


def _read_tokens(vocabulary: Vocabulary, token_id: npt.NDArray[np.integer], offsets: Int, clock: Int, phase: npt.NDArray[np.integer]) -> _Read:
    """Follow the clock and the visits."""
    kind, amount = vocabulary.kind[token_id], vocabulary.amount[token_id]
    size, rows = len(kind), len(offsets) - 1
    row = np.repeat(np.arange(rows), np.diff(offsets))
    at = run_clock(kind, amount, offsets, clock, phase)
    before = np.concatenate([[-1], kind[:-1]]).astype(np.int64) if size else np.zeros(0, np.int64)
    begins = np.zeros(size, np.bool_)
    begins[offsets[:-1][np.diff(offsets) > 0]] = True
    after = np.concatenate([kind[1:], [-1]]).astype(np.int64) if size else before
    after[:-1][begins[1:]] = -1
    before[begins] = -1
    before[begins & (phase[row] == Phase.VISIT_TYPE)] = Kind.VISIT_START  # the prompt ended between [VS] and its type

    opens = (kind == Kind.VISIT_TYPE) & (before == Kind.VISIT_START)
    shuts = kind == Kind.VISIT_END
    number = np.cumsum(opens) - 1
    # The last of (row begins, visit opens, visit shuts) at or before each token says where it stands.
    mark = np.where(begins | opens | shuts, np.arange(size), -1)
    mark = np.maximum.accumulate(mark) if size else mark
    in_own = opens[mark] if size else opens
    in_resumed = (begins[mark] & ~opens[mark] & ~shuts[mark] & np.isin(settled(phase)[row], [int(p) for p in IN_VISIT_PHASES])) if size else opens
    visit = np.where(in_own, number, -1)

    visits = int(opens.sum())
    opened = np.flatnonzero(opens)
    next_is_hour = np.zeros(size, np.bool_)
    next_is_hour[:-1] = (kind[1:] == Kind.IN_VISIT_HOURS) & ~begins[1:]
    start = np.where(next_is_hour[opened], at[np.minimum(opened + 1, max(size - 1, 0))], at[opened])
    end = np.full(visits, -1, np.int64)
    closing = np.flatnonzero(shuts & ~begins)
    closing = closing[in_own[closing - 1]]  # [VE] right after the visit's tokens
    end[number[closing]] = at[closing]
    steps = np.zeros(visits + 1, np.bool_)
    steps[visit[(kind == Kind.IN_VISIT_DAYS) | (kind == Kind.IN_VISIT_HOURS)]] = True
    steps[-1] = False

    # [ICU] between a resumed visit's type and its day of stay is no event: it began before the window.
    happens = np.isin(kind, [int(k) for k in _HAPPENING]) & ~((kind == Kind.ICU_START) & (before == Kind.VISIT_TYPE) & (after == Kind.STAY_DAY))
    event = np.flatnonzero(happens | opens)
    is_visit, of_visit = opens[event], visit[event]
    minute = at[event].copy()
    minute[is_visit] = start[of_visit[is_visit]]
    ends = np.full(len(event), -1, np.int64)
    ends[is_visit] = end[of_visit[is_visit]]
    in_icu = np.flatnonzero(kind[event] == Kind.ICU_START)
    ends[in_icu] = _icu_ends(kind, row, at, event[in_icu])
    bins, said = _follower(Kind.BIN, after, amount, event)
    length, _ = _follower(Kind.DRUG_LENGTH, after, amount, event + said)
    return _Read(row[event], token_id[event].astype(np.int64), minute, ends, bins, length, of_visit, in_resumed[event], steps[of_visit])


def _follower(kind: Kind, after: Int, amount: npt.NDArray[np.int32], place: Int) -> tuple[Int, Bool]:
    """Amount of the token behind each place where it is of this kind, else -1; and whether it is."""
    found = after[place] == kind
    amounts = np.full(len(place), -1, np.int64)
    amounts[found] = amount[place[found] + 1]
    return amounts, found


def _icu_ends(kind: npt.NDArray[np.int8], row: Int, at: Int, starts: Int) -> Int:
    """Clock of the [/ICU] that closes each [ICU] (at place `starts`); -1 where the sentence, or its visit, ends first."""
    closing = np.flatnonzero(np.isin(kind, (Kind.ICU_START, Kind.ICU_END, Kind.VISIT_END)))
    if not len(starts):
        return starts
    following = np.minimum(np.searchsorted(closing, starts, side="right"), len(closing) - 1)
    place = closing[following]
    closed = (place > starts) & (kind[place] == Kind.ICU_END) & (row[place] == row[starts])
    return np.where(closed, at[place], -1)


def _points(vocabulary: Vocabulary, token: int, place: int) -> npt.NDArray[np.float32] | None:
    """Quantiles inside a value token's bin, or inside bin `place` of a lab."""
    of_lab = vocabulary.bin_quantiles[token]
    return vocabulary.quantiles[token] if of_lab is None else of_lab[min(place, len(of_lab) - 1)]


def _values(vocabulary: Vocabulary, token: Int, bins: Int, rng: np.random.Generator | None) -> npt.NDArray[np.float32]:
    """The number of each event: its bin's median, or a draw from inside the bin; NaN for tokens without a bin."""
    value = np.full(len(token), np.nan, np.float32)
    binned = np.flatnonzero((vocabulary.kind[token] == Kind.VALUE) | (bins >= 0))
    _, first, which = np.unique(token[binned] * 1024 + bins[binned], return_index=True, return_inverse=True)
    if not len(first):
        return value
    points = [_points(vocabulary, index, place) for index, place in zip(token[binned[first]].tolist(), bins[binned[first]].tolist(), strict=True)]
    counts = np.array([0 if point is None else len(point) for point in points])
    table = np.full((len(points), max(int(counts.max()), 1)), np.nan, np.float32)
    for place, point in enumerate(points):
        if point is not None:
            table[place, : len(point)] = point
    middle = (counts[which] - 1) / 2 if rng is None else rng.random(len(which)) * (counts[which] - 1)
    low = np.floor(middle).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(counts[which] - 1, 0))
    share = (middle - low).astype(np.float32)
    below, above = table[which, low], table[which, high]
    value[binned] = np.where(share > 0, np.clip(below * (1 - share) + above * share, below, above), below)  # rounding must not leave the bin
    return value


def _precise(vocabulary: Vocabulary, read: _Read, resumed: Bool) -> Bool:
    """Whether each event lies inside a span visit, where times are hours; by the visit's class, or because it has steps, or `resumed`: in the
    visit in which the sentence began, where that is one."""
    is_visit = vocabulary.kind[read.token] == Kind.VISIT_TYPE
    rows = np.flatnonzero(is_visit)
    code = pl.Series("code", [vocabulary.code[index] for index in read.token[rows]], dtype=pl.String)
    minutes = pl.Series("minutes", np.where(read.end[rows] >= 0, read.end[rows] - read.minute[rows], -1))
    frame = pl.DataFrame({"code": code, "minutes": minutes.replace(-1, None)})
    span = frame.select(visit_classes.is_span(visit_classes.classify(pl.col("code"), pl.col("minutes")))).to_series().to_numpy()
    of_visit = np.zeros(int(read.visit.max(initial=-1)) + 2, np.bool_)
    of_visit[read.visit[rows]] = span
    of_visit[-1] = False
    return (of_visit[read.visit] | read.stepped | resumed) & (vocabulary.kind[read.token] != Kind.DEATH)


def _to_frame(
    vocabulary: Vocabulary, read: _Read, start_date: Int, visit_id: Int, rng: np.random.Generator | None, hourly: Bool | None = None
) -> pl.DataFrame:
    """EventTable rows without subjects, in the order of the tokens; `hourly`, of each sentence: has the visit in which it began hours?"""
    table = pl.DataFrame({name: getattr(vocabulary, name) for name in _TEXT}, schema_overrides=_TEXT)
    rows = table[read.token] if len(read.token) else table.clear()
    midnight = start_date[read.row] * MINUTES_PER_DAY
    time = (midnight + read.minute) * 60_000_000
    end_of_day = time // MICROSECONDS_PER_DAY * MICROSECONDS_PER_DAY + MICROSECONDS_PER_DAY - 1
    time = np.where(vocabulary.kind[read.token] == Kind.DEATH, end_of_day, time)
    precise = _precise(vocabulary, read, read.resumed if hourly is None else read.resumed & hourly[read.row])
    value = pl.Series("numeric_value", _values(vocabulary, read.token, read.bin, rng), nan_to_null=True)
    end = (midnight + read.end) * 60_000_000
    taken = np.flatnonzero(read.length > 0)
    days = days_drawn(read.length[taken], rng)
    end[taken] = (time[taken] // MICROSECONDS_PER_DAY + days) * MICROSECONDS_PER_DAY - 1  # to the last instant of the last day
    open_ended = read.end < 0
    open_ended[taken] = False
    return rows.with_columns(
        pl.Series("time", time).cast(pl.Datetime("us")),
        value,
        pl.Series("end_time", end).set(pl.Series(open_ended), None).cast(pl.Datetime("us")),
        pl.Series("available_time", np.where(precise, time, end_of_day)).cast(pl.Datetime("us")),
        pl.Series("time_precision", np.where(precise, "hour", "day"), dtype=pl.String),
        pl.Series("visit_id", visit_id).set(pl.Series(visit_id < 0), None),
    )


_TEXT = {"code": pl.String, "unit": pl.String, "text_value": pl.String, "operator": pl.String, "origin": pl.String}


def decode(
    vocabulary: Vocabulary,
    token_id: npt.NDArray[np.integer],
    offsets: Int,
    *,
    start_date: Int,
    subject_id: Int,
    rng: np.random.Generator | None = None,
) -> pl.DataFrame:
    """Whole sentences (or windows) back to events.

    Args:
        token_id: int[N] of all sentences, one after the other, each from its prompt.
        offsets: int64[R + 1].
        start_date: int64[R]; days since 1970-01-01 from which each sentence's clock counts.
        subject_id: int64[R]; where a subject has several sentences their events are mixed.
        rng: draws numbers inside their bins; without it they are the bins' medians.

    Returns:
        EventTable rows of visits, intensive care, clinical events, discharges and deaths; visits are numbered from 1 through the whole table. The
        prompt's facts are read by `people.read_prompts`.
    """
    rows = len(offsets) - 1
    _check(offsets, len(token_id), start_date=start_date, subject_id=subject_id)
    read = _read_tokens(vocabulary, token_id, offsets, np.zeros(rows, np.int64), np.full(rows, Phase.PROMPT_BOS))
    frame = _to_frame(vocabulary, read, start_date, np.where(read.visit >= 0, read.visit + 1, -1), rng)
    return sort_events(frame.with_columns(pl.Series("subject_id", subject_id[read.row], dtype=pl.Int64)).select(*EVENT_DTYPES))


def decode_histories(vocabulary: Vocabulary, histories: EncodedHistories, *, rng: np.random.Generator | None = None) -> pl.DataFrame:
    """`decode` of encoded histories; with `prediction_time` added where they were cut."""
    if histories.prediction_time is None:
        return decode(vocabulary, histories.token_id, histories.offsets, start_date=histories.start_date, subject_id=histories.subject_id, rng=rng)
    numbers = np.arange(len(histories), dtype=np.int64)
    frame = decode(vocabulary, histories.token_id, histories.offsets, start_date=histories.start_date, subject_id=numbers, rng=rng)
    keys = pl.DataFrame({"_number": numbers, "_subject": histories.subject_id, "prediction_time": histories.prediction_time})
    joined = frame.join(keys, left_on="subject_id", right_on="_number", maintain_order="left")
    return joined.with_columns(pl.col("_subject").alias("subject_id")).drop("_subject")


def decode_futures(
    vocabulary: Vocabulary,
    token_id: npt.NDArray[np.integer],
    offsets: Int,
    *,
    phase: npt.NDArray[np.integer],
    clock_minutes: Int,
    start_date: Int,
    subject_id: Int,
    prediction_time: npt.NDArray[np.datetime64],
    sample_id: npt.NDArray[np.integer],
    open_visit_id: Int | None = None,
    hourly: Bool | None = None,
    rng: np.random.Generator | None = None,
) -> pl.DataFrame:
    """Generated continuations to events.

    Args:
        token_id: int[N]; the generated tokens only, one future after the other.
        offsets: int64[R + 1].
        phase, clock_minutes: [R]; `Grammar` state at the end of each prompt (clock from the start midnight of the prompt's window).
        start_date: int64[R]; days since 1970-01-01 of that midnight.
        subject_id, prediction_time, sample_id: [R]; the keys.
        open_visit_id: int64[R]; the visit in which each prompt ended, -1 where none (or the id is not known): its later events are
            linked to it. It has no row of its own here, as it began before the prediction.
        hourly: bool[R]; that visit has hours; None: each has. In one that goes by the day events have no hour, as outside of visits.
        rng: draws numbers inside their bins; without it they are the bins' medians.

    Returns:
        Trajectory rows. No time is before the prediction time: what the grid puts there (the same date or hour) happened just after
        it, one microsecond later. Visits begun in the future are numbered from 2**62.
    """
    _check(offsets, len(token_id), phase=phase, clock_minutes=clock_minutes, start_date=start_date, subject_id=subject_id, sample_id=sample_id)
    read = _read_tokens(vocabulary, token_id, offsets, clock_minutes, phase)
    visit_id = np.where(read.visit >= 0, FUTURE_VISIT_IDS + read.visit, -1)
    if open_visit_id is not None:
        visit_id = np.where(read.resumed, open_visit_id[read.row], visit_id)
        known = np.where(read.resumed, open_visit_id[read.row] != -1, read.visit >= 0)
    else:
        known = read.visit >= 0
    frame = _to_frame(vocabulary, read, start_date, np.zeros(len(read.row), np.int64), rng, hourly).with_columns(
        pl.Series("visit_id", visit_id).set(pl.Series(~known), None),
        pl.Series("subject_id", subject_id[read.row], dtype=pl.Int64),
        pl.Series("prediction_time", prediction_time.astype("datetime64[us]")[read.row]).cast(pl.Datetime("us")),
        pl.Series("sample_id", sample_id[read.row]).cast(pl.Int32),
    )
    earliest = pl.col("prediction_time") + pl.duration(microseconds=1)
    frame = frame.with_columns(
        pl.max_horizontal("time", earliest).alias("time"),
        pl.when(pl.col("end_time").is_not_null()).then(pl.max_horizontal("end_time", earliest)).alias("end_time"),
        pl.max_horizontal("available_time", earliest).alias("available_time"),
    )
    return sort_events(frame.select(*EVENT_DTYPES, "prediction_time", "sample_id"), "subject_id", "prediction_time", "sample_id")


def _check(offsets: Int, tokens: int, **columns: npt.NDArray[np.generic]) -> None:
    rows = len(offsets) - 1
    if rows < 0 or offsets[0] != 0 or offsets[-1] != tokens:
        raise SchemaError(f"decode: offsets do not span {tokens} tokens; expected 0 first and {tokens} last")
    for name, column in columns.items():
        if len(column) != rows:
            raise SchemaError(f"decode: {name} has {len(column)} entries; expected one per sentence, {rows}")

"""Futures longer than the model's context: when the context is full, the future goes on from its own last window.

A future that ran out of context is made a history again (prompt and everything written so far), cut to its last window of half the context
with a recomputed prompt, and continued as a prompt of its own; as often as its budget and horizon ask for. So what ends a future is
its horizon, and not the size of the model. Continued futures draw from keys of their own (seed, subject, prediction time, sample,
round), and stay independent of their batch. One that is given up (`rows`) is drawn anew from its window. Cost: one more reading of half a
context for every half context written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import torch

from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import sampler
from cehrxgpt.rollout.dates import Dates, last_minute
from cehrxgpt.rollout.engine import rollout
from cehrxgpt.rollout.prompt import Prompt
from cehrxgpt.rollout.result import Rollouts
from cehrxgpt.timeline.clock import run_clock
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.grammar import Phase
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.time import MINUTES_PER_DAY, age_minutes_at_start
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.timeline.window import last_window, shortest

Int = npt.NDArray[np.int64]

_PLACE_OF_VISIT = PROMPT_LENGTH  # a window that starts inside a visit: prompt, [VR], type, perhaps [ICU], day of stay


def rollout_through_windows(
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    *,
    birth_date: Sequence[int],
    samples: int,
    seed: int,
    max_new_tokens: int,
    batch_rows: int = 512,
    stop_tokens: npt.NDArray[np.bool_] | None = None,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    first_sample: int = 0,
    watched: npt.NDArray[np.bool_] | None = None,
    masked_tokens: npt.NDArray[np.bool_] | None = None,
    dates: Dates | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Rollouts:
    """`rollout`, with a budget that may exceed what the context leaves.

    Args:
        birth_date: of each prompt's person, days since 1970-01-01 (BIRTH_UNKNOWN where it is not known), for the windows' prompts.
        max_new_tokens: budget of a future. It is looked at when the context is full, so a future that needs windows may write up to
            half a context more.
        progress: as in `rollout`; a future that goes on from a window of its own is no longer among those done.
        All else as in `rollout`; prompts must hold the whole demographic prompt.

    Returns:
        as `rollout`, as if there had been no windows.
    """
    drawn = rollout(
        decoder,
        vocabulary,
        prompts,
        samples=samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_rows=batch_rows,
        stop_tokens=stop_tokens,
        temperature=temperature,
        dtype=dtype,
        first_sample=first_sample,
        watched=watched,
        masked_tokens=masked_tokens,
        dates=dates,
        progress=progress,
    )
    half = decoder.config.context // 2
    births = np.asarray(birth_date, dtype=np.int64)
    for round_number in range(1, 1 + -(-max_new_tokens // max(half, 1))):
        rows = np.flatnonzero((drawn.stop_reason == "budget") & (drawn.tokens < max_new_tokens) & (drawn.phase != Phase.ENDED))
        if not len(rows) or half < shortest(vocabulary):
            break
        following, shift = _next_prompts(vocabulary, prompts, drawn, rows, births, half, seed)
        report = None if progress is None else _beside(len(drawn) - len(rows), progress)
        more = rollout(
            decoder,
            vocabulary,
            following,
            samples=1,
            seed=seed + round_number,
            batch_rows=batch_rows,
            stop_tokens=stop_tokens,
            temperature=temperature,
            dtype=dtype,
            watched=watched,
            masked_tokens=masked_tokens,
            dates=None if dates is None else dates.shifted(drawn.prompt_index[rows], shift),
            progress=report,
        )
        drawn = _joined(_without_undated(vocabulary, drawn, rows, more), rows, more, shift)
    return drawn


def _beside(ended: int, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`progress` where so many futures need no further window."""
    return lambda done, going_on: progress(ended + done, ended + going_on)


def _next_prompts(
    vocabulary: Vocabulary, prompts: Sequence[Prompt], drawn: Rollouts, rows: Int, birth_date: Int, max_tokens: int, seed: int
) -> tuple[list[Prompt], Int]:
    """The last windows of these rows, and by how many minutes their clocks start later than the rows' own."""
    of = [prompts[index] for index in drawn.prompt_index[rows]]
    whole = [_opened(vocabulary, prompt.token_id) for prompt in of]
    written = [np.concatenate([start, drawn.tokens_of(row)]).astype(np.int32) for start, row in zip(whole, rows, strict=True)]
    histories = _as_histories(vocabulary, written, of, birth_date[drawn.prompt_index[rows]])
    times = [prompt.prediction_time for prompt in of]
    names = sampler.keys(seed, drawn.subject_id[rows], times, drawn.sample_id[rows]).view(np.int64)
    following, shift = [], np.zeros(len(rows), dtype=np.int64)
    for place, (row, prompt, name) in enumerate(zip(rows, of, names, strict=True)):
        window = last_window(histories, vocabulary, place, max_tokens)
        shift[place] = (window.start_date - prompt.start_date) * MINUTES_PER_DAY
        horizon, until = _end(vocabulary, prompt, drawn, row)
        earliest, later = prompt.earliest_clock_minutes, int(shift[place])
        token_id = _later_stay(vocabulary, window.token_id, prompt.token_id, written[place])
        following.append(
            Prompt(
                token_id=token_id,
                subject_id=int(name),
                start_date=window.start_date,
                horizon_minutes=None if horizon is None else horizon - later,
                until=until,
                earliest_minutes=None if earliest is None else max(earliest - later, 0),
            )
        )
    return following, shift


def _end(vocabulary: Vocabulary, prompt: Prompt, drawn: Rollouts, row: int) -> tuple[int | None, Kind | None]:
    """Clock at which a row's future ends, and kind of the token with whose date it ends if that is earlier; None: not given, or it has come."""
    horizon = prompt.horizon_clock_minutes
    last = np.flatnonzero(vocabulary.kind[drawn.tokens_of(row)] == prompt.until) if prompt.until is not None else np.zeros(0, np.int64)
    if not len(last):
        return horizon, prompt.until
    end = int(last_minute(drawn.clock_minutes[drawn.offsets[row] + last[0]]))
    return end if horizon is None else min(horizon, end), None


def _opened(vocabulary: Vocabulary, token_id: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """A window that re-opens a visit as one that opens it: [VR] type [ICU]? day-of-stay (hour)? becomes [VS] type (hour)? [ICU]?."""
    if not _resumes(vocabulary, token_id):
        return token_id
    place, stay, body = _PLACE_OF_VISIT, _place_of_stay(vocabulary, token_id), _place_of_body(vocabulary, token_id)
    opened = (vocabulary.ids_of_kind(Kind.VISIT_START)[:1], token_id[place + 1 : place + 2], token_id[stay + 1 : body], token_id[place + 2 : stay])
    return np.concatenate([token_id[:place], *opened, token_id[body:]])


def _resumes(vocabulary: Vocabulary, token_id: npt.NDArray[np.integer]) -> bool:
    return len(token_id) > _PLACE_OF_VISIT + 2 and vocabulary.kind[token_id[_PLACE_OF_VISIT]] == Kind.VISIT_RESUME


def _place_of_stay(vocabulary: Vocabulary, window: npt.NDArray[np.integer]) -> int:
    """Place of the day of stay in a window that re-opens a visit."""
    return _PLACE_OF_VISIT + 2 + int(vocabulary.kind[window[_PLACE_OF_VISIT + 2]] == Kind.ICU_START)


def _place_of_body(vocabulary: Vocabulary, window: npt.NDArray[np.integer]) -> int:
    """Place behind everything with which a window re-opens a visit."""
    hour = _place_of_stay(vocabulary, window) + 1
    return hour + int(len(window) > hour and vocabulary.kind[window[hour]] == Kind.IN_VISIT_HOURS)


def _later_stay(
    vocabulary: Vocabulary, window: npt.NDArray[np.int32], prompt: npt.NDArray[np.integer], written: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """The window's day of stay, where the visit was re-opened by the prompt already: the days before that count as well."""
    if not (_resumes(vocabulary, window) and _resumes(vocabulary, prompt)):
        return window
    dropped = len(written) - (len(window) - _place_of_body(vocabulary, window))
    if (vocabulary.kind[written[:dropped]] == Kind.VISIT_END).any():
        return window  # another visit
    place = _place_of_stay(vocabulary, window)
    days = int(vocabulary.amount[window[place]]) + int(vocabulary.amount[prompt[_place_of_stay(vocabulary, prompt)]])
    edges = vocabulary.amount_to_id[Kind.STAY_DAY]
    later = window.copy()
    later[place] = edges[max(edge for edge in edges if edge <= days)]
    return later


def _as_histories(vocabulary: Vocabulary, written: Sequence[npt.NDArray[np.int32]], prompts: Sequence[Prompt], birth_date: Int) -> EncodedHistories:
    """Sentences as encoded histories, as far as `last_window` looks at them."""
    rows = len(written)
    lengths = np.array([len(tokens) for tokens in written], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    token_id = np.concatenate(written)
    amount = vocabulary.amount[token_id].astype(np.int64)
    clock = run_clock(vocabulary.kind[token_id], amount, offsets, np.zeros(rows, np.int64), np.full(rows, Phase.PROMPT_BOS))
    first = offsets[:-1]
    months = np.maximum(amount[first + 3], 0) * 12 + np.maximum(amount[first + 4], 0)
    nothing = np.zeros(rows, dtype=np.int64)
    return EncodedHistories(
        token_id=token_id,
        age_minutes=(np.repeat(age_minutes_at_start(months), lengths) + clock).astype(np.int32),
        value=np.full(len(token_id), np.nan, np.float32),
        event_index=np.full(len(token_id), -1, np.int32),
        offsets=offsets,
        subject_id=np.array([prompt.subject_id for prompt in prompts], dtype=np.int64),
        prediction_time=None,
        start_date=np.array([prompt.start_date for prompt in prompts], dtype=np.int64),
        birth_date=birth_date,
        gender_token=token_id[first + 5],
        race_token=token_id[first + 6],
        censor_gap_days=np.full(rows, -1, np.int32),
        events=nothing,
        unknown=nothing,
    )


def _without_undated(vocabulary: Vocabulary, drawn: Rollouts, rows: Int, more: Rollouts) -> Rollouts:
    """`drawn` without the visits whose hour, drawn in the next window only, lies past the horizon: they go with it, [VS] and type."""
    dropped = np.zeros(len(drawn), dtype=np.int64)
    for row in rows[(more.stop_reason == "horizon") & (more.tokens == 0) & (more.phase == Phase.UNIT)]:
        tail = vocabulary.kind[drawn.tokens_of(row)[-2:]]
        if len(tail) and tail[-1] in (Kind.VISIT_START, Kind.VISIT_TYPE):
            dropped[row] = len(tail) if tail[-1] == Kind.VISIT_TYPE else 1
    tokens, of = drawn.tokens - dropped, np.repeat(np.arange(len(drawn)), drawn.tokens)
    kept = np.arange(len(of)) - drawn.offsets[of] < tokens[of]
    offsets = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)
    return replace(drawn, token_id=drawn.token_id[kept], clock_minutes=drawn.clock_minutes[kept], offsets=offsets)


def _joined(drawn: Rollouts, rows: Int, more: Rollouts, shift: Int) -> Rollouts:
    """`drawn` with the continuations of `rows` behind them; `shift` brings the continuations' clocks to the rows' own."""
    own = np.arange(len(drawn))

    def behind(first: npt.NDArray, first_lengths: Int, second: npt.NDArray, second_lengths: Int) -> npt.NDArray:
        """Each row's entries of the first, then those of its continuation."""
        row = np.concatenate([np.repeat(own, first_lengths), np.repeat(rows, second_lengths)])
        return np.concatenate([first, second])[np.argsort(row, kind="stable")]

    watched = int(drawn.chance.shape[1] > 0)
    draws = tuple(one.drawn.astype(np.int64) * watched for one in (drawn, more))
    by_token, by_draw = np.repeat(shift, more.tokens), np.repeat(shift, draws[1])
    lengths = drawn.tokens.copy()
    lengths[rows] += more.tokens
    columns = {field.name: getattr(drawn, field.name).copy() for field in fields(drawn)}
    for name in ("log_probability", "removed_mass", "drawn", "given_up"):
        columns[name][rows] += getattr(more, name)
    columns["conditioned"][rows] &= more.conditioned
    for name in ("phase", "age_minutes"):
        columns[name][rows] = getattr(more, name)
    for name in ("end_clock_minutes", "state_clock_minutes"):
        columns[name][rows] = getattr(more, name) + shift
    # A window in which nothing was written, or that begins on a later date than the prediction time, knows no less than those before it.
    columns["end_clock_minutes"] = np.maximum(columns["end_clock_minutes"], drawn.end_clock_minutes)
    columns["stop_reason"][rows] = more.stop_reason
    columns["token_id"] = behind(drawn.token_id, drawn.tokens, more.token_id, more.tokens)
    columns["clock_minutes"] = behind(drawn.clock_minutes, drawn.tokens, more.clock_minutes + by_token, more.tokens)
    columns["chance"] = behind(drawn.chance, draws[0], more.chance, draws[1])
    columns["drawn_at"] = behind(drawn.drawn_at, draws[0], more.drawn_at + by_draw, draws[1])
    columns["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return replace(drawn, **columns)

"""Histories as tokens in memory: flat arrays and offsets, NumPy only, so that the accelerator side may import it.

History `i` owns tokens `offsets[i] : offsets[i + 1]`. The first `PROMPT_LENGTH` of them are the demographic prompt; a history in which
nothing is left to write (no event in the vocabulary) has no tokens at all, so that callers can refuse it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import SchemaError
from cehrxgpt.timeline.kinds import PROMPT_LENGTH
from cehrxgpt.timeline.time import MINUTES_PER_DAY

BIRTH_UNKNOWN = int(np.iinfo(np.int64).min)
"""`birth_date` where no birth is known; also `start_date` of a history without tokens."""

TOKEN_FIELDS = ("token_id", "age_minutes", "value", "event_index")  # [N], one per token
HISTORY_FIELDS = ("subject_id", "start_date", "birth_date", "gender_token", "race_token", "censor_gap_days", "events", "unknown")  # [S]


@dataclass(frozen=True)
class EncodedHistories:
    """S histories, N tokens in all.

    Attributes:
        token_id: int32[N].
        age_minutes: int32[N]; the decoded age once the token has been read (`Grammar.follow`): 0 until the prompt has said the age.
        value: float32[N]; the number behind a value token or a lab's bin, NaN elsewhere.
        event_index: int32[N]; row of the event among its history's rows in the encoded frame, -1 for structural tokens.
        offsets: int64[S + 1].
        subject_id: int64[S].
        prediction_time: datetime64[us][S] where histories were cut, else None.
        start_date: int64[S]; days since 1970-01-01 of the first unit: the midnight from which the clock counts.
        birth_date: int64[S]; days since 1970-01-01, BIRTH_UNKNOWN where there is none.
        gender_token, race_token: int32[S]; token ids.
        censor_gap_days: int32[S]; whole days an open history was observed beyond the date of its last token; -1 where it ends in
            death or inside a visit.
        events, unknown: int64[S]; events seen, and those set aside because the vocabulary lacks their code.
    """

    token_id: npt.NDArray[np.int32]
    age_minutes: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    event_index: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    subject_id: npt.NDArray[np.int64]
    prediction_time: npt.NDArray[np.datetime64] | None
    start_date: npt.NDArray[np.int64]
    birth_date: npt.NDArray[np.int64]
    gender_token: npt.NDArray[np.int32]
    race_token: npt.NDArray[np.int32]
    censor_gap_days: npt.NDArray[np.int32]
    events: npt.NDArray[np.int64]
    unknown: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        tokens, histories = len(self.token_id), len(self.subject_id)
        for name in TOKEN_FIELDS:
            if len(getattr(self, name)) != tokens:
                raise SchemaError(f"encoded histories: {name} has {len(getattr(self, name))} entries; expected one per token, {tokens}")
        for name in HISTORY_FIELDS:
            if len(getattr(self, name)) != histories:
                raise SchemaError(f"encoded histories: {name} has {len(getattr(self, name))} entries; expected one per history, {histories}")
        if len(self.offsets) != histories + 1 or self.offsets[0] != 0 or self.offsets[-1] != tokens:
            raise SchemaError(f"encoded histories: offsets do not span {tokens} tokens of {histories} histories")

    def __len__(self) -> int:
        return len(self.subject_id)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per history, int64[S]."""
        return np.diff(self.offsets)

    @property
    def unknown_share(self) -> npt.NDArray[np.float64]:
        """Share of each history's events that the vocabulary lacks, float64[S]; 0 where there are no events."""
        return self.unknown / np.maximum(self.events, 1)

    def history(self, index: int) -> slice:
        """The tokens of one history, as a slice of the flat arrays."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    @property
    def clock_minutes(self) -> npt.NDArray[np.int64]:
        """Minutes from the start midnight to each token's decoded instant, int64[N]; 0 in the prompt."""
        lengths = self.lengths
        there = lengths > 0
        at_start = np.zeros(len(self), dtype=np.int64)
        at_start[there] = self.age_minutes[self.offsets[:-1][there] + PROMPT_LENGTH - 1]
        return np.maximum(self.age_minutes.astype(np.int64) - np.repeat(at_start, lengths), 0)

    @property
    def clock(self) -> npt.NDArray[np.int64]:
        """Decoded instant of each token, minutes since 1970-01-01, int64[N]; the start midnight in the prompt."""
        return np.repeat(self.start_date * MINUTES_PER_DAY, self.lengths) + self.clock_minutes

    def subset(self, indices: npt.ArrayLike) -> EncodedHistories:
        """The histories at `indices` (integers or a bool mask), in that order; tokens are copied."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        place = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        arrays = {name: getattr(self, name)[place] for name in TOKEN_FIELDS} | {name: getattr(self, name)[chosen] for name in HISTORY_FIELDS}
        prediction_time = None if self.prediction_time is None else self.prediction_time[chosen]
        return replace(self, **arrays, offsets=offsets, prediction_time=prediction_time)


def concatenate(parts: Sequence[EncodedHistories]) -> EncodedHistories:
    """One after the other; all or none must carry prediction times.

    Raises:
        SchemaError: there are no parts, or only some carry prediction times.
    """
    if not parts:
        raise SchemaError("encoded histories: nothing to concatenate; expected at least one part")
    cut = [part.prediction_time for part in parts if part.prediction_time is not None]
    if len(cut) not in (0, len(parts)):
        raise SchemaError("encoded histories: some parts carry prediction times and some do not; expected all or none")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*TOKEN_FIELDS, *HISTORY_FIELDS)}
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]).astype(np.int64)
    return EncodedHistories(**arrays, offsets=offsets, prediction_time=np.concatenate(cut) if cut else None)

"""The demographic prompt: year, month, age, gender and race at the date a sequence starts. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.timeline.encoded import BIRTH_UNKNOWN
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.time import age_in_months, age_minutes_at_start, year_month_of
from cehrxgpt.timeline.vocabulary import Vocabulary

Int = npt.NDArray[np.int64]

_NOT_YET = 1 << 40
_SAID = np.array([_NOT_YET, _NOT_YET, _NOT_YET, 12, 1, 1, 1])  # the fourth token says years of age, the fifth the months beyond them


def _ids(vocabulary: Vocabulary, kind: Kind, amount: Int) -> npt.NDArray[np.int32]:
    """Token of each amount, clamped to the amounts there are; negative = unknown."""
    known = vocabulary.amount_to_id[kind]
    amounts = np.asarray(sorted(value for value in known if value >= 0), dtype=np.int64)
    if not len(amounts):
        return np.full(len(amount), known[-1], np.int32)
    ids = np.asarray([known[int(value)] for value in amounts], dtype=np.int32)
    place = np.clip(amount - amounts[0], 0, len(amounts) - 1)  # amounts of a kind are consecutive
    return np.where(amount < 0, known.get(-1, 0), ids[place]).astype(np.int32)


def prompt_tokens(
    vocabulary: Vocabulary, start_date: Int, birth_date: Int, gender_token: npt.NDArray[np.int32], race_token: npt.NDArray[np.int32], *, calendar: str
) -> tuple[npt.NDArray[np.int32], Int]:
    """Prompts of S sequences.

    Args:
        start_date: int64[S], days since 1970-01-01.
        birth_date: int64[S], BIRTH_UNKNOWN where unknown.
        calendar: `shifted` writes `year:unknown`.

    Returns:
        token ids int32[S, PROMPT_LENGTH], and the months of age that they say, int64[S], -1 = unknown.
    """
    year, month = year_month_of(start_date)
    unknown = birth_date == BIRTH_UNKNOWN
    months = age_in_months(np.where(unknown, start_date, birth_date), start_date)
    oldest = max(vocabulary.amount_to_id[Kind.AGE])
    months = np.where(unknown, -1, np.minimum(months, oldest * 12 + 11))
    tokens = np.empty((len(start_date), PROMPT_LENGTH), np.int32)
    tokens[:, 0] = vocabulary.ids_of_kind(Kind.BOS)[0]
    tokens[:, 1] = _ids(vocabulary, Kind.YEAR, np.where(calendar == "shifted", -1, np.maximum(year, 0)))
    tokens[:, 2] = _ids(vocabulary, Kind.MONTH, month)
    tokens[:, 3] = _ids(vocabulary, Kind.AGE, np.where(unknown, -1, months // 12))
    tokens[:, 4] = _ids(vocabulary, Kind.AGE_MONTHS, np.where(unknown, -1, months % 12))
    tokens[:, 5], tokens[:, 6] = gender_token, race_token
    return tokens, months


def prompt_ages(months: Int) -> Int:
    """`age_minutes` of the prompt's tokens, int64[S, PROMPT_LENGTH]: what has been said of the age so far (`months`, -1 = unknown)."""
    return age_minutes_at_start(months[:, None] // _SAID * _SAID)

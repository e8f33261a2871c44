"""The prompt as a person: demographics read from tokens, and rows of an EventTable made of them.

A prompt says the year and month of the first event and the age in years and months. The day of the month, and the day of birth within
its month, are drawn; then the age at the start is again what the prompt says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import SchemaError
from cehrxgpt.events import EVENT_DTYPES, sort_events
from cehrxgpt.timeline.encoded import BIRTH_UNKNOWN
from cehrxgpt.timeline.kinds import PROMPT_KINDS, PROMPT_LENGTH
from cehrxgpt.timeline.time import date_from_year_month
from cehrxgpt.timeline.vocabulary import Vocabulary

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prompts:
    """P prompts. All [P]; numbers are -1 where the prompt says `unknown`.

    Attributes:
        year, month, age, age_months: int64; `age_months` are those beyond the years, 0..11.
        gender, race: codes (`gender/8532`).
    """

    year: Int
    month: Int
    age: Int
    age_months: Int
    gender: list[str | None]
    race: list[str | None]


def read_prompts(vocabulary: Vocabulary, token_id: npt.NDArray[np.integer]) -> Prompts:
    """Read int[P, PROMPT_LENGTH] (or longer rows, of which the first places are read).

    Raises:
        SchemaError: a row is not a prompt.
    """
    head = np.asarray(token_id)[:, :PROMPT_LENGTH]
    if head.shape[1] != PROMPT_LENGTH or not (vocabulary.kind[head] == np.array([int(kind) for kind in PROMPT_KINDS])).all():
        raise SchemaError(f"prompt: expected {PROMPT_LENGTH} tokens, one each of {', '.join(kind.name for kind in PROMPT_KINDS)}")
    year, month, age, age_months = (vocabulary.amount[head[:, place]].astype(np.int64) for place in (1, 2, 3, 4))
    gender, race = ([vocabulary.code[index] for index in head[:, place]] for place in (5, 6))
    return Prompts(year, month, age, age_months, gender, race)


def draw_dates(prompts: Prompts, rng: np.random.Generator, *, year: int = 2000) -> tuple[Int, Int]:
    """A start date in each prompt's month, and a birth date that gives its age on that day.

    Args:
        year: stands for an unknown year.

    Returns:
        start and birth dates, int64[P] days since 1970-01-01; birth is BIRTH_UNKNOWN where the age is.
    """
    years, months = np.where(prompts.year < 0, year, prompts.year), np.maximum(prompts.month, 1)
    first = date_from_year_month(years, months)
    length = date_from_year_month(years + months // 12, months % 12 + 1) - first
    start = first + np.floor(rng.random(len(first)) * length).astype(np.int64)
    age = np.maximum(prompts.age, 0) * 12 + np.maximum(prompts.age_months, 0)
    # Born on a day d of the month `age` months ago with d <= the start's day; or the month before with d > it.
    total = years * 12 + months - 1 - age
    this, before = date_from_year_month(total // 12, total % 12 + 1), date_from_year_month((total - 1) // 12, (total - 1) % 12 + 1)
    after = date_from_year_month((total + 1) // 12, (total + 1) % 12 + 1)
    day = start - first
    latest = np.minimum(this + day, after - 1)
    earliest = np.minimum(before + day + 1, this)
    birth = earliest + np.floor(rng.random(len(first)) * (latest - earliest + 1)).astype(np.int64)
    return start, np.where(prompts.age < 0, BIRTH_UNKNOWN, birth)


def person_rows(prompts: Prompts, subject_id: Int, birth_date: Int) -> pl.DataFrame:
    """Gender, race (static; the unknown ones are left out) and MEDS_BIRTH as EventTable rows."""
    born = birth_date != BIRTH_UNKNOWN
    birth = pl.DataFrame(
        {"subject_id": subject_id[born], "time": pl.Series(birth_date[born]).cast(pl.Int32).cast(pl.Date).cast(pl.Datetime("us"))},
        schema_overrides={"subject_id": pl.Int64},
    ).with_columns(pl.lit(s.BIRTH).alias("code"), (pl.col("time") + pl.duration(days=1, microseconds=-1)).alias("available_time"))
    birth = birth.with_columns(pl.lit("day").alias("time_precision"), pl.lit("person").alias("origin"))
    parts = [birth]
    for prefix, codes in ((s.GENDER_PREFIX, prompts.gender), (s.RACE_PREFIX, prompts.race)):
        static = pl.DataFrame({"subject_id": subject_id, "code": codes}, schema={"subject_id": pl.Int64, "code": pl.String})
        parts.append(static.filter(pl.col("code") != f"{prefix}0").with_columns(pl.lit("person").alias("origin")))
    rows = pl.concat(parts, how="diagonal")
    filled = [pl.col(name).cast(dtype) if name in rows.columns else pl.lit(None, dtype).alias(name) for name, dtype in EVENT_DTYPES.items()]
    return sort_events(rows.select(filled))

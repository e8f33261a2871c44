"""The tokens every vocabulary has, whatever the data: prompt, visit frame, time; and those of intensive care, of drugs' lengths and of
bins shared by all labs, which only some have. Plain rows for `Vocabulary.from_rows`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cehrxgpt.schema import DEATH, VISIT_PREFIX
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.lengths import LOWER_DAYS, upper_days
from cehrxgpt.timeline.time import DAYS_PER_YEAR, LONG_GAP_DAYS, MAX_IN_VISIT_DAYS, MINUTES_PER_DAY, MINUTES_PER_HOUR

Row = dict[str, Any]

MAX_AGE = 119  # years; older patients are written as this
MAX_GAP_YEARS = 120
STAY_DAYS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 14, 21, 28, 60, 90)  # lower edges of the bins for the day of stay
VISIT_CLASSES = ("inpatient", "emergency", "observation", "outpatient", "other")  # Visit/<class> stands in for a rare visit type
VISIT_ORIGIN = "visit_occurrence"
ICU_ORIGIN = "visit_detail"


def _row(token: str, kind: Kind, **more: Any) -> Row:
    return {"token": token, "kind": int(kind), **more}


def prompt_rows(years: Iterable[int]) -> list[Row]:
    """BOS, years, months, ages; gender and race follow from the data."""
    rows = [_row("[BOS]", Kind.BOS), _row("year:unknown", Kind.YEAR)]
    rows += [_row(f"year:{year}", Kind.YEAR, amount=year) for year in years]
    rows += [_row(f"month:{month}", Kind.MONTH, amount=month) for month in range(1, 13)]
    rows += [_row("age:unknown", Kind.AGE), *(_row(f"age:{age}", Kind.AGE, amount=age) for age in range(MAX_AGE + 1))]
    rows += [_row("age_months:unknown", Kind.AGE_MONTHS), *(_row(f"age_months:{month}", Kind.AGE_MONTHS, amount=month) for month in range(12))]
    return rows


def time_rows(long_gap: str) -> list[Row]:
    """Gaps and steps; `LT` only with `long_gap` "lt"."""
    rows = [_row(f"D{days}", Kind.DAY_GAP, amount=days, minutes=days * MINUTES_PER_DAY) for days in range(LONG_GAP_DAYS)]
    first = LONG_GAP_DAYS // DAYS_PER_YEAR
    rows += [
        _row(f"Y{years}", Kind.YEAR_GAP, amount=years, minutes=years * DAYS_PER_YEAR * MINUTES_PER_DAY) for years in range(first, MAX_GAP_YEARS + 1)
    ]
    if long_gap == "lt":
        rows.append(_row("LT", Kind.LONG_GAP, amount=LONG_GAP_DAYS, minutes=LONG_GAP_DAYS * MINUTES_PER_DAY))
    rows += [_row(f"i-D{days}", Kind.IN_VISIT_DAYS, amount=days, minutes=days * MINUTES_PER_DAY) for days in range(1, MAX_IN_VISIT_DAYS + 1)]
    # i-H0 says "admitted at this very hour" where another step of hours follows at once; elsewhere zero hours are not written.
    rows += [_row(f"i-H{hours}", Kind.IN_VISIT_HOURS, amount=hours, minutes=hours * MINUTES_PER_HOUR) for hours in range(24)]
    return rows


def frame_rows() -> list[Row]:
    """Visit frame, day of stay, one visit type per class, death and end."""
    rows = [_row("[VS]", Kind.VISIT_START), _row("[VR]", Kind.VISIT_RESUME), _row("[VE]", Kind.VISIT_END)]
    rows += [_row(f"stay:{days}", Kind.STAY_DAY, amount=days) for days in STAY_DAYS]
    rows += [_row(f"{VISIT_PREFIX}{name}", Kind.VISIT_TYPE, code=f"{VISIT_PREFIX}{name}", origin=VISIT_ORIGIN) for name in VISIT_CLASSES]
    rows += [_row(DEATH, Kind.DEATH, code=DEATH, origin="death"), _row("[END]", Kind.END)]
    return rows


def icu_rows(code: str, subjects: int) -> list[Row]:
    """Begin and end of intensive care: only where the training data has it, so that other vocabularies stay as they are."""
    return [_row("[ICU]", Kind.ICU_START, code=code, origin=ICU_ORIGIN, subjects=subjects), _row("[/ICU]", Kind.ICU_END)]


def length_rows() -> list[Row]:
    """Lengths of drugs; only where they are asked for."""
    lasts = [upper_days(lower) for lower in LOWER_DAYS[:-1]]
    rows = [_row(f"days:{lower}-{last}", Kind.DRUG_LENGTH, amount=lower) for lower, last in zip(LOWER_DAYS, lasts, strict=False)]
    return [*rows, _row(f"days:>{LOWER_DAYS[-1] - 1}", Kind.DRUG_LENGTH, amount=LOWER_DAYS[-1])]


def bin_rows(count: int) -> list[Row]:
    """Bins that all labs share, from the lowest up; only where code and value are two tokens."""
    return [_row(f"bin:{place}", Kind.BIN, amount=place) for place in range(count)]


def structural_rows(years: Iterable[int], long_gap: str) -> list[Row]:
    """All of them, `[PAD]` first."""
    return [_row("[PAD]", Kind.PAD), *prompt_rows(years), *frame_rows(), *time_rows(long_gap)]

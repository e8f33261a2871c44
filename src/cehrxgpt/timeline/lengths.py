"""How long drugs are taken: bins of the length tokens, and what is usual for each drug.

A length counts days, the first and the last included, so that a drug that begins and ends on one date has length 1 (OMOP's
`days_supply`). The bins have fixed edges: nothing of a patient is in them. The usual length of a drug is the median over the training
rows that have an end, kept only where `min_subjects` patients have one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.timeline.vocabulary import DRUG_ORIGIN

LOWER_DAYS = (1, 4, 8, 15, 31, 91)  # lower edges of the bins
LONGEST_DAYS = 180  # what the last bin, "over 90 days", is drawn up to
_CAP_DAYS = 3650  # longer ones are counted as this

Int = npt.NDArray[np.int64]


def upper_days(lower: int) -> int:
    """Last day of the bin that begins with `lower`."""
    place = LOWER_DAYS.index(lower)
    return LOWER_DAYS[place + 1] - 1 if place + 1 < len(LOWER_DAYS) else LONGEST_DAYS


def bin_of(days: Int) -> Int:
    """Lower edge of each length's bin; lengths below a day count as one."""
    return np.asarray(LOWER_DAYS, dtype=np.int64)[np.maximum(np.searchsorted(LOWER_DAYS, days, side="right") - 1, 0)]


def days_drawn(lower: Int, rng: np.random.Generator | None) -> Int:
    """A length inside each bin: the middle, or an even draw."""
    last = np.asarray([upper_days(int(edge)) for edge in LOWER_DAYS], dtype=np.int64)[np.searchsorted(LOWER_DAYS, lower)]
    return (lower + last) // 2 if rng is None else lower + np.floor(rng.random(len(lower)) * (last - lower + 1)).astype(np.int64)


def days_of(time: pl.Expr, end_time: pl.Expr) -> pl.Expr:
    """Days from the date of `time` to that of `end_time`, both counted, at least 1; null where there is no end."""
    return ((end_time.dt.truncate("1d") - time.dt.truncate("1d")).dt.total_days() + 1).clip(lower_bound=1)


class UsualLengths:
    """Counts of lengths, shard by shard: bounded by the codes and the distinct lengths."""

    def __init__(self) -> None:
        self._days = pl.DataFrame(schema={"code": pl.String, "days": pl.Int64, "rows": pl.UInt32})
        self._subjects = pl.DataFrame(schema={"code": pl.String, "subjects": pl.UInt32})

    def add(self, events: pl.DataFrame) -> None:
        """Count one shard (whole subjects)."""
        drugs = events.filter((pl.col("origin") == DRUG_ORIGIN) & pl.col("time").is_not_null() & pl.col("end_time").is_not_null())
        drugs = drugs.select("subject_id", "code", days_of(pl.col("time"), pl.col("end_time")).clip(upper_bound=_CAP_DAYS).alias("days"))
        days = drugs.group_by("code", "days").agg(pl.len().alias("rows"))
        self._days = pl.concat([self._days, days]).group_by("code", "days").agg(pl.col("rows").sum())
        subjects = drugs.group_by("code").agg(pl.col("subject_id").n_unique().alias("subjects"))
        self._subjects = pl.concat([self._subjects, subjects]).group_by("code").agg(pl.col("subjects").sum())

    def medians(self, min_subjects: int) -> dict[str, int]:
        """Drug code -> median length in days (the lower one of two)."""
        enough = self._subjects.filter(pl.col("subjects") >= min_subjects)
        kept = self._days.join(enough, on="code", how="semi").sort("code", "days")
        half = pl.col("rows").cum_sum().over("code") * 2 >= pl.col("rows").sum().over("code")
        middle = kept.filter(half).group_by("code", maintain_order=True).first()
        return dict(middle.select("code", "days").iter_rows())

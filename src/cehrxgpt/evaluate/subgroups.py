"""Who the rows are, at their prediction times: age, sex, race, and how much history there is.

Read from events that the record knew by then (`available_time <= prediction_time`). Bands are fixed, so that figures of two data sets can stand
beside each other; their names sort in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.evaluate.rows import KEY
from cehrxgpt.events import completed_years

AGE, SEX, RACE, HISTORY_DAYS, HISTORY_EVENTS = "age", "sex", "race", "history_days", "history_events"
UNKNOWN = "unknown"

AGE_BANDS = ((18, "00 to 17"), (40, "18 to 39"), (65, "40 to 64"), (80, "65 to 79"), (None, "80 and over"))
"""(completed years below which, name)."""
DAYS_BANDS = ((180, "1: under 180 days"), (730, "2: 180 days to 2 years"), (1826, "3: 2 to 5 years"), (None, "4: 5 years and more"))
EVENTS_BANDS = ((50, "1: under 50"), (200, "2: 50 to 199"), (1000, "3: 200 to 999"), (None, "4: 1,000 and more"))

GROUP_DTYPES: dict[str, pl.DataType] = {
    "task": pl.String(),
    "subject_id": pl.Int64(),
    "prediction_time": pl.Datetime("us"),
    "subgroup": pl.String(),
    "level": pl.String(),
}

_NAMES = {"gender/8532": "female", "gender/8507": "male", "race/8515": "Asian", "race/8516": "Black", "race/8527": "White"}
_NAMES |= {f"{s.GENDER_PREFIX}0": UNKNOWN, f"{s.RACE_PREFIX}0": UNKNOWN}
_UNCOUNTED = (s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END)


def _band(value: pl.Expr, bands: Sequence[tuple[int | None, str]]) -> pl.Expr:
    """The name of the band that a value lies in; `unknown` where there is none."""
    named = pl.lit(bands[-1][1])
    for below, name in reversed(bands[:-1]):
        named = pl.when(value < below).then(pl.lit(name)).otherwise(named)
    return pl.when(value.is_null()).then(pl.lit(UNKNOWN)).otherwise(named)


def subgroup_levels(events: pl.DataFrame, rows: pl.DataFrame, *, names: Mapping[str, str] | None = None) -> pl.DataFrame:
    """The level of each row in each subgroup.

    Args:
        events: EventTable of (at least) the rows' subjects; others are not looked at.
        rows: `task`, `subject_id`, `prediction_time`, distinct; those whose subject has no event are left out.
        names: code -> readable name, of sexes and races.

    Returns:
        `task`, `subject_id`, `prediction_time`, `subgroup` (age, sex, race, history_days, history_events), `level`.
    """
    events = events.select("subject_id", "time", "code", "available_time")
    key = rows.select(*KEY).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    key = key.join(events.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
    births = events.filter(pl.col("code") == s.BIRTH).group_by("subject_id").agg(pl.col("time").min().alias("birth"))
    facts = key.join(births, on="subject_id", how="left", maintain_order="left")
    for name, prefix in ((SEX, s.GENDER_PREFIX), (RACE, s.RACE_PREFIX)):
        static = events.filter(pl.col("code").str.starts_with(prefix)).group_by("subject_id").agg(pl.col("code").min().alias(name))
        readable = pl.col(name).replace({**dict(names or {}), **_NAMES}).fill_null(UNKNOWN)
        facts = facts.join(static, on="subject_id", how="left", maintain_order="left").with_columns(readable)
    counted = events.filter(pl.col("time").is_not_null() & pl.col("available_time").is_not_null() & ~pl.col("code").is_in(list(_UNCOUNTED)))
    so_far = counted.sort("subject_id", "available_time").select(
        "subject_id",
        pl.col("available_time").cast(pl.Datetime("us")),
        pl.int_range(1, pl.len() + 1).over("subject_id").alias("_events"),
        pl.col("time").cum_min().over("subject_id").alias("_first"),
    )
    # The last row of each moment holds what is known by then.
    so_far = so_far.unique(["subject_id", "available_time"], keep="last", maintain_order=True).sort("available_time")
    times = key.select("subject_id", "prediction_time").unique().sort("prediction_time")
    lengths = times.join_asof(so_far, left_on="prediction_time", right_on="available_time", by="subject_id", check_sortedness=False)
    facts = facts.join(lengths.drop("available_time"), on=["subject_id", "prediction_time"], how="left", maintain_order="left")
    levels = facts.select(
        *KEY,
        _band(completed_years(pl.col("prediction_time"), pl.col("birth")), AGE_BANDS).alias(AGE),
        SEX,
        RACE,
        _band((pl.col("prediction_time") - pl.col("_first")).dt.total_days().fill_null(0), DAYS_BANDS).alias(HISTORY_DAYS),
        _band(pl.col("_events").fill_null(0), EVENTS_BANDS).alias(HISTORY_EVENTS),
    )
    return levels.unpivot(index=list(KEY), variable_name="subgroup", value_name="level").cast(GROUP_DTYPES)  # type: ignore[arg-type]

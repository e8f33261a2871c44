"""What is counted of an event data set to judge its quality: a handful of aggregates, in one pass of Polars over the shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.report.quality.sexes import GENDERS, codes_of_one_sex
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.suppress import SMALL_CELL

UNMAPPED = r"^[a-z]+/0(/|$)"
"""Codes that keep their source's, because the concept is 0: `condition/0/I50.9`."""
LOCAL = r"^[a-z]+/[2-9][0-9]{9}$"
"""Codes above 2,000,000,000, which OMOP leaves to each site."""

_STRUCTURAL = (s.BIRTH, s.DEATH, s.OBSERVATION_START, s.OBSERVATION_END)


@dataclass(frozen=True)
class Part:
    """So many of so many; `where` names the largest contributors, most first."""

    count: int
    of: int
    where: tuple[tuple[str, int], ...] = ()

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True)
class Facts:
    """Counts of one event data set; `clinical` rows are those that are something that happened (not visits, birth, death, ...).

    Attributes:
        subjects, events, clinical, deaths, visits: totals.
        splits: split -> subjects.
        outside_visits, day_only, unmapped, local (ids of the site's own), nameless, unitless: of clinical rows (unitless: of numbers), by table.
        open_visits: visits without an end.
        unknown_gender, unknown_race, no_birth, no_events, one_day, period_ends_with_record, centenarians: of subjects.
        mixed_units: numeric codes with two or more units of at least eleven subjects each, of numeric codes.
        other_sex: events of people of the other sex, of those events that befall one sex alone and whose person's sex is known, by code.
        far_values: numbers further outside the value bins than the bins are wide (None: no bins), by code.
        one_class: the class nearly all visits have, if there is one.
    """

    subjects: int
    events: int
    clinical: int
    deaths: int
    visits: int
    splits: dict[str, int]
    outside_visits: Part
    day_only: Part
    unmapped: Part
    local: Part
    nameless: Part
    unitless: Part
    open_visits: Part
    unknown_gender: Part
    unknown_race: Part
    no_birth: Part
    no_events: Part
    one_day: Part
    period_ends_with_record: Part
    centenarians: Part
    mixed_units: Part
    other_sex: Part
    far_values: Part | None


def clinical() -> pl.Expr:
    """Rows that are something that happened: not static, not birth, death or the limits of observation, not a visit's own rows."""
    code = pl.col("code")
    structural = pl.any_horizontal(code.str.starts_with(prefix) for prefix in (s.VISIT_PREFIX, s.ICU_PREFIX, s.DISCHARGE_PREFIX))
    return pl.col("time").is_not_null() & ~code.is_in(_STRUCTURAL) & ~structural


def happened() -> pl.Expr:
    """Rows with a time that tell of care: not birth, death or the limits of observation."""
    return pl.col("time").is_not_null() & ~pl.col("code").is_in(_STRUCTURAL)


def _tally(counted: pl.DataFrame, flag: str, of: str = "rows", limit: int = 3) -> Part:
    """A column of counts by `origin`, as a part of another column."""
    ranked = counted.filter(pl.col(flag) > 0).sort([flag, "origin"], descending=[True, False], nulls_last=True)
    where = tuple((name or "no table", int(n)) for name, n in ranked.select("origin", flag).head(limit).iter_rows())
    return Part(int(counted[flag].sum() or 0), int(counted[of].sum() or 0), where)


def gather(run: RunFolder) -> Facts | None:
    """Counts of the run's events, None where there are none."""
    events = run.events
    if events is None:
        return None
    named = sorted(run.names)
    numeric = pl.col("numeric_value").is_not_null()
    by_table = events.filter(clinical()).group_by("origin").agg(
        pl.len().alias("rows"), pl.col("visit_id").is_null().sum().alias("outside"), (pl.col("time_precision") == "day").sum().alias("day"),
        numeric.sum().alias("numbers"), (numeric & pl.col("unit").fill_null("0").is_in(["", "0"])).sum().alias("unitless"),
    )  # fmt: skip
    by_code = events.filter(clinical()).group_by("origin", "code").agg(pl.len().alias("rows"))
    is_visit = pl.col("code").str.starts_with(s.VISIT_PREFIX)
    stays = events.filter(is_visit).select(pl.len().alias("visits"), pl.col("end_time").is_null().sum().alias("open"))
    tables, codes, visits, people, units, splits = pl.collect_all(
        [by_table, by_code, stays, _people(events), _units(events), events.group_by("split").agg(pl.col("subject_id").n_unique())]
    )
    marked = codes.with_columns(
        pl.when(pl.col("code").str.contains(UNMAPPED)).then("rows").otherwise(0).alias("unmapped"),
        pl.when(pl.col("code").str.contains(LOCAL)).then("rows").otherwise(0).alias("local"),
        pl.when(pl.col("code").is_in(named)).then(0).otherwise("rows").alias("nameless"),
    )
    marked = marked.group_by("origin").agg(pl.col("rows", "unmapped", "local", "nameless").sum())
    subject: Callable[[str], Part] = lambda column: Part(int(people[column].sum() or 0), people.height)  # noqa: E731
    return Facts(
        subjects=people.height,
        events=int(people["rows"].sum() or 0),
        clinical=int(tables["rows"].sum() or 0),
        deaths=int(people["died"].sum() or 0),
        visits=int(visits["visits"][0]),
        splits=dict(sorted(splits.iter_rows())),
        outside_visits=_tally(tables, "outside"),
        day_only=_tally(tables, "day"),
        unmapped=_tally(marked, "unmapped"),
        local=_tally(marked, "local"),
        nameless=_tally(marked, "nameless"),
        unitless=_tally(tables, "unitless", "numbers"),
        open_visits=Part(int(visits["open"][0]), int(visits["visits"][0])),
        unknown_gender=subject("unknown_gender"),
        unknown_race=subject("unknown_race"),
        no_birth=subject("no_birth"),
        no_events=subject("no_events"),
        one_day=subject("one_day"),
        period_ends_with_record=subject("ends_with_record"),
        centenarians=subject("old"),
        mixed_units=_mixed(run, units),
        other_sex=_other_sex(run, events),
        far_values=_far_values(run, events),
    )


def _people(events: pl.LazyFrame) -> pl.LazyFrame:
    """One row per subject, with what is odd about them."""
    code, time = pl.col("code"), pl.col("time")
    happened = time.filter(clinical())
    born = time.filter(code == s.BIRTH).min()
    known_gender = (code.str.starts_with(s.GENDER_PREFIX) & ~code.is_in([f"{s.GENDER_PREFIX}0"])).any()
    known_race = (code.str.starts_with(s.RACE_PREFIX) & ~code.is_in([f"{s.RACE_PREFIX}0"])).any()
    last_happened = pl.max_horizontal(happened.max(), pl.col("end_time").filter(code.str.starts_with(s.VISIT_PREFIX)).max())
    ends = time.filter(code == s.OBSERVATION_END).max()
    died = (code == s.DEATH).any()
    return events.group_by("subject_id").agg(
        pl.len().alias("rows"), died.alias("died"), (~known_gender).alias("unknown_gender"), (~known_race).alias("unknown_race"),
        born.is_null().alias("no_birth"), (happened.len() == 0).alias("no_events"), (happened.dt.date().n_unique() == 1).alias("one_day"),
        ((ends - last_happened).dt.total_hours() < 48).fill_null(False).and_(~died).alias("ends_with_record"),
        ((happened.max() - born).dt.total_days() > 110 * 365.25).fill_null(False).alias("old"),
    )  # fmt: skip


def _units(events: pl.LazyFrame) -> pl.LazyFrame:
    """Subjects per numeric code and unit."""
    rows = events.filter(clinical() & pl.col("numeric_value").is_not_null())
    return rows.group_by("code", pl.col("unit").fill_null("")).agg(pl.col("subject_id").n_unique().alias("subjects"), pl.len().alias("rows"))


def _mixed(run: RunFolder, units: pl.DataFrame) -> Part:
    common = units.filter(pl.col("subjects") >= SMALL_CELL).group_by("code").agg(pl.len().alias("units"), pl.col("rows").sum())
    mixed = common.filter(pl.col("units") > 1).sort("rows", "code", descending=[True, False])
    where = tuple((f"{run.name(code)} ({n} units)", int(rows)) for code, n, rows in mixed.head(3).iter_rows())
    return Part(mixed.height, common.height, where)


def _other_sex(run: RunFolder, events: pl.LazyFrame) -> Part:
    """Diagnoses and procedures of one sex alone, in people whose sex is known: how many are of the other sex."""
    owners = codes_of_one_sex(run.parquet("events/metadata/codes.parquet"))
    known = events.filter(pl.col("code").is_in(list(GENDERS.values()))).select("subject_id", pl.col("code").alias("_gender"))
    known = known.unique("subject_id", keep="none")  # who is said to be both is not judged
    judged = events.filter(clinical() & pl.col("code").is_in(list(owners))).join(known, on="subject_id")
    wrong = pl.col("code").replace_strict(owners, default=None, return_dtype=pl.String) != pl.col("_gender")
    counted = judged.group_by("code").agg(pl.len().alias("rows"), wrong.sum().alias("wrong")).collect()
    ranked = counted.filter(pl.col("wrong") > 0).sort("wrong", "code", descending=[True, False]).select("code", "wrong")
    where = tuple((run.name(code), int(n)) for code, n in ranked.head(3).iter_rows())
    return Part(int(counted["wrong"].sum()), int(counted["rows"].sum()), where)


def _far_values(run: RunFolder, events: pl.LazyFrame) -> Part | None:
    """Numbers more than the whole width of a code's bins below the first or above the last of them."""
    vocabulary = run.parquet("timeline/vocabulary.parquet", ("code", "unit", "bin_low", "bin_high"))
    if vocabulary is None:
        return None
    edges = vocabulary.filter(pl.col("bin_low").is_finite()).group_by("code", pl.col("unit").fill_null("")).agg(
        pl.col("bin_low").min().alias("low"), pl.col("bin_high").max().alias("high")
    )  # fmt: skip
    if edges.is_empty():
        return None
    width = pl.col("high") - pl.col("low")
    value = pl.col("numeric_value")
    judged = (
        events.filter(clinical() & value.is_not_null())
        .select("subject_id", "code", pl.col("unit").fill_null(""), "numeric_value")
        .join(edges.filter(pl.col("high") > pl.col("low")).lazy(), on=["code", "unit"])
        .group_by("code")
        .agg(
            pl.len().alias("rows"),
            ((value < pl.col("low") - width) | (value > pl.col("high") + width)).sum().alias("far"),
            pl.col("subject_id").filter((value < pl.col("low") - width) | (value > pl.col("high") + width)).n_unique().alias("subjects"),
        )
        .collect()
    )
    named = judged.filter(pl.col("subjects") >= SMALL_CELL).sort("far", "code", descending=[True, False])
    where = tuple((run.name(code), int(far)) for code, far in named.select("code", "far").head(3).iter_rows())
    return Part(int(judged["far"].sum() or 0), int(judged["rows"].sum() or 0), where)


def account(run: RunFolder, folder: str = "events") -> dict[str, Any]:
    """The ingest's own account, empty where there is none."""
    return run.json(f"{folder}/ingest.json") or {}

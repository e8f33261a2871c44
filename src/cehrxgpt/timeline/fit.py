"""Fitting a vocabulary from events: one pass over the training shards, memory bounded by the codes, not by the events.

Counts are of patients, never of rows. As one subject lives in one shard, counts of shards add up. Numbers are kept per (code, unit)
up to `max_values` rows; beyond that the patients whose hash falls in a half, a quarter, ... stand for all, which does not depend on
the order of the shards. Codes, units, categories, bins, genders, races and years of fewer than `min_subjects` patients leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.config import to_dict
from cehrxgpt.errors import ConfigError, InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.timeline.back_off import ConceptSets, common_ancestors, ontology_facts, rolled_up
from cehrxgpt.timeline.bins import Bin, value_bins
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.lengths import UsualLengths
from cehrxgpt.timeline.structure import Row, bin_rows, icu_rows, length_rows, structural_rows
from cehrxgpt.timeline.vocabulary import Vocabulary

LONG_GAPS = ("exact", "lt")
VALUES = ("fused", "split")
SKIPPED = (s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END)  # never tokens of their own
NUMBER_KEYS = ["code", "unit", "operator"]  # numbers under one key share one run of bins


@dataclass(frozen=True, kw_only=True)
class TimelineConfig:
    """How a vocabulary is fitted.

    Attributes:
        min_subjects: training patients a code, unit, category or bin must have to be kept (and stored).
        value_bins: quantile bins per (code, unit); heaped values and fixed edges may add a few. 0 writes no values.
        values: `fused` writes a number's code, unit, comparison sign and bin as one token, `split` as two: the lab, and a bin that all labs
            share.
        max_categories: most frequent categorical results per code that get a token. 0 writes none.
        long_gap: `exact` writes gaps from 1,080 days as years and days, `lt` as one token that counts 1,080 days.
        drug_lengths: write how long a drug is taken, in bins of days, after it.
        fixed_edges: code -> values that must be edges of its bins; `code sign` ("measurement/3004410 >") -> those of its results with this
            comparison sign, in place of them.
        max_values: numbers kept per (code, unit) while fitting.
        roll_up: codes whose descendants are written as them; see `back_off`.
        back_off: write a code outside the vocabulary as its nearest ancestor in it.
    """

    min_subjects: int = 11
    value_bins: int = 10
    values: str = "fused"
    max_categories: int = 24
    long_gap: str = "exact"
    drug_lengths: bool = False
    fixed_edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    max_values: int = 200_000
    roll_up: tuple[str, ...] = ()
    back_off: bool = False

    def __post_init__(self) -> None:
        if self.min_subjects < 1:
            raise ConfigError(f"min_subjects: {self.min_subjects} is out of range; expected 1 or more (11 is the habit)")
        if not 0 <= self.value_bins <= 100:
            raise ConfigError(f"value_bins: {self.value_bins} is out of range; expected 0 to 100")
        if self.values not in VALUES:
            raise ConfigError(f"values: '{self.values}' is not known; valid values: {', '.join(VALUES)}")
        if self.max_categories < 0:
            raise ConfigError(f"max_categories: {self.max_categories} is out of range; expected 0 or more")
        if self.long_gap not in LONG_GAPS:
            raise ConfigError(f"long_gap: '{self.long_gap}' is not known; valid values: {', '.join(LONG_GAPS)}")
        if self.max_values < 1000:
            raise ConfigError(f"max_values: {self.max_values} is too few; expected 1000 or more")


def is_category(text: pl.Expr) -> pl.Expr:
    """Whether a text result says anything: `___`, `-` and blanks are missing values."""
    return text.str.contains(r"[\pL\pN]").fill_null(False)


class Counts:
    """What is accumulated over shards."""

    def __init__(self, config: TimelineConfig):
        self.config = config
        self.subjects = 0
        self.codes = pl.DataFrame(schema={"code": pl.String, "origin": pl.String, "subjects": pl.UInt32})
        self.categories = pl.DataFrame(schema={"code": pl.String, "text_value": pl.String, "subjects": pl.UInt32})
        self.years = pl.DataFrame(schema={"year": pl.Int32, "subjects": pl.UInt32})
        self.numbers = _Numbers(config.max_values)
        self.icu = pl.DataFrame(schema={"code": pl.String, "subjects": pl.UInt32})
        self.icu_subjects = 0
        self.lengths = UsualLengths()

    def add(self, events: pl.DataFrame) -> None:
        """Count one shard (whole subjects)."""
        events = events.filter(~pl.col("code").is_in(SKIPPED) & ~pl.col("code").str.starts_with(s.ETHNICITY_PREFIX))
        self.subjects += events["subject_id"].n_unique()
        self.lengths.add(events)
        count = pl.col("subject_id").n_unique().alias("subjects")
        in_icu = events.filter(pl.col("code").str.starts_with(s.ICU_PREFIX))
        self.icu_subjects += in_icu["subject_id"].n_unique()
        self.icu = pl.concat([self.icu, in_icu.group_by("code").agg(count)]).group_by("code").agg(pl.col("subjects").sum())
        events = events.filter(~pl.col("code").str.starts_with(s.ICU_PREFIX))
        codes = events.group_by("code", "origin").agg(count)
        self.codes = pl.concat([self.codes, codes]).group_by("code", "origin").agg(pl.col("subjects").sum())
        timed = events.filter(pl.col("time").is_not_null())
        years = timed.group_by(pl.col("time").dt.year().alias("year")).agg(count)
        self.years = pl.concat([self.years, years]).group_by("year").agg(pl.col("subjects").sum())
        if self.config.max_categories:
            texts = timed.filter(is_category(pl.col("text_value"))).group_by("code", "text_value").agg(count)
            self.categories = pl.concat([self.categories, texts]).group_by("code", "text_value").agg(pl.col("subjects").sum())
        if self.config.value_bins:
            self.numbers.add(timed.filter(pl.col("numeric_value").is_finite()).select("code", "unit", "operator", "subject_id", "numeric_value"))


class _Numbers:
    """Numbers by key, at most `most` of each: where there are more, patients whose hash falls in a half, a quarter, ... stand for all.

    Kept as group number, subject and value, 16 bytes each. `groups` has a row per key: how many numbers it holds, and its level (the
    patients kept are one in 2 ** level).
    """

    def __init__(self, most: int):
        self.most = most
        self.groups = pl.DataFrame(schema=dict.fromkeys(NUMBER_KEYS, pl.String) | {"_group": pl.UInt32, "_level": pl.UInt8, "_held": pl.Int64})
        self.parts: list[pl.DataFrame] = []

    def add(self, numbers: pl.DataFrame) -> None:
        """Add the numbers of one shard."""
        keys = NUMBER_KEYS
        fresh = numbers.select(keys).unique(maintain_order=True).join(self.groups, on=keys, how="anti", nulls_equal=True)
        first = self.groups.height
        number = pl.int_range(first, first + pl.len(), dtype=pl.UInt32).alias("_group")
        fresh = fresh.with_columns(number, pl.lit(0, pl.UInt8).alias("_level"), pl.lit(0, pl.Int64).alias("_held"))
        self.groups = pl.concat([self.groups, fresh])
        placed = numbers.join(self.groups.select(*keys, "_group", "_level"), on=keys, how="left", nulls_equal=True)
        self.parts.append(_standing(placed).select("_group", "subject_id", "numeric_value"))
        self._count(self.parts[-1])
        while (crowded := self._crowded()).len():
            self._thin(crowded)

    def _count(self, part: pl.DataFrame) -> None:
        held = part.group_by("_group").agg(pl.len().cast(pl.Int64).alias("_more"))
        joined = self.groups.join(held, on="_group", how="left", maintain_order="left")
        self.groups = joined.with_columns(pl.col("_held") + pl.col("_more").fill_null(0)).drop("_more")

    def _crowded(self) -> pl.Series:
        """Groups with too many numbers that are not all of one patient."""
        full = self.groups.filter((pl.col("_held") > self.most) & (pl.col("_level") < 40))["_group"]
        if not full.len():
            return full
        several = pl.concat([part.lazy().filter(pl.col("_group").is_in(full.implode())) for part in self.parts]).group_by("_group")
        return several.agg(pl.col("subject_id").n_unique().alias("m")).filter(pl.col("m") > 1).collect()["_group"]

    def _thin(self, crowded: pl.Series) -> None:
        """Halve the patients that stand for these groups."""
        chosen = pl.col("_group").is_in(crowded.implode())
        self.groups = self.groups.with_columns(
            pl.when(chosen).then(pl.col("_level") + 1).otherwise("_level").cast(pl.UInt8).alias("_level"),
            pl.when(chosen).then(0).otherwise("_held").cast(pl.Int64).alias("_held"),
        )
        levels = self.groups.select("_group", "_level")
        parts = []
        for part in self.parts:
            thinned = _standing(part.filter(chosen).join(levels, on="_group", how="left")).select(part.columns)
            self._count(thinned)
            parts.append(pl.concat([part.filter(~chosen), thinned]))
        self.parts = parts

    def by_code(self) -> dict[str, list[tuple[str | None, str | None, pl.DataFrame]]]:
        """code -> (unit, comparison sign, numbers with their subjects), in order, null first."""
        if not self.parts:
            return {}
        parts = pl.concat(self.parts).partition_by("_group", as_dict=True, include_key=False)
        self.parts = []
        found: dict[str, list[tuple[str | None, str | None, pl.DataFrame]]] = {}
        for code, unit, operator, group in self.groups.sort(NUMBER_KEYS).select(*NUMBER_KEYS, "_group").iter_rows():
            if (group,) in parts:
                found.setdefault(code, []).append((unit, operator, parts[group,]))
        return found


def _standing(numbers: pl.DataFrame) -> pl.DataFrame:
    """Numbers of the patients that stand for all at `_level`."""
    mask = (pl.lit(1, pl.UInt64) * 2 ** pl.col("_level")).cast(pl.UInt64) - 1
    return numbers.filter(pl.col("subject_id").hash(seed=17) & mask == 0)


def _origins(counts: Counts) -> pl.DataFrame:
    """code -> its most common origin and its patients (a code with several origins counts the most common one's at least)."""
    return (
        counts.codes.sort("subjects", "origin", descending=[True, False], nulls_last=True)
        .group_by("code", maintain_order=True)
        .agg(pl.col("origin").first(), pl.col("subjects").max())
        .filter(pl.col("subjects") >= counts.config.min_subjects)
        .sort("subjects", "code", descending=[True, False])
    )


def _kind_of(code: str) -> Kind:
    for prefix, kind in (
        (s.VISIT_PREFIX, Kind.VISIT_TYPE),
        (s.DISCHARGE_PREFIX, Kind.DISCHARGE),
        (s.GENDER_PREFIX, Kind.GENDER),
        (s.RACE_PREFIX, Kind.RACE),
    ):
        if code.startswith(prefix):
            return kind
    return Kind.CODE


def _value_rows(code: str, origin: str | None, groups: list[tuple[str | None, str | None, pl.DataFrame]], config: TimelineConfig) -> list[Row]:
    """Value tokens of one code: one run of bins per unit and comparison sign, each a token or all of them one lab."""
    rows: list[Row] = []
    for unit, operator, part in groups:
        bins = value_bins(
            part["numeric_value"].to_numpy(),
            part["subject_id"].to_numpy(),
            bins=config.value_bins,
            min_subjects=config.min_subjects,
            fixed_edges=config.fixed_edges.get(f"{code} {operator}", config.fixed_edges.get(code, ())),
        )
        if bins and config.values == "split":
            rows.append(_lab_row(code, unit, operator, bins) | {"origin": origin, "subjects": part["subject_id"].n_unique()})
            continue
        for place, made in enumerate(bins):
            closing = "]" if place == len(bins) - 1 else ")"
            shown = f"{operator or ''}[{made.low:.6g}, {made.high:.6g}{closing}" + (f" {unit!s}" if unit else "")
            bounds = {"operator": operator, "bin_low": made.low, "bin_high": made.high, "quantiles": made.quantiles.tolist()}
            rows.append(
                {"token": f"{code} {shown}", "kind": int(Kind.VALUE), "code": code, "unit": unit, "origin": origin, "subjects": made.subjects}
                | bounds
            )
    return rows


def _lab_row(code: str, unit: str | None, operator: str | None, bins: Sequence[Bin]) -> Row:
    shown = f"{code} {operator or ''}[..]" + (f" {unit}" if unit else "")
    bounds = {"bin_low": bins[0].low, "bin_high": bins[-1].high, "bin_edges": [*(one.low for one in bins), bins[-1].high]}
    inside = {"bin_quantiles": [one.quantiles.tolist() for one in bins]}
    return {"token": shown, "kind": int(Kind.LAB), "code": code, "unit": unit, "operator": operator} | bounds | inside


def shared_bins(rows: Iterable[Row]) -> list[Row]:
    """The bins that the labs among these rows need: as many as the one with the most has."""
    return bin_rows(max((len(row["bin_quantiles"]) for row in rows if row["kind"] == Kind.LAB), default=0))


def event_rows(counts: Counts) -> list[Row]:
    """Tokens of visit types, discharge places, genders, races, codes, values and categories."""
    config = counts.config
    values = counts.numbers.by_code()
    kept = counts.categories.filter(pl.col("subjects") >= config.min_subjects).sort("subjects", "text_value", descending=[True, False])
    categories = {key[0]: part.head(config.max_categories) for key, part in kept.group_by("code", maintain_order=True)}
    lengths = counts.lengths.medians(config.min_subjects)
    rows: list[Row] = []
    for code, origin, subjects in _origins(counts).iter_rows():
        kind = _kind_of(code)
        if code == s.DEATH:
            continue
        token = code.replace("/", ":", 1) if kind in (Kind.GENDER, Kind.RACE) else code
        rows.append({"token": token, "kind": int(kind), "code": code, "origin": origin, "subjects": subjects, "length_days": lengths.get(code)})
        if kind != Kind.CODE:
            continue
        if code in values:
            rows += _value_rows(code, origin, values[code], config)
        for text, having in categories[code].select("text_value", "subjects").iter_rows() if code in categories else ():
            more = {"text_value": text, "origin": origin, "subjects": having}
            rows.append({"token": f"{code} = {text}", "kind": int(Kind.CATEGORY), "code": code} | more)
    return rows


def _optional_rows(counts: Counts) -> list[Row]:
    """Intensive care under its most common code, where enough patients have it; lengths of drugs, where they are asked for."""
    rows: list[Row] = []
    if counts.icu_subjects >= counts.config.min_subjects:
        common = counts.icu.filter(pl.col("subjects") >= counts.config.min_subjects).sort("subjects", "code", descending=[True, False])
        rows += icu_rows(common["code"][0] if common.height else f"{s.ICU_PREFIX}icu", counts.icu_subjects)
    return rows + (length_rows() if counts.config.drug_lengths else [])


def _unknown_rows(rows: list[Row]) -> list[Row]:
    """gender:0 and race:0 where the data did not bring them."""
    there = {row["token"] for row in rows}
    made: list[Row] = [
        {"token": f"{name}:0", "kind": int(kind), "code": f"{name}/0", "origin": "person"}
        for name, kind in (("gender", Kind.GENDER), ("race", Kind.RACE))
        if f"{name}:0" not in there
    ]
    return made


def unique_tokens(rows: list[Row]) -> list[Row]:
    """Tell tokens apart that read the same (a code spelled like a structural token, bounds equal to six digits)."""
    seen: set[str] = set()
    for row in rows:
        token, number = row["token"], 1
        while row["token"] in seen:
            number += 1
            row["token"] = f"{token} #{number}"
        seen.add(row["token"])
    return rows


def year_range(counts: Counts, calendar: str) -> range:
    """Years from the first to the last in which at least `min_subjects` patients have events; none on a shifted calendar."""
    years = counts.years.filter(pl.col("subjects") >= counts.config.min_subjects)["year"]
    if calendar != "true" or years.is_empty():
        return range(0)
    return range(int(np.asarray(years.min())), int(np.asarray(years.max())) + 1)


def _shards(events: EventDataset | pl.DataFrame, split: str | None) -> Iterable[pl.DataFrame]:
    if isinstance(events, pl.DataFrame):
        return [events]
    return (frame for _, frame in events.iter_shards(split))


def count_events(events: EventDataset | pl.DataFrame, split: str | None, config: TimelineConfig, concept_sets: ConceptSets | None = None) -> Counts:
    """Everything a vocabulary is made of, counted over one split of a data set, or over a whole EventTable."""
    counts = Counts(config)
    aliases = rolled_up(codes_of(events), config.roll_up, concept_sets or {})
    for frame in _shards(events, split):
        counts.add(aliases.apply(frame))
    return counts


def _ancestor_rows(events: EventDataset | pl.DataFrame, split: str | None, counts: Counts, rows: list[Row], concept_sets: ConceptSets) -> list[Row]:
    """Tokens of ancestors that rare codes of enough patients can be written as. Reads the events once more, for the rare codes alone."""
    known = {row["code"]: int(row["subjects"]) for row in rows if row["kind"] == Kind.CODE}
    outside = counts.codes.filter(~pl.col("code").is_in(list(known)) & (pl.col("code") != s.DEATH))
    outside = outside.filter(~pl.col("code").str.contains(r"^(gender|race|Visit|discharge)/"))
    codes = codes_of(events)
    rolled = rolled_up(codes, counts.config.roll_up, concept_sets)
    wanted = pl.col("code").is_in(outside["code"].unique().to_list())
    rare = pl.concat([rolled.apply(frame).filter(wanted).select("subject_id", "code").unique() for frame in _shards(events, split)])
    added = common_ancestors(rare, known, codes, concept_sets, counts.config.min_subjects)
    origins = dict(outside.sort("subjects").select(pl.col("code").str.extract(r"^([^/]*/)"), "origin").iter_rows())  # the most common one's
    return [
        {"token": code, "kind": int(Kind.CODE), "code": code, "origin": origins.get(f"{code.split('/')[0]}/"), "subjects": subjects}
        for code, subjects in sorted(added.items(), key=lambda one: (-one[1], one[0]))
    ]


def codes_of(events: EventDataset | pl.DataFrame) -> pl.DataFrame:
    """The data set's ontology; none for a bare table."""
    return events.codes if isinstance(events, EventDataset) else pl.DataFrame(schema={"code": pl.String, "parent_codes": pl.List(pl.String)})


def fit_vocabulary(
    events: EventDataset | pl.DataFrame,
    *,
    split: str | None = "train",
    config: TimelineConfig | None = None,
    calendar: str | None = None,
    concept_sets: ConceptSets | None = None,
) -> Vocabulary:
    """Fit a vocabulary on one split.

    Args:
        events: an event data set, of which only `split` is read; or an EventTable, all of which counts as training data.
        split: name of the training split; None reads every shard.
        calendar: `true` or `shifted`; by default what the data set says (`true` for a bare table).
        concept_sets: whose boundaries roll-up and back-off keep; needed with either, and {} says that there are none.

    Raises:
        InputError: no code is left, or there is no such split.
        ConfigError: codes are to be rolled up or backed off and nobody says across which boundaries not.
    """
    config = config or TimelineConfig()
    if (config.roll_up or config.back_off) and concept_sets is None:
        raise ConfigError("roll_up and back_off need concept_sets, whose boundaries they must not cross; give the task library's, or {} for none")
    calendar = calendar or (events.calendar if isinstance(events, EventDataset) else "true")
    counts = count_events(events, split, config, concept_sets)
    rows = event_rows(counts)
    if config.back_off:
        rows += _ancestor_rows(events, split, counts, rows, concept_sets or {})
    if not any(row["kind"] == Kind.CODE for row in rows):
        most = counts.codes.filter(~pl.col("code").str.contains(r"^(gender|race|Visit|discharge)/"))["subjects"].max()
        raise InputError(
            f"no code is left for the vocabulary: {counts.subjects:,} training patients, the most common code has {most or 0!s}, "
            f"min_subjects is {config.min_subjects}; lower min_subjects or add patients"
        )
    structural = structural_rows(year_range(counts, calendar), config.long_gap) + _optional_rows(counts) + shared_bins(rows)
    classes = {row["token"] for row in structural}
    seen = {row["token"]: row["subjects"] for row in rows if row["kind"] == Kind.VISIT_TYPE and row["token"] in classes}
    for row in structural:  # a data set whose visit types are the classes themselves
        if row["token"] in seen:
            row["subjects"] = seen[row["token"]]
    rows = [row for row in rows if not (row["kind"] == Kind.VISIT_TYPE and row["token"] in classes)]
    names = events.names() if isinstance(events, EventDataset) else {}
    everything = unique_tokens([*structural, *_unknown_rows(rows), *rows])
    for row in everything:
        if row.get("code") in names:
            row["name"] = names[row["code"]]
    settings: dict[str, Any] = to_dict(config) | {"calendar": calendar, "split": split, "train_subjects": counts.subjects}
    settings["fixed_edges"] = {code: list(edges) for code, edges in config.fixed_edges.items()}
    if config.roll_up or config.back_off:
        kept = [row["code"] for row in everything if row["kind"] == Kind.CODE]
        settings["ontology"] = ontology_facts(kept, codes_of(events), concept_sets or {})
    return Vocabulary.from_rows(everything, settings)

"""Fitting a vocabulary from events: one pass over the training shards, memory bounded by the codes, not by the events.

Counts are of patients, never of rows. As one subject lives in one shard, counts of shards add up. Numbers are kept per (code, unit)
up to `max_values` rows; beyond that the patients whose hash falls in a half, a quarter, ... stand for all, which does not depend on
the order of the shards. Codes, units, categories, bins, genders, races and years of fewer than `min_subjects` patients leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.config import to_dict
from cehrxgpt.errors import ConfigError, InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.timeline.back_off import ConceptSets, common_ancestors, ontology_facts, rolled_up
from cehrxgpt.timeline.bins import value_bins
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.structure import Row, structural_rows
from cehrxgpt.timeline.vocabulary import Vocabulary

LONG_GAPS = ("exact", "lt")
SKIPPED = (s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END)  # never tokens of their own


@dataclass(frozen=True, kw_only=True)
class TimelineConfig:
    """How a vocabulary is fitted.

    Attributes:
        min_subjects: training patients a code, unit, category or bin must have to be kept (and stored).
        value_bins: quantile bins per (code, unit); heaped values and fixed edges may add a few. 0 writes no values.
        max_categories: most frequent categorical results per code that get a token. 0 writes none.
        long_gap: `exact` writes gaps from 1,080 days as years and days, `lt` as one token that counts 1,080 days.
        fixed_edges: code -> values that must be edges of its bins.
        max_values: numbers kept per (code, unit) while fitting.
        roll_up: codes whose descendants are written as them; see `back_off`.
        back_off: write a code outside the vocabulary as its nearest ancestor in it.
    """

    min_subjects: int = 11
    value_bins: int = 10
    max_categories: int = 24
    long_gap: str = "exact"
    fixed_edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    max_values: int = 200_000
    roll_up: tuple[str, ...] = ()
    back_off: bool = False

    def __post_init__(self) -> None:
        if self.min_subjects < 1:
            raise ConfigError(f"min_subjects: {self.min_subjects} is out of range; expected 1 or more (11 is the habit)")
        if not 0 <= self.value_bins <= 100:
            raise ConfigError(f"value_bins: {self.value_bins} is out of range; expected 0 to 100")
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
        values = {"code": pl.String, "unit": pl.String, "subject_id": pl.Int64, "numeric_value": pl.Float32, "_hash": pl.UInt64}
        self.values = pl.DataFrame(schema=values)
        self.levels = pl.DataFrame(schema={"code": pl.String, "unit": pl.String, "_level": pl.UInt8})

    def add(self, events: pl.DataFrame) -> None:
        """Count one shard (whole subjects)."""
        events = events.filter(~pl.col("code").is_in(SKIPPED) & ~pl.col("code").str.starts_with(s.ETHNICITY_PREFIX))
        self.subjects += events["subject_id"].n_unique()
        count = pl.col("subject_id").n_unique().alias("subjects")
        codes = events.group_by("code", "origin").agg(count)
        self.codes = pl.concat([self.codes, codes]).group_by("code", "origin").agg(pl.col("subjects").sum())
        timed = events.filter(pl.col("time").is_not_null())
        years = timed.group_by(pl.col("time").dt.year().alias("year")).agg(count)
        self.years = pl.concat([self.years, years]).group_by("year").agg(pl.col("subjects").sum())
        if self.config.max_categories:
            texts = timed.filter(is_category(pl.col("text_value"))).group_by("code", "text_value").agg(count)
            self.categories = pl.concat([self.categories, texts]).group_by("code", "text_value").agg(pl.col("subjects").sum())
        if self.config.value_bins:
            numbers = timed.filter(pl.col("numeric_value").is_finite()).select("code", "unit", "subject_id", "numeric_value")
            self._keep(numbers.with_columns(pl.col("subject_id").hash(seed=17).alias("_hash")))

    def _keep(self, numbers: pl.DataFrame) -> None:
        """Add numbers; where a (code, unit) has too many, halve the patients that stand for it until it has not."""
        keys = ["code", "unit"]
        values = pl.concat([self.values, numbers])
        while True:
            values = values.join(self.levels, on=keys, how="left", nulls_equal=True).with_columns(pl.col("_level").fill_null(0))
            values = values.filter(pl.col("_hash") & ((pl.lit(1, pl.UInt64) * 2 ** pl.col("_level")).cast(pl.UInt64) - 1) == 0)
            sizes = values.group_by(*keys).agg(pl.len().alias("n"), pl.col("_level").first(), pl.col("subject_id").n_unique().alias("m"))
            crowded = sizes.filter((pl.col("n") > self.config.max_values) & (pl.col("m") > 1) & (pl.col("_level") < 40))
            values = values.drop("_level")
            if crowded.is_empty():
                self.values = values
                return
            raised = crowded.select(*keys, (pl.col("_level") + 1).cast(pl.UInt8).alias("_level"))
            others = self.levels.join(raised, on=keys, how="anti", nulls_equal=True)
            self.levels = pl.concat([others, raised])


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


def _value_rows(code: str, origin: str | None, groups: pl.DataFrame, config: TimelineConfig) -> list[Row]:
    """Value tokens of one code: one run of bins per unit."""
    rows: list[Row] = []
    for (unit,), part in groups.group_by("unit", maintain_order=True):
        bins = value_bins(
            part["numeric_value"].to_numpy(),
            part["subject_id"].to_numpy(),
            bins=config.value_bins,
            min_subjects=config.min_subjects,
            fixed_edges=config.fixed_edges.get(code, ()),
        )
        for place, made in enumerate(bins):
            closing = "]" if place == len(bins) - 1 else ")"
            shown = f"[{made.low:.6g}, {made.high:.6g}{closing}" + (f" {unit!s}" if unit else "")
            bounds = {"bin_low": made.low, "bin_high": made.high, "quantiles": made.quantiles.tolist()}
            rows.append(
                {"token": f"{code} {shown}", "kind": int(Kind.VALUE), "code": code, "unit": unit, "origin": origin, "subjects": made.subjects}
                | bounds
            )
    return rows


def event_rows(counts: Counts) -> list[Row]:
    """Tokens of visit types, discharge places, genders, races, codes, values and categories."""
    config = counts.config
    values = {key[0]: part for key, part in counts.values.sort("code", "unit", "numeric_value", "subject_id").group_by("code")}
    kept = counts.categories.filter(pl.col("subjects") >= config.min_subjects).sort("subjects", "text_value", descending=[True, False])
    categories = {key[0]: part.head(config.max_categories) for key, part in kept.group_by("code", maintain_order=True)}
    rows: list[Row] = []
    for code, origin, subjects in _origins(counts).iter_rows():
        kind = _kind_of(code)
        if code == s.DEATH:
            continue
        token = code.replace("/", ":", 1) if kind in (Kind.GENDER, Kind.RACE) else code
        rows.append({"token": token, "kind": int(kind), "code": code, "origin": origin, "subjects": subjects})
        if kind != Kind.CODE:
            continue
        if code in values:
            rows += _value_rows(code, origin, values[code], config)
        for text, having in categories[code].select("text_value", "subjects").iter_rows() if code in categories else ():
            more = {"text_value": text, "origin": origin, "subjects": having}
            rows.append({"token": f"{code} = {text}", "kind": int(Kind.CATEGORY), "code": code} | more)
    return rows


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
    structural = structural_rows(year_range(counts, calendar), config.long_gap)
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

"""Persons, their observation periods and their deaths."""

from __future__ import annotations

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.synthesis import cdm
from cehrxgpt.synthesis.account import Account
from cehrxgpt.synthesis.columns import concept, dated, fill, mapped, source


def end_at_death(events: pl.DataFrame, account: Account) -> pl.DataFrame:
    """Nothing after death: later rows go, ends are clipped. Adds `_death`, null for the living."""
    deaths = events.filter(pl.col("code") == s.DEATH).group_by("subject_id").agg(pl.col("time").min().alias("_death"))
    events = events.join(deaths, on="subject_id", how="left", maintain_order="left")
    late = (pl.col("time") > pl.col("_death")) & (pl.col("code") != s.OBSERVATION_END)
    events = account.drop(events, ~late.fill_null(False), "after_death")
    past = pl.col("end_time") > pl.col("_death")
    account.counts["changed/end_moved_to_death"] += events.filter(past).height
    return events.with_columns(pl.when(past).then(pl.col("_death")).otherwise(pl.col("end_time")).alias("end_time"))


def person(events: pl.DataFrame, account: Account) -> pl.DataFrame:
    """One row per subject: sex, race, ethnicity, birth."""
    people = events.select(pl.col("subject_id").alias("person_id")).unique(maintain_order=True)
    for prefix, stem in ((s.GENDER_PREFIX, "gender"), (s.RACE_PREFIX, "race"), (s.ETHNICITY_PREFIX, "ethnicity")):
        rest = pl.col("code").str.strip_prefix(prefix)
        numbered = concept(rest)
        found = pl.when(numbered != 0).then(numbered).otherwise(mapped(cdm.GENDER_CONCEPT, rest)) if stem == "gender" else numbered
        rows = events.filter(pl.col("time").is_null() & pl.col("code").str.starts_with(prefix))
        rows = rows.select(pl.col("subject_id").alias("person_id"), "code", found.alias("_concept"), source(rest, rest).alias("_source"))
        account.note(rows, stem.capitalize())
        first = rows.group_by("person_id", maintain_order=True).first()
        account.counts["dropped/repeated_demographics"] += rows.height - first.height
        renamed = first.select("person_id", pl.col("_concept").alias(f"{stem}_concept_id"), pl.col("_source").alias(f"{stem}_source_value"))
        people = people.join(renamed, on="person_id", how="left", maintain_order="left")
        people = people.with_columns(pl.col(f"{stem}_concept_id").fill_null(0))
    births = events.filter(pl.col("code") == s.BIRTH).group_by("subject_id").agg(pl.col("time").min(), pl.col("time_precision").first())
    account.counts["dropped/repeated_birth"] += events.filter(pl.col("code") == s.BIRTH).height - births.height
    account.counts["changed/persons_without_birth"] += people.height - births.height
    moment = pl.col("time").dt
    births = births.select(
        pl.col("subject_id").alias("person_id"),
        moment.year().alias("year_of_birth"),
        moment.month().alias("month_of_birth"),
        moment.day().alias("day_of_birth"),
        dated("birth")[1],
    )
    people = people.join(births, on="person_id", how="left", maintain_order="left")
    account.counts["events/static"] += events.filter(pl.col("time").is_null()).height
    return fill(people.with_columns(pl.col("person_id").cast(pl.String).alias("person_source_value")), "person")


def observation_period(events: pl.DataFrame, account: Account) -> pl.DataFrame:
    """Periods that cover every dated event of the subject."""
    dated = events.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH))
    # A drug may run on after the end of observation; the last day of a stay must be covered.
    reach = pl.when(pl.col("code").str.starts_with(s.VISIT_PREFIX)).then(pl.max_horizontal("time", "end_time")).otherwise(pl.col("time"))
    days = dated.select(pl.col("subject_id"), "code", pl.col("time").dt.date().alias("day"), reach.dt.date().alias("last"))
    starts = days.filter(pl.col("code") == s.OBSERVATION_START).sort("subject_id", "day")
    ends = days.filter(pl.col("code") == s.OBSERVATION_END).sort("subject_id", "day")
    number = pl.int_range(pl.len()).over("subject_id").alias("_number")
    paired = starts.select("subject_id", pl.col("day").alias("start"), number).join(
        ends.select("subject_id", pl.col("day").alias("end"), number), on=["subject_id", "_number"], how="full", coalesce=True
    )
    account.counts["changed/observation_rows_unpaired"] += paired.filter(pl.col("start").is_null() | pl.col("end").is_null()).height
    spans = days.group_by("subject_id").agg(pl.col("day").min().alias("_first"))
    known = paired.filter(pl.col("start").is_not_null()).select("subject_id", "start", "end")
    bare = spans.join(known, on="subject_id", how="anti").select("subject_id", pl.col("_first").alias("start"), pl.lit(None, pl.Date).alias("end"))
    account.counts["changed/observation_period_from_events"] += bare.height
    periods = pl.concat([known, bare]).join(spans, on="subject_id").sort("subject_id", "start", "end")
    leading = pl.int_range(pl.len()).over("subject_id") == 0
    periods = periods.with_columns(pl.when(leading).then(pl.min_horizontal("start", "_first")).otherwise(pl.col("start")).alias("start"))
    held = days.sort("day").join_asof(
        periods.select("subject_id", pl.col("start").alias("_start")).unique().sort("_start"),
        left_on="day", right_on="_start", by="subject_id", strategy="backward", check_sortedness=False,
    )  # fmt: skip
    held = held.group_by("subject_id", pl.col("_start").alias("start")).agg(pl.col("last").max())
    periods = periods.join(held, on=["subject_id", "start"], how="left")
    widened = pl.max_horizontal("start", "end", "last")
    account.counts["changed/observation_period_widened"] += periods.filter(pl.col("last") > pl.col("end")).height
    periods = periods.select(
        pl.col("subject_id").alias("person_id"),
        pl.col("start").alias("observation_period_start_date"),
        widened.alias("observation_period_end_date"),
        pl.lit(cdm.OBSERVATION_PERIOD_TYPE).alias("period_type_concept_id"),
    ).unique(maintain_order=True)
    return fill(account.keys(periods, "observation_period", "observation_period_id"), "observation_period")

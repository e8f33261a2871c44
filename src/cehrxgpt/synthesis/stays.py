"""Visits, and the visit details inside them: stays in intensive care and moves to wards."""

from __future__ import annotations

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.sources.instants import last_instant
from cehrxgpt.synthesis import cdm
from cehrxgpt.synthesis.account import Account
from cehrxgpt.synthesis.columns import concept, dated, fill, mapped, source

_WARD_PREFIX = "visit_detail/"


def visit_occurrence(events: pl.DataFrame, account: Account) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The visit table, and (subject_id, visit_id) -> (visit_occurrence_id, end)."""
    is_visit, is_discharge = pl.col("code").str.starts_with(s.VISIT_PREFIX), pl.col("code").str.starts_with(s.DISCHARGE_PREFIX)
    rest = pl.col("code").str.strip_prefix(s.VISIT_PREFIX)
    numbered = concept(rest)
    visits = events.filter(is_visit).with_columns(
        pl.when(numbered != 0).then(numbered).otherwise(mapped(cdm.VISIT_CONCEPT, rest)).alias("_concept"), source(rest, rest).alias("_source")
    )
    account.note(visits, "Visit")
    account.counts["concept_zero/visit_occurrence"] += visits.filter(pl.col("_concept") == 0).height
    last = events.filter(pl.col("visit_id").is_not_null()).group_by("subject_id", "visit_id").agg(pl.col("time").max().alias("_last"))
    out = events.filter(is_discharge & pl.col("visit_id").is_not_null())
    account.counts["dropped/discharge_without_visit"] += events.filter(is_discharge & pl.col("visit_id").is_null()).height
    place = pl.col("code").str.strip_prefix(s.DISCHARGE_PREFIX)
    account.note(out.select("code", concept(place).alias("_concept")), "Visit")
    out = out.select("subject_id", "visit_id", concept(place).alias("_to"), source(place, place).alias("_to_source"))
    final = out.group_by("subject_id", "visit_id", maintain_order=True).last()
    account.counts["dropped/repeated_discharge"] += out.height - final.height
    visits = visits.join(last, on=["subject_id", "visit_id"], how="left", maintain_order="left")
    visits = visits.join(final, on=["subject_id", "visit_id"], how="left", maintain_order="left")
    account.counts["changed/open_visit_closed_at_last_event"] += visits["end_time"].null_count()
    visits = visits.with_columns(pl.coalesce("end_time", "_last", "time").alias("end_time"))
    visits = _until_billed(visits, events)
    visits = account.keys(visits, "visit_occurrence", "visit_occurrence_id")
    table = visits.select(
        "visit_occurrence_id",
        pl.col("subject_id").alias("person_id"),
        pl.col("_concept").alias("visit_concept_id"),
        *dated("visit_start"),
        *dated("visit_end", "end_time"),
        pl.lit(cdm.EHR_TYPE).alias("visit_type_concept_id"),
        pl.col("_source").alias("visit_source_value"),
        pl.col("_to").alias("discharged_to_concept_id"),
        pl.col("_to_source").alias("discharged_to_source_value"),
        pl.col("visit_occurrence_id").shift(1).over("subject_id").alias("preceding_visit_occurrence_id"),
    )
    index = visits.filter(pl.col("visit_id").is_not_null()).select(
        "subject_id", "visit_id", "visit_occurrence_id", pl.col("end_time").alias("_visit_end")
    )
    return fill(table, "visit_occurrence"), index.unique(["subject_id", "visit_id"], maintain_order=True)


def _until_billed(visits: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """A visit of one day whose diagnoses are known only on a later one was billed when it ended then: it is written with that end."""
    waits = (pl.col("origin") == "condition_occurrence") & (pl.col("available_time") > last_instant(pl.col("time")))
    key = ["subject_id", "visit_id"]
    billed = events.filter(waits & pl.col("visit_id").is_not_null()).group_by(key).agg(pl.col("available_time").max().alias("_billed"))
    visits = visits.join(billed, on=key, how="left", maintain_order="left")
    of_a_day = pl.col("end_time") == last_instant(pl.col("time"))
    end = pl.when(of_a_day).then(pl.max_horizontal("end_time", "_billed")).otherwise("end_time")
    return visits.with_columns(end.alias("end_time")).drop("_billed")


def visit_detail(events: pl.DataFrame, index: pl.DataFrame, account: Account) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The table of visit details, and the clinical rows that are none.

    The standard wants a visit and an end of every detail: one without a visit stays among the clinical rows, one without an end gets its
    visit's if it is intensive care, else its start.
    """
    icu, ward = pl.col("code").str.starts_with(s.ICU_PREFIX), pl.col("code").str.starts_with(_WARD_PREFIX)
    details = events.filter(icu | ward).join(index, on=["subject_id", "visit_id"], how="left", maintain_order="left")
    account.counts["changed/visit_detail_without_visit"] += details["visit_occurrence_id"].null_count()
    details = details.filter(pl.col("visit_occurrence_id").is_not_null())
    others = pl.concat([events.filter(~(icu | ward)), events.filter(icu | ward).join(index, on=["subject_id", "visit_id"], how="anti")])
    rest = pl.col("code").str.strip_prefix(s.ICU_PREFIX).str.strip_prefix(_WARD_PREFIX)
    numbered = concept(rest)
    details = details.with_columns(
        pl.when(numbered != 0).then(numbered).otherwise(mapped(cdm.VISIT_DETAIL_CONCEPT, rest)).alias("_concept"),
        source(rest, rest).alias("_source"),
    )
    account.note(details, "Visit")
    account.counts["concept_zero/visit_detail"] += details.filter(pl.col("_concept") == 0).height
    account.counts["changed/visit_detail_without_end"] += details["end_time"].null_count()
    table = account.keys(details, "visit_detail", "visit_detail_id").with_columns(
        pl.coalesce("end_time", pl.when(icu).then(pl.max_horizontal("time", "_visit_end")), "time").alias("end_time")
    )
    table = table.select(
        "visit_detail_id",
        pl.col("subject_id").alias("person_id"),
        pl.col("_concept").alias("visit_detail_concept_id"),
        *dated("visit_detail_start"),
        *dated("visit_detail_end", "end_time"),
        pl.lit(cdm.EHR_TYPE).alias("visit_detail_type_concept_id"),
        pl.col("_source").alias("visit_detail_source_value"),
        "visit_occurrence_id",
    )
    return fill(table, "visit_detail"), others

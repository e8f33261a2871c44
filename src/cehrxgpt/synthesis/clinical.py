"""The clinical tables: conditions, drugs, procedures, devices, measurements, observations."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from cehrxgpt.synthesis import cdm
from cehrxgpt.synthesis.account import Account
from cehrxgpt.synthesis.columns import concept, dated, fill, source

_ORIGINS = [table.name for table in cdm.CLINICAL]


def clinical(events: pl.DataFrame, index: pl.DataFrame, drug_days: Mapping[str, int], account: Account) -> dict[str, pl.DataFrame]:
    """The clinical tables; `events` are the dated clinical rows with `_death`, `drug_days` the usual length of each drug."""
    prefix = pl.col("code").str.split_exact("/", 1).struct.field("field_0")
    by_prefix = {table.prefix: table.name for table in cdm.CLINICAL}
    events = events.with_columns(
        pl.when(pl.col("origin").is_in(_ORIGINS)).then(pl.col("origin"))
        .otherwise(prefix.replace_strict(by_prefix, default=None, return_dtype=pl.String)).alias("_table")
    )  # fmt: skip
    account.counts["changed/unmapped"] += events["_table"].null_count()
    events = events.with_columns(pl.col("_table").fill_null(cdm.FALLBACK_TABLE))
    events = events.join(index, on=["subject_id", "visit_id"], how="left", maintain_order="left")
    tables = {}
    for spec in cdm.CLINICAL:
        rows = events.filter(pl.col("_table") == spec.name)
        if rows.height:
            tables[spec.name] = _clinical_table(_ended(rows, spec, drug_days, account), spec, account)
    return tables


def _ended(rows: pl.DataFrame, spec: cdm.ClinicalTable, drug_days: Mapping[str, int], account: Account) -> pl.DataFrame:
    """`_end`: the row's own; the standard wants one of every drug, so that those without get their usual length, at most to death."""
    if spec.name != "drug_exposure":
        return rows.with_columns(pl.col("end_time").alias("_end"))
    usual = pl.DataFrame({"code": list(drug_days), "_days": list(drug_days.values())}, schema={"code": pl.String, "_days": pl.Int64})
    rows = rows.join(usual, on="code", how="left", maintain_order="left")
    endless, known = pl.col("end_time").is_null(), pl.col("_days").is_not_null()
    account.counts["changed/drug_end_of_usual_length"] += rows.filter(endless & known).height
    account.counts["changed/drug_end_on_its_first_day"] += rows.filter(endless & ~known).height
    last = pl.col("time").dt.truncate("1d") + pl.duration(days="_days") - pl.duration(microseconds=1)
    last = pl.when(known).then(pl.max_horizontal("time", pl.min_horizontal(last, "_death")))
    return rows.with_columns(pl.coalesce("end_time", last, "time").alias("_end"))


def _clinical_table(rows: pl.DataFrame, spec: cdm.ClinicalTable, account: Account) -> pl.DataFrame:
    named = pl.col("code").str.starts_with(f"{spec.prefix}/")
    rest = pl.when(named).then(pl.col("code").str.strip_prefix(f"{spec.prefix}/")).otherwise(pl.lit(""))
    rows = rows.with_columns(concept(rest).alias("_concept"), source(pl.col("code"), rest).alias("_source"))
    account.note(rows, spec.domain)
    account.counts[f"concept_zero/{spec.name}"] += rows.filter(pl.col("_concept") == 0).height
    columns = [
        pl.col("subject_id").alias("person_id"),
        pl.col("_concept").alias(f"{spec.prefix}_concept_id"),
        *dated(spec.start),
        _type_concept(spec).alias(f"{spec.prefix}_type_concept_id"),
        "visit_occurrence_id",
        pl.col("_source").alias(f"{spec.prefix}_source_value"),
    ]
    if spec.end is not None:
        columns += dated(spec.end, "_end")
    if spec.name == "drug_exposure":
        columns.append(pl.col("end_time").dt.date().alias("verbatim_end_date"))
    if spec.has_number:
        columns += _result_columns(spec)
    else:
        account.counts["changed/result_without_column"] += rows.filter(
            pl.col("numeric_value").is_not_null() | pl.col("text_value").is_not_null()
        ).height
    if not spec.has_operator:
        account.counts["changed/sign_without_column"] += rows.filter(pl.col("operator").is_not_null()).height
    return fill(account.keys(rows.select(columns), spec.name, spec.key), spec.name)


def _type_concept(spec: cdm.ClinicalTable) -> pl.Expr:
    """Where the record came from. A condition known only at its visit's end is a billing diagnosis, and is written as one."""
    if spec.name != "condition_occurrence":
        return pl.lit(cdm.EHR_TYPE)
    end_of_day = pl.col("time").dt.truncate("1d") + pl.duration(days=1, microseconds=-1)
    known = pl.when(pl.col("time_precision").fill_null("second") == "day").then(end_of_day).otherwise(pl.col("time"))
    billed = (pl.col("available_time") > known) & (pl.col("available_time") == pl.col("_visit_end"))
    return pl.when(billed.fill_null(False)).then(cdm.BILLING_TYPE).otherwise(cdm.EHR_TYPE)


def _result_columns(spec: cdm.ClinicalTable) -> list[pl.Expr]:
    """Number, unit and category. The unit is the one that the event carries: it belongs to its own (concept, unit) pair."""
    is_concept = pl.col("text_value").str.contains(r"^-?\d{1,18}$").fill_null(False)
    unit_is_concept = pl.col("unit").str.contains(r"^-?\d{1,18}$").fill_null(False)
    text = pl.when(~is_concept).then(pl.col("text_value"))
    columns = [
        pl.col("numeric_value").cast(pl.Float64).alias("value_as_number"),
        pl.when(is_concept).then(pl.col("text_value")).cast(pl.Int64).alias("value_as_concept_id"),
        pl.when(unit_is_concept).then(pl.col("unit")).otherwise(pl.when(pl.col("unit").is_not_null()).then(pl.lit("0"))).cast(pl.Int64)
        .alias("unit_concept_id"),
        pl.when(~unit_is_concept).then(pl.col("unit")).alias("unit_source_value"),
        text.alias("value_source_value"),
    ]  # fmt: skip
    if spec.has_operator:
        columns.append(pl.col("operator").replace_strict(cdm.OPERATOR_CONCEPT, default=None, return_dtype=pl.Int64).alias("operator_concept_id"))
    else:
        columns.append(text.alias("value_as_string"))
    return columns

"""When the three tasks with a truth are asked, read off the tables as a hospital would: the simulator's own, plain version.

The task library's labeler is the authority on who is eligible and when; true risks can be had for whatever rows it gives
(`truth.true_risk`). These rows are what `simulate` itself writes truths for, so that the folder is complete without any other stage.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from cehrxgpt.simulate.declare import Population
from cehrxgpt.simulate.populations.core import concepts


def _first(cdm: Path, table: str, column: str, time: str, wanted: tuple[int, ...], name: str) -> pl.LazyFrame:
    rows = pl.scan_parquet(cdm / f"{table}.parquet").filter(pl.col(column).is_in(list(wanted)))
    return rows.group_by("person_id").agg(pl.col(time).min().alias(name))


def _condition(cdm: Path, concept: int, name: str) -> pl.LazyFrame:
    return _first(cdm, "condition_occurrence", "condition_concept_id", "condition_start_datetime", (concept,), name)


def index_rows(cdm: Path, task: str) -> pl.DataFrame:
    """`subject_id`, `prediction_time` of one task, sorted.

    t2dm_hf_1y: when the first diabetes diagnosis and the first drug for it are both there, no heart failure yet.
    cad_cabg_1y: the first coronary disease, no graft or catheter intervention yet.
    discharge_home_death_1y: every discharge from a hospital stay to home.
    """
    if task == "t2dm_hf_1y":
        drug = _first(cdm, "drug_exposure", "drug_concept_id", "drug_exposure_start_datetime", concepts.DIABETES_DRUGS, "drug")
        rows = _condition(cdm, concepts.CONDITIONS["diabetes"], "disease").join(drug, on="person_id")
        rows = rows.join(_condition(cdm, concepts.CONDITIONS["heart_failure"], "outcome"), on="person_id", how="left")
        rows = rows.with_columns(at=pl.max_horizontal("disease", "drug")).filter(pl.col("outcome").is_null() | (pl.col("outcome") > pl.col("at")))
    elif task == "cad_cabg_1y":
        operations = tuple(concepts.PROCEDURES.values())
        before = _first(cdm, "procedure_occurrence", "procedure_concept_id", "procedure_datetime", operations, "before")
        rows = _condition(cdm, concepts.CONDITIONS["coronary_disease"], "at").join(before, on="person_id", how="left")
        rows = rows.filter(pl.col("before").is_null() | (pl.col("before") > pl.col("at")))
    else:
        rows = pl.scan_parquet(cdm / "visit_occurrence.parquet").filter(pl.col("discharged_to_concept_id") == concepts.HOME)
        rows = rows.rename({"visit_end_datetime": "at"})
    chosen = rows.select(pl.col("person_id").alias("subject_id"), pl.col("at").cast(pl.Datetime("us")).alias("prediction_time"))
    return chosen.sort("subject_id", "prediction_time").collect()


def task_rows(cdm: Path, people: Population, task: str) -> pl.DataFrame:
    """`subject_id`, `prediction_time` of one task of this population, sorted."""
    found = people.tasks[task].rows
    return index_rows(cdm, task) if found is None else found(cdm)

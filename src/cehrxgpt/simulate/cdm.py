"""Records as OMOP CDM 5.4 tables: all columns of the standard, in its order, nulls where we have nothing to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.simulate import concepts
from cehrxgpt.simulate.population import Population
from cehrxgpt.simulate.records import Records
from cehrxgpt.simulate.state import DAY

N, F, S, D, T = pl.Int64, pl.Float64, pl.String, pl.Date, pl.Datetime("us")  # whole number, number, text, date, instant

COLUMNS: dict[str, dict[str, pl.DataType | type[pl.DataType]]] = {
    "person": {
        "person_id": N, "gender_concept_id": N, "year_of_birth": N, "month_of_birth": N, "day_of_birth": N, "birth_datetime": T, "race_concept_id": N,
        "ethnicity_concept_id": N, "location_id": N, "provider_id": N, "care_site_id": N, "person_source_value": S, "gender_source_value": S,
        "gender_source_concept_id": N, "race_source_value": S, "race_source_concept_id": N, "ethnicity_source_value": S,
        "ethnicity_source_concept_id": N,
    },
    "observation_period": {
        "observation_period_id": N, "person_id": N, "observation_period_start_date": D, "observation_period_end_date": D, "period_type_concept_id": N,
    },
    "visit_occurrence": {
        "visit_occurrence_id": N, "person_id": N, "visit_concept_id": N, "visit_start_date": D, "visit_start_datetime": T, "visit_end_date": D,
        "visit_end_datetime": T, "visit_type_concept_id": N, "provider_id": N, "care_site_id": N, "visit_source_value": S,
        "visit_source_concept_id": N, "admitted_from_concept_id": N, "admitted_from_source_value": S, "discharged_to_concept_id": N,
        "discharged_to_source_value": S, "preceding_visit_occurrence_id": N,
    },
    "condition_occurrence": {
        "condition_occurrence_id": N, "person_id": N, "condition_concept_id": N, "condition_start_date": D, "condition_start_datetime": T,
        "condition_end_date": D, "condition_end_datetime": T, "condition_type_concept_id": N, "condition_status_concept_id": N, "stop_reason": S,
        "provider_id": N, "visit_occurrence_id": N, "visit_detail_id": N, "condition_source_value": S, "condition_source_concept_id": N,
        "condition_status_source_value": S,
    },
    "drug_exposure": {
        "drug_exposure_id": N, "person_id": N, "drug_concept_id": N, "drug_exposure_start_date": D, "drug_exposure_start_datetime": T,
        "drug_exposure_end_date": D, "drug_exposure_end_datetime": T, "verbatim_end_date": D, "drug_type_concept_id": N, "stop_reason": S,
        "refills": N,
        "quantity": F, "days_supply": N, "sig": S, "route_concept_id": N, "lot_number": S, "provider_id": N, "visit_occurrence_id": N,
        "visit_detail_id": N, "drug_source_value": S, "drug_source_concept_id": N, "route_source_value": S, "dose_unit_source_value": S,
    },
    "procedure_occurrence": {
        "procedure_occurrence_id": N, "person_id": N, "procedure_concept_id": N, "procedure_date": D, "procedure_datetime": T,
        "procedure_end_date": D,
        "procedure_end_datetime": T, "procedure_type_concept_id": N, "modifier_concept_id": N, "quantity": N, "provider_id": N,
        "visit_occurrence_id": N, "visit_detail_id": N, "procedure_source_value": S, "procedure_source_concept_id": N, "modifier_source_value": S,
    },
    "measurement": {
        "measurement_id": N, "person_id": N, "measurement_concept_id": N, "measurement_date": D, "measurement_datetime": T, "measurement_time": S,
        "measurement_type_concept_id": N, "operator_concept_id": N, "value_as_number": F, "value_as_concept_id": N, "unit_concept_id": N,
        "range_low": F, "range_high": F, "provider_id": N, "visit_occurrence_id": N, "visit_detail_id": N, "measurement_source_value": S,
        "measurement_source_concept_id": N, "unit_source_value": S, "unit_source_concept_id": N, "value_source_value": S, "measurement_event_id": N,
        "meas_event_field_concept_id": N,
    },
    "death": {
        "person_id": N, "death_date": D, "death_datetime": T, "death_type_concept_id": N, "cause_concept_id": N, "cause_source_value": S,
        "cause_source_concept_id": N,
    },
    "concept": {
        "concept_id": N, "concept_name": S, "domain_id": S, "vocabulary_id": S, "concept_class_id": S, "standard_concept": S, "concept_code": S,
        "valid_start_date": D, "valid_end_date": D, "invalid_reason": S,
    },
    "concept_ancestor": {
        "ancestor_concept_id": N, "descendant_concept_id": N, "min_levels_of_separation": N, "max_levels_of_separation": N,
    },
    "vocabulary": {
        "vocabulary_id": S, "vocabulary_name": S, "vocabulary_reference": S, "vocabulary_version": S, "vocabulary_concept_id": N,
    },
    "cdm_source": {
        "cdm_source_name": S, "cdm_source_abbreviation": S, "cdm_holder": S, "source_description": S, "source_documentation_reference": S,
        "cdm_etl_reference": S, "source_release_date": D, "cdm_release_date": D, "cdm_version": S, "cdm_version_concept_id": N,
        "vocabulary_version": S,
    },
}  # fmt: skip
"""Tables and columns of OMOP CDM 5.4, as far as the simulator writes them."""

RELEASED = np.datetime64("2024-01-01")


def _datetime(minutes: npt.NDArray[np.float64]) -> npt.NDArray[np.datetime64]:
    return minutes.astype(np.int64).astype("datetime64[m]").astype("datetime64[us]")


def _frame(table: str, values: dict[str, Any]) -> pl.DataFrame:
    """A frame with all columns of the table; those not given are null."""
    frame = pl.DataFrame({name: value for name, value in values.items() if not isinstance(value, pl.Expr)})
    constants = [value.alias(name) for name, value in values.items() if isinstance(value, pl.Expr)]
    frame = frame.with_columns(constants)
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype, strict=True).alias(name) for name, dtype in COLUMNS[table].items()
    )


def _dated(prefix: str, minutes: npt.NDArray[np.float64], *, of: str = "_") -> dict[str, npt.NDArray[Any]]:
    instant = _datetime(minutes)
    return {f"{prefix}{of}date": instant.astype("datetime64[D]"), f"{prefix}{of}datetime": instant}


def write_cdm(population: Population, records: Records, out: Path) -> dict[str, int]:
    """Write every table as `<table>.parquet` into the folder `out`; returns rows by table."""
    frames = {
        **_people(population, records), **_events(records), **vocabulary_frames(),
    }  # fmt: skip
    for name, frame in frames.items():
        frame.write_parquet(out / f"{name}.parquet", compression="zstd")
    return {name: frame.height for name, frame in frames.items()}


def _people(population: Population, records: Records) -> dict[str, pl.DataFrame]:
    first = np.flatnonzero(np.r_[True, np.diff(population.states.row) != 0])
    s = population.states
    birth = _datetime(s.birth[first]).astype("datetime64[D]")
    months = birth.astype("datetime64[M]")
    male, race = s.male[first], s.race[first]
    hispanic = (s.key[first] % np.uint64(100)) < 12
    person = _frame("person", {
        "person_id": population.subject_id,
        "gender_concept_id": np.where(male, concepts.MALE, concepts.FEMALE),
        "year_of_birth": 1970 + birth.astype("datetime64[Y]").astype(np.int64),
        "month_of_birth": months.astype(np.int64) % 12 + 1,
        "day_of_birth": (birth - months).astype(np.int64) + 1,
        "birth_datetime": birth.astype("datetime64[us]"),
        "race_concept_id": np.array(concepts.RACES)[race],
        "ethnicity_concept_id": np.where(hispanic, concepts.ETHNICITIES[1], concepts.ETHNICITIES[0]),
        "person_source_value": pl.Series([f"P{number}" for number in population.subject_id]),
        "gender_source_value": np.where(male, "M", "F"),
    })  # fmt: skip
    # The period ends as planned, at death, or when a stay that runs past the plan ends.
    end = np.floor(population.end / DAY)
    last = np.zeros(len(end))
    np.maximum.at(last, records.visits["subject_id"] - 1, np.floor(records.visits["end"] / DAY))
    end = np.maximum(end, last)
    died = records.deaths["subject_id"] - 1
    end[died] = np.floor(records.deaths["time"] / DAY)
    period = _frame("observation_period", {
        "observation_period_id": population.subject_id,
        "person_id": population.subject_id,
        "observation_period_start_date": _datetime(population.start).astype("datetime64[D]"),
        "observation_period_end_date": end.astype(np.int64).astype("datetime64[D]"),
        "period_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER),
    })  # fmt: skip
    instant = _datetime(records.deaths["time"])
    death = _frame("death", {
        "person_id": records.deaths["subject_id"],
        "death_date": instant.astype("datetime64[D]"),
        # outside the hospital only the day is known
        "death_datetime": np.where(records.deaths["in_stay"], instant, np.datetime64("NaT")),
        "death_type_concept_id": pl.lit(concepts.TYPE_EHR),
    })  # fmt: skip
    return {"person": person, "observation_period": period, "death": death}


def _ordered(values: dict[str, npt.NDArray[Any]]) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int64]]:
    order = np.lexsort((values["concept"], values["time"], values["subject_id"]))
    return {name: value[order] for name, value in values.items()}, np.arange(1, len(order) + 1, dtype=np.int64)


def _events(records: Records) -> dict[str, pl.DataFrame]:
    frames: dict[str, pl.DataFrame] = {}
    visits = records.visits
    place = pl.Series(visits["place"])
    frames["visit_occurrence"] = _frame("visit_occurrence", {
        "visit_occurrence_id": visits["visit_id"], "person_id": visits["subject_id"], "visit_concept_id": visits["concept"],
        **_dated("visit_start", visits["start"]), **_dated("visit_end", visits["end"]), "visit_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER),
        "discharged_to_concept_id": place.replace(0, None),
    })  # fmt: skip
    rows, ids = _ordered(records.tables["condition"].arrays())
    frames["condition_occurrence"] = _frame("condition_occurrence", {
        "condition_occurrence_id": ids, "person_id": rows["subject_id"], "condition_concept_id": rows["concept"],
        **_dated("condition_start", rows["time"]), "condition_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER),
        "visit_occurrence_id": rows["visit_id"],
    })  # fmt: skip
    rows, ids = _ordered(records.tables["procedure"].arrays())
    frames["procedure_occurrence"] = _frame("procedure_occurrence", {
        "procedure_occurrence_id": ids, "person_id": rows["subject_id"], "procedure_concept_id": rows["concept"],
        **_dated("procedure", rows["time"]), "procedure_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER), "visit_occurrence_id": rows["visit_id"],
    })  # fmt: skip
    rows, ids = _ordered(records.tables["drug"].arrays())
    ends = np.floor(rows["end"] / DAY) * DAY
    frames["drug_exposure"] = _frame("drug_exposure", {
        "drug_exposure_id": ids, "person_id": rows["subject_id"], "drug_concept_id": rows["concept"],
        **_dated("drug_exposure_start", rows["time"]), "drug_exposure_end_date": _datetime(ends).astype("datetime64[D]"),
        "drug_type_concept_id": pl.lit(concepts.TYPE_PRESCRIPTION), "days_supply": np.round((ends - np.floor(rows["time"] / DAY) * DAY) / DAY) + 1,
        "visit_occurrence_id": rows["visit_id"],
    })  # fmt: skip
    rows, ids = _ordered(records.tables["measurement"].arrays())
    frames["measurement"] = _frame("measurement", {
        "measurement_id": ids, "person_id": rows["subject_id"], "measurement_concept_id": rows["concept"], **_dated("measurement", rows["time"]),
        "measurement_type_concept_id": pl.lit(concepts.TYPE_LAB), "value_as_number": rows["value"], "unit_concept_id": rows["unit"],
        "visit_occurrence_id": rows["visit_id"],
    })  # fmt: skip
    return frames


def vocabulary_frames() -> dict[str, pl.DataFrame]:
    """The small vocabulary: concept, concept_ancestor, vocabulary, cdm_source."""
    names = sorted(concepts.all_names().items())
    vocabularies = sorted({vocabulary for _, (_, _, vocabulary) in names})
    concept = _frame("concept", {
        "concept_id": [key for key, _ in names], "concept_name": [name for _, (name, _, _) in names], "domain_id": [d for _, (_, d, _) in names],
        "vocabulary_id": [v for _, (_, _, v) in names], "concept_class_id": pl.lit("Simulated subset"), "standard_concept": pl.lit("S"),
        "concept_code": [str(key) for key, _ in names], "valid_start_date": pl.lit(np.datetime64("1970-01-01")),
        "valid_end_date": pl.lit(np.datetime64("2099-12-31")),
    })  # fmt: skip
    rows = sorted([(key, key, 0) for key, _ in names if key] + list(concepts.ANCESTORS))
    ancestor = _frame("concept_ancestor", {
        "ancestor_concept_id": [row[0] for row in rows], "descendant_concept_id": [row[1] for row in rows],
        "min_levels_of_separation": [row[2] for row in rows], "max_levels_of_separation": [row[2] for row in rows],
    })  # fmt: skip
    vocabulary = _frame("vocabulary", {
        "vocabulary_id": vocabularies, "vocabulary_name": [f"A few concepts of {name}, named in plain words" for name in vocabularies],
        "vocabulary_version": pl.lit("simulated"), "vocabulary_concept_id": pl.lit(0),
    })  # fmt: skip
    source = _frame("cdm_source", {
        "cdm_source_name": ["Simulated population with known hazards"], "cdm_source_abbreviation": ["cehrxgpt-simulate"], "cdm_holder": ["nobody"],
        "source_description": ["No real patients; see docs/simulator.md"], "source_release_date": pl.lit(RELEASED),
        "cdm_release_date": pl.lit(RELEASED), "cdm_version": ["5.4"], "cdm_version_concept_id": [756265], "vocabulary_version": ["simulated"],
    })  # fmt: skip
    return {"concept": concept, "concept_ancestor": ancestor, "vocabulary": vocabulary, "cdm_source": source}

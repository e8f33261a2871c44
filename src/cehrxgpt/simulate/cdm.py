"""Records as OMOP CDM 5.4 tables: all columns of the standard, in its order, nulls where we have nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from cehrxgpt.simulate import concepts
from cehrxgpt.simulate.lives import Lives
from cehrxgpt.simulate.state import DAY
from cehrxgpt.simulate.tables import Tables

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
    "observation": {
        "observation_id": N, "person_id": N, "observation_concept_id": N, "observation_date": D, "observation_datetime": T,
        "observation_type_concept_id": N, "value_as_number": F, "value_as_string": S, "value_as_concept_id": N, "qualifier_concept_id": N,
        "unit_concept_id": N, "provider_id": N, "visit_occurrence_id": N, "visit_detail_id": N, "observation_source_value": S,
        "observation_source_concept_id": N, "unit_source_value": S, "qualifier_source_value": S, "value_source_value": S,
        "observation_event_id": N, "obs_event_field_concept_id": N,
    },
    "visit_detail": {
        "visit_detail_id": N, "person_id": N, "visit_detail_concept_id": N, "visit_detail_start_date": D, "visit_detail_start_datetime": T,
        "visit_detail_end_date": D, "visit_detail_end_datetime": T, "visit_detail_type_concept_id": N, "provider_id": N, "care_site_id": N,
        "visit_detail_source_value": S, "visit_detail_source_concept_id": N, "admitted_from_concept_id": N, "admitted_from_source_value": S,
        "discharged_to_source_value": S, "discharged_to_concept_id": N, "preceding_visit_detail_id": N, "parent_visit_detail_id": N,
        "visit_occurrence_id": N,
    },
    "device_exposure": {
        "device_exposure_id": N, "person_id": N, "device_concept_id": N, "device_exposure_start_date": D, "device_exposure_start_datetime": T,
        "device_exposure_end_date": D, "device_exposure_end_datetime": T, "device_type_concept_id": N, "unique_device_id": S, "production_id": S,
        "quantity": N, "provider_id": N, "visit_occurrence_id": N, "visit_detail_id": N, "device_source_value": S, "device_source_concept_id": N,
        "unit_concept_id": N, "unit_source_value": S, "unit_source_concept_id": N,
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


def _datetime(minutes: npt.NDArray[np.float64]) -> npt.NDArray[np.datetime64]:
    return minutes.astype(np.int64).astype("datetime64[m]").astype("datetime64[us]")


def frame(table: str, values: dict[str, Any]) -> pl.DataFrame:
    """A frame with all columns of the table; those not given are null."""
    # Texts that may be missing are Python objects: a column without any would otherwise have a type that nothing can be made of.
    texts = {name: value.tolist() for name, value in values.items() if isinstance(value, np.ndarray) and value.dtype == object}
    given = pl.DataFrame({name: value for name, value in (values | texts).items() if not isinstance(value, pl.Expr)})
    constants = [value.alias(name) for name, value in values.items() if isinstance(value, pl.Expr)]
    given = given.with_columns(constants)
    return given.select(
        (pl.col(name) if name in given.columns else pl.lit(None)).cast(dtype, strict=True).alias(name) for name, dtype in COLUMNS[table].items()
    )


def _dated(prefix: str, minutes: npt.NDArray[np.float64], *, of: str = "_") -> dict[str, npt.NDArray[Any]]:
    instant = _datetime(minutes)
    return {f"{prefix}{of}date": instant.astype("datetime64[D]"), f"{prefix}{of}datetime": instant}


class CdmWriter:
    """Writes `<table>.parquet` into a folder, some people at a time; ids go on from one lot to the next.

    Attributes:
        rows: rows written so far, by table.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: dict[str, int] = {}
        self._open: dict[str, pq.ParquetWriter] = {}

    def add(self, lives: Lives, tables: Tables) -> None:
        """Append the records of these lives."""
        visits = self.rows.get("visit_occurrence", 0)
        for name, rows in {**_people(lives, tables), **_events(tables, visits)}.items():
            self.append(name, rows)

    def append(self, name: str, rows: pl.DataFrame) -> None:
        """Append rows to one table, whose own ids go on from where they were."""
        before = self.rows.get(name, 0)
        key = f"{name}_id"
        if before and key in rows.columns and name not in ("person", "concept"):
            rows = rows.with_columns(pl.col(key) + before)
        table = rows.to_arrow()
        if name not in self._open:
            self._open[name] = pq.ParquetWriter(self.folder / f"{name}.parquet", table.schema, compression="zstd")
        self._open[name].write_table(table)
        self.rows[name] = before + rows.height

    def close(self) -> None:
        """Finish the files."""
        for writer in self._open.values():
            writer.close()


def _people(lives: Lives, tables: Tables) -> dict[str, pl.DataFrame]:
    s = lives.states
    first = np.flatnonzero(np.r_[True, np.diff(s.row) != 0])
    birth = _datetime(s.birth[first]).astype("datetime64[D]")
    months = birth.astype("datetime64[M]")
    male, race = s.male[first], s.race[first]
    hispanic = (s.key[first] % np.uint64(100)) < 12
    person = frame("person", {
        "person_id": lives.subject_id,
        "gender_concept_id": np.where(male, concepts.MALE, concepts.FEMALE),
        "year_of_birth": 1970 + birth.astype("datetime64[Y]").astype(np.int64),
        "month_of_birth": months.astype(np.int64) % 12 + 1,
        "day_of_birth": (birth - months).astype(np.int64) + 1,
        "birth_datetime": birth.astype("datetime64[us]"),
        "race_concept_id": np.array(concepts.RACES)[race],
        "ethnicity_concept_id": np.where(hispanic, concepts.ETHNICITIES[1], concepts.ETHNICITIES[0]),
        "person_source_value": pl.Series([f"P{number}" for number in lives.subject_id]),
        "gender_source_value": np.where(male, "M", "F"),
    })  # fmt: skip
    # The period ends as planned, at death, or when a stay that runs past the plan ends.
    end = np.floor(lives.end / DAY)
    last = np.zeros(len(end))
    before = lives.subject_id[0]
    np.maximum.at(last, tables.visits["subject_id"] - before, np.floor(tables.visits["end"] / DAY))
    end = np.maximum(end, last)
    end[tables.deaths["subject_id"] - before] = np.floor(tables.deaths["time"] / DAY)
    period = frame("observation_period", {
        "observation_period_id": np.arange(1, len(end) + 1),
        "person_id": lives.subject_id,
        "observation_period_start_date": _datetime(lives.start).astype("datetime64[D]"),
        "observation_period_end_date": end.astype(np.int64).astype("datetime64[D]"),
        "period_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER),
    })  # fmt: skip
    instant = _datetime(tables.deaths["time"])
    death = frame("death", {
        "person_id": tables.deaths["subject_id"],
        "death_date": instant.astype("datetime64[D]"),
        # outside the hospital only the day is known
        "death_datetime": np.where(tables.deaths["in_stay"], instant, np.datetime64("NaT")),
        "death_type_concept_id": pl.lit(concepts.TYPE_EHR),
    })  # fmt: skip
    return {"person": person, "observation_period": period, "death": death}


def _events(tables: Tables, visits_before: int) -> dict[str, pl.DataFrame]:
    visits = tables.visits
    frames = {"visit_occurrence": frame("visit_occurrence", {
        "visit_occurrence_id": visits["visit_id"], "person_id": visits["subject_id"], "visit_concept_id": visits["concept"],
        **_dated("visit_start", visits["start"]), **_dated("visit_end", visits["end"]), "visit_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER),
        "discharged_to_concept_id": pl.Series(visits["place"]).replace(0, None),
        **_given(visits, source="visit_source_value", care_site="care_site_id", preceding="preceding_visit_occurrence_id"),
    })}  # fmt: skip
    for kind, table in tables.tables.items():
        rows = table.arrays()
        order = np.lexsort((rows["concept"], rows["time"], rows["subject_id"]))
        rows = {name: value[order] for name, value in rows.items()}
        common = {
            "person_id": rows["subject_id"], f"{kind}_concept_id": rows["concept"], "visit_occurrence_id": rows["visit_id"] + visits_before,
            **_given(rows, source=f"{kind}_source_value", source_concept=f"{kind}_source_concept_id"),
        }  # fmt: skip
        name, own = _KINDS[kind](rows)
        frames[name] = frame(name, {f"{name}_id": np.arange(1, len(order) + 1), **common, **own})
    if tables.details is not None:
        parts = tables.details
        frames["visit_detail"] = frame("visit_detail", {
            "visit_detail_id": np.arange(1, len(parts["subject_id"]) + 1), "person_id": parts["subject_id"],
            "visit_detail_concept_id": parts["concept"], **_dated("visit_detail_start", parts["start"]),
            **_dated("visit_detail_end", parts["end"]), "visit_detail_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER),
            "visit_occurrence_id": parts["visit_id"] + visits_before, **_given(parts, care_site="care_site_id", source="visit_detail_source_value"),
        })  # fmt: skip
    return frames


def _given(values: dict[str, npt.NDArray[Any]], **columns: str) -> dict[str, Any]:
    """Optional columns, under their OMOP names, where they are there."""
    return {omop: values[name] for name, omop in columns.items() if name in values}


def _condition(rows: dict[str, npt.NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    return "condition_occurrence", {**_dated("condition_start", rows["time"]), "condition_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER)}


def _procedure(rows: dict[str, npt.NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    return "procedure_occurrence", {**_dated("procedure", rows["time"]), "procedure_type_concept_id": pl.lit(concepts.TYPE_ENCOUNTER)}


def _drug(rows: dict[str, npt.NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    ends = np.floor(rows["end"] / DAY) * DAY
    return "drug_exposure", {
        **_dated("drug_exposure_start", rows["time"]), "drug_exposure_end_date": _datetime(ends).astype("datetime64[D]"),
        "drug_type_concept_id": pl.lit(concepts.TYPE_PRESCRIPTION), "days_supply": np.round((ends - np.floor(rows["time"] / DAY) * DAY) / DAY) + 1,
    }  # fmt: skip


def _measurement(rows: dict[str, npt.NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    return "measurement", {
        **_dated("measurement", rows["time"]), "measurement_type_concept_id": pl.lit(concepts.TYPE_LAB), **_result(rows),
        "unit_concept_id": _or_null(rows["unit"]), **_given(rows, unit_source="unit_source_value"),
    }  # fmt: skip


def _observation(rows: dict[str, npt.NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    return "observation", {**_dated("observation", rows["time"]), "observation_type_concept_id": pl.lit(concepts.TYPE_EHR), **_result(rows)}


def _result(rows: dict[str, npt.NDArray[Any]]) -> dict[str, pl.Series]:
    """A number, a comparison sign, an answer, where they are there."""
    found = {"value_as_number": pl.Series(rows["value"], dtype=F, nan_to_null=True)}
    names = {"operator": "operator_concept_id", "answer": "value_as_concept_id"}
    return found | {omop: _or_null(rows[name]) for name, omop in names.items() if name in rows}


def _or_null(concept: npt.NDArray[Any]) -> pl.Series:
    """Concepts, 0 for none."""
    return pl.Series(concept).cast(N).replace(0, None)


def _device(rows: dict[str, npt.NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    return "device_exposure", {
        **_dated("device_exposure_start", rows["time"]), **_dated("device_exposure_end", rows["end"]),
        "device_type_concept_id": pl.lit(concepts.TYPE_EHR),
    }  # fmt: skip


_KINDS: dict[str, Callable[[dict[str, npt.NDArray[Any]]], tuple[str, dict[str, Any]]]] = {
    "condition": _condition, "procedure": _procedure, "drug": _drug, "measurement": _measurement, "device": _device,
    "observation": _observation,
}  # fmt: skip

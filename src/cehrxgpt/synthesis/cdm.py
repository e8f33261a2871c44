"""The columns of the OMOP CDM 5.4 tables that `synthesis.omop` writes: names, order and types, as data.

Every column of the standard stands here, also those we never fill (null), so that the Parquet files load into a database made by
the standard's own DDL. Concept ids are 64-bit because sites use custom concepts above two thousand million; `value_as_number` is
double.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

CDM_VERSION = "v5.4"
CDM_VERSION_CONCEPT = 756265
EHR_TYPE, BILLING_TYPE, OBSERVATION_PERIOD_TYPE = 32817, 32821, 32880  # EHR; EHR billing record; standard algorithm
OPERATOR_CONCEPT = {"<": 4171756, "<=": 4171754, "=": 4172703, ">=": 4171755, ">": 4172704}
GENDER_CONCEPT = {"f": 8532, "female": 8532, "m": 8507, "male": 8507}
VISIT_DETAIL_CONCEPT = {"icu": 32037}
VISIT_CONCEPT = {"inpatient": 9201, "outpatient": 9202, "emergency": 9203, "observation": 581385}

_TYPES: dict[str, pl.DataType] = {"i": pl.Int64(), "f": pl.Float64(), "s": pl.String(), "d": pl.Date(), "t": pl.Datetime("us")}


def _columns(text: str) -> dict[str, pl.DataType]:
    """`name:type` words to an ordered schema; the type defaults to a 64-bit integer."""
    pairs = (word.partition(":") for word in text.split())
    return {name: _TYPES[kind or "i"] for name, _, kind in pairs}


TABLES: dict[str, dict[str, pl.DataType]] = {
    "person": _columns(
        "person_id gender_concept_id year_of_birth month_of_birth day_of_birth birth_datetime:t race_concept_id ethnicity_concept_id location_id "
        "provider_id care_site_id person_source_value:s gender_source_value:s gender_source_concept_id race_source_value:s "
        "race_source_concept_id ethnicity_source_value:s ethnicity_source_concept_id"
    ),
    "observation_period": _columns(
        "observation_period_id person_id observation_period_start_date:d observation_period_end_date:d period_type_concept_id"
    ),
    "visit_occurrence": _columns(
        "visit_occurrence_id person_id visit_concept_id visit_start_date:d visit_start_datetime:t visit_end_date:d visit_end_datetime:t "
        "visit_type_concept_id provider_id care_site_id visit_source_value:s visit_source_concept_id admitted_from_concept_id "
        "admitted_from_source_value:s discharged_to_concept_id discharged_to_source_value:s preceding_visit_occurrence_id"
    ),
    "visit_detail": _columns(
        "visit_detail_id person_id visit_detail_concept_id visit_detail_start_date:d visit_detail_start_datetime:t visit_detail_end_date:d "
        "visit_detail_end_datetime:t visit_detail_type_concept_id provider_id care_site_id visit_detail_source_value:s "
        "visit_detail_source_concept_id admitted_from_concept_id admitted_from_source_value:s discharged_to_source_value:s "
        "discharged_to_concept_id preceding_visit_detail_id parent_visit_detail_id visit_occurrence_id"
    ),
    "condition_occurrence": _columns(
        "condition_occurrence_id person_id condition_concept_id condition_start_date:d condition_start_datetime:t condition_end_date:d "
        "condition_end_datetime:t condition_type_concept_id condition_status_concept_id stop_reason:s provider_id visit_occurrence_id "
        "visit_detail_id condition_source_value:s condition_source_concept_id condition_status_source_value:s"
    ),
    "drug_exposure": _columns(
        "drug_exposure_id person_id drug_concept_id drug_exposure_start_date:d drug_exposure_start_datetime:t drug_exposure_end_date:d "
        "drug_exposure_end_datetime:t verbatim_end_date:d drug_type_concept_id stop_reason:s refills quantity:f days_supply sig:s "
        "route_concept_id lot_number:s provider_id visit_occurrence_id visit_detail_id drug_source_value:s drug_source_concept_id "
        "route_source_value:s dose_unit_source_value:s"
    ),
    "procedure_occurrence": _columns(
        "procedure_occurrence_id person_id procedure_concept_id procedure_date:d procedure_datetime:t procedure_end_date:d "
        "procedure_end_datetime:t procedure_type_concept_id modifier_concept_id quantity provider_id visit_occurrence_id visit_detail_id "
        "procedure_source_value:s procedure_source_concept_id modifier_source_value:s"
    ),
    "device_exposure": _columns(
        "device_exposure_id person_id device_concept_id device_exposure_start_date:d device_exposure_start_datetime:t "
        "device_exposure_end_date:d device_exposure_end_datetime:t device_type_concept_id unique_device_id:s production_id:s quantity "
        "provider_id visit_occurrence_id visit_detail_id device_source_value:s device_source_concept_id unit_concept_id "
        "unit_source_value:s unit_source_concept_id"
    ),
    "measurement": _columns(
        "measurement_id person_id measurement_concept_id measurement_date:d measurement_datetime:t measurement_time:s "
        "measurement_type_concept_id operator_concept_id value_as_number:f value_as_concept_id unit_concept_id range_low:f range_high:f "
        "provider_id visit_occurrence_id visit_detail_id measurement_source_value:s measurement_source_concept_id unit_source_value:s "
        "unit_source_concept_id value_source_value:s measurement_event_id meas_event_field_concept_id"
    ),
    "observation": _columns(
        "observation_id person_id observation_concept_id observation_date:d observation_datetime:t observation_type_concept_id "
        "value_as_number:f value_as_string:s value_as_concept_id qualifier_concept_id unit_concept_id provider_id visit_occurrence_id "
        "visit_detail_id observation_source_value:s observation_source_concept_id unit_source_value:s qualifier_source_value:s "
        "value_source_value:s observation_event_id obs_event_field_concept_id"
    ),
    "death": _columns("person_id death_date:d death_datetime:t death_type_concept_id cause_concept_id cause_source_value:s cause_source_concept_id"),
    "concept": _columns(
        "concept_id concept_name:s domain_id:s vocabulary_id:s concept_class_id:s standard_concept:s concept_code:s valid_start_date:d "
        "valid_end_date:d invalid_reason:s"
    ),
    "cdm_source": _columns(
        "cdm_source_name:s cdm_source_abbreviation:s cdm_holder:s source_description:s source_documentation_reference:s "
        "cdm_etl_reference:s source_release_date:d cdm_release_date:d cdm_version:s cdm_version_concept_id vocabulary_version:s"
    ),
}
"""table -> column -> type, in the order of the standard."""


@dataclass(frozen=True)
class ClinicalTable:
    """How the rows of one clinical table are called."""

    name: str
    prefix: str  # of the event code: `<prefix>/<concept_id>`
    start: str  # stem of `<start>_date`, `<start>_datetime`
    end: str | None  # stem of the end's columns
    has_number: bool = False  # value_as_number, unit, text result
    has_operator: bool = False
    domain: str = ""

    @property
    def key(self) -> str:
        """The primary key's column."""
        return f"{self.name}_id"


CLINICAL: tuple[ClinicalTable, ...] = (
    ClinicalTable("condition_occurrence", "condition", "condition_start", "condition_end", domain="Condition"),
    ClinicalTable("drug_exposure", "drug", "drug_exposure_start", "drug_exposure_end", domain="Drug"),
    ClinicalTable("procedure_occurrence", "procedure", "procedure", "procedure_end", domain="Procedure"),
    ClinicalTable("device_exposure", "device", "device_exposure_start", "device_exposure_end", domain="Device"),
    ClinicalTable("measurement", "measurement", "measurement", None, has_number=True, has_operator=True, domain="Measurement"),
    ClinicalTable("observation", "observation", "observation", None, has_number=True, domain="Observation"),
)
FALLBACK_TABLE = "observation"  # where events of unknown origin go

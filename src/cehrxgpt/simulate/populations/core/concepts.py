"""The concepts of the simulated hospital: real OMOP concept ids, names in plain words of our own (vocabularies carry licences)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cehrxgpt.simulate import vocabulary
from cehrxgpt.simulate.concepts import EMERGENCY as EMERGENCY
from cehrxgpt.simulate.concepts import EXPIRED as EXPIRED
from cehrxgpt.simulate.concepts import (
    G_DL,
    KG_M2,
    MG_DL,
    MMHG,
    MMOL_L,
    PER_MINUTE,
    PERCENT,
    PG_ML,
    THOUSAND_UL,
)
from cehrxgpt.simulate.concepts import HOME as HOME
from cehrxgpt.simulate.concepts import HOSPICE as HOSPICE
from cehrxgpt.simulate.concepts import INPATIENT as INPATIENT
from cehrxgpt.simulate.concepts import NAMES as COMMON
from cehrxgpt.simulate.concepts import NURSING as NURSING
from cehrxgpt.simulate.concepts import OUTPATIENT as OUTPATIENT
from cehrxgpt.simulate.populations.core import background

# -- conditions whose hazards are known: marker of the state -> concept --------------------------------------------------------------
CONDITIONS: Mapping[str, int] = {
    "hypertension": 320128,
    "hyperlipidemia": 432867,
    "diabetes": 201826,
    "kidney_disease": 443597,
    "coronary_disease": 317576,
    "infarction": 4329847,
    "heart_failure": 316139,
    "fibrillation": 313217,
    "stroke": 443454,
    "lung_disease": 255573,
}
PROCEDURES: Mapping[str, int] = {"bypass": 4336464, "coronary_intervention": 4216130}
CHEST_PAIN = 77670

# -- treatments with an effect: state -> ingredient ------------------------------------------------------------------------------------
TREATMENTS: Mapping[str, int] = {
    "metformin": 1503297,
    "insulin": 1502905,
    "lisinopril": 1308216,
    "statin": 1545958,
    "metoprolol": 1307046,
    "apixaban": 43013024,
    "furosemide": 956874,
}
DIABETES_DRUGS = (1503297, 1502905)

# -- measurements: name -> (concept, unit) -----------------------------------------------------------------------------------------------
MEASUREMENTS: Mapping[str, tuple[int, int]] = {
    "hba1c": (3004410, PERCENT),
    "creatinine": (3016723, MG_DL),
    "systolic": (3004249, MMHG),
    "ldl": (3028437, MG_DL),
    "diastolic": (3012888, MMHG),
    "heart_rate": (3027018, PER_MINUTE),
    "bmi": (3038553, KG_M2),
    "potassium": (3023103, MMOL_L),
    "sodium": (3019550, MMOL_L),
    "glucose": (3004501, MG_DL),
    "hemoglobin": (3000963, G_DL),
    "leukocytes": (3000905, THOUSAND_UL),
    "ntprobnp": (3029187, PG_ML),
}

NAMES: Mapping[int, tuple[str, str, str]] = {
    # concept_id: (name, domain, vocabulary)
    **COMMON,
    320128: ("High blood pressure", "Condition", "SNOMED"),
    432867: ("High blood lipids", "Condition", "SNOMED"),
    201826: ("Diabetes, type 2", "Condition", "SNOMED"),
    443597: ("Chronic kidney disease, stage 3", "Condition", "SNOMED"),
    317576: ("Coronary artery disease", "Condition", "SNOMED"),
    4329847: ("Heart attack", "Condition", "SNOMED"),
    316139: ("Heart failure", "Condition", "SNOMED"),
    313217: ("Atrial fibrillation", "Condition", "SNOMED"),
    443454: ("Ischemic stroke", "Condition", "SNOMED"),
    255573: ("Chronic obstructive lung disease", "Condition", "SNOMED"),
    CHEST_PAIN: ("Chest pain", "Condition", "SNOMED"),
    4336464: ("Coronary bypass graft", "Procedure", "SNOMED"),
    4216130: ("Coronary intervention through a catheter", "Procedure", "SNOMED"),
    1503297: ("Metformin", "Drug", "RxNorm"),
    1502905: ("Insulin glargine", "Drug", "RxNorm"),
    1308216: ("Lisinopril", "Drug", "RxNorm"),
    1545958: ("Atorvastatin", "Drug", "RxNorm"),
    1307046: ("Metoprolol", "Drug", "RxNorm"),
    43013024: ("Apixaban", "Drug", "RxNorm"),
    956874: ("Furosemide", "Drug", "RxNorm"),
    3004410: ("Glycated hemoglobin", "Measurement", "LOINC"),
    3016723: ("Creatinine in serum", "Measurement", "LOINC"),
    3004249: ("Systolic blood pressure", "Measurement", "LOINC"),
    3028437: ("LDL cholesterol", "Measurement", "LOINC"),
    3012888: ("Diastolic blood pressure", "Measurement", "LOINC"),
    3027018: ("Heart rate", "Measurement", "LOINC"),
    3038553: ("Body mass index", "Measurement", "LOINC"),
    3023103: ("Potassium in serum", "Measurement", "LOINC"),
    3019550: ("Sodium in serum", "Measurement", "LOINC"),
    3004501: ("Glucose in serum", "Measurement", "LOINC"),
    3000963: ("Hemoglobin in blood", "Measurement", "LOINC"),
    3000905: ("White blood cells", "Measurement", "LOINC"),
    3029187: ("NT-proBNP in serum", "Measurement", "LOINC"),
    # classes, which occur in no patient
    134057: ("Disease of heart or vessels", "Condition", "SNOMED"),
    321588: ("Disease of the heart", "Condition", "SNOMED"),
}

ANCESTORS: tuple[tuple[int, int, int], ...] = (
    # ancestor, descendant, levels between; each concept is its own ancestor too
    (134057, 321588, 1), (134057, 320128, 2), (134057, 317576, 2), (134057, 4329847, 2), (134057, 316139, 2), (134057, 313217, 3),
    (321588, 317576, 1), (321588, 4329847, 1), (321588, 316139, 1), (321588, 313217, 2),
)  # fmt: skip


def all_names() -> dict[int, tuple[str, str, str]]:
    """concept id -> (name, domain, vocabulary) of everything the simulator can write."""
    names = dict(NAMES)
    conditions = [(entry.concept, entry.name) for entry in background.LONGSTANDING]
    conditions += [(entry.concept, entry.name) for entry in (*background.CLINIC, *background.EMERGENCY, *background.ILLNESS)]
    for concept, name in conditions:
        names.setdefault(concept, (name, "Condition", "SNOMED"))
    for concept, name in background.DRUG_NAMES.items():
        names.setdefault(concept, (name, "Drug", "RxNorm"))
    procedures = dict(background.PROCEDURE_NAMES) | {row[0]: row[1] for row in background.CHECKUP_PROCEDURES}
    procedures |= {row[0]: row[1] for rows in background.DIAGNOSIS_PROCEDURES.values() for row in rows}
    for concept, name in procedures.items():
        names.setdefault(concept, (name, "Procedure", "SNOMED"))
    return names


def frames(hospital: str) -> dict[str, Any]:
    """concept, concept_ancestor, vocabulary, cdm_source."""
    return vocabulary.frames(all_names(), ANCESTORS, source="Simulated population with known hazards")

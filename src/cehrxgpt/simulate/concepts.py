"""Concepts that every population shares: people, places, and how an entry came to be."""

from __future__ import annotations

from collections.abc import Mapping

FEMALE, MALE = 8532, 8507
RACES = (8527, 8516, 8515, 0)  # White, Black, Asian, not stated
ETHNICITIES = (38003564, 38003563)  # not Hispanic, Hispanic
OUTPATIENT, EMERGENCY, INPATIENT = 9202, 9203, 9201
HOME, NURSING, HOSPICE, EXPIRED = 8536, 8863, 8546, 4216643
TYPE_EHR, TYPE_ENCOUNTER, TYPE_PRESCRIPTION, TYPE_LAB = 32817, 32827, 32838, 32856
BELOW, ABOVE = 4171756, 4172704  # comparison signs
PERCENT, MG_DL, MMHG, G_DL, MMOL_L, PG_ML, KG_M2, PER_MINUTE, THOUSAND_UL = 8554, 8840, 8876, 8713, 8753, 8845, 9531, 8541, 8848

NAMES: Mapping[int, tuple[str, str, str]] = {
    # concept_id: (name, domain, vocabulary)
    0: ("No matching concept", "Metadata", "None"),
    FEMALE: ("Woman", "Gender", "Gender"),
    MALE: ("Man", "Gender", "Gender"),
    8527: ("White", "Race", "Race"),
    8516: ("Black", "Race", "Race"),
    8515: ("Asian", "Race", "Race"),
    38003564: ("Not Hispanic", "Ethnicity", "Ethnicity"),
    38003563: ("Hispanic", "Ethnicity", "Ethnicity"),
    OUTPATIENT: ("Outpatient visit", "Visit", "Visit"),
    EMERGENCY: ("Emergency visit", "Visit", "Visit"),
    INPATIENT: ("Inpatient stay", "Visit", "Visit"),
    HOME: ("Home", "Visit", "CMS Place of Service"),
    NURSING: ("Nursing facility", "Visit", "CMS Place of Service"),
    HOSPICE: ("Hospice", "Visit", "CMS Place of Service"),
    EXPIRED: ("Died in hospital", "Observation", "SNOMED"),
    TYPE_EHR: ("From the health record", "Type Concept", "Type Concept"),
    TYPE_ENCOUNTER: ("From an encounter record", "Type Concept", "Type Concept"),
    TYPE_PRESCRIPTION: ("From a prescription", "Type Concept", "Type Concept"),
    TYPE_LAB: ("From a laboratory", "Type Concept", "Type Concept"),
    PERCENT: ("percent", "Unit", "UCUM"),
    MG_DL: ("milligram per decilitre", "Unit", "UCUM"),
    MMHG: ("millimetre of mercury", "Unit", "UCUM"),
    G_DL: ("gram per decilitre", "Unit", "UCUM"),
    MMOL_L: ("millimole per litre", "Unit", "UCUM"),
    PG_ML: ("picogram per millilitre", "Unit", "UCUM"),
    KG_M2: ("kilogram per square metre", "Unit", "UCUM"),
    PER_MINUTE: ("per minute", "Unit", "UCUM"),
    THOUSAND_UL: ("thousand per microlitre", "Unit", "UCUM"),
}

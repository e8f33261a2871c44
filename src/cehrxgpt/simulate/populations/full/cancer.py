"""One cancer from its unseen beginning, the screening that finds it, and what follows."""

from __future__ import annotations

from collections.abc import Mapping

from cehrxgpt.simulate.declare import Next
from cehrxgpt.simulate.populations.full.entry import HOSPITAL, Done, Entry, acute, chronic

SCREEN: Mapping[str, Mapping[float, float]] = {"all": {39.9: 1e-5, 44: 0.02, 46: 0.07, 50: 0.14, 60: 0.13, 74: 0.09, 78: 0.02, 85: 0.003}}

CANCER: tuple[Entry, ...] = (
    chronic(
        "tumour", "A tumour of the colon that nobody knows of", {}, {"all": {30: 0.00004, 45: 0.0004, 60: 0.0010, 75: 0.0020, 90: 0.0028}},
        terms={"male": 0.2, "polyps": 0.4}, hidden=True, shifts={"haemoglobin": -0.9}, brought={45: 0.0008, 60: 0.003, 75: 0.006},
        raises={"gi_bleed": 0.9},
    ),
    acute(
        "screening", "Screening of the colon", {}, SCREEN, forbids=("cancer",), by_year={1990: 0.8, 2012: 1.0, 2018: 1.1, 2020: 0.75, 2021: 1.2},
        workup=(Done(concept=4249893, name="Colonoscopy", chance=0.55), Done(concept=4018619, name="Test for hidden blood in stool", chance=0.5)),
    ),
    chronic(
        "polyps", "Polyp of the colon", {4285898: "Polyp of the colon"}, {"all": {40: 0.002, 60: 0.005, 80: 0.004}}, since={"screening": (3.2, 6.0)},
        noted=0.9, again=(0.08, 0.0, 0.0), brought={50: 0.02, 75: 0.10}, workup=(Done(concept=4166761, name="Removing a polyp", chance=0.7),),
    ),
    chronic(
        "cancer", "Cancer of the colon", {4180790: "Cancer of the colon", 197500: "Primary cancer of the colon"}, {"all": {30: 0.35, 75: 0.30}},
        requires=("tumour",), since={"screening": (3.8, 12.0), "gi_bleed": (2.0, 60.0), "anaemia": (1.5, 120.0), "clinic": (0.8, 40.0)},
        visit=(0.6, 0.1, 0.3), stay_days=5.0, noted=0.97, again=(0.6, 0.3, 0.9), brought={50: 0.001, 65: 0.006, 80: 0.014}, seen_every_days=75.0,
        workup=(Done(concept=4294513, name="Tissue from the colon", chance=0.9), Done(concept=4302356, name="CT of chest and belly", chance=0.8)),
        follows={"blood": 0.3, "liver": 0.2, "metabolic": 0.2}, tests={"blood": 0.9, "liver": 0.6}, raises={"death": 0.3, "clot": 1.0},
        leads_to=(Next(event="colectomy", days=24.0, sd_days=9.0, chance=0.75), Next(event="chemotherapy", days=30.0, sd_days=9.0, chance=0.15)),
    ),
    acute(
        "colectomy", "Part of the colon removed", {}, {"all": {18: 1e-9}}, visit=HOSPITAL, stay_days=6.0, intensive=0.2, by_day=True,
        tests={"blood": 1.0, "metabolic": 1.0}, workup=(Done(concept=4181781, name="Part of the colon removed"),),
        remedies=(Done(concept=1771162, name="Cefazolin", chance=0.9, days=1.0), Done(concept=40160970, name="Enoxaparin", chance=0.7)),
        leads_to=(Next(event="chemotherapy", days=35.0, sd_days=7.0, chance=0.5),),
    ),
    acute(
        "chemotherapy", "Chemotherapy", {}, {"all": {18: 1e-9}}, tests={"blood": 0.95, "metabolic": 0.6, "liver": 0.5},
        workup=(Done(concept=4273629, name="Chemotherapy"),), raises={"anaemia": 0.8},
        remedies=(Done(concept=42628973, name="Fluorouracil", chance=0.9, days=2.0), Done(concept=35603924, name="Oxaliplatin", chance=0.7, days=1.0),
                  Done(concept=40220871, name="Leucovorin", chance=0.7, days=1.0), Done(concept=1000560, name="Ondansetron", chance=0.8, days=3.0)),
        leads_to=(Next(event="chemotherapy", days=14.0, sd_days=1.5, chance=0.90),),
    ),
    chronic(
        "metastasis", "Cancer of the colon, spread", {4311765: "Cancer of the colon, spread"}, {"all": {18: 0.05}}, requires=("cancer",),
        since={"cancer": (1.2, 400.0)}, visit=(0.7, 0.0, 0.3), noted=0.9, again=(0.5, 0.3, 0.8), raises={"death": 1.6}, seen_every_days=40.0,
    ),
    acute(
        "mammography", "Mammography", {}, {"women": {39.5: 1e-4, 42: 0.25, 50: 0.36, 70: 0.33, 76: 0.12, 85: 0.01}},
        workup=(Done(concept=4324693, name="Mammography"),), by_year={1990: 1.0, 2020: 0.75, 2021: 1.1},
    ),
    chronic(
        "breast_cancer", "Breast cancer", {4112853: "Breast cancer"}, {"women": {30: 0.0002, 45: 0.0012, 65: 0.0030, 85: 0.003}},
        since={"mammography": (1.6, 40.0)}, noted=0.95, again=(0.4, 0.1, 0.6), brought={45: 0.006, 65: 0.02, 80: 0.035},
        seen_every_days=110.0,
        workup=(Done(concept=4047494, name="Tissue from the breast", chance=0.8),
                Done(concept=4213045, name="Lump removed from the breast", chance=0.5)),
        remedies=(Done(concept=1348267, name="Anastrozole", chance=0.5, days=90.0),), raises={"death": 0.35},
    ),
)  # fmt: skip

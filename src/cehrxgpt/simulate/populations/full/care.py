"""Visits for reasons that drive little, and death."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import EMERGENCY, HOSPITAL, Done, Entry, acute

CARE: tuple[Entry, ...] = (
    acute(
        "clinic", "A visit to the clinic", {}, {"women": {18: 0.55, 45: 0.60, 75: 0.75}, "men": {18: 0.28, 45: 0.42, 75: 0.70}},
        terms={"frailty": 0.2}, since={"clinic": (0.7, 60.0), "discharge": (0.5, 40.0)},
    ),
    acute(
        "emergency", "A visit to the emergency room", {},
        {"women": {18: 0.085, 40: 0.058, 65: 0.055, 90: 0.12}, "men": {18: 0.068, 40: 0.052, 65: 0.055, 90: 0.12}}, visit=EMERGENCY,
        terms={"frailty": 0.3, "lung_disease": 0.2, "black": 0.2},
        since={"emergency": (2.2, 220.0), "discharge": (1.3, 45.0), "depression": (1.8, 800.0), "anxiety": (1.8, 800.0), "back_pain": (1.6, 800.0),
               "clinic": (1.2, 150.0)}, tests={"metabolic": 0.3, "blood": 0.35},
    ),
    acute(
        "illness", "A stay for some illness", {}, {"all": {18: 0.004, 45: 0.006, 65: 0.010, 80: 0.019, 90: 0.026}}, visit=HOSPITAL, stay_days=3.5,
        intensive=0.06, terms={"frailty": 0.35, "kidney_disease": 0.25, "diabetes": 0.1},
        since={"admission": (6.4, 11.0), "emergency": (1.4, 60.0), "earlier_discharge": (2.2, 70.0), "illness": (0.8, 240.0)},
        tests={"metabolic": 0.9, "blood": 0.9},
    ),
    acute(
        "surgery", "A planned operation", {}, {"all": {18: 0.006, 45: 0.011, 70: 0.018, 90: 0.005}}, visit=HOSPITAL, stay_days=2.0, intensive=0.04,
        by_day=True, workup=(Done(concept=4301351, name="An operation"),),
        remedies=(Done(concept=1771162, name="Cefazolin", chance=0.8, days=1.0), Done(concept=1124957, name="Oxycodone", chance=0.4, days=5.0)),
        tests={"blood": 0.8, "metabolic": 0.6},
    ),
    acute(
        "day_surgery", "A small operation, home the same day", {}, {"all": {18: 0.012, 45: 0.022, 70: 0.035, 90: 0.015}},
        workup=(Done(concept=4155973, name="A procedure without a stay"),),
    ),
    acute(
        "vaccination", "A vaccination", {}, {"all": {18: 0.14, 50: 0.24, 70: 0.42, 90: 0.40}},
        by_month=(0.5, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 2.6, 3.9, 2.5, 1.2),
        remedies=(Done(concept=40213154, name="Vaccine against influenza", chance=0.92, days=1.0),
                  Done(concept=40213201, name="Vaccine against pneumococci", chance=0.1, days=1.0)),
    ),
    acute(
        "death", "Death", {},
        {"women": {18: 0.0004, 30: 0.0009, 45: 0.0016, 60: 0.0034, 70: 0.0058, 80: 0.0125, 90: 0.038},
         "men": {18: 0.0011, 30: 0.0019, 45: 0.0028, 60: 0.0055, 70: 0.0085, 80: 0.016, 90: 0.044}}, in_stay=True,
        terms={"frailty": 0.35, "in_hospital": 1.2, "hospice": 3.6, "haemoglobin": -0.15, "creatinine": 0.12, "statin": -0.1, "bmi": -0.08},
        since={"intensive_care": (3.0, 7.0), "sepsis": (1.8, 20.0), "stroke": (1.6, 30.0), "infarction": (1.2, 20.0),
               "respiratory_failure": (2.0, 15.0), "hip_fracture": (1.4, 120.0), "covid": (1.5, 20.0), "discharge": (1.0, 60.0),
               "earlier_discharge": (1.2, 200.0), "emergency": (1.4, 150.0), "heart_failure": (1.2, 300.0), "decompensation": (1.2, 150.0),
               "cancer": (1.2, 300.0), "dementia": (0.5, 400.0), "exacerbation": (0.7, 60.0), "pneumonia": (0.9, 40.0)},
    ),
)  # fmt: skip

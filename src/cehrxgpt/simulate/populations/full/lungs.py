"""Lungs, and the infections that everybody gets."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import HOSPITAL, Done, Entry, acute, chronic

XRAY = Done(concept=4163872, name="Chest X-ray", chance=0.85)
WINTER = (1.6, 1.5, 1.3, 1.0, 0.8, 0.65, 0.6, 0.6, 0.75, 0.95, 1.15, 1.45)
FLU = (2.9, 2.6, 1.6, 0.6, 0.2, 0.1, 0.1, 0.1, 0.2, 0.5, 1.2, 2.4)

LUNGS: tuple[Entry, ...] = (
    chronic(
        "lung_disease", "Chronic obstructive lung disease",
        {255573: "Chronic obstructive lung disease", 258780: "Bronchitis with emphysema", 261325: "Emphysema of the lungs"},
        {"all": {30: 0.0004, 45: 0.0028, 60: 0.0062, 75: 0.0095, 90: 0.007}}, terms={"frailty": 0.35, "asthma": 0.7}, noted=0.65,
        since={"bronchitis": (1.2, 200.0)}, again=(0.38, 0.25, 0.8), ruled_out={"bronchitis": 0.012, "emergency": 0.003},
        brought={30: 0.004, 45: 0.025, 60: 0.065, 75: 0.11, 90: 0.10}, seen_every_days=150.0,
        workup=(Done(concept=4133840, name="Breathing test", chance=0.6), XRAY, Done(concept=4021160, name="Advice on smoking", chance=0.4)),
        raises={"pneumonia": 0.8, "influenza": 0.4, "death": 0.45, "fibrillation": 0.3, "heart_failure": 0.3, "bronchitis": 0.6, "illness": 0.2,
                "respiratory_failure": 1.4, "anxiety": 0.3},
    ),
    acute(
        "exacerbation", "COPD, worse", {257004: "Chronic obstructive lung disease, worse", 255573: "Chronic obstructive lung disease"},
        {"all": {30: 0.16, 60: 0.21, 90: 0.26}}, requires=("lung_disease",), visit=(0.35, 0.25, 0.40), stay_days=4.0, intensive=0.12, by_month=WINTER,
        terms={"frailty": 0.3, "tiotropium": -0.25, "salmeterol": -0.15}, noted=0.97,
        since={"exacerbation": (1.3, 60.0), "admission": (5.6, 12.0), "earlier_discharge": (2.6, 110.0), "pneumonia": (1.0, 60.0),
               "bronchitis": (1.2, 25.0)}, tests={"blood": 0.7, "metabolic": 0.6, "gases": 0.4},
        workup=(XRAY, Done(concept=4206920, name="Nebuliser", chance=0.6)),
        remedies=(Done(concept=1551099, name="Prednisone", chance=0.8, days=5.0), Done(concept=1734104, name="Azithromycin", chance=0.5, days=5.0)),
        raises={"death": 0.2},
    ),
    chronic(
        "asthma", "Asthma", {317009: "Asthma"}, {"women": {18: 0.006, 40: 0.005, 75: 0.003}, "men": {18: 0.004, 40: 0.002, 75: 0.002}},
        terms={"bmi": 0.15, "hay_fever": 0.6}, brought={18: 0.085, 45: 0.08, 75: 0.06}, brought_men=0.7, again=(0.25, 0.2, 0.5),
        workup=(Done(concept=4133840, name="Breathing test", chance=0.5),), raises={"bronchitis": 0.3, "influenza": 0.2},
    ),
    acute(
        "asthma_attack", "Asthma attack", {257581: "Asthma, worse"}, {"all": {18: 0.07, 60: 0.06}}, requires=("asthma",), visit=(0.35, 0.50, 0.15),
        stay_days=2.0, by_month=WINTER, since={"asthma_attack": (1.4, 90.0), "bronchitis": (1.0, 20.0)}, intensive=0.05,
        remedies=(Done(concept=1154343, name="Albuterol", chance=0.9, days=30.0), Done(concept=1551099, name="Prednisone", chance=0.5, days=5.0)),
    ),
    chronic(
        "hay_fever", "Hay fever", {4280726: "Hay fever"}, {"all": {18: 0.02, 40: 0.012, 75: 0.004}}, noted=0.8, again=(0.06, 0.0, 0.0),
        brought={18: 0.10, 75: 0.06}, by_month=(0.4, 0.5, 1.1, 1.9, 2.0, 1.5, 1.0, 1.1, 1.3, 0.6, 0.3, 0.3),
        remedies=(Done(concept=1107830, name="Loratadine", chance=0.6, days=60.0), Done(concept=1149196, name="Cetirizine", chance=0.2, days=60.0)),
    ),
    acute(
        "bronchitis", "Acute bronchitis", {260139: "Acute bronchitis"}, {"all": {18: 0.05, 60: 0.07, 90: 0.06}}, visit=(0.9, 0.1, 0.0),
        by_month=WINTER, since={"influenza": (0.8, 30.0)}, remedies=(Done(concept=1734104, name="Azithromycin", chance=0.4, days=5.0),),
    ),
    acute(
        "pneumonia", "Pneumonia", {255848: "Pneumonia"}, {"all": {18: 0.0022, 45: 0.004, 65: 0.009, 80: 0.021, 90: 0.036}}, visit=(0.35, 0.15, 0.50),
        stay_days=4.0, intensive=0.15, by_month=WINTER, terms={"frailty": 0.35}, noted=0.96, again=(0.08, 0.08, 0.1), fades_days=40.0,
        since={"influenza": (2.2, 25.0), "covid": (2.2, 25.0), "discharge": (0.8, 45.0), "pneumonia": (1.0, 150.0), "bronchitis": (1.0, 25.0)},
        tests={"blood": 0.9, "metabolic": 0.7, "crp": 0.5}, workup=(XRAY,), raises={"death": 0.05},
        remedies=(Done(concept=1777806, name="Ceftriaxone", chance=0.5, days=5.0), Done(concept=1734104, name="Azithromycin", chance=0.6, days=5.0)),
    ),
    acute(
        "respiratory_failure", "Acute breathing failure", {319049: "Acute breathing failure"},
        {"all": {18: 0.0001, 50: 0.0005, 70: 0.002, 90: 0.005}}, visit=HOSPITAL, stay_days=6.0, intensive=0.75, in_stay=True,
        terms={"frailty": 0.3, "in_hospital": 0.8},
        since={"pneumonia": (2.6, 8.0), "covid": (2.8, 12.0), "exacerbation": (1.8, 6.0), "sepsis": (1.5, 6.0)},
        tests={"gases": 0.9, "blood": 0.9, "metabolic": 0.9},
        workup=(Done(concept=4230167, name="Breathing by machine", chance=0.4), Done(concept=4162736, name="Oxygen by mask", chance=0.6)),
    ),
    acute(
        "influenza", "Influenza", {4266367: "Influenza"}, {"all": {18: 0.012, 60: 0.010, 90: 0.016}}, by_month=FLU, visit=(0.72, 0.22, 0.06),
        stay_days=3.0, tests={"swab": 0.6}, by_year={1990: 1.0, 2018: 1.5, 2019: 1.0, 2020: 0.4, 2021: 0.15, 2022: 1.0},
    ),
    acute(
        "covid", "COVID-19", {37311061: "COVID-19"}, {"all": {18: 0.035, 60: 0.050, 90: 0.085}}, visit=(0.68, 0.20, 0.12), stay_days=5.0,
        intensive=0.2, by_year={2020: 1.0, 2021: 1.3, 2022: 1.2, 2023: 0.5}, terms={"bmi": 0.15, "frailty": 0.2}, since={},
        tests={"swab": 0.95, "crp": 0.3}, by_month=(1.6, 1.1, 0.8, 0.7, 0.6, 0.6, 0.8, 1.0, 0.9, 0.9, 1.2, 1.7),
    ),
    acute(
        "common_cold", "Viral sinusitis", {40481087: "Viral sinusitis", 4112343: "Viral sore throat"},
        {"all": {18: 0.11, 40: 0.10, 70: 0.06, 90: 0.04}}, by_month=WINTER, remedies=(Done(concept=1125315, name="Acetaminophen", chance=0.3),),
    ),
)  # fmt: skip

"""Infections beside those of the lungs."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import HOSPITAL, Done, Entry, acute

INFECTIONS: tuple[Entry, ...] = (
    acute(
        "urinary_infection", "Urinary tract infection", {81902: "Urinary tract infection", 195588: "Bladder infection"},
        {"women": {18: 0.075, 40: 0.06, 70: 0.09, 90: 0.14}, "men": {18: 0.003, 50: 0.012, 70: 0.035, 90: 0.08}}, visit=(0.80, 0.20, 0.0),
        since={"urinary_infection": (1.5, 150.0), "pregnancy": (0.7, 200.0)}, tests={"urine": 0.8},
        remedies=(Done(concept=920293, name="Nitrofurantoin", chance=0.7, days=5.0),
                  Done(concept=933724, name="Phenazopyridine", chance=0.1, days=3.0)),
    ),
    acute(
        "kidney_infection", "Kidney infection", {198199: "Kidney infection"},
        {"women": {18: 0.0035, 60: 0.0025, 90: 0.006}, "men": {18: 0.0004, 90: 0.004}}, visit=(0.0, 0.5, 0.5), stay_days=3.0,
        since={"urinary_infection": (2.2, 21.0)}, tests={"urine": 0.9, "blood": 0.8},
        remedies=(Done(concept=1777806, name="Ceftriaxone", chance=0.8, days=5.0),),
    ),
    acute(
        "sepsis", "Sepsis", {132797: "Sepsis", 40489907: "Sepsis by staphylococci"},
        {"all": {18: 0.0003, 45: 0.0009, 65: 0.003, 80: 0.008, 90: 0.014}}, visit=HOSPITAL, stay_days=6.5, intensive=0.5, in_stay=True,
        terms={"frailty": 0.4, "in_hospital": 0.5},
        since={"admission": (3.6, 12.0), "pneumonia": (1.6, 15.0), "kidney_infection": (1.8, 10.0), "cellulitis": (1.3, 15.0),
               "chemotherapy": (1.6, 30.0)}, tests={"blood": 1.0, "metabolic": 1.0, "lactate": 0.8, "crp": 0.6},
        remedies=(Done(concept=1777806, name="Ceftriaxone", chance=0.6), Done(concept=40221355, name="Vancomycin", chance=0.5)),
        workup=(Done(concept=4085731, name="Antibiotics into a vein", chance=0.95), Done(concept=4327582, name="Fluid to revive", chance=0.5)),
        raises={"death": 0.15},
    ),
    acute(
        "cellulitis", "Skin infection", {435613: "Skin infection"}, {"all": {18: 0.010, 60: 0.016, 90: 0.025}}, visit=(0.6, 0.28, 0.12),
        stay_days=3.0, terms={"bmi": 0.25, "male": 0.15}, since={"cellulitis": (1.2, 200.0)},
        remedies=(Done(concept=1786621, name="Cephalexin", chance=0.7), Done(concept=997899, name="Clindamycin", chance=0.2)),
    ),
    acute(
        "gastroenteritis", "Diarrhea", {4145808: "Diarrhea", 4096715: "Vomiting"}, {"all": {18: 0.03, 60: 0.025, 90: 0.04}}, visit=(0.65, 0.33, 0.02),
        stay_days=2.0, remedies=(Done(concept=1000560, name="Ondansetron", chance=0.5, days=3.0),),
    ),
    acute(
        "ear_infection", "Middle ear infection", {372328: "Middle ear infection"}, {"all": {18: 0.014, 60: 0.010}},
        remedies=(Done(concept=1713332, name="Amoxicillin", chance=0.7),),
    ),
    acute(
        "sore_throat", "Strep throat", {28060: "Strep throat"}, {"all": {18: 0.022, 40: 0.012, 70: 0.002}}, tests={"swab": 0.4},
        remedies=(Done(concept=1713332, name="Amoxicillin", chance=0.6), Done(concept=1729720, name="Penicillin V", chance=0.2)),
    ),
    acute(
        "sinusitis", "Bacterial sinusitis", {4294548: "Bacterial sinusitis", 4283893: "Sinusitis"}, {"all": {18: 0.035, 50: 0.04, 80: 0.02}},
        since={"common_cold": (1.6, 20.0)}, remedies=(Done(concept=1759842, name="Clavulanate with amoxicillin", chance=0.6),),
    ),
)  # fmt: skip

"""Gut, joints, bones, injuries, clots."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import EMERGENCY, HOSPITAL, Done, Entry, acute, chronic

NAPROXEN = Done(concept=1115008, name="Naproxen", chance=0.25, days=14.0)
IBUPROFEN = Done(concept=1177480, name="Ibuprofen", chance=0.4, days=10.0)
OXYCODONE = Done(concept=1124957, name="Oxycodone", chance=0.35, days=5.0)
STITCHES = Done(concept=4125906, name="Stitching a wound", chance=0.75)
TETANUS = Done(concept=40213230, name="Vaccine against tetanus", chance=0.4, days=1.0)
CAST = Done(concept=4170947, name="Setting a bone", chance=0.7)
SUMMER = (0.85, 0.85, 0.95, 1.0, 1.1, 1.15, 1.15, 1.15, 1.05, 1.0, 0.9, 0.85)
ICE = (1.35, 1.3, 1.1, 0.9, 0.85, 0.85, 0.85, 0.85, 0.9, 0.95, 1.05, 1.3)

BODY: tuple[Entry, ...] = (
    # -- gut -------------------------------------------------------------------------------------------------------------------------
    chronic(
        "reflux", "Acid reflux", {318800: "Acid reflux"}, {"all": {18: 0.010, 45: 0.022, 75: 0.020}}, terms={"bmi": 0.2}, noted=0.6,
        brought={18: 0.05, 45: 0.16, 75: 0.24}, again=(0.16, 0.04, 0.35),
    ),
    chronic(
        "ulcer", "Ulcer of stomach or gut", {4027663: "Ulcer of stomach or gut"}, {"all": {18: 0.0003, 50: 0.001, 75: 0.0025}},
        visit=(0.5, 0.25, 0.25), terms={"nsaid_drug": 0.9, "aspirin": 0.4, "omeprazole": -0.6}, since={"nsaid": (0.8, 90.0)},
        brought={50: 0.015, 75: 0.03}, workup=(Done(concept=4249893, name="Colonoscopy", chance=0.1),),
    ),
    acute(
        "gi_bleed", "Bleeding of stomach or gut", {192671: "Bleeding of stomach or gut"},
        {"all": {18: 0.0003, 45: 0.0008, 65: 0.0024, 80: 0.0065, 90: 0.010}}, visit=(0.05, 0.2, 0.75), stay_days=3.5, intensive=0.15, noted=0.96,
        again=(0.10, 0.05, 0.2), fades_days=60.0, ruled_out={"belly_pain": 0.008},
        terms={"nsaid_drug": 0.8, "aspirin": 0.35, "warfarin": 0.7, "apixaban": 0.45, "clopidogrel": 0.3, "omeprazole": -0.5, "frailty": 0.2,
               "male": 0.2},
        since={"nsaid": (1.9, 45.0), "ulcer": (2.2, 200.0), "gi_bleed": (1.6, 150.0), "discharge": (0.7, 40.0), "warfarin_start": (1.0, 60.0)},
        tests={"blood": 1.0, "metabolic": 0.8, "coagulation": 0.7},
        workup=(Done(concept=4249893, name="Colonoscopy", chance=0.5), Done(concept=4108705, name="Red cells given", chance=0.35)),
        remedies=(Done(concept=923645, name="Omeprazole", chance=0.8, days=30.0),), raises={"death": 0.1},
    ),
    acute(
        "gallbladder", "Inflamed gallbladder", {198809: "Inflamed gallbladder", 196456: "Gallstone"},
        {"women": {18: 0.002, 60: 0.0035}, "men": {18: 0.0006, 60: 0.0022, 85: 0.004}}, visit=HOSPITAL, stay_days=2.5, terms={"bmi": 0.3},
        tests={"liver": 0.9, "blood": 0.9}, forbids=("gallbladder_out",),
        workup=(Done(concept=42535580, name="Ultrasound of the belly", chance=0.8),),
    ),
    chronic(
        "gallbladder_out", "Gallbladder removed", {}, {"all": {18: 0.9}}, requires=("gallbladder",), since={"gallbladder": (2.0, 20.0)}, in_stay=True,
        visit=HOSPITAL, stay_days=1.5, by_day=True, workup=(Done(concept=4163971, name="Gallbladder removal"),),
    ),
    acute(
        "appendicitis", "Appendicitis", {440448: "Appendicitis"}, {"all": {18: 0.0016, 40: 0.0010, 75: 0.0005}}, visit=HOSPITAL, stay_days=2.0,
        forbids=("appendicitis",), chronic=True, tests={"blood": 0.95, "crp": 0.4},
        workup=(Done(concept=4198190, name="Appendix removal", chance=0.9),),
    ),
    acute(
        "pancreatitis", "Inflamed pancreas", {199074: "Acute inflammation of the pancreas"}, {"all": {18: 0.0002, 45: 0.0004, 80: 0.0008}},
        visit=HOSPITAL, stay_days=4.5, intensive=0.12, since={"gallbladder": (1.5, 60.0), "pancreatitis": (1.8, 250.0)},
        tests={"liver": 0.9, "metabolic": 0.9}, remedies=(Done(concept=1110410, name="Morphine", chance=0.5, days=3.0),),
    ),
    acute(
        "belly_pain", "Belly pain", {200219: "Belly pain"}, {"all": {18: 0.055, 50: 0.045, 90: 0.05}}, visit=(0.45, 0.55, 0.0),
        terms={"frailty": 0.15}, since={"belly_pain": (1.3, 100.0)}, tests={"blood": 0.5, "metabolic": 0.5, "liver": 0.3},
        remedies=(Done(concept=1000560, name="Ondansetron", chance=0.3, days=3.0),),
    ),
    chronic(
        "diverticular", "Diverticular disease", {4266809: "Diverticular disease"}, {"all": {40: 0.002, 60: 0.007, 85: 0.012}},
        since={"screening": (2.0, 10.0)}, brought={45: 0.02, 75: 0.10}, again=(0.06, 0.03, 0.15), raises={"gi_bleed": 0.4, "belly_pain": 0.3},
    ),
    # -- joints and bones --------------------------------------------------------------------------------------------------------------
    chronic(
        "osteoarthritis", "Osteoarthritis", {80180: "Osteoarthritis", 4079750: "Osteoarthritis of the knee", 4079749: "Osteoarthritis of the hip"},
        {"women": {30: 0.003, 50: 0.022, 70: 0.040}, "men": {30: 0.003, 50: 0.014, 70: 0.028}}, terms={"bmi": 0.3}, noted=0.75,
        again=(0.22, 0.05, 0.25), brought={30: 0.01, 50: 0.12, 75: 0.35}, workup=(Done(concept=4252419, name="X-ray of the knee", chance=0.4),),
        raises={"fall": 0.2},
    ),
    acute(
        "new_joint", "A new joint", {}, {"all": {40: 0.004, 55: 0.013, 70: 0.022, 85: 0.010}}, requires=("osteoarthritis",), visit=HOSPITAL,
        stay_days=2.0, by_day=True, terms={"bmi": 0.2},
        workup=(Done(concept=43531648, name="New knee joint", chance=0.6), Done(concept=4203771, name="New hip joint", chance=0.4)),
        remedies=(OXYCODONE, Done(concept=40160970, name="Enoxaparin", chance=0.6, days=14.0)), tests={"blood": 0.95, "metabolic": 0.8},
    ),
    chronic(
        "back_pain", "Long-lasting low back pain", {4132891: "Long-lasting low back pain"}, {"all": {18: 0.010, 45: 0.022, 75: 0.018}}, noted=0.8,
        brought={18: 0.03, 50: 0.12}, again=(0.14, 0.05, 0.05), remedies=(IBUPROFEN, NAPROXEN),
    ),
    chronic(
        "arthritis", "Rheumatoid arthritis", {80809: "Rheumatoid arthritis"}, {"women": {18: 0.0002, 60: 0.0009}, "men": {18: 0.0001, 60: 0.0004}},
        brought={30: 0.003, 65: 0.012}, brought_men=0.4, again=(0.45, 0.05, 0.4), seen_every_days=120.0, follows={"crp": 0.3, "blood": 0.2},
        remedies=(Done(concept=1305058, name="Methotrexate", chance=0.6, days=90.0),), raises={"infarction": 0.3, "sepsis": 0.4},
    ),
    chronic(
        "osteoporosis", "Osteoporosis", {80502: "Osteoporosis"}, {"women": {45: 0.002, 60: 0.014, 80: 0.020}, "men": {60: 0.001, 85: 0.006}},
        noted=0.6, brought={50: 0.02, 65: 0.10, 80: 0.22}, brought_men=0.15, workup=(Done(concept=4195803, name="Bone density scan", chance=0.8),),
        remedies=(Done(concept=1557272, name="Alendronate", chance=0.5, days=90.0),), raises={"hip_fracture": 0.5, "fracture": 0.3},
    ),
    acute(
        "joint_pain", "Joint pain", {77074: "Joint pain", 442752: "Muscle pain"}, {"all": {18: 0.05, 50: 0.09, 80: 0.09}},
        since={"injury": (0.8, 60.0)}, remedies=(IBUPROFEN, NAPROXEN),
    ),
    # -- injuries ----------------------------------------------------------------------------------------------------------------------
    acute(
        "injury", "Cut or bruise", {4113008: "Cut hand", 4156265: "Cut in the face", 4155034: "Cut in the forearm", 4109685: "Cut foot"},
        {"women": {18: 0.035, 40: 0.022, 75: 0.02, 90: 0.045}, "men": {18: 0.055, 40: 0.035, 75: 0.02, 90: 0.035}}, visit=(0.25, 0.75, 0.0),
        by_month=SUMMER, workup=(STITCHES,), remedies=(TETANUS,),
    ),
    acute(
        "sprain", "Sprained ankle", {81151: "Sprained ankle", 78272: "Sprained wrist"}, {"all": {18: 0.035, 45: 0.018, 75: 0.008}},
        visit=(0.6, 0.4, 0.0), by_month=SUMMER, remedies=(IBUPROFEN,),
        workup=(Done(concept=4024289, name="X-ray of the ankle", chance=0.6), Done(concept=4040258, name="Rest, ice and a bandage", chance=0.3)),
    ),
    acute(
        "fracture", "Broken forearm", {4278672: "Broken forearm", 4059173: "Broken ankle", 4237458: "Broken collarbone", 4142905: "Broken rib"},
        {"women": {18: 0.005, 45: 0.006, 65: 0.012, 85: 0.018}, "men": {18: 0.010, 45: 0.007, 75: 0.007, 85: 0.010}}, visit=(0.15, 0.75, 0.10),
        stay_days=2.5, by_month=ICE, workup=(CAST, Done(concept=4243062, name="X-ray of the wrist", chance=0.4)), remedies=(OXYCODONE,),
    ),
    acute(
        "hip_fracture", "Broken hip", {4230399: "Broken hip"},
        {"women": {45: 0.0001, 65: 0.0014, 75: 0.0045, 85: 0.016, 90: 0.024}, "men": {45: 0.0001, 65: 0.0008, 75: 0.0024, 85: 0.009, 90: 0.015}},
        visit=HOSPITAL, stay_days=5.5, by_month=ICE, terms={"frailty": 0.35}, since={"fall": (1.0, 90.0), "hip_fracture": (0.8, 300.0)}, noted=0.98,
        tests={"blood": 0.95, "metabolic": 0.8},
        workup=(Done(concept=4203771, name="New hip joint", chance=0.5), Done(concept=4145310, name="X-ray of the pelvis", chance=0.9)),
        remedies=(Done(concept=1110410, name="Morphine", chance=0.7, days=3.0),), raises={"death": 0.25},
    ),
    acute(
        "fall", "Head injury without loss of consciousness", {378001: "Concussion, awake throughout"},
        {"all": {18: 0.004, 45: 0.003, 65: 0.008, 80: 0.03, 90: 0.07}}, visit=(0.1, 0.75, 0.15), stay_days=2.0, by_month=ICE, terms={"frailty": 0.3},
        since={"fall": (1.3, 200.0), "discharge": (0.5, 60.0)}, workup=(Done(concept=4125350, name="CT of the head", chance=0.8),),
    ),
    acute(
        "burn", "Burn of the skin", {4296205: "Burn, partial thickness"}, {"all": {18: 0.002, 75: 0.001}}, visit=(0.2, 0.75, 0.05), stay_days=3.0,
        workup=(Done(concept=4301575, name="Dressing changed", chance=0.6),), remedies=(Done(concept=1177480, name="Ibuprofen", chance=0.4),),
    ),
    acute(
        "allergy", "Allergic reaction", {4084167: "Allergic reaction"}, {"all": {18: 0.007, 75: 0.003}}, visit=EMERGENCY,
        remedies=(Done(concept=1129625, name="Diphenhydramine", chance=0.7, days=3.0),
                  Done(concept=1343916, name="Epinephrine", chance=0.2, days=1.0)),
    ),
    # -- clots and skin ------------------------------------------------------------------------------------------------------------------
    acute(
        "clot", "Clot in a deep vein", {44782746: "Clot in a deep vein"}, {"all": {18: 0.0003, 45: 0.0008, 75: 0.0025, 90: 0.004}},
        visit=(0.3, 0.3, 0.4), stay_days=3.0, since={"discharge": (1.5, 40.0), "new_joint": (1.6, 40.0), "birth": (1.3, 40.0), "clot": (1.2, 300.0)},
        noted=0.95, again=(0.2, 0.1, 0.3), fades_days=150.0, tests={"coagulation": 0.8, "blood": 0.7}, ruled_out={"joint_pain": 0.004},
    ),
    acute(
        "embolism", "Clot in the lung", {45768439: "Clot in the lung"}, {"all": {18: 0.0001, 45: 0.0004, 75: 0.0017, 90: 0.003}}, visit=HOSPITAL,
        stay_days=4.0, intensive=0.2, since={"clot": (2.8, 30.0), "discharge": (1.3, 40.0)}, noted=0.97, again=(0.15, 0.1, 0.3), fades_days=150.0,
        tests={"coagulation": 0.9, "blood": 0.9, "heart": 0.6}, remedies=(Done(concept=1367571, name="Heparin", chance=0.8, days=4.0),),
        raises={"death": 0.1},
    ),
    acute(
        "rash", "Contact rash", {134438: "Contact rash"}, {"all": {18: 0.03, 75: 0.025}},
        remedies=(Done(concept=975125, name="Hydrocortisone", chance=0.6, days=14.0),),
    ),
    chronic(
        "prostate", "Enlarged prostate", {198803: "Enlarged prostate"}, {"men": {40: 0.002, 60: 0.018, 80: 0.03}},
        brought={45: 0.02, 65: 0.20, 80: 0.40}, noted=0.7, follows={"psa": 0.12}, tests={"psa": 0.5},
        remedies=(Done(concept=924566, name="Tamsulosin", chance=0.6, days=90.0),), raises={"urinary_infection": 0.4},
    ),
    chronic(
        "cataract", "Cataract", {375545: "Cataract"}, {"all": {45: 0.001, 60: 0.012, 75: 0.04, 90: 0.05}}, brought={50: 0.01, 65: 0.12, 80: 0.4},
        noted=0.6, again=(0.05, 0.0, 0.03),
    ),
)  # fmt: skip

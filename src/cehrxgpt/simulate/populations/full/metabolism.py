"""Sugar, kidneys, thyroid, weight."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import HOSPITAL, Done, Entry, acute, chronic

METABOLISM: tuple[Entry, ...] = (
    chronic(
        "diabetes", "Diabetes, type 2",
        {201826: "Diabetes, type 2", 4193704: "Diabetes, type 2, without complication", 443238: "Diabetes, poorly controlled",
         376065: "Diabetes, type 2, with nerve disease", 443731: "Diabetes, type 2, with kidney disease"},
        {"all": {18: 0.0008, 30: 0.0023, 45: 0.0070, 60: 0.0095, 75: 0.0075, 90: 0.005}},
        terms={"hba1c": 0.8, "bmi": 0.35, "black": 0.25, "hypertension": 0.2}, noted=0.72, again=(0.55, 0.2, 0.8),
        brought={18: 0.006, 30: 0.02, 45: 0.08, 60: 0.17, 75: 0.24, 90: 0.20}, brought_men=1.2, seen_every_days=115.0,
        shifts={"hba1c": 1.9, "bmi": 1.0}, tests={"sugar": 0.9, "metabolic": 0.6, "lipids": 0.5},
        follows={"sugar": 0.45, "metabolic": 0.12, "lipids": 0.12, "urine": 0.12},
        workup=(Done(concept=45765969, name="Agreeing on a plan for diabetes", chance=0.4), Done(concept=4041982, name="Advice on food", chance=0.3)),
        raises={"kidney_disease": 0.7, "coronary_disease": 0.4, "pneumonia": 0.2, "sepsis": 0.4, "cellulitis": 0.4, "death": 0.25, "depression": 0.15,
                "urinary_infection": 0.2},
    ),
    chronic(
        "retinopathy", "Diabetic disease of the retina", {4226121: "Diabetic disease of the retina", 43530656: "The same, no new vessels"},
        {"all": {30: 0.010, 90: 0.010}}, requires=("diabetes",), terms={"hba1c": 0.4}, noted=0.5, brought={45: 0.01, 75: 0.03},
    ),
    chronic(
        "kidney_disease", "Chronic kidney disease, stage 3", {443597: "Chronic kidney disease, stage 3", 46271022: "Chronic kidney disease"},
        {"all": {30: 0.0004, 45: 0.0016, 60: 0.0060, 75: 0.018, 90: 0.030}},
        terms={"creatinine": 0.6, "systolic": 0.1, "lisinopril": -0.2, "losartan": -0.2, "empagliflozin": -0.3, "black": 0.2}, noted=0.55,
        since={"kidney_injury": (1.5, 250.0)}, again=(0.30, 0.12, 0.7), brought={30: 0.004, 45: 0.015, 60: 0.05, 75: 0.16, 90: 0.28},
        seen_every_days=150.0, shifts={"creatinine": 0.42, "potassium": 0.2, "haemoglobin": -0.7, "ntprobnp": 0.6, "systolic": 3.0},
        tests={"metabolic": 0.9}, follows={"metabolic": 0.35, "blood": 0.2, "urine": 0.1},
        raises={"heart_failure": 0.5, "coronary_disease": 0.25, "death": 0.35, "kidney_injury": 0.9, "anaemia": 0.8, "gi_bleed": 0.3, "sepsis": 0.3},
    ),
    chronic(
        "kidney_failure", "End-stage kidney disease", {193782: "End-stage kidney disease", 443612: "Chronic kidney disease, stage 4"},
        {"all": {30: 0.02, 60: 0.012, 90: 0.006}}, requires=("kidney_disease",), terms={"creatinine": 0.8, "diabetes": 0.4}, visit=(0.5, 0.0, 0.5),
        since={"kidney_injury": (1.2, 200.0)}, again=(0.7, 0.5, 0.95), seen_every_days=60.0,
        shifts={"creatinine": 0.9, "haemoglobin": -1.5, "potassium": 0.4}, brought={45: 0.001, 60: 0.003, 75: 0.006},
        workup=(Done(concept=4120120, name="Blood cleaned by a machine", chance=0.8),), raises={"death": 0.9, "sepsis": 0.8, "heart_failure": 0.5},
    ),
    acute(
        "kidney_injury", "Acute kidney failure", {197320: "Acute kidney failure"}, {"all": {18: 0.0003, 45: 0.0008, 65: 0.003, 80: 0.008, 90: 0.012}},
        visit=HOSPITAL, stay_days=4.0, intensive=0.12, terms={"creatinine": 0.4, "lisinopril": 0.2, "nsaid_drug": 0.6, "furosemide": 0.3},
        since={"discharge": (1.2, 40.0), "kidney_injury": (1.2, 150.0)}, tests={"metabolic": 1.0, "blood": 0.8, "urine": 0.6},
        remedies=(Done(concept=967823, name="Sodium chloride", chance=0.8, days=3.0),),
    ),
    chronic(
        "obesity", "Obesity", {433736: "Obesity"}, {"all": {18: 0.01, 40: 0.02, 65: 0.02, 90: 0.005}}, terms={"bmi": 1.3}, noted=0.4,
        again=(0.12, 0.02, 0.25), brought={18: 0.06, 40: 0.14, 65: 0.15, 90: 0.05},
        workup=(Done(concept=37397658, name="Help to lose weight", chance=0.2),), shifts={"bmi": 1.5},
        raises={"sleep_apnoea": 0.8, "osteoarthritis": 0.3},
    ),
    chronic(
        "thyroid", "Underactive thyroid", {140673: "Underactive thyroid"},
        {"women": {18: 0.0015, 45: 0.005, 75: 0.008}, "men": {18: 0.0003, 45: 0.001, 75: 0.003}}, brought={18: 0.008, 45: 0.045, 75: 0.10},
        brought_men=0.25, tests={"thyroid": 0.95}, follows={"thyroid": 0.3}, again=(0.25, 0.05, 0.5),
    ),
    chronic(
        "gout", "Gout", {440674: "Gout"}, {"women": {40: 0.0003, 75: 0.0025}, "men": {30: 0.0008, 60: 0.004, 80: 0.005}},
        terms={"creatinine": 0.3, "bmi": 0.2}, since={"kidney_disease": (0.5, 300.0)}, brought={30: 0.005, 60: 0.035, 80: 0.06}, brought_men=3.0,
        remedies=(Done(concept=1101556, name="Colchicine", chance=0.5, days=10.0),),
    ),
    chronic(
        "sleep_apnoea", "Sleep apnea", {313459: "Sleep apnea"}, {"women": {30: 0.001, 60: 0.004}, "men": {30: 0.003, 60: 0.008}}, terms={"bmi": 0.4},
        brought={30: 0.015, 60: 0.07}, brought_men=2.0, raises={"fibrillation": 0.2},
    ),
    acute(
        "low_sugar", "Blood sugar too low", {24609: "Blood sugar too low"}, {"all": {30: 0.006, 75: 0.012}}, requires=("diabetes",),
        visit=(0.2, 0.65, 0.15), stay_days=2.0, terms={"insulin": 1.3, "glipizide": 0.7, "kidney_disease": 0.3}, tests={"metabolic": 0.9},
    ),
    chronic(
        "anaemia", "Anemia", {439777: "Anemia", 436659: "Anemia from lack of iron"},
        {"women": {18: 0.008, 45: 0.010, 75: 0.02, 90: 0.03}, "men": {18: 0.001, 45: 0.003, 75: 0.017, 90: 0.035}}, terms={"haemoglobin": -0.7},
        since={"gi_bleed": (2.0, 90.0), "birth": (1.0, 90.0)}, noted=0.6, brought={18: 0.02, 75: 0.06}, shifts={"haemoglobin": -1.3},
        tests={"blood": 0.9, "iron": 0.5}, follows={"blood": 0.25},
    ),
)  # fmt: skip

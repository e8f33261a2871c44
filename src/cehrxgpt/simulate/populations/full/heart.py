"""Heart, vessels and brain: from high blood pressure to bypass and stroke."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import EMERGENCY, HOSPITAL, Done, Entry, acute, chronic

ECG = Done(concept=4163951, name="Electrocardiogram", chance=0.85)
ECHO = Done(concept=4230911, name="Ultrasound of the heart", chance=0.7)
CHEST_XRAY = Done(concept=4163872, name="Chest X-ray", chance=0.6)
HEAD_CT = Done(concept=4125350, name="CT of the head", chance=0.9)

HEART: tuple[Entry, ...] = (
    chronic(
        "hypertension", "High blood pressure", {320128: "High blood pressure"},
        {"women": {18: 0.003, 30: 0.008, 45: 0.025, 60: 0.046, 75: 0.060, 90: 0.055},
         "men": {18: 0.004, 30: 0.013, 45: 0.030, 60: 0.046, 75: 0.055, 90: 0.05}},
        terms={"black": 0.35, "systolic": 0.5, "bmi": 0.15, "diabetes": 0.25}, noted=0.75, again=(0.40, 0.12, 0.7),
        brought={18: 0.02, 30: 0.06, 45: 0.21, 60: 0.43, 75: 0.60, 90: 0.65}, seen_every_days=190.0, shifts={"systolic": 13.0},
        follows={"metabolic": 0.12}, workup=(Done(concept=40481459, name="Advice on high blood pressure", chance=0.3), ECG),
        raises={"kidney_disease": 0.4, "coronary_disease": 0.25, "heart_failure": 0.25, "fibrillation": 0.25, "stroke": 0.35, "dementia": 0.1},
    ),
    chronic(
        "hyperlipidemia", "High blood lipids", {432867: "High blood lipids", 4120314: "High triglycerides"},
        {"all": {18: 0.003, 30: 0.010, 45: 0.030, 60: 0.045, 75: 0.035, 90: 0.015}}, terms={"ldl": 0.5, "diabetes": 0.3, "bmi": 0.1}, noted=0.7,
        again=(0.35, 0.05, 0.5), brought={18: 0.01, 30: 0.05, 45: 0.20, 60: 0.40, 75: 0.50, 90: 0.40}, seen_every_days=230.0, shifts={"ldl": 22.0},
        follows={"lipids": 0.15}, raises={"coronary_disease": 0.25},
    ),
    chronic(
        "coronary_disease", "Coronary artery disease",
        {317576: "Coronary artery disease", 764123: "Coronary disease without angina", 36712983: "Coronary disease with angina"},
        {"women": {30: 0.00004, 45: 0.0003, 60: 0.0012, 75: 0.0032, 90: 0.0052}, "men": {30: 0.00008, 45: 8e-4, 60: 0.0029, 75: 0.0056, 90: 0.0076}},
        terms={"ldl": 0.25, "systolic": 0.15, "statin": -0.35, "bmi": 0.1}, since={"chest_pain": (6.6, 150.0), "diabetes": (0.8, 700.0)},
        visit=(0.7, 0.1, 0.2), stay_days=2.0, noted=0.85, again=(0.45, 0.25, 0.75), ruled_out={"chest_pain": 0.015},
        brought={30: 0.001, 45: 0.018, 60: 0.075, 75: 0.17, 90: 0.24}, brought_men=1.9, seen_every_days=140.0,
        follows={"lipids": 0.12, "blood": 0.08}, workup=(Done(concept=4296597, name="Exercise stress test", chance=0.5), ECG, ECHO),
        raises={"infarction": 1.1, "heart_failure": 0.8, "chest_pain": 1.3, "fibrillation": 0.3, "stroke": 0.2, "death": 0.12},
    ),
    acute(
        "infarction", "Heart attack", {4329847: "Heart attack", 312327: "Acute heart attack"},
        {"women": {30: 0.0001, 45: 0.0005, 60: 0.0013, 75: 0.0034, 90: 0.0085}, "men": {30: 0.0002, 45: 0.0014, 60: 0.0030, 75: 0.0052, 90: 0.0105}},
        sets=("infarction", "coronary_disease"), visit=HOSPITAL, stay_days=3.0, intensive=0.45,
        terms={"diabetes": 0.35, "ldl": 0.25, "statin": -0.35, "bypass": -0.4, "aspirin": -0.2, "kidney_disease": 0.3},
        since={"coronary_disease": (1.0, 120.0), "chest_pain": (1.6, 60.0), "infarction": (1.2, 120.0), "pneumonia": (0.8, 60.0)}, noted=0.97,
        again=(0.20, 0.15, 0.3), fades_days=200.0, ruled_out={"chest_pain": 0.025}, brought={30: 0.0005, 45: 0.01, 60: 0.035, 75: 0.075, 90: 0.11},
        brought_men=2.2, tests={"heart": 0.97, "metabolic": 0.9, "blood": 0.9}, workup=(ECG, ECHO),
        remedies=(Done(concept=1361711, name="Nitroglycerin", chance=0.6, days=2.0), Done(concept=1367571, name="Heparin", chance=0.7, days=3.0),
                  Done(concept=1112807, name="Aspirin", chance=0.8, days=30.0)),
        raises={"heart_failure": 0.5, "death": 0.2, "depression": 0.2, "coronary_intervention": 0.3},
    ),
    chronic(
        "heart_failure", "Heart failure",
        {316139: "Heart failure", 319835: "Congestive heart failure", 443580: "Systolic heart failure", 443587: "Diastolic heart failure"},
        {"women": {30: 0.00003, 45: 0.0002, 60: 0.0007, 75: 0.0022, 90: 0.007}, "men": {30: 0.00005, 45: 0.0004, 60: 0.0012, 75: 0.0031, 90: 0.0085}},
        terms={"diabetes": 0.4, "systolic": 0.2, "bmi": 0.2, "hba1c": 0.2, "creatinine": 0.2, "lisinopril": -0.2, "losartan": -0.2,
               "empagliflozin": -0.35},
        since={"emergency": (1.7, 150.0), "discharge": (1.4, 150.0), "infarction": (2.4, 120.0), "fibrillation": (2.6, 150.0),
               "coronary_disease": (2.8, 400.0), "clinic": (0.8, 60.0), "diabetes": (2.2, 800.0), "hypertension": (2.8, 600.0)},
        visit=(0.45, 0.1, 0.45), stay_days=4.5, intensive=0.1, noted=0.85, again=(0.45, 0.35, 0.85),
        ruled_out={"emergency": 0.006, "exacerbation": 0.05}, brought={30: 0.001, 45: 0.006, 60: 0.022, 75: 0.06, 90: 0.13}, brought_men=1.25,
        seen_every_days=95.0, tests={"heart": 0.9, "metabolic": 0.7, "blood": 0.6}, follows={"heart": 0.12, "metabolic": 0.15},
        workup=(ECHO, ECG, CHEST_XRAY), devices=(Done(concept=4217646, name="Implanted defibrillator", chance=0.05),),
        shifts={"ntprobnp": 2.2, "creatinine": 0.08, "potassium": 0.1},
        raises={"death": 0.55, "kidney_disease": 0.4, "fibrillation": 0.7, "pneumonia": 0.4, "illness": 0.3, "stroke": 0.2},
    ),
    acute(
        "decompensation", "Heart failure", {316139: "Heart failure", 319835: "Congestive heart failure", 4229440: "Chronic congestive heart failure"},
        {"all": {40: 0.045, 65: 0.06, 90: 0.075}}, requires=("heart_failure",), visit=(0.0, 0.2, 0.8), stay_days=4.5, intensive=0.12,
        terms={"creatinine": 0.25, "kidney_disease": 0.3, "lisinopril": -0.2, "losartan": -0.2, "metoprolol": -0.15, "furosemide": -0.15,
               "empagliflozin": -0.3, "spironolactone": -0.15, "frailty": 0.25, "potassium": 0.1},
        since={"admission": (6.2, 12.0), "earlier_discharge": (2.6, 110.0), "clinic": (1.3, 20.0), "heart_failure": (1.2, 150.0),
               "pneumonia": (0.8, 30.0)}, noted=0.98, tests={"heart": 0.9, "metabolic": 0.95, "blood": 0.7}, workup=(CHEST_XRAY, ECG),
        remedies=(Done(concept=35603224, name="Furosemide into a vein", chance=0.8, days=3.0),),
    ),
    chronic(
        "fibrillation", "Atrial fibrillation",
        {313217: "Atrial fibrillation", 4154290: "Paroxysmal atrial fibrillation", 4232697: "Persistent atrial fibrillation"},
        {"women": {30: 0.0001, 45: 0.0005, 60: 0.0028, 75: 0.012, 90: 0.026}, "men": {30: 0.0003, 45: 0.0014, 60: 0.0052, 75: 0.0155, 90: 0.028}},
        terms={"bmi": 0.2, "frailty": 0.1}, since={"emergency": (1.0, 60.0), "bypass": (2.5, 20.0), "pneumonia": (1.0, 40.0), "sepsis": (1.5, 30.0)},
        visit=(0.45, 0.30, 0.25), stay_days=2.5, noted=0.88, again=(0.40, 0.30, 0.8), ruled_out={"emergency": 0.002},
        brought={30: 0.001, 45: 0.006, 60: 0.03, 75: 0.095, 90: 0.17}, brought_men=1.4, seen_every_days=150.0, workup=(ECG, ECHO),
        follows={"coagulation": 0.12}, tests={"thyroid": 0.4, "metabolic": 0.5},
        devices=(Done(concept=45772840, name="Implanted pacemaker", chance=0.06),), raises={"death": 0.2, "dementia": 0.15},
    ),
    acute(
        "stroke", "Ischemic stroke", {443454: "Ischemic stroke", 4110192: "Stroke by thrombosis of brain arteries", 4108356: "Stroke by embolism"},
        {"all": {30: 0.0001, 45: 0.0006, 60: 0.0015, 75: 0.0044, 90: 0.0105}},
        terms={"fibrillation": 0.9, "diabetes": 0.35, "systolic": 0.25, "apixaban": -0.9, "warfarin": -0.8, "statin": -0.2, "black": 0.3},
        since={"stroke": (1.8, 150.0), "fibrillation": (1.8, 150.0), "infarction": (1.0, 60.0), "discharge": (0.5, 60.0)}, visit=HOSPITAL,
        stay_days=4.5, intensive=0.2, noted=0.96, again=(0.22, 0.15, 0.35), fades_days=250.0, ruled_out={"emergency": 0.004},
        brought={30: 0.001, 45: 0.01, 60: 0.03, 75: 0.07, 90: 0.12}, tests={"metabolic": 0.9, "blood": 0.9, "coagulation": 0.7, "lipids": 0.6},
        workup=(HEAD_CT, ECG, ECHO), remedies=(Done(concept=1347450, name="Alteplase", chance=0.1, days=1.0),),
        raises={"death": 0.35, "dementia": 0.5, "depression": 0.4, "pneumonia": 0.3, "fall": 0.3},
    ),
    acute(
        "bypass", "Coronary bypass graft", {},
        {"women": {40: 0.0002, 60: 0.0005, 75: 0.00045, 90: 0.00015}, "men": {40: 0.0004, 60: 0.0009, 75: 0.0007, 90: 0.0002}},
        requires=("coronary_disease",), forbids=("bypass",), visit=HOSPITAL, stay_days=5.0, intensive=1.0, in_stay=True, by_day=True,
        terms={"diabetes": 0.5, "ldl": 0.3, "kidney_disease": -0.3, "coronary_intervention": -0.7, "in_hospital": 0.8, "frailty": -0.3},
        since={"coronary_disease": (3.2, 250.0), "chest_pain": (7.4, 40.0), "infarction": (3.4, 20.0), "hyperlipidemia": (7.2, 330.0),
               "diabetes": (6.2, 330.0)}, brought={45: 0.002, 60: 0.015, 75: 0.045, 90: 0.05}, brought_men=3.0,
        workup=(Done(concept=4336464, name="Coronary bypass graft"), Done(concept=4230167, name="Breathing by machine", chance=0.9)),
        tests={"blood": 1.0, "metabolic": 1.0, "coagulation": 0.9}, chronic=True, raises={"chest_pain": -0.6},
    ),
    acute(
        "coronary_intervention", "Catheter intervention", {}, {"all": {40: 0.020, 60: 0.022, 90: 0.010}}, requires=("coronary_disease",),
        visit=(0.0, 0.0, 1.0), stay_days=1.3, in_stay=True, by_day=True, terms={"coronary_intervention": -0.4, "bypass": -0.8, "in_hospital": 2.0},
        since={"coronary_disease": (1.8, 60.0), "infarction": (2.6, 5.0), "chest_pain": (1.5, 60.0)},
        brought={45: 0.008, 60: 0.03, 75: 0.06, 90: 0.06}, brought_men=2.0,
        workup=(Done(concept=4216130, name="Coronary intervention through a catheter"),),
        devices=(Done(concept=45767945, name="Stent in a coronary artery", chance=0.85),),
    ),
    acute(
        "chest_pain", "Chest pain", {77670: "Chest pain"}, {"all": {18: 0.010, 45: 0.022, 70: 0.028, 90: 0.030}}, visit=(0.25, 0.75, 0.0),
        terms={"frailty": 0.2, "anxiety": 0.4}, since={"chest_pain": (1.2, 120.0)}, tests={"heart": 0.8, "metabolic": 0.5, "blood": 0.5},
        workup=(ECG, CHEST_XRAY),
    ),
    chronic(
        "artery_disease", "Disease of the leg arteries", {321052: "Disease of the peripheral vessels"},
        {"all": {40: 0.0002, 60: 0.003, 75: 0.008, 90: 0.012}}, terms={"diabetes": 0.6, "male": 0.2, "statin": -0.2}, noted=0.6,
        brought={45: 0.005, 60: 0.03, 75: 0.08, 90: 0.12}, raises={"infarction": 0.3, "stroke": 0.25, "death": 0.15},
    ),
    acute(
        "fainting", "Fainting", {135360: "Fainting"}, {"all": {18: 0.004, 50: 0.004, 75: 0.012, 90: 0.025}}, visit=EMERGENCY, workup=(ECG, HEAD_CT),
        since={"hypertension": (0.4, 200.0)}, tests={"metabolic": 0.6, "blood": 0.6},
    ),
)  # fmt: skip

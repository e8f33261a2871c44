"""Lasting treatments: who gets them, since when they are in use, and what they do."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import Medicine

MEDICINES: tuple[Medicine, ...] = (
    Medicine(
        name="metformin", concept=1503297, label="Metformin", products={40163924: "Metformin, slow release"}, indications=("diabetes",), when_new=0.7,
        later=0.12, shifts={"hba1c": -0.8}, forbids=("kidney_failure",),
    ),
    Medicine(
        name="glipizide", concept=1560171, label="Glipizide", indications=("diabetes",), when_new=0.15, later=0.05, shifts={"hba1c": -0.6},
        uptake=(2016.0, -3.0),
    ),
    Medicine(
        name="sitagliptin", concept=1580747, label="Sitagliptin", indications=("diabetes",), when_new=0.05, later=0.03, uptake=(2009.0, 1.5),
        shifts={"hba1c": -0.4},
    ),
    Medicine(
        name="empagliflozin", concept=45774751, label="Empagliflozin", indications=("diabetes", "heart_failure"), when_new=0.18, later=0.09,
        uptake=(2019.5, 1.1), shifts={"hba1c": -0.5, "systolic": -2.0}, effects={"death": -0.12},
    ),
    Medicine(
        name="semaglutide", concept=793143, label="Semaglutide", indications=("diabetes", "obesity"), when_new=0.12, later=0.07, uptake=(2020.8, 0.8),
        shifts={"hba1c": -0.9, "bmi": -3.0}, effects={"infarction": -0.15},
    ),
    Medicine(
        name="insulin", concept=1502905, label="Insulin glargine", products={1596977: "Insulin, regular"}, indications=("diabetes",), when_new=0.05,
        later=0.02, stop=0.01, shifts={"hba1c": -0.9, "bmi": 0.8},
    ),
    Medicine(
        name="lisinopril", concept=1308216, label="Lisinopril", products={19080128: "Lisinopril 10 mg", 19080129: "Lisinopril 20 mg"},
        indications=("hypertension", "heart_failure", "kidney_disease"), when_new=0.42, later=0.06, shifts={"systolic": -8.0, "potassium": 0.12},
        effects={"death": -0.05}, stop=0.03,
    ),
    Medicine(
        name="losartan", concept=1367500, label="Losartan", products={40185304: "Losartan 50 mg", 40185280: "Losartan 25 mg"},
        indications=("hypertension", "heart_failure"), when_new=0.16, later=0.04, uptake=(2011.0, 4.0), shifts={"systolic": -8.0, "potassium": 0.1},
    ),
    Medicine(
        name="amlodipine", concept=1332418, label="Amlodipine", products={1332419: "Amlodipine 5 mg"}, indications=("hypertension",), when_new=0.25,
        later=0.06, shifts={"systolic": -8.0},
    ),
    Medicine(
        name="hydrochlorothiazide", concept=974166, label="Hydrochlorothiazide", products={19078106: "Hydrochlorothiazide 25 mg"},
        indications=("hypertension",), when_new=0.22, later=0.04, shifts={"systolic": -6.0, "potassium": -0.2},
    ),
    Medicine(
        name="metoprolol", concept=1307046, label="Metoprolol", indications=("coronary_disease", "heart_failure", "fibrillation", "infarction"),
        when_new=0.55, later=0.10, shifts={"systolic": -3.0}, effects={"death": -0.05},
    ),
    Medicine(
        name="furosemide", concept=956874, label="Furosemide", products={957136: "Furosemide 40 mg"}, indications=("heart_failure",), when_new=0.65,
        later=0.15, shifts={"potassium": -0.2},
    ),
    Medicine(
        name="spironolactone", concept=970250, label="Spironolactone", products={19079658: "Spironolactone 25 mg"}, indications=("heart_failure",),
        when_new=0.15, later=0.04, shifts={"potassium": 0.25}, effects={"death": -0.1},
    ),
    Medicine(
        name="statin", concept=1545958, label="Atorvastatin", products={1545959: "Atorvastatin 80 mg"},
        indications=("hyperlipidemia", "coronary_disease", "stroke", "diabetes"), when_new=0.45, later=0.08, shifts={"ldl": -42.0},
    ),
    Medicine(
        name="aspirin", concept=1112807, label="Aspirin", products={19059056: "Aspirin 81 mg"}, indications=("coronary_disease", "stroke"),
        when_new=0.6, later=0.08,
    ),
    Medicine(
        name="clopidogrel", concept=1322184, label="Clopidogrel", products={19075601: "Clopidogrel 75 mg"},
        indications=("coronary_intervention", "stroke"), when_new=0.8, later=0.02, stop=0.25,
    ),
    Medicine(
        name="warfarin", concept=1310149, label="Warfarin", products={40163554: "Warfarin 5 mg"}, indications=("fibrillation", "clot", "embolism"),
        when_new=0.6, later=0.10, uptake=(2014.5, -1.6), starts="warfarin_start", stop=0.05,
    ),
    Medicine(
        name="apixaban", concept=43013024, label="Apixaban", indications=("fibrillation", "clot", "embolism"), when_new=0.62, later=0.14,
        uptake=(2015.5, 1.2), stop=0.04,
    ),
    Medicine(
        name="nsaid_drug", concept=1124300, label="Diclofenac", products={40162359: "Diclofenac 75 mg"},
        indications=("osteoarthritis", "back_pain", "arthritis"), when_new=0.10, later=0.015, stop=0.30, starts="nsaid",
    ),
    Medicine(
        name="celecoxib", concept=1118084, label="Celecoxib", products={1118088: "Celecoxib 200 mg"}, indications=("osteoarthritis", "arthritis"),
        when_new=0.09, later=0.012, stop=0.25, starts="nsaid", effects={"gi_bleed": 0.3},
    ),
    Medicine(
        name="omeprazole", concept=923645, label="Omeprazole", indications=("reflux", "ulcer", "gi_bleed"), when_new=0.65, later=0.06, stop=0.06,
    ),
    Medicine(name="tiotropium", concept=1106776, label="Tiotropium", indications=("lung_disease",), when_new=0.35, later=0.10, uptake=(2007.0, 2.0)),
    Medicine(
        name="salmeterol", concept=1137529, label="Salmeterol", products={40169281: "Fluticasone with salmeterol"},
        indications=("lung_disease", "asthma"), when_new=0.25, later=0.05,
    ),
    Medicine(
        name="albuterol", concept=1154343, label="Albuterol", products={1154615: "Albuterol inhaler"}, indications=("asthma", "lung_disease"),
        when_new=0.8, later=0.15, refill=0.25,
    ),
    Medicine(
        name="sertraline", concept=739138, label="Sertraline", products={739207: "Sertraline 100 mg"}, indications=("depression", "anxiety"),
        when_new=0.40, later=0.06, stop=0.08,
    ),
    Medicine(
        name="levothyroxine", concept=1501700, label="Levothyroxine", products={40174880: "Levothyroxine 75 micrograms"}, indications=("thyroid",),
        when_new=0.9, later=0.3, stop=0.005, refill=0.3,
    ),
    Medicine(
        name="allopurinol", concept=1167322, label="Allopurinol", products={1167323: "Allopurinol 100 mg"}, indications=("gout",), when_new=0.3,
        later=0.06,
    ),
    Medicine(
        name="iron", concept=1396131, label="Ferrous sulfate", products={19077344: "Ferrous sulfate 325 mg"}, indications=("anaemia", "pregnancy"),
        when_new=0.45, later=0.03, stop=0.35, shifts={"haemoglobin": 0.6},
    ),
    Medicine(
        name="donepezil", concept=715997, label="Donepezil", products={40223768: "Donepezil 10 mg"}, indications=("dementia",), when_new=0.35,
        later=0.05, stop=0.05,
    ),
    Medicine(
        name="zolpidem", concept=744740, label="Zolpidem", indications=("insomnia",), when_new=0.35, later=0.03, stop=0.15, uptake=(2018.0, -4.0),
        effects={"fall": 0.4},
    ),
)  # fmt: skip

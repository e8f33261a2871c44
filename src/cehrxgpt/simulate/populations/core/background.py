"""What else fills a record: common complaints, long-standing conditions, their drugs and procedures. None of it drives a hazard.

Real OMOP concept ids; names in plain words of our own. Rates and weights are those of a woman of 65; `age` is the log ratio per decade above
65, `male` that of men.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Longstanding:
    """A condition that people have or get (`per_year`), noted at some visits from then on, with its drug."""

    concept: int
    name: str
    per_year: float
    age: float = 0.0
    male: float = 0.0
    drug: int = 0


@dataclass(frozen=True)
class Complaint:
    """The reason for an unplanned visit, drawn by `weight`, with what is done about it."""

    concept: int
    name: str
    weight: float
    age: float = 0.0
    male: float = 0.0
    drug: int = 0
    procedure: int = 0


LONGSTANDING: tuple[Longstanding, ...] = (
    Longstanding(80180, "Osteoarthritis", 0.030, 0.4, -0.3, 1115008),
    Longstanding(4079750, "Osteoarthritis of the knee", 0.012, 0.4, -0.2, 1177480),
    Longstanding(318800, "Acid reflux", 0.025, 0.1, 0.0, 923645),
    Longstanding(140673, "Underactive thyroid", 0.012, 0.2, -1.2, 1501700),
    Longstanding(440383, "Depression", 0.015, -0.1, -0.5, 739138),
    Longstanding(442077, "Anxiety", 0.014, -0.2, -0.5, 739138),
    Longstanding(80502, "Osteoporosis", 0.010, 0.7, -1.8, 1557272),
    Longstanding(440674, "Gout", 0.007, 0.2, 1.0, 1167322),
    Longstanding(317009, "Asthma", 0.008, -0.1, -0.2, 1154343),
    Longstanding(433736, "Obesity", 0.030, -0.3, -0.1),
    Longstanding(4132891, "Long-lasting low back pain", 0.020, 0.0, 0.0, 797399),
    Longstanding(198803, "Enlarged prostate", 0.010, 0.5, 3.0, 924566),
    Longstanding(436962, "Insomnia", 0.012, 0.1, -0.2),
    Longstanding(4266809, "Diverticular disease", 0.009, 0.4, 0.0),
    Longstanding(80809, "Rheumatoid arthritis", 0.003, 0.1, -0.9, 1305058),
    Longstanding(439777, "Anemia", 0.012, 0.4, -0.3, 1396131),
    Longstanding(375545, "Cataract", 0.016, 0.8, -0.1),
    Longstanding(313459, "Sleep apnea", 0.010, 0.0, 0.6),
    Longstanding(4112853, "Breast cancer", 0.004, 0.2, -5.0),
    Longstanding(4285898, "Polyp of the colon", 0.010, 0.3, 0.3),
    Longstanding(378419, "Alzheimer's disease", 0.003, 1.2, -0.2, 715997),
    Longstanding(4280726, "Hay fever", 0.014, -0.3, 0.0, 1107830),
    Longstanding(318736, "Migraine", 0.006, -0.5, -0.9, 1125315),
    Longstanding(436070, "Lack of vitamin D", 0.015, 0.1, -0.2),
)

CLINIC: tuple[Complaint, ...] = (
    Complaint(260139, "Acute bronchitis", 10, 0.0, 0.0, 1734104),
    Complaint(40481087, "Viral sinusitis", 9, -0.3, -0.1, 1125315),
    Complaint(4112343, "Viral sore throat", 7, -0.4, 0.0, 1125315),
    Complaint(81902, "Urinary tract infection", 8, 0.3, -1.3, 920293),
    Complaint(195588, "Bladder infection", 4, 0.2, -1.3, 920293),
    Complaint(254761, "Cough", 6, 0.0, 0.0, 0, 4163872),
    Complaint(378253, "Headache", 5, -0.3, -0.4, 1125315),
    Complaint(4223659, "Tiredness", 6, 0.1, -0.2),
    Complaint(77074, "Joint pain", 8, 0.2, -0.1, 1177480),
    Complaint(4223938, "Dizziness", 6, 0.3, -0.1, 0, 4163951),
    Complaint(81151, "Sprained ankle", 3, -0.4, 0.0, 1177480),
    Complaint(78272, "Sprained wrist", 3, -0.2, 0.0, 1177480),
    Complaint(442752, "Muscle pain", 6, 0.0, 0.0, 1115008),
    Complaint(134438, "Contact rash", 4, -0.1, 0.0, 975125),
    Complaint(75860, "Constipation", 4, 0.3, -0.3),
    Complaint(372328, "Middle ear infection", 2, -0.4, 0.0, 1713332),
    Complaint(4283893, "Sinusitis", 4, -0.2, -0.2, 1713332),
    Complaint(4145808, "Diarrhea", 3, 0.0, 0.0),
    Complaint(435613, "Skin infection", 3, 0.1, 0.2, 1786621),
)

EMERGENCY: tuple[Complaint, ...] = (
    Complaint(4113008, "Cut hand", 6, -0.2, 0.4, 0, 4125906),
    Complaint(4156265, "Cut in the face", 3, 0.2, 0.2, 0, 4125906),
    Complaint(4278672, "Broken forearm", 4, 0.2, -0.4, 1124957, 4170947),
    Complaint(4059173, "Broken ankle", 3, 0.0, -0.1, 1124957, 4170947),
    Complaint(378001, "Concussion", 3, 0.1, 0.0, 0, 4125350),
    Complaint(4084167, "Allergic reaction", 3, -0.3, -0.1, 1129625),
    Complaint(200219, "Belly pain", 9, 0.0, -0.2, 1000560),
    Complaint(4096715, "Vomiting", 5, 0.0, -0.1, 1000560),
    Complaint(312437, "Short of breath", 8, 0.3, 0.0, 1154343, 4163872),
    Complaint(437663, "Fever", 4, 0.0, 0.0, 1125315),
    Complaint(135360, "Fainting", 4, 0.3, 0.0, 967823, 4163951),
    Complaint(378253, "Headache", 4, -0.2, -0.3, 1125315, 4125350),
)

ILLNESS: tuple[Complaint, ...] = (
    Complaint(255848, "Pneumonia", 14, 0.3, 0.1, 1777806, 4163872),
    Complaint(132797, "Sepsis", 8, 0.3, 0.1, 1777806, 4085731),
    Complaint(198199, "Kidney infection", 6, 0.1, -0.8, 1777806),
    Complaint(4230399, "Broken hip", 6, 0.9, -0.5, 1110410, 4203771),
    Complaint(198809, "Inflamed gallbladder", 6, 0.0, -0.2, 1777806, 4163971),
    Complaint(192671, "Bleeding of stomach or gut", 6, 0.2, 0.2, 923645, 4249893),
    Complaint(440448, "Appendicitis", 3, -0.4, 0.1, 1771162, 4198190),
    Complaint(44782746, "Clot in a deep vein", 4, 0.1, 0.0, 1367571),
    Complaint(45768439, "Clot in the lung", 4, 0.2, 0.0, 1367571),
    Complaint(319049, "Acute breathing failure", 5, 0.2, 0.0, 1551099, 4162736),
    Complaint(197320, "Acute kidney failure", 7, 0.3, 0.1, 967823),
    Complaint(435613, "Skin infection", 6, 0.1, 0.2, 1771162),
    Complaint(80180, "Osteoarthritis", 8, 0.1, -0.1, 1124957, 43531648),
)

CHECKUP_PROCEDURES: tuple[tuple[int, str, float, float], ...] = (
    # concept, name, chance at a check-up of a woman, of a man
    (4240345, "Physical examination", 0.12, 0.12),
    (4249893, "Colonoscopy", 0.02, 0.02),
    (4324693, "Mammography", 0.06, 0.0),
    (4195803, "Bone density scan", 0.03, 0.005),
    (4163951, "Electrocardiogram", 0.05, 0.06),
    (4326177, "Review of all drugs taken", 0.06, 0.06),
)
DIAGNOSIS_PROCEDURES: dict[str, tuple[tuple[int, str, float], ...]] = {
    # what goes with a new diagnosis: concept, name, chance
    "coronary_disease": ((4296597, "Exercise stress test", 0.5), (4163951, "Electrocardiogram", 0.7)),
    "heart_failure": ((4230911, "Ultrasound of the heart", 0.8), (4163872, "Chest X-ray", 0.5)),
    "fibrillation": ((4163951, "Electrocardiogram", 0.9), (4230911, "Ultrasound of the heart", 0.4)),
    "infarction": ((4163951, "Electrocardiogram", 0.9),),
    "stroke": ((4125350, "CT of the head", 0.9),),
    "chest_pain": ((4163951, "Electrocardiogram", 0.8),),
}

DRUG_NAMES: dict[int, str] = {
    1115008: "Naproxen", 1177480: "Ibuprofen", 923645: "Omeprazole", 1501700: "Levothyroxine", 739138: "Sertraline", 1557272: "Alendronate",
    1167322: "Allopurinol", 1154343: "Albuterol", 797399: "Gabapentin", 924566: "Tamsulosin", 1305058: "Methotrexate", 1396131: "Ferrous sulfate",
    715997: "Donepezil", 1107830: "Loratadine", 1125315: "Acetaminophen", 1734104: "Azithromycin", 920293: "Nitrofurantoin", 975125: "Hydrocortisone",
    1713332: "Amoxicillin", 1786621: "Cephalexin", 1124957: "Oxycodone", 1129625: "Diphenhydramine", 1000560: "Ondansetron",
    967823: "Sodium chloride",
    1777806: "Ceftriaxone", 1110410: "Morphine", 1771162: "Cefazolin", 1367571: "Heparin", 1551099: "Prednisone", 1112807: "Aspirin",
    1322184: "Clopidogrel", 1361711: "Nitroglycerin",
}  # fmt: skip
PROCEDURE_NAMES: dict[int, str] = {
    4163872: "Chest X-ray", 4163951: "Electrocardiogram", 4125906: "Stitching a wound", 4170947: "Setting a bone", 4125350: "CT of the head",
    4085731: "Antibiotics into a vein", 4203771: "New hip joint", 4163971: "Gallbladder removal", 4249893: "Colonoscopy", 4198190: "Appendix removal",
    4162736: "Oxygen by mask", 43531648: "New knee joint",
}  # fmt: skip

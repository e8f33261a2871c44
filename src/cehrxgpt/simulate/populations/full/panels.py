"""Laboratory and vital signs: what is measured, in which unit, around which level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cehrxgpt.simulate.concepts import G_DL, KG_M2, MG_DL, MMHG, MMOL_L, PER_MINUTE, PERCENT, PG_ML, THOUSAND_UL
from cehrxgpt.simulate.declare import Floats, Level

U_L, NG_ML, MG_L, CELSIUS, KG, CM, MIU_L, FL = 8645, 8842, 8751, 586323, 9529, 8582, 9040, 8583

LEVELS: tuple[Level, ...] = (
    Level(name="hba1c", centre=5.7, scale=1.0, offset_sd=0.30, noise_sd=0.22, rest=5.55, per_decade=0.05),
    Level(name="creatinine", centre=-0.1, scale=0.25, offset_sd=0.15, noise_sd=0.07, rest=-0.23, per_decade=0.025, male=0.21),  # log mg/dL
    Level(name="systolic", centre=125.0, scale=15.0, offset_sd=9.5, noise_sd=7.0, rest=126.0, per_decade=3.4, male=3.0),
    Level(name="ldl", centre=113.0, scale=33.0, offset_sd=25.0, noise_sd=13.0, rest=119.0, per_decade=2.0),
    Level(name="bmi", centre=29.0, scale=6.0, offset_sd=6.0, noise_sd=1.0, rest=28.6, per_decade=0.1),
    Level(name="haemoglobin", centre=13.8, scale=1.4, offset_sd=0.8, noise_sd=0.45, rest=13.45, per_decade=-0.05, male=1.45),
    Level(name="potassium", centre=4.1, scale=0.4, offset_sd=0.18, noise_sd=0.20, rest=4.08, per_decade=0.02),
    Level(name="ntprobnp", centre=4.5, scale=1.0, offset_sd=0.45, noise_sd=0.40, rest=4.9, per_decade=0.45),  # log pg/mL
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Test:
    """One measurement: a latent level (`latent`, perhaps its exponential), a mean that diseases and levels shift, or made up of other tests.

    Attributes:
        made: of what the tests `of` measure at that time, in their usual units.
        positive_above: what is written is "positive" above this, else "negative".
        error_sd: of measuring (relative where `logarithmic`).
        by: level -> slope; by_disease: disease -> shift; acute: marker -> (shift, days in which it falls to 1/e).
    """

    name: str
    label: str
    concept: int
    unit: int
    text: str
    mean: float = 0.0
    male: float = 0.0
    own_sd: float = 0.0
    error_sd: float = 0.0
    digits: int = 1
    low: float = 0.0
    latent: bool = False
    of: tuple[str, ...] = ()
    made: Callable[..., Floats] | None = None
    positive_above: float | None = None
    logarithmic: bool = False
    by: Mapping[str, float] = field(default_factory=dict)
    by_disease: Mapping[str, float] = field(default_factory=dict)
    acute: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def _weight(bmi: Floats, height_cm: Floats) -> Floats:
    return bmi * (height_cm / 100) ** 2


def _cholesterol(hdl: Floats, ldl: Floats, triglycerides: Floats) -> Floats:
    return hdl + ldl + triglycerides / 5  # what is in neither is about a fifth of the triglycerides (Friedewald)


def _itself(value: Floats) -> Floats:
    return value


TESTS: tuple[Test, ...] = (
    Test(name="hba1c", label="Glycated hemoglobin", concept=3004410, unit=PERCENT, text="%", latent=True, error_sd=0.10, low=4.0),
    Test(name="creatinine", label="Creatinine in serum", concept=3016723, unit=MG_DL, text="mg/dL", latent=True, logarithmic=True, error_sd=0.05,
         digits=2, low=0.3, acute={"kidney_injury": (0.9, 8.0), "sepsis": (0.3, 6.0)}),
    Test(name="systolic", label="Systolic blood pressure", concept=3004249, unit=MMHG, text="mmHg", latent=True, error_sd=6.0, digits=0, low=70.0,
         acute={"sepsis": (-20.0, 3.0)}),
    Test(name="ldl", label="LDL cholesterol", concept=3028437, unit=MG_DL, text="mg/dL", latent=True, error_sd=6.0, digits=0, low=20.0),
    Test(name="bmi", label="Body mass index", concept=3038553, unit=KG_M2, text="kg/m2", latent=True, error_sd=0.2, low=14.0),
    Test(name="haemoglobin", label="Hemoglobin in blood", concept=3000963, unit=G_DL, text="g/dL", latent=True, error_sd=0.2, low=4.5,
         acute={"gi_bleed": (-3.0, 40.0), "birth": (-1.3, 40.0), "hip_fracture": (-2.0, 30.0), "bypass": (-3.0, 30.0), "chemotherapy": (-1.2, 60.0)}),
    Test(name="potassium", label="Potassium in serum", concept=3023103, unit=MMOL_L, text="mmol/L", latent=True, error_sd=0.15, low=2.3,
         acute={"kidney_injury": (0.6, 4.0), "gastroenteritis": (-0.4, 4.0)}),
    Test(name="ntprobnp", label="NT-proBNP in serum", concept=3029187, unit=PG_ML, text="pg/mL", latent=True, logarithmic=True, error_sd=0.2,
         digits=0, low=5.0, acute={"decompensation": (1.2, 20.0), "infarction": (0.9, 20.0)}),
    Test(name="diastolic", label="Diastolic blood pressure", concept=3012888, unit=MMHG, text="mmHg", mean=14.0, by={"systolic": 0.49}, own_sd=5.0,
         error_sd=5.0, digits=0, low=35.0),
    Test(name="heart_rate", label="Heart rate", concept=3027018, unit=PER_MINUTE, text="/min", mean=75.0, own_sd=7.0, error_sd=7.0, digits=0,
         low=38.0, by_disease={"fibrillation": 6.0, "heart_failure": 3.0},
         acute={"sepsis": (22.0, 3.0), "pneumonia": (12.0, 4.0), "embolism": (18.0, 4.0)}),
    Test(name="temperature", label="Body temperature", concept=3020891, unit=CELSIUS, text="Cel", mean=36.7, own_sd=0.15, error_sd=0.25, digits=1,
         low=34.0,
         acute={"sepsis": (1.4, 2.0), "pneumonia": (1.1, 3.0), "influenza": (1.4, 2.0), "covid": (1.0, 4.0), "kidney_infection": (1.2, 2.0)}),
    Test(name="breaths", label="Breathing rate", concept=3024171, unit=PER_MINUTE, text="/min", mean=16.0, own_sd=1.0, error_sd=1.5, digits=0,
         low=8.0, by_disease={"lung_disease": 1.5}, acute={"respiratory_failure": (9.0, 3.0), "pneumonia": (5.0, 3.0), "exacerbation": (6.0, 3.0)}),
    Test(name="oxygen", label="Oxygen saturation", concept=40762499, unit=PERCENT, text="%", mean=97.3, own_sd=0.5, error_sd=0.8, digits=0, low=60.0,
         by_disease={"lung_disease": -2.5, "heart_failure": -0.7},
         acute={"respiratory_failure": (-9.0, 3.0), "pneumonia": (-3.5, 4.0), "covid": (-3.0, 6.0), "exacerbation": (-4.0, 3.0)}),
    Test(name="weight", label="Body weight", concept=3025315, unit=KG, text="kg", of=("bmi", "height"), made=_weight, error_sd=0.3, low=32.0),
    Test(name="height", label="Body height", concept=3036277, unit=CM, text="cm", mean=162.0, male=13.5, own_sd=6.5, error_sd=0.3, digits=0,
         low=130.0),
    Test(name="sodium", label="Sodium in serum", concept=3019550, unit=MMOL_L, text="mmol/L", mean=139.8, own_sd=1.4, error_sd=1.6, digits=0,
         low=112.0, by_disease={"heart_failure": -1.5}),
    Test(name="chloride", label="Chloride in serum", concept=3014576, unit=MMOL_L, text="mmol/L", mean=103.5, own_sd=1.5, error_sd=1.8, digits=0,
         low=80.0),
    Test(name="carbon_dioxide", label="Carbon dioxide in serum", concept=3015632, unit=MMOL_L, text="mmol/L", mean=25.5, own_sd=1.3, error_sd=1.6,
         digits=0, low=8.0, by_disease={"kidney_failure": -3.0, "lung_disease": 1.5}, acute={"sepsis": (-5.0, 3.0)}),
    Test(name="calcium", label="Calcium in serum", concept=3006906, unit=MG_DL, text="mg/dL", mean=9.4, own_sd=0.25, error_sd=0.25, low=6.0),
    Test(name="glucose", label="Glucose in serum", concept=3004501, unit=MG_DL, text="mg/dL", mean=-62.0, by={"hba1c": 29.0}, own_sd=4.0,
         error_sd=14.0, digits=0, low=35.0),
    Test(name="urea", label="Urea nitrogen in serum", concept=3013682, unit=MG_DL, text="mg/dL", mean=16.5, by={"creatinine": 14.0}, own_sd=2.5,
         error_sd=2.5, digits=0, low=3.0, acute={"kidney_injury": (18.0, 8.0), "gi_bleed": (12.0, 4.0)}),
    Test(name="leukocytes", label="White blood cells", concept=3000905, unit=THOUSAND_UL, text="10*3/uL", mean=7.1, own_sd=1.3, error_sd=0.9, low=0.5,
         acute={"sepsis": (9.0, 6.0), "pneumonia": (5.0, 5.0), "appendicitis": (6.0, 3.0), "chemotherapy": (-3.0, 12.0), "cellulitis": (3.5, 5.0)}),
    Test(name="platelets", label="Platelets", concept=3024929, unit=THOUSAND_UL, text="10*3/uL", mean=247.0, male=-20.0, own_sd=48.0, error_sd=18.0,
         digits=0, low=5.0, acute={"chemotherapy": (-70.0, 14.0), "sepsis": (-70.0, 6.0)}),
    Test(name="haematocrit", label="Share of red cells in blood", concept=3023314, unit=PERCENT, text="%", mean=0.8, by={"haemoglobin": 2.95},
         error_sd=0.7, low=14.0),
    Test(name="cell_volume", label="Volume of a red cell", concept=3023599, unit=FL, text="fL", mean=90.0, own_sd=4.0, error_sd=1.0, low=60.0,
         by_disease={"anaemia": -4.0}),
    Test(name="hdl", label="HDL cholesterol", concept=3007070, unit=MG_DL, text="mg/dL", mean=58.0, male=-10.0, own_sd=12.0, error_sd=3.0, digits=0,
         low=18.0, by_disease={"diabetes": -6.0}),
    Test(name="cholesterol", label="Cholesterol in serum", concept=3027114, unit=MG_DL, text="mg/dL", of=("hdl", "ldl", "triglycerides"),
         made=_cholesterol, error_sd=2.0, digits=0, low=70.0),
    Test(name="triglycerides", label="Triglycerides in serum", concept=3022192, unit=MG_DL, text="mg/dL", mean=118.0, own_sd=45.0, error_sd=22.0,
         digits=0, low=30.0, by_disease={"diabetes": 28.0, "hyperlipidemia": 35.0}),
    Test(name="alt", label="Alanine transaminase", concept=3006923, unit=U_L, text="U/L", mean=21.0, male=6.0, own_sd=8.0, error_sd=4.0, digits=0,
         low=5.0, by_disease={"alcohol": 18.0}),
    Test(name="ast", label="Aspartate transaminase", concept=3013721, unit=U_L, text="U/L", mean=22.0, male=3.0, own_sd=6.0, error_sd=4.0, digits=0,
         low=6.0, by_disease={"alcohol": 25.0}, acute={"infarction": (45.0, 3.0)}),
    Test(name="phosphatase", label="Alkaline phosphatase", concept=3035995, unit=U_L, text="U/L", mean=76.0, own_sd=18.0, error_sd=6.0, digits=0,
         low=20.0, by_disease={"metastasis": 60.0}),
    Test(name="bilirubin", label="Bilirubin in serum", concept=3024128, unit=MG_DL, text="mg/dL", mean=0.65, own_sd=0.2, error_sd=0.1, low=0.1,
         acute={"gallbladder": (1.2, 6.0)}),
    Test(name="albumin", label="Albumin in serum", concept=3024561, unit=G_DL, text="g/dL", mean=4.2, own_sd=0.22, error_sd=0.15, low=1.4,
         by_disease={"metastasis": -0.6, "kidney_failure": -0.4}, acute={"sepsis": (-0.9, 15.0)}),
    Test(name="troponin", label="Troponin I in serum", concept=36306105, unit=NG_ML, text="ng/mL", mean=0.012, own_sd=0.004, error_sd=0.005, digits=3,
         low=0.001, by_disease={"kidney_failure": 0.03}, acute={"infarction": (6.0, 3.0)}),
    Test(name="inr", label="Clotting time, as a ratio", concept=3022217, unit=8523, text="ratio", mean=1.03, own_sd=0.04, error_sd=0.06, low=0.8,
         acute={"warfarin_start": (1.3, 2500.0)}),
    Test(name="tsh", label="Thyrotropin in serum", concept=3009201, unit=MIU_L, text="mIU/L", mean=1.9, own_sd=0.7, error_sd=0.4, digits=2, low=0.02,
         acute={"thyroid": (9.0, 90.0)}),
    Test(name="ferritin", label="Ferritin in serum", concept=3001122, unit=NG_ML, text="ng/mL", mean=95.0, male=60.0, own_sd=40.0, error_sd=12.0,
         digits=0, low=3.0, by_disease={"anaemia": -75.0}),
    Test(name="crp", label="C-reactive protein", concept=3020460, unit=MG_L, text="mg/L", mean=3.0, own_sd=1.5, error_sd=1.2, low=0.2,
         by_disease={"arthritis": 9.0}, acute={"sepsis": (160.0, 5.0), "pneumonia": (90.0, 6.0), "covid": (45.0, 7.0), "appendicitis": (70.0, 4.0)}),
    Test(name="lactate", label="Lactate in blood", concept=40762125, unit=MMOL_L, text="mmol/L", mean=1.3, own_sd=0.2, error_sd=0.3, low=0.3,
         acute={"sepsis": (2.4, 1.5)}),
    Test(name="psa", label="Prostate-specific antigen", concept=3013603, unit=NG_ML, text="ng/mL", mean=1.3, own_sd=0.6, error_sd=0.2, digits=2,
         low=0.1, by_disease={"prostate": 1.8}),
    Test(name="urine_protein", label="Albumin to creatinine in urine", concept=3001802, unit=9017, text="mg/g", mean=9.0, own_sd=4.0, error_sd=3.0,
         low=1.0, by_disease={"diabetes": 22.0, "kidney_disease": 55.0}),
    Test(name="strip_protein", label="Protein in urine, by test strip", concept=3014051, unit=0, text="", of=("urine_protein",), made=_itself,
         error_sd=15.0, positive_above=60.0),
    Test(name="strip_glucose", label="Glucose in urine, by test strip", concept=3009261, unit=0, text="", of=("glucose",), made=_itself,
         error_sd=15.0, positive_above=180.0),
    Test(name="strip_nitrite", label="Nitrite in urine, by test strip", concept=3021601, unit=0, text="", error_sd=1.0, positive_above=2.0,
         acute={"urinary_infection": (2.1, 5.0), "kidney_infection": (2.4, 5.0)}),
    Test(name="strip_leukocytes", label="White cells in urine, by test strip", concept=3000348, unit=0, text="", own_sd=0.6, error_sd=1.0,
         positive_above=2.2, acute={"urinary_infection": (3.4, 6.0), "kidney_infection": (3.6, 6.0)}),
    Test(name="acidity", label="Acidity of arterial blood", concept=3019977, unit=8482, text="pH", mean=7.40, error_sd=0.03, digits=2, low=6.9,
         acute={"respiratory_failure": (-0.12, 2.0), "sepsis": (-0.08, 2.0)}),
    Test(name="oxygen_pressure", label="Oxygen in arterial blood", concept=3027801, unit=MMHG, text="mmHg", mean=86.0, own_sd=4.0, error_sd=7.0,
         digits=0, low=30.0, by_disease={"lung_disease": -14.0}, acute={"respiratory_failure": (-25.0, 3.0)}),
    Test(name="carbon_pressure", label="Carbon dioxide in arterial blood", concept=3027946, unit=MMHG, text="mmHg", mean=40.0, own_sd=2.0,
         error_sd=3.0, digits=0, low=15.0, by_disease={"lung_disease": 7.0}, acute={"exacerbation": (12.0, 4.0)}),
    Test(name="phq9", label="Answers on low mood, total", concept=3042932, unit=0, text="{score}", mean=3.5, own_sd=2.0, error_sd=1.5, digits=0,
         low=0.0, by_disease={"anxiety": 2.0}, acute={"depression": (10.0, 300.0)}),
    Test(name="gad7", label="Answers on worry, total", concept=42868746, unit=0, text="{score}", mean=3.0, own_sd=1.8, error_sd=1.4, digits=0,
         low=0.0, acute={"anxiety": (9.0, 400.0)}),
)  # fmt: skip

PANELS: Mapping[str, tuple[str, ...]] = {
    "sugar": ("hba1c",), "lipids": ("ldl", "hdl", "cholesterol", "triglycerides"),
    "metabolic": ("creatinine", "potassium", "sodium", "chloride", "carbon_dioxide", "calcium", "glucose", "urea"),
    "blood": ("haemoglobin", "leukocytes", "platelets", "haematocrit", "cell_volume"), "heart": ("ntprobnp", "troponin"),
    "liver": ("alt", "ast", "phosphatase", "bilirubin", "albumin"), "coagulation": ("inr",), "thyroid": ("tsh",), "iron": ("ferritin",),
    "crp": ("crp",), "lactate": ("lactate",),
    "urine": ("urine_protein", "strip_protein", "strip_glucose", "strip_nitrite", "strip_leukocytes"),
    "gases": ("acidity", "oxygen_pressure", "carbon_pressure"),
    "phq9": ("phq9",), "gad7": ("gad7",), "psa": ("psa",), "swab": (), "pregnancy": (), "pressure": ("systolic", "diastolic"),
    "body": ("bmi", "weight"), "signs": ("heart_rate", "temperature", "breaths", "oxygen"), "size": ("height",),
}  # fmt: skip
"""Panels: what is ordered together. The last four are vital signs."""

VITALS = ("pressure", "body", "signs", "size")
ROUTINE: Mapping[str, tuple[float, float, float, float]] = {
    # chance at a check-up, an unplanned clinic visit, in the emergency room, on admission; diseases and events add theirs
    "pressure": (0.45, 0.20, 0.45, 0.7), "body": (0.22, 0.05, 0.03, 0.2), "signs": (0.06, 0.05, 0.40, 0.6), "size": (0.05, 0.01, 0.0, 0.1),
    "metabolic": (0.10, 0.03, 0.10, 0.35), "blood": (0.09, 0.03, 0.10, 0.35), "lipids": (0.09, 0.0, 0.0, 0.02), "sugar": (0.05, 0.0, 0.01, 0.04),
    "thyroid": (0.04, 0.01, 0.0, 0.01), "liver": (0.03, 0.01, 0.02, 0.05), "psa": (0.0, 0.0, 0.0, 0.0), "urine": (0.01, 0.01, 0.03, 0.03),
    "crp": (0.01, 0.02, 0.06, 0.10),
}  # fmt: skip
DAILY: Mapping[str, float] = {"metabolic": 0.30, "blood": 0.25, "signs": 0.25}
"""Every morning of a stay."""

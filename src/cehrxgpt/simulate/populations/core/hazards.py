"""What can happen in `core`, and how often: the whole truth of the small population that the demo runs on.

The reference patient is a white woman of 65 without disease, levels at their centre, frailty 0, outside hospital.
"""

from __future__ import annotations

from collections.abc import Mapping

from cehrxgpt.simulate.declare import Hazard, Level, Treatment

FIRST_MARKERS = (  # time of the first diagnosis or operation
    "hypertension", "hyperlipidemia", "diabetes", "kidney_disease", "coronary_disease", "heart_failure", "fibrillation", "lung_disease", "bypass",
)  # fmt: skip
LATEST_MARKERS = (  # time of the latest
    "infarction", "stroke", "coronary_intervention", "chest_pain", "emergency", "admission", "discharge", "earlier_discharge",
)  # fmt: skip
MARKERS = FIRST_MARKERS + LATEST_MARKERS
FLAGS = (*FIRST_MARKERS, "infarction", "stroke", "coronary_intervention")  # markers that are also features "has had"


def _onset(name: str, per_year: float, terms: Mapping[str, float], since: Mapping[str, tuple[float, float]] | None = None, **rest: object) -> Hazard:
    """A chronic disease: its first diagnosis, once."""
    return Hazard(name=name, per_year=per_year, terms=terms, since=since or {}, forbids=(name,), sets=(name,), **rest)  # type: ignore[arg-type]


HAZARDS: tuple[Hazard, ...] = (
    # -- chronic diseases, first diagnosis --------------------------------------------------------------------------------------------
    _onset("hypertension", 0.13, {"age": 0.25, "black": 0.3, "systolic": 0.6, "diabetes": 0.3}),
    _onset("hyperlipidemia", 0.12, {"age": 0.1, "ldl": 0.6, "diabetes": 0.3}),
    _onset("diabetes", 0.15, {"age": 0.1, "hba1c": 0.9, "hypertension": 0.4, "hyperlipidemia": 0.2, "black": 0.2}),
    _onset("kidney_disease", 0.018, {"age": 0.4, "diabetes": 0.6, "hypertension": 0.4, "creatinine": 0.7, "systolic": 0.2, "lisinopril": -0.25}),
    _onset("lung_disease", 0.016, {"age": 0.3, "male": 0.2, "frailty": 0.3}),
    _onset(
        "coronary_disease", 0.075,
        {"age": 0.3, "male": 0.35, "hypertension": 0.3, "hyperlipidemia": 0.3, "diabetes": 0.4, "kidney_disease": 0.3, "ldl": 0.3, "statin": -0.35},
        {"chest_pain": (0.9, 90.0)},
    ),
    _onset(
        "heart_failure", 0.013,
        {"age": 0.65, "hypertension": 0.2, "coronary_disease": 0.6, "infarction": 0.4, "diabetes": 0.5, "kidney_disease": 0.7, "fibrillation": 0.3,
         "systolic": 0.2, "hba1c": 0.25, "creatinine": 0.25, "lisinopril": -0.35, "metoprolol": -0.2, "metformin": -0.2},
        {"emergency": (1.8, 200.0), "discharge": (1.2, 120.0), "hypertension": (3.2, 600.0), "coronary_disease": (2.0, 500.0),
         "fibrillation": (1.5, 200.0)},
        visit=(0.4, 0.0, 0.6), stay_days=5.0,
    ),
    _onset(
        "fibrillation", 0.018, {"age": 0.55, "male": 0.2, "hypertension": 0.3, "heart_failure": 0.5}, {"emergency": (0.8, 60.0)}, visit=(0.5, 0.4,
        0.1),
    ),
    # -- acute events, repeatable -----------------------------------------------------------------------------------------------------
    Hazard(
        name="infarction", per_year=0.008, sets=("infarction", "coronary_disease"), visit=(0.0, 0.0, 1.0), stay_days=4.0,
        terms={"age": 0.3, "male": 0.3, "coronary_disease": 0.9, "diabetes": 0.3, "ldl": 0.25, "statin": -0.35, "bypass": -0.5},
        since={"coronary_disease": (1.2, 90.0), "chest_pain": (1.5, 60.0), "infarction": (1.0, 120.0)},
    ),
    Hazard(
        name="stroke", per_year=0.009, sets=("stroke",), visit=(0.0, 0.0, 1.0), stay_days=5.0,
        terms={"age": 0.5, "hypertension": 0.35, "fibrillation": 1.3, "diabetes": 0.25, "systolic": 0.25, "apixaban": -0.7, "statin": -0.2},
        since={"stroke": (1.5, 90.0), "fibrillation": (1.8, 180.0), "emergency": (0.8, 60.0)},
    ),
    Hazard(
        name="bypass", per_year=0.013, requires=("coronary_disease",), forbids=("bypass",), sets=("bypass",), visit=(0.0, 0.0, 1.0),
        stay_days=8.0, longer_stay_days=(5.0, 3.0), in_stay=True,
        terms={"male": 0.9, "age": -0.4, "diabetes": 0.6, "ldl": 0.5, "kidney_disease": -0.4, "coronary_intervention": -0.8, "in_hospital": 0.8,
               "frailty": -0.3},
        since={"coronary_disease": (0.6, 150.0), "chest_pain": (2.4, 200.0), "infarction": (1.0, 60.0), "hyperlipidemia": (3.0, 600.0)},
    ),
    Hazard(
        name="coronary_intervention", per_year=0.04, requires=("coronary_disease",), sets=("coronary_intervention",), visit=(0.0, 0.0, 1.0),
        stay_days=1.5, in_stay=True, terms={"male": 0.2, "coronary_intervention": -0.6, "bypass": -1.0, "in_hospital": 1.5},
        since={"coronary_disease": (1.0, 60.0), "infarction": (1.8, 30.0), "chest_pain": (1.0, 60.0)},
    ),
    Hazard(
        name="chest_pain", per_year=0.26, sets=("chest_pain",), visit=(0.0, 1.0, 0.0),
        terms={"age": 0.1, "hypertension": 0.2, "hyperlipidemia": 0.2, "coronary_disease": 0.6, "ldl": 0.2, "bypass": -0.6},
    ),
    Hazard(
        name="decompensation", per_year=0.25, requires=("heart_failure",), visit=(0.0, 0.0, 1.0), stay_days=5.0,
        terms={"age": 0.1, "creatinine": 0.25, "kidney_disease": 0.2, "lisinopril": -0.3, "metoprolol": -0.2, "furosemide": -0.2, "frailty": 0.2},
        since={"discharge": (1.8, 25.0), "heart_failure": (0.7, 120.0)},
    ),
    Hazard(
        name="illness", per_year=0.10, visit=(0.0, 0.0, 1.0), stay_days=4.0,
        terms={"age": 0.3, "frailty": 0.45, "lung_disease": 0.5, "kidney_disease": 0.3, "heart_failure": 0.2, "stroke": 0.3, "diabetes": 0.1},
        since={"discharge": (1.8, 25.0), "emergency": (0.5, 60.0)},
    ),
    Hazard(
        name="emergency", per_year=0.35, sets=("emergency",), visit=(0.0, 1.0, 0.0), terms={"age": 0.1, "frailty": 0.25, "lung_disease": 0.3},
        since={"discharge": (0.8, 30.0)},
    ),
    Hazard(name="clinic", per_year=0.35, terms={"age": 0.1, "frailty": 0.15, "male": -0.2}),
    Hazard(
        name="death", per_year=0.0035, visit=(1.0, 0.0, 0.0), in_stay=True,
        terms={"age": 0.65, "male": 0.15, "frailty": 0.4, "heart_failure": 0.4, "kidney_disease": 0.2, "lung_disease": 0.2, "stroke": 0.25,
               "diabetes": 0.1, "creatinine": 0.15, "statin": -0.15, "lisinopril": -0.1, "in_hospital": 1.3, "hospice": 3.5},
        since={"discharge": (0.6, 60.0), "earlier_discharge": (2.2, 250.0), "emergency": (2.8, 250.0), "kidney_disease": (2.4, 600.0),
               "lung_disease": (2.4, 600.0), "heart_failure": (1.8, 500.0), "stroke": (1.4, 120.0)},
    ),
)  # fmt: skip

TREATMENTS: tuple[Treatment, ...] = (
    Treatment(name="metformin", indications=("diabetes",), when_new=0.85, later=0.4),
    Treatment(name="insulin", indications=("diabetes",), when_new=0.08, later=0.03, stop=0.01),
    Treatment(name="lisinopril", indications=("hypertension", "heart_failure"), when_new=0.6, later=0.15),
    Treatment(name="statin", indications=("hyperlipidemia", "coronary_disease", "stroke"), when_new=0.6, later=0.15),
    Treatment(name="metoprolol", indications=("coronary_disease", "heart_failure", "fibrillation", "infarction"), when_new=0.6, later=0.12),
    Treatment(name="apixaban", indications=("fibrillation",), when_new=0.6, later=0.15),
    Treatment(name="furosemide", indications=("heart_failure",), when_new=0.7, later=0.2),
)

LEVELS = (
    # creatinine: log mg/dL
    Level(name="hba1c", centre=6.0, scale=1.0, offset_sd=0.45, noise_sd=0.45, rest=5.7,
          moved_by={"diabetes": 1.7, "metformin": -0.6, "insulin": -0.8}),
    Level(
        name="creatinine", centre=0.0, scale=0.35, offset_sd=0.16, noise_sd=0.10, rest=-0.12,
        moved_by={"kidney_disease": 0.45, "heart_failure": 0.10, "hypertension": 0.03},
    ),
    Level(
        name="systolic", centre=130.0, scale=15.0, offset_sd=10.0, noise_sd=9.0, rest=126.0,
        moved_by={"hypertension": 14.0, "lisinopril": -9.0, "metoprolol": -4.0, "kidney_disease": 4.0},
    ),
    Level(name="ldl", centre=115.0, scale=35.0, offset_sd=25.0, noise_sd=16.0, rest=118.0, moved_by={"hyperlipidemia": 25.0, "statin": -45.0}),
)  # fmt: skip
LEVEL_MEMORY_DAYS = 300.0

PREVALENCE: Mapping[str, tuple[float, float]] = {
    # share of people who bring the disease with them at 65, and log odds per decade
    "hypertension": (0.25, 0.4), "hyperlipidemia": (0.22, 0.2), "diabetes": (0.05, 0.1), "kidney_disease": (0.03, 0.5),
    "coronary_disease": (0.04, 0.4), "lung_disease": (0.05, 0.3), "fibrillation": (0.03, 0.6),
}  # fmt: skip

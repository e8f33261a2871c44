"""Two hospitals that see the same biology and write it down in different ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cehrxgpt.simulate.concepts import ABOVE, BELOW, G_DL, MG_DL, MMOL_L, PERCENT, PG_ML

MMOL_MOL, UMOL_L, G_L, NG_L = 9579, 8749, 8636, 8725


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How a hospital writes a value: own = value * factor + offset, rounded."""

    concept: int
    text: str
    factor: float = 1.0
    offset: float = 0.0
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """Habits of writing; nothing here touches what happens to people.

    Attributes:
        name: what `simulate --hospital` takes.
        noted: factor on the chance that a new disease is coded where it begins (below 1: later).
        again: factor on the chance that it is coded again.
        ruled_out: factor on codes of diseases that were only thought of.
        finer: (before, after) share of codes written at a finer concept, and the year of the change.
        change: calendar year in which the coding changed.
        unmapped: share of diagnoses whose source code has no concept.
        code_prefix: (before, after) the change, of `condition_source_value`.
        boarding_minutes: (from, to) in the emergency room before an admission.
        one_row: share of emergency admissions that are one visit (262) instead of two.
        observation: share of stays under 24 hours that are booked as observation.
        office: visit concept of most outpatient visits; telehealth: share of check-ups after March 2020 that are by telephone or screen.
        products: share of drugs written as a product, not an ingredient.
        tests: factor on the chance that a laboratory panel is ordered; vitals: the same for vital signs.
        units: laboratory test -> own unit, where it is not the usual one.
        limits: laboratory test -> (least, most) that the device tells, in its usual unit: beyond, the limit is written with a sign.
        lost: share of single laboratory results that are missing: the row is there, without a value.
        negative, positive: answers of test strips.
        asks: factor on the chance that a question is asked.
        test_prefix: of `measurement_source_value`.
        icu: concept of intensive care in visit_detail; ward: of the wards.
    """

    name: str
    noted: float = 1.0
    again: float = 1.0
    ruled_out: float = 1.0
    finer: tuple[float, float] = (0.1, 0.45)
    change: float = 2015.75
    unmapped: float = 0.0
    code_prefix: tuple[str, str] = ("9", "10")
    boarding_minutes: tuple[float, float] = (30.0, 240.0)
    one_row: float = 0.0
    observation: float = 0.0
    office: int = 9202
    telehealth: float = 0.15
    products: float = 0.1
    tests: float = 1.0
    vitals: float = 1.0
    units: Mapping[str, Unit] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    lost: float = 0.01
    negative: int = 9189
    positive: int = 9191
    asks: float = 1.0
    test_prefix: str = "LAB"
    icu: int = 32037
    ward: int = 8717


HOSPITALS: Mapping[str, Hospital] = {
    "a": Hospital(name="a", observation=0.25, limits={"troponin": (0.01, 50.0), "crp": (1.0, 300.0), "ntprobnp": (10.0, 35_000.0)}),
    "b": Hospital(
        name="b", noted=0.75, again=0.65, ruled_out=1.8, finer=(0.55, 0.75), change=2017.0, unmapped=0.04, code_prefix=("K", "KX"),
        boarding_minutes=(60.0, 400.0), one_row=0.7, observation=0.7, office=581477, telehealth=0.35, products=0.6, tests=1.35, vitals=0.6,
        test_prefix="B-LIS", limits={"troponin": (0.04, 25.0), "crp": (4.0, 400.0), "ntprobnp": (50.0, 9_000.0)}, lost=0.025, negative=45878583,
        positive=45884084, asks=0.6,
        units={
            "hba1c": Unit(concept=MMOL_MOL, text="mmol/mol", factor=10.929, offset=-23.5, digits=0),
            "creatinine": Unit(concept=UMOL_L, text="umol/L", factor=88.42, digits=0),
            "haemoglobin": Unit(concept=G_L, text="g/L", factor=10.0, digits=0),
            "ldl": Unit(concept=MMOL_L, text="mmol/L", factor=1 / 38.67, digits=2),
            "hdl": Unit(concept=MMOL_L, text="mmol/L", factor=1 / 38.67, digits=2),
            "cholesterol": Unit(concept=MMOL_L, text="mmol/L", factor=1 / 38.67, digits=2),
            "triglycerides": Unit(concept=MMOL_L, text="mmol/L", factor=1 / 88.57, digits=2),
            "glucose": Unit(concept=MMOL_L, text="mmol/L", factor=1 / 18.016, digits=1),
            "urea": Unit(concept=MMOL_L, text="mmol/L", factor=0.357, digits=1),
            "bilirubin": Unit(concept=UMOL_L, text="umol/L", factor=17.1, digits=0),
            "calcium": Unit(concept=MMOL_L, text="mmol/L", factor=0.2495, digits=2),
            "ntprobnp": Unit(concept=NG_L, text="ng/L", digits=0),
        },
    ),
}  # fmt: skip
"""`a` writes in US units, `b` in SI units; codes, visits, orders and delays differ too."""

MEANINGS = {
    9189: "Negative", 9191: "Positive", 45878583: "Negative, as an answer", 45884084: "Positive, as an answer", BELOW: "less than",
    ABOVE: "more than",
}  # fmt: skip
"""Names of what a result can be besides a number."""

USUAL_UNITS = {PERCENT: "%", MG_DL: "mg/dL", G_DL: "g/dL", MMOL_L: "mmol/L", PG_ML: "pg/mL"}

"""Pregnancy: one leads to the next visit, to a birth or to a loss."""

from __future__ import annotations

from collections.abc import Mapping

from cehrxgpt.simulate.declare import Next
from cehrxgpt.simulate.populations.full.entry import HOSPITAL, Done, Entry, acute

FERTILE: Mapping[str, Mapping[float, float]] = {
    "women": {17.9: 0.075, 20: 0.085, 25: 0.118, 30: 0.122, 35: 0.070, 40: 0.018, 44: 0.004, 46: 0.0005, 48: 1e-6}
}
NEVER: Mapping[str, Mapping[float, float]] = {"all": {18: 1e-9}}  # happens only when it is scheduled

BIRTH: tuple[Entry, ...] = (
    acute(
        "pregnancy", "Pregnancy", {4217975: "Normal pregnancy", 4299535: "Pregnant"}, FERTILE, since={"miscarriage": (0.7, 200.0)}, noted=0.98,
        tests={"blood": 0.8, "urine": 0.7, "pregnancy": 0.9},
        workup=(Done(concept=4060626, name="Ultrasound for the child's life", chance=0.7),
                Done(concept=4207466, name="Blood tests in pregnancy", chance=0.5)),
        leads_to=(Next(event="miscarriage", days=20.0, sd_days=10.0, chance=0.13), Next(event="prenatal", days=45.0, sd_days=9.0, chance=0.87)),
    ),
    acute(
        "miscarriage", "Miscarriage", {4078393: "Miscarriage in the first trimester"}, NEVER, visit=(0.5, 0.45, 0.05), stay_days=1.0, noted=0.95,
    ),
    acute(
        "prenatal", "Prenatal visit", {4217975: "Normal pregnancy", 4188598: "High-risk pregnancy"}, NEVER, noted=0.9,
        tests={"blood": 0.3, "urine": 0.5},
        workup=(Done(concept=4168236, name="Measuring the womb", chance=0.5),
                Done(concept=4075363, name="Listening to the child's heart", chance=0.5),
                Done(concept=4150653, name="Ultrasound of the child", chance=0.3)),
        leads_to=(Next(event="prenatal", days=38.0, sd_days=6.0, chance=0.70), Next(event="preeclampsia", days=60.0, sd_days=15.0, chance=0.02),
                  Next(event="birth", days=62.0, sd_days=9.0, chance=0.18), Next(event="caesarean", days=60.0, sd_days=8.0, chance=0.10)),
    ),
    acute(
        "preeclampsia", "Pre-eclampsia", {439393: "Pre-eclampsia"}, NEVER, visit=(0.2, 0.2, 0.6), stay_days=2.5, intensive=0.03,
        tests={"metabolic": 0.9, "liver": 0.8, "urine": 0.9, "blood": 0.9}, raises={"hypertension": 0.7},
        leads_to=(Next(event="caesarean", days=10.0, sd_days=4.0, chance=0.6), Next(event="birth", days=14.0, sd_days=5.0, chance=0.4)),
    ),
    acute(
        "birth", "Delivery", {4014295: "Single live birth"}, NEVER, visit=HOSPITAL, stay_days=2.0, noted=0.95, tests={"blood": 0.9},
        workup=(Done(concept=4128031, name="Delivery with instruments", chance=0.06), Done(concept=4150970, name="Labour begun by drugs", chance=0.3),
                Done(concept=4078199, name="Epidural", chance=0.7)), leads_to=(Next(event="postnatal", days=42.0, sd_days=5.0, chance=0.9),),
    ),
    acute(
        "caesarean", "Caesarean delivery", {4014295: "Single live birth"}, NEVER, sets=("caesarean", "birth"), visit=HOSPITAL, stay_days=3.0,
        noted=0.95, tests={"blood": 1.0}, workup=(Done(concept=4015701, name="Caesarean section"),), by_day=True, raises={},
        remedies=(Done(concept=1771162, name="Cefazolin", chance=0.9, days=1.0), Done(concept=1124957, name="Oxycodone", chance=0.5, days=5.0)),
        leads_to=(Next(event="postnatal", days=40.0, sd_days=5.0, chance=0.93),),
    ),
    acute("postnatal", "Visit after a birth", {}, NEVER, tests={"phq9": 0.4, "blood": 0.2}),
    acute(
        "contraception", "Contraception", {}, {"women": {18: 0.16, 30: 0.12, 40: 0.06, 48: 0.005, 50: 1e-6}},
        workup=(Done(concept=4275113, name="Putting in a coil", chance=0.12),
                Done(concept=4059978, name="Putting in a contraceptive rod", chance=0.08),
                Done(concept=4146053, name="Pelvic examination", chance=0.3)),
        remedies=(Done(concept=1589505, name="Levonorgestrel", chance=0.4, days=84.0),
                  Done(concept=1521369, name="Norethindrone", chance=0.3, days=84.0)),
    ),
)  # fmt: skip

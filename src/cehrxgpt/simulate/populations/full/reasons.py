"""What else fills a record: the reasons of visits that drive little, drawn by weight. None of it moves a hazard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """A reason for a visit, with its weight at 65, log ratio per decade, log ratio of men, and what is done about it.

    `only`: the one sex that can have it, `women` or `men`; empty: both.
    """

    concept: int
    name: str
    weight: float
    age: float = 0.0
    male: float = 0.0
    drug: tuple[int, str] = (0, "")
    procedure: tuple[int, str] = (0, "")
    only: str = ""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A procedure that a check-up may bring: its chance in women, in men (0: never), and from which age to which it is offered."""

    concept: int
    name: str
    women: float
    men: float
    ages: tuple[float, float] = (0.0, 200.0)


_ACETAMINOPHEN, _IBUPROFEN, _ONDANSETRON = (1125315, "Acetaminophen"), (1177480, "Ibuprofen"), (1000560, "Ondansetron")
_MORPHINE, _SALT = (1110410, "Morphine"), (967823, "Sodium chloride")
_ECG, _XRAY, _HEAD = (4163951, "Electrocardiogram"), (4163872, "Chest X-ray"), (4125350, "CT of the head")

REASONS: Mapping[str, tuple[Reason, ...]] = {
    "clinic": (
        Reason(254761, "Cough", 8, 0.0, 0.0, (1119510, "Dextromethorphan"), _XRAY), Reason(378253, "Headache", 7, -0.3, -0.4, _ACETAMINOPHEN),
        Reason(4223659, "Tiredness", 8, 0.1, -0.2), Reason(4223938, "Dizziness", 7, 0.3, -0.1, (0, ""), _ECG),
        Reason(75860, "Constipation", 5, 0.3, -0.3), Reason(4147326, "Sore throat", 5, -0.3),
        Reason(43530622, "Long-lasting neck pain", 4, 0.0, -0.1), Reason(133834, "Eczema", 4, -0.2, 0.0, (975125, "Hydrocortisone")),
        Reason(436070, "Lack of vitamin D", 5, 0.1, -0.2), Reason(4195085, "Stuffy nose", 3, -0.1),
        Reason(31967, "Nausea", 3, -0.1, -0.2, _ONDANSETRON), Reason(257012, "Long-lasting sinusitis", 3, -0.1), Reason(4329041, "Pain", 5, 0.1),
        Reason(436096, "Long-lasting pain", 4, 0.1, -0.1, (797399, "Gabapentin")), Reason(4251306, "Stress", 4, -0.3, -0.2),
        Reason(4214376, "High blood sugar", 2, 0.1), Reason(30753, "Inflamed gullet", 2, 0.0, 0.1),
        Reason(4146173, "Injured tendon of the shoulder", 3, 0.1, 0.1), Reason(4035415, "Torn meniscus of the knee", 2, -0.1, 0.2),
        Reason(4316217, "Fibromyalgia", 2, 0.0, -1.2), Reason(72418, "Crooked spine", 1, 0.2, -0.4), Reason(192450, "Cannot pass water", 2, 0.5, 0.9),
        Reason(4056621, "Urinary infections again and again", 2, 0.2, -1.5), Reason(75036, "Osteoarthritis of the hand", 3, 0.3, -0.6),
        Reason(314754, "Wheezing", 3, 0.0, 0.0, (1154343, "Albuterol")), Reason(4089228, "Changed sputum", 1, 0.2),
        Reason(40486433, "Hay fever all year", 3, -0.3, 0.0, (1149196, "Cetirizine")), Reason(81893, "Ulcerative colitis", 1, -0.1),
        Reason(436940, "Metabolic syndrome", 2, 0.0, 0.1), Reason(4116491, "Urinary infection by coli bacteria", 2, 0.2, -1.2),
        Reason(40405599, "Pain of the whole body", 1, 0.0, -1.0), Reason(4120613, "Poor clotting", 1, 0.2),
        Reason(4055754, "Wisdom teeth in the way", 1, -0.8, 0.0, (0, ""), (4276519, "Removing a wisdom tooth")),
    ),
    "emergency": (
        Reason(312437, "Short of breath", 9, 0.3, 0.0, (1154343, "Albuterol"), _XRAY), Reason(437663, "Fever", 5, -0.1, 0.0, _ACETAMINOPHEN),
        Reason(378253, "Headache", 6, -0.2, -0.3, _ACETAMINOPHEN, _HEAD), Reason(375671, "Concussion, unconscious", 1, 0.0, 0.2, (0, ""), _HEAD),
        Reason(4223938, "Dizziness", 5, 0.3, 0.0, (0, ""), _ECG), Reason(4208104, "Too much of a drug", 2, -0.5, 0.1),
        Reason(31967, "Nausea", 4, -0.1, -0.2, _ONDANSETRON), Reason(4218389, "Whiplash of the neck", 3, -0.5, -0.1, _IBUPROFEN),
        Reason(4329041, "Pain", 6, 0.0, 0.0, _IBUPROFEN), Reason(4214746, "Panic", 3, -0.4, -0.4, (791967, "Lorazepam")),
        Reason(4152936, "Cut thigh", 1, -0.3, 0.3, (0, ""), (4125906, "Stitching a wound")),
        Reason(261687, "Coughing blood", 1, 0.2, 0.2, (0, ""), _XRAY),
        Reason(437390, "Too little oxygen in the blood", 2, 0.4, 0.0, (0, ""), (4162736, "Oxygen by mask")),
        Reason(4029498, "Seizures", 2, -0.1, 0.1, (791967, "Lorazepam"), _HEAD), Reason(192450, "Cannot pass water", 2, 0.5, 0.9),
        Reason(434490, "Chills", 1, 0.1), Reason(4299128, "Burn, full thickness", 0.3, -0.2, 0.4),
        Reason(4245614, "Bleeding from the bottom", 1, 0.2), Reason(40479768, "Torn ligament of the knee", 1, -0.7, 0.3),
        Reason(4158346, "Hard to breathe", 2, 0.3),
    ),
    "illness": (
        Reason(81902, "Urinary tract infection", 6, 0.4, -0.5, (1777806, "Ceftriaxone")),
        Reason(435613, "Skin infection", 6, 0.0, 0.2, (1771162, "Cefazolin")),
        Reason(432545, "Infection by bacteria", 3, 0.2, 0.0, (1746114, "Piperacillin")),
        Reason(4029498, "Seizures", 3, -0.1, 0.0, (791967, "Lorazepam")),
        Reason(437390, "Too little oxygen in the blood", 4, 0.3, 0.0, (0, ""), (4162736, "Oxygen by mask")),
        Reason(4096715, "Vomiting", 4, -0.1, -0.1, _ONDANSETRON), Reason(4341247, "Diarrhea that goes on", 2, 0.1),
        Reason(135333, "Pressure ulcer", 2, 0.6, 0.0, (0, ""), (4021315, "Wound care")),
        Reason(4048695, "Broken spine, cord unhurt", 2, 0.6, -0.3, _MORPHINE), Reason(4066995, "Broken spine, cord hurt", 0.3, 0.0, 0.4, _MORPHINE),
        Reason(433125, "Infection by staphylococci", 2, 0.2, 0.1, (40221355, "Vancomycin")), Reason(4300243, "Trouble after an operation", 4, 0.1),
        Reason(4214376, "High blood sugar", 3, 0.0, 0.0, (1596977, "Insulin")), Reason(4310024, "Fragile vessels of the stomach", 1, 0.5),
        Reason(321042, "Heart stood still", 1, 0.3, 0.3, (1343916, "Epinephrine"), (4180456, "Shock to the heart")),
        Reason(201965, "Shock", 1, 0.3, 0.0, (1321363, "Norepinephrine")), Reason(4329041, "Pain", 3, 0.0, 0.0, _MORPHINE),
        Reason(312437, "Short of breath", 5, 0.3, 0.0, _SALT, _XRAY), Reason(4132546, "Injured brain", 1, 0.2, 0.4, (0, ""), _HEAD),
        Reason(196236, "Septic shock", 1, 0.3, 0.0, (1321363, "Norepinephrine")), Reason(4223938, "Dizziness", 3, 0.3, 0.0, _SALT),
    ),
    "surgery": (
        Reason(196456, "Gallstone", 5, 0.0, -0.4), Reason(4048695, "Broken spine, cord unhurt", 2, 0.5, -0.2),
        Reason(4146173, "Injured tendon of the shoulder", 4, 0.0, 0.2), Reason(4035415, "Torn meniscus of the knee", 3, -0.2, 0.2),
        Reason(201388, "Womb shaped from birth", 1, -0.8, 0.0, (0, ""), (4117038, "Tying both tubes"), only="women"),
        Reason(4129902, "Growth of the prostate", 3, 0.4, 0.0, (0, ""), (4235738, "Removing the prostate"), only="men"),
        Reason(433736, "Obesity", 3, -0.4, -0.5),
    ),
    "day_surgery": (
        Reason(375545, "Cataract", 9, 0.9), Reason(4285898, "Polyp of the colon", 4, 0.2, 0.1, (0, ""), (4249893, "Colonoscopy")),
        Reason(4035415, "Torn meniscus of the knee", 4, -0.3, 0.2), Reason(30753, "Inflamed gullet", 3, 0.0),
        Reason(4055754, "Wisdom teeth in the way", 2, -0.8, 0.0, (0, ""), (4276519, "Removing a wisdom tooth")),
        Reason(43530622, "Long-lasting neck pain", 3, 0.0), Reason(4141827, "Migraine, changed", 1, -0.4, -0.8),
    ),
}  # fmt: skip

CHECKUP: tuple[Offer, ...] = (
    Offer(concept=4240345, name="Physical examination", women=0.14, men=0.14),
    Offer(concept=4195803, name="Bone density scan", women=0.02, men=0.003, ages=(50.0, 200.0)),
    Offer(concept=4163951, name="Electrocardiogram", women=0.03, men=0.04),
    Offer(concept=4326177, name="Review of all drugs taken", women=0.10, men=0.10),
    Offer(concept=4254766, name="Examination of the bottom", women=0.0, men=0.03, ages=(40.0, 200.0)),
    Offer(concept=4234541, name="Smear of the neck of the womb", women=0.06, men=0.0, ages=(21.0, 66.0)),  # the US recommend it from 21 to 65
    Offer(concept=4298386, name="Advice for the time ahead", women=0.03, men=0.03),
    Offer(concept=4064377, name="Screening for depression", women=0.06, men=0.06),
    Offer(concept=4021160, name="Advice on smoking", women=0.04, men=0.05),
    Offer(concept=4211325, name="Advice on alcohol", women=0.02, men=0.03),
    Offer(concept=4302391, name="Advice on exercise", women=0.04, men=0.04),
    Offer(concept=4041982, name="Advice on food", women=0.04, men=0.04),
    Offer(concept=4134565, name="Hearing test", women=0.01, men=0.012),
    Offer(concept=4225119, name="Examination of the nerves", women=0.01, men=0.01),
)

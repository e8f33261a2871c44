"""The vocabulary of `full`: names in plain words of our own, and what climbs to what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cehrxgpt.simulate import vocabulary
from cehrxgpt.simulate.concepts import NAMES as COMMON
from cehrxgpt.simulate.populations.full import visits
from cehrxgpt.simulate.populations.full.entry import Entry, Medicine
from cehrxgpt.simulate.populations.full.hospitals import HOSPITALS, MEANINGS
from cehrxgpt.simulate.populations.full.panels import TESTS
from cehrxgpt.simulate.populations.full.questions import ANSWERS, QUESTIONS
from cehrxgpt.simulate.populations.full.reasons import CHECKUP, REASONS

_VACCINES = (40213154, 40213201, 40213230)
_ELSEWHERE = {  # what the vocabulary files elsewhere than the table it stands in
    4021315: "Observation", 3042932: "Observation", 42868746: "Observation", 4018619: "Measurement", 4064377: "Measurement", 4133840: "Measurement",
    4207466: "Measurement",
}  # fmt: skip

CLASSES: dict[int, tuple[str, tuple[int, ...]]] = {
    # class, which occurs in no patient -> its members (and what climbs to them)
    441840: ("A finding", (134057, 320136, 4027384, 4180628)),
    134057: ("Disease of heart or vessels", (321588, 316866, 443784)),
    321588: ("Disease of the heart", (317576, 4329847, 316139, 313217, 321042)),
    316866: ("High blood pressure of any kind", (320128,)),
    443784: ("Disease of blood vessels", (321052, 44782746, 45768439, 381591)),
    381591: ("Disease of the brain's vessels", (443454,)),
    320136: ("Disease of the airways", (255573, 317009, 255848, 260139, 319049, 40481087, 4294548, 4283893, 313459)),
    4180628: ("Disease of a part of the body", (80180, 80809, 198199, 46271022)),
    201820: ("Diabetes", (201826,)),
    432851: ("Cancer that has spread", (4311765,)),
    443392: ("Cancer", (4180790, 4112853, 432851)),
    4027384: ("Inflammation", (198809, 440448, 199074)),
}  # fmt: skip

CLIMBS: dict[int, int | None] = {
    # codes of an entry that are not under its usual one, or are its usual one and the finer themselves -> what they are under
    257004: 255573, 255573: None,  # an exacerbation is of the disease
    443597: 46271022, 443612: 46271022, 193782: 46271022, 46271022: None,  # stages of chronic kidney disease
    4294548: 4283893, 40481087: 4283893, 4283893: None, 4112343: None,  # sinusitis, by what causes it; a sore throat
    4217975: 4299535, 4188598: 4299535, 4299535: None,  # pregnancies
    444362: 4303690, 4303690: None,  # harm to oneself
    196456: None, 442752: None, 4096715: None, 78272: None,  # gallstones, pain of muscles, vomiting, a wrist: things of their own
    4156265: None, 4155034: None, 4109685: None, 4059173: None, 4237458: None, 4142905: None,  # other cuts, other bones
    1596977: None,  # another insulin
}  # fmt: skip


def names(entries: Sequence[Entry], medicines: Sequence[Medicine]) -> dict[int, tuple[str, str, str]]:
    """concept id -> (name, domain, vocabulary) of all that these entries and either hospital can write."""
    found: dict[int, tuple[str, str, str]] = dict(COMMON)

    def add(concept: int, name: str, domain: str, vocabulary_id: str) -> None:
        if concept:
            found.setdefault(concept, (name, _ELSEWHERE.get(concept, domain), vocabulary_id))

    for entry in entries:
        for concept, name in entry.codes.items():
            add(concept, name, "Condition", "SNOMED")
        for done in entry.workup:
            add(done.concept, done.name, "Procedure", "SNOMED")
        for done in entry.remedies:
            add(done.concept, done.name, "Drug", "CVX" if done.concept in _VACCINES else "RxNorm")
        for done in entry.devices:
            add(done.concept, done.name, "Device", "SNOMED")
    for medicine in medicines:
        for concept, name in {medicine.concept: medicine.label, **medicine.products}.items():
            add(concept, name, "Drug", "RxNorm")
    for reasons in REASONS.values():
        for reason in reasons:
            add(reason.concept, reason.name, "Condition", "SNOMED")
            add(*reason.drug, "Drug", "RxNorm")
            add(*reason.procedure, "Procedure", "SNOMED")
    for offer in CHECKUP:
        add(offer.concept, offer.name, "Procedure", "SNOMED")
    for test in TESTS:
        add(test.concept, test.label, "Measurement", "LOINC")
        add(test.unit, test.text, "Unit", "UCUM")
    for hospital in HOSPITALS.values():
        for unit in hospital.units.values():
            add(unit.concept, unit.text, "Unit", "UCUM")
    for question in QUESTIONS:
        add(question.concept, question.label, "Observation", "SNOMED" if question.holds else "LOINC")
    for concept, name in {**MEANINGS, **ANSWERS}.items():
        add(concept, name, "Meas Value", "SNOMED" if concept < 45_000_000 else "LOINC")
    for concept, (name, _) in CLASSES.items():
        add(concept, name, "Condition", "SNOMED")
    places = {
        visits.BOTH: "Emergency visit and stay in one", visits.OBSERVATION: "Observation room", visits.TELEHEALTH: "Visit by telephone or screen",
        visits.HOME_VISIT: "Visit at home", visits.DAY_SURGERY: "Surgery without a stay", 581477: "Visit to an office", 32037: "Intensive care",
        8717: "Ward of a hospital",
    }  # fmt: skip
    for concept, name in places.items():
        add(concept, name, "Visit", "Visit")
    return found


def ancestors(entries: Sequence[Entry], medicines: Sequence[Medicine], known: Sequence[int]) -> list[tuple[int, int, int]]:
    """(ancestor, descendant, levels): the finer codes of an entry under its usual one, products under ingredients, but for CLIMBS; diseases under
    classes."""
    parents: dict[int, set[int]] = {}
    for usual, *finer in [*(list(entry.codes or (0,)) for entry in entries), *([medicine.concept, *medicine.products] for medicine in medicines)]:
        for concept in finer:
            if concept not in CLIMBS:
                parents.setdefault(concept, set()).add(usual)
    for concept, parent in CLIMBS.items():
        if parent is not None and concept in known:
            parents.setdefault(concept, set()).add(parent)
    for ancestor, (_, members) in CLASSES.items():
        for concept in members:
            if concept in known:
                parents.setdefault(concept, set()).add(ancestor)
    rows: dict[tuple[int, int], int] = {}
    for concept in parents:
        level, reached = 0, {concept}
        while reached := {parent for one in reached for parent in parents.get(one, ())} - {concept}:
            level += 1
            if level > 12:
                break
            for parent in reached:
                rows.setdefault((parent, concept), level)
    return [(ancestor, descendant, level) for (ancestor, descendant), level in rows.items()]


def frames(hospital: str, entries: Sequence[Entry], medicines: Sequence[Medicine]) -> dict[str, Any]:
    """concept, concept_ancestor, vocabulary, cdm_source."""
    known = names(entries, medicines)
    return vocabulary.frames(
        known, ancestors(entries, medicines, tuple(known)), source=f"Simulated population with known hazards, hospital {hospital}"
    )

"""`full`: adults of all ages and what most often befalls them, near published rates; two hospitals that write it down differently.

A disease is one entry in one of the files by organ system; this file puts them together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.concepts import HOME, HOSPICE, NURSING
from cehrxgpt.simulate.declare import Care, Floats, Intake, Place, Population
from cehrxgpt.simulate.draws import uniform
from cehrxgpt.simulate.populations.full import assemble
from cehrxgpt.simulate.populations.full.birth import BIRTH
from cehrxgpt.simulate.populations.full.body import BODY
from cehrxgpt.simulate.populations.full.cancer import CANCER
from cehrxgpt.simulate.populations.full.care import CARE
from cehrxgpt.simulate.populations.full.entry import Entry, Medicine
from cehrxgpt.simulate.populations.full.heart import HEART
from cehrxgpt.simulate.populations.full.infections import INFECTIONS
from cehrxgpt.simulate.populations.full.lungs import LUNGS
from cehrxgpt.simulate.populations.full.medicines import MEDICINES
from cehrxgpt.simulate.populations.full.metabolism import METABOLISM
from cehrxgpt.simulate.populations.full.mind import MIND
from cehrxgpt.simulate.populations.full.panels import LEVELS
from cehrxgpt.simulate.populations.full.records import write
from cehrxgpt.simulate.populations.full.tasks import tasks
from cehrxgpt.simulate.populations.full.words import frames

ENTRIES: tuple[Entry, ...] = (*HEART, *METABOLISM, *LUNGS, *INFECTIONS, *MIND, *BIRTH, *CANCER, *BODY, *CARE)
NO_FOLLOW_UP = (
    "clinic", "screening", "mammography", "vaccination", "pregnancy", "prenatal", "postnatal", "contraception", "chemotherapy", "common_cold",
    "day_surgery", "tumour", "hay_fever", "joint_pain", "rash",
)  # fmt: skip


def _ages(quantiles: dict[float, float]) -> object:
    """Ages at entry by their quantiles."""

    def ages(key: npt.NDArray[np.uint64]) -> Floats:
        return np.interp(uniform(key, 0, 1010), list(quantiles), list(quantiles.values()))

    return ages


def build(entries: tuple[Entry, ...] = ENTRIES, medicines: tuple[Medicine, ...] = MEDICINES, name: str = "full") -> Population:
    """The population of these entries: add one to extend it."""
    medicines = (*medicines, *(medicine for entry in entries for medicine in entry.medicines))
    hazards = assemble.hazards(entries, medicines)
    first, latest = assemble.markers(hazards, medicines)
    brought = {entry.name: assemble.Share(entry.brought, entry.brought_men, entry.only) for entry in entries if entry.brought}
    common = {"years": (4.0, 8.0), "brought_years": (1.5, 12.0), "brought": brought}
    sugar = ("diabetes",)
    return Population(
        name=name, hazards=hazards, treatments=medicines, levels=assemble.levels(LEVELS, entries, medicines), memory_days=240.0,
        first_markers=first, latest_markers=latest, flags=assemble.flags(hazards, (*first, *latest)),
        care=Care(
            checkup_days=520.0, tiers=assemble.tiers(entries), no_follow_up=NO_FOLLOW_UP, home=HOME, intake_minutes=420.0,
            intensive_days=(1.8, 0.85), intensive_terms={"frailty": 0.35, "lung_disease": 0.5, "kidney_disease": 0.3, "obesity": 0.3},
            hospice=Place(concept=HOSPICE, intercept=5.6, terms={"age": 0.55, "frailty": 0.4, "heart_failure": 0.5, "metastasis": 2.6,
              "dementia": 0.8}),
            nursing=Place(concept=NURSING, intercept=2.6, terms={"age": 0.75, "frailty": 0.3, "stroke": 0.7, "dementia": 0.9, "hip_fracture": 0.9}),
        ),
        intake={
            "a": Intake(
                ages=_ages({0.0: 18, 0.15: 29, 0.35: 43, 0.55: 56, 0.75: 67, 0.9: 77, 0.98: 86, 1.0: 92}),  # type: ignore[arg-type]
                male=0.47, races=(0.68, 0.83, 0.89), **common,  # type: ignore[arg-type]
            ),
            "b": Intake(
                ages=_ages({0.0: 18, 0.2: 27, 0.45: 40, 0.65: 52, 0.82: 63, 0.94: 75, 0.99: 85, 1.0: 92}),  # type: ignore[arg-type]
                male=0.46, races=(0.45, 0.72, 0.84), **common,  # type: ignore[arg-type]
            ),
        },
        first_day="2008-01-01", last_day="2024-01-01", write=write, vocabulary=lambda hospital: frames(hospital, entries, medicines),
        tasks=tasks({entry.name: entry for entry in entries}, _concepts(medicines, sugar)),
    )  # fmt: skip


def _concepts(medicines: tuple[Medicine, ...], indications: tuple[str, ...]) -> tuple[int, ...]:
    """Ingredients and products given for these diseases, and for these first."""
    chosen = [one for one in medicines if one.indications[0] in indications]
    return tuple(code for one in chosen for code in (one.concept, *one.products))


FULL = build()

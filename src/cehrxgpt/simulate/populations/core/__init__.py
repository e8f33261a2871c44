"""`core`: ten diseases, eighteen hazards, one hospital. Small, fast, and built for power; the demo and its figures rest on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.declare import AGE_CENTRE, AGE_SCALE, Care, Floats, Intake, Place, Population
from cehrxgpt.simulate.draws import normal
from cehrxgpt.simulate.populations.core import concepts
from cehrxgpt.simulate.populations.core import hazards as h
from cehrxgpt.simulate.populations.core.records import write
from cehrxgpt.simulate.truth_tasks import Event, TrueTask


def _ages(key: npt.NDArray[np.uint64]) -> Floats:
    return np.clip(64.0 + 10.5 * normal(key, 0, 1010), 40.0, 88.0)


class _Share:
    """Share at 65, and log odds per decade."""

    def __init__(self, share: float, slope: float):
        self.odds, self.slope = share / (1 - share), slope

    def __call__(self, age: Floats, male: npt.NDArray[np.bool_]) -> Floats:
        odds = self.odds * np.exp(self.slope * (age - AGE_CENTRE) / AGE_SCALE)
        return odds / (1 + odds)


CORE = Population(
    name="core", hazards=h.HAZARDS, treatments=h.TREATMENTS, levels=h.LEVELS, memory_days=h.LEVEL_MEMORY_DAYS,
    first_markers=h.FIRST_MARKERS, latest_markers=h.LATEST_MARKERS, flags=h.FLAGS,
    care=Care(
        checkup_days=365.0,
        tiers=(
            (240.0, ("hypertension", "hyperlipidemia", "kidney_disease", "lung_disease")),
            (160.0, ("diabetes", "coronary_disease", "heart_failure")),
        ),
        no_follow_up=("clinic",),
        hospice=Place(concept=concepts.HOSPICE, intercept=5.0, terms={"age": 0.6, "frailty": 0.6, "heart_failure": 0.6}),
        nursing=Place(concept=concepts.NURSING, intercept=2.1, terms={"age": 0.6, "frailty": 0.3, "stroke": 0.8}),
        home=concepts.HOME,
    ),
    intake={
        "a": Intake(
            ages=_ages, years=(4.0, 6.0), male=0.48, races=(0.62, 0.80, 0.90), brought_years=(8.0, 9.0),
            brought={name: _Share(*values) for name, values in h.PREVALENCE.items()},
        ),
    },
    first_day="2008-01-01", last_day="2024-01-01", write=write, vocabulary=concepts.frames, compact=False,
    tasks={
        "t2dm_hf_1y": TrueTask(outcome=Event("heart_failure"), days=365.0, number=1),
        "cad_cabg_1y": TrueTask(outcome=Event("bypass"), days=365.0, number=2),
        "discharge_home_death_1y": TrueTask(outcome=Event("death"), days=360.0, number=3),
    },
)  # fmt: skip

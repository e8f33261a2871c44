"""A population with known hazards -> OMOP CDM 5.4 tables, and the true risk of each task at any instant.

    simulate("cdm/", SimulateConfig(patients=10_000, seed=0))
    true_risk("cdm/", at=labels, task="t2dm_hf_1y", samples=2000)
    add_population(mine)       one of your own, known by its name from then on

The names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.simulate.populations import add_population
    from cehrxgpt.simulate.simulator import SimulateConfig, SimulateSummary, simulate
    from cehrxgpt.simulate.truth import true_risk, true_tasks

_PUBLIC = {
    "add_population": "cehrxgpt.simulate.populations",
    "SimulateConfig": "cehrxgpt.simulate.simulator",
    "SimulateSummary": "cehrxgpt.simulate.simulator",
    "simulate": "cehrxgpt.simulate.simulator",
    "true_tasks": "cehrxgpt.simulate.truth",
    "true_risk": "cehrxgpt.simulate.truth",
}

__all__ = ["SimulateConfig", "SimulateSummary", "add_population", "simulate", "true_risk", "true_tasks"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'cehrxgpt.simulate' has no attribute '{name}'; it offers {', '.join(sorted(_PUBLIC))}")

"""`core` stays what it is: the shipped demo and its figures rest on it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl
import polars.selectors as cs

from cehrxgpt.simulate import SimulateConfig, simulate

GOLDEN = {  # sha256 of the columns, their types, and the rows as CSV, floats to nine digits: 60 patients, seed 3
    "cdm_source": "82339a85a0957f82", "concept": "99d6ce7ed3ac5ff9", "concept_ancestor": "31ddb458086c058a",
    "condition_occurrence": "8a4c774091eccf07", "death": "164f398a7626ab83", "drug_exposure": "a5cce7fa6ee94b92", "measurement": "be8361bba471333b",
    "observation_period": "3cf59356573740ca", "person": "394b891a58171e5a", "procedure_occurrence": "464786398251d728",
    "truth/cad_cabg_1y": "278a4aec39949883", "truth/discharge_home_death_1y": "4eb813f8b870a17f", "truth/people": "409b2716c5156a5b",
    "truth/states": "2ddc78c7611f5ec9", "truth/t2dm_hf_1y": "5f21285464a269a2", "visit_occurrence": "d22568cdc30bda41",
    "vocabulary": "7977ee977cc309f5",
}  # fmt: skip


def digest(path: Path) -> str:
    frame = pl.read_parquet(path).with_columns(cs.float().round_sig_figs(9))  # processors differ in an exponential's last digit
    kinds = str([(name, str(dtype)) for name, dtype in frame.schema.items()])
    return hashlib.sha256((kinds + frame.write_csv()).encode()).hexdigest()[:16]


def test_the_tables_of_core_are_what_they_were(tmp_path: Path) -> None:
    simulate(tmp_path / "cdm", SimulateConfig(population="core", patients=60, seed=3, truth_samples=20, truth_rows=8))
    found = {str(path.relative_to(tmp_path / "cdm").with_suffix("")): digest(path) for path in (tmp_path / "cdm").rglob("*.parquet")}
    assert found == GOLDEN

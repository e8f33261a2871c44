"""`ingest.json` against a second count in SQL, on every untidy fixture and on the open data sets."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from recount import EVENTS, recount, recount_mimic, written
from sources_cdm import run
from sources_untidy import UNTIDY
from test_sources_meds import stay, t, write_meds

TODAY = f"TIMESTAMP '{date.today().isoformat()} 23:59:59.999999'"
SHIFTED = "TIMESTAMP '2899-12-31 23:59:59.999999'"


def check(folder: Path, out: Path, **config: Any) -> dict[str, Any]:
    """Ingest, and compare table by table."""
    _, report = run(folder, out, **config)
    counted = recount(folder, latest=SHIFTED if report["calendar"] == "shifted" else TODAY)
    assert report["tables"] == dict(sorted(counted.items()))
    there = written(out)
    for table, row in counted.items():
        if table in EVENTS or table in ("visit_occurrence", "death"):
            assert there.get(table, 0) == row["kept"], table
    return report


@pytest.mark.e2e
@pytest.mark.parametrize("name", UNTIDY)
def test_untidy_tables(name: str, tmp_path: Path) -> None:
    untidy = UNTIDY[name]
    folder = untidy.write(tmp_path / "cdm")
    report = check(folder, tmp_path / "out")
    for table, reasons in untidy.dropped.items():
        assert report["tables"][table]["dropped"] == reasons, table
    for table, reasons in untidy.mended.items():
        assert report["mended"].get(table, {}) == reasons, table


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["synthea27nj_omop54", "mimic_iv_demo_omop53", "gibleed_omop53"])
def test_open_omop_sets(name: str, shared_data: Path, tmp_path: Path) -> None:
    check(shared_data / name, tmp_path / "out")


def check_mimic(folder: Path, out: Path) -> dict[str, Any]:
    _, report = run(folder, out, threads=2)
    counted = recount_mimic(folder, set(report["tables"]))
    assert report["tables"] == dict(sorted(counted.items()))
    return report


def test_untidy_meds(tmp_path: Path) -> None:
    """Emergency into admission, `Not Given`, rows twice, rows before the birth and after the death."""
    people = [
        *stay(1),
        *stay(2),
        {"subject_id": 3, "time": t(1, 9, 30), "code": "MEDS_DEATH"},
        {"subject_id": 3, "time": t(1, 12), "code": "LAB//1//%"},
    ]
    people += [{"subject_id": 3, "time": t(3), "code": "LAB//1//%"}, {"subject_id": 1, "time": t(1).replace(year=2070), "code": "LAB//1//%"}]
    iron = ("START//Iron", "STOP//Iron", "Iron//Stopped", "Iron//Removed")
    people += [{"subject_id": 2, "time": t(3), "code": f"MEDICATION//{what}"} for what in iron]
    report = check_mimic(write_meds(tmp_path / "in", people), tmp_path / "out")
    assert report["tables"]["MEDICATION"]["dropped"]["only_ends_an_exposure"] == 3
    assert report["tables"]["LAB"]["dropped"] == {"after_death": 1, "before_birth": 1}
    assert report["tables"]["ED_REGISTRATION"]["dropped"] == {"merged_into_admission": 2}


@pytest.mark.e2e
def test_mimic_as_meds(shared_data: Path, tmp_path: Path) -> None:
    check_mimic(shared_data / "mimic_iv_demo_meds", tmp_path / "out")

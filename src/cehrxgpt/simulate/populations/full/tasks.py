"""The library's tasks in this population: what counts as the outcome in a re-simulated future, and who is asked.

Outcomes are judged by what the record will show: a diagnosis counts when the hospital codes it (late, or wrongly), an admission when it is booked as
one. The code of `coding` and `visits` that writes the tables decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cehrxgpt.simulate.populations.full.coding import coded, coded_at
from cehrxgpt.simulate.populations.full.entry import Entry
from cehrxgpt.simulate.populations.full.hospitals import HOSPITALS
from cehrxgpt.simulate.populations.full.records import DONE_AT
from cehrxgpt.simulate.populations.full.visits import admitted
from cehrxgpt.simulate.state import AT_EMERGENCY, State
from cehrxgpt.simulate.truth_tasks import Death, DeathInStay, IntensiveCareEnds, Mask, StayEnds, TrueTask, Window


@dataclass(frozen=True)
class Coded:
    """A diagnosis of one of these entries is written, under a concept."""

    names: tuple[str, ...]

    def __call__(self, part: State, window: Window) -> Mask:
        """See `truth_tasks.Outcome`."""
        hospital = HOSPITALS[window.hospital]
        found = np.zeros(len(part), dtype=bool)
        for entry in part.population.hazards:
            if isinstance(entry, Entry) and entry.name in self.names:
                found |= coded(part, entry, hospital) > 0
        return found & window.holds(part, coded_at(part, hospital))


@dataclass(frozen=True)
class Operated:
    """The event's procedure is written."""

    name: str

    def __call__(self, part: State, window: Window) -> Mask:
        """See `truth_tasks.Outcome`."""
        _, start = admitted(part, HOSPITALS[window.hospital])
        return part.is_event(self.name) & window.holds(part, start + DONE_AT[part.visit])


@dataclass(frozen=True)
class Admission:
    """An inpatient stay begins; with `emergency`, or a visit to the emergency room."""

    emergency: bool = False

    def __call__(self, part: State, window: Window) -> Mask:
        """See `truth_tasks.Outcome`."""
        inpatient, start = admitted(part, HOSPITALS[window.hospital])
        counts = inpatient | (part.visit == AT_EMERGENCY) if self.emergency else inpatient
        return counts & window.holds(part, start)


# -- who is asked: found in the tables without the labeler, by concept ids that both know -----------------------------------------------
_INPATIENT = (9201, 262)


def _scan(cdm: Path, table: str) -> pl.LazyFrame:
    return pl.scan_parquet(cdm / f"{table}.parquet")


def _conditions(cdm: Path, names: tuple[str, ...], entries: dict[str, Entry]) -> pl.LazyFrame:
    concepts = [code for name in names for code in entries[name].codes]
    rows = _scan(cdm, "condition_occurrence").filter(pl.col("condition_concept_id").is_in(concepts))
    return rows.select("person_id", "visit_occurrence_id", at="condition_start_datetime")


def _drugs(cdm: Path, concepts: tuple[int, ...]) -> pl.LazyFrame:
    return _scan(cdm, "drug_exposure").filter(pl.col("drug_concept_id").is_in(list(concepts))).select("person_id", at="drug_exposure_start_datetime")


def _first(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.group_by("person_id").agg(pl.col("at").min())


def _none_before(rows: pl.LazyFrame, other: pl.LazyFrame) -> pl.LazyFrame:
    joined = rows.join(_first(other).rename({"at": "before"}), on="person_id", how="left")
    return joined.filter(pl.col("before").is_null() | (pl.col("before") > pl.col("at"))).drop("before")


def _history(cdm: Path, rows: pl.LazyFrame, days: int) -> pl.LazyFrame:
    start = _scan(cdm, "observation_period").select("person_id", since=pl.col("observation_period_start_date").cast(pl.Datetime("us")))
    return rows.join(start, on="person_id").filter(pl.col("since") <= pl.col("at") - pl.duration(days=days))


def _stays(cdm: Path) -> pl.LazyFrame:
    """Inpatient stays with their start, which is that of the emergency visit that ran into it."""
    visits = _scan(cdm, "visit_occurrence").select(
        "person_id", "visit_occurrence_id", concept="visit_concept_id", start="visit_start_datetime", end="visit_end_datetime",
        home=pl.col("discharged_to_concept_id") == 8536, dead=pl.col("discharged_to_concept_id") == 4216643,
    )  # fmt: skip
    before = visits.filter(pl.col("concept") == 9203).select("person_id", waited="start", start="end")
    return visits.filter(pl.col("concept").is_in(list(_INPATIENT))).join(before, on=["person_id", "start"], how="left")


def _discharges(cdm: Path) -> pl.LazyFrame:
    # Who died in the stay did not leave it, nor who died at home on that day.
    death = _scan(cdm, "death").select("person_id", "death_date")
    rows = _stays(cdm).filter(~pl.col("dead").fill_null(False)).with_columns(at="end").join(death, on="person_id", how="left")
    return rows.filter((pl.col("death_date") != pl.col("at").dt.date()).fill_null(True))


def _within(cdm: Path, hours: int) -> pl.LazyFrame:
    rows = _stays(cdm).with_columns(at=pl.coalesce("waited", "start") + pl.duration(hours=hours))
    return rows.with_columns(at=pl.max_horizontal("at", "start")).filter(pl.col("end") > pl.col("at"))


def _in_intensive_care(cdm: Path, hours: int) -> pl.LazyFrame:
    rows = _scan(cdm, "visit_detail").filter(pl.col("visit_detail_concept_id") == 32037)
    rows = rows.select("person_id", at=pl.col("visit_detail_start_datetime") + pl.duration(hours=hours), end="visit_detail_end_datetime")
    return rows.filter(pl.col("end") > pl.col("at"))


def _after(cdm: Path, days: int) -> pl.LazyFrame:
    """So many days after the first visit, alive and observed."""
    rows = _scan(cdm, "visit_occurrence").group_by("person_id").agg(at=pl.col("visit_start_datetime").min() + pl.duration(days=days))
    period = _scan(cdm, "observation_period").select("person_id", last="observation_period_end_date")
    last = pl.col("last").cast(pl.Datetime("us")) + pl.duration(days=1)
    died = _scan(cdm, "death").select("person_id", died=pl.coalesce("death_datetime", pl.col("death_date").cast(pl.Datetime("us"))))
    rows = rows.join(period, on="person_id").filter(last > pl.col("at")).join(died, on="person_id", how="left")
    return rows.filter(pl.col("died").is_null() | (pl.col("died") > pl.col("at")))


def _ready(rows: pl.LazyFrame) -> pl.DataFrame:
    chosen = rows.select(pl.col("person_id").alias("subject_id"), pl.col("at").cast(pl.Datetime("us")).alias("prediction_time"))
    return chosen.unique().sort("subject_id", "prediction_time").collect()


_NSAIDS = (1118084, 1118088, 1124300, 40162359)
_GRAFTS = (4336464, 4216130)


def tasks(entries: dict[str, Entry], diabetes_drugs: tuple[int, ...]) -> dict[str, TrueTask]:
    """All thirteen."""
    copd = ("lung_disease", "exacerbation")
    failing = ("heart_failure", "decompensation")

    def first_code(*names: str) -> Callable[[Path], pl.LazyFrame]:
        return lambda cdm: _first(_conditions(cdm, names, entries))

    def after_stay_with(names: tuple[str, ...], history: int) -> Callable[[Path], pl.DataFrame]:
        def rows(cdm: Path) -> pl.DataFrame:
            return _ready(
                _history(cdm, _discharges(cdm).join(_conditions(cdm, names, entries).drop("at"), on="visit_occurrence_id", how="semi"), history)
            )

        return rows

    def diabetics(cdm: Path) -> pl.DataFrame:
        both = first_code("diabetes", "retinopathy")(cdm).join(_first(_drugs(cdm, diabetes_drugs)), on="person_id", suffix="_drug")
        return _ready(_none_before(both.with_columns(at=pl.max_horizontal("at", "at_drug")), _conditions(cdm, failing, entries)))

    def coronary(cdm: Path) -> pl.DataFrame:
        done = _scan(cdm, "procedure_occurrence").filter(pl.col("procedure_concept_id").is_in(list(_GRAFTS)))
        return _ready(_none_before(first_code("coronary_disease")(cdm), done.select("person_id", at="procedure_datetime")))

    return {
        "t2dm_hf_1y": TrueTask(outcome=Coded(failing), days=365.0, number=1, rows=diabetics),
        "cad_cabg_1y": TrueTask(
            # a disease first coded on the day of its operation is asked about an hour before the operation is written
            outcome=Operated("bypass"), settled=Operated("bypass"), days=365.0, number=2, rows=coronary,
        ),
        "discharge_home_death_1y": TrueTask(outcome=Death(), days=360.0, number=3, rows=lambda cdm: _ready(_discharges(cdm).filter(pl.col("home")))),
        "afib_stroke_1y": TrueTask(
            outcome=Coded(("stroke",)), days=360.0, number=4, rows=lambda cdm: _ready(_history(cdm, first_code("fibrillation")(cdm), 720))
        ),
        "nsaid_gi_bleed_1y": TrueTask(
            outcome=Coded(("gi_bleed",)), days=365.0, number=5,
            rows=lambda cdm: _ready(_none_before(_first(_drugs(cdm, _NSAIDS)), _conditions(cdm, ("gi_bleed",), entries))),
        ),
        "readmission_30d": TrueTask(outcome=Admission(), days=30.0, number=6, rows=lambda cdm: _ready(_discharges(cdm))),
        "hf_readmission_30d": TrueTask(outcome=Admission(), days=30.0, number=7, rows=after_stay_with(failing, 360)),
        "copd_readmission_30d": TrueTask(outcome=Admission(), days=30.0, number=8, rows=after_stay_with(copd, 720)),
        "emergency_visit_1y": TrueTask(outcome=Admission(emergency=True), days=365.0, number=9, rows=lambda cdm: _ready(_after(cdm, 365))),
        "hospitalization_1y": TrueTask(outcome=Admission(), days=360.0, gap_days=180.0, number=10, rows=lambda cdm: _ready(_after(cdm, 540))),
        "in_hospital_mortality_48h": TrueTask(
            outcome=DeathInStay(), days=90.0, number=11, in_stay=True, rows=lambda cdm: _ready(_within(cdm, 48))
        ),
        "long_stay_7d": TrueTask(
            outcome=StayEnds(), days=7.0, stay_over_days=7.0, number=12, in_stay=True, rows=lambda cdm: _ready(_within(cdm, 24))
        ),
        "long_icu_stay_7d": TrueTask(
            outcome=Death(), settled=IntensiveCareEnds(), days=7.0, stay_over_days=7.0, number=13, in_stay=True, in_intensive_care=24.0,
            rows=lambda cdm: _ready(_in_intensive_care(cdm, 24)),
        ),
    }  # fmt: skip

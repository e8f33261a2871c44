"""`simulate`: a population with known hazards as a folder of OMOP CDM 5.4 tables, and its truth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cehrxgpt.atomic import atomic_path
from cehrxgpt.config import to_dict
from cehrxgpt.simulate import hazards as h
from cehrxgpt.simulate.cdm import write_cdm
from cehrxgpt.simulate.draws import make_keys, uniform
from cehrxgpt.simulate.index import index_rows
from cehrxgpt.simulate.population import Population, live
from cehrxgpt.simulate.records import Records
from cehrxgpt.simulate.truth import PEOPLE_FILE, TASKS, true_risk, write_states

Progress = Callable[[int, int, str], None]  # done, in all, of what


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """What to simulate.

    Attributes:
        patients: people, with ids 1..patients.
        seed: the whole result is a function of it; a person's life of seed and id alone.
        truth_samples: re-simulated futures per row of `truth/<task>.parquet`; 0 writes no such tables (the states are always recorded,
            and `true_risk` can be asked later).
        truth_rows: at most so many rows per task, chosen at random but always the same; null for all.
    """

    patients: int = 10_000
    seed: int = 0
    truth_samples: int = 2000
    truth_rows: int | None = 300

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise ValueError(f"patients must be at least 1, not {self.patients}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.truth_samples != 0 and self.truth_samples < 2:
            raise ValueError(f"truth_samples must be 0 (none) or at least 2, not {self.truth_samples}")
        if self.truth_rows is not None and self.truth_rows < 1:
            raise ValueError(f"truth_rows must be at least 1, not {self.truth_rows}")


@dataclass(frozen=True, kw_only=True)
class SimulateSummary:
    """What was written: `rows` by table, `prevalence` of each disease at the end of observation, `truth` rows by task."""

    out: str
    patients: int
    deaths: int
    rows: dict[str, int]
    events_per_patient: float
    years_per_patient: float
    prevalence: dict[str, float]
    index_rows: dict[str, int]
    truth: dict[str, int]
    seconds: float


def simulate(out: Path | str, config: SimulateConfig | None = None, *, force: bool = False, progress: Progress | None = None) -> SimulateSummary:
    """Write a simulated population: `<table>.parquet` of OMOP CDM 5.4, `truth/`, `simulate.json`.

    Args:
        out: folder to make; there whole or not at all.
        config: see `SimulateConfig`.
        force: replace what is there.
        progress: called with (done, in all, of what).

    Raises:
        OutputExistsError: `out` is there and `force` is not given.
        StorageError: the disk failed; nothing is left behind.
    """
    config = config or SimulateConfig()
    began = time.perf_counter()
    with atomic_path(out, force=force, folder=True) as folder:
        tell = progress or (lambda done, total, what: None)
        lived = [0]

        def count(done: int, total: int) -> None:
            lived[0] += done
            tell(lived[0], total, "patients")

        people = live(config.patients, config.seed, progress=count)
        records = Records(people)
        records.write()
        rows = write_cdm(people, records, folder)
        (folder / "truth").mkdir()
        write_states(people.states, records.subject, folder / "truth")
        _write_people(people, folder / "truth")
        indices = {task: index_rows(folder, task) for task in TASKS}
        truths = _write_truths(folder, config, indices, tell)
        summary = _summary(Path(out), people, records, rows, {task: frame.height for task, frame in indices.items()}, truths, began)
        facts = {"config": to_dict(config), "summary": {key: value for key, value in to_dict(summary).items() if key not in ("out", "seconds")}}
        (folder / "simulate.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return summary


def _write_people(people: Population, folder: Path) -> None:
    """What is known of each person from outside: the planned end of observation, which does not depend on what happens to them."""
    minutes = {"start": people.start, "planned_end": people.end}
    columns = {name: values.astype(np.int64).astype("datetime64[m]").astype("datetime64[us]") for name, values in minutes.items()}
    pl.DataFrame({"subject_id": people.subject_id, **columns}).write_parquet(folder / PEOPLE_FILE)


def choose_rows(rows: pl.DataFrame, limit: int | None, seed: int) -> pl.DataFrame:
    """At most `limit` rows, the same ones whenever asked: those whose hash is lowest."""
    if limit is None or rows.height <= limit:
        return rows
    instants = rows["prediction_time"].dt.epoch("us").to_numpy()
    draw = uniform(make_keys(seed, rows["subject_id"].to_numpy(), instants), 0, 1)
    return rows[np.sort(np.argsort(draw, kind="stable")[:limit])]


def _write_truths(folder: Path, config: SimulateConfig, indices: dict[str, pl.DataFrame], tell: Progress) -> dict[str, int]:
    if not config.truth_samples:
        return {}
    written = {}
    for task, rows in indices.items():
        chosen = choose_rows(rows, config.truth_rows, config.seed)

        def count(done: int, total: int, task: str = task) -> None:
            tell(done, total, f"true risks of {task}")

        frame = true_risk(folder, chosen, task, samples=config.truth_samples, seed=config.seed, progress=count)
        frame.write_parquet(folder / "truth" / f"{task}.parquet")
        written[task] = frame.height
    return written


def _summary(
    out: Path, people: Population, records: Records, rows: dict[str, int], indices: dict[str, int], truths: dict[str, int], began: float
) -> SimulateSummary:
    states = people.states
    last = states.take(np.flatnonzero(np.r_[np.diff(states.row) != 0, True]))
    n = len(people.subject_id)
    clinical = ("visit_occurrence", "condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement", "death")
    years = (np.minimum(people.end, np.where(last.event == h.DEATH, last.time, np.inf)) - people.start) / (365.25 * 1440)
    return SimulateSummary(
        out=str(out), patients=n, deaths=len(records.deaths["time"]), rows=rows,
        events_per_patient=round(sum(rows[name] for name in clinical) / n, 1), years_per_patient=round(float(years.mean()), 2),
        prevalence={name: round(float(last.has(name).mean()), 4) for name in h.FLAGS}, index_rows=indices, truth=truths,
        seconds=round(time.perf_counter() - began, 2),
    )  # fmt: skip

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
from cehrxgpt.simulate.cdm import CdmWriter
from cehrxgpt.simulate.declare import Population
from cehrxgpt.simulate.draws import make_keys, uniform
from cehrxgpt.simulate.index import task_rows
from cehrxgpt.simulate.lives import Lives, live
from cehrxgpt.simulate.populations import known, population
from cehrxgpt.simulate.truth import PEOPLE_FILE, SETTINGS_FILE, STATES_FILE, people_table, states_table, true_risk

Progress = Callable[[int, int, str], None]  # done, in all, of what


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """What to simulate.

    Attributes:
        patients: people, with ids 1..patients.
        seed: the whole result is a function of it; a person's life of seed and id alone.
        truth_samples: re-simulated futures per row of `truth/<task>.parquet`; 0 writes no such tables (the states are always recorded,
            and `true_risk` can be asked later).
        population: `core`, `full`, or the name of one of your own (see `add_population`).
        hospital: `a` or `b` (of `full`): who comes, and how the hospital keeps its records.
        truth_rows: at most so many rows per task, chosen at random but always the same; null for all.
    """

    patients: int = 10_000
    seed: int = 0
    truth_samples: int = 2000
    truth_rows: int | None = 300
    population: str = "core"
    hospital: str = "a"

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise ValueError(f"patients must be at least 1, not {self.patients}")
        if self.population not in known():
            raise ValueError(f"population must be one of {', '.join(known())}, or one made known with add_population, not '{self.population}'")
        if self.hospital not in (hospitals := tuple(population(self.population).intake)):
            raise ValueError(f"hospital of population {self.population} must be one of {', '.join(hospitals)}, not '{self.hospital}'")
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
    people = population(config.population)
    with atomic_path(out, force=force, folder=True) as folder:
        tell = progress or (lambda done, total, what: None)
        (folder / "truth").mkdir()
        # The settings stand there from the start: the true risks below are asked of the folder as anyone would ask.
        (folder / SETTINGS_FILE).write_text(json.dumps({"config": to_dict(config)}), encoding="utf-8")
        tables, counts = _write_people(folder, people, config, tell)
        indices = {task: task_rows(folder, people, task) for task in people.tasks}
        truths = _write_truths(folder, config, indices, tell)
        summary = counts.summary(Path(out), people, tables, {task: frame.height for task, frame in indices.items()}, truths, began)
        facts = {"config": to_dict(config), "summary": {key: value for key, value in to_dict(summary).items() if key not in ("out", "seconds")}}
        (folder / SETTINGS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return summary


def _write_people(folder: Path, people: Population, config: SimulateConfig, tell: Progress) -> tuple[dict[str, int], _Counts]:
    """Live and write, some people at a time; returns rows by table, and what was counted."""
    cdm, truth, counts = CdmWriter(folder), CdmWriter(folder / "truth"), _Counts(people)
    lived = 0
    for lives in live(people, config.patients, config.seed, hospital=config.hospital):
        cdm.add(lives, people.write(lives, config.hospital))
        truth.append(STATES_FILE.removesuffix(".parquet"), states_table(lives))
        truth.append(PEOPLE_FILE.removesuffix(".parquet"), people_table(lives))
        counts.add(lives)
        lived += len(lives.subject_id)
        tell(lived, config.patients, "patients")
    for name, frame in people.vocabulary(config.hospital).items():
        cdm.append(name, frame)
    cdm.close()
    truth.close()
    return cdm.rows, counts


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


class _Counts:
    """What the summary needs of lives that are gone."""

    def __init__(self, people: Population):
        self.people, self.patients, self.deaths, self.years = people, 0, 0, 0.0
        self.has = dict.fromkeys(people.flags, 0)

    def add(self, lives: Lives) -> None:
        """Count these lives too."""
        states = lives.states
        last = states.take(np.flatnonzero(np.r_[np.diff(states.row) != 0, True]))
        dead = last.is_event("death")
        self.patients += len(last)
        self.deaths += int(dead.sum())
        self.years += float((np.minimum(lives.end, np.where(dead, last.time, np.inf)) - lives.start).sum()) / (365.25 * 1440)
        for name in self.has:
            self.has[name] += int(last.has(name).sum())

    def summary(
        self, out: Path, people: Population, rows: dict[str, int], indices: dict[str, int], truths: dict[str, int], began: float
    ) -> SimulateSummary:
        """All that was counted."""
        clinical = ("visit_occurrence", "condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement", "death")
        n = self.patients
        return SimulateSummary(
            out=str(out), patients=n, deaths=self.deaths, rows=rows,
            events_per_patient=round(sum(rows[name] for name in clinical) / n, 1), years_per_patient=round(self.years / n, 2),
            prevalence={name: round(count / n, 4) for name, count in self.has.items()}, index_rows=indices, truth=truths,
            seconds=round(time.perf_counter() - began, 2),
        )  # fmt: skip

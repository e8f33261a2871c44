"""The true risk of a task at any instant: restore the recorded state, live the future many times over, count.

    risk = share of re-simulated futures in which the outcome comes within the window, death before it counting as "no"

Nobody is censored, and the state is complete (diseases with their dates, latent lab levels, treatments, frailty, the next appointment), so
this is the cumulative incidence given all that drives the hazards: no model that sees only the record can do better on average. The futures of
one (subject, instant, task, sample) are the same whatever else is asked for. About 12 µs a future of a year.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.errors import InputError
from cehrxgpt.simulate.declare import Population
from cehrxgpt.simulate.draws import make_keys
from cehrxgpt.simulate.lives import Lives
from cehrxgpt.simulate.populations import population
from cehrxgpt.simulate.process import Process
from cehrxgpt.simulate.state import DAY, IN_STAY, State, from_columns, to_columns
from cehrxgpt.simulate.transitions import replan
from cehrxgpt.simulate.truth_tasks import TrueTask, window_of

SETTINGS_FILE = "simulate.json"
STATES_FILE = "states.parquet"
PEOPLE_FILE = "people.parquet"
FUTURES_AT_ONCE = 1 << 14  # fits a core's cache

TRUTH_DTYPES = {
    "subject_id": pl.Int64(), "prediction_time": pl.Datetime("us"), "task": pl.String(), "true_risk": pl.Float64(), "std_error": pl.Float64(),
    "num_resimulations": pl.Int32(),
}  # fmt: skip


def resimulate(
    states: State,
    subject_id: npt.NDArray[np.int64],
    instant: npt.NDArray[np.float64],
    task: TrueTask,
    *,
    samples: int,
    seed: int = 0,
    threads: int = 1,
    hospital: str = "a",
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Share of `samples` futures with the outcome, [n].

    Args:
        states: state of each row at or before `instant`, nothing having happened in between, [n].
        subject_id, instant: whose, and from when (minutes), [n].
        task: outcome and window.
        threads: worker threads; they change the time taken and nothing else (NumPy lets go of the interpreter's lock).
        hospital: whose records the outcome is looked for in.
        progress: called with (rows done, rows in all).
    """
    process = Process(states.population)
    hits = np.zeros(len(states))
    rows_at_once = max(1, FUTURES_AT_ONCE // samples)
    pieces = [np.arange(low, min(low + rows_at_once, len(states))) for low in range(0, len(states), rows_at_once)]

    def piece(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        at = np.repeat(rows, samples)
        start = states.take(at)
        start.row = np.arange(len(at), dtype=np.int64)
        start.key = make_keys(seed, subject_id[at], instant[at].astype(np.int64), task.number, np.tile(np.arange(samples), len(rows)))
        start.step = np.zeros(len(at), dtype=np.uint64)
        start.clock = np.maximum(start.clock, instant[at])
        if states.population.schedules:
            replan(start)
        window = window_of(task, start, instant[at], hospital)
        settled = task.settled(start, window) if task.settled is not None else np.zeros(len(start), dtype=bool)
        dead = start.is_event("death")  # earlier on the day of the question: what the record dates to the day's end is still to come
        settled |= dead & task.outcome(start, window)
        met = process.run(start.take(~settled & ~dead), window.close, stop=lambda part: task.outcome(part, window))
        yes = task.outcome(met, window) if len(met) else np.zeros(0, dtype=bool)
        hits[rows] = np.bincount(np.concatenate([met.row[yes], np.flatnonzero(settled)]) // samples, minlength=len(rows))
        return rows

    with ThreadPoolExecutor(max_workers=threads) as pool:
        for rows in pool.map(piece, pieces):
            if progress is not None:
                progress(int(rows[-1]) + 1, len(states))
    return 1 - hits / samples if task.stay_over_days is not None else hits / samples


def states_table(lives: Lives) -> pl.DataFrame:
    """The full state after every event, `subject_id` added: all that `true_risk` needs."""
    columns: dict[str, npt.NDArray[np.generic]] = {"subject_id": lives.subject_id[lives.states.row]}
    for name, values in to_columns(lives.states).items():
        if name in ("row", "key", "step"):
            continue  # a restored future has keys of its own
        columns[name] = values
    return pl.DataFrame(columns)


def people_table(lives: Lives) -> pl.DataFrame:
    """What is known of each person from outside: the planned end of observation, which does not depend on what happens to them."""
    minutes = {"start": lives.start, "planned_end": lives.end}
    columns = {name: values.astype(np.int64).astype("datetime64[m]").astype("datetime64[us]") for name, values in minutes.items()}
    return pl.DataFrame({"subject_id": lives.subject_id, **columns})


def described(cdm: Path) -> tuple[Population, str]:
    """The population and the hospital that a folder's `simulate.json` names (`core`, `a` where it says nothing)."""
    path = cdm / SETTINGS_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))["config"] if path.exists() else {}
    return population(settings.get("population", "core")), settings.get("hospital", "a")


def true_tasks(cdm: Path | str) -> tuple[str, ...]:
    """The library tasks that have a true risk in this population; none where the folder has no truth."""
    folder = Path(cdm)
    return tuple(described(folder)[0].tasks) if (folder / "truth" / STATES_FILE).exists() else ()


def restore(cdm: Path, people: Population, rows: pl.DataFrame) -> State:
    """The last recorded state at or before each row's `minute`, in the order of `rows`.

    A death outside hospital is recorded by its date, so on that day the record's people may still be asked; after it nobody may.
    """
    path = Path(cdm) / "truth" / STATES_FILE
    if not path.exists():
        raise InputError(f"{cdm}: no truth/{STATES_FILE}; true risks exist for simulated populations only (cehrxgpt simulate)")
    wanted = rows["subject_id"].unique()
    states = pl.scan_parquet(path).filter(pl.col("subject_id").is_in(wanted.implode())).collect()
    absent = wanted.filter(~wanted.is_in(states["subject_id"].unique().implode()))
    if len(absent):
        raise InputError(f"{cdm}: subject {absent[0]} is not in this simulated population ({len(absent)} such subjects); give its own labels")
    states = states.with_columns(minute=pl.col("time").cast(pl.Int64)).sort("minute", maintain_order=True)
    found = rows.with_row_index("_order").sort("minute").join_asof(states, on="minute", by="subject_id", strategy="backward", check_sortedness=False)
    found = found.sort("_order")
    early = found.filter(pl.col("event").is_null())
    if early.height:
        raise InputError(
            f"{cdm}: {early.height} prediction times lie before the first visit (first: subject {early['subject_id'][0]}); none has a state"
        )
    written = pl.when(pl.col("visit") == IN_STAY).then(pl.col("time")).otherwise((pl.col("time") / DAY).floor() * DAY + DAY - 1)
    late = found.filter((pl.col("event") == people.death) & (pl.col("minute") > written))
    if late.height:
        raise InputError(f"{cdm}: {late.height} prediction times lie after death (first: subject {late['subject_id'][0]}); the risk is not defined")
    n = found.height
    columns = {name: found[name].to_numpy() for name in found.columns}
    columns |= {"row": np.arange(n, dtype=np.int64), "key": np.zeros(n, dtype=np.uint64), "step": np.zeros(n, dtype=np.uint64)}
    return from_columns(people, columns)


def true_risk(
    cdm: Path | str,
    at: pl.DataFrame,
    task: str,
    *,
    samples: int = 2000,
    seed: int = 0,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """True risk of `task` at each row of `at`, given the whole state.

    Args:
        cdm: folder that `simulate` wrote.
        at: columns `subject_id`, `prediction_time`, any rows of this population; further columns are ignored.
        task: one of `true_tasks(cdm)`.
        samples: re-simulated futures per row; the standard error is at most 0.5 / sqrt(samples).
        threads: worker threads; they change the time taken and nothing else.
        progress: called with (rows done, rows in all).

    Returns:
        One row per row of `at`, in its order: TRUTH_DTYPES.

    Raises:
        InputError: an unknown task, a folder without truth, a subject or instant that has no state.
    """
    people, hospital = described(Path(cdm))
    if task not in people.tasks:
        raise InputError(f"task '{task}' has no true risk in population {people.name}; there is one for {', '.join(people.tasks)}")
    if samples < 2:
        raise InputError(f"true risk needs at least 2 re-simulations per row, not {samples}; 2000 is usual")
    asked = people.tasks[task]
    rows = at.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
    rows = rows.with_columns(minute=pl.col("prediction_time").dt.epoch("us").floordiv(60_000_000))
    risk = np.zeros(0)
    if rows.height:
        state = restore(Path(cdm), people, rows)
        subject, instant = rows["subject_id"].to_numpy(), rows["minute"].to_numpy().astype(np.float64)
        outside = ~state.in_stay if asked.in_intensive_care is None else ~state.in_stay | (state.icu_until <= instant)
        if asked.in_stay and outside.any():
            where, place = int(np.flatnonzero(outside)[0]), "a hospital stay" if asked.in_intensive_care is None else "intensive care"
            raise InputError(
                f"{cdm}: {int(outside.sum())} prediction times of {task} lie outside {place} (first: subject {subject[where]}, "
                f"{rows['prediction_time'][where]}); it is asked there"
            )
        risk = resimulate(state, subject, instant, asked, samples=samples, seed=seed, threads=threads, hospital=hospital, progress=progress)
    frame = rows.select("subject_id", "prediction_time").with_columns(
        task=pl.lit(task),
        true_risk=pl.Series(risk),
        # Jeffreys' shrinkage keeps the error of an all-or-nothing count above zero.
        std_error=pl.Series(np.sqrt((risk * samples + 0.5) * ((1 - risk) * samples + 0.5) / (samples + 1) ** 2 / (samples + 2))),
        num_resimulations=pl.lit(samples),
    )
    return frame.select(pl.col(name).cast(dtype) for name, dtype in TRUTH_DTYPES.items())

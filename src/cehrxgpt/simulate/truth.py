"""The true risk of a task at any instant: restore the recorded state, live the future many times over, count.

    risk = share of re-simulated futures in which the outcome comes within the window, death before it counting as "no"

Nobody is censored, and the state is complete (diseases with their dates, latent lab levels, treatments, frailty, the next appointment), so
this is the cumulative incidence given all that drives the hazards: no model that sees only the record can do better on average. The futures of
one (subject, instant, task, sample) are the same whatever else is asked for. About 12 µs a future of a year.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.errors import InputError
from cehrxgpt.simulate import hazards as h
from cehrxgpt.simulate.draws import make_keys
from cehrxgpt.simulate.process import Process
from cehrxgpt.simulate.state import DAY, State, from_columns, to_columns

STATES_FILE = "states.parquet"
PEOPLE_FILE = "people.parquet"
FUTURES_AT_ONCE = 1 << 14  # fits a core's cache

TRUTH_DTYPES = {
    "subject_id": pl.Int64(), "prediction_time": pl.Datetime("us"), "task": pl.String(), "true_risk": pl.Float64(), "std_error": pl.Float64(),
    "num_resimulations": pl.Int32(),
}  # fmt: skip


@dataclass(frozen=True)
class TrueTask:
    """A library task whose outcome is one of the hazards."""

    outcome: str
    window_days: float
    number: int  # tells the tasks' random futures apart


TASKS = {
    "t2dm_hf_1y": TrueTask("heart_failure", 365.0, 1),
    "cad_cabg_1y": TrueTask("bypass", 365.0, 2),
    "discharge_home_death_1y": TrueTask("death", 360.0, 3),
}


def resimulate(
    states: State,
    subject_id: npt.NDArray[np.int64],
    instant: npt.NDArray[np.float64],
    task: TrueTask,
    *,
    samples: int,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Share of `samples` futures with the outcome, [n].

    Args:
        states: state of each row at or before `instant`, nothing having happened in between, [n].
        subject_id, instant: whose, and from when (minutes), [n].
        task: outcome and window.
        threads: worker threads; they change the time taken and nothing else (NumPy lets go of the interpreter's lock).
        progress: called with (rows done, rows in all).
    """
    process = Process()
    outcome = h.INDEX[task.outcome]
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
        met = process.run(start, instant[at] + task.window_days * DAY, stop_at=outcome)
        hits[rows] = np.bincount(met.row[met.event == outcome] // samples, minlength=len(rows))
        return rows

    with ThreadPoolExecutor(max_workers=threads) as pool:
        for rows in pool.map(piece, pieces):
            if progress is not None:
                progress(int(rows[-1]) + 1, len(states))
    return hits / samples


def write_states(states: State, subject_id: npt.NDArray[np.int64], folder: Path) -> None:
    """Record the full state after every event, `subject_id` added: all that `true_risk` needs."""
    columns: dict[str, npt.NDArray[np.generic]] = {"subject_id": subject_id}
    for name, values in to_columns(states).items():
        if name in ("row", "key", "step"):
            continue  # a restored future has keys of its own
        columns[name] = values
    pl.DataFrame(columns).write_parquet(folder / STATES_FILE, compression="zstd", row_group_size=1 << 17)


def _restore(cdm: Path, rows: pl.DataFrame) -> State:
    """The last recorded state at or before each row's `minute`, in the order of `rows`."""
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
    late = found.filter(pl.col("event") == h.DEATH)
    if late.height:
        raise InputError(f"{cdm}: {late.height} prediction times lie after death (first: subject {late['subject_id'][0]}); the risk is not defined")
    n = found.height
    columns = {name: found[name].to_numpy() for name in found.columns}
    columns |= {"row": np.arange(n, dtype=np.int64), "key": np.zeros(n, dtype=np.uint64), "step": np.zeros(n, dtype=np.uint64)}
    return from_columns(columns)


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
        task: one of `TASKS`.
        samples: re-simulated futures per row; the standard error is at most 0.5 / sqrt(samples).
        threads: worker threads; they change the time taken and nothing else.
        progress: called with (rows done, rows in all).

    Returns:
        One row per row of `at`, in its order: TRUTH_DTYPES.

    Raises:
        InputError: an unknown task, a folder without truth, a subject or instant that has no state.
    """
    if task not in TASKS:
        raise InputError(f"task '{task}' has no true risk; there is one for {', '.join(TASKS)}")
    if samples < 2:
        raise InputError(f"true risk needs at least 2 re-simulations per row, not {samples}; 2000 is usual")
    rows = at.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
    rows = rows.with_columns(minute=pl.col("prediction_time").dt.epoch("us").floordiv(60_000_000))
    risk = np.zeros(0)
    if rows.height:
        state = _restore(Path(cdm), rows)
        instant = rows["minute"].to_numpy().astype(np.float64)
        risk = resimulate(state, rows["subject_id"].to_numpy(), instant, TASKS[task], samples=samples, seed=seed, threads=threads, progress=progress)
    frame = rows.select("subject_id", "prediction_time").with_columns(
        task=pl.lit(task),
        true_risk=pl.Series(risk),
        # Jeffreys' shrinkage keeps the error of an all-or-nothing count above zero.
        std_error=pl.Series(np.sqrt((risk * samples + 0.5) * ((1 - risk) * samples + 0.5) / (samples + 1) ** 2 / (samples + 2))),
        num_resimulations=pl.lit(samples),
    )
    return frame.select(pl.col(name).cast(dtype) for name, dtype in TRUTH_DTYPES.items())

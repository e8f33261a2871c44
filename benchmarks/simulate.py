"""How fast the simulator is, what its population looks like, and whether elapsed time matters in it.

    python benchmarks/simulate.py [--population full] [--hospital a] [--patients 10000] [--rows 3000] [--samples 200]

Prints one JSON object. "Does time matter": an oracle is shown everything that drives the hazards. One version knows when earlier events
happened; the others know only in which order, or in which order and how many events of any kind lie between. Each is a boosted regression of
the true risk on what it is shown, cross-validated; its AUROC is computed under the true risks (expected over outcomes), so that outcomes add no
noise.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from lightgbm import LGBMRegressor
from sklearn.model_selection import KFold

from cehrxgpt.simulate import SimulateConfig, simulate, true_risk, true_tasks
from cehrxgpt.simulate.index import task_rows
from cehrxgpt.simulate.simulator import choose_rows
from cehrxgpt.simulate.state import DAY, NEVER, YEAR
from cehrxgpt.simulate.truth import described, restore

Floats = npt.NDArray[np.float64]


def expected_auroc(score: Floats, risk: Floats) -> float:
    """AUROC of `score` in expectation over outcomes that follow `risk` (ties by order)."""
    risk = risk[np.argsort(score, kind="stable")]
    below = np.cumsum(1 - risk) - (1 - risk) / 2
    return float((risk * below).sum() / (risk.sum() * (1 - risk).sum()))


def shown(cdm: Path, rows: pl.DataFrame) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """What an oracle may see at each row: (state without times, order of markers, events between, days since, days since what came after entry)."""
    people, _ = described(cdm)
    rows = rows.with_columns(minute=pl.col("prediction_time").dt.epoch("us") // 60_000_000)
    state, now = restore(cdm, people, rows), rows["minute"].to_numpy()[:, None]
    age = (now[:, 0] - state.birth) / YEAR
    last = state.last.T
    has = last > NEVER
    plain = np.column_stack([age, state.male, state.race, state.frailty, state.hospice, state.lab.T, state.offset.T, state.treated.T, has])
    order = np.where(has, np.argsort(np.argsort(-last, axis=1), axis=1), np.nan)
    days = np.where(has, (now - last) / DAY, np.nan)
    moments = pl.read_parquet(cdm / "truth" / "states.parquet", columns=["subject_id", "time"]).sort("subject_id", "time")
    moments = moments.filter(pl.col("subject_id").is_in(rows["subject_id"].unique().implode()))
    times = {key[0]: group["time"].to_numpy() for key, group in moments.group_by("subject_id")}
    subjects = rows["subject_id"].to_list()
    between = [
        np.searchsorted(times[subject], now[i, 0], side="right") - np.searchsorted(times[subject], last[i]) for i, subject in enumerate(subjects)
    ]
    entry = np.array([times[subject][0] for subject in subjects])[:, None]
    return plain, order, np.where(has, np.stack(between).astype(float), np.nan), days, np.where(last >= entry, days, np.nan)


def oracle(features: Floats, risk: Floats) -> float:
    """Expected AUROC of a cross-validated regression of the true risk on what is shown."""
    score = np.zeros(len(risk))
    for fit, test in KFold(8, shuffle=True, random_state=0).split(features):
        model = LGBMRegressor(n_estimators=300, learning_rate=0.04, num_leaves=15, min_child_samples=15, verbose=-1, n_jobs=1, random_state=0)
        score[test] = model.fit(features[fit], risk[fit]).predict(features[test])
    return expected_auroc(score, risk)


def measure(cdm: Path, task: str, limit: int, samples: int) -> dict[str, float | int]:
    """Figures of one task: rows, positives, AUROC of the true risk, and of oracles that are shown less."""
    rows = task_rows(cdm, described(cdm)[0], task)
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=1)  # one row of each subject, at random
    first = shuffled.unique("subject_id", keep="first", maintain_order=True).sort("subject_id", "prediction_time")
    chosen = choose_rows(first, limit, 0)
    began = time.perf_counter()
    cpu = time.process_time()
    risk = true_risk(cdm, chosen, task, samples=samples)["true_risk"].to_numpy()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    plain, order, between, days, recorded = shown(cdm, chosen)
    return {
        "index_rows": rows.height,
        "subjects": first.height,
        "mean_true_risk": round(float(risk.mean()), 4),
        "microseconds_per_future": round(seconds / chosen.height / samples * 1e6, 1),
        "cpu_microseconds_per_future": round(cpu / chosen.height / samples * 1e6, 1),
        "auroc_true_risk": round(expected_auroc(risk, risk), 4),
        "auroc_oracle_without_times_or_order": round(oracle(plain, risk), 4),
        "auroc_oracle_order": round(oracle(np.column_stack([plain, order]), risk), 4),
        "auroc_oracle_order_and_counts": round(oracle(np.column_stack([plain, order, between]), risk), 4),
        "auroc_oracle_order_and_recorded_times": round(oracle(np.column_stack([plain, order, recorded]), risk), 4),
        "auroc_oracle_times": round(oracle(np.column_stack([plain, order, between, days]), risk), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--population", default="full")
    parser.add_argument("--hospital", default="a")
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=3000, help="subjects per task")
    parser.add_argument("--samples", type=int, default=200, help="futures per subject")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cdm = Path(folder) / "cdm"
        settings = SimulateConfig(
            population=arguments.population, hospital=arguments.hospital, patients=arguments.patients, seed=arguments.seed, truth_samples=0
        )
        cpu = time.process_time()
        summary = simulate(cdm, settings)
        figures: dict[str, object] = {
            "patients": summary.patients,
            "seconds": summary.seconds,
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "size_mib": round(sum(path.stat().st_size for path in cdm.rglob("*.parquet")) / 2**20, 1),
            "events_per_patient": summary.events_per_patient,
            "years_per_patient": summary.years_per_patient,
            "deaths": summary.deaths,
            "prevalence": summary.prevalence,
            "tasks": {task: measure(cdm, task, arguments.rows, arguments.samples) for task in arguments.tasks or true_tasks(cdm)},
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""How fast the simulator is, what its population looks like, and whether elapsed time matters in it.

    python benchmarks/simulate.py [--patients 10000] [--rows 3000] [--samples 200]

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

from cehrxgpt.simulate import TASKS, SimulateConfig, simulate, true_risk
from cehrxgpt.simulate import hazards as h
from cehrxgpt.simulate.index import index_rows
from cehrxgpt.simulate.simulator import choose_rows

Floats = npt.NDArray[np.float64]


def expected_auroc(score: Floats, risk: Floats) -> float:
    """AUROC of `score` in expectation over outcomes that follow `risk` (ties by order)."""
    risk = risk[np.argsort(score, kind="stable")]
    below = np.cumsum(1 - risk) - (1 - risk) / 2
    return float((risk * below).sum() / (risk.sum() * (1 - risk).sum()))


def shown(cdm: Path, rows: pl.DataFrame) -> tuple[Floats, Floats, Floats, Floats]:
    """What an oracle may see at each row: (state without times, order of markers, events between, days since)."""
    states = pl.read_parquet(cdm / "truth" / "states.parquet").sort("subject_id", "time", maintain_order=True)
    states = states.with_columns(minute=pl.col("time").cast(pl.Int64), number=pl.int_range(pl.len()).over("subject_id"))
    rows = rows.with_row_index("row").with_columns(minute=pl.col("prediction_time").dt.epoch("us") // 60_000_000).sort("minute")
    found = rows.join_asof(states.sort("minute"), on="minute", by="subject_id", strategy="backward", check_sortedness=False).sort("row")
    age = (found["minute"] - found["birth"]).to_numpy() / (365.25 * 1440)
    names = ["male", "race", "frailty", "hospice", *(f"lab_{lab}" for lab in h.LABS), *(f"offset_{lab}" for lab in h.LABS)]
    names += [f"treated_{name}" for name in h.TREATMENT_NAMES]
    last = found.select(f"last_{name}" for name in h.MARKERS).to_numpy()
    has = last > -1e11
    plain = np.column_stack([age, found.select(pl.col(name).cast(pl.Float64) for name in names).to_numpy(), has])
    order = np.where(has, np.argsort(np.argsort(-last, axis=1), axis=1), np.nan)
    days = np.where(has, (found["minute"].to_numpy()[:, None] - last) / 1440, np.nan)
    times = {key[0]: group["time"].to_numpy() for key, group in states.group_by("subject_id")}
    subjects, number = found["subject_id"].to_list(), found["number"].to_numpy()
    between = np.stack([number[i] + 1 - np.searchsorted(times[subject], last[i]) for i, subject in enumerate(subjects)]).astype(float)
    return plain, order, np.where(has, between, np.nan), days


def oracle(features: Floats, risk: Floats) -> float:
    """Expected AUROC of a cross-validated regression of the true risk on what is shown."""
    score = np.zeros(len(risk))
    for fit, test in KFold(8, shuffle=True, random_state=0).split(features):
        model = LGBMRegressor(n_estimators=300, learning_rate=0.04, num_leaves=15, min_child_samples=15, verbose=-1, n_jobs=1, random_state=0)
        score[test] = model.fit(features[fit], risk[fit]).predict(features[test])
    return expected_auroc(score, risk)


def measure(cdm: Path, task: str, limit: int, samples: int) -> dict[str, float | int]:
    """Figures of one task: rows, positives, AUROC of the true risk, and of oracles that are shown less."""
    rows = index_rows(cdm, task)
    first = rows.unique("subject_id", keep="first", maintain_order=True)
    chosen = choose_rows(first, limit, 0)
    began = time.perf_counter()
    cpu = time.process_time()
    risk = true_risk(cdm, chosen, task, samples=samples)["true_risk"].to_numpy()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    plain, order, between, days = shown(cdm, chosen)
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
        "auroc_oracle_times": round(oracle(np.column_stack([plain, order, between, days]), risk), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=3000, help="subjects per task")
    parser.add_argument("--samples", type=int, default=200, help="futures per subject")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cdm = Path(folder) / "cdm"
        cpu = time.process_time()
        summary = simulate(cdm, SimulateConfig(patients=arguments.patients, seed=arguments.seed, truth_samples=0))
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
            "tasks": {task: measure(cdm, task, arguments.rows, arguments.samples) for task in TASKS},
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""How fast the simulator is, what its population looks like, and whether elapsed time matters in it.

    python benchmarks/simulate.py [--population full] [--hospital a] [--patients 10000] [--tasks cad_cabg_1y ...] [--subjects 5000] [--samples 100]

Prints one JSON object. "Does time matter": see `cehrxgpt.simulate.oracles`. With `--subjects 0` no true risk is asked.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from cehrxgpt.simulate import SimulateConfig, simulate, true_tasks
from cehrxgpt.simulate.oracles import expected_auroc, measure


def asked(cdm: Path, task: str, subjects: int, samples: int) -> dict[str, object]:
    """Figures of one task: subjects, expected events, AUROC of the true risk and of each oracle, what times gain with their 95% intervals."""
    cpu = time.process_time()
    found = measure(cdm, task, subjects=subjects, samples=samples)
    scores = {"true_risk": found.risk, "order": found.order, "counts": found.counts, "times": found.times}
    return {
        "subjects": len(found.risk),
        "expected_events": round(float(found.risk.sum()), 1),
        "auroc": {name: round(expected_auroc(score, found.risk), 4) for name, score in scores.items()},
        "times_over_order": [round(value, 4) for value in (found.gain(), *found.interval())],
        "times_over_counts": [round(value, 4) for value in (found.gain("counts"), *found.interval("counts"))],
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--population", default="full")
    parser.add_argument("--hospital", default="a")
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subjects", type=int, default=5000, help="per task; 0: none")
    parser.add_argument("--samples", type=int, default=100, help="futures per subject")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cdm = Path(folder) / "cdm"
        settings = SimulateConfig(
            population=arguments.population, hospital=arguments.hospital, patients=arguments.patients, seed=arguments.seed, truth_samples=0
        )
        cpu = time.process_time()
        summary = simulate(cdm, settings)
        tasks = (arguments.tasks or true_tasks(cdm)) if arguments.subjects else ()
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
            "tasks": {task: asked(cdm, task, arguments.subjects, arguments.samples) for task in tasks},
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

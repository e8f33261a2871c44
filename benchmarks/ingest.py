"""How fast OMOP tables become events and tokens, and how much memory that takes, at two sizes of one population.

    python benchmarks/ingest.py [--patients 10000 100000] [--rounds 3] [--threads 2] [--keep FOLDER]

Each size is simulated once (`cehrxgpt simulate`; not measured), then `cehrxgpt ingest` and `cehrxgpt tokenize` run as they do for a user, each in a
process of its own, start-up included. Memory is the largest sum of the resident memory of the process and its children, sampled every 20 ms;
processor seconds are those of the whole process tree. The best round of each verb counts. Prints one JSON object per size and the ratios:
time per event and memory of the largest against the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

SAMPLE_SECONDS = 0.02


def _resident(process: psutil.Process) -> int:
    """Bytes of the process and its children; 0 when it has gone."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def measure(arguments: list[str], threads: int) -> dict[str, Any]:
    """Run one verb; its figures, wall and processor seconds, and peak memory in MiB."""
    command = [sys.executable, "-m", "cehrxgpt.cli", *arguments, "--threads", str(threads), "--json", "--force"]
    before, began = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        peak = max(peak, _resident(watched))
        time.sleep(SAMPLE_SECONDS)
    wall, after = time.perf_counter() - began, os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with status {process.returncode}")
    assert process.stdout is not None
    figures = json.loads(process.stdout.read().splitlines()[-1])
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"figures": figures, "wall_s": wall, "processor_s": spent, "peak_mib": peak / 1024**2}


def one_size(patients: int, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Both verbs on a population of `patients`."""
    cdm, events, timeline = (folder / f"{name}-{patients}" for name in ("cdm", "events", "timeline"))
    if not cdm.exists():
        subprocess.run([sys.executable, "-m", "cehrxgpt.cli", "simulate", "--patients", str(patients), "--out", str(cdm), "--json"], check=True)
    runs: dict[str, list[dict[str, Any]]] = {"ingest": [], "tokenize": []}
    for _ in range(rounds):
        runs["ingest"].append(measure(["ingest", str(cdm), "--out", str(events)], threads))
        runs["tokenize"].append(measure(["tokenize", str(events), "--out", str(timeline)], threads))
    best = {verb: min(found, key=lambda run: float(run["wall_s"])) for verb, found in runs.items()}
    written = int(best["ingest"]["figures"]["events"])
    wall = sum(run["wall_s"] for run in best.values())
    result: dict[str, Any] = {"patients": patients, "events": written, "tokens": best["tokenize"]["figures"]["tokens"]}
    for verb, run in best.items():
        result |= {f"{verb}_s": round(run["wall_s"], 2), f"{verb}_processor_s": round(run["processor_s"], 2), f"{verb}_mib": round(run["peak_mib"])}
    return result | {"events_per_s": round(written / wall), "peak_mib": round(max(run["peak_mib"] for run in best.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the populations, kept for the next time (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results = []
        for patients in arguments.patients:
            results.append(one_size(patients, folder, arguments.rounds, arguments.threads))
            print(json.dumps(results[-1]), flush=True)
    small, large = results[0], results[-1]
    slower = (small["events_per_s"] / large["events_per_s"]) if large["events_per_s"] else float("inf")
    machine = {"machine": platform.processor() or platform.machine(), "cores": psutil.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps({"time_per_event": round(slower, 2), "memory": round(large["peak_mib"] / small["peak_mib"], 2), **machine}))


if __name__ == "__main__":
    main()

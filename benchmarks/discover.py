"""Do the nearest patients share the hidden course? Neighbours by embedding against chance, in a population whose truth is known.

    python benchmarks/discover.py RUN [--questions 500] [--count 10] [--seed 0]

RUN: a finished run on a simulated population (`cehrxgpt demo --out RUN`). Held-out subjects are asked about; everybody is compared. For
each, over its nearest `count` against as many drawn at random, and against as many of the same sex and within five years of age:

    diseases   Jaccard index of the diseases, events and operations had by the end of observation
    frailty    absolute difference of the frailty, which drives hazards and is never written down
    levels     root mean square difference of the persons' own laboratory levels, in their standard deviations; never written down either

with the mean difference to chance and its 95% interval (bootstrap over those asked about).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import polars as pl

from cehrxgpt.events import EventDataset
from cehrxgpt.features.embed import EmbedConfig
from cehrxgpt.features.neighbours import embed_subjects, nearest, standardise
from cehrxgpt.model.hub import load_model
from cehrxgpt.simulate.populations.core import CORE


def course(run: Path, subjects: pl.Series) -> dict[str, np.ndarray]:
    """What the simulator knows of each subject at the end: flags bool[n, f], frailty [n], levels [n, labs], age in years [n], male bool[n]."""
    states = pl.read_parquet(run / "cdm" / "truth" / "states.parquet").sort("subject_id", "time")
    last = pl.DataFrame({"subject_id": subjects}).join(states.group_by("subject_id").last(), on="subject_id", how="left", maintain_order="left")
    return {
        "flags": np.stack([last[f"last_{name}"].to_numpy() > -1e11 for name in CORE.flags], axis=1),
        "frailty": last["frailty"].to_numpy(),
        "levels": np.stack([last[f"offset_{level.name}"].to_numpy() / level.offset_sd for level in CORE.levels], axis=1),
        "age": ((last["clock"] - last["birth"]) / 525_960).to_numpy(),
        "male": last["male"].to_numpy(),
    }


def compare(known: dict[str, np.ndarray], asked: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure of the module's docstring, the mean over `others` [q, k], per asked row."""
    mine, theirs = known["flags"][asked][:, None], known["flags"][others]
    union = (mine | theirs).sum(-1)
    levels = known["levels"][asked][:, None] - known["levels"][others]
    return {
        "diseases": np.where(union > 0, (mine & theirs).sum(-1) / np.maximum(union, 1), 1.0).mean(1),
        "frailty": np.abs(known["frailty"][asked][:, None] - known["frailty"][others]).mean(1),
        "levels": np.sqrt((levels**2).mean(-1)).mean(1),
    }


def by_chance(known: dict[str, np.ndarray], asked: np.ndarray, count: int, rng: np.random.Generator, *, matched: bool) -> np.ndarray:
    """int[q, count]: others at random, `matched` of the same sex and age to five years."""
    found = []
    for row in asked:
        alike = np.ones(len(known["age"]), dtype=bool)
        if matched:
            alike = (known["male"] == known["male"][row]) & (np.abs(known["age"] - known["age"][row]) <= 5)
        alike[row] = False
        found.append(rng.choice(np.flatnonzero(alike), count))
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    events, model = EventDataset(arguments.run / "events"), load_model(arguments.run / "model")
    held_out = events.subject_splits.filter(pl.col("split") == "held_out")["subject_id"]
    report: dict[str, object] = {}
    for pooling in ("visit_ends", "last"):
        began = time.perf_counter()
        vectors = embed_subjects(model, events, EmbedConfig(pooling=pooling, elapsed_time=False)).filter(pl.col("note").is_null())
        embedded = time.perf_counter() - began
        units = standardise(np.stack(vectors["embedding"].to_list()).astype(np.float32))
        candidates = np.flatnonzero(vectors["subject_id"].is_in(held_out.implode()).to_numpy())
        asked = rng.permutation(candidates)[: arguments.questions]
        began = time.perf_counter()
        rows, _ = nearest(units, asked, arguments.count)
        searched = time.perf_counter() - began
        known = course(arguments.run, vectors["subject_id"])
        near = compare(known, asked, rows)
        draws = rng.integers(0, len(asked), (2000, len(asked)))
        found: dict[str, object] = {"subjects": vectors.height, "asked": len(asked), "embed_seconds": embedded, "search_seconds": searched}
        for name, matched in (("chance", False), ("same sex and age", True)):
            far = compare(known, asked, by_chance(known, asked, arguments.count, rng, matched=matched))
            for measure, values in near.items():
                difference = values - far[measure]
                low, high = np.quantile(difference[draws].mean(1), [0.025, 0.975])
                found[f"{measure} against {name}"] = {
                    "nearest": round(float(values.mean()), 3),
                    "chance": round(float(far[measure].mean()), 3),
                    "difference": [round(float(x), 3) for x in (difference.mean(), low, high)],
                }
        report[pooling] = found
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

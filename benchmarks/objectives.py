"""Does learning with time tokens help? Every objective and way of telling time, in small: the same data, the same tokens seen, one seed; then three
seeds of the best.

    python benchmarks/objectives.py --out FOLDER                                   screen: about fifteen runs of 3 M tokens, one seed
    python benchmarks/objectives.py --out FOLDER --finalists next_token,all --seeds 3
    python benchmarks/objectives.py --out FOLDER --write                           the tables, into docs/objectives.md; trains nothing
    python benchmarks/objectives.py --out FOLDER --tokens 100000 --patients 1500 --test-patients 700 --least-events 20     minutes, to try it

A training population and, with another seed, a test population are simulated (`objectives_data.py`). Each run is trained for the same number of
tokens, scored on the test population (`objectives_scores.py`), and leaves one line in FOLDER/results.jsonl. A run that has its line is not
repeated; one that was cut off goes on from its checkpoint. docs/objectives.md says what is measured, and what came of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from objectives_data import Data, DataSettings, make, opened
from objectives_scores import VERSION, probe_all, score
from objectives_table import figures, write_tables
from results import Results

from cehrxgpt.atomic import atomic_path
from cehrxgpt.config import fingerprint, to_dict
from cehrxgpt.schema import TRAIN
from cehrxgpt.store.loader import Loader
from cehrxgpt.train import TrainConfig, pretrain

DECOMPOSITION, VISIT, EVENT, CONTRASTIVE = {"time_decomposition": 1.0}, {"time_to_visit": 1.0}, {"time_to_event": 1.0}, {"contrastive": 0.1}


@dataclass(frozen=True)
class Run:
    """One way to learn.

    Attributes:
        says: in the tables.
        beside: objectives beside next-token prediction.
        rotary: see `ModelConfig`.
        store: `fused`, `split` or `untimed`.
    """

    says: str
    beside: dict[str, float] = field(default_factory=dict)
    rotary: str = "both"
    store: str = "fused"


RUNS: dict[str, Run] = {
    "next_token": Run("next token alone; rotary over order and age"),
    "visit": Run("+ time to visit", VISIT),
    "decomposition": Run("+ time decomposition", DECOMPOSITION),
    "decomposition_visit": Run("+ decomposition + time to visit", {**DECOMPOSITION, **VISIT}),
    "event": Run("+ time to event", EVENT),
    "contrastive": Run("+ contrastive", CONTRASTIVE),
    "all": Run("+ all of them", {**DECOMPOSITION, **VISIT, **EVENT, **CONTRASTIVE}),
    "rotary_order": Run("rotary over order alone", rotary="order"),
    "rotary_age": Run("rotary over age alone", rotary="age"),
    "untimed_both": Run("no time tokens; rotary over order and age", store="untimed"),
    "untimed_age": Run("no time tokens; rotary over age alone", rotary="age", store="untimed"),
    "untimed_order": Run("no time tokens; rotary over order alone: no time at all", rotary="order", store="untimed"),
    "split": Run("values split from codes", store="split"),
    "split_value": Run("values split from codes, + value", {"value": 1.0}, store="split"),
}
"""In the order in which they are run; the first is what the others are compared with."""

SHAPE = {"width": 128, "layers": 2, "heads": 4, "kv_heads": 2}
TOKENS_PER_BATCH = 2048
HORIZON_DAYS = 365  # of the CRPS


def training(run: Run, seed: int, tokens: int, data: Data) -> TrainConfig:
    """The settings of a run: those of the recipe `demo`, stopped by tokens, with its last weights kept."""
    loader = Loader(data.store(run.store), TRAIN, tokens_per_batch=TOKENS_PER_BATCH, context=data.settings.context, seed=seed)
    per_step = loader.tokens_per_epoch / loader.batches_per_epoch
    return TrainConfig(
        model={**SHAPE, "context": data.settings.context, "rotary": run.rotary},
        objectives={"next_token": 1.0, **run.beside},
        seed=seed,
        tokens_per_batch=TOKENS_PER_BATCH,
        optimizer="muon",
        learning_rate=3e-3,
        warmup_share=0.03,
        weight_decay=0.1,
        steps=max(round(tokens / per_step), 1),
        evaluate_every=1 << 30,  # once, at the end
        evaluation_batches=4,
        patience=0,
        precision="float32",
        checkpoint_minutes=2.0,
    )


def do(name: str, seed: int, tokens: int, data: Data, out: Path, results: Results) -> None:
    """Train and score one run, unless it is done."""
    run = RUNS[name]
    config = training(run, seed, tokens, data)
    key = fingerprint([to_dict(config), run.store, data.fingerprint, VERSION])
    if results.has(key):
        print(f"{name}, seed {seed}: done already", flush=True)
        return
    print(f"{name}, seed {seed}: {config.steps} steps  {datetime.now(UTC):%H:%M}", flush=True)
    folder = out / "runs" / f"{name}-{seed}-{tokens}"
    summary = pretrain(data.folder / run.store, folder / "model", config, resume=True)
    scores = folder / f"scores-{VERSION}"
    score(folder / "model", scores, data, run.store, HORIZON_DAYS, say)
    spent = {what: getattr(summary, what) for what in ("tokens_seen", "epochs", "steps", "seconds", "tokens_per_second", "parameters")}
    found = {"key": key, "run": name, "seed": seed, "tokens": tokens, "folder": str(scores.relative_to(out)), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    results.add({**found, **spent, "settings": to_dict(config), "figures": figures(scores, data)})


def say(text: str) -> None:
    """With the time."""
    print(f"{text}  {datetime.now(UTC):%H:%M}", flush=True)


def references(data: Data, out: Path) -> None:
    """Predictions that see counts of codes, or age and sex, or nothing, beside which the probes stand."""
    path = out / "references.parquet"
    if not path.exists():
        say("counts of codes")
        frame = probe_all(data, np.zeros((data.moments.height, 1), dtype=np.float32), baselines=True)
        with atomic_path(path) as partial:
            frame.write_parquet(partial)


def names(text: str) -> list[str]:
    """Runs by name, with commas."""
    found = text.split(",")
    unknown = [name for name in found if name not in RUNS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no run '{unknown[0]}'; there are {', '.join(RUNS)}")
    return found


def main() -> None:
    """Run what is not done, or write what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--tokens", type=int, default=3_000_000, help="of each run")
    parser.add_argument("--runs", type=names, default=list(RUNS), metavar="A,B")
    parser.add_argument("--finalists", type=names, metavar="A,B", help="these alone, with all --seeds")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the tables into --page and stop")
    parser.add_argument("--page", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "objectives.md")
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "str": str}
    for one in fields(DataSettings):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kinds[str(one.type)], default=one.default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = DataSettings(**{one.name: getattr(options, one.name) for one in fields(DataSettings)})
    data = opened(options.out / "data") if options.write else make(options.out / "data", settings, say)
    results = Results(options.out / "results.jsonl")
    if not options.write:
        references(data, options.out)
        for seed in range(options.seeds):
            for name in options.finalists or options.runs:
                do(name, seed, options.tokens, data, options.out, results)
    write_tables(options.page if options.write else options.out / "tables.md", results.lines, RUNS, data, options.out, options.tokens)


if __name__ == "__main__":
    main()

"""Training speed: real tokens per second, beside what the machine multiplies at that moment and beside a Hugging Face Llama of equal shape.

    python benchmarks/train.py [--size small|six-million] [--objectives all|next_token] [--seconds 60] [--threads 2] [--no-llama]

Random patients (of 60 tokens on average; what the tokens are does not matter for speed) are trained on in rounds of two seconds. In each
round ours, the Llama on the same patients in padded batches (random order, padded to the longest), and a large matrix product in the
training precision take turns, because a shared machine is not equally fast twice. Shares and ratios are medians over rounds; peak memory is
that of the process before transformers is loaded. One line of JSON comes last.

What the operations cost at least: 6 FLOP per weight and token (2 forward, 4 backward; the head included, the embedding not) and
6 x layers x width per pair of tokens that attention looks at. "Share of the product rate" (MFU) is these over the time, over the rate of a
1,024-wide product in the same precision. What optimisers, norms and losses cost is not counted: it is what the share lacks to 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read when Torch is loaded: threads that wait spin briefly, then sleep (as the command line has it). Spinning for ever, the default, costs nine
# tenths of the speed as soon as another program wants a core.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
from llama import llama_of
from random_store import make_store

from cehrxgpt.store.format import TokenStore
from cehrxgpt.train import TrainConfig
from cehrxgpt.train.device import autocast, matmul_rate
from cehrxgpt.train.trainer import Trainer

ROUND_SECONDS = 2.0
SIZES = {
    "small": {"width": 192, "layers": 4, "heads": 6, "kv_heads": 2, "context": 512},
    "six-million": {"width": 256, "layers": 6, "heads": 8, "kv_heads": 2, "context": 512},
}
OBJECTIVES = {
    "next_token": {"next_token": 1.0},
    "all": {"next_token": 1.0, "time_decomposition": 1.0, "time_to_visit": 1.0, "time_to_event": 1.0, "contrastive": 0.1},
}
REFERENCE_TOKENS_PER_SECOND = 2284  # the authors' package at its best on two such cores, fp32 (METHOD)


def llama_steps(trainer: Trainer) -> Iterator[int]:
    """Train a Llama of the same shape on the same patients, padded; yields the real tokens of each step."""
    shape, config, store = trainer.decoder.config, trainer.config, trainer.store
    llama = llama_of(shape).to(trainer.device)
    optimizer = torch.optim.AdamW(llama.parameters(), lr=config.learning_rate, fused=True)
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(store))
        lengths = np.minimum(store.lengths[order], shape.context)
        batch_of = np.cumsum(lengths) // config.tokens_per_batch
        for number in range(int(batch_of[-1])):
            rows = order[batch_of == number]
            width = int(min(store.lengths[rows].max(), shape.context))
            token = np.zeros((len(rows), width), dtype=np.int64)
            for row, history in enumerate(rows):
                start = store.offsets[history]
                length = min(int(store.lengths[history]), width)
                token[row, :length] = store.token_id[start : start + length]
            token_id = torch.from_numpy(token).to(trainer.device)
            mask = (token_id > 0).long()
            with autocast(trainer.device, trainer.dtype):
                loss = llama(input_ids=token_id, attention_mask=mask, labels=token_id.masked_fill(mask == 0, -100)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(llama.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield int(mask.sum())


def for_a_while(step: Callable[[], int]) -> tuple[float, float]:
    """Repeat `step` (which returns real tokens) for a round; tokens per second of wall and of processor time."""
    start, worked, tokens = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < ROUND_SECONDS:
        tokens += step()
    return tokens / (time.perf_counter() - start), tokens / (time.process_time() - worked)


def measure(trainer: Trainer, seconds: float, *, llama: bool) -> dict[str, Any]:
    """Rounds for about so many seconds."""
    flop: list[float] = []

    def step() -> int:
        before = trainer.counters.tokens_seen, trainer.counters.square_lengths
        trainer._step()
        tokens, squares = trainer.counters.tokens_seen - before[0], trainer.counters.square_lengths - before[1]
        shape = trainer.decoder.config
        flop.append(6 * shape.matmul_parameters * tokens + 6 * shape.layers * shape.width * squares)
        return tokens

    for _ in range(20):
        step()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    other = llama_steps(trainer) if llama else None
    if other is not None:
        for _ in range(3):
            next(other)
    rounds = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        before = matmul_rate(trainer.device, trainer.dtype)
        flop.clear()
        start = time.perf_counter()
        ours, per_cpu_second = for_a_while(step)
        reached = sum(flop) / (time.perf_counter() - start)
        rate = (before + matmul_rate(trainer.device, trainer.dtype)) / 2
        theirs = for_a_while(lambda: next(other))[0] if other is not None else float("nan")
        rounds.append((ours, reached / rate, rate / 1e9, per_cpu_second, theirs, ours / theirs))
    table = np.array(rounds)
    median = np.median(table, axis=0)
    return {
        "tokens_per_second": round(float(median[0])),
        "best_round": round(float(table[:, 0].max())),
        "times_reference": round(float(median[0]) / REFERENCE_TOKENS_PER_SECOND, 2),
        "share_of_product_rate": round(float(median[1]), 3),
        "product_gflops": round(float(median[2])),
        "tokens_per_cpu_second": round(float(median[3])),  # what is left of it when other programs take turns
        "llama_tokens_per_second": round(float(median[4])) if llama else None,
        "times_llama": round(float(median[5]), 2) if llama else None,
        "peak_memory_gib": round(memory, 2),
        "rounds": len(rounds),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--size", default="small", choices=sorted(SIZES))
    parser.add_argument("--objectives", default="all", choices=sorted(OBJECTIVES))
    parser.add_argument("--patient-tokens", type=int, default=60)
    parser.add_argument("--vocabulary", type=int, default=2500)
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--packing", default="auto", choices=["auto", "rows", "packed"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--no-llama", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = TrainConfig(
        model=SIZES[options.size],
        objectives=OBJECTIVES[options.objectives],
        tokens_per_batch=options.tokens_per_batch,
        packing=options.packing,
        precision=options.precision,
        epochs=10_000,
        log_every=1 << 30,
    )
    with tempfile.TemporaryDirectory() as folder:
        patients = max(40 * options.tokens_per_batch // options.patient_tokens, 2000)
        shape = {"mean_tokens": options.patient_tokens, "vocabulary_size": options.vocabulary}
        store = TokenStore(make_store(Path(folder) / "store", patients=patients, seed=0, **shape))
        trainer = Trainer(store, config, Path(folder), "benchmark", None)
        facts = {
            **measure(trainer, options.seconds, llama=not options.no_llama),
            "padding_share": round(1 - trainer.counters.tokens_seen / trainer.counters.places, 3),
            "mean_tokens": round(float(store.lengths.mean()), 1),
            "parameters": sum(parameter.numel() for parameter in trainer.decoder.parameters()),
            "with_heads": sum(parameter.numel() for parameter in trainer.module.parameters()),
            "computed_in": str(trainer.dtype).removeprefix("torch."),
            "device": str(trainer.device),
            **vars(options),
        }
    for name, value in facts.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

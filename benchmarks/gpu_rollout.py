"""Rollouts on a GPU: tokens a second of a model of base size behind long histories, and the share of what memory bandwidth would allow.

    python benchmarks/gpu_rollout.py [--size base|tiny] [--patients 512] [--samples 16] [--history 1000] [--new 128] [--rows 1024]
                                     [--rounds 3] [--device cuda] [--out FILE]

Needs a GPU and only the accelerator side's packages (torch, numpy, pyarrow, safetensors, PyYAML). Random weights and random histories:
what the tokens are does not matter for speed. Every future runs to its budget. One line of JSON comes last, dated, with machine and software.

The bound: a step must read every weight once, the keys and values of each patient's history once, and those of each future's own tokens;
its bytes over the device's measured bandwidth are the least time of a step, `--rows` tokens over it the most tokens a second.
Bandwidth is that of a copy of 4 GiB (read and written).
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from random_store import make_patient, make_vocabulary

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import Prompt, rollout
from cehrxgpt.timeline.kinds import Kind

SIZES = {
    "base": {"width": 768, "layers": 14, "heads": 12, "kv_heads": 4, "context": 4096, "vocabulary_size": 20_000},
    "tiny": {"width": 48, "layers": 2, "heads": 6, "kv_heads": 2, "context": 256, "vocabulary_size": 1800},
}
COPIED_BYTES = {"cuda": 4 << 30, "cpu": 1 << 28}


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes; the best of five."""
    source = torch.zeros(COPIED_BYTES[device.type] // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        synchronise(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() / best


def step_bytes(config: ModelConfig, weights: int, rows: int, samples: int, history: int, own: float) -> float:
    """Bytes that one step must read, on average, in 16 bits: weights, each patient's history once, each row's own tokens."""
    place = 2 * 2 * config.layers * config.kv_heads * config.head_width
    return 2 * weights + place * (rows / samples * history + rows * own)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"patients": 512, "samples": 16, "history": 1000, "new": 128, "rows": 1024, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    config = ModelConfig(**SIZES[options.size])
    vocabulary = make_vocabulary(config.vocabulary_size)
    decoder = Decoder(replace(config, head_bias=True, care_settings=vocabulary.care_settings)).to(device, torch.bfloat16).eval()
    with torch.no_grad():  # nobody dies, so that every future uses its budget
        decoder.head_bias[torch.from_numpy(vocabulary.ids_of_kind(Kind.DEATH, Kind.END))] = -1e4
    weights = sum(weight.numel() for weight in decoder.parameters())
    codes, random = vocabulary.ids_of_kind(Kind.CODE), np.random.default_rng(0)
    histories = [make_patient(vocabulary, codes, options.history, random)[: options.history] for _ in range(options.patients)]
    prompts = [Prompt(token_id=history, subject_id=subject) for subject, history in enumerate(histories)]

    def engine(some: list[Prompt]) -> tuple[float, float]:
        """Tokens a second, and tokens a future."""
        synchronise(device)
        started = time.perf_counter()
        result = rollout(decoder, vocabulary, some, samples=options.samples, seed=1, max_new_tokens=options.new, batch_rows=options.rows)
        synchronise(device)
        return int(result.drawn.sum()) / (time.perf_counter() - started), float(result.tokens.mean())

    engine(prompts[: max(options.patients // 8, 1)])
    runs = [engine(prompts) for _ in range(options.rounds)]
    rate = float(np.median([tokens for tokens, _ in runs]))
    memory = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None  # before the copies; graphs' own memory is in it
    speed = bandwidth(device)
    bytes_read = step_bytes(config, weights, options.rows, options.samples, options.history, options.new / 2)
    bound = options.rows * speed / bytes_read
    figures = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "tokens_per_second": round(rate),
        "runs": [round(tokens) for tokens, _ in runs],
        "patients_per_second": round(rate / options.samples / options.new, 2),
        "realised_length": runs[-1][1],
        "bandwidth_gb_per_second": round(speed / 1e9),
        "bytes_per_step": round(bytes_read),
        "bandwidth_bound_tokens_per_second": round(bound),
        "share_of_bandwidth_bound": round(rate / bound, 3),
        "peak_memory_gib": None if memory is None else round(memory / 2**30, 2),
        "parameters": weights,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **vars(options),
    }
    figures["out"] = None
    for name, value in figures.items():
        print(f"{name:>34}  {value}")
    line = json.dumps(figures)
    print(line)
    if options.out is not None:
        options.out.write_text(line + "\n")


if __name__ == "__main__":
    main()

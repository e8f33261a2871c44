"""Training speed on an accelerator: the base size with every objective on, beside a plain Llama-shaped loop without them.

    python benchmarks/gpu_train.py [--size base] [--seconds 60] [--patient-tokens 3000] [--out FILE.json]
    python benchmarks/gpu_train.py --size tiny --seconds 4 --patient-tokens 60 --device cpu       # whether it runs

Needs the accelerator side of the package alone (torch, numpy, pyarrow, safetensors, PyYAML). Synthetic patients are packed into rows of the
context. The plain loop is what one would write for a Llama: full rows of random tokens without any document, causal
`scaled_dot_product_attention`, rotary over places, SwiGLU, a tied head, cross-entropy, compiled, AdamW; same shape, same tokens a step. Rounds
of both and of an 8,192-wide matrix product in bfloat16 take turns. FLOP are 6 per weight and token and 6 x layers x width per pair of tokens
that attention looks at, for each loop its own. Prints, and writes, one JSON object with the date, the hardware and medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from random_store import make_store
from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.store.format import TokenStore
from cehrxgpt.train import TrainConfig
from cehrxgpt.train.device import autocast, matmul_rate
from cehrxgpt.train.trainer import Trainer

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"model": {"width": 48, "layers": 2, "heads": 4, "kv_heads": 2, "context": 256}, "tokens_per_batch": 1024},
    "base": {"model": {"width": 768, "layers": 14, "heads": 12, "kv_heads": 4, "context": 4096}, "tokens_per_batch": 32768},
}
OBJECTIVES = {"next_token": 1.0, "time_decomposition": 1.0, "time_to_visit": 1.0, "time_to_event": {"tasks": 1024}, "contrastive": 0.1}
ROUND_SECONDS = 3.0


class PlainBlock(nn.Module):
    """Attention and SwiGLU as a Llama has them."""

    def __init__(self, shape: ModelConfig):
        super().__init__()
        self.shape = shape
        width, inner = shape.width, shape.feedforward_width
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, (shape.heads + 2 * shape.kv_heads) * shape.head_width, bias=False)
        self.out, self.up, self.down = (nn.Linear(*size, bias=False) for size in ((width, width), (width, 2 * inner), (inner, width)))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shape, (rows, places, _) = self.shape, x.shape
        heads = (shape.heads, shape.kv_heads, shape.kv_heads)
        q, k, v = (y.transpose(1, 2) for y in self.qkv(self.norms[0](x)).view(rows, places, -1, shape.head_width).split(heads, dim=2))
        q, k = (torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(v.dtype) for a, b in (y.chunk(2, -1) for y in (q, k)))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    """Tokens in, mean cross-entropy of the next token out."""

    def __init__(self, shape: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary_size, shape.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        pairs = shape.head_width // 2
        angle = torch.arange(shape.context)[:, None] * 10_000.0 ** -(torch.arange(pairs) / pairs)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, token: Tensor) -> Tensor:
        x = self.embedding(token)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), token[:, 1:].flatten())


def plain_step(trainer: Trainer) -> Callable[[], tuple[int, float]]:
    """A function that trains the plain model for one step; returns tokens and FLOP."""
    shape, device = trainer.decoder.config, trainer.device
    model = Plain(shape).to(device)
    run = torch.compile(model) if device.type == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rows = max(trainer.config.tokens_per_batch // shape.context, 1)
    random = torch.Generator(device=device).manual_seed(0)

    def step() -> tuple[int, float]:
        token = torch.randint(1, shape.vocabulary_size, (rows, shape.context), generator=random, device=device)
        with autocast(device, trainer.dtype):
            loss = run(token)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return token.numel(), 6 * shape.matmul_parameters * token.numel() + 6 * shape.layers * shape.width * rows * shape.context**2

    return step


def our_step(trainer: Trainer) -> Callable[[], tuple[int, float]]:
    """The same for ours; padding is not counted."""
    shape = trainer.decoder.config

    def step() -> tuple[int, float]:
        before = trainer.counters.tokens_seen, trainer.counters.square_lengths
        trainer._step()
        tokens, squares = trainer.counters.tokens_seen - before[0], trainer.counters.square_lengths - before[1]
        return tokens, 6 * shape.matmul_parameters * tokens + 6 * shape.layers * shape.width * squares

    return step


def for_a_while(step: Callable[[], tuple[int, float]], device: torch.device) -> tuple[float, float]:
    """Repeat for a round: tokens and FLOP per second."""
    start, tokens, flop = time.perf_counter(), 0, 0.0
    while time.perf_counter() - start < ROUND_SECONDS:
        more = step()
        tokens, flop = tokens + more[0], flop + more[1]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = time.perf_counter() - start
    return tokens / elapsed, flop / elapsed


def measure(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Rounds of ours, the plain loop and the product, for about so many seconds."""
    ours, plain, device = our_step(trainer), plain_step(trainer), trainer.device
    for step in (ours, plain):
        for _ in range(4):  # compilation, and the allocator's first looks
            step()
    table = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or not table:
        rate = matmul_rate(device, torch.bfloat16)
        (our_tokens, our_flop), (plain_tokens, plain_flop) = for_a_while(ours, device), for_a_while(plain, device)
        rate = (rate + matmul_rate(device, torch.bfloat16)) / 2
        table.append((our_tokens, our_flop / rate, plain_tokens, plain_flop / rate, our_flop / plain_flop, rate / 1e12))
    names = ("tokens_per_second", "share_of_product_rate", "plain_tokens_per_second", "plain_share", "share_of_plain", "product_tflops")
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.median(np.array(table), axis=0), strict=True)} | {"rounds": len(table)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=sorted(SIZES))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--patient-tokens", type=int, default=3000)
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = SIZES[options.size]
    config = TrainConfig(
        **recipe, objectives=OBJECTIVES, packing="packed", precision="bfloat16", device=options.device, epochs=10_000, log_every=1 << 30
    )
    with tempfile.TemporaryDirectory() as folder:
        size = {"mean_tokens": options.patient_tokens, "vocabulary_size": options.vocabulary}
        store = TokenStore(make_store(Path(folder) / "store", patients=options.patients, seed=0, **size))
        trainer = Trainer(store, config, Path(folder), "benchmark", None)
        facts = measure(trainer, options.seconds)
        on_cuda = trainer.device.type == "cuda"
        facts |= {
            "padding_share": round(1 - trainer.counters.tokens_seen / trainer.counters.places, 4),
            "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_cuda else math.nan,
            "parameters": sum(parameter.numel() for parameter in trainer.decoder.parameters()),
            "device": torch.cuda.get_device_name() if on_cuda else "cpu",
            "date": date.today().isoformat(),
            **{name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items() if name != "device"},
        }
    for name, value in facts.items():
        print(f"{name:>24}  {value}")
    text = json.dumps({name: None if isinstance(value, float) and math.isnan(value) else value for name, value in facts.items()})
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Training speed: real tokens per second of a small decoder, beside what the machine multiplies at that moment.

    python benchmarks/train.py [--threads 2] [--seconds 30] [--width 192] [--layers 4] [--patient-tokens 60] [--vocabulary 2500]

Random patients (lengths are gamma distributed; what the tokens are does not matter for speed) are trained on in rounds of two seconds;
between rounds a large product is timed in the training precision and in float32, because a shared machine is not equally fast twice.
The shares are medians over rounds. One line of JSON comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# Read when Torch is loaded: threads that wait spin briefly, then sleep (as the command line has it). Spinning for ever, the default, costs nine
# tenths of the speed as soon as another program wants a core.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch

from cehrxgpt.store.format import StoreAppender, TokenStore, write_meta
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.train import TrainConfig
from cehrxgpt.train.device import matmul_rate
from cehrxgpt.train.trainer import Trainer

ROUND_SECONDS = 2.0


def make_store(folder: Path, *, patients: int, mean_tokens: int, vocabulary_size: int, seed: int) -> Path:
    """Random patients of `mean_tokens` tokens on average, as a token store."""
    gaps = [{"token": f"D{day}", "kind": int(Kind.DAY_GAP), "amount": day} for day in range(min(1080, vocabulary_size // 2))]
    codes = [{"token": f"code/{code}", "kind": int(Kind.CODE), "code": f"code/{code}"} for code in range(vocabulary_size - len(gaps) - 1)]
    vocabulary = Vocabulary.from_rows([{"token": "[PAD]", "kind": int(Kind.PAD)}, *gaps, *codes], {})
    random = np.random.default_rng(seed)
    lengths = PROMPT_LENGTH + 1 + random.gamma(1.5, (mean_tokens - PROMPT_LENGTH - 1) / 1.5, size=patients).astype(np.int64)
    tokens, one = int(lengths.sum()), np.zeros(patients, dtype=np.int64)
    histories = EncodedHistories(
        token_id=(1 + (random.zipf(1.2, size=tokens) - 1) % (vocabulary_size - 1)).astype(np.int32),
        age_minutes=np.sort(random.integers(0, 40_000_000, size=tokens)).astype(np.int32),
        value=np.full(tokens, np.nan, dtype=np.float32),
        event_index=np.full(tokens, -1, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        subject_id=np.arange(patients),
        prediction_time=None,
        start_date=one,
        birth_date=one,
        gender_token=one.astype(np.int32),
        race_token=one.astype(np.int32),
        censor_gap_days=random.integers(-1, 800, size=patients).astype(np.int32),
        events=one,
        unknown=one,
    )
    folder.mkdir()
    with StoreAppender(folder) as appender:
        appender.append(histories, 0)
    vocabulary.save(folder)
    write_meta(folder, histories=patients, tokens=tokens, splits=["train"], vocabulary=vocabulary.fingerprint, fingerprint="0" * 16)
    return folder


def measure(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Train for about `seconds`, in rounds with products between them."""
    for _ in range(3):
        trainer._step()
    float32 = torch.float32
    rounds = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        rate, plain = matmul_rate(trainer.device, trainer.dtype), matmul_rate(trainer.device, float32)
        before = trainer.counters.tokens_seen, trainer.counters.square_lengths
        start, worked = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < ROUND_SECONDS:
            trainer._step()
        elapsed, worked = time.perf_counter() - start, time.process_time() - worked
        tokens, squares = trainer.counters.tokens_seen - before[0], trainer.counters.square_lengths - before[1]
        shape = trainer.decoder.config
        flop = 6 * shape.matmul_parameters * tokens + 6 * shape.layers * shape.width * squares
        rounds.append((tokens / elapsed, flop / elapsed / rate, rate, plain, tokens / worked))
    median = np.median(np.array(rounds), axis=0)
    return {
        "tokens_per_second": round(float(median[0])),
        "best_round": round(max(row[0] for row in rounds)),
        "share_of_matmul_rate": round(float(median[1]), 3),
        "matmul_gflops": round(float(median[2]) / 1e9),
        "float32_matmul_gflops": round(float(median[3]) / 1e9),
        "tokens_per_cpu_second": round(float(median[4])),  # what is left of it when other programs take turns; best with one thread
        "rounds": len(rounds),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--patient-tokens", type=int, default=60)
    parser.add_argument("--vocabulary", type=int, default=2500)
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--packing", default="auto", choices=["auto", "rows", "packed"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = TrainConfig(
        model={"width": options.width, "layers": options.layers, "heads": options.heads, "kv_heads": 2, "context": options.context},
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
        found = measure(trainer, options.seconds)
        facts = {
            **found,
            "padding_share": round(1 - trainer.counters.tokens_seen / trainer.counters.places, 3),
            "parameters": sum(parameter.numel() for parameter in trainer.decoder.parameters()),
            "precision": str(trainer.dtype).removeprefix("torch."),
            "device": str(trainer.device),
            "threads": torch.get_num_threads(),
            **vars(options),
        }
    for name, value in facts.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

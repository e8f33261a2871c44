"""How fast futures are written: tokens a second, beside Hugging Face's `generate` of an equal Llama and beside the machine's products.

    python benchmarks/rollout.py [--patients 64] [--samples 16] [--new 128] [--prompt 60] [--rows 512] [--threads 2] [--rounds 5]
                                 [--dtype bfloat16|float32] [--no-llama] [--profile]

A random model of d=192, 4 layers, 6 heads and about 2,500 tokens (context 512), prompts of about 60 tokens (half to one and a half times as
many), every future run to its budget, so that all write the same number of tokens ("realised length"). In each round these take turns, because
a shared machine is not equally fast twice; ratios are medians over rounds:

    engine      `cehrxgpt.rollout`, end to end: checking prompts, reading them, writing, assembling the result
    product     a large matrix product in the same precision, before and after: the share is of the FLOP that the model needs
    llama       `LlamaForCausalLM.generate` of a Llama of equal shape: sampling from the full distribution, key-value cache, prompts padded
                left, `num_return_sequences` samples; the best of several batch sizes, of float32 and bfloat16, and of one
                thread and all, found first; it has no grammar to keep, nothing to condition on and no probabilities to report
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import os
import platform
import pstats
import time
from typing import Any

# Read when Torch is loaded: threads that wait spin briefly, then sleep (as the command line has it).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
from llama import llama_of
from results import quick_dtype

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import Prompt, rollout
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.train.device import matmul_rate

PROMPT = ("[BOS]", "year:2011", "month:7", "age:71", "age_months:5", "gender:8532", "race:8527")
REFERENCE_TOKENS, REFERENCE_PATIENTS = 1123, 1.1  # a second, of the authors' package on two such cores (METHOD)
LLAMA_BATCHES = (8, 16, 32, 64)  # patients


def make_vocabulary(codes: int) -> Vocabulary:
    """Prompt, frame, D0..D1079, years, in-visit steps, and `codes` plain codes; no death, so that every future uses its budget."""
    rows = [{"token": "[PAD]", "kind": Kind.PAD}]
    prompt_kinds = (Kind.BOS, Kind.YEAR, Kind.MONTH, Kind.AGE, Kind.AGE_MONTHS, Kind.GENDER, Kind.RACE)
    rows += [{"token": token, "kind": kind, "amount": 5} for token, kind in zip(PROMPT, prompt_kinds, strict=True)]
    rows += [{"token": "[VS]", "kind": Kind.VISIT_START}, {"token": "[VE]", "kind": Kind.VISIT_END}]
    rows += [{"token": f"Visit/{name}", "kind": Kind.VISIT_TYPE, "code": f"Visit/{name}"} for name in ("inpatient", "outpatient")]
    rows += [{"token": f"D{days}", "kind": Kind.DAY_GAP, "amount": days, "minutes": days * 1440} for days in range(1080)]
    rows += [{"token": f"Y{years}", "kind": Kind.YEAR_GAP, "amount": years, "minutes": years * 525_600} for years in range(2, 20)]
    rows += [{"token": f"i-D{days}", "kind": Kind.IN_VISIT_DAYS, "amount": days, "minutes": days * 1440} for days in range(1, 32)]
    rows += [{"token": f"i-H{hours}", "kind": Kind.IN_VISIT_HOURS, "amount": hours, "minutes": hours * 60} for hours in range(24)]
    rows += [{"token": f"condition/{code}", "kind": Kind.CODE, "code": f"condition/{code}"} for code in range(codes)]
    return Vocabulary.from_rows([row | {"kind": int(row["kind"])} for row in rows], {})


def make_prompts(vocabulary: Vocabulary, patients: int, length: int, rng: np.random.Generator) -> list[Prompt]:
    """Bare histories: code, gap, code, gap ... with the prediction 30 days after the last."""
    start = [vocabulary.id_of(token) for token in PROMPT]
    codes, gaps = vocabulary.ids_of_kind(Kind.CODE), vocabulary.ids_of_kind(Kind.DAY_GAP)[:200]
    prompts = []
    for subject in range(patients):
        pairs = int(rng.integers(max(length // 2 - 7, 2), max(3 * length // 2 - 7, 4)) // 2)
        body = np.stack([rng.choice(codes, pairs), rng.choice(gaps, pairs)], axis=1).ravel()[:-1]
        days = int(vocabulary.amount[body[1::2]].sum())
        prompts.append(Prompt(token_id=np.concatenate([start, body]), subject_id=subject, prediction_clock_minutes=(days + 30) * 1440))
    return prompts


def model_flop(config: ModelConfig, prompts: list[Prompt], samples: int, new: int) -> float:
    """What the products of the model need: two per weight and token (prompts once, without the head), and those of attention."""
    length = np.array([len(prompt.token_id) for prompt in prompts], dtype=float)
    body = config.matmul_parameters - config.vocabulary_size * config.width
    looks = samples * (new * length + new**2 / 2) + length**2 / 2
    pairs = 4 * config.layers * config.width * looks.sum()  # scores and their use, 2 FLOP each
    written = len(prompts) * samples * new
    return float(2 * body * (written + length.sum()) + 2 * config.vocabulary_size * config.width * (written + len(prompts)) + pairs)


class Llama:
    """A Hugging Face Llama of equal shape and how a user would have it write futures."""

    def __init__(self, config: ModelConfig, samples: int, new: int):
        self.models = {dtype: llama_of(config).to(dtype).eval() for dtype in (torch.float32, torch.bfloat16)}
        self.samples, self.new = samples, new
        self.batch, self.dtype, self.threads = 8, torch.float32, torch.get_num_threads()

    def write(self, prompts: list[Prompt], new: int | None = None) -> tuple[float, float]:
        """Tokens a second of wall and of processor time."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        started, worked, written = time.perf_counter(), time.process_time(), 0
        for start in range(0, len(prompts), self.batch):
            some = [prompt.token_id for prompt in prompts[start : start + self.batch]]
            width = max(len(tokens) for tokens in some)
            token_id = torch.tensor(np.stack([np.pad(tokens, (width - len(tokens), 0)) for tokens in some]), dtype=torch.int64)
            with torch.inference_mode():
                output = self.models[self.dtype].generate(
                    token_id,
                    attention_mask=(token_id > 0).long(),
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    use_cache=True,
                    num_return_sequences=self.samples,
                    max_new_tokens=new or self.new,
                )
            written += output.shape[0] * (output.shape[1] - width)
        rates = written / (time.perf_counter() - started), written / (time.process_time() - worked)
        torch.set_num_threads(before)
        return rates

    def tune(self, prompts: list[Prompt]) -> None:
        """Choose batch size, precision and threads: the fastest over the first quarter of the tokens."""
        rates: dict[tuple[int, torch.dtype, int], float] = {}
        for choice in itertools.product(LLAMA_BATCHES, self.models, {1, self.threads}):
            self.batch, self.dtype, self.threads = choice
            rates[choice] = self.write(prompts[: self.batch], -(-self.new // 4))[0]
        self.batch, self.dtype, self.threads = max(rates, key=lambda key: rates[key])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"patients": 64, "samples": 16, "new": 128, "prompt": 60, "rows": 512, "threads": 2, "codes": 1350, "rounds": 5}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default=quick_dtype(), choices=["float32", "bfloat16"])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-llama", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vocabulary = make_vocabulary(options.codes)
    shape = {"width": 192, "layers": 4, "heads": 6, "kv_heads": 2, "context": 512}
    config = ModelConfig(vocabulary_size=len(vocabulary), care_settings=vocabulary.care_settings, **shape)
    dtype = getattr(torch, options.dtype)
    decoder = Decoder(config).to(dtype).eval()
    prompts = make_prompts(vocabulary, options.patients, options.prompt, np.random.default_rng(0))
    realised: list[float] = []

    def engine() -> tuple[float, float]:
        """Tokens a second of wall and of processor time."""
        started, worked = time.perf_counter(), time.process_time()
        result = rollout(decoder, vocabulary, prompts, samples=options.samples, seed=1, max_new_tokens=options.new, batch_rows=options.rows)
        realised.append(float(result.tokens.mean()))
        tokens = int(result.drawn.sum())
        return tokens / (time.perf_counter() - started), tokens / (time.process_time() - worked)

    rollout(decoder, vocabulary, prompts[:2], samples=2, seed=1, max_new_tokens=4)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(engine)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    llama = None if options.no_llama else Llama(config, options.samples, options.new)
    if llama is not None:
        llama.tune(prompts)
    flop_per_token = model_flop(config, prompts, options.samples, options.new) / (len(prompts) * options.samples * options.new)
    rounds = []
    for _ in range(options.rounds):
        before = matmul_rate(torch.device("cpu"), dtype)
        ours, per_cpu_second = engine()
        rate = (before + matmul_rate(torch.device("cpu"), dtype)) / 2
        theirs, their_per_cpu_second = (float("nan"),) * 2 if llama is None else llama.write(prompts[: max(llama.batch, 16)])
        shares = ours / theirs, per_cpu_second / their_per_cpu_second, ours * flop_per_token / rate
        rounds.append((ours, per_cpu_second, theirs, their_per_cpu_second, *shares, rate / 1e9))
        print("round", json.dumps([round(value, 3) for value in rounds[-1]]), flush=True)
    table = np.array(rounds)
    median = np.median(table, axis=0)
    patients = float(median[0]) / (options.samples * options.new)
    figures: dict[str, Any] = {
        "tokens_per_second": round(float(median[0])),
        "best_round": round(float(table[:, 0].max())),
        "tokens_per_cpu_second": round(float(median[1])),  # what is left of it when other programs take turns
        "patients_per_second": round(patients, 2),
        "realised_length": float(np.mean(realised)),
        "times_reference_tokens": round(float(median[0]) / REFERENCE_TOKENS, 1),
        "times_reference_patients": round(patients / REFERENCE_PATIENTS, 1),
        "llama_tokens_per_second": None if llama is None else round(float(median[2])),
        "llama_batch_patients": None if llama is None else llama.batch,
        "llama_threads": None if llama is None else llama.threads,
        "llama_dtype": None if llama is None else str(llama.dtype).removeprefix("torch."),
        "times_llama": None if llama is None else round(float(median[4]), 2),
        "llama_tokens_per_cpu_second": None if llama is None else round(float(median[3])),
        "times_llama_by_cpu_second": None if llama is None else round(float(median[5]), 2),
        "share_of_product_rate": round(float(median[6]), 3),
        "product_gflops": round(float(median[7])),
        "flop_per_token": round(flop_per_token),
        "load": round(os.getloadavg()[0], 1),
        "vocabulary": len(vocabulary),
        "parameters": sum(weight.numel() for weight in decoder.parameters()),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **vars(options),
    }
    for name, value in figures.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

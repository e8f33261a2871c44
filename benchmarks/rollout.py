"""How fast futures are written: tokens a second, beside what the machine could do and beside a plain loop.

    python benchmarks/rollout.py [--patients 64] [--samples 16] [--new 128] [--prompt 60] [--rows 128] [--threads 2] [--profile]

A random model of d=192, 4 layers and about 2,500 tokens, prompts of about 60 tokens (half to one and a half times as many), every
future run to its budget, so that all write the same number of tokens. Reported:

    engine      `cehrxgpt.rollout`, end to end: checking prompts, reading them, writing, assembling the result
    plain loop  one prompt with its samples at a time, cache, torch.multinomial: no grammar, no conditioning, nothing leaves or joins
    bound       tokens/s if nothing but the matrix products of the model took time, at the rate measured for products of these shapes
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import time

import numpy as np
import torch

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import Prompt, rollout
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

PROMPT = ("[BOS]", "year:2011", "month:7", "age:71", "age_months:5", "gender:8532", "race:8527")


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


def plain_loop(decoder: Decoder, prompts: list[Prompt], samples: int, new: int) -> float:
    """Tokens a second of the simplest loop with a cache."""
    started = time.perf_counter()
    with torch.inference_mode():
        for prompt in prompts:
            token = torch.from_numpy(prompt.token_id.astype(np.int64))[None].repeat(samples, 1)
            cache = KVCache(decoder.config, samples, token.shape[1] + new)
            position = torch.arange(token.shape[1]).repeat(samples, 1)
            for _ in range(new):
                hidden = decoder(token, position=position, age_minutes=position * 1440, cache=cache)[:, -1]
                token = torch.multinomial(decoder.head(hidden).softmax(-1), 1)
                position = cache.lengths[:, None]
    return len(prompts) * samples * new / (time.perf_counter() - started)


def product_rate(config: ModelConfig, rows: int) -> float:
    """FLOP a second of the model's own matrix products on `rows` rows, one after the other."""
    inner, head = config.feedforward_width, (config.heads + 2 * config.kv_heads) * config.head_width
    block = [(config.width, head), (config.width, config.width), (config.width, 2 * inner), (inner, config.width)]
    shapes = block * config.layers + [(config.width, config.vocabulary_size)]
    pairs = [(torch.randn(rows, a), torch.randn(b, a)) for a, b in shapes]
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for left, right in pairs:
            torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * config.matmul_parameters / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("patients", 64), ("samples", 16), ("new", 128), ("prompt", 60), ("rows", 256), ("threads", 2), ("codes", 1350)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-plain", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    vocabulary = make_vocabulary(arguments.codes)
    config = ModelConfig(vocabulary_size=len(vocabulary), width=192, layers=4, heads=6, kv_heads=2, context=512)
    decoder = Decoder(config).eval()
    prompts = make_prompts(vocabulary, arguments.patients, arguments.prompt, np.random.default_rng(0))

    def engine() -> float:
        started = time.perf_counter()
        result = rollout(decoder, vocabulary, prompts, samples=arguments.samples, seed=1, max_new_tokens=arguments.new, batch_rows=arguments.rows)
        return int(result.drawn.sum()) / (time.perf_counter() - started)

    rollout(decoder, vocabulary, prompts[:2], samples=2, seed=1, max_new_tokens=4)
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(engine)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    rates = [engine() for _ in range(3)]
    bound = product_rate(config, arguments.rows) / (2 * config.matmul_parameters)
    figures = {
        "tokens_per_second": round(max(rates)),
        "runs": [round(rate) for rate in rates],
        "patients_per_second": round(max(rates) / (arguments.samples * arguments.new), 2),
        "plain_loop_tokens_per_second": None if arguments.no_plain else round(plain_loop(decoder, prompts[:8], arguments.samples, arguments.new)),
        "matrix_product_bound": round(bound),
        "share_of_bound": round(max(rates) / bound, 3),
        "vocabulary": len(vocabulary),
        "parameters": sum(weight.numel() for weight in decoder.parameters()),
        "threads": arguments.threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(figures | {name: getattr(arguments, name) for name in ("patients", "samples", "new", "prompt", "rows")}))


if __name__ == "__main__":
    main()

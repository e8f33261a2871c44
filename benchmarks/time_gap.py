"""Can a model read the time between two events? The classic experiment: gap tokens against time that is added to embeddings, or turned by.

    python benchmarks/time_gap.py [--out runs/time_gap] [--seeds 3] [--steps 1000] [--write]

A person has a first event at some age, a second one 0 to 364 days later, and a label that follows from the days between alone: modulo 3, modulo
4, or the week's parity (days // 7 modulo 2). Small decoders of the package (64 wide, 2 layers, 4 heads) read

    first  D37  second  -> label        or, where nothing but ages tell of time,        first  second  -> label

and are asked about people they have not seen: with gaps that training people had, and with gaps that none had. "Added" is Time2Vec (Kazemi et
al., arXiv 1907.05321): a line and 31 sines of learned frequency, begun at wavelengths of 2 days to 20 years, projected and added to the
embedding of each token; of the age in days (as CEHR-BERT has it), or of the days since the event before, which does the subtraction for it.
A line of results.jsonl per training; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from results import Results, markdown, said_when, write_between
from torch import Tensor, nn

from cehrxgpt.config import fingerprint
from cehrxgpt.model.config import ModelConfig, Rotary
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.timeline.time import MINUTES_PER_DAY

BEGIN, END = "<!-- time_gap:begin -->", "<!-- time_gap:end -->"
DAYS = 365
FIRST, SECOND, FIRST_LABEL, FIRST_GAP = 1, 2, 3, 7
TRAIN_PEOPLE, TEST_PEOPLE, UNSEEN_EVERY = 20_000, 4_000, 10
BATCH = 512

LABELS = {"modulo 3": (3, lambda days: days % 3), "modulo 4": (4, lambda days: days % 4), "weeks' parity": (2, lambda days: days // 7 % 2)}


@dataclass(frozen=True)
class Way:
    """How a model is told of time."""

    says: str
    gap_token: bool = False
    rotary: Rotary = "order"
    added: Literal["", "age", "gap"] = ""


WAYS = {
    "token": Way("gap token; rotary over order", gap_token=True),
    "token_both": Way("gap token; rotary over order and age", gap_token=True, rotary="both"),
    "rotary_both": Way("rotary over order and age", rotary="both"),
    "rotary_age": Way("rotary over age", rotary="age"),
    "added_age": Way("age added to embeddings; rotary over order", added="age"),
    "added_gap": Way("days since the event before added to embeddings; rotary over order", added="gap"),
    "nothing": Way("no time at all; rotary over order"),
}


@dataclass(frozen=True)
class People:
    """`age_days` int64[N] at the first event, `days` int64[N] to the second."""

    age_days: Tensor
    days: Tensor


def draw(people: int, gaps: np.ndarray, random: np.random.Generator) -> People:
    """People aged 20 to 90 whose gaps are among these."""
    return People(torch.from_numpy(random.integers(20 * 365, 90 * 365, size=people)), torch.from_numpy(random.choice(gaps, size=people)))


class Time2Vec(nn.Module):
    """A line and sines of learned frequency, as a vector of the model's width."""

    def __init__(self, width: int, size: int = 32):
        super().__init__()
        wavelength = torch.logspace(math.log10(2.0), math.log10(20 * 365.0), size - 1)
        self.frequency = nn.Parameter(torch.cat([torch.tensor([1e-4]), 2 * math.pi / wavelength]))
        self.phase = nn.Parameter(torch.zeros(size))
        self.out = nn.Linear(size, width)

    def forward(self, days: Tensor) -> Tensor:
        """[..., width] of days [...]."""
        angle = days[..., None].float() * self.frequency + self.phase
        return self.out(torch.cat([angle[..., :1], angle[..., 1:].sin()], dim=-1))


class Reader(nn.Module):
    """A decoder that is asked for the label after the second event."""

    def __init__(self, way: Way, classes: int):
        super().__init__()
        self.way, self.classes = way, classes
        shape = ModelConfig(vocabulary_size=FIRST_GAP + DAYS, width=64, layers=2, heads=4, kv_heads=2, context=8, rotary=way.rotary)
        self.decoder = Decoder(shape)
        self.time = Time2Vec(shape.width) if way.added else None

    def forward(self, people: People) -> Tensor:
        """Logits of the labels [N, classes]."""
        one = torch.ones_like(people.days)
        tokens, ages = [one * FIRST, one * SECOND], [people.age_days, people.age_days + people.days]
        if self.way.gap_token:  # it has been read when the gap is over
            tokens.insert(1, FIRST_GAP + people.days)
            ages.insert(1, ages[1])
        token, age = torch.stack(tokens, dim=1), torch.stack(ages, dim=1)
        added = F.pad(age.diff(dim=1), (1, 0)) if self.way.added == "gap" else age
        position = torch.arange(token.shape[1]).expand_as(token)
        # The decoder knows no added embeddings: they join where it looks its tokens up.
        hook = self.decoder.embedding.register_forward_hook(lambda module, given, out: out if self.time is None else out + self.time(added))
        hidden = self.decoder(token, position=position, age_minutes=age * MINUTES_PER_DAY)
        hook.remove()
        return self.decoder.head(hidden[:, -1])[:, FIRST_LABEL : FIRST_LABEL + self.classes]


def measure(way: Way, label: str, seed: int, steps: int) -> dict[str, float]:
    """Train one model; share of right answers for gaps that it has seen and for others."""
    classes, of = LABELS[label]
    random = np.random.default_rng(seed)
    gaps = random.permutation(DAYS)
    unseen, seen = gaps[: DAYS // UNSEEN_EVERY], gaps[DAYS // UNSEEN_EVERY :]
    train, tests = draw(TRAIN_PEOPLE, seen, random), {"seen": draw(TEST_PEOPLE, seen, random), "unseen": draw(TEST_PEOPLE, unseen, random)}
    torch.manual_seed(seed)
    model = Reader(way, classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    for _ in range(steps):
        rows = torch.from_numpy(random.integers(0, TRAIN_PEOPLE, size=BATCH))
        people = People(train.age_days[rows], train.days[rows])
        loss = F.cross_entropy(model(people), of(people.days))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return {name: float((model(people).argmax(1) == of(people.days)).float().mean()) for name, people in tests.items()}


def table(lines: list[dict[str, Any]], steps: int) -> str:
    """Means over seeds, lowest and highest beside them."""
    lines = [line for line in lines if line["steps"] == steps]
    header = ["told by", *(f"{label}, {which} gaps" for label in LABELS for which in ("seen", "unseen"))]
    rows = []
    for name, way in WAYS.items():
        cells = []
        for label in LABELS:
            found = [line for line in lines if line["way"] == name and line["label"] == label]
            for which in ("seen", "unseen"):
                values = [100 * line[which] for line in found]
                cells.append(f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-")
        rows.append([way.says, *cells])
    rows.append(["guessing", *(f"{100 / classes:.1f}" for classes, _ in LABELS.values() for _ in range(2))])
    seeds = len({line["seed"] for line in lines})
    head = (
        f"{said_when(lines)}. {TRAIN_PEOPLE:,} people to train on, {steps:,} steps of {BATCH}, "
        f"{TEST_PEOPLE:,} to test on either way, {seeds} seed{'s' if seeds > 1 else ''}: % right, mean (lowest to highest).\n\n"
    )
    return head + markdown(header, rows)


def main() -> None:
    """Measure what is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/time_gap"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table of what is done into --page and stop")
    parser.add_argument("--page", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "objectives.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.out / "results.jsonl")
    for seed in range(0 if options.write else options.seeds):
        for name, way in WAYS.items():
            for label in LABELS:
                key = fingerprint([asdict(way), label, seed, options.steps, DAYS, TRAIN_PEOPLE, TEST_PEOPLE, UNSEEN_EVERY, BATCH])
                if results.has(key):
                    continue
                found = measure(way, label, seed, options.steps)
                facts = {"key": key, "way": name, "label": label, "seed": seed, "steps": options.steps, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
                results.add({**facts, **found})
                print(json.dumps(results.lines[-1]), flush=True)
    print(table(results.lines, options.steps))
    if options.write:
        write_between(options.page, BEGIN, END, table(results.lines, options.steps))


if __name__ == "__main__":
    main()

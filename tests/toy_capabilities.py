"""A model whose future is known exactly: a Markov chain over the timeline's tokens, in the shape the rollout engine asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from cehrxgpt.events import conform, sort_events
from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import Loaded
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.structure import icu_rows, structural_rows
from cehrxgpt.timeline.vocabulary import Vocabulary

OUTCOME, BENIGN = "condition/2", "condition/1"
LABS = (("measurement/10", "8554", (4.0, 5.0, 6.0)), ("measurement/11", "8840", (0.0, 0.0, 10.0)))


def vocabulary(*, icu: bool = False, visits: Sequence[int] = (9201,)) -> Vocabulary:
    """Structural tokens (few gaps, to be quick), two conditions, two labs with their units, visits of these concepts and a place of
    discharge; `icu`: intensive care as well."""
    rows = [row for row in structural_rows(range(2000, 2031), "exact") if row["kind"] != Kind.DAY_GAP or row["amount"] in (*range(61), 300)]
    for kind, prefix, values in ((Kind.GENDER, "gender", (0, 8507, 8532)), (Kind.RACE, "race", (0, 8527))):
        rows += [{"token": f"{prefix}:{one}", "kind": int(kind), "code": f"{prefix}/{one}", "origin": "person"} for one in values]
    for concept in visits:
        rows += [{"token": f"Visit/{concept}", "kind": int(Kind.VISIT_TYPE), "code": f"Visit/{concept}", "origin": "visit_occurrence"}]
    rows += [{"token": "discharge/8536", "kind": int(Kind.DISCHARGE), "code": "discharge/8536", "origin": "visit_occurrence"}]
    rows += [{"token": code, "kind": int(Kind.CODE), "code": code, "origin": "condition_occurrence"} for code in (BENIGN, OUTCOME)]
    for code, unit, points in LABS:
        rows += [{"token": code, "kind": int(Kind.CODE), "code": code, "unit": unit, "origin": "measurement"}]
        binned = {"bin_low": points[0], "bin_high": points[-1], "quantiles": list(points)}
        rows += [{"token": f"{code}|0", "kind": int(Kind.VALUE), "amount": 0, "code": code, "unit": unit, "origin": "measurement"} | binned]
    rows += icu_rows("VisitDetail/32037", 11) if icu else []
    return Vocabulary.from_rows(rows, {"calendar": "true", "long_gap": "exact"})


class MarkovDecoder(nn.Module):
    """`table[token]` = the next token's probabilities; the hidden state is the token's id."""

    def __init__(self, table: Mapping[str, Mapping[str, float]], words: Vocabulary, context: int):
        super().__init__()
        self.config = ModelConfig(vocabulary_size=len(words), width=2, layers=1, heads=1, kv_heads=1, context=context, rotary="none")
        self.embedding = nn.Embedding(2, 2, dtype=torch.float64)
        known = {words.id_of(token): row for token, row in table.items()}
        logits = torch.full((len(words), len(words)), float("-inf"), dtype=torch.float64)
        logits[[index for index in range(len(words)) if index not in known]] = 0.0  # elsewhere the grammar alone decides
        for token, row in known.items():
            for following, probability in row.items():
                logits[token, words.id_of(following)] = np.log(probability)
        self.register_buffer("logits", logits)

    def forward(self, token_id: Tensor, *, position: Tensor, age_minutes: Tensor, segment_id: Tensor | None = None, cache: KVCache | None = None):
        if cache is not None:
            cache.begin(token_id.shape[1], None if segment_id is None else (segment_id > 0).sum(1))
            cache.end()
        return token_id.double()[..., None]

    def head(self, hidden: Tensor) -> Tensor:
        return self.logits[hidden[..., 0].long()]


def markov(
    table: Mapping[str, Mapping[str, float]],
    *,
    context: int = 512,
    population: dict[str, Any] | None = None,
    icu: bool = False,
    visits: Sequence[int] = (9201,),
) -> Loaded:
    """The chain as a loaded model."""
    words = vocabulary(icu=icu, visits=visits)
    decoder = MarkovDecoder(table, words, context)
    return Loaded(decoder, words, decoder.config, Path("toy"), population)  # type: ignore[arg-type]


def gaps(shares: Mapping[int, float]) -> dict[str, float]:
    """Gap tokens by days."""
    return {f"D{days}": share for days, share in shares.items()}


def bare_chain(shares: Mapping[int, float], outcome: float, death: float) -> dict[str, dict[str, float]]:
    """Events outside of visits: a gap, then the outcome, death, or a benign event."""
    table: dict[str, dict[str, float]] = {code: gaps(shares) for code in (BENIGN, OUTCOME)}
    table |= {f"D{days}": {OUTCOME: outcome, "MEDS_DEATH": death, BENIGN: 1 - outcome - death} for days in shares}
    return {code: {token: share for token, share in row.items() if share > 0} for code, row in table.items()}


def exact_risk(shares: Mapping[int, float], outcome: float, death: float, *, elapsed: int, horizon: int, own_day: bool = True) -> float:
    """Probability of the outcome by `elapsed + horizon` days after the last event, none having come in the first `elapsed` days.

    `own_day`: what happens on the very day of the prediction comes after it. So it does where that is made at midnight; made at noon, an event
    without an hour is neither before nor after it, and counts for nothing.
    """
    limit = elapsed + horizon
    found = [0.0] * (limit + 1)  # found[t]: an event on day t has just been benign
    for day in range(limit, -1, -1):
        later = {gap: share for gap, share in shares.items() if day + gap <= limit}
        found[day] = sum(share * (outcome + (1 - outcome - death) * found[day + gap]) for gap, share in later.items())
    first = {gap: share for gap, share in shares.items() if gap >= max(elapsed, 1)}
    inside = {gap: share for gap, share in first.items() if gap <= limit}
    counted = {gap: 1.0 if own_day or gap > elapsed else found[gap] for gap in inside}
    return sum(share * (outcome * counted[gap] + (1 - outcome - death) * found[gap]) for gap, share in inside.items()) / sum(first.values())


def history(subjects: int, *, last: datetime = datetime(2015, 6, 1), code: str = BENIGN) -> pl.DataFrame:
    """Subjects 1..n, each with one event ten days before `last` and one on it, both known by their dates."""
    rows = []
    for subject in range(1, subjects + 1):
        rows += [(subject, None, "gender/8532"), (subject, None, "race/8527"), (subject, datetime(1950, 5, 17), "MEDS_BIRTH")]
        rows += [(subject, last - timedelta(days=10), code), (subject, last, code)]
    frame = pl.DataFrame(rows, schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}, orient="row")
    end_of_day = pl.col("time") + pl.duration(days=1, microseconds=-1)
    precision = pl.when(pl.col("time").is_not_null()).then(pl.lit("day"))
    return sort_events(conform(frame.with_columns(end_of_day.alias("available_time"), precision.alias("time_precision"))))

"""A small model far from uniform, batches of random histories, and any objective, for the tests of objectives."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives import Objective
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.store.loader import Segment
from cehrxgpt.timeline.encoded import EncodedHistories
from toy_store import toy_vocabulary

VOCABULARY = toy_vocabulary(labs=(2, 3, 5))


def decoder(**settings: object) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(**{"vocabulary_size": len(VOCABULARY), "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "context": 512, **settings})
    )
    for weight in model.parameters():
        weight.data.mul_(4 if weight.dim() > 1 else 1)  # far from uniform
    return model.double()


def segments(histories: EncodedHistories) -> list[Segment]:
    def one(index: int) -> Segment:
        place = histories.history(index)
        return Segment(histories.token_id[place], histories.age_minutes[place], histories.value[place], 0, int(histories.censor_gap_days[index]))

    return [one(index) for index in range(len(histories))]


def loss_of(model: Decoder, objective: Objective, batch: PackedBatch) -> tuple[Tensor, int]:
    hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
    total, count = objective(model, hidden, batch)
    assert int(count) == int(objective.count(batch))
    return total, int(count)


def padded(batch: PackedBatch, columns: int) -> PackedBatch:
    filler = {"target": IGNORE, "censor_gap_days": -1, "pair": -1, "value": float("nan")}
    names = [f.name for f in fields(batch) if not f.name.startswith("ahead")]
    wide = {name: nn.functional.pad(getattr(batch, name), (0, columns), value=filler.get(name, 0)) for name in names}
    row = batch.ahead_place // batch.token_id.shape[1]
    place = batch.ahead_place + row * columns
    return PackedBatch(**wide, ahead_token=batch.ahead_token, ahead_age_minutes=batch.ahead_age_minutes, ahead_place=place)

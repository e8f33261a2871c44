"""How sure the hazards of time to event are: the sampling error of their last layer, by patient.

A head's answer has no draws in it, yet another sample of patients would have trained it to another answer. With the states given, each task's
log hazard is linear in its weights v, w and biases b, and training maximises a likelihood in them. Their covariance is the sandwich

    (I + ridge)^-1  J  (I + ridge)^-1        I = sum over places of w x x',  w expected events;   J = sum over patients of g g'

with x what multiplies the weights and g a patient's sum of (events - expected events) x, less its mean. The inverse of I alone would take every
place for news, while one event is the next one of all the places before it; what counts is the patient. `ridge` is a prior of variance 1.

What is not in it: the error of the states themselves, and that the hazards may have the wrong form. It is a floor, not the whole.

Cost: one reading of a sample of the training split; places x pieces x (rank + width + pieces)^2 for each task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.event_tasks import training_windows
from cehrxgpt.objectives.time_to_event import TimeToEvent
from cehrxgpt.schema import TRAIN
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import TokenStore

RIDGE = 1.0


@dataclass(frozen=True)
class HazardErrors:
    """Covariance of the weights of some tasks.

    Attributes:
        tasks: their numbers in the head; n of them.
        covariance: float64[n * (F + K), n * (F + K)]; task by task, the F = R + D weights (`TimeToEvent.features`) and then the K biases.
        patients: that it rests on.
    """

    tasks: tuple[int, ...]
    covariance: Tensor
    patients: int

    def knows(self, tasks: Iterable[int]) -> bool:
        """Are all these tasks among its own?"""
        return set(tasks) <= set(self.tasks)

    def of(self, tasks: Sequence[int]) -> Tensor:
        """The covariance of these tasks' weights, in this order."""
        size = len(self.covariance) // len(self.tasks)
        rows = torch.cat([torch.arange(size) + size * self.tasks.index(task) for task in tasks])
        return self.covariance[rows][:, rows]


def hazard_errors(decoder: Decoder, head: TimeToEvent, store: TokenStore, tasks: Sequence[int]) -> HazardErrors:
    """Errors of some of a head's tasks, from a sample of the split that it was trained on."""
    return errors_of_batches(decoder, head, training_windows(store, decoder.config.context), tasks, patients=len(store.indices(TRAIN)))


def errors_of_batches(
    decoder: Decoder, head: TimeToEvent, batches: Iterable[PackedBatch], tasks: Sequence[int], *, patients: int | None = None
) -> HazardErrors:
    """The same from batches in which each segment is one patient; `patients` that the head was trained on, where they are more."""
    size = head.rank + head.direct.in_features + head.pieces
    task = torch.as_tensor(tasks)
    information = torch.zeros(len(task), size, size, dtype=torch.float64)
    scores: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            score, expected = _read(decoder, head, batch, task)
            scores.append(score)
            information += expected
    score_SG = torch.cat(scores)
    seen = len(score_SG)
    scale = max(patients or seen, seen) / seen
    centred = score_SG - score_SG.mean(0)
    half = torch.linalg.inv(torch.block_diag(*(information * scale)) + RIDGE * torch.eye(len(task) * size, dtype=torch.float64))
    return HazardErrors(tuple(tasks), half @ (centred.T @ centred * scale) @ half, seen)


def _read(decoder: Decoder, head: TimeToEvent, batch: PackedBatch, task: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the batch's segments [S, n * (F + K)], and information [n, F + K, F + K]."""
    hidden = decoder(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
    targets = head.reader(batch)
    hidden_PD = hidden.flatten(0, 1).index_select(0, targets.place).to(head.task.dtype)
    event_PC = targets.event_days[:, task].double()
    until_PC = event_PC.minimum(targets.end_days[:, None].double())
    hazard_PKC = head.log_hazards(hidden_PD)[:, :, task].double().exp()
    low, high = head.edges[:-1].double()[:, None], head.edges[1:].double()[:, None]
    expected_PKC = hazard_PKC * (until_PC[:, None] - low).clamp(min=0).minimum(high - low)
    occurs_PKC = torch.isfinite(event_PC)[:, None] & (event_PC[:, None] > low) & (event_PC[:, None] <= high)
    features_PKF = head.features(hidden_PD).double()
    piece_PKK = torch.eye(head.pieces, dtype=torch.float64).expand(len(hidden_PD), -1, -1)
    x_PKX = torch.cat([features_PKF, piece_PKK], dim=2)
    score_PCX = torch.einsum("pkc,pkx->pcx", occurs_PKC.double() - expected_PKC, x_PKX)
    # Segments are numbered from 1 in each row, padding is 0.
    number = batch.segment_id + torch.arange(len(batch.segment_id))[:, None] * (int(batch.segment_id.max()) + 1)
    owner = number.flatten().unique(return_inverse=True)[1]
    real = owner[(batch.segment_id > 0).flatten()].unique()
    score = torch.zeros(int(owner.max()) + 1, len(task) * x_PKX.shape[2], dtype=torch.float64)
    score.index_add_(0, owner[targets.place], score_PCX.flatten(1))
    x = x_PKX.flatten(0, 1)
    information = torch.stack([(x * expected_PKC[:, :, c].reshape(-1, 1)).T @ x for c in range(expected_PKC.shape[2])])
    return score[real], information

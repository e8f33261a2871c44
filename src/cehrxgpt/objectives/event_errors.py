"""How sure the hazards of time to event are: the sampling error of their last layer, by patient.

A head's answer has no draws in it, yet another sample of patients would have trained it to another answer. With the states given, each task's
log hazard is linear in its weights v, w and biases b, and training maximises a likelihood in them (what rare events are weighted by changes no
event's own maximum). Their covariance is the sandwich

    (I + ridge)^-1  J  (I + ridge)^-1        I = sum over places of w x x',  w expected events;   J = sum over patients of g g'

with x what multiplies the weights and g a patient's sum of (events - expected events) x, less its mean. The inverse of I alone would take every
place for news, while one event is the next one of all the places before it; what counts is the patient. `ridge` is a prior of variance 1.

What is not in it: the error of the states themselves, and that the hazards may have the wrong form. It is a floor, not the whole.

I has no entries between tasks, so that each is inverted by itself. J has, and is never written out: kept is what each patient moves the weights by.

Cost: one reading of a sample of the training split; places x pieces x (rank + width + pieces)^2 for each task. Memory: patients of the sample x
tasks x (rank + width + pieces) numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.event_tasks import SAMPLE_TOKENS, some_patients, training_windows
from cehrxgpt.objectives.time_to_event import TimeToEvent
from cehrxgpt.schema import TRAIN
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import TokenStore

RIDGE = 1.0
LEAST_PATIENTS = 500  # that the errors rest on, where there are as many


@dataclass(frozen=True)
class HazardErrors:
    """Errors of the weights of some tasks.

    Attributes:
        tasks: their numbers in the head; n of them.
        influence: float64[S, n * (F + K)]; what each of S patients moves the weights by, scaled so that the covariance is the sum of squares over
            patients. Task by task, the F = R + D weights (`TimeToEvent.features`) and then the K biases.
        patients: that it rests on, S.
    """

    tasks: tuple[int, ...]
    influence: Tensor
    patients: int

    def knows(self, tasks: Iterable[int]) -> bool:
        """Are all these tasks among its own?"""
        return set(tasks) <= set(self.tasks)

    def of(self, tasks: Sequence[int]) -> Tensor:
        """What patients move these tasks' weights by, in this order."""
        size = self.influence.shape[1] // len(self.tasks)
        return torch.cat([self.influence[:, size * place : size * (place + 1)] for place in map(self.tasks.index, tasks)], dim=1)


def hazard_errors(
    decoder: Decoder, head: TimeToEvent, store: TokenStore, tasks: Sequence[int], *, progress: Callable[[int, int, str], None] | None = None
) -> HazardErrors:
    """Errors of some of a head's tasks, from some patients of the split that it was trained on, with all their windows. `progress` is called
    with (batches read, all of them, what they are)."""
    taken = some_patients(store, SAMPLE_TOKENS // 8, least=LEAST_PATIENTS)
    windows = training_windows(store, decoder.config.context, histories=np.sort(taken))

    def batches() -> Iterator[PackedBatch]:
        for done, batch in enumerate(windows.evaluation()):
            yield batch
            if progress is not None:
                progress(done + 1, windows.batches_per_epoch, "batches of the training split, for standard errors")

    return errors_of_batches(decoder, head, batches(), tasks, owners=windows.evaluation_subjects(), patients=len(store.indices(TRAIN)))


def errors_of_batches(
    decoder: Decoder,
    head: TimeToEvent,
    batches: Iterable[PackedBatch],
    tasks: Sequence[int],
    *,
    owners: npt.NDArray[np.integer] | None = None,
    patients: int | None = None,
) -> HazardErrors:
    """The same from batches. `owners`: the patient of each segment, batch after batch, where one has several; `patients` that the head was
    trained on, where they are more."""
    size = head.rank + head.direct.in_features + head.pieces
    task = torch.as_tensor(tasks)
    information = torch.zeros(len(task), size, size, dtype=torch.float64)
    scores: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            score, expected = _read(decoder, head, batch.to(head.task.device), task)
            scores.append(score.cpu())
            information += expected.cpu()
    score_SCX = torch.cat(scores)
    if owners is not None:
        numbers, owner = np.unique(owners, return_inverse=True)
        score_SCX = score_SCX.new_zeros(len(numbers), *score_SCX.shape[1:]).index_add_(0, torch.from_numpy(owner), score_SCX)
    seen = len(score_SCX)
    scale = max(patients or seen, seen) / seen
    # Symmetric and positive definite by the ridge, so by Cholesky: half the work of a general inverse, and no pivots.
    bread_CXX = torch.cholesky_inverse(torch.linalg.cholesky(information * scale + RIDGE * torch.eye(size, dtype=torch.float64)))
    influence = torch.einsum("scx,cxy->scy", (score_SCX - score_SCX.mean(0)) * scale**0.5, bread_CXX)
    return HazardErrors(tuple(tasks), influence.flatten(1), seen)


def _read(decoder: Decoder, head: TimeToEvent, batch: PackedBatch, task: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the batch's segments [S, n, X] and information [n, X, X]; X = F + K."""
    hidden = decoder(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
    targets, device = head.reader(batch), hidden.device
    hidden_PD = hidden.flatten(0, 1).index_select(0, targets.place).to(head.task.dtype)
    event_PC = targets.event_days[:, task].double()
    until_PC = event_PC.minimum(targets.end_days[:, None].double())
    hazard_PKC = head.log_hazards(hidden_PD)[:, :, task].double().exp()
    low, high = head.edges[:-1].double()[:, None], head.edges[1:].double()[:, None]
    expected_PKC = hazard_PKC * (until_PC[:, None] - low).clamp(min=0).minimum(high - low)
    piece_PC = torch.bucketize(event_PC, head.edges[1:-1].double())  # as the loss has it: what happens at the same hour is in the first piece
    occurs_PKC = torch.isfinite(event_PC)[:, None] & (piece_PC[:, None] == torch.arange(head.pieces, device=device)[:, None])
    features_PKF = head.features(hidden_PD).double()
    piece_PKK = torch.eye(head.pieces, dtype=torch.float64, device=device).expand(len(hidden_PD), -1, -1)
    x_PKX = torch.cat([features_PKF, piece_PKK], dim=2)
    residual_PKC = occurs_PKC.double() - expected_PKC
    # Segments are numbered from 1 in each row, padding is 0.
    number = batch.segment_id + torch.arange(len(batch.segment_id), device=device)[:, None] * (int(batch.segment_id.max()) + 1)
    owner = number.flatten().unique(return_inverse=True)[1]
    real = owner[(batch.segment_id > 0).flatten()].unique()
    score = torch.zeros(int(owner.max()) + 1, len(task), x_PKX.shape[2], dtype=torch.float64, device=device)
    for c in range(len(task)):  # one by one: of all at once would be places x tasks x weights
        score[:, c].index_add_(0, owner[targets.place], torch.einsum("pk,pkx->px", residual_PKC[:, :, c], x_PKX))
    x = x_PKX.flatten(0, 1)
    information = torch.stack([(x * expected_PKC[:, :, c].reshape(-1, 1)).T @ x for c in range(len(task))])
    return score[real], information

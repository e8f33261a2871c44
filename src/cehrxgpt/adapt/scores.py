"""What a model thought of the events that happened: log-probabilities by event, and how far an expansion moved them.

Two models with different vocabularies write the same history in different tokens, but an event's token leads back to its row. So events are
compared row by row, where both models write the same token (old ids are the same in both). Histories longer than the context are read in
windows that overlap by half; an event counts where most of the past is seen.

    plain         log p(token)
    renormalised  log p(token) - log sum of p over the shared tokens: what is left when a new token is not an option
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.next_token import NextToken
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.store.crop import REOPENING
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Loader, Segment, assemble
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.kinds import PROMPT_LENGTH
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.timeline.window import window

TOKENS_PER_BATCH = 4096
SPARE = PROMPT_LENGTH + REOPENING + 2  # a window inside a history writes its prompt anew, re-opens its visit, and may begin a token earlier
CHUNK_ROWS = 1024  # places whose logits are held at once

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EventScores:
    """One entry per event that has a token, in order of (history, row).

    Attributes:
        history: int64[n], index among the histories.
        row: int64[n], the event's row in the encoded frame.
        token: int64[n].
        plain, renormalised: float64[n], see above; `renormalised` is -inf where the token is not shared.
    """

    history: Ints
    row: Ints
    token: Ints
    plain: Floats
    renormalised: Floats


@torch.no_grad()
def event_scores(decoder: Decoder, vocabulary: Vocabulary, histories: EncodedHistories, *, shared: int) -> EventScores:
    """Log-probabilities of the events of histories.

    Args:
        decoder, vocabulary: the model; the histories were encoded with its vocabulary.
        shared: the first so many tokens are known to both models.
    """
    parts = [_score(decoder, batch, history, row, shared) for batch, history, row in _batches(vocabulary, histories, decoder.config.context)]
    if not parts:
        nothing, none = np.zeros(0, dtype=np.int64), np.zeros(0)
        return EventScores(nothing, nothing, nothing, none, none)
    history, row, place, token, plain, renormalised = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((-place, row, history))
    history, row = history[order], row[order]
    first = np.concatenate([[True], (np.diff(history) != 0) | (np.diff(row) != 0)])[: len(order)]
    kept = order[first]
    return EventScores(history[first], row[first], token[kept], plain[kept], renormalised[kept])


def _batches(vocabulary: Vocabulary, histories: EncodedHistories, context: int) -> Iterator[tuple[PackedBatch, Ints, Ints]]:
    """Windows of like length as batches, with the history int64[B] of each row and the event row int64[B, T] of each token (-1 = none)."""
    windows = []
    for index, length in enumerate(histories.lengths.tolist()):
        last = length - context + SPARE
        starts = [0] if 0 < length <= context else range(0, last + context // 2, context // 2) if length else []
        windows += [(index, window(histories, vocabulary, index, start, start + context - (SPARE if start else 0))) for start in starts]
    windows.sort(key=lambda one: len(one[1].token_id))
    while windows:
        count = max(TOKENS_PER_BATCH // len(windows[-1][1].token_id), 1)
        taken, windows = windows[-count:], windows[:-count]
        row = np.full((len(taken), max(len(cut.token_id) for _, cut in taken)), -1, dtype=np.int64)
        for place, (_, cut) in enumerate(taken):
            row[place, : len(cut.event_index)] = cut.event_index
        segments = [Segment(cut.token_id, cut.age_minutes, cut.value, 0, -1) for _, cut in taken]
        yield assemble(segments), np.array([index for index, _ in taken], dtype=np.int64), row


def _score(decoder: Decoder, batch: PackedBatch, history: Ints, row: Ints, shared: int) -> tuple[Ints, Ints, Ints, Ints, Floats, Floats]:
    """history, row, place, token, plain, renormalised of a batch's events."""
    device = decoder.embedding.weight.device
    hidden_ND = _read(decoder, batch).flatten(0, 1)
    which, place = np.nonzero(row[:, 1:] >= 0)  # the event stands one further than the state that predicts it
    places = torch.from_numpy(which * row.shape[1] + place).to(device)
    target_N = batch.target.to(device).flatten()[places]
    plain, renormalised = [], []
    for some, target in zip(places.split(CHUNK_ROWS), target_N.split(CHUNK_ROWS), strict=True):
        logits_CV = decoder.head(hidden_ND[some]).double()
        at = logits_CV.gather(1, target[:, None])[:, 0]
        plain.append(at - logits_CV.logsumexp(1))
        renormalised.append(torch.where(target < shared, at - logits_CV[:, :shared].logsumexp(1), float("-inf")))
    joined = [torch.cat(parts).cpu().numpy() if len(places) else np.zeros(0) for parts in (plain, renormalised)]
    return history[which], row[which, place + 1], place, target_N.cpu().numpy(), joined[0], joined[1]


def _read(decoder: Decoder, batch: PackedBatch) -> torch.Tensor:
    batch = batch.to(decoder.embedding.weight.device)
    return decoder(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)


def looked_at(store: TokenStore, split: str, context: int) -> Iterator[PackedBatch]:
    """The windows of a split that training's evaluation looks at."""
    return Loader(store, split, tokens_per_batch=TOKENS_PER_BATCH, context=context, seed=0, packed=False).evaluation()


def histories_of(vocabulary: Vocabulary, histories: EncodedHistories, context: int) -> Iterator[PackedBatch]:
    """The windows that `event_scores` reads."""
    return (batch for batch, _, _ in _batches(vocabulary, histories, context))


@torch.no_grad()
def store_loss(decoder: Decoder, vocabulary: Vocabulary, store: TokenStore, split: str) -> float:
    """Next-token loss on a split of a store, nats per term; `vocabulary` is the decoder's and may extend the store's."""
    objective = NextToken(vocabulary).to(decoder.embedding.weight.device)
    total, count = 0.0, 0
    for batch in looked_at(store, split, decoder.config.context):
        part, terms = objective(decoder, _read(decoder, batch), batch.to(decoder.embedding.weight.device))
        total, count = total + float(part), count + int(terms)
    return total / max(count, 1)


@torch.no_grad()
def largest_change(before: Decoder, after: Decoder, batches: Iterator[PackedBatch]) -> float:
    """Largest |difference| of the log-probability of any old token, at any place of the batches."""
    old, largest = before.config.vocabulary_size, 0.0
    for batch in batches:
        real = (batch.target != IGNORE).flatten().nonzero()[:, 0]
        states = [_read(decoder, batch).flatten(0, 1) for decoder in (before, after)]
        for some in real.split(CHUNK_ROWS):
            was, now = (decoder.head(hidden[some]).double().log_softmax(1)[:, :old] for decoder, hidden in zip((before, after), states, strict=True))
            largest = max(largest, float((was - now).abs().max()))
    return largest

"""How micro-batches are dealt out to ranks: in turn, so that number i of a step goes to rank i modulo their count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cehrxgpt.errors import ConfigError
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.train.config import TrainConfig
from cehrxgpt.train.distributed import Ranks


def check_dealing(config: TrainConfig, ranks: Ranks) -> None:
    """Raise `ConfigError` where a step's micro-batches cannot be dealt out evenly."""
    if config.accumulate % ranks.count:
        fitting = -(-config.accumulate // ranks.count) * ranks.count
        raise ConfigError(
            f"accumulate is {config.accumulate}: a step's micro-batches cannot be dealt out to {ranks.count} processes; set accumulate: {fitting} "
            f"(with tokens_per_batch: {config.tokens_per_batch * config.accumulate // fitting} a step stays as large), or start fewer"
        )


def deal(batches: Iterable[PackedBatch], ranks: Ranks) -> Iterator[tuple[int, PackedBatch, bool]]:
    """This rank's batches of an epoch, with their numbers and whether they count.

    Every rank gets as many, since they may have to compute together: the last may be one that is computed and not counted.
    """
    turn: list[tuple[int, PackedBatch]] = []
    for item in enumerate(batches):
        turn.append(item)
        if len(turn) == ranks.count:
            yield (*turn[ranks.rank], True)
            turn = []
    if turn:
        mine = ranks.rank < len(turn)
        yield (*turn[ranks.rank if mine else 0], mine)


def sizes(batches: list[PackedBatch]) -> tuple[float, float, float]:
    """Tokens, places (tokens and padding), and the sum over segments of length squared."""
    tokens = sum(batch.tokens for batch in batches)
    # positions 0 .. n-1 of a segment sum to n (n - 1) / 2
    squares = sum(2.0 * float(batch.position.sum()) + batch.tokens for batch in batches)
    return float(tokens), float(sum(batch.token_id.numel() for batch in batches)), squares

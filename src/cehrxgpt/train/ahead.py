"""The next step's batches, made in a thread while the accelerator computes this one's.

A batch of 16,384 tokens takes some milliseconds of NumPy, a step of the base size on a large GPU some tens: in turn they would add up. On a
CPU the two want the same cores, so batches are made when they are needed. Batches are a function of their number, so this changes none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cehrxgpt.store.batch import PackedBatch


class Ahead:
    """Batches by their numbers, the next ones meanwhile.

    Args:
        make: the batch of a number.
        pinned: make ahead, in memory that an accelerator copies from by itself. Off: nothing is made ahead.
    """

    def __init__(self, make: Callable[[int], PackedBatch], *, pinned: bool):
        self._make, self._pinned = make, pinned
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if pinned else None
        self._next: tuple[tuple[int, ...], Future[list[PackedBatch]]] | None = None

    def __call__(self, numbers: Sequence[int], then: Sequence[int]) -> list[PackedBatch]:
        """The batches of `numbers`; those of `then` are begun."""
        waiting, self._next = self._next, None
        batches = waiting[1].result() if waiting is not None and waiting[0] == tuple(numbers) else self._all(numbers)
        if self._pool is not None:
            self._next = (tuple(then), self._pool.submit(self._all, tuple(then)))
        return batches

    def _all(self, numbers: Sequence[int]) -> list[PackedBatch]:
        batches = [self._make(number) for number in numbers]
        return [batch.pinned() for batch in batches] if self._pinned else batches

    def close(self) -> None:
        """Let the thread go."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

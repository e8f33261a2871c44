"""SIGTERM and Ctrl-C as a request: the step under way is finished, a checkpoint is written, and only then the run ends.

A launcher passes on what the terminal has sent already, so that a process may hear one Ctrl-C twice; only one that comes a good second
after the first means "at once".
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 1.0


class Interruption:
    """`asked` tells whether the process was told to stop since this context was entered; outside of the main thread, never.

    Who held the signals before gets them back at the end, and a second Ctrl-C at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > PATIENCE_SECONDS:
            before = self._before[number]
            if callable(before):
                before(number, frame)
            raise KeyboardInterrupt

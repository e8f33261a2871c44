"""How far a run is, and when it ends: by steps, by time, or because it no longer gets better."""

from __future__ import annotations

from dataclasses import dataclass

from cehrxgpt.train.config import TrainConfig
from cehrxgpt.train.summary import Counters


@dataclass(frozen=True)
class Course:
    """What lies before a run, of `total_steps` at the most; its counters say how much of it is behind."""

    config: TrainConfig
    total_steps: int

    def behind(self, counters: Counters) -> float:
        """Share of the run (0..1) that is behind, by steps or by time, whichever is further."""
        share = counters.step / self.total_steps
        if self.config.max_minutes is not None:
            share = max(share, counters.seconds / (60 * self.config.max_minutes))
        return min(share, 1.0)

    def expected_steps(self, counters: Counters) -> int:
        """Steps of the whole run; under a limit of time an estimate."""
        return max(round(counters.step / max(self.behind(counters), 1e-9)), counters.step)

    def reason_to_stop(self, counters: Counters) -> str | None:
        """As in `TrainSummary.stop_reason`; None: go on."""
        if self.config.patience and counters.stale >= self.config.patience and counters.settling_from is None:
            return "early_stopping"
        if counters.step >= self.total_steps:
            return "steps"
        if self.config.max_minutes is not None and counters.seconds >= 60 * self.config.max_minutes:
            return "minutes"
        return None

    def where_it_stands(self, counters: Counters) -> str:
        """What the reader of an interrupted run wants to know."""
        about = "about " if self.config.max_minutes is not None else ""
        return f"training stands at step {counters.step:,} of {about}{self.expected_steps(counters):,}, saved; --resume goes on there"

"""The figures of training: mean losses since the last line of the log, tokens per second, and the share of the machine's speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.train.summary import Counters


class Meter:
    """Adds up steps and makes the lines of kind `train`.

    Args:
        weights: of the objectives.
        shape: of the decoder, for its FLOP.

    Attributes:
        window: by objective, sum and count of its terms since the last line.
        matmul_rate: FLOP per second that could be reached, of all ranks together; set before the first line.
    """

    def __init__(self, weights: Mapping[str, float], shape: ModelConfig):
        self.weights, self.shape = weights, shape
        self.window: dict[str, list[float]] = {name: [0.0, 0.0] for name in weights}
        self.matmul_rate = float("inf")
        self._logged = (0, 0.0)  # tokens and seconds at the last line

    def restore(self, window: dict[str, list[float]], counters: Counters) -> None:
        """Go on from a checkpoint."""
        self.window, self._logged = window, (counters.tokens_seen, counters.training_seconds)

    def add(self, sums: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Count a step in."""
        for name, count in counts.items():
            self.window[name][0] += sums[name]
            self.window[name][1] += count

    def line(self, counters: Counters, rate: float, norm: float | None) -> dict[str, Any]:
        """The line of this moment; the next one begins anew."""
        losses = {name: total / count if count else None for name, (total, count) in self.window.items()}
        # An objective without a term adds nothing, as in a step's loss.
        if told := [self.weights[name] * value for name, value in losses.items() if value is not None]:
            counters.last_loss = sum(told)
        tokens, seconds = counters.tokens_seen - self._logged[0], counters.training_seconds - self._logged[1]
        self.restore({name: [0.0, 0.0] for name in self.window}, counters)
        return {
            "kind": "train",
            "step": counters.step,
            "loss": losses,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_seen": counters.tokens_seen,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "mfu": self.mfu(counters),
            "padding_share": 1 - counters.tokens_seen / counters.places,
            "seconds": counters.seconds,
            "skipped_steps": counters.skipped,
        }

    def mfu(self, counters: Counters) -> float:
        """FLOP the model asks for (6 per weight and token, 2 while the decoder rests, and attention) per second, as a share of the measured rate."""
        attention = 6 * self.shape.layers * self.shape.width * counters.square_lengths
        flop = self.shape.matmul_parameters * (6 * counters.tokens_seen - 4 * counters.settling_tokens) + attention
        return flop / max(counters.training_seconds, 1e-9) / self.matmul_rate

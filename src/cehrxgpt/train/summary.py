"""What a training run counts while it runs, and what it comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainSummary:
    """What a training run came to. Losses are in nats per term; `tuning_loss` is of the weights that were kept."""

    steps: int
    epochs: float
    tokens_seen: int
    seconds: float
    stop_reason: str  # "steps", "early_stopping" or "minutes"
    train_loss: float | None  # mean over the last `log_every` steps or fewer
    tuning_loss: float | None  # None: no tuning split
    best_step: int  # whose weights were kept
    skipped_steps: int
    resumed_from: int | None
    damaged_checkpoints: list[int]  # steps whose checkpoint was found damaged and passed over
    parameters: int  # of the decoder; the objectives' heads are `head_parameters`
    tokens_per_second: float  # real tokens over the whole run, looks at the tuning split and checkpoints included
    padding_share: float
    mfu: float  # share of `matmul_rate` that the model's own multiplications reached while training
    matmul_rate: float  # FLOP per second of a large product in the training precision, measured when the run began
    precision: str
    device: str
    ranks: int  # processes that trained together
    threads: int
    head_parameters: int = 0  # of the objectives' heads, which are kept beside the decoder


@dataclass
class Counters:
    """What changes from step to step and belongs in a checkpoint."""

    step: int = 0
    tokens_seen: int = 0
    places: int = 0  # tokens and padding
    settling_from: int | None = None  # the step after which the decoder rests; None: it does not yet
    settling_tokens: int = 0  # of the tokens, those that were read forwards only, while the decoder rested
    square_lengths: float = 0.0  # sum over segments of length squared: what attention costs; a third of it where the decoder rested
    seconds: float = 0.0
    training_seconds: float = 0.0  # without evaluation and checkpoints
    skipped: int = 0
    best_loss: float | None = None
    best_step: int = 0
    reference_loss: float | None = None  # the loss that the next improvement is measured from
    stale: int = 0
    last_loss: float | None = None  # of the last line of the log
    damaged: list[int] = field(default_factory=list)  # checkpoints that were passed over

    def judge(self, loss: float, minimum_improvement: float) -> bool:
        """Take note of a loss on the tuning split; is it the best so far?

        What does not improve by this share of the loss since the last improvement is stale, though it may be the best.
        """
        if not math.isfinite(loss):
            self.stale += 1
            return False
        best = self.best_loss is None or loss < self.best_loss
        if best:
            self.best_loss, self.best_step = loss, self.step
        # Relative to the size of the loss, which may be negative: a likelihood of times is a density.
        if self.reference_loss is None or loss < self.reference_loss - minimum_improvement * abs(self.reference_loss):
            self.reference_loss, self.stale = loss, 0
        else:
            self.stale += 1
        return best

"""The learning rate over a run: linear warm-up, then half a cosine, or level and down at the end.

    cosine   warm-up, then  final + (1 - final) (1 + cos(pi x)) / 2        x = share of what follows the warm-up
    wsd      warm-up, then  1, and over the last `decay_share` of the run
                            final + (1 - final) (1 - sqrt(y))              y = share of the decay
                        or  final + (1 - final) (1 - y)

all times the peak. Warm-up-stable-decay is Hu et al., 2024 (MiniCPM, arXiv 2404.06395); that a decay over a fifth of the run by 1 - sqrt
does as well as a cosine, and better than a linear one, is Haegele et al., 2024 (arXiv 2405.18392). What it buys: the level part does not
depend on how long the run will be.

With `settle_share` the run so far is all but the last such share of it. In that last part the decoder rests, and the heads of the objectives
settle on its states: their rate begins at a third of the peak and falls to zero along a line. A head follows states that move while the decoder
learns, and how high its level is at the end is the matter of its last steps.
"""

from __future__ import annotations

import math

from cehrxgpt.train.config import TrainConfig

_FIRST_SHARE = 0.01  # of the peak, at the very first step, so that it teaches too
_SETTLING_SHARE = 1 / 3  # of the peak, where the heads begin to settle


def learning_rate(progress: float, config: TrainConfig) -> float:
    """The rate when `progress` (0..1) of the run is behind; never zero at the beginning."""
    if settles(progress, config):
        return config.learning_rate * _SETTLING_SHARE * (1 - progress) / config.settle_share
    progress /= 1 - config.settle_share
    if progress < config.warmup_share:
        return config.learning_rate * max(progress / config.warmup_share, _FIRST_SHARE)
    share = _cosine(progress, config) if config.schedule == "cosine" else _stable_decay(progress, config)
    return config.learning_rate * (config.final_share + (1 - config.final_share) * share)


def settles(progress: float, config: TrainConfig) -> bool:
    """Whether the decoder rests when `progress` (0..1) of the run is behind."""
    return config.settle_share > 0 and progress >= 1 - config.settle_share


def _cosine(progress: float, config: TrainConfig) -> float:
    share = (progress - config.warmup_share) / max(1 - config.warmup_share, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _stable_decay(progress: float, config: TrainConfig) -> float:
    behind = min((progress - (1 - config.decay_share)) / max(config.decay_share, 1e-9), 1.0)
    if behind <= 0:
        return 1.0
    return 1 - (math.sqrt(behind) if config.decay == "1-sqrt" else behind)

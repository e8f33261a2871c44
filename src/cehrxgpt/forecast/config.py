"""How futures are drawn and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

METHODS = {"mc": "monte_carlo", "scope": "scope", "reach": "reach"}
"""Names of the estimators on the command line, and in predictions."""

DTYPES = ("float32", "float64", "bfloat16")
POOL_FUTURES = 8192
"""Enough for a pool to be written side by side with few places left empty at its end."""


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """How futures are drawn and read.

    Attributes:
        estimator: `mc`, `scope` or `reach` (`estimators`). Where a task's outcome is no set of tokens it is mc all the same, and the row says so.
        samples: futures per prediction time; with `target_std_error` at most so many.
        target_std_error: draw as many as make the standard error no larger, for each prediction time by itself; None: all draw `samples`.
        least_samples: those by which it is decided how many that are. They are left out of the risk: who shows nothing at first would draw few, and
            keep that nothing, so that risks came out too low. As many at least are drawn behind them.
        seed: futures are a function of it, of subject, prediction time and sample number.
        max_new_tokens: budget of one future. At least half of the model's context is kept for the history all the same.
        batch_rows: futures written side by side.
        moments: prediction times per pool at most (`pool_moments`); bounds the memory that decoded futures take, and what an interruption costs.
        dtype: precision to compute in; None = the model's own.
        max_unknown_share: a history with a larger share of events outside the vocabulary is refused.
        stop_at_outcome: where one task alone asks about a prediction time and its outcome is a set of tokens.
        stay_days: how long futures run for tasks whose window ends with the stay.
        trajectories: keep the futures as events (memory grows with prediction times x samples).
        trajectories_of: keep those of the first so many prediction times alone; None: of all.
        curve_points: times, evenly over the window, at which the cumulative incidence is told; 0 = no curves.
    """

    estimator: Literal["mc", "scope", "reach"] = "mc"
    samples: int = 50
    target_std_error: float | None = None
    least_samples: int = 20
    seed: int = 0
    max_new_tokens: int = 256
    batch_rows: int = 512
    moments: int = 128
    dtype: Literal["float32", "float64", "bfloat16"] | None = None
    max_unknown_share: float = 0.5
    stop_at_outcome: bool = True
    stay_days: int = 90
    trajectories: bool = False
    trajectories_of: int | None = None
    curve_points: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_rows", "moments", "stay_days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed <= 1 << 62:  # further rounds of windows count on from it
            raise ValueError(f"seed is {self.seed}; it must lie between 0 and {1 << 62}")
        if self.estimator not in METHODS:
            raise ValueError(
                f"estimator is '{self.estimator}'; valid: {', '.join(METHODS)} (the time-to-event head is asked by forecast.hazards.one_pass)"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype is '{self.dtype}'; valid: {', '.join(DTYPES)}")
        if not 0 <= self.max_unknown_share <= 1:
            raise ValueError(f"max_unknown_share is {self.max_unknown_share}; it must lie between 0 and 1")
        if self.least_samples < 20:
            raise ValueError(f"least_samples is {self.least_samples}; fewer than 20 futures say too little of their own error")
        if self.target_std_error is not None and not 0 < self.target_std_error < 0.5:
            raise ValueError(f"target_std_error is {self.target_std_error}; it must lie between 0 and 0.5")
        if self.target_std_error is not None and self.samples < 2 * self.least_samples:
            raise ValueError(
                f"samples is {self.samples}; with target_std_error that is the most that may be drawn, and the first {self.least_samples} decide how "
                f"many: it must be at least {2 * self.least_samples}"
            )
        if self.trajectories and self.estimator == "reach":
            raise ValueError("estimator reach draws futures without the outcome, which nobody should keep as trajectories; use mc or scope")
        if self.trajectories_of is not None and self.trajectories_of < 1:
            raise ValueError(f"trajectories_of is {self.trajectories_of}; it must be at least 1")
        if self.curve_points < 0:
            raise ValueError(f"curve_points is {self.curve_points}; it must not be negative")

    @property
    def pool_moments(self) -> int:
        """Prediction times per pool: `moments`, or as few as have futures enough; `moments` where futures come in rounds, the first of them small."""
        return self.moments if self.target_std_error is not None else max(1, min(self.moments, POOL_FUTURES // self.samples))

    def next_samples(self, drawn: int) -> int:
        """How many futures to draw next of a prediction time that has `drawn` for its risk: all; with `target_std_error` as many as decide, then half
        as many again each time, so that prediction times which need different numbers are drawn together."""
        if self.target_std_error is None:
            return self.samples - drawn
        return min(max(self.least_samples, drawn // 2), self.samples - self.least_samples - drawn)

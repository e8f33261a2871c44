"""Finished futures, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.schema import STOP_REASONS


@dataclass(frozen=True)
class Rollouts:
    """One row for every (prompt, sample) that was asked for, once, in that order: N rows, M new tokens in all.

    Attributes:
        prompt_index: int64[N], place in the list of prompts.
        subject_id: int64[N].
        sample_id: int32[N].
        token_id: int32[M]; row i owns `offsets[i] : offsets[i + 1]`. The prompt is not repeated.
        clock_minutes: int64[M], decoded clock of each token from the prompt's start midnight; never before the first minute after
            the prediction time, since whatever is generated came after it.
        offsets: int64[N + 1].
        stop_reason: str[N], one of `STOP_REASONS`: end ([END]), death, outcome (a stop token), horizon, budget (new tokens or context).
        end_clock_minutes: int64[N], how far the future is known: the horizon where it was reached, else the clock of the last token, or
            the prediction time where there is none.
        log_probability: float64[N], natural log, of all tokens drawn, under the distribution they were drawn from (allowed by the
            grammar, conditioned on the gap); the token that crossed the horizon is among them.
        removed_mass: float64[N], sum over the drawn tokens of the probability the grammar took away; divide by `drawn`.
        drawn: int32[N], tokens drawn: those kept, and those dropped for crossing the horizon.
        given_up: int32[N], tokens drawn before in futures that said what is known not to have been, and were drawn anew (`rows`); in no other
            column.
        gap_log_mass: float64[N], log of the probability that nothing happened until the prediction time, as far as the conditioning
            removed it; 0 where there was nothing to remove.
        conditioned: bool[N]; false where the vocabulary could not say so long a gap and the row was released, or `ATTEMPTS` futures were
            given up and it stays as it is.
        chance: float64[D, K], D = all tokens drawn, row by row, `drawn` of each: the probability of each watched set just before the
            draw, under the distribution drawn from, before any mask. [0, 0] where nothing was watched.
        drawn_at: int64[D], the clock before each draw, minutes.
        phase: int16[N]; state_clock_minutes, age_minutes: int64[N]: the grammar's state after the last kept token.
    """

    prompt_index: npt.NDArray[np.int64]
    subject_id: npt.NDArray[np.int64]
    sample_id: npt.NDArray[np.int32]
    token_id: npt.NDArray[np.int32]
    clock_minutes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    stop_reason: npt.NDArray[np.str_]
    end_clock_minutes: npt.NDArray[np.int64]
    log_probability: npt.NDArray[np.float64]
    removed_mass: npt.NDArray[np.float64]
    drawn: npt.NDArray[np.int32]
    given_up: npt.NDArray[np.int32]
    gap_log_mass: npt.NDArray[np.float64]
    conditioned: npt.NDArray[np.bool_]
    phase: npt.NDArray[np.int16]
    state_clock_minutes: npt.NDArray[np.int64]
    age_minutes: npt.NDArray[np.int64]
    chance: npt.NDArray[np.float64]
    drawn_at: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt_index)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """New tokens of each row, int64[N]."""
        return np.diff(self.offsets)

    def tokens_of(self, row: int) -> npt.NDArray[np.int32]:
        """The new tokens of one row."""
        return self.token_id[self.offsets[row] : self.offsets[row + 1]]

    def stopped(self) -> dict[str, int]:
        """Rows by reason."""
        return {reason: int((self.stop_reason == reason).sum()) for reason in STOP_REASONS}

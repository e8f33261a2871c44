"""Where the patient is, told to the decoder with every token: the vector of the last token that said so (`ModelConfig.care_settings`).

A visit's type, `[ICU]`, `[/ICU]` and `[VE]` change what may follow until the next of them. Attention could look them up, but one token in a
hundred stands in intensive care, and from so few it is learnt too slowly: a model of 2 million weights told two thirds of the exits that
there were after 18 million tokens (docs/training.md). Cost: one row of a small table added per token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig


class CareSetting(nn.Module):
    """Numbers the care settings, 0 = none said so far, and holds a vector for each. Dimension letters as in `transformer`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(len(config.care_settings) + 1, config.width)
        self._number_of = np.zeros(config.vocabulary_size, dtype=np.int64)  # NumPy, and sent where it is used: it is no weight
        self._number_of[list(config.care_settings)] = 1 + np.arange(len(config.care_settings))
        self._sent: dict[torch.device, Tensor] = {}

    def forward(self, setting: Tensor) -> Tensor:
        """Vectors [..., D] of settings int64[...]."""
        return self.embedding(setting)

    def number_of(self, device: torch.device) -> Tensor:
        """int64[V] there: the setting that a token begins, 0 = it begins none; sent once, as nothing can be sent while a step is captured."""
        if device not in self._sent:
            with torch.inference_mode(False):
                self._sent[device] = torch.from_numpy(self._number_of).to(device)
        return self._sent[device]

    def at(self, token_BT: Tensor, position_BT: Tensor, before_B: Tensor | None) -> Tensor:
        """The setting at each token, int64[B, T], its own included.

        Args:
            token_BT, position_BT: as the decoder is given them; where the position is 0 a sequence begins, and nothing has been said.
            before_B: int64[B], the setting at the row's past; None: rows without one.
        """
        begun_BT = self.number_of(token_BT.device)[token_BT]
        before_B = begun_BT.new_zeros(len(begun_BT)) if before_B is None else before_B
        said_BT = (begun_BT > 0) | (position_BT == 0)
        place_BT = torch.where(said_BT, torch.arange(begun_BT.shape[1], device=begun_BT.device), -1).cummax(dim=1).values
        return torch.where(place_BT >= 0, begun_BT.gather(1, place_BT.clamp(min=0)), before_B[:, None])

    def at_one(self, token_B: Tensor, before_B: Tensor) -> Tensor:
        """`at` for one token behind each row's past."""
        begun_B = self.number_of(token_B.device).index_select(0, token_B)
        return torch.where(begun_B > 0, begun_B, before_B)

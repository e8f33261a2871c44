"""Where the patient is, told to the decoder with every token: the vector of the last token that said so (`ModelConfig.care_settings`).

A visit's type, `[ICU]`, `[/ICU]` and `[VE]` change what may follow until the next of them. Attention could look them up, but one token in a
hundred stands in intensive care, and from so few it is learnt too slowly: a model of 2 million weights told two thirds of the exits that
there were after 18 million tokens (docs/training.md). Cost: one row of a small table added per token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.config import ModelConfig


class CareSetting(nn.Module):
    """Numbers the care settings, 0 = none said so far, and holds a vector for each. Dimension letters as in `transformer`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(len(config.care_settings) + 1, config.width)
        self._number_of = np.zeros(config.vocabulary_size, dtype=np.int64)  # NumPy, and sent where it is used: it is no weight
        self._number_of[list(config.care_settings)] = 1 + np.arange(len(config.care_settings))
        self._sent: dict[torch.device, Tensor] = {}

    def forward(self, x_BTD: Tensor, token_BT: Tensor, position_BT: Tensor, cache: KVCache | None) -> Tensor:
        """`x_BTD` with the vectors of where its tokens stand, added in place; a cache is told where its rows stand behind them."""
        setting_BT = self.at(token_BT, position_BT, None if cache is None else cache.setting)
        if cache is not None:
            cache.stand(setting_BT)
        return x_BTD.add_(self.embedding(setting_BT))

    def at(self, token_BT: Tensor, position_BT: Tensor, before_B: Tensor | None) -> Tensor:
        """The setting at each token, int64[B, T], its own included.

        Args:
            token_BT, position_BT: as the decoder is given them; where the position is 0 a sequence begins, and nothing has been said.
            before_B: int64[B], the setting at the row's past; None: rows without one.
        """
        begun_BT = self._begun(token_BT)
        if before_B is None:
            before_B = begun_BT.new_zeros(len(begun_BT))
        elif begun_BT.shape[1] == 1:  # a step of a rollout, where the number of operations counts
            return torch.where(begun_BT > 0, begun_BT, before_B[:, None])
        said_BT = (begun_BT > 0) | (position_BT == 0)
        place_BT = torch.where(said_BT, torch.arange(begun_BT.shape[1], device=begun_BT.device), -1).cummax(dim=1).values
        return torch.where(place_BT >= 0, begun_BT.gather(1, place_BT.clamp(min=0)), before_B[:, None])

    def _begun(self, token: Tensor) -> Tensor:
        """The setting that each token begins, 0 = none. The table is sent once, as nothing can be sent while a step is captured."""
        if token.device not in self._sent:
            with torch.inference_mode(False):
                self._sent[token.device] = torch.from_numpy(self._number_of).to(token.device)
        return self._sent[token.device][token]

"""How queries and keys turn by order and by age. Dimension letters as in `transformer`.

Half of the key-value heads turn by the token's place, half by its decoded age in days, with wavelengths from one day to 160 years: only
differences matter, so a window needs no absolute time. Angles are computed in float64, where a century in minutes loses nothing, and only
their sine and cosine are rounded to the model's precision.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.model.config import ModelConfig

ORDER_BASE = 10_000.0  # the longest wavelength over order is 2 pi times this many places
AGE_WAVELENGTH_DAYS = (1.0, 160 * 365.25)  # a quarter of the longest is four decades, so decades stay in order
MINUTES_PER_DAY = 1440.0


def rotary_frequencies(config: ModelConfig) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Radians per place and radians per day of every rotary pair: two float64[K, P]; zero where a head does not turn."""
    pairs = config.head_width // 2
    step = np.arange(pairs) / max(pairs - 1, 1)
    shortest, longest = AGE_WAVELENGTH_DAYS
    by_order = ORDER_BASE ** -(np.arange(pairs) / pairs)
    by_age = 2 * math.pi / shortest * (shortest / longest) ** step
    first_age_head = {"both": (config.kv_heads + 1) // 2, "order": config.kv_heads, "age": 0, "none": 0}[config.rotary]
    turns_by_order = np.arange(config.kv_heads)[:, None] < first_age_head
    turns_by_age = ~turns_by_order & (config.rotary != "none")
    return turns_by_order * by_order, turns_by_age * by_age


class Rotation:
    """Sine and cosine of every place, computed once per forward pass and shared by all layers.

    A head's numbers are turned in neighbouring pairs, (x[2p], x[2p + 1]): complex numbers times e^(i angle), which on a CPU is one pass
    over memory where sines and cosines take seven. Compilers for accelerators know no complex numbers, and fuse the seven.
    """

    def __init__(self, position_BT: Tensor, age_minutes_BT: Tensor, per_place_KP: Tensor, per_day_KP: Tensor, dtype: torch.dtype):
        days_BT = age_minutes_BT.double() / MINUTES_PER_DAY
        angle_BTKP = position_BT.double()[..., None, None] * per_place_KP + days_BT[..., None, None] * per_day_KP
        self.cos_BTKP = angle_BTKP.cos().to(dtype)
        self.sin_BTKP = angle_BTKP.sin().to(dtype)
        self.turn_BTKP = torch.complex(self.cos_BTKP, self.sin_BTKP) if angle_BTKP.device.type == "cpu" else None
        self._all: list[Tensor] | None = None

    def __call__(self, x_BTKGE: Tensor) -> Tensor:
        """Turn every head's pairs."""
        x_BTKGP2 = x_BTKGE.to(self.cos_BTKP.dtype).unflatten(-1, (-1, 2))
        if self.turn_BTKP is not None:
            return torch.view_as_real(torch.view_as_complex(x_BTKGP2) * self.turn_BTKP[:, :, :, None]).flatten(-2)
        return self.turn_real(x_BTKGP2).flatten(-2)

    def of_all_heads(self, groups: int) -> list[Tensor]:
        """The tables of queries, `groups` for each key-value head, and those of keys behind them: complex [B, T, H + K, P], or cosine and sine."""
        if self._all is None:
            tables = (self.cos_BTKP, self.sin_BTKP) if self.turn_BTKP is None else (self.turn_BTKP,)
            self._all = [torch.cat([table.repeat_interleave(groups, dim=2), table], dim=2) for table in tables]
        return self._all

    def turn_all(self, x_BTHE: Tensor, groups: int) -> Tensor:
        """Turn the heads of queries, `groups` for each key-value head, and those of keys behind them."""
        tables = self.of_all_heads(groups)
        x_BTHP2 = x_BTHE.unflatten(-1, (-1, 2))
        if self.turn_BTKP is not None:
            return torch.view_as_real(torch.view_as_complex(x_BTHP2) * tables[0]).flatten(-2)
        (cos, sin), (first, second) = tables, x_BTHP2.unbind(-1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)

    def turn_real(self, x_BTKGP2: Tensor) -> Tensor:
        """The same without complex numbers."""
        cos, sin = self.cos_BTKP[:, :, :, None], self.sin_BTKP[:, :, :, None]
        first, second = x_BTKGP2.unbind(-1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)

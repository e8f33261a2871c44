"""From hazards to risks: the cumulative incidence of an outcome that death may forestall, exact for hazards constant within pieces.

    F(t) = integral from a to a + t of  h(u) exp(-H(a, u) - D(a, u)) du        H, D: integrals of the hazards h, d of outcome and death

a is what has passed without event when the question is asked, so F is conditional on it. 1 - exp(-H) would count outcomes after death.
Between two neighbouring cuts (edges of pieces, the ends asked for) both hazards are constant, and the integral is

    S(start) h / (h + d) (1 - exp(-(h + d) width)).

float64 and differentiable, so that errors of hazards become errors of risks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def incidences(edges: Tensor, outcome: Tensor, death: Tensor, begin: Tensor, days: Tensor, *, opens: float = 0.0) -> tuple[Tensor, Tensor]:
    """Probabilities that the outcome has come, death not before it, within so many days, and that death has, the outcome not before it; [N, G] each.

    Args:
        edges: inner edges of the pieces, ascending, in days since the hazards' origin; [K - 1]. The last piece has no end.
        outcome, death: hazards per day; [N, K].
        begin: days since the origin at which the question is asked, nothing having happened before; [N].
        days: counted from `begin`; [G].
        opens: outcomes count from this many days after `begin`. What comes earlier neither counts nor ends anything: an outcome of that
            time does not prevent one in the window (recurrences at the same hazard).
    """
    end = begin[:, None] + days
    cut = torch.cat([edges.expand(len(begin), -1).maximum(begin[:, None]), begin[:, None], begin[:, None] + opens, end], dim=1).sort(1).values
    width, middle = cut.diff(dim=1), (cut[:, 1:] + cut[:, :-1]) / 2
    piece = torch.bucketize(middle, edges)
    hazard = outcome.gather(1, piece) * (middle > begin[:, None] + opens)
    either = (hazard + death.gather(1, piece)) * width
    # (1 - exp(-x)) / x, which is 1 at 0.
    positive = torch.where(either > 0, either, 1.0)
    mean_survival = torch.where(either > 0, -torch.expm1(-positive) / positive, 1.0)
    survival = torch.exp(either - either.cumsum(1))
    incidence = torch.nn.functional.pad((survival * hazard * width * mean_survival).cumsum(1), (1, 0))
    gone = torch.nn.functional.pad(-torch.expm1(-either.cumsum(1)), (1, 0))
    place = torch.searchsorted(cut, end.contiguous())
    found = incidence.gather(1, place)
    return found, (gone.gather(1, place) - found).clamp(min=0)

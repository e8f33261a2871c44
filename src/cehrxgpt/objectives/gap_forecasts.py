"""What a model says of the next gap, as a distribution over days: by its tokens, by the Gamma head, by the heads of years, months and days.

Each gives P(gap = d) for d = 0 .. D-1 at N places, float64[N, D]; the rest of the mass lies at D days and beyond. The places are those at which a
gap begins (`gaps.find_gaps`), and all three are distributions given that one does: what the tokens give to anything but a gap is set aside, as
the grammar does in generation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import wide
from cehrxgpt.objectives.time_decomposition import TimeDecomposition, parts_of
from cehrxgpt.objectives.time_to_visit import TimeToVisit
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.time import LONG_GAP_DAYS
from cehrxgpt.timeline.vocabulary import Vocabulary


def token_mass(decoder: Decoder, vocabulary: Vocabulary, hidden_ND: Tensor, days: int = LONG_GAP_DAYS) -> Tensor:
    """Of the gap tokens; years, however many, lie beyond."""
    ids = torch.from_numpy(vocabulary.ids_of_kind(Kind.DAY_GAP, Kind.YEAR_GAP, Kind.LONG_GAP)).to(hidden_ND.device)
    share = decoder.head(hidden_ND, ids).double().softmax(-1)
    counted = (torch.from_numpy(vocabulary.kind).to(ids.device)[ids] == Kind.DAY_GAP).nonzero().squeeze(1)
    amount = torch.from_numpy(vocabulary.amount).long().to(ids.device)[ids[counted]]
    counted, amount = counted[amount < days], amount[amount < days]
    return share.new_zeros(len(hidden_ND), days).index_copy(1, amount, share[:, counted])


def gamma_mass(head: TimeToVisit, hidden_ND: Tensor, days: int = LONG_GAP_DAYS) -> Tensor:
    """Of the Gamma head: a gap of d days is the interval [d, d + 1)."""
    log_k, log_rate = (part.double()[:, None] for part in head.parameters_of(hidden_ND))
    edges = torch.arange(days + 1, device=hidden_ND.device)
    return torch.special.gammainc(log_k.exp().expand(-1, days + 1), log_rate.exp() * edges).diff(dim=1)


def decomposition_mass(head: TimeDecomposition, hidden_ND: Tensor, days: int = LONG_GAP_DAYS) -> Tensor:
    """Of the three heads, taken as independent."""
    logp = head.log_probabilities(hidden_ND)
    parts = parts_of(torch.arange(days, device=hidden_ND.device), head.sizes[0])
    return torch.stack([wide(one)[:, part] for one, part in zip(logp, parts, strict=True)]).double().sum(0).exp()


def gap_masses(
    decoder: Decoder, objectives: nn.ModuleDict, vocabulary: Vocabulary, hidden_ND: Tensor, days: int = LONG_GAP_DAYS
) -> dict[str, Tensor]:
    """Every forecast that the model can make: `tokens`, and `gamma` and `decomposition` where it was trained with their heads."""
    masses = {"tokens": token_mass(decoder, vocabulary, hidden_ND, days)}
    for objective in objectives.values():
        if isinstance(objective, TimeToVisit):
            masses["gamma"] = gamma_mass(objective, hidden_ND, days)
        elif isinstance(objective, TimeDecomposition):
            masses["decomposition"] = decomposition_mass(objective, hidden_ND, days)
    return masses

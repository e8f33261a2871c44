"""Learning objectives, one file each; `build` makes those that a recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from cehrxgpt.config import from_dict
from cehrxgpt.errors import ConfigError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.objectives.base import Objective, ObjectiveSettings
from cehrxgpt.objectives.contrastive import Contrastive
from cehrxgpt.objectives.entropy_penalty import EntropyPenalty
from cehrxgpt.objectives.next_token import NextToken
from cehrxgpt.objectives.time_decomposition import TimeDecomposition
from cehrxgpt.objectives.time_to_event import TimeToEvent
from cehrxgpt.objectives.time_to_visit import TimeToVisit
from cehrxgpt.objectives.value import Value
from cehrxgpt.store.format import TokenStore
from cehrxgpt.timeline.vocabulary import Vocabulary

__all__ = ["OBJECTIVES", "NextToken", "Objective", "Value", "build", "prepare", "read_settings"]

_ALL: tuple[type[Objective], ...] = (NextToken, TimeDecomposition, TimeToVisit, TimeToEvent, Value, Contrastive, EntropyPenalty)
OBJECTIVES: dict[str, type[Objective]] = {one.name: one for one in _ALL}
"""Every objective by its name."""


def read_settings(named: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of each objective that a recipe names: `name: weight`, or `name: {weight: ..., ...}`.

    Raises:
        ConfigError: an unknown objective or setting, a value out of range, or nothing at all.
    """
    if not named:
        raise ConfigError(f"objectives: none given; choose among {', '.join(sorted(OBJECTIVES))}")
    settings: dict[str, ObjectiveSettings] = {}
    for name, said in named.items():
        if name not in OBJECTIVES:
            raise ConfigError(f"objectives: unknown '{name}'; valid: {', '.join(sorted(OBJECTIVES))}")
        values = said if isinstance(said, dict) else {"weight": said}
        settings[name] = from_dict(OBJECTIVES[name].Settings, values, where=f"objectives: {name}")
    return settings


def prepare(
    settings: Mapping[str, Any], store: TokenStore, shape: ModelConfig, say: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, Any]]:
    """What each objective needs to know of the training split, as plain JSON; those wanted `where_possible` are missing where it cannot serve
    them, and `say` is told why.

    Raises:
        ConfigError: the training split cannot serve another.
    """
    facts = {}
    for name, one in settings.items():
        try:
            facts[name] = OBJECTIVES[name].prepare(store, one, shape)
        except ConfigError as error:
            if not one.where_possible:
                raise
            say(f"{name} is left out: {error}")
    return facts


def build(settings: Mapping[str, Any], facts: Mapping[str, dict[str, Any]], vocabulary: Vocabulary, shape: ModelConfig) -> nn.ModuleDict:
    """The objectives by name, with new heads. No target counts twice: where `value` is among them, `next_token` leaves values to it."""
    made = {name: OBJECTIVES[name].build(vocabulary, shape, one, facts.get(name, {})) for name, one in settings.items()}
    if NextToken.name in made and Value.name in made:
        made[NextToken.name] = NextToken(vocabulary, demographics=settings[NextToken.name].demographics, values=False)
    return nn.ModuleDict(made)

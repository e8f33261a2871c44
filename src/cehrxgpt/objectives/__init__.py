"""Learning objectives, one file each; `build` makes those that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cehrxgpt.errors import ConfigError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.objectives.base import Objective
from cehrxgpt.objectives.next_token import NextToken
from cehrxgpt.objectives.value import Value
from cehrxgpt.timeline.vocabulary import Vocabulary

__all__ = ["OBJECTIVES", "NextToken", "Objective", "Value", "build"]

OBJECTIVES = {
    NextToken.name: lambda vocabulary, config: NextToken(vocabulary),
    Value.name: lambda vocabulary, config: Value(vocabulary),
}
"""name -> function of (vocabulary, model config) that makes the objective."""


def check(weights: Mapping[str, float]) -> None:
    """Raise `ConfigError` for an unknown objective or a weight that is not positive."""
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise ConfigError(f"objectives: unknown '{name}'; valid: {', '.join(sorted(OBJECTIVES))}")
        if not weight > 0:
            raise ConfigError(f"objectives: {name} has weight {weight}; it must be positive (leave the objective out instead)")
    if not weights:
        raise ConfigError(f"objectives: none given; choose among {', '.join(sorted(OBJECTIVES))}")


def build(weights: Mapping[str, float], vocabulary: Vocabulary, config: ModelConfig) -> nn.ModuleDict:
    """The objectives a recipe names, by name. No target counts twice: where `value` is among them, `next_token` leaves values to it."""
    check(weights)
    made = {name: OBJECTIVES[name](vocabulary, config) for name in weights}
    if NextToken.name in made and Value.name in made:
        made[NextToken.name] = NextToken(vocabulary, values=False)
    return nn.ModuleDict(made)

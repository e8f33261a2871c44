"""The populations by name, loaded when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cehrxgpt.errors import InputError

if TYPE_CHECKING:
    from cehrxgpt.simulate.declare import Population

POPULATIONS = ("core", "full")


def population(name: str) -> Population:
    """The population of this name.

    Raises:
        InputError: there is none; the message lists them.
    """
    if name not in POPULATIONS:
        raise InputError(f"no population '{name}'; there are {', '.join(POPULATIONS)}")
    found: Population = getattr(import_module(f"cehrxgpt.simulate.populations.{name}"), name.upper())
    return found

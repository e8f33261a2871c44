"""The populations by name: the package's own, loaded when asked for, and those that were added."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cehrxgpt.errors import InputError

if TYPE_CHECKING:
    from cehrxgpt.simulate.declare import Population

POPULATIONS = ("core", "full")
_ADDED: dict[str, Population] = {}


def known() -> tuple[str, ...]:
    """Names of all populations."""
    return (*POPULATIONS, *_ADDED)


def add_population(own: Population) -> Population:
    """Make a population of one's own known by its name, in this process, to all that takes the name of one.

    A folder that `simulate` wrote remembers the name alone: who asks for true risks later adds the same declaration first.

    Raises:
        ValueError: it has the name of one of the package's.
    """
    if own.name in POPULATIONS:
        raise ValueError(f"'{own.name}' is a population of the package; give yours a name of its own")
    _ADDED[own.name] = own
    return own


def population(name: str) -> Population:
    """The population of this name.

    Raises:
        InputError: there is none; the message lists them.
    """
    if name in _ADDED:
        return _ADDED[name]
    if name not in POPULATIONS:
        raise InputError(f"no population '{name}'; there are {', '.join(known())}, and one of your own after add_population")
    found: Population = getattr(import_module(f"cehrxgpt.simulate.populations.{name}"), name.upper())
    return found

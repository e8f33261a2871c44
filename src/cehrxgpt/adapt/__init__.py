"""External data sets: a vocabulary and a model that grow, training that goes on, and a report of what was carried over.

`cehrxgpt.adapt` is the package and, called, the function: `cx.adapt(model, events)`. (Importing any of its modules binds the package to that
name, so the package itself has to answer.)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """See `cehrxgpt.adapt.run.adapt`."""
        return import_module("cehrxgpt.adapt.run").adapt(*arguments, **named)


sys.modules[__name__].__class__ = _Package

"""Strict YAML to frozen dataclasses and back, and fingerprints of what was resolved.

A recipe is YAML; each stage's settings are one frozen, keyword-only dataclass that checks itself in `__post_init__`. Unknown keys,
wrong types and duplicate keys are errors that name the file, the key and the valid choices: a typo fails at once and nothing is
silently ignored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from cehrxgpt.errors import ConfigError, did_you_mean

T = TypeVar("T")


_DEEPEST = 50  # levels of lists and mappings; what goes through them calls itself for each, and Python bounds that


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]|[0-9_.]+:)")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, keys that are no words, nesting without end, and what only looks like a number or a date.

    Whole numbers have 64 bits at most, so that they fit wherever they go. What YAML reads in other bases without saying so, 010 as 8 and 1:30 as 90,
    is refused.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ConfigError(f"line {self.peek_event().start_mark.line + 1}: nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"line {node.start_mark.line + 1}: cannot be read as {node.tag.rpartition(':')[2]}") from error
        if node.tag in _NUMBERS and _OTHER_BASE.match(node.value):
            raise ConfigError(f"line {node.start_mark.line + 1}: a number with a leading zero or a colon; write it plainly, or quote a word")
        if isinstance(value, int) and value.bit_length() > 63:
            raise ConfigError(f"line {node.start_mark.line + 1}: a whole number of more than 64 bits")
        return value


def _no_duplicates(loader: _StrictLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: expected a word for a key, found a list or a mapping")
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise ConfigError(f"line {key_node.start_mark.line + 1}: keys of another mapping (<<) are not read; write them out")
        key = loader.construct_object(key_node, deep=deep)
        if key in seen:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key '{key}' stands twice")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _no_duplicates)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: no such file, not YAML, duplicate keys, or not a mapping; the message has the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML text file") from error
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> dict[str, Any]:
    """Parse YAML text into a mapping; `where` names it in messages."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable"
        line = f" line {mark.line + 1}:" if mark is not None else ""
        if isinstance(error, yaml.reader.ReaderError):  # which knows the place, and not the line
            line, problem = f" line {text.count(chr(10), 0, error.position) + 1}:", error.reason
        raise ConfigError(f"{where}:{line} not valid YAML ({problem})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values at the top, found {type(value).__name__}")
    return value


class Refused(ValueError):
    """What a `__post_init__` raises where it can say which of its keys is at fault (`at`: the way to it)."""

    def __init__(self, message: str, *at: str | int):
        super().__init__(message)
        self.at = at


def line_of(text: str, at: Sequence[str | int]) -> int:
    """Number of the line of valid YAML `text` on which the key or the list's item at the end of the way `at` stands; as far as it is there."""
    node, line = yaml.compose(text, Loader=_StrictLoader), 1
    for step in at:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(step)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            found = [(item, item) for item in node.value[step : step + 1]]
        else:
            found = []
        if not found:
            break
        key, node = found[0]
        line = key.start_mark.line + 1
    return line


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", type(None): "null"}


def _describe(annotation: Any) -> str:
    """What is expected, in words for those who write YAML."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(repr(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " | ".join(_describe(option) for option in get_args(annotation))
    if dataclasses.is_dataclass(annotation):
        return f"a mapping with keys of {', '.join(field.name for field in dataclasses.fields(annotation) if field.init)}"
    if origin in (list, tuple):
        return "a list"
    if origin is dict:
        return "a mapping"
    return _WORDS.get(annotation, str(annotation))


def _convert_at(step: Any, value: Any, annotation: Any, where: str) -> Any:
    """`_convert` of what lies under this key, or at this place of a list: its errors say so."""
    try:
        return _convert(value, annotation, where)
    except ConfigError as error:
        error.at = (step, *error.at)
        raise


def _convert(value: Any, annotation: Any, where: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            if option is type(None):
                continue
            try:
                return _convert(value, option, where)
            except ConfigError:
                if len([choice for choice in arguments if choice is not type(None)]) == 1:
                    raise
        raise ConfigError(f"{where}: expected {_describe(annotation)}, found {value!r}")
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: expected {_describe(annotation)}, found {value!r}")
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        if isinstance(value, annotation):
            return value
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected {_describe(annotation)}; found {value!r}")
        return from_dict(annotation, value, where=where)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            found = "a mapping; put it into [ ]" if isinstance(value, dict) else f"{value!r}; write [{value}]"
            raise ConfigError(f"{where}: expected a list, found {found}")
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            if len(value) != len(arguments):
                raise ConfigError(f"{where}: expected {len(arguments)} values, found {len(value)}")
            pairs = enumerate(zip(value, arguments, strict=True))
            return tuple(_convert_at(index, item, kind, f"{where}[{index}]") for index, (item, kind) in pairs)
        kind = arguments[0] if arguments else Any
        return origin(_convert_at(index, item, kind, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, found {type(value).__name__}")
        keys = {key: _convert_at(key, key, arguments[0], f"{where} key") for key in value}
        return {keys[key]: _convert_at(key, item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is float and isinstance(value, str):
        # YAML 1.1 reads "2e-4" as text.
        try:
            return float(value)
        except ValueError:
            pass
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if isinstance(annotation, type) and isinstance(value, annotation) and not (annotation in (int, float) and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {_describe(annotation)}, found {value!r}")


def from_dict(cls: type[T], values: dict[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from a mapping, strictly.

    Raises:
        ConfigError: an unknown key (the closest valid one is suggested), a missing required key, a value of the wrong type, or
            one that `__post_init__` refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            hint = did_you_mean(str(key), fields, cutoff=0.7) or f"valid keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"{where}: unknown key '{key}'; {hint}", (key,))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: key '{name}' is required ({_describe(hints[name])})")
    converted = {key: _convert_at(key, value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}", getattr(error, "at", ())) from error


def read_config(cls: type[T], path: str | Path) -> T:
    """`from_dict` on a YAML file."""
    return from_dict(cls, read_yaml(path), where=str(path))


def to_dict(config: Any) -> Any:
    """A dataclass (nested) as plain JSON types."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(item) for item in config]
    if isinstance(config, Path):
        return str(config)
    return config


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that change when any setting does (SHA-256 of canonical JSON)."""
    text = json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

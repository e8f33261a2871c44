"""ACES task files (`es-aces`), read by es-aces itself and said again as a Task; refused, with the line, where a Task cannot say the same.

What is translated: a trigger, with a range of values if any, the prediction at it, one labelled window of fixed length after it (with or
without a gap), and windows up to the prediction time whose counts of predicates are bounded. A window after the labelled one that asks for any
event becomes `censoring: observation_period`: es-aces leaves such rows out, here they are null, and an outcome that was seen counts although
nothing follows it.
"""

from __future__ import annotations

import math
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cehrxgpt import schema as s
from cehrxgpt.config import from_dict
from cehrxgpt.errors import ConfigError, TaskError
from cehrxgpt.patterns import as_pattern
from cehrxgpt.tasks.definition import Task
from cehrxgpt.tasks.words import RANGES

ANY_EVENT, RECORD_START, RECORD_END = "_ANY_EVENT", "_RECORD_START", "_RECORD_END"
_REGEX = re.compile(r"\^((?:[^\\.^$*+?{}\[\]|()]|\\[^\w\s])+)(\.\*)?(\$)?")
_OTHERWISE = "let es-aces label, and give its labels with --labels"
_DAY = 86_400.0


def is_aces(text: str) -> bool:
    """Is this YAML text an ACES task? Tasks of ours have no trigger."""
    return re.search(r"^trigger\s*:", text, re.MULTILINE) is not None


def load_aces(path: str | Path) -> Task:
    """A Task that says what an ACES file says.

    Raises:
        TaskError: es-aces is not installed, cannot read the file, or the file says what no Task can.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        return _Translation(_configuration(path, text), path, text).task()
    except RecursionError as error:
        raise TaskError(f"{path}: nested too deeply, or without end") from error


def _configuration(path: Path, text: str) -> Any:
    try:
        from aces.config import TaskExtractorConfig
    except ImportError as error:
        raise TaskError(f"{path}: an ACES task file, which es-aces reads; install it with: pip install 'cehrxgpt[aces]'") from error
    from bigtree.utils.exceptions import TreeError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        _check_circles(path, text)
        return TaskExtractorConfig.load(path)
    except (MarkedYAMLError, yaml.MarkedYAMLError) as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark is not None else ""
        raise TaskError(f"{path}:{line} es-aces cannot read it: {error.problem}") from error
    except TreeError as error:  # its nodes are the windows' ends
        raise TaskError(f"{path}: line {_lines(text)[('windows',)]}: windows that begin or end by one another, in a circle") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, YAMLError, yaml.YAMLError) as error:
        told = " ".join(str(error.args[0] if error.args else error).split())
        raise TaskError(f"{path}: es-aces cannot read it: {told}") from error


def _check_circles(path: Path, text: str) -> None:
    """Refuse predicates that ask for themselves: es-aces would follow them without end."""
    predicates = (yaml.safe_load(text).get("predicates") or {}).items()
    asks = {name: re.findall(r"\w+", str(one.get("expr")))[1:] for name, one in predicates if isinstance(one, dict)}  # and(...), or(...)
    try:
        TopologicalSorter(asks).prepare()
    except CycleError as error:
        name, *others = error.args[1]
        line = _lines(text)["predicates", name]
        raise TaskError(f"{path}: line {line}: predicate '{name}' asks for itself ({' in '.join([name, *others])})") from error


class _Translation:
    """One file's translation: the parsed configuration, and the lines for what has to be refused."""

    def __init__(self, config: Any, path: Path, text: str):
        self.config, self.path, self.lines = config, path, _lines(text)
        self.top = yaml.safe_load(text)

    def refuse(self, where: tuple[str, ...], what: str) -> NoReturn:
        while where and where not in self.lines:
            where = where[:-1]
        line = f" line {self.lines[where]}:" if where else ""
        raise TaskError(f"{self.path}:{line} {what}; {_OTHERWISE}")

    def task(self) -> Task:
        index, target = self.config.index_timestamp_window, self.config.label_window
        if index is None:
            self.refuse(("windows",), "no window has an index_timestamp, which says when the prediction is made")
        if target is None:
            self.refuse(("windows",), "no window has a label")
        self._check_static()
        when = self.config.windows[index].index_timestamp
        if self.place(index, when) != 0:
            self.refuse(("windows", index, when), "the prediction is not made at the trigger; an index of codes is asked when it is known")
        trigger = self.config.trigger.predicate
        if self.codes(trigger, ("trigger",)) == (s.DEATH,):
            self.refuse(("trigger",), "the trigger is death, after which nobody is asked about")
        gap, horizon = self._target(target)
        outcome = self.config.windows[target].label
        dies = self.codes(outcome, ("windows", target, "label")) == (s.DEATH,)
        criteria: dict[str, list[dict[str, Any]]] = {"inclusion": [], "exclusion": []}
        censored = False
        for name in self.config.windows:
            if name != target:
                censored |= self._window(name, close=gap + horizon, criteria=criteria)
        asked: dict[str, Any] = {"death": True} if dies else self._outcome(outcome)
        used = [trigger, *([] if dies else [one["concepts"] for one in asked.get("any", [asked])])]
        used += [one["concepts"] for part in criteria.values() for one in part]
        description = self.top.get("description")
        values = {
            "name": re.sub(r"[^A-Za-z0-9_.-]+", "_", self.path.stem),
            "description": " ".join(description.split())
            if isinstance(description, str)
            else f"{outcome} within {horizon / _DAY:g} days of {trigger}",
            "concept_sets": {name: {"codes": list(self.codes(name, ("predicates", name))), "descendants": False} for name in dict.fromkeys(used)},
            "index": self._one(trigger, ("trigger",)),
            "outcome": asked,
            "gap_days": gap / _DAY,
            "horizon_days": horizon / _DAY,
            "censoring": "observation_period" if censored else "closed_world",
        }
        try:
            return from_dict(Task, values | criteria, where=str(self.path))
        except ConfigError as error:
            key, *further = map(str, error.at or ("",))
            places = {"concept_sets": ("predicates", *further), "gap_days": ("windows", target, "start"), "horizon_days": ("windows", target, "end")}
            self.refuse(places.get(key, ("windows",)), str(error).removeprefix(f"{self.path}: "))

    def _check_static(self) -> None:
        for name, predicate in self.config.predicates.items():
            if predicate.static:
                block = "patient_demographics" if (("patient_demographics", name) in self.lines) else "predicates"
                self.refuse((block, name), f"predicate '{name}' is static (sex, race, ...), which no criterion here asks for")

    def _range(self, name: str) -> dict[str, float]:
        """The range of numbers that a plain predicate asks for; es-aces leaves a bound out unless it is said to be inside."""
        predicate = self.config.predicates[name]
        if not predicate.is_plain:
            return {}
        low, high = ("at_least" if predicate.value_min_inclusive else "above"), ("at_most" if predicate.value_max_inclusive else "below")
        bounds = {low: ("value_min", predicate.value_min), high: ("value_max", predicate.value_max)}
        for key, (said, value) in bounds.items():
            a_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (a_number and value in RANGES[key]):
                self.refuse(("predicates", name, said), f"predicate '{name}': {said} must be a number, {RANGES[key]}")
        return {key: float(value) for key, (_, value) in bounds.items() if value is not None}

    def _parts(self, name: str) -> list[str]:
        """The plain predicates of an `or(...)`; a plain one is its own."""
        predicate = self.config.predicates[name]
        return [name] if predicate.is_plain else [part for one in predicate.input_predicates for part in self._parts(one)]

    def _one(self, name: str, where: tuple[str, ...]) -> dict[str, Any]:
        """A predicate as one concept set, with a range of numbers if any."""
        self.codes(name, where)
        if self._of_values(name):
            self.refuse(where, f"predicate '{name}' is a union with values in it, which only an outcome may be")
        return {"concepts": name, **self._range(name)}

    def _outcome(self, name: str) -> dict[str, Any]:
        """The label: one concept set, or any of several where their numbers matter."""
        if not self._of_values(name):
            return {"concepts": name, **self._range(name)}
        return {"any": [{"concepts": part, **self._range(part)} for part in dict.fromkeys(self._parts(name))]}

    def _of_values(self, name: str) -> bool:
        """Is it a union of which some part asks for numbers?"""
        return not self.config.predicates[name].is_plain and any(self._range(part) for part in self._parts(name))

    def codes(self, name: str, where: tuple[str, ...]) -> tuple[str, ...]:
        """A predicate as codes and patterns, whatever their numbers."""
        if name in (ANY_EVENT, RECORD_START, RECORD_END):
            self.refuse(where, f"'{name}' is no set of codes")
        predicate, where = self.config.predicates[name], ("predicates", name)
        if not predicate.is_plain:
            if not predicate.is_or:
                self.refuse(where, f"predicate '{name}' asks for several things at the same instant ({predicate.expr.split('(')[0]})")
            return tuple(dict.fromkeys(code for part in predicate.input_predicates for code in self.codes(part, where)))
        if predicate.other_cols:
            self.refuse(where, f"predicate '{name}' asks for the column '{next(iter(predicate.other_cols))}'")
        return self._plain(name, predicate.code, where)

    def _plain(self, name: str, code: Any, where: tuple[str, ...]) -> tuple[str, ...]:
        if isinstance(code, dict) and isinstance(code.get("regex"), str):
            found = _REGEX.fullmatch(code["regex"])
            if found is None or (found[2] is None and found[3] is None and code["regex"].endswith("*")):
                self.refuse(where, f"predicate '{name}': of regular expressions only '^text', '^text.*' and '^text$' are understood")
            text = re.sub(r"\\(.)", r"\1", found[1])
            exact = found[2] is None and found[3] is not None
            return (as_pattern(text) if exact else f"{as_pattern(text)}*",)
        codes = (code.get("any") or []) if isinstance(code, dict) else [code]
        if not codes or not all(isinstance(one, str) for one in codes):
            self.refuse(where, f"predicate '{name}': expected a code, {{any: [codes]}} or {{regex: text}}")
        return tuple(map(as_pattern, codes))

    def place(self, window: str, end: str) -> float:
        """Seconds from the trigger to a window's start or end; infinite at the ends of the record."""
        config = self.config.windows[window]
        if end != config.root_node:
            base = self.place(window, config.root_node)
        else:
            base = 0.0 if config.referenced_event == ("trigger",) else self.place(*config.referenced_event)
        bound = config.start_endpoint_expr if end == "start" else config.end_endpoint_expr
        if bound is None:
            return base
        if hasattr(bound, "window_size"):
            return base + bound.window_size.total_seconds()
        if bound.end_event == f"-{RECORD_START}":
            return -math.inf
        if bound.end_event == RECORD_END:
            return math.inf
        self.refuse(("windows", window, end), f"window '{window}' {end}s at an event ('{bound.end_event.lstrip('-')}'), not at a fixed time")

    def _target(self, name: str) -> tuple[float, float]:
        """Gap and length of the labelled window, in seconds."""
        config, opens, closes = self.config.windows[name], self.place(name, "start"), self.place(name, "end")
        if opens < 0 or opens == math.inf:
            self.refuse(("windows", name, "start"), f"the labelled window '{name}' begins before the prediction")
        if not opens < closes < math.inf:
            self.refuse(("windows", name, "end"), f"the labelled window '{name}' has no length in time")
        if config.start_inclusive:
            self.refuse(
                ("windows", name, "start_inclusive"), f"window '{name}' counts what happens at its start; an event at the prediction is input"
            )
        if not config.end_inclusive:
            self.refuse(("windows", name, "end_inclusive"), f"window '{name}' leaves out what happens at its end, which counts here")
        if config.has:
            self.refuse(("windows", name, "has"), f"window '{name}' has a label and a condition, which looks ahead")
        return opens, closes - opens

    def _window(self, name: str, *, close: float, criteria: dict[str, list[dict[str, Any]]]) -> bool:
        """Add what a window asks for to the criteria; is it the one that asks for any event after the labelled window?"""
        config, opens, closes = self.config.windows[name], self.place(name, "start"), self.place(name, "end")
        asked, where = {key: bounds for key, bounds in config.has.items() if bounds != (0, None)}, ("windows", name)
        if closes > 0:
            if not asked:
                return False  # a scaffold for others
            if opens == close and closes == math.inf and asked == {ANY_EVENT: (1, None)}:
                return True
            self.refuse((*where, "has"), f"window '{name}' has a condition after the prediction, which looks ahead")
        if config.index_timestamp and not config.end_inclusive and closes == 0:
            self.refuse((*where, "end_inclusive"), f"window '{name}' leaves out what happens at the prediction, which is input here")
        if not asked:
            return False
        if closes < 0:
            self.refuse((*where, "end"), f"window '{name}' has a condition and ends before the prediction")
        if not config.end_inclusive:
            self.refuse((*where, "end_inclusive"), f"window '{name}' leaves out what happens at the prediction, which is input here")
        if opens == -math.inf and not config.start_inclusive:
            self.refuse((*where, "start_inclusive"), f"window '{name}' leaves out the first event of the record, which counts here")
        if opens > -math.inf and (config.start_inclusive or opens % _DAY or opens == 0):
            self.refuse((*where, "start"), f"window '{name}' must begin whole days before the prediction, with start_inclusive: False")
        within = None if opens == -math.inf else round(-opens / _DAY)
        for predicate, (least, most) in asked.items():
            self._bounds(predicate, least, most, within, (*where, "has", predicate), criteria)
        return False

    def _bounds(
        self,
        predicate: str,
        least: int | None,
        most: int | None,
        within: int | None,
        where: tuple[str, ...],
        criteria: dict[str, list[dict[str, Any]]],
    ) -> None:
        """A predicate's least and greatest count as criteria: at least `least`, and not `most + 1`."""
        if predicate in (ANY_EVENT, RECORD_START, RECORD_END):
            self.refuse(where, f"'{predicate}' is counted, and is no set of codes")
        counts = {"inclusion": least or None, "exclusion": None if most is None else most + 1}
        if not self.config.predicates[predicate].is_plain and any(count not in (None, 1) for count in counts.values()):
            self.refuse(where, f"predicate '{predicate}' is counted by the instant, where events are counted here")
        for part, count in counts.items():
            if count is not None:
                criteria[part].append({**self._one(predicate, where), "count": count, **({} if within is None else {"within_days": within})})


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Line of each key, by its path."""
    found: dict[tuple[str, ...], int] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*path, key.value)] = key.start_mark.line + 1
                walk(value, (*path, key.value))

    walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found

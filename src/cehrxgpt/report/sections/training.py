"""How the model learned: loss, speed, learning rate, and what the model is."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from cehrxgpt.report.markup import (
    Markup,
    Section,
    count,
    definitions,
    details,
    figure,
    is_number,
    join,
    legend,
    number,
    paragraph,
    readable,
)
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.sections.data import flatten, scalar
from cehrxgpt.report.svg import Axis, Chart, grid, responsive

# -- training ---------------------------------------------------------------------------------------------------------------------


def parameters(run: RunFolder, folder: str = "model") -> int | None:
    """Number of weights, read from the header of `model.safetensors`."""
    path = run.root / folder / "model.safetensors"
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(size, 1 << 24)))
    except (OSError, ValueError, struct.error):
        return None
    if not isinstance(header, dict):
        return None
    shapes = [entry.get("shape", []) for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict)]
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)


def _find(row: dict[str, Any], *names: str) -> float | None:
    """The first of `names` that is a number in the row, also inside a nested mapping `a.b`."""
    for name in names:
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        value = _total(value)
        if is_number(value):
            return float(value)
    return None


_TRAIN = ("loss", "train_loss", "train.loss", "train")
_TUNING = ("tuning_loss", "tuning.loss", "tuning", "validation_loss")


def _total(value: Any) -> Any:
    """A loss per objective as their sum (all weights are one unless a recipe says otherwise); a plain number as it is."""
    if isinstance(value, dict):
        known = [float(part) for part in value.values() if is_number(part)]
        return sum(known) if known else None
    return value


def curve(log: list[dict[str, Any]], *names: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the first of `names` that a line of the log carries."""
    pairs = {}
    for index, row in enumerate(log):
        step, value = _find(row, "step"), _find(row, *names)
        if value is not None:
            pairs[index if step is None else step] = value  # a resumed run repeats steps: the later line holds
    steps = sorted(pairs)
    return steps, [pairs[step] for step in steps]


def thin(xs: list[float], ys: list[float], limit: int = 400) -> tuple[list[float], list[float]]:
    """At most about `limit` points: means of neighbours."""
    if len(xs) <= limit:
        return xs, ys
    groups = np.array_split(np.arange(len(xs)), limit)
    x, y = np.asarray(xs), np.asarray(ys)
    return [float(x[group].mean()) for group in groups], [float(y[group].mean()) for group in groups]


def training_section(run: RunFolder) -> Section:
    """Loss of training and tuning over steps, and speed.

    Raises:
        MissingInputs: there is no `model/train.jsonl`.
    """
    log = run.json_lines("model/train.jsonl")
    steps, losses = curve(log, *_TRAIN)
    tuning_steps, tuning = curve(log, *_TUNING)
    if not steps and not tuning_steps:
        raise MissingInputs("model/train.jsonl with at least one loss")
    parts: list[Any] = []
    last = max([*steps, *tuning_steps])
    sentence = f"{count(last)} steps. "
    if losses:
        end = float(np.mean(losses[-max(1, len(losses) // 20) :]))
        sentence += f"Training loss went from {number(losses[0], 2)} to {number(end, 2)} (mean of the last twentieth). "
    if tuning:
        best = int(np.argmin(tuning))
        sentence += f"The tuning loss was lowest at step {count(tuning_steps[best])}: {number(tuning[best])}."
    parts.append(paragraph(sentence))
    parts.append(legend([("training", "c1"), ("tuning", "c2 dot")]) if tuning else legend([("training", "c1")]))
    drawn = responsive(lambda width: _loss_chart(width, (steps, losses), (tuning_steps, tuning)), sentence)
    parts.append(
        figure(
            drawn,
            "Mean loss per token, in nats. Dots: evaluations on the tuning split. A tuning curve that rises while training falls is overfitting.",
        )
    )
    charts = []
    for title, names, unit in (
        ("Speed", ("tokens_per_second", "speed.tokens_per_second"), "tokens per second"),
        ("Learning rate", ("lr", "learning_rate"), "learning rate"),
    ):
        xs, ys = thin(*curve(log, *names))
        if len(xs) > 1:
            charts.append(
                figure(
                    _small_curve(xs, ys, unit).svg(f"{title} over steps"),
                    f"{title}: median {number(float(np.median(ys)), 3 if max(ys) >= 1 else 6)}.",
                )
            )
    parts.append(grid(charts))
    parts += _model_facts(run)
    return Section("training", "Training", join(parts))


def _loss_chart(width: int, train: tuple[list[float], list[float]], tuning: tuple[list[float], list[float]]) -> Chart:
    xs, ys = thin(*train)
    everything = np.array([*ys, *tuning[1]])
    low, high = float(everything.min()), float(everything.max())
    chart = Chart(
        width,
        300,
        Axis.linear(0, max([*xs, *tuning[0], 1]), target=6 if width > 500 else 4),
        Axis.linear(min(low, high - 0.2), high, snap=True),
        x_title="step",
        y_title="loss",
    )
    chart.line(xs, ys, "c1 thin")
    chart.line(*tuning, "c2")
    if len(tuning[0]) <= 100:
        chart.dots(*tuning, "c2 full")
    return chart


def _small_curve(xs: list[float], ys: list[float], unit: str) -> Chart:
    chart = Chart(
        360,
        190,
        Axis.linear(0, max(xs), target=4),
        Axis.linear(0, max([*ys, 1e-12]), target=3, snap=True),
        x_title="step",
        y_title=unit,
        margin=(26, 12, 40, 58),
    )
    chart.line(xs, ys, "c3 thin")
    return chart


def _model_facts(run: RunFolder) -> list[Markup]:
    config = run.json("model/config.json")
    weights = parameters(run)
    pairs = [("parameters", count(weights))] if weights else []
    if config:
        pairs += [(readable(name), scalar(value)) for name, value in flatten(config)[:40]]
    return [details("The model's configuration", definitions(pairs))] if pairs else []

"""What the model reads, and how it learned: vocabulary, lengths, what was out of vocabulary; loss, speed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

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
    percent,
    readable,
    shorten,
    table,
    tag,
)
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.sections.data import flatten, log_histogram
from cehrxgpt.report.svg import Axis, Chart, grid, responsive

# Twin of timeline.kinds.Kind (the report reads the file, not the package); the numbers are part of the stored vocabulary.
_KINDS = {
    "prompt": (1, 2, 3, 4, 5, 6, 7), "visit structure": (8, 9, 10, 11, 12, 13), "time between visits": (14, 15, 16), "time inside visits": (17, 18),
    "plain codes": (19,), "codes with a value bin": (20,), "codes with a category": (21,), "death and end": (22, 23),
}  # fmt: skip


def vocabulary_section(run: RunFolder) -> Section:
    """Vocabulary and sequence lengths.

    Raises:
        MissingInputs: there is no token store.
    """
    facts = run.json("timeline/tokenize.json")
    vocabulary = run.parquet("timeline/vocabulary.parquet", ("token", "kind"))
    lengths = _lengths(run.root / "timeline")
    if facts is None and vocabulary is None and lengths is None:
        raise MissingInputs("timeline/tokenize.json, timeline/vocabulary.parquet")
    parts: list[Any] = [
        paragraph("Each history is a sequence of tokens: a prompt of year, age, gender and race, then visits, codes, value bins and elapsed time.")
    ]
    charts = []
    if lengths is not None and len(lengths):
        q = [float(np.quantile(lengths, share)) for share in (0.5, 0.9)]
        caption = f"Tokens per subject: median {count(q[0])}, nine in ten at most {count(q[1])}; {count(float(lengths.sum()))} tokens in all."
        charts.append(figure(log_histogram(lengths, "tokens").svg(caption), caption))
    if vocabulary is not None:
        charts.append(_kinds(vocabulary))
    parts.append(grid(charts))
    if facts is not None:
        parts.append(_facts(facts))
        parts += _dropped(run, facts)
    return Section("vocabulary", "Vocabulary and sequences", join(parts))


def _kinds(vocabulary: pl.DataFrame) -> Markup:
    known = dict(vocabulary.group_by(pl.col("kind").cast(pl.Int64)).len().iter_rows())
    rows = [[name, count(sum(known.get(kind, 0) for kind in kinds))] for name, kinds in _KINDS.items()]
    return table(["Kind of token", "Tokens"], [*rows, ["all", count(vocabulary.height)]], caption="The vocabulary by kind", class_="sum")


def _lengths(folder: Path) -> Any:
    """Tokens per subject from the store's `offsets`, or None."""
    for name in ("offsets.npy", "arrays/offsets.npy"):
        path = folder / name
        if path.is_file():
            try:
                offsets = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError):
                return None
            return np.diff(np.asarray(offsets, dtype=np.int64))
    path = folder / "offsets.bin"
    if path.is_file() and path.stat().st_size % 8 == 0:
        return np.diff(np.fromfile(path, dtype=np.int64))
    return None


def _facts(facts: dict[str, Any]) -> Markup:
    simple = [(readable(name), value) for name, value in facts.items() if is_number(value) or isinstance(value, str)]
    return (
        definitions((name, percent(value) if "share" in name and is_number(value) else _scalar(value)) for name, value in simple[:24])
        if simple
        else Markup("")
    )


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or not is_number(value):
        return shorten(str(value), 160)
    return count(value) if float(value).is_integer() else number(value, 4)


def _dropped(run: RunFolder, facts: dict[str, Any]) -> list[Markup]:
    """Tables of the lists in `tokenize.json`: codes out of vocabulary, counts of what quantising changed."""
    found = []
    for key, value in facts.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            heads = list(dict.fromkeys(column for row in value[:15] for column in row))
            body = [[_cell(run, column, row.get(column)) for column in heads] for row in value[:15]]
            inner = table([readable(head) for head in heads], body, caption=readable(key), left=1)
        elif isinstance(value, dict) and value:
            inner = table(["What", "Value"], [[readable(name), _scalar(item)] for name, item in flatten(value)[:60]], caption=readable(key), left=1)
        else:
            continue
        found.append(details(readable(key).capitalize(), inner))
    return found


def _cell(run: RunFolder, column: str, value: Any) -> Any:
    if column == "code" and isinstance(value, str):
        name = run.name(value)
        return join([shorten(name, 60), " ", tag("code", shorten(value, 60))]) if name != value else tag("code", shorten(value, 60))
    return percent(value) if "share" in column and is_number(value) else _scalar(value) if value is not None else None


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
        pairs += [(readable(name), _scalar(value)) for name, value in flatten(config)[:40]]
    return [details("The model's configuration", definitions(pairs))] if pairs else []

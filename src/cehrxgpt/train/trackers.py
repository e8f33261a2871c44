"""TensorBoard, W&B and MLflow, through Accelerate's tracker classes: losses, rates and speeds go there and nothing else.

TensorBoard is on wherever it is installed; its files stand beside the model, under `tensorboard/<model>/`, and stay when the training is
done. The others are on when a recipe names them: W&B then uses the network, unless `WANDB_MODE=offline` says otherwise, and MLflow what
`MLFLOW_TRACKING_URI` says, by default a folder of the machine. Loaded only when a training begins.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cehrxgpt.errors import ConfigError

PROJECT = "cehrxgpt"
_TRACKED = ("train", "tuning")  # kinds of lines of `train.jsonl`; others name subjects


def chosen(names: Sequence[str] | None) -> list[str]:
    """The trackers that a recipe asks for; None: TensorBoard where it is installed.

    Raises:
        ConfigError: one is not installed.
    """
    if names is None:
        return [name for name in ("tensorboard",) if importlib.util.find_spec(name) is not None]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"trackers: {name} is not installed; install it (pip install {name}) or leave it out")
    return list(dict.fromkeys(names))


def figures(line: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of `train.jsonl` by name, as `train/loss/next_token`; nothing for lines that are no measurements."""
    if line["kind"] not in _TRACKED:
        return {}
    found = {}
    for name, value in line.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            if name != "step" and isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
                found["/".join(filter(None, (line["kind"], name, inner)))] = float(number)
    return found


class Trackers:
    """The trackers of one run.

    Args:
        names: see `chosen`.
        out: the model that will be; its name is the run's, and TensorBoard's files stand beside it.
    """

    def __init__(self, names: Sequence[str] | None, out: Path):
        self.names, self.out = chosen(names), out
        self._open: list[Any] = []

    def __str__(self) -> str:
        return f"the trackers of {self.out} ({', '.join(self.names)})"

    def start(self, step: int) -> None:
        """Open them; what an earlier attempt wrote after `step` is void."""
        if self.names:
            from accelerate import PartialState

            PartialState()  # Accelerate's trackers ask it which rank they are
        self._open = [self._make(name, step) for name in self.names]
        for tracker in self._open:
            tracker.start()

    def _make(self, name: str, step: int) -> Any:
        from accelerate import tracking

        folder = self.out.parent
        makers: dict[str, Callable[[], Any]] = {
            "tensorboard": lambda: tracking.TensorBoardTracker(self.out.name, folder / "tensorboard", purge_step=step + 1 if step else 0),
            # W&B would also send what is printed and the code that runs.
            "wandb": lambda: tracking.WandBTracker(
                PROJECT, name=self.out.name, dir=str(folder), save_code=False, settings={"console": "off", "disable_git": True}
            ),
            "mlflow": lambda: tracking.MLflowTracker(PROJECT, run_name=self.out.name),
        }
        return makers[name]()

    def log(self, line: dict[str, Any]) -> None:
        """Pass on the figures of a line of `train.jsonl`."""
        values = figures(line) if self._open else {}
        for tracker in self._open:
            tracker.log(values, step=line["step"])

    def finish(self) -> None:
        """Close them."""
        for tracker in self._open:
            tracker.finish()
        self._open = []

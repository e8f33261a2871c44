"""The training stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt.atomic import refuse_existing
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.console import Progress
from cehrxgpt.stages.tables import Settings, silent

if TYPE_CHECKING:
    from collections.abc import Callable


def training_config(recipe: str, overrides: Settings) -> Any:
    """A training recipe with its overrides (None = as the recipe says)."""
    from cehrxgpt.train.config import TrainConfig, load_recipe

    given = {key: value for key, value in overrides.items() if value is not None}
    return from_dict(TrainConfig, {**to_dict(load_recipe(recipe)), **given}, where=f"recipe {recipe}")


def pretrain(
    timeline: Path,
    out: Path,
    recipe: str,
    *,
    overrides: Settings,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a model on a token store."""
    from cehrxgpt.train.loop import pretrain as run

    refuse_existing(out, force=force or resume, inputs=[timeline])
    return to_dict(run(timeline, out, training_config(recipe, overrides), resume=resume, force=force, progress=progress, say=say))

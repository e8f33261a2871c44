"""The objectives' heads in a model folder, beside the decoder that they were trained with.

    heads.json           settings and facts of each objective (tasks, hazard pieces)
    heads.safetensors    their weights, as `<objective>.<parameter>`

Files of their own, so that `AutoModel` finds in `model.safetensors` what it knows and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cehrxgpt.config import to_dict
from cehrxgpt.errors import InputError, MismatchError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import read_json
from cehrxgpt.objectives import build, read_settings
from cehrxgpt.timeline.vocabulary import Vocabulary

HEADS_FILE = "heads.json"
HEAD_WEIGHTS_FILE = "heads.safetensors"


def save_heads(folder: Path, objectives: nn.ModuleDict, settings: Mapping[str, Any], facts: Mapping[str, dict[str, Any]]) -> None:
    """Write the objectives of a training into an existing model folder."""
    said = {name: {"settings": to_dict(one), "facts": facts.get(name, {})} for name, one in settings.items()}
    (folder / HEADS_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in objectives.state_dict().items()}, folder / HEAD_WEIGHTS_FILE)


def predicts_demographics(folder: str | Path) -> bool:
    """Whether the model there was trained to say who there is, and not only what follows for whom."""
    return bool(_said(folder).get("next_token", {}).get("settings", {}).get("demographics", True))


def trained_with(folder: str | Path, objective: str) -> bool:
    """Whether the model there has the objective's head; its weights are not read."""
    return objective in _said(folder)


def _said(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / HEADS_FILE
    return read_json(path) if path.exists() else {}


def _build_heads(path: Path, vocabulary: Vocabulary, shape: ModelConfig) -> nn.ModuleDict:
    said = read_json(path)
    try:
        settings = read_settings({name: one["settings"] for name, one in said.items()})
        return build(settings, {name: one["facts"] for name, one in said.items()}, vocabulary, shape)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); copy the model again") from error


def load_heads(folder: str | Path, vocabulary: Vocabulary, shape: ModelConfig) -> nn.ModuleDict:
    """The objectives that a model was trained with, by name, in evaluation mode; empty for a model of an earlier release.

    Raises:
        InputError: a file is damaged.
        MismatchError: weights and settings do not belong together.
    """
    folder = Path(folder)
    if not (folder / HEADS_FILE).exists():
        return nn.ModuleDict()
    heads = _build_heads(folder / HEADS_FILE, vocabulary, shape)
    try:
        heads.load_state_dict(load_file(folder / HEAD_WEIGHTS_FILE))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / HEAD_WEIGHTS_FILE}: missing, truncated or damaged; copy the model again") from error
    except RuntimeError as error:
        raise MismatchError(f"{folder}: {HEADS_FILE} and {HEAD_WEIGHTS_FILE} do not fit each other; copy both from one model") from error
    return heads.eval()

"""A model in a folder: saved for us, and readable by Hugging Face `AutoModel`.

    config.json             shape of the decoder, vocabulary fingerprint; `model_type` "cehrxgpt"
    model.safetensors       weights, named as in `CehrxgptModel` (the decoder under "decoder.")
    vocabulary.parquet      the tokens
    population.json, ...    further JSON files that the caller gives

Nothing here unpickles: safetensors, JSON and Parquet hold data only. transformers takes seconds to import, so it is imported by
`register` and never by loading or saving:

    import cehrxgpt.model.hub as hub
    hub.register()
    model = transformers.AutoModel.from_pretrained(folder)      # CehrxgptModel; model.decoder is the Decoder
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import cehrxgpt
from cehrxgpt.config import from_dict
from cehrxgpt.errors import InputError, MismatchError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.timeline.vocabulary import Vocabulary

MODEL_TYPE = "cehrxgpt"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
POPULATION_FILE = "population.json"
PREFIX = "decoder."
_ATTRIBUTE_MAP = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "max_position_embeddings": "context",
}
"""What transformers calls our settings: `config.hidden_size` answers `width`."""


@dataclass(frozen=True)
class Loaded:
    """A model as `load_model` gives it.

    Attributes:
        decoder: in evaluation mode.
        vocabulary: its own; events are always encoded with it.
        config: shape of the decoder.
        folder: where it came from.
        population: `population.json`, where there is one.
    """

    decoder: Decoder
    vocabulary: Vocabulary
    config: ModelConfig
    folder: Path
    population: dict[str, Any] | None = None

    def __repr__(self) -> str:
        shape = f"{self.config.width} wide, {self.config.layers} layers, context {self.config.context:,}, {len(self.vocabulary):,} tokens"
        return f"Loaded({str(self.folder)!r}: {shape})"


def save_model(folder: str | Path, decoder: Decoder, vocabulary: Vocabulary, extra: Mapping[str, Any] | None = None) -> None:
    """Write a model into an existing folder (make it with `atomic.atomic_path(..., folder=True)`).

    Args:
        folder: is written into.
        decoder: its weights are saved as they are, in their own precision.
        vocabulary: must have the decoder's size.
        extra: further JSON files by name, e.g. {"population.json": {...}}.

    Raises:
        MismatchError: decoder and vocabulary differ in size.
    """
    folder = Path(folder)
    _check_size(decoder.config, vocabulary, where=str(folder))
    weights = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    facts = {
        "model_type": MODEL_TYPE,
        "architectures": ["CehrxgptModel"],
        "dtype": str(decoder.embedding.weight.dtype).removeprefix("torch."),
        "cehrxgpt_version": cehrxgpt.__version__,
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "tie_word_embeddings": decoder.config.tie,
        "pad_token_id": 0,
        **decoder.config.to_dict(),
    }
    _write_json(folder / CONFIG_FILE, facts)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    vocabulary.save(folder)
    for name, value in (extra or {}).items():
        _write_json(folder / name, value)


def load_model(folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Loaded:
    """Read what `save_model` wrote.

    Args:
        folder: of the model.
        dtype: cast the weights; None keeps what was saved.
        device: where the decoder is to be.

    Raises:
        InputError: a file is missing or damaged, or the folder holds another kind of model.
        MismatchError: weights, configuration and vocabulary do not belong together.
    """
    folder = Path(folder)
    facts = _read_config(folder)
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    config = from_dict(ModelConfig, {name: facts[name] for name in names if name in facts}, where=str(folder / CONFIG_FILE))
    vocabulary = Vocabulary.load(folder)
    _check_size(config, vocabulary, where=str(folder))
    if facts.get("vocabulary_fingerprint", vocabulary.fingerprint) != vocabulary.fingerprint:
        raise MismatchError(f"{folder}: the vocabulary is not the one this model was trained with; copy both from the same model folder")
    with torch.device("meta"):  # no random numbers are drawn only to be thrown away
        decoder = Decoder(config)
    _load_weights(decoder, folder / WEIGHTS_FILE, dtype)
    population = read_json(folder / POPULATION_FILE) if (folder / POPULATION_FILE).exists() else None
    return Loaded(decoder.to(device).eval(), vocabulary, config, folder, population)


def _load_weights(decoder: Decoder, path: Path, dtype: torch.dtype | None) -> None:
    if not path.exists():
        raise InputError(f"{path.parent}: no {WEIGHTS_FILE}; give a folder made by pretrain")
    try:
        with safe_open(path, framework="pt") as file:
            saved = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file (truncated or damaged?); copy the model again") from error
    expected = decoder.state_dict()
    for name in sorted(expected.keys() ^ saved.keys()):
        what = "lacks" if name in expected else "has an unknown"
        raise MismatchError(f"{path}: {what} weight '{name}'; {CONFIG_FILE} and {WEIGHTS_FILE} must come from the same model")
    for name, tensor in saved.items():
        if tensor.shape != expected[name].shape:
            raise MismatchError(f"{path}: weight '{name}' is {tuple(tensor.shape)}; {CONFIG_FILE} asks for {tuple(expected[name].shape)}")
    decoder.load_state_dict(saved, assign=True)
    if dtype is not None:
        decoder.to(dtype)


def _check_size(config: ModelConfig, vocabulary: Vocabulary, *, where: str) -> None:
    if config.vocabulary_size != len(vocabulary):
        raise MismatchError(
            f"{where}: the model knows {config.vocabulary_size:,} tokens, the vocabulary has {len(vocabulary):,}; they must come from one folder"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).exists():
        raise InputError(f"{folder}: no {CONFIG_FILE}; give a folder made by pretrain")
    facts = read_json(folder / CONFIG_FILE)
    if facts.get("model_type") != MODEL_TYPE:
        raise InputError(f"{folder / CONFIG_FILE}: a model of type '{facts.get('model_type')}'; expected '{MODEL_TYPE}'")
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model's folder.

    Raises:
        InputError: it is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON (truncated or damaged?)") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@functools.cache
def register() -> type:
    """Teach transformers' `AutoConfig` and `AutoModel` about these folders; returns the model class. Imports transformers."""
    from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput

    defaults = ModelConfig(vocabulary_size=1).to_dict()

    class CehrxgptConfig(PretrainedConfig):
        """The settings of `ModelConfig` under their own names, and under those that transformers uses."""

        model_type = MODEL_TYPE
        attribute_map = _ATTRIBUTE_MAP

        def __init__(self, **settings: Any):
            settings = {
                name: settings.pop(theirs) if theirs in settings else settings.get(name) for theirs, name in _ATTRIBUTE_MAP.items()
            } | settings
            for name, default in defaults.items():
                given = settings.pop(name, None)
                setattr(self, name, default if given is None else given)
            super().__init__(**settings)

        def shape(self) -> ModelConfig:
            """As the decoder takes it."""
            return ModelConfig(**{name: getattr(self, name) for name in defaults})

    class CehrxgptModel(PreTrainedModel):
        """The decoder behind transformers' interface."""

        config_class = CehrxgptConfig
        base_model_prefix = "decoder"

        def __init__(self, config: CehrxgptConfig):
            super().__init__(config)
            self.decoder = Decoder(config.shape())
            self.post_init()

        def _init_weights(self, module: torch.nn.Module) -> None:
            """The decoder has initialised itself."""

        def forward(
            self, input_ids: torch.Tensor, age_minutes: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
        ) -> BaseModelOutput:
            """`attention_mask` int[B, T]: 1 for tokens, 0 for padding at the right."""
            position = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
            hidden = self.decoder(input_ids, position=position, age_minutes=age_minutes, segment_id=attention_mask)
            return BaseModelOutput(last_hidden_state=hidden)

    AutoConfig.register(MODEL_TYPE, CehrxgptConfig)
    AutoModel.register(CehrxgptConfig, CehrxgptModel)
    return CehrxgptModel

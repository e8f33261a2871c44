"""What is done to the decoder's blocks before training: compiling them, and not keeping what they compute."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import partial
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint

from cehrxgpt.errors import ConfigError
from cehrxgpt.model.transformer import Decoder

_WITHOUT_ATTENTION = ("attention_norm", "feedforward_norm", "feedforward")


def should_compile(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """Whether `compile` of a recipe means yes here: `auto` is on CUDA, where it pays, if what it takes is installed.

    Raises:
        ConfigError: it is asked for and there is no compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
    if setting == "auto":
        return device.type == "cuda" and compiler and importlib.util.find_spec("triton") is not None
    if setting and not compiler:
        raise ConfigError("compile: true needs a C++ compiler, g++ or what CXX names; install one, or use compile: auto")
    return setting


def prepare_blocks(decoder: Decoder, *, compiled: bool, packed: bool, checkpointed: bool) -> None:
    """Change each block's forward pass in place; its weights keep their names.

    Args:
        compiled: by `torch.compile`, all blocks by one piece of code, with sizes left open.
        packed: whether rows hold several documents. What is compiled then leaves out attention, whose code would follow from how many there are.
        checkpointed: a block's inner results are computed again in the backward pass instead of being kept; the losses are the same.
    """
    for block in decoder.blocks:
        for part in [block.get_submodule(name) for name in _WITHOUT_ATTENTION] if packed else [block]:
            if compiled:
                part.forward = torch.compile(part.forward, dynamic=True)
        if checkpointed:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)

"""`pretrain`: a token store in, a model folder out, resumable in between.

A run is a function of (store, settings): one that was cut off and resumed gives bit for bit what the whole one gives, on a CPU with
the same number of threads (unless `max_minutes` is set: time does not repeat).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cehrxgpt.atomic import atomic_path, refuse_existing, write_json
from cehrxgpt.config import fingerprint, from_dict, to_dict
from cehrxgpt.errors import MismatchError, OutputExistsError
from cehrxgpt.manifest import versions
from cehrxgpt.model.hub import save_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.heads import save_heads
from cehrxgpt.store.format import POPULATION_FILE, TokenStore
from cehrxgpt.store.loader import READING
from cehrxgpt.train import checkpoint
from cehrxgpt.train.config import UNDECISIVE, TrainConfig, load_recipe
from cehrxgpt.train.distributed import connect
from cehrxgpt.train.journal import LOG_FILE, Say, silent
from cehrxgpt.train.summary import TrainSummary
from cehrxgpt.train.trackers import Trackers
from cehrxgpt.train.trainer import Progress, Trainer

MANIFEST_FILE = "manifest.json"


def pretrain(
    store_folder: str | Path,
    out: str | Path,
    config: TrainConfig | str | Path,
    *,
    steps: int | None = None,
    resume: bool = False,
    force: bool = False,
    start: Decoder | None = None,
    progress: Progress | None = None,
    say: Say = silent,
) -> TrainSummary:
    """Train a model on the `train` split of a token store and keep the weights that are best on its `tuning` split.

    Args:
        store_folder: made by `write_store`.
        out: MODEL folder to be; it appears whole, at the end. Checkpoints stand beside it meanwhile and go when it is there.
        config: settings, or the name or file of a recipe.
        steps: optimiser steps, instead of the recipe's.
        resume: go on from the newest whole checkpoint, where there is one; a finished `out` of the same settings is left as it is.
        force: replace `out`, and throw away checkpoints of other settings.
        start: weights to begin with instead of new ones; its shape must be the one that `config.model` and the store ask for.
        progress: see `Progress`.
        say: called with one line where something should be known that no figure shows: a damaged checkpoint, a step that was skipped.

    Raises:
        OutputExistsError: `out`, or an interrupted training for it, is there and neither `resume` nor `force` says what to do.
        MismatchError: the checkpoints to resume are of other settings or another store.
        TrainingError: too many losses were not finite.
        StorageError: the disk is full or cannot be written; checkpoints that were written are kept.
        KeyboardInterrupt: SIGTERM or Ctrl-C; the step under way was finished and saved, and the message says where it stands.
    """
    out = Path(out)
    config = config if isinstance(config, TrainConfig) else load_recipe(config)
    config = from_dict(TrainConfig, {**to_dict(config), **({} if steps is None else {"steps": steps})}, where="training settings")
    store = TokenStore(store_folder)
    settings = {name: value for name, value in to_dict(config).items() if name not in UNDECISIVE}
    decisive = {"config": settings, "store": store.fingerprint, "vocabulary": store.vocabulary.fingerprint, "reading": READING}
    key = fingerprint(decisive if start is None else {**decisive, "start": weights_fingerprint(start)})
    trackers = Trackers(config.trackers, out)
    folder = checkpoint.training_folder(out)
    ranks = connect(config.device)
    done = ranks.first_does(lambda: _begin(out, folder, key, store.folder, resume=resume, force=force))
    if done is not None:
        return TrainSummary(**done)
    trainer = Trainer(store, config, folder, key, progress, start, say, trackers, ranks)
    summary = trainer.run()
    try:
        ranks.first_does(lambda: _publish(out, trainer, summary, force=force))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"training is done, all {summary.steps:,} steps, and saved; --resume writes the model") from None
    return summary


def _begin(out: Path, folder: Path, key: str, store: Path, *, resume: bool, force: bool) -> dict[str, Any] | None:
    """See that the way is free: the figures of a model that is there already and was asked for again, or None."""
    if resume and (done := _finished(out, key)) is not None:
        return asdict(done)
    refuse_existing(out, force=force, inputs=[store])
    _clear(folder, key, resume=resume, force=force)
    return None


def weights_fingerprint(decoder: Decoder) -> str:
    """Sixteen hex digits of a decoder's weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(decoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finished(out: Path, key: str) -> TrainSummary | None:
    """The summary of a model that was trained with this very key."""
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
        known = {field.name for field in fields(TrainSummary)}
        whole = manifest["outputs"] == sizes(out)
        figures = {name: value for name, value in manifest["figures"].items() if name in known}
        return TrainSummary(**figures) if manifest["key"] == key and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of a model but the manifest."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE}


def _clear(folder: Path, key: str, *, resume: bool, force: bool) -> None:
    """Decide what becomes of the checkpoints of an earlier, interrupted training."""
    found, damaged = checkpoint.newest(folder)
    same = found is not None and found.state.get("key") == key
    if found is not None and not force:
        if not resume:
            raise OutputExistsError(
                f"an interrupted training stands at step {found.step} in {folder}; give --resume to go on or --force to begin anew"
            )
        if not same:
            raise MismatchError(f"{folder}: checkpoints of other settings or another token store; give the same ones, or --force to begin anew")
    if not (resume and (same or (found is None and damaged))):  # the trainer says that none is whole
        checkpoint.discard(folder)


def _publish(out: Path, trainer: Trainer, summary: TrainSummary, *, force: bool) -> None:
    """Write the MODEL folder, whole or not at all; the checkpoints go when it is there."""
    store = trainer.store
    manifest: dict[str, Any] = {
        "stage": "pretrain",
        "key": trainer.key,
        "settings": to_dict(trainer.config),
        "inputs": {"store": store.fingerprint, "vocabulary": store.vocabulary.fingerprint},
        "versions": versions(),
        "figures": asdict(summary),
    }
    extra = {} if store.population is None else {POPULATION_FILE: store.population}
    with atomic_path(out, force=force, folder=True) as folder:
        try:
            save_model(folder, trainer.decoder, store.vocabulary, extra)
            save_heads(folder, trainer.objectives, trainer.settings, trainer.facts)
        except SafetensorError as error:  # how it says that the disk is full
            raise OSError(str(error)) from error
        shutil.copyfile(trainer.journal.path, folder / LOG_FILE)
        manifest["outputs"] = sizes(folder)
        write_json(folder / MANIFEST_FILE, manifest)
    shutil.rmtree(trainer.folder, ignore_errors=True)

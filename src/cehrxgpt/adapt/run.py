"""`adapt`: a model and another data set in, a model for both out.

    1. expand     the vocabulary by what the new data's training split brings (`expand`)
    2. grow       the decoder, so that old predictions hardly move (`grow`)
    3. tokenize   the new data with it; with `replay`, histories of the old data beside them (ids are the same in both)
    4. train      from there with the new tokens' bias released, by the recipe, early stopping on the new data's tuning split (`train`)
    5. report     what was known, gained, forgotten, and how values drifted (`transfer`)

Intermediate results stand in `.<out>.adapting/` beside the output; an interrupted run goes on with `resume`. Nothing appears at `out` before
everything is done.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cehrxgpt.adapt.expand import expand
from cehrxgpt.adapt.grow import NEW_MASS, grow, release
from cehrxgpt.adapt.transfer import Models, Transfer, report
from cehrxgpt.atomic import atomic_path, refuse_existing, write_json
from cehrxgpt.config import fingerprint, from_dict, to_dict
from cehrxgpt.errors import InputError, MismatchError, OutputExistsError
from cehrxgpt.events import EventDataset
from cehrxgpt.manifest import versions
from cehrxgpt.model.hub import POPULATION_FILE, Loaded, load_model, read_json, save_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.schema import TRAIN
from cehrxgpt.store.format import StoreAppender, TokenStore, write_meta
from cehrxgpt.store.packing import generator
from cehrxgpt.store.writer import store_fingerprint, write_store
from cehrxgpt.timeline.timeline import Timeline
from cehrxgpt.train.config import TrainConfig, load_recipe
from cehrxgpt.train.device import choose_device
from cehrxgpt.train.journal import LOG_FILE
from cehrxgpt.train.loop import MANIFEST_FILE, pretrain, sizes, weights_fingerprint
from cehrxgpt.train.summary import TrainSummary

ADAPT_FILE = "adapt.json"
CODES_FILE, VALUES_FILE = "adapt_codes.parquet", "adapt_values.parquet"
KEY_FILE = "key.json"
HARDLY_SHARED = 0.05  # of the new data's events: below it the two data sets hardly speak one language
_REPLAY = 3  # key of the random numbers that choose replayed histories

Progress = Callable[[int, int, str], None]


def adapt(
    model: Loaded | str | Path,
    events: EventDataset | str | Path,
    out: str | Path | None = None,
    *,
    config: TrainConfig | str | Path = "adapt",
    steps: int | None = None,
    old: TokenStore | str | Path | None = None,
    replay: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Loaded:
    """Expand a model's vocabulary by another data set and go on training on it.

    Args:
        model: a model, or its folder.
        events: the other data set, as ingest leaves it.
        out: MODEL folder to be, with `adapt.json` beside the weights; None: a temporary one that goes when the returned model does.
        config: settings, or the name or file of a recipe; the model's shape is its own, whatever `model` says there, and
            the learning rate never above the one that it was trained with.
        steps: optimiser steps, instead of the recipe's.
        old: a token store of the data the model was trained on, to measure what is forgotten.
        replay: train on histories of `old` as well, about as many tokens as the new data's.
        resume: go on where an interrupted run for `out` stopped; a finished `out` of the same making is left as it is.
        force: replace `out`, and begin an interrupted run anew.
        progress: of the training.

    Raises:
        InputError: the data has nothing that the expanded vocabulary could say, or no training split.
        MismatchError: `old` was not written with the model's vocabulary; an interrupted run was of other settings.
        OutputExistsError: `out`, or an interrupted run for it, is there and neither `resume` nor `force` is given.
    """
    if out is None:
        folder = tempfile.TemporaryDirectory(prefix="cehrxgpt-adapt-")
        made = adapt(model, events, Path(folder.name) / "model", config=config, steps=steps, old=old, replay=replay, progress=progress)
        weakref.finalize(made, folder.cleanup)
        return made
    model = model if isinstance(model, Loaded) else load_model(model)
    events = events if isinstance(events, EventDataset) else EventDataset(events)
    store = TokenStore(old) if isinstance(old, str | Path) else old
    if store is not None:
        store.check_vocabulary(model.vocabulary, whose="the model")
    elif replay:
        raise InputError("replay: no old data to replay; give the token store that the model was trained on (--old TIMELINE)")
    settings = to_dict(config if isinstance(config, TrainConfig) else load_recipe(config))
    shape = {name: value for name, value in model.config.to_dict().items() if name != "vocabulary_size"}
    settings |= {"model": shape, "tokens_per_batch": max(settings["tokens_per_batch"], model.config.context)}
    settings |= {"learning_rate": min(settings["learning_rate"], _peak(model))} | ({} if steps is None else {"steps": steps})
    return _Run(model, events, Path(out), from_dict(TrainConfig, settings, where="adapt"), store, replay).go(
        resume=resume, force=force, progress=progress
    )


def _peak(model: Loaded) -> float:
    """The highest learning rate the model was trained with; no limit where nothing says so."""
    path = model.folder / MANIFEST_FILE
    return float(read_json(path).get("settings", {}).get("learning_rate", math.inf)) if path.exists() else math.inf


class _Run:
    """One adaptation; see `adapt`."""

    def __init__(self, model: Loaded, events: EventDataset, out: Path, config: TrainConfig, old: TokenStore | None, replay: bool):
        self.model, self.events, self.out, self.config, self.old, self.replay = model, events, out, config, old, replay
        self.work = out.parent / f".{out.name}.adapting"
        self.inputs = {
            "vocabulary": model.vocabulary.fingerprint,
            "weights": weights_fingerprint(model.decoder),
            "events": events.fingerprint,
            "old": None if old is None else old.fingerprint,
        }
        self.key = fingerprint({"stage": "adapt", "inputs": self.inputs, "config": to_dict(config), "replay": replay})

    def go(self, *, resume: bool, force: bool, progress: Progress | None) -> Loaded:
        if resume and self._finished():
            return load_model(self.out)
        refuse_existing(self.out, force=force, inputs=[self.model.folder, self.events.root, *([] if self.old is None else [self.old.folder])])
        vocabulary = expand(self.model.vocabulary, self.events)
        ancestors = {code: parents for code, parents in self.events.codes.select("code", "parent_codes").iter_rows() if parents}
        grown = grow(self.model.decoder, self.model.vocabulary, vocabulary, ancestors=ancestors)
        self._begin(resume=resume, force=force)
        timeline = self._timeline(Timeline(vocabulary).on(self.events))
        shape = {name: value for name, value in grown.config.to_dict().items() if name != "vocabulary_size"}
        config = from_dict(TrainConfig, to_dict(self.config) | {"model": shape}, where="adapt")
        start = release(grown, len(self.model.vocabulary))
        summary = pretrain(timeline, self.work / "model", config, start=start, resume=True, progress=progress)
        adapted = load_model(self.work / "model")
        device = choose_device(config.device)
        decoders: list[Decoder] = [decoder.to(device).eval() for decoder in (self.model.decoder, grown, adapted.decoder)]
        found = report(Models(self.model.vocabulary, vocabulary, *decoders), self.events, self.old)
        self._publish(adapted, found, summary, force=force)
        shutil.rmtree(self.work, ignore_errors=True)
        return load_model(self.out)

    def _finished(self) -> bool:
        if not (self.out / MANIFEST_FILE).exists():
            return False
        manifest = read_json(self.out / MANIFEST_FILE)
        return manifest.get("key") == self.key and manifest.get("outputs") == sizes(self.out)

    def _begin(self, *, resume: bool, force: bool) -> None:
        """Decide what becomes of an interrupted run's intermediate results."""
        path = self.work / KEY_FILE
        if path.exists() and not force:
            if not resume:
                raise OutputExistsError(f"an interrupted run stands in {self.work}; give --resume to go on or --force to begin anew")
            if read_json(path).get("key") != self.key:
                raise MismatchError(f"{self.work}: an interrupted run of other settings or inputs; give the same ones, or --force to begin anew")
        if force and not resume:
            shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": self.key})

    def _timeline(self, timeline: Timeline) -> Path:
        """The token store to train on."""
        folder = self.work / "timeline"
        if not folder.exists() or TokenStore(folder).fingerprint != store_fingerprint(self.events, timeline):
            write_store(self.events, timeline, folder, force=True)
        if not self.replay:
            return folder
        mixed = self.work / "mixed"
        if not mixed.exists():
            assert self.old is not None
            mix(TokenStore(folder), self.old, mixed, seed=self.config.seed)
        return mixed

    def _publish(self, adapted: Loaded, found: Transfer, summary: TrainSummary, *, force: bool) -> None:
        """Write the MODEL folder, whole or not at all."""
        share = found.facts["codes"]["events"][TRAIN]["known_before"]
        notes = []
        if share < HARDLY_SHARED:
            notes.append(
                f"only {share:.1%} of the new data's training events were in the model's vocabulary: the two data sets hardly share codes "
                "(OMOP against MEDS?), and what the model knew of codes carries over little"
            )
        facts = {"new_mass_at_most": NEW_MASS, **found.facts, "replay": self.replay, "training": asdict(summary), "notes": notes}
        population = adapted.population or self.model.population
        extra = {ADAPT_FILE: facts} | ({} if population is None else {POPULATION_FILE: population})
        manifest: dict[str, Any] = {
            "stage": "adapt",
            "key": self.key,
            "settings": to_dict(self.config) | {"replay": self.replay},
            "inputs": self.inputs,
            "versions": versions(),
            "figures": asdict(summary),
        }
        with atomic_path(self.out, force=force, folder=True) as folder:
            save_model(folder, adapted.decoder, adapted.vocabulary, extra)
            found.codes.write_parquet(folder / CODES_FILE)
            found.values.write_parquet(folder / VALUES_FILE)
            shutil.copyfile(self.work / "model" / LOG_FILE, folder / LOG_FILE)
            write_json(folder / MANIFEST_FILE, manifest | {"outputs": sizes(folder)})


def mix(new: TokenStore, old: TokenStore, folder: Path, *, seed: int) -> None:
    """A store of all of `new`, and of training histories of `old` chosen by seed until they have as many tokens as the new ones.

    `new` was written with a vocabulary that extends the old one's, so the old ids mean the same.
    """
    candidates = generator(seed, _REPLAY).permutation(old.indices(TRAIN))
    room = int(new.lengths[new.indices(TRAIN)].sum())
    chosen = np.sort(candidates[np.cumsum(old.lengths[candidates]) <= room])
    with atomic_path(folder, force=True, folder=True) as partial:
        with StoreAppender(partial) as appender:
            for number in range(len(new.splits)):
                appender.append(new.histories.subset(new.split == number), number)
            appender.append(old.histories.subset(chosen), new.splits.index(TRAIN))
        new.vocabulary.save(partial)
        if new.population is not None:
            write_json(partial / POPULATION_FILE, new.population)
        write_meta(
            partial,
            histories=appender.histories,
            tokens=appender.tokens,
            splits=list(new.splits),
            vocabulary=new.vocabulary.fingerprint,
            fingerprint=fingerprint(["mixed", new.fingerprint, old.fingerprint, seed]),
        )

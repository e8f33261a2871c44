"""Adapting a model to another data set: how new rows should begin, and what it gains over the alternatives. Prints Markdown, then one line of JSON.

    python benchmarks/adapt.py [FIRST SECOND] [--recipe tiny] [--pretrain-steps 400] [--steps 300] [--out FOLDER]

FIRST, SECOND: two folders made by ingest; by default GiBleed and the MIMIC demo (OMOP), ingested from $CEHRXGPT_DATA. A model of the first is
pretrained, its vocabulary expanded by the second, and then, all with the same steps and settings:

    related, kind, random     where new rows begin (`grow`); the bias that bounds the mass of new tokens is released when training begins
    related, bias kept        the same rows, trained with the bias as expansion left it
    related, with replay      trained on histories of the first data set as well
    from scratch              the expanded vocabulary, weights drawn anew: what the second data set teaches by itself

Per line: largest change of an old token's log-probability on the first data set by expansion alone; held-out loss on the second of the
events both vocabularies write alike (plain, renormalised) and of new events; loss on the first data set; new tokens per event in
sequences generated for held-out people of the second, beside the real share.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cehrxgpt.adapt.expand import expand
from cehrxgpt.adapt.grow import grow, release
from cehrxgpt.adapt.run import mix
from cehrxgpt.adapt.scores import largest_change, looked_at, store_loss
from cehrxgpt.adapt.transfer import Models, held_out_losses, known_shares
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.events import EventDataset
from cehrxgpt.model.hub import load_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import Prompt, rollout
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.writer import write_store
from cehrxgpt.timeline import Timeline
from cehrxgpt.timeline.kinds import EVENT_KINDS, PROMPT_LENGTH
from cehrxgpt.train import TrainConfig, load_recipe, pretrain

COLUMNS = (
    "new rows begin", "largest change", "both know, plain", "both know, renormalised", "new events", "first data set", "new tokens per event"
)  # fmt: skip


def new_share(decoder: Decoder, timeline: Timeline, events: EventDataset, first_new: int) -> tuple[float, float]:
    """New tokens per event: real, and generated from the prompts of the same held-out people."""
    encoded = timeline.encode_frame(events.read("held_out"))
    heads = [encoded.token_id[start : start + PROMPT_LENGTH] for start in encoded.offsets[:-1][encoded.lengths > 0]]
    prompts = [Prompt(token_id=head, subject_id=index, horizon_minutes=365 * 1440) for index, head in enumerate(heads[:100])]
    written = rollout(decoder, timeline.vocabulary, prompts, samples=max(200 // len(prompts), 1), seed=0).token_id
    shares = []
    for token_id in (encoded.token_id, written):
        event = token_id[np.isin(timeline.vocabulary.kind[token_id], [int(kind) for kind in EVENT_KINDS])]
        shares.append(float((event >= first_new).mean()))
    return shares[0], shares[1]


def begin(how: str, before: Decoder, models: Models) -> Decoder:
    """The decoder that a line of the table is trained from."""
    if how == "from scratch":
        torch.manual_seed(0)
        return Decoder(replace(models.grown.config))
    grown = grow(before, models.old, models.new, start=how if how in ("kind", "random") else "related")  # type: ignore[arg-type]
    return grown


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("events", nargs="*", type=Path)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--pretrain-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    out = asked.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    if not asked.events:
        data = Path(os.environ.get("CEHRXGPT_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data")))
        if not data.is_dir():
            print(f"skipped: the open data sets are not at {data.name}/; set CEHRXGPT_DATA, or give two folders made by ingest")
            return
        for name in ("gibleed_omop53", "mimic_iv_demo_omop53"):
            ingest(data / name, out / name, IngestConfig(), force=True)
            asked.events.append(out / name)
    first, second = (EventDataset(path) for path in asked.events)

    write_store(first, Timeline.fit(first), out / "first", force=True)
    pretrain(out / "first", out / "model", asked.recipe, steps=asked.pretrain_steps, force=True)
    before, old_store = load_model(out / "model"), TokenStore(out / "first")
    timeline = Timeline(expand(before.vocabulary, second)).on(second)
    write_store(second, timeline, out / "second", force=True)
    mix(TokenStore(out / "second"), old_store, out / "mixed", seed=0)
    grown = grow(before.decoder, before.vocabulary, timeline.vocabulary)
    models = Models(before.vocabulary, timeline.vocabulary, before.decoder, grown, grown)
    shape = {name: value for name, value in grown.config.to_dict().items() if name != "vocabulary_size"}
    settings = to_dict(load_recipe("adapt")) | {"model": shape, "steps": asked.steps, "precision": "float32"}

    lines: list[dict[str, Any]] = []
    for how in ("related", "kind", "random", "related, bias kept", "related, with replay", "from scratch"):
        start = begin(how, before.decoder, models)
        change = None if how == "from scratch" else largest_change(before.decoder, start, looked_at(old_store, "held_out", start.config.context))
        store = out / ("mixed" if how == "related, with replay" else "second")
        released = start if how in ("related, bias kept", "from scratch") else release(start, len(models.old))
        pretrain(store, out / "trained", from_dict(TrainConfig, settings, where="benchmark"), start=released, force=True)
        trained = load_model(out / "trained").decoder
        found = held_out_losses(replace(models, grown=start, adapted=trained), second, "held_out")
        real, generated = new_share(trained, timeline, second, len(models.old))
        lines.append({
            "how": how, "largest_change": change, **found["loss"]["adapted"], "new_events": found["loss_of_new_events"],
            "old": store_loss(trained, models.new, old_store, "held_out"), "generated": generated,
        })  # fmt: skip
    loss = found["loss"]["unexpanded"]["plain"]
    old = store_loss(before.decoder, models.old, old_store, "held_out")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    print(f"| (the unexpanded model) | | {loss:.2f} | {loss:.2f} | | {old:.2f} | |")
    for line in lines:
        cells = [line["how"], "" if line["largest_change"] is None else f"{line['largest_change']:.4f}"]
        cells += ["-" if line[name] is None else f"{line[name]:.2f}" for name in ("plain", "renormalised", "new_events", "old", "generated")]
        print("| " + " | ".join(cells) + " |")
    known = known_shares(models, second)["train"]
    counts = {name: found[name] for name in ("events_both_know", "new_events", "patients")}
    print(json.dumps({"known": known, "tokens": [len(models.old), len(models.new)], "real_share": real, **counts, "lines": lines}))


if __name__ == "__main__":
    main()

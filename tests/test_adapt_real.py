"""From GiBleed to the MIMIC demo: outpatients' conditions and drugs to a hospital's stays, with hardly a code in common."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cehrxgpt import stages
from cehrxgpt.events import EventDataset
from cehrxgpt.model.hub import load_model
from cehrxgpt.rollout import Prompt, rollout
from cehrxgpt.timeline import Timeline
from cehrxgpt.timeline.kinds import EVENT_KINDS, PROMPT_LENGTH

pytestmark = [pytest.mark.slow]


def test_from_gibleed_to_mimic(shared_data: Path, tmp_path: Path) -> None:
    for name, source in (("first", "gibleed_omop53"), ("second", "mimic_iv_demo_omop53")):
        stages.ingest(shared_data / source, tmp_path / name, {})
    stages.tokenize(tmp_path / "first", tmp_path / "timeline", {})
    stages.pretrain(tmp_path / "timeline", tmp_path / "model", "tiny", overrides={"steps": 150})
    second = tmp_path / "second"
    overrides = {"steps": 150}
    figures = stages.adapt(tmp_path / "model", second, tmp_path / "adapted", "adapt", overrides=overrides, old=tmp_path / "timeline")

    assert figures["loss"]["adapted"]["plain"] < figures["loss"]["unexpanded"]["plain"]
    assert figures["loss"]["adapted"]["renormalised"] < figures["loss"]["unexpanded"]["renormalised"]
    assert 0 < figures["largest_change_by_expansion"] < 0.01
    assert figures["known_before"] < 0.1 < 0.7 < figures["known_after"]
    assert "hardly share codes" in figures["notes"][0]

    before, adapted = load_model(tmp_path / "model"), load_model(tmp_path / "adapted")
    first_new = len(before.vocabulary)
    assert adapted.vocabulary.table.slice(0, first_new).equals(before.vocabulary.table)
    timeline = Timeline(adapted.vocabulary).on(EventDataset(second))
    real = timeline.encode_frame(EventDataset(second).read("train"))
    heads = [real.token_id[start : start + PROMPT_LENGTH] for start in real.offsets[:-1]]
    assert all(adapted.vocabulary.token[head[1]] == "year:unknown" for head in heads)  # shifted dates, though the vocabulary has years
    prompts = [Prompt(token_id=head, subject_id=index) for index, head in enumerate(heads)]
    written = rollout(adapted.decoder, adapted.vocabulary, prompts, samples=4, seed=0, max_new_tokens=150).token_id
    for token_id in (real.token_id, written):
        event = token_id[np.isin(adapted.vocabulary.kind[token_id], [int(kind) for kind in EVENT_KINDS])]
        assert (event >= first_new).mean() > 0.7
    counts = [np.bincount(token_id, minlength=len(adapted.vocabulary))[first_new:] for token_id in (real.token_id, written)]
    common = counts[0] > 0.005 * counts[0].sum()
    assert (counts[1][common] > 0).mean() > 0.9  # new codes that are common there are written

    again = stages.adapt(tmp_path / "adapted", second, tmp_path / "again", "adapt", overrides={"steps": 1})
    assert again["tokens_added"] == 0
    assert json.loads((tmp_path / "adapted" / "adapt.json").read_text())["codes"]["too_rare_to_add"] > 1000

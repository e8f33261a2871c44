"""The whole road on every open data set, verb by verb, as a user would type it: tables in, three capabilities out."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from cehrxgpt import stages
from cehrxgpt.events import EventDataset, validate_events

pytestmark = [pytest.mark.e2e]

# data set -> (a task that fits it, a task that nobody there is eligible for)
SETS = {
    "mimic_iv_demo_meds": ("readmission_30d", "nsaid_gi_bleed_1y"),
    "mimic_iv_demo_omop53": ("readmission_30d", "nsaid_gi_bleed_1y"),
    "gibleed_omop53": ("nsaid_gi_bleed_1y", "afib_stroke_1y"),
    "synthea27nj_omop54": ("emergency_visit_1y", "afib_stroke_1y"),
}


@pytest.mark.parametrize("name", SETS)
def test_the_whole_road(name: str, shared_data: Path, tmp_path: Path) -> None:
    task, unfit = SETS[name]
    events, timeline, model, labels = tmp_path / "events", tmp_path / "timeline", tmp_path / "model", tmp_path / "labels.parquet"
    ingested = stages.ingest(shared_data / name, events, {})
    assert ingested["events"] > 0
    dataset = EventDataset(events)
    for split, frame in dataset.iter_shards():
        validate_events(frame, where=f"{name} {split}")

    tokenized = stages.tokenize(events, timeline, {"min_subjects": 11 if ingested["subjects"]["total"] >= 100 else 5})
    assert tokenized["tokens"] > 0
    trained = stages.pretrain(timeline, model, "tiny", overrides={"steps": 4})
    assert trained["steps"] == 4

    nobody = stages.label(events, unfit, tmp_path / "nobody.parquet")
    assert nobody["rows"] == 0
    assert nobody["note"]
    labelled = stages.label(events, task, labels)
    assert labelled["rows"] > 0
    assert labelled["rows"] == labelled["positive"] + labelled["negative"] + labelled["null"]

    embedded = stages.embed(model, events, [labels], tmp_path / "embeddings.parquet", {})
    assert embedded["rows"] == pl.read_parquet(labels).select("subject_id", "prediction_time").n_unique()
    forecast = stages.forecast(model, events, [labels], tmp_path / "risk.parquet", {"samples": 2, "max_new_tokens": 24}, max_rows=12)
    risks = pl.read_parquet(tmp_path / "risk.parquet")
    assert risks.height == forecast["rows"] > 0
    assert risks.filter(pl.col("predicted_boolean_probability").is_null() & pl.col("note").is_null()).is_empty()

    synthesized = stages.synthesize(model, tmp_path / "synthetic", 8, {"max_new_tokens": 40})
    json.dumps(synthesized)
    back = stages.ingest(tmp_path / "synthetic", tmp_path / "synthetic_events", {})
    assert back["subjects"]["total"] == 8


def test_forecast_of_nobody_says_so(shared_data: Path, tmp_path: Path) -> None:
    """Where nobody is eligible, every verb after `label` ends well with empty tables."""
    events, timeline, model, labels = tmp_path / "events", tmp_path / "timeline", tmp_path / "model", tmp_path / "labels.parquet"
    stages.ingest(shared_data / "synthea27nj_omop54", events, {})
    stages.tokenize(events, timeline, {"min_subjects": 5})
    stages.pretrain(timeline, model, "tiny", overrides={"steps": 2})
    assert stages.label(events, "afib_stroke_1y", labels)["rows"] == 0
    assert stages.embed(model, events, [labels], tmp_path / "embeddings.parquet", {})["rows"] == 0
    assert stages.forecast(model, events, [labels], tmp_path / "risk.parquet", {"samples": 2})["rows"] == 0
    assert pl.read_parquet(tmp_path / "risk.parquet").height == 0

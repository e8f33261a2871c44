"""Every library task on the open data sets: labels where people are eligible, a reason where nobody is."""

from __future__ import annotations

import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.tasks import label, library_tasks

# data set -> task -> (positive, negative, null): what was counted; a change is a change of meaning and has to be looked at.
EXPECTED = {
    "mimic_iv_demo_omop53": {
        "readmission_30d": (48, 123, 63),
        "hf_readmission_30d": (12, 15, 4),
        "in_hospital_mortality_48h": (13, 210, 0),
        "long_stay_7d": (96, 151, 0),
        "long_icu_stay_7d": (20, 96, 0),
        "nsaid_gi_bleed_1y": (0, 0, 0),
    },
    "synthea27nj_omop54": {"emergency_visit_1y": (2, 25, 0), "readmission_30d": (1, 12, 0), "afib_stroke_1y": (0, 0, 0)},
    "gibleed_omop53": {"nsaid_gi_bleed_1y": (479, 2099, 116), "cad_cabg_1y": (2, 182, 7), "discharge_home_death_1y": (0, 0, 0)},
    "mimic_iv_demo_meds": {
        "readmission_30d": (53, 176, 31),
        "in_hospital_mortality_48h": (13, 210, 0),
        "long_stay_7d": (96, 153, 0),
        "long_icu_stay_7d": (21, 95, 0),
    },
}
LANES = {"mimic_iv_demo_omop53": pytest.mark.e2e, "gibleed_omop53": pytest.mark.slow, "mimic_iv_demo_meds": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=LANES.get(name, ())) for name in EXPECTED])
def test_library_on_real_data(shared_data, tmp_path, name):
    events = ingest(shared_data / name, tmp_path / "events", IngestConfig())
    deaths = events.read().filter(pl.col("code") == s.DEATH).select("subject_id", pl.col("time").alias("death"))
    for task in library_tasks():
        found = label(events, task)
        counts, labels = found.counts, found.labels
        if task in EXPECTED[name]:
            assert (counts["positive"], counts["negative"], counts["null"]) == EXPECTED[name][task], task
        assert counts["positive"] + counts["negative"] + counts["null"] == counts["rows"] == labels.height
        assert (counts["rows"] == 0) == (found.note is not None), task
        assert labels.select("subject_id", "prediction_time").is_unique().all()
        assert labels.join(deaths, on="subject_id").filter(pl.col("death") < pl.col("prediction_time")).is_empty()
        s.check_columns(labels.to_arrow(), s.LABEL_SCHEMA, where=task)
        rows = [step["rows"] for step in found.attrition[1:]]
        assert rows == sorted(rows, reverse=True)
        assert rows[-1] == counts["rows"]

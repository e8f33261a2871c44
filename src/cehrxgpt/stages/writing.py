"""Capability 3: synthetic patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

from cehrxgpt.atomic import refuse_existing
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.console import Progress
from cehrxgpt.errors import InputError
from cehrxgpt.stages.data import ingest
from cehrxgpt.stages.tables import Settings, silent


def synthesize(
    model: Path, out: Path, patients: int, settings: Settings, *, format: str = "omop", force: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Synthetic patients as OMOP CDM tables or as an event data set."""
    from cehrxgpt.stages.loading import load
    from cehrxgpt.synthesis import SynthesisConfig
    from cehrxgpt.synthesis import write_synthetic as run

    refuse_existing(out, force=force, inputs=[model])
    if format not in ("omop", "meds"):
        raise InputError(f"--format: no '{format}'; valid: omop, meds")
    config = from_dict(SynthesisConfig, dict(settings), where="synthesize")
    return to_dict(run(load(model), patients, out, config, format=cast(Literal["omop", "meds"], format), force=force, progress=progress))


def synthesize_and_ingest(
    model: Path, out: Path, events: Path, patients: int, settings: Settings, *, like: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Synthetic patients in the format that the events `like` came in, read back through the same door.

    Codes of a MEDS data set have no concept ids: as OMOP tables they would come back as other codes, and match nothing real.
    """
    format = str(json.loads((like / "ingest.json").read_text(encoding="utf-8")).get("format", "omop"))
    figures = synthesize(model, out, patients, settings, format=format, force=True, progress=progress)
    back = ingest(out, events, {}, force=True, progress=progress)
    return {**figures, "read_back": back}

"""The adaptation stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cehrxgpt.console import Progress
from cehrxgpt.stages.tables import Settings, silent
from cehrxgpt.stages.training import training_config


def adapt(
    model: Path,
    events: Path,
    out: Path,
    recipe: str,
    *,
    overrides: Settings,
    old: Path | None = None,
    replay: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Expand a model's vocabulary by another data set, go on training, and report what was carried over."""
    from cehrxgpt.adapt.run import ADAPT_FILE
    from cehrxgpt.adapt.run import adapt as run
    from cehrxgpt.adapt.transfer import said
    from cehrxgpt.model.hub import read_json

    made = run(model, events, out, config=training_config(recipe, overrides), old=old, replay=replay, resume=resume, force=force, progress=progress)
    facts = read_json(made.folder / ADAPT_FILE)
    held_out, old_data = facts["held_out"] or {}, facts["old_data"] or {}
    return {
        "tokens_added": facts["vocabulary"]["after"] - facts["vocabulary"]["before"],
        "codes_added": facts["codes"]["new"],
        "known_before": facts["codes"]["events"]["train"]["known_before"],
        "known_after": facts["codes"]["events"]["train"]["known_after"],
        "loss": held_out.get("loss"),
        "old_loss": old_data.get("loss"),
        "largest_change_by_expansion": max([one["largest_change_by_expansion"] for one in (held_out, old_data) if one], default=None),
        "steps": facts["training"]["steps"],
        "notes": facts["notes"],
        "rows": [list(row) for row in said(facts)],
    }

"""Capability 1, used on its own: finding patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.console import Progress
from cehrxgpt.stages.tables import silent

SHOWN = 5  # shared codes told of each neighbour


def discover(model: Path, events: Path, out: Path, *, like: int, count: int, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """The patients nearest to one, and the codes that they share, as `OUT/neighbours.parquet` and `OUT/shared_codes.parquet`.

    `OUT/manifest.json` says of which model and events.
    """
    import time

    import polars as pl

    from cehrxgpt import manifest
    from cehrxgpt.events import EventDataset
    from cehrxgpt.features.neighbours import discover as run
    from cehrxgpt.stages.loading import load

    refuse_existing(out, force=force, inputs=[model, events])
    started = time.monotonic()
    found = run(load(model), EventDataset(events), like, count=count, progress=progress)
    with atomic_path(out, folder=True, force=force) as partial:
        found.subjects.write_parquet(partial / "neighbours.parquet")
        found.shared.write_parquet(partial / "shared_codes.parquet")
        facts = manifest.describe("discover", inputs=[model, events], settings={"like": like, "count": count})
        tables = [partial / "neighbours.parquet", partial / "shared_codes.parquet"]
        figures = {"neighbours": found.subjects.height, "left_out": found.left_out}
        manifest.write(partial / "manifest.json", facts, outputs=tables, figures=figures, seconds=time.monotonic() - started)
    rows = []
    for neighbour, similarity, shared in found.subjects.select("neighbour_id", "similarity", "shared_codes").iter_rows():
        rarest = found.shared.filter(pl.col("neighbour_id") == neighbour).head(SHOWN)
        names = [name or code for code, name in rarest.select("code", "name").iter_rows()]
        rows.append([str(neighbour), f"{similarity:.2f}", f"{shared:,}", ", ".join(names)])
    return {"like": like, **figures, "rows": rows}

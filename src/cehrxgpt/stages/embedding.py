"""Capability 1: embeddings and the linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.config import from_dict
from cehrxgpt.console import Progress
from cehrxgpt.stages.tables import (
    Settings,
    check_subjects,
    label_files,
    metric_rows,
    read_labels,
    read_table,
    refuse_other_format,
    silent,
    write_table,
)

if TYPE_CHECKING:
    pass


def embed(
    model: Path, events: Path, labels: Sequence[Path], out: Path, settings: Settings, *, force: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """One vector per distinct (subject, prediction time) of the label tables."""
    import polars as pl

    from cehrxgpt.events import EventDataset
    from cehrxgpt.features.embed import EmbedConfig
    from cehrxgpt.features.embed import embed as run
    from cehrxgpt.stages.loading import load

    refuse_other_format(out)
    refuse_existing(out, force=force, inputs=[model, events, *labels])
    config = from_dict(EmbedConfig, dict(settings), where="embed")
    dataset = EventDataset(events)
    at = pl.concat([read_labels(path).select("subject_id", "prediction_time") for path in labels]).unique(maintain_order=True)
    check_subjects(at, dataset, what=str(labels[0]))
    vectors = run(load(model), dataset, at, config, progress=progress)
    write_table(vectors, out, force=force)
    # A reason's share in brackets is the row's own.
    reasons = vectors.filter(pl.col("note").is_not_null())["note"].str.replace(r" \(.*\)$", "").value_counts(sort=True)
    width = 0 if not vectors.height else len(vectors["embedding"][0])
    return {"rows": vectors.height, "refused": int(reasons["count"].sum()), "reasons": dict(reasons.iter_rows()), "width": width}


def embed_all(model: Path, events: Path, labels: Path, out: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """One embedding table for all label tables of a folder."""
    with atomic_path(out, folder=True, force=True) as partial:
        return embed(model, events, label_files(labels), partial / "embeddings.parquet", {}, progress=progress)


def probe(embeddings: Path, labels: Path, events: Path, out: Path, settings: Settings, *, force: bool = False) -> dict[str, Any]:
    """The linear probe beside its baselines, judged on held-out patients."""
    import polars as pl

    from cehrxgpt.events import EventDataset
    from cehrxgpt.features.probe import ProbeConfig
    from cehrxgpt.features.probe import probe as run

    refuse_existing(out, force=force, inputs=[embeddings, labels, events])
    dataset = EventDataset(events)
    labelled = read_labels(labels)
    check_subjects(labelled, dataset, what=str(labels))
    vectors = read_table(embeddings, s.EMBEDDING_SCHEMA, what="embeddings made by: cehrxgpt embed")
    result = run(vectors, labelled, dataset, config=from_dict(ProbeConfig, dict(settings), where="probe"))
    result.write(out, force=force)
    values = result.metrics.filter(pl.col("metric") == "auroc").select("method", pl.col("value").fill_nan(None))
    return {"auroc": dict(values.iter_rows()), "notes": result.notes, "rows": metric_rows(result.metrics, "auroc")}


def probe_all(embeddings: Path, labels: Path, events: Path, out: Path, settings: Settings, *, progress: Progress = silent) -> dict[str, Any]:
    """`probe` for every label table of a folder."""
    figures = {}
    files = label_files(labels)
    with atomic_path(out, folder=True, force=True) as partial:
        for number, path in enumerate(files):
            progress(number, len(files), path.stem)
            figures[path.stem] = probe(embeddings / "embeddings.parquet", path, events, partial / path.stem, settings)["auroc"]
    return figures

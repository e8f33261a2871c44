"""How fast events become tokens and tokens events again, and what the tokens cannot say.

    python benchmarks/timeline.py [--patients 2000] [--values fused|split] [--drug-lengths] [--source FOLDER ...]

A simulated population, and every OMOP or MEDS folder given, is ingested into a temporary folder; then, in one process: fit (training
split), encode (every event; the better of two runs), decode, and `quantise`, which is plain Python and meant for checks. Prints the
table of what quantising changes and one JSON object per data set (seconds are processor time); `equal` says whether decode(encode(x)) == quantise(x).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt.events import EventDataset
from cehrxgpt.simulate import SimulateConfig, simulate
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.timeline import Timeline, TimelineConfig, decode_histories
from cehrxgpt.timeline.quantise import quantise, table_head, table_row

COMPARED = ("subject_id", "time", "code", "numeric_value", "text_value", "unit", "operator", "origin", "end_time")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the seconds of processor time it took (all threads together): wall time on a busy machine says little."""
    begin = time.process_time()
    return work(), time.process_time() - begin


def comparable(events: pl.DataFrame) -> pl.DataFrame:
    return events.select(COMPARED).sort(pl.all(), nulls_last=True)


def measure(name: str, dataset: EventDataset, config: TimelineConfig) -> tuple[dict[str, Any], str]:
    """Figures of one data set and its line of the table."""
    timeline, fitting = timed(lambda: Timeline.fit(dataset, config=config))
    events = dataset.read()
    encoded, first = timed(lambda: timeline.encode_frame(events))
    encoding = min(first, timed(lambda: timeline.encode_frame(events))[1])
    decoded, decoding = timed(lambda: decode_histories(timeline.vocabulary, encoded))
    quantised, quantising = timed(lambda: quantise(events, timeline))
    figures = {
        "data": name,
        "subjects": len(encoded),
        "rows": events.height,
        "vocabulary": len(timeline.vocabulary),
        "tokens": len(encoded.token_id),
        "tokens_per_history": {share: round(float(np.quantile(encoded.lengths, share)), 1) for share in (0.5, 0.9)},
        "values": int(np.isfinite(encoded.value).sum()),
        "unknown_share": round(float(encoded.unknown.sum() / max(encoded.events.sum(), 1)), 4),
        "fit_s": round(fitting, 3),
        "encode_s": round(encoding, 3),
        "encode_rows_per_s": round(events.height / encoding),
        "encode_tokens_per_s": round(len(encoded.token_id) / encoding),
        "decode_s": round(decoding, 3),
        "quantise_s": round(quantising, 3),
        "equal": comparable(decoded).equals(comparable(quantised.events)),
    }
    return figures, table_row(name, quantised)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=2000, help="simulated; 0 = none")
    parser.add_argument("--source", type=Path, action="append", default=[], help="an OMOP or MEDS folder; may be given several times")
    parser.add_argument("--values", choices=("fused", "split"), default="fused", help="a lab and its value as one token or as two")
    parser.add_argument("--drug-lengths", action="store_true", help="write how long drugs are taken")
    arguments = parser.parse_args()
    lines, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        sources = list(arguments.source)
        if arguments.patients:
            simulate(Path(folder) / "simulated", SimulateConfig(population="core", patients=arguments.patients, seed=0))
            sources.append(Path(folder) / "simulated")
        for number, source in enumerate(sources):
            dataset = ingest(source, Path(folder) / f"events-{number}", IngestConfig())
            figures, line = measure(source.name, dataset, TimelineConfig(values=arguments.values, drug_lengths=arguments.drug_lengths))
            results.append(figures)
            lines.append(line)
    print(table_head(), *lines, sep="\n")
    for figures in results:
        print(json.dumps(figures))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(json.dumps({"machine": platform.processor() or platform.machine(), "polars_threads": pl.thread_pool_size(), "peak_gib": round(peak, 2)}))


if __name__ == "__main__":
    main()

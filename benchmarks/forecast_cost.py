"""Tokens that SCOPE and REACH need at the standard error of Monte Carlo, of every library task that has a set of tokens as its outcome.

    python benchmarks/forecast_cost.py FOLDER --population full      with the model that benchmarks/forecast.py left there

Of each task some prediction times of other people, simulated here, are drawn by seed and forecast by all three; the table goes into
docs/forecast.md. The cost of an estimator is the variance of one of its futures times the tokens of one future, so that equal samples compare
at equal standard error; Monte Carlo's variance is taken as p (1 - p) with REACH's p, as a few futures of a rare outcome would say 0. What is
done is not done again.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from results import Results, markdown, quick_dtype, said_when, write_between

from cehrxgpt import schema as s
from cehrxgpt.events import EventDataset
from cehrxgpt.forecast import Forecast, ForecastConfig, forecast
from cehrxgpt.model.hub import Loaded, load_model
from cehrxgpt.simulate import SimulateConfig, simulate
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.stages import label_all
from cehrxgpt.tasks import library

KEY = ["subject_id", "prediction_time"]
ESTIMATORS = ("reach", "scope", "mc")
LEAST_ROWS = 20
BEGIN, END = "<!-- cost:begin -->", "<!-- cost:end -->"


def compare(model: Loaded, events: EventDataset, rows: pl.DataFrame, task: str, samples: int, dtype: str) -> dict[str, Any] | None:
    """Figures of one task; None where its outcome is no set of tokens, or nobody could be forecast."""
    found: dict[str, Forecast] = {}
    for name in ESTIMATORS:
        config = ForecastConfig(estimator=name, samples=samples, seed=6, max_new_tokens=256, dtype=dtype)
        found[name] = forecast(model, events, rows, [task], config)
        if found["reach"].predictions.drop_nulls("predicted_boolean_probability")["method"].unique().to_list() != ["reach"]:
            return None
    p = found["reach"].predictions["predicted_boolean_probability"].to_numpy()
    tokens = {name: one.summary["tokens"] / one.summary["futures"] for name, one in found.items()}
    line: dict[str, Any] = {"rows": int(np.isfinite(p).sum()), "mean_risk": float(np.nanmean(p)), "tokens_per_future": tokens}
    for name in ("scope", "reach"):
        variance = found[name].predictions["std_error"].to_numpy() ** 2 * samples
        fine = np.isfinite(variance) & (p > 0) & (p < 1)
        ours, theirs = variance[fine] * tokens[name], (p * (1 - p))[fine] * tokens["mc"]
        line[name] = {"sum": float(ours.sum() / theirs.sum()), "median_row": float(np.median(ours / theirs))}
    return line


def page(lines: list[dict[str, Any]], samples: int) -> str:
    """The table, rarest outcome first."""
    lines = sorted((line for line in lines if line.get("rows")), key=lambda line: line["mean_risk"])
    sums = np.array([(scope := line["scope"]["sum"], reach := line["reach"]["sum"], min(scope, reach)) for line in lines])
    rows = [
        [
            f"`{line['key']}`",
            str(line["rows"]),
            f"{line['mean_risk']:.4f}",
            *(f"{line[name]['sum']:.2f} ({line[name]['median_row']:.2f})" for name in ("scope", "reach")),
            f"{better:.2f}",
        ]
        for line, (_, _, better) in zip(lines, sums, strict=True)
    ]
    rows.append([f"median of {len(lines)} tasks", "", "", *(f"{value:.2f}" for value in np.median(sums, axis=0))])
    table = markdown(["task", "rows", "mean risk", "SCOPE", "REACH", "the better"], rows)
    return (
        f"{said_when(lines)}. {samples} futures a row. Tokens needed at the standard error of Monte Carlo, relative to it, summed over the rows "
        f"(in brackets: the median row), rarest outcome first:\n\n{table}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--population", default="core", choices=("core", "full"), help="of the people; what the model was trained on")
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default=quick_dtype())
    parser.add_argument("--page", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "forecast.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.folder / "library"
    out.mkdir(exist_ok=True)
    source = out / "events"
    if not source.exists():
        simulate(out / "cdm", SimulateConfig(population=arguments.population, patients=arguments.patients, seed=13, truth_samples=0), force=True)
        ingest(out / "cdm", source, IngestConfig(splits={s.HELD_OUT: 1.0}, threads=1))
    if not (out / "labels").exists():
        label_all(source, list(library()), out / "labels")
    model, events, results = load_model(arguments.folder / "model"), EventDataset(source), Results(out / "cost.jsonl")
    for path in sorted((out / "labels").glob("*.parquet")):
        labels = pl.read_parquet(path)
        if results.has(path.stem) or labels.height < LEAST_ROWS:
            continue
        rows = labels.sample(min(arguments.rows, labels.height), seed=2).sort(KEY)
        line = compare(model, events, rows, path.stem, arguments.samples, arguments.dtype)
        results.add({"key": path.stem, "date": f"{datetime.now(UTC):%Y-%m-%d}", **(line or {})})
        print(path.stem, line, flush=True)
    write_between(arguments.page, BEGIN, END, page(results.lines, arguments.samples))


if __name__ == "__main__":
    main()

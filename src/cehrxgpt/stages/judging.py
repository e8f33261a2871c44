"""Evaluation and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.console import Progress
from cehrxgpt.errors import ConfigError, InputError
from cehrxgpt.stages.tables import interval, label_files, method_name, number, read_labels, read_table, silent, write_table

if TYPE_CHECKING:
    import polars as pl

    from cehrxgpt.events import EventDataset


def _named(labels: Path, predictions: pl.DataFrame, task: str | None) -> pl.DataFrame:
    """The labels, as labels of `task`; of the predictions' one task where neither it nor the file names any.

    Raises:
        InputError: labels of several tasks are to count as labels of one.
    """
    import polars as pl

    predicted = predictions["task"].unique().to_list()
    found = read_labels(labels, unnamed=task or (predicted[0] if len(predicted) == 1 else None))
    if task is None:
        return found
    if found["task"].n_unique() > 1:
        raise InputError(f"{labels}: labels of {found['task'].n_unique()} tasks; --task says what those of one are compared with")
    return found.with_columns(pl.lit(task).alias("task"))


def evaluate_predictions(
    risk: Path, labels: Path, out: Path | None, *, task: str | None = None, seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """Metric rows of predictions against labels; `task`: whose predictions the labels judge, if they name another task or none."""
    from cehrxgpt.evaluate.predictions import evaluate_predictions as run

    if out is not None:
        refuse_existing(out, force=force)
    predictions = read_table(risk, s.PREDICTION_SCHEMA, what="predictions made by: cehrxgpt forecast or cehrxgpt probe")
    metrics = run(predictions, _named(labels, predictions, task), seed=seed)
    if out is not None:
        write_table(metrics, out, force=force)
    rows = [
        [f"{method_name(row['method'])} {row['metric']}", _metric(row["metric"], row["value"]), interval(row["lower"], row["upper"])]
        for row in metrics.iter_rows(named=True)
    ]
    values = {f"{row['method']} {row['metric']}": _finite(row["value"]) for row in metrics.iter_rows(named=True)}
    return {"metrics": values, "rows": rows}


def _metric(name: str, value: float | None) -> str:
    """A metric's value as text; counts without decimals."""
    return f"{value:,.0f}" if name in ("rows", "censored", "refused") and value is not None else number(value)


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)


def _sample(dataset: EventDataset, split: str | None, subjects: int = 20_000) -> pl.DataFrame:
    """Events of at most so many subjects (whole shards until there are enough), so that memory is bounded."""
    import polars as pl

    frames, seen = [], 0
    for _, frame in dataset.iter_shards(split):
        frames.append(frame)
        seen += frame["subject_id"].n_unique()
        if seen >= subjects:
            break
    return pl.concat(frames)


def evaluate_synthetic(synthetic: Path, real: Path, out: Path | None, *, force: bool = False) -> dict[str, Any]:
    """Fidelity of synthetic patients against the real training split."""
    from cehrxgpt.evaluate.fidelity import fidelity
    from cehrxgpt.events import EventDataset

    if out is not None:
        refuse_existing(out, force=force)
    theirs, ours = EventDataset(synthetic), EventDataset(real)
    rows = fidelity(_sample(ours, s.TRAIN if s.TRAIN in ours.splits else None), _sample(theirs, None))
    if out is not None:
        write_table(rows, out, force=force)
    values = {row["metric"]: _finite(row["value"]) for row in rows.iter_rows(named=True)}
    return {"fidelity": values, "rows": [[name, number(value)] for name, value in values.items()]}


def _truth_predictions(truth: pl.DataFrame) -> pl.DataFrame:
    """True risks as predictions of the method "true risk"."""
    import polars as pl

    return truth.select(
        "subject_id",
        "prediction_time",
        pl.lit(None, dtype=pl.Boolean).alias("boolean_value"),
        (pl.col("true_risk") >= 0.5).alias("predicted_boolean_value"),
        pl.col("true_risk").alias("predicted_boolean_probability"),
        "task",
        pl.lit("true risk").alias("method"),
        "std_error",
        pl.col("num_resimulations").cast(pl.Int32).alias("num_samples"),
        *(pl.lit(None, dtype=pl.Float64).alias(name) for name in ("completion", "lower_bound", "upper_bound")),
        pl.lit(None, dtype=pl.String).alias("note"),
    )


def evaluate_all(run: Path, out: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Every method side by side on the very rows that were forecast, and the fidelity of the synthetic patients.

    All methods are judged on the same rows, so that their figures can be compared; `probe/` keeps those of the whole held-out split.
    """
    import polars as pl

    from cehrxgpt.evaluate.predictions import METRIC_DTYPES
    from cehrxgpt.evaluate.predictions import evaluate_predictions as judge

    parts = [pl.DataFrame(schema=METRIC_DTYPES)]
    tasks = [path.stem for path in label_files(run / "labels")]
    key = ["subject_id", "prediction_time"]
    for place, task in enumerate(tasks):
        progress(place, len(tasks) + 1, task)
        labels = read_labels(run / "labels" / f"{task}.parquet")
        risk_file = run / "forecast" / f"{task}.parquet"
        if not risk_file.exists():
            continue  # no held-out row asks it; its attrition says why
        risks = read_table(risk_file, s.PREDICTION_SCHEMA, what="a forecast")
        predictions = [risks]
        probed = read_table(run / "probe" / task / "predictions.parquet", s.PREDICTION_SCHEMA, what="predictions of the probe")
        asked = risks.filter(pl.col("predicted_boolean_probability").is_not_null()).select(key)
        predictions.append(probed.join(asked, on=key, how="semi", maintain_order="left"))
        if (run / "truth" / f"{task}.parquet").exists():
            truth = _truth_predictions(pl.read_parquet(run / "truth" / f"{task}.parquet"))
            predictions.append(truth.join(asked, on=key, how="semi", maintain_order="left"))
        names = list(s.PREDICTION_SCHEMA.names)
        parts += [judge(frame.select(names), labels) for frame in predictions if frame.height]
    metrics = pl.concat(parts)
    progress(len(tasks), len(tasks) + 1, "synthetic patients")
    with atomic_path(out, folder=True, force=True) as partial:
        metrics.write_parquet(partial / "metrics.parquet")
        fidelity = evaluate_synthetic(run / "synthetic_events", run / "events", partial / "fidelity.parquet")["fidelity"]
    return {"headline": _headline_rows(metrics), "metrics": _headline_metrics(metrics), "fidelity": fidelity}


def _auroc(metrics: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return metrics.filter(pl.col("metric") == "auroc")


def _rows_compared(metrics: pl.DataFrame) -> dict[tuple[str, str], int]:
    """(task, method) -> rows that were compared; a subject may have several."""
    import polars as pl

    compared = metrics.filter(pl.col("metric") == "rows").select("task", "method", "value")
    return {(task, method): int(value) for task, method, value in compared.iter_rows()}


def _auroc_text(row: dict[str, Any], rows: int) -> str:
    """The AUROC with its interval, where it rests on outcomes enough."""
    from cehrxgpt.report.methods import telling

    return f"{number(row['value'])} ({interval(row['lower'], row['upper'])})" if telling(row["positives"], rows) else "too few outcomes"


def _headline_rows(metrics: pl.DataFrame) -> list[list[str]]:
    rows = _rows_compared(metrics)
    return [
        [
            row["task"],
            method_name(row["method"]),
            _auroc_text(row, rows[row["task"], row["method"]]),
            f"{rows[row['task'], row['method']]:,}",
            f"{row['subjects']:,}",
            f"{row['positives']:,}",
        ]
        for row in _auroc(metrics).iter_rows(named=True)
    ]


def _headline_metrics(metrics: pl.DataFrame) -> dict[str, Any]:
    from cehrxgpt.report.methods import telling

    figures: dict[str, Any] = {}
    rows = _rows_compared(metrics)
    for row in _auroc(metrics).iter_rows(named=True):
        entry = {name: _finite(row[column]) for name, column in (("auroc", "value"), ("lower", "lower"), ("upper", "upper"))}
        if not telling(row["positives"], rows[row["task"], row["method"]]):
            entry["too_few_outcomes"] = True
        entry |= {"rows": rows[row["task"], row["method"]], "subjects": row["subjects"], "positives": row["positives"]}
        figures.setdefault(row["task"], {})[row["method"]] = entry
    return figures


def report(folder: Path, out: Path | None, *, patient: str = "auto", force: bool = False) -> dict[str, Any]:
    """One self-contained HTML page of a run.

    Raises:
        ConfigError: `out` is no page's name: a file of the run itself may stand there.
    """
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out}: the report is a page; give --out a name that ends in .html")
    from cehrxgpt.report.page import report_with_figures

    page, figures = report_with_figures(folder, out, force, patient=patient)
    return {"report": str(page), **figures}

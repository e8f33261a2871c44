"""Evaluation and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.console import Progress
from cehrxgpt.errors import ConfigError, MismatchError
from cehrxgpt.stages.metric_tables import (
    alike,
    cautions,
    headline_metrics,
    headline_rows,
    metric_figures,
    metric_tables,
    rounded,
    subgroup_tables,
    unjudged,
    unshared,
)
from cehrxgpt.stages.tables import (
    check_subjects,
    label_files,
    method_name,
    number,
    read_labels,
    read_table,
    refuse_other_format,
    safe_names,
    silent,
    write_table,
)

if TYPE_CHECKING:
    import polars as pl

    from cehrxgpt.events import EventDataset

_MANY = 1_000  # people, of whom figures are written with more digits
_SAME_RISK = 1e-6  # between the end of a curve and the risk


def _named(path: Path, predictions: pl.DataFrame, tasks: Sequence[str]) -> pl.DataFrame:
    """The labels of a file. Where it names one task that nothing was predicted of, or none, they are of the one in `tasks`, else of the one that
    the predictions are of."""
    import polars as pl

    from cehrxgpt.tasks import load_task

    predicted = predictions["task"].unique().to_list()
    only = load_task(tasks[0]).name if len(tasks) == 1 else None
    found = read_labels(path, unnamed=only or (predicted[0] if len(predicted) == 1 else None)).select(list(s.LABEL_SCHEMA.names))
    stranger = found["task"].n_unique() == 1 and found["task"][0] not in predicted
    return found.with_columns(pl.lit(only).alias("task")) if stranger and only is not None else found


def evaluate_predictions(
    risk: Path,
    labels: Sequence[Path],
    out: Path | None,
    *,
    events: Path | None = None,
    tasks: Sequence[str] = (),
    recalibrate: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Predictions against labels: metric rows, and with `out` a folder of tables and charts (docs/evaluation.md).

    Args:
        risk: PredictionTable; curves that lie beside it (`curves_beside`) are judged too.
        labels: of all its tasks, and of the tuning predictions.
        events: the data set that they were made from: metrics by subgroup, and age and sex as a reference.
        tasks: names or files of tasks that are not of the library, for first onset and recurrence.
        recalibrate: a file of tuning predictions, with `:platt` or `:isotonic` behind it or neither for both.
        out, seed, force: as everywhere.
    """
    import polars as pl

    from cehrxgpt.evaluate import predictions as judge
    from cehrxgpt.events import EventDataset
    from cehrxgpt.stages.references import references
    from cehrxgpt.tasks import load_task

    inputs = [risk, *labels, *([] if events is None else [events])]
    if out is not None:
        refuse_existing(out, force=force, inputs=inputs)
    predictions = read_table(risk, s.PREDICTION_SCHEMA, what="predictions made by: cehrxgpt forecast or cehrxgpt probe")
    truth = pl.concat([_named(path, predictions, tasks) for path in labels])
    tuning, kind = (None, "") if recalibrate is None else _tuning(recalibrate)
    mapped = None if tuning is None else _recalibrated(predictions, tuning, truth, kind)
    every = predictions if mapped is None else pl.concat([predictions, mapped], how="vertical_relaxed")
    points = _read_curves(risk, predictions)
    dataset = None if events is None else EventDataset(events)
    groups, notes = (None, []) if dataset is None else _groups(dataset, every, tasks)
    judged = judge.evaluate_predictions(every, truth, curves=points, groups=groups, seed=seed)
    beside, fitted_on = references(every, truth, dataset=dataset, tuning=tuning, seed=seed)
    metrics = pl.concat([judged, judge.evaluate_predictions(beside, truth, seed=seed)])
    undrawn = [] if out is None else _write_judgement(out, metrics, every, truth, mapped, groups, seed=seed, force=force)
    everybody = metrics.filter(pl.col("subgroup").is_null())
    predicted = set(predictions["task"].to_list())
    notes += [f"--task {task}: no prediction is of it, and it says nothing here" for task in tasks if load_task(task).name not in predicted]
    return {
        "metrics": metric_figures(everybody),
        "notes": [*unjudged(judged), *unshared(judged), *cautions(every, truth), *alike(every), *notes, *fitted_on, *undrawn],
        "tables": metric_tables(everybody),
        "subgroups": subgroup_tables(metrics),
    }


def curves_beside(predictions: Path) -> Path:
    """Where the cumulative-incidence curves of a file of predictions lie: `risk.curves.parquet` beside `risk.parquet`."""
    return predictions.with_name(f"{predictions.stem}.curves.parquet")


def _read_curves(risk: Path, predictions: pl.DataFrame) -> pl.DataFrame | None:
    """The curves beside a file of predictions.

    Raises:
        MismatchError: they end at other risks than those predicted, or none is of a row that is.
    """
    path = curves_beside(risk)
    if not path.exists():
        return None
    curves = read_table(path, s.CURVE_SCHEMA, what="curves", optional=("competing_incidence",))
    apart, compared = _apart(predictions, curves)
    if curves.height and not compared and predictions["predicted_boolean_probability"].count():
        methods = " and ".join(map(method_name, curves["method"].unique(maintain_order=True)))
        raise MismatchError(f"{path}: curves of another forecast ({methods}): none is of a row of {risk}; forecast both anew, or remove the curves")
    if apart:
        raise MismatchError(f"{path}: curves of another forecast: {apart} of {compared} end at another risk than {risk} has; forecast both anew")
    return curves


def _apart(predictions: pl.DataFrame, curves: pl.DataFrame) -> tuple[int, int]:
    """How many curves end elsewhere than at their prediction, and how many there are."""
    import polars as pl

    key = ("task", "method", "subject_id", "prediction_time")
    typed = [pl.col("task", "method").cast(pl.String), pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us"))]
    ends = curves.sort("days").with_columns(typed).group_by(key).agg(pl.col("cumulative_incidence").last().alias("_end"))
    both = predictions.filter(pl.col("predicted_boolean_probability").is_not_null()).with_columns(typed).join(ends, on=key, how="inner")
    return int(((both["_end"] - both["predicted_boolean_probability"]).abs() > _SAME_RISK).sum()), both.height


def _tuning(given: str) -> tuple[pl.DataFrame, str]:
    """Tuning predictions, and how to map by them; `given` is a path, with or without a kind behind a colon."""
    path, colon, kind = given.rpartition(":")
    if not colon or "/" in kind or kind.endswith(".parquet"):
        path, kind = given, ""
    return read_table(Path(path), s.PREDICTION_SCHEMA, what="tuning predictions: cehrxgpt forecast ... --split tuning"), kind


def _recalibrated(predictions: pl.DataFrame, tuning: pl.DataFrame, labels: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The predictions mapped by tuning predictions, in one way or in each."""
    from cehrxgpt.evaluate.recalibrate import KINDS, recalibrate

    return recalibrate(predictions, tuning, labels, (kind,) if kind else KINDS)


def _groups(dataset: EventDataset, predictions: pl.DataFrame, tasks: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
    import polars as pl

    from cehrxgpt.stages.subgroups import subgroups

    # Of subjects that the forecast did not find it has no risk.
    check_subjects(predictions.filter(pl.col("predicted_boolean_probability").is_not_null()), dataset, what="predictions")
    return subgroups(dataset, predictions, tasks)


def _write_judgement(
    out: Path,
    metrics: pl.DataFrame,
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    mapped: pl.DataFrame | None,
    groups: pl.DataFrame | None,
    *,
    seed: int,
    force: bool,
) -> list[str]:
    """The folder: tables, a chart of each kind and task, recalibrated predictions, and MEDS predictions by task and method.

    Returns a line for each chart that there is nothing to draw of.
    """
    import polars as pl

    from cehrxgpt.evaluate.meds import meds_predictions
    from cehrxgpt.evaluate.predictions import calibration_table, net_benefit_table
    from cehrxgpt.report.judging_charts import calibration_chart, net_benefit_chart

    make = {"calibration": calibration_table, "net_benefit": net_benefit_table}
    tables = {kind: table(predictions, labels, groups=groups, seed=seed) for kind, table in make.items()}
    charts = {"calibration": calibration_chart, "net_benefit": net_benefit_chart}
    tasks, methods = (safe_names(predictions[column].unique(maintain_order=True)) for column in ("task", "method"))
    lacking = {"calibration": f"no method has two bins of {s.SMALL_CELL} people or more", "net_benefit": "no method has rows to judge"}
    undrawn = []
    with atomic_path(out, folder=True, force=force) as partial:
        _coarse(metrics).write_parquet(partial / "metrics.parquet")
        for kind, table in tables.items():
            table.write_parquet(partial / f"{kind}.parquet")
            for task in table["task"].unique(maintain_order=True).to_list():
                drawn = charts[kind](table.filter(pl.col("task") == task), task)
                if drawn is None:
                    undrawn.append(f"{kind}.{tasks[task]}.svg is left out: {lacking[kind]}")
                else:
                    (partial / f"{kind}.{tasks[task]}.svg").write_text(drawn, encoding="utf-8")
        if mapped is not None:
            mapped.write_parquet(partial / "recalibrated.parquet")
        (partial / "meds").mkdir()
        for (task, method), rows in meds_predictions(predictions, labels).items():
            rows.write_parquet(partial / "meds" / f"{tasks[task]}.{methods[method]}.parquet")
    return undrawn


def _coarse(metrics: pl.DataFrame) -> pl.DataFrame:
    """The rows with five significant digits, three of levels and of fewer than 1,000 people: whoever has the risks could solve exact figures for the
    outcomes of each."""
    import polars as pl

    from cehrxgpt.evaluate.predictions import COUNTS, WITHHELD

    few = pl.col("subgroup").is_not_null() | (pl.col("subjects") < _MANY)
    counted = pl.col("metric").is_in([*COUNTS, WITHHELD])
    return metrics.with_columns(
        pl.when(counted).then(name).when(few).then(pl.col(name).round_sig_figs(3)).otherwise(pl.col(name).round_sig_figs(5)).alias(name)
        for name in ("value", "lower", "upper")
    )


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
        refuse_other_format(out)
        refuse_existing(out, force=force)
    theirs, ours = EventDataset(synthetic), EventDataset(real)
    rows = fidelity(_sample(ours, s.TRAIN if s.TRAIN in ours.splits else None), _sample(theirs, None))
    if out is not None:
        write_table(rows, out, force=force)
    values = {row["metric"]: rounded(row["value"]) for row in rows.iter_rows(named=True)}
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
        curves = _read_curves(risk_file, risks)
        every = pl.concat([frame.select(names) for frame in predictions if frame.height], how="vertical_relaxed")
        parts.append(judge(every, labels, curves=curves))
    metrics = pl.concat(parts)
    progress(len(tasks), len(tasks) + 1, "synthetic patients")
    with atomic_path(out, folder=True, force=True) as partial:
        metrics.write_parquet(partial / "metrics.parquet")
        fidelity = evaluate_synthetic(run / "synthetic_events", run / "events", partial / "fidelity.parquet")["fidelity"]
    return {"headline": headline_rows(metrics), "metrics": headline_metrics(metrics), "fidelity": fidelity}


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

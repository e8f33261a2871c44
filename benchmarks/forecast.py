"""Zero-shot forecasts against the truth: a population to train on, another to forecast, whose every risk is known.

    python benchmarks/forecast.py --out FOLDER                     data, training (half an hour on two cores), forecasts, tables in docs/forecast.md
    python benchmarks/forecast.py --out FOLDER --population full --patients 80000 --test-patients 100000 --rows 1000 --estimators time_to_event mc
    python benchmarks/forecast.py --out FOLDER --patients 2000 --test-patients 700 --steps 60 --rows 60 --samples 20 --least-events 5     to try it

Both populations are simulated, with seeds of their own. The model sees the first one's records and no label. Every held-out row of a task
with a true risk and at least 100 known events is forecast, or `--rows` of them drawn by seed (more, where events are rare), by Monte Carlo,
SCOPE, REACH and the time-to-event head. Beside them: the true risk, counts + LightGBM taught with 100, 1,000 and all labels of `--labelled`
training people, age and sex, a constant; and what the record alone can tell: trees taught with the *true risks* of training people, so that
no chance of who had the event is in what they learn. Negative control: every patient's record is swapped for another's, drawn at random, and
forecast again. What estimators cost is measured by benchmarks/forecast_cost.py with the model that this leaves in FOLDER.

FOLDER keeps everything; what is done is not done again, and forecasts that were cut off go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import polars as pl
import torch
from objectives_data import TEST_IDS, join
from results import markdown, quick_dtype, write_between

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, write_json
from cehrxgpt.evaluate.calibration import ece, logit, slope
from cehrxgpt.evaluate.discrimination import auroc
from cehrxgpt.evaluate.predictions import evaluate_predictions
from cehrxgpt.evaluate.rows import clip
from cehrxgpt.events import EventDataset
from cehrxgpt.features.baselines import AGE_SEX, CONSTANT, COUNTS_LIGHTGBM, Examples, age_and_sex, constant, lightgbm
from cehrxgpt.features.counts import count_features
from cehrxgpt.simulate import SimulateConfig, simulate, true_risk, true_tasks
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.stages import forecast, label_all, pretrain, tokenize

KEY = ["subject_id", "prediction_time"]
MARKERS = {"core": "forecast", "full": "forecast-full"}  # population -> its place on the page
RECIPES = {"bfloat16": Path(__file__).with_name("forecast_recipe.yaml"), "float32": Path(__file__).with_name("forecast_recipe_float32.yaml")}
OURS = ("time_to_event", "reach", "scope", "monte_carlo")  # methods, the one that is best suited where it can answer first
ESTIMATORS = ("mc", "scope", "reach", "time_to_event")
TRUTH, RECORD, SWAPPED = "true risk", "record, taught with true risks", "reach, histories swapped"
TUNING_SHARE = 0.15  # of the rows that trees are taught with, those by which they stop


def say(text: str) -> None:
    """With the time."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}", flush=True)


def once(path: Path, work: Callable[[Path], Any]) -> None:
    """Make a file or folder, unless it is there."""
    if not path.exists():
        say(path.name)
        work(path)


def make_data(data: Path, population: str, patients: int, test_patients: int) -> None:
    """`train_cdm`, `test_cdm`, one event data set of both, its tokens and its labels."""
    for which, count, seed in (("train", patients, 11), ("test", test_patients, 12)):
        config = SimulateConfig(population=population, patients=count, seed=seed, truth_samples=0)
        once(data / f"{which}_cdm", lambda path, config=config: simulate(path, config))
        splits = {s.TRAIN: 0.97, s.TUNING: 0.03} if which == "train" else {s.HELD_OUT: 1.0}
        reading = IngestConfig(splits=splits, threads=1)
        once(data / f"{which}_events", lambda path, which=which, reading=reading: ingest(data / f"{which}_cdm", path, reading))
    once(data / "events", lambda path: join(data / "train_events", data / "test_events", path))
    once(data / "timeline", lambda path: tokenize(data / "events", path, {}))
    once(data / "labels", lambda path: label_all(data / "events", true_tasks(data / "test_cdm"), path))


def held_out(labels: pl.DataFrame) -> pl.DataFrame:
    """Rows of the test population."""
    return labels.filter(pl.col("subject_id") > TEST_IDS)


def choose(data: Path, rows: int, least_events: int) -> dict[str, pl.DataFrame]:
    """task -> the labels that are forecast: a random `rows` of the test population, or enough for a fifth more events than are needed."""
    chosen = {}
    for path in sorted((data / "labels").glob("*.parquet")):
        labels = held_out(pl.read_parquet(path))
        events = int(labels["boolean_value"].sum() or 0)
        if events < least_events:
            continue
        wanted = max(rows, int(1.2 * least_events * labels.height / events))
        labels = labels.sample(min(wanted, labels.height), seed=0).sort(KEY)
        if int(labels["boolean_value"].sum() or 0) >= least_events:
            chosen[path.stem] = labels
    return chosen


def truth_of(data: Path, task: str, labels: pl.DataFrame, samples: int) -> pl.DataFrame:
    """True risks as predictions."""
    at = labels.select((pl.col("subject_id") - TEST_IDS).alias("subject_id"), "prediction_time")
    risk = true_risk(data / "test_cdm", at, task, samples=samples, threads=1)["true_risk"]
    return predictions(labels, TRUTH, risk.to_numpy())


def recorded(data: Path, task: str, labels: pl.DataFrame, rows: int, samples: int = 20) -> pl.DataFrame:
    """What trees say of the record that were taught with the true risks of training people: near the most that anyone can know who has no more."""
    known = pl.read_parquet(data / "labels" / f"{task}.parquet").filter(pl.col("subject_id") < TEST_IDS)
    known = known.sample(min(rows, known.height), seed=3).sort(KEY)
    risk = true_risk(data / "train_cdm", known.select(KEY), task, samples=samples, threads=1)["true_risk"]
    known = known.with_columns(risk.alias("_risk")).filter(pl.col("_risk").is_not_nan())
    fit = np.arange(known.height + labels.height) < known.height
    features = count_features(EventDataset(data / "events"), pl.concat([known.select(KEY), labels.select(KEY)]), fit).matrix
    tuning = np.random.default_rng(0).random(known.height) < TUNING_SHARE
    target = known["_risk"].to_numpy().clip(0, 1)
    of_fit = lgb.Dataset(features[fit][~tuning], label=target[~tuning])
    of_tuning = lgb.Dataset(features[fit][tuning], label=target[tuning], reference=of_fit)
    settings = {"objective": "cross_entropy", "learning_rate": 0.05, "num_leaves": 15, "feature_fraction": 0.5, "num_threads": 1, "verbosity": -1}
    trees = lgb.train(settings, of_fit, 1000, valid_sets=[of_tuning], callbacks=[lgb.early_stopping(30, verbose=False)])
    return predictions(labels, RECORD, np.asarray(trees.predict(features[~fit], num_iteration=trees.best_iteration)))


def predictions(labels: pl.DataFrame, method: str, probability: np.ndarray) -> pl.DataFrame:
    """PREDICTION columns that metrics look at."""
    values = pl.Series("predicted_boolean_probability", probability, dtype=pl.Float64).fill_nan(None)
    return labels.select("subject_id", "prediction_time", "task").with_columns(values, pl.lit(method).alias("method"))


def taught(data: Path, task: str, labels: pl.DataFrame, labelled: int) -> pl.DataFrame:
    """What models of counts say that were taught with labels of training people."""
    dataset = EventDataset(data / "events")
    known = pl.read_parquet(data / "labels" / f"{task}.parquet").filter((pl.col("subject_id") <= labelled) & pl.col("boolean_value").is_not_null())
    rows = pl.concat([known, labels])
    at = rows.select(KEY)
    fit = np.arange(rows.height) < known.height
    tuning = fit & (np.random.default_rng(0).random(rows.height) < TUNING_SHARE)
    outcome = rows["boolean_value"].fill_null(False).to_numpy()
    features = count_features(dataset, at, fit)
    subject = rows["subject_id"].to_numpy()
    order = np.random.default_rng(1).permutation(np.flatnonzero(fit & ~tuning))
    told = []
    for count in sorted({min(count, len(order)) for count in (100, 1000, len(order))}):
        some = np.isin(np.arange(rows.height), order[:count])
        few_tuning = tuning if count == len(order) else np.zeros_like(tuning)
        found = lightgbm(features.matrix, Examples(outcome, some, few_tuning, subject))
        told.append(predictions(labels, f"{COUNTS_LIGHTGBM}, {count if count < len(order) else 'all'} labels", found.probability[~fit]))
    told.append(predictions(labels, AGE_SEX, age_and_sex(features, Examples(outcome, fit & ~tuning, tuning, subject)).probability[~fit]))
    told.append(predictions(labels, CONSTANT, constant(outcome, fit).probability[~fit]))
    return pl.concat(told).with_columns(pl.lit(int(fit.sum())).alias("labels_known"))


def swapped_events(data: Path, out: Path) -> None:
    """The test population, each person's record under the number of another, drawn at random."""
    dataset = EventDataset(data / "test_events")
    people = np.sort(dataset.subject_splits["subject_id"].to_numpy())
    to = np.random.default_rng(3).permutation(people)
    mapping = pl.DataFrame({"subject_id": people, "_to": to + TEST_IDS})
    with atomic_path(out, folder=True) as partial:
        shutil.copytree(data / "test_events", partial, dirs_exist_ok=True)
        shutil.rmtree(partial / "data")
        (partial / "data" / s.HELD_OUT).mkdir(parents=True)
        every = pl.concat([dataset.read_shard(path) for path in dataset.shards()])
        every = (
            every.join(mapping, on="subject_id").with_columns(pl.col("_to").alias("subject_id")).drop("_to").sort("subject_id", maintain_order=True)
        )
        every.write_parquet(partial / "data" / s.HELD_OUT / "0.parquet")
        splits = dataset.subject_splits.join(mapping, on="subject_id").with_columns(pl.col("_to").alias("subject_id")).drop("_to")
        splits.write_parquet(partial / "metadata" / "subject_splits.parquet")


def draw(out: Path, data: Path, chosen: dict[str, pl.DataFrame], arguments: argparse.Namespace) -> None:
    """Forecasts of every estimator, one file each."""
    asked = out / "asked"
    asked.mkdir(exist_ok=True)
    for task, labels in chosen.items():
        if not (asked / f"{task}.parquet").exists():
            labels.write_parquet(asked / f"{task}.parquet")
    waiting = list(chosen)
    if "swapped" in arguments.estimators:
        once(out / "swapped_events", lambda path: swapped_events(data, path))
    for name in arguments.estimators:
        estimator = "reach" if name == "swapped" else name
        settings: dict[str, Any] = {"estimator": estimator}
        if estimator != "time_to_event":
            settings |= {
                "samples": arguments.samples if name != "swapped" else 4,
                "target_std_error": arguments.target_std_error,
                "seed": 5,
                "max_new_tokens": arguments.max_tokens,
                "dtype": arguments.dtype,
            }
        target = out / f"{name}.parquet"
        if not target.exists():
            say(f"forecast: {name}")
            started = time.perf_counter()
            events = out / "swapped_events" if name == "swapped" else data / "events"
            files = [asked / f"{task}.parquet" for task in waiting]
            found = forecast(out / "model", events, files, target, settings, curves=name != "swapped")
            write_json(out / f"{name}.json", {**found, "seconds": time.perf_counter() - started})
        if arguments.once:
            waiting = [task for task in waiting if not forecasts_of(out, task, [name])]


def forecasts_of(out: Path, task: str, names: Sequence[str]) -> dict[str, pl.DataFrame]:
    """estimator -> its rows of a task; without those that could answer none, or fell back to another that is there."""
    found, said = {}, set()
    for name in names:
        rows = pl.read_parquet(out / f"{name}.parquet").filter(pl.col("task") == task)
        if name == "swapped":
            rows = rows.with_columns(pl.lit(SWAPPED).alias("method"))
        if rows["predicted_boolean_probability"].is_not_null().any() and rows["method"][0] not in said:
            found[name] = rows
            said.add(rows["method"][0])
    return found


def metrics_of(out: Path, chosen: dict[str, pl.DataFrame], forecasts: dict[str, dict[str, pl.DataFrame]]) -> pl.DataFrame:
    """Metric rows of every method on the rows that all could be asked about."""
    parts = []
    for task, labels in chosen.items():
        found = list(forecasts[task].values())
        columns = ["subject_id", "prediction_time", "task", "predicted_boolean_probability", "method", "num_samples"]
        every = [frame.select(columns) for frame in found]
        unsampled = [pl.read_parquet(out / kind / f"{task}.parquet") for kind in ("truth", "record", "taught")]
        every += [frame.with_columns(pl.lit(None, dtype=pl.Int32).alias("num_samples")).select(columns) for frame in unsampled]
        answered = found[0].filter(pl.col("predicted_boolean_probability").is_not_null()).select(KEY)
        frame = pl.concat(every).join(answered, on=KEY, how="semi", maintain_order="left")
        unsaid = ("std_error", "completion", "lower_bound", "upper_bound")
        frame = frame.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in unsaid)
        # Few can be asked with another's record: by themselves, as all others are compared on the rows that every method predicts.
        alone = pl.col("method") == SWAPPED
        parts += [evaluate_predictions(rows, labels, replicates=500, seed=0) for rows in (frame.filter(~alone), frame.filter(alone))]
    return pl.concat(parts)


def expected(out: Path, task: str, forecasts: dict[str, pl.DataFrame]) -> dict[str, dict[str, float]]:
    """method -> metrics with the chance of who had the event taken out: each row counts as an event by its true risk and as none by the rest."""
    truth = pl.read_parquet(out / "truth" / f"{task}.parquet").select(*KEY, pl.col("predicted_boolean_probability").alias("_true"))
    parts = [rows for name, rows in forecasts.items() if name != "swapped"]
    parts += [pl.read_parquet(out / kind / f"{task}.parquet") for kind in ("record", "truth")]
    asked = parts[0].filter(pl.col("predicted_boolean_probability").is_not_null()).select(KEY)
    found = {}
    for frame in parts:
        both = frame.join(asked, on=KEY, how="semi").join(truth, on=KEY).drop_nulls(["predicted_boolean_probability", "_true"])
        p, t = np.tile(both["predicted_boolean_probability"].to_numpy(), 2), both["_true"].to_numpy()
        outcome, weight = np.repeat([True, False], len(t)), np.concatenate([t, 1 - t])
        found[str(frame["method"][0])] = {
            "auroc": float(auroc(outcome, p, weight)[0]),
            "calibration_slope": float(slope(outcome, logit(p, clip=clip(both)), weight)[0]),
            "ece": float(ece(outcome, p, weight)[0]),
            "prevalence": float(t.mean()),
        }
    return found


def likeness(out: Path, task: str, forecasts: dict[str, pl.DataFrame]) -> dict[str, tuple[float, float, float]]:
    """method -> correlation with the true risk, root mean square error, mean difference."""
    truth = pl.read_parquet(out / "truth" / f"{task}.parquet").select(*KEY, pl.col("predicted_boolean_probability").alias("_true"))
    parts = [rows for name, rows in forecasts.items() if name != "swapped"]
    parts.append(pl.read_parquet(out / "taught" / f"{task}.parquet"))
    found = {}
    for frame in parts:
        for (method,), group in frame.group_by("method", maintain_order=True):
            both = group.join(truth, on=KEY).drop_nulls(["predicted_boolean_probability", "_true"])
            if both.is_empty():  # too few labels for this one to learn from
                continue
            p, t = both["predicted_boolean_probability"].to_numpy(), both["_true"].to_numpy()
            r = float(np.corrcoef(p, t)[0, 1]) if len(p) > 2 and np.ptp(p) > 0 else float("nan")
            found[str(method)] = (r, float(np.sqrt(((p - t) ** 2).mean())), float((p - t).mean()))
    return found


@dataclass
class Judged:
    """Metric rows, and what is read off them."""

    metrics: pl.DataFrame

    def value(self, task: str, method: str, metric: str) -> float:
        """One number; NaN, which is within no limit, where there is none."""
        rows = self._rows(task, method, metric)
        return rows[0]["value"] if rows and rows[0]["value"] is not None else float("nan")

    def cell(self, task: str, method: str, metric: str) -> str:
        """One number with its 95% interval."""
        rows = self._rows(task, method, metric)
        if not rows or rows[0]["value"] is None:
            return "-"
        value, lower, upper = (rows[0][name] for name in ("value", "lower", "upper"))
        return f"{value:.2f}" if lower is None else f"{value:.2f} ({lower:.2f} to {upper:.2f})"

    def _rows(self, task: str, method: str, metric: str) -> list[dict[str, Any]]:
        of_all = (pl.col("task") == task) & (pl.col("method") == method) & (pl.col("metric") == metric)
        return self.metrics.filter(of_all).to_dicts()

    def methods(self, task: str) -> list[str]:
        """Those that were judged on a task, in order."""
        return self.metrics.filter(pl.col("task") == task)["method"].unique(maintain_order=True).to_list()

    def error_share(self, task: str, method: str) -> float:
        """Expected calibration error over the prevalence."""
        return self.value(task, method, "ece") / self.value(task, TRUTH, "prevalence")

    def gap(self, task: str, method: str) -> float:
        """How far the AUROC is below the true risk's."""
        return self.value(task, TRUTH, "auroc") - self.value(task, method, "auroc")

    def misses(self, task: str, method: str) -> list[str]:
        """What is outside the limits that were set before."""
        return outside(self.value(task, method, "calibration_slope"), self.error_share(task, method), self.gap(task, method))


def outside(slope: float, error_share: float, gap: float) -> list[str]:
    """What misses of the aim: slope, calibration error over the prevalence, how far the AUROC is below the true risk's."""
    within = {"slope": 0.8 <= slope <= 1.25, "ECE": error_share <= 0.25, "AUROC": gap <= 0.05}
    return [what for what, good in within.items() if not good]


class Tally:
    """How many tasks each estimator has without a miss, and the one best suited to each task."""

    def __init__(self) -> None:
        self.within = {method: [0, 0] for method in (*OURS, "best suited")}

    def add(self, method: str, suited: str, misses: list[str]) -> None:
        """Another task."""
        for name in {method, "best suited" if method == suited else method} & self.within.keys():
            self.within[name][0] += not misses
            self.within[name][1] += 1

    def __str__(self) -> str:
        return "; ".join(f"{name} {inside} of {asked}" for name, (inside, asked) in self.within.items() if asked)


def report(out: Path, chosen: dict[str, pl.DataFrame], arguments: argparse.Namespace) -> str:
    """The tables."""
    names = arguments.estimators
    forecasts = {task: forecasts_of(out, task, names) for task in chosen}
    metrics = metrics_of(out, chosen, forecasts)
    metrics.write_parquet(out / "metrics.parquet")
    found = Judged(metrics)
    taught_by = [method for method in max(map(found.methods, chosen), key=len) if method not in (*OURS, CONSTANT)]
    auroc, judged, sure, tally, sure_tally = [], [], [], Tally(), Tally()
    for task, labels in chosen.items():
        methods = found.methods(task)
        events, known = int(labels["boolean_value"].sum()), labels["boolean_value"].count()
        cells = [found.cell(task, method, "auroc") if method in methods else "-" for method in (*OURS, *taught_by)]
        auroc.append([f"`{task}`", f"{events} of {known:,}", *cells])
        alike = likeness(out, task, forecasts[task])
        without_chance = expected(out, task, forecasts[task])
        suited = next(method for method in OURS if method in methods)
        for method in methods if arguments.population == "core" else [method for method in methods if method in (*OURS, TRUTH)]:
            told = [f"{value:.3f}" if np.isfinite(value) else "-" for value in alike.get(method, (float("nan"),) * 3)]
            slope, intercept = (found.cell(task, method, f"calibration_{name}") for name in ("slope", "intercept"))
            misses = found.misses(task, method) if method in OURS else []
            ece = found.value(task, method, "ece")
            judged.append([f"`{task}`", method, slope, intercept, f"{ece:.3f}", f"{found.error_share(task, method):.2f}", *told, ", ".join(misses)])
            tally.add(method, suited, misses)
        for method in [method for method in OURS if method in without_chance]:
            of, most, known = without_chance[method], without_chance[TRUTH]["auroc"], without_chance[RECORD]["auroc"]
            share = of["ece"] / of["prevalence"]
            misses = outside(of["calibration_slope"], share, most - of["auroc"])
            numbers = [f"{value:.2f}" for value in (of["auroc"], known, most, of["calibration_slope"], share)]
            sure.append([f"`{task}`", method, *numbers, ", ".join(misses)])
            sure_tally.add(method, suited, misses)
    parts = [
        f"{datetime.now(UTC):%Y-%m-%d}. {arguments.patients:,} people to train on, {arguments.test_patients:,} others to forecast. "
        f"{arguments.samples} futures a row. {arguments.note}".strip(),
        "AUROC, weighted for censored labels, 95% intervals by patient:",
        markdown(["task", "events", *OURS, *taught_by], auroc),
        "Calibration before any recalibration, and likeness to the true risk (correlation, root mean square error, mean difference). *Misses*: slope "
        "outside 0.8 to 1.25, calibration error above a quarter of the prevalence, AUROC more than 0.05 below the true risk's:",
        markdown(["task", "risk by", "slope", "intercept", "ECE", "ECE / prevalence", "r", "RMSE", "mean difference", "misses"], judged),
        f"Tasks without a miss: {tally}. (*Best suited*: the first of {', '.join(OURS)} that can answer the task.)",
        "The same with the chance of who had the event taken out: every row counts as an event by its true risk, and as none by the rest. *Record*: "
        "what trees tell from counts of the record that were taught with the true risks of training people; what lies between it and the true risk "
        "is in no record, or not in its counts:",
        markdown(["task", "risk by", "AUROC", "record's AUROC", "true risk's", "slope", "ECE / prevalence", "misses"], sure),
        f"Tasks without a miss: {sure_tally}.",
    ]
    drawn = [name for name in ("mc", "scope", "reach") if name in names]
    if drawn:
        parts += [
            "What was drawn:",
            markdown(["estimator", "futures", "tokens drawn", "tokens a future", "completion"], drawings(out, drawn)),
        ]
    return "\n\n".join(parts)


def drawings(out: Path, names: Sequence[str]) -> list[list[str]]:
    """What was drawn."""
    rows = []
    for name in names:
        facts = json.loads((out / f"{name}.json").read_text())
        each = facts["tokens"] / facts["futures"]
        rows.append([name, f"{facts['futures']:,}", f"{facts['tokens']:,}", f"{each:.1f}", f"{facts['completion']:.4f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--page", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "forecast.md")
    parser.add_argument("--population", default="core", choices=tuple(MARKERS), help="three tasks with true risks, or thirteen")
    parser.add_argument("--estimators", nargs="+", default=[*ESTIMATORS, "swapped"], choices=(*ESTIMATORS, "swapped"))
    for name, default in (
        ("patients", 120_000),
        ("test-patients", 4_000),
        ("labelled", 20_000),
        ("rows", 2_000),
        ("samples", 32),
        ("truth-samples", 1_000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("max-tokens", 256), ("least-events", 100), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--once", action="store_true", help="ask of an estimator only what none before it could answer")
    parser.add_argument("--target-std-error", type=float, help="draw until the standard error of a row is as small, or it has --samples")
    parser.add_argument("--steps", type=int, help="of training; the recipe's own otherwise")
    parser.add_argument("--dtype", default=quick_dtype(), choices=tuple(RECIPES), help="of futures, and what the training's recipe is made for")
    parser.add_argument("--note", default="", help="a sentence for the page")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, data = arguments.out, arguments.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    make_data(data, arguments.population, arguments.patients, arguments.test_patients)
    chosen = choose(data, arguments.rows, arguments.least_events)
    (out / "truth").mkdir(exist_ok=True)
    (out / "taught").mkdir(exist_ok=True)
    (out / "record").mkdir(exist_ok=True)
    for task, labels in chosen.items():
        once(
            out / "truth" / f"{task}.parquet", lambda path, t=task, rows=labels: truth_of(data, t, rows, arguments.truth_samples).write_parquet(path)
        )
        once(out / "record" / f"{task}.parquet", lambda path, t=task, rows=labels: recorded(data, t, rows, arguments.labelled).write_parquet(path))
        once(out / "taught" / f"{task}.parquet", lambda path, t=task, rows=labels: taught(data, t, rows, arguments.labelled).write_parquet(path))
    if not (out / "model").exists():
        say("training")
        overrides = {} if arguments.steps is None else {"steps": arguments.steps}
        pretrain(data / "timeline", out / "model", str(RECIPES[arguments.dtype]), overrides=overrides, resume=True)
    draw(out, data, chosen, arguments)
    mark = MARKERS[arguments.population]
    write_between(arguments.page, f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->", report(out, chosen, arguments))
    say("done")


if __name__ == "__main__":
    main()

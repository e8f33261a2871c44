"""From the tables that `objectives_scores` left to figures with intervals, and to Markdown.

Every figure is a function of weightings of the test patients, so that its interval is a bootstrap over them, and the difference of two runs is one
too: both are asked about the same patients in every replicate. With several seeds the figure is their mean, and the interval is still one
over patients; how far apart the seeds are stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from objectives_data import KEY, Data
from results import markdown, said_when, write_between

from cehrxgpt.evaluate import auroc
from cehrxgpt.evaluate.bootstrap import bootstrap
from cehrxgpt.evaluate.calibration import intercept, logit, slope
from cehrxgpt.evaluate.gaps import coverage
from cehrxgpt.evaluate.rows import ipcw, join_labels

BEGIN, END = "<!-- objectives:begin -->", "<!-- objectives:end -->"
REPLICATES = 500
LEVELS = np.arange(1, 10) / 10
BASE = "next_token"
FORECASTS = {"tokens": "gap tokens", "gamma": "Gamma head", "decomposition": "decomposition heads"}
REFERENCES = {
    "true_risk": "true risk",
    "counts+lightgbm": "counts + LightGBM",
    "counts+logistic": "counts + logistic regression",
    "age+sex": "age and sex",
}

Array = np.ndarray
Statistic = Callable[[Array], Array]
Limits = tuple[float, float, float]


@dataclass(frozen=True)
class Task:
    """Rows of one task's held-out labels that have an outcome: whose, what came, how much each counts (censoring), and the true risk."""

    subject_id: Array
    outcome: Array
    weight: Array
    truth: Array
    place: Array  # among all held-out rows of the task, in order of KEY

    @classmethod
    def of(cls, data: Data, task: str) -> Task:
        """Of the labels."""
        truth = data.truth(task).sort(KEY)
        asked = truth.select(*KEY, "task", pl.col("true_risk").alias("predicted_boolean_probability"), pl.lit("true_risk").alias("method"))
        joined = join_labels(asked, data.labels(task))
        known = joined["label"].is_not_null().to_numpy()
        kept = joined.filter(pl.Series(known))
        outcome, risk = kept["label"].cast(pl.Boolean).to_numpy().astype(bool), truth["true_risk"].to_numpy()[known]
        return cls(kept["subject_id"].to_numpy(), outcome, ipcw(joined)[known], risk, np.flatnonzero(known))


class Scored:
    """What was scored of one run with one seed."""

    def __init__(self, folder: Path):
        self.patients = pl.read_parquet(folder / "patients.parquet").sort("subject_id")
        self.gaps = pl.read_parquet(folder / "gaps.parquet")
        self.predictions = pl.read_parquet(folder / "predictions.parquet")

    @property
    def forecasts(self) -> list[str]:
        """Of the next gap."""
        there = set(self.gaps["forecast"].unique()) if self.gaps.height else set()
        return [name for name in FORECASTS if name in there]

    def risk(self, task: str, method: str = "probe") -> Array:
        """Of every held-out label of a task, in order of KEY."""
        return risks(self.predictions, task, method)

    @cached_property
    def subjects(self) -> Array:
        """Test patients, ascending."""
        return self.patients["subject_id"].to_numpy()

    def tokens(self, what: str) -> Statistic:
        """Nats per token (`token`), per event of the whole record (`record`), per event of what happens (`what`)."""
        above, below = {"token": ("nats", "terms"), "record": ("record_nats", "events"), "what": ("what_nats", "events")}[what]
        return ratio(self.patients[above].to_numpy(), self.patients[below].to_numpy())

    def gap(self, forecast: str, score: str) -> Statistic:
        """Mean of a score over gaps."""
        scored = pl.col(score).is_not_nan()
        sums = self.gaps.filter((pl.col("forecast") == forecast) & scored).group_by("subject_id").agg(pl.col(score).sum(), pl.len())
        by_patient = self.patients.select("subject_id").join(sums, on="subject_id", how="left", maintain_order="left").fill_null(0)
        return ratio(by_patient[score].to_numpy(), by_patient["len"].to_numpy())


def risks(predictions: pl.DataFrame, task: str, method: str) -> Array:
    """Predicted risks of a task by one method, in order of KEY."""
    chosen = predictions.filter((pl.col("task") == task) & (pl.col("method") == method)).sort(KEY)
    return chosen["predicted_boolean_probability"].cast(pl.Float64).to_numpy()


def ratio(above: Array, below: Array) -> Statistic:
    """A weighted sum over another."""
    return lambda weights: (weights @ above) / (weights @ below)


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """Their mean: over seeds."""
    return lambda weights: np.mean([one(weights) for one in statistics], axis=0)


def minus(one: Statistic, other: Statistic) -> Statistic:
    """The difference, on the same weightings."""
    return lambda weights: one(weights) - other(weights)


def task_statistics(task: Task, risk: Array) -> dict[str, Statistic]:
    """AUROC, calibration, and likeness to the true risk."""
    p = risk[task.place]
    if not np.isfinite(p).all():
        return {}
    lp = logit(p)
    return {
        "auroc": lambda w: auroc(task.outcome, p, w),
        "slope": lambda w: slope(task.outcome, lp, w),
        "intercept": lambda w: intercept(task.outcome, lp, w),
        "correlation": lambda w: correlation(p, task.truth, w),
        "rmse": lambda w: np.sqrt((w @ (p - task.truth) ** 2) / w.sum(axis=1)),
    }


def correlation(x: Array, y: Array, weights: Array) -> Array:
    """Weighted correlation, [B]."""
    total = weights.sum(axis=1)
    mx, my = (weights @ x) / total, (weights @ y) / total
    covariance = (weights @ (x * y)) / total - mx * my
    return covariance / np.sqrt(((weights @ x**2) / total - mx**2) * ((weights @ y**2) / total - my**2))


def gap_coverage(gaps: pl.DataFrame, forecast: str, replicates: int) -> dict[str, Limits]:
    """Share of gaps below each quantile of their forecasts, and the largest distance from the quantile's level, with intervals by patient."""
    rows = gaps.filter(pl.col("forecast") == forecast)
    value, lost = rows["pit"].to_numpy(), rows["pit_censored"].to_numpy()

    def share(place: int) -> Statistic:
        return lambda weights: coverage(value, lost, LEVELS[place : place + 1], weights)[:, 0]

    found = bootstrap({f"{level:.0%}": share(place) for place, level in enumerate(LEVELS)}, rows["subject_id"].to_numpy(), replicates=replicates)
    return {**found, "largest": (max(abs(found[f"{level:.0%}"][0] - level) for level in LEVELS), np.nan, np.nan)}


def figures(folder: Path, data: Data) -> dict[str, list[float | None]]:
    """Every figure of one run with its interval, as it stands in results.jsonl."""
    scored = Scored(folder)
    by_patient = {f"{what}_nats": scored.tokens(what) for what in ("token", "record", "what")}
    for name in scored.forecasts:
        by_patient |= {f"{name}/{score}": scored.gap(name, score) for score in ("log_score", "crps")}
    found = bootstrap(by_patient, scored.subjects, replicates=REPLICATES)
    for name in scored.forecasts:
        found |= {f"{name}/coverage/{level}": limits for level, limits in gap_coverage(scored.gaps, name, 0).items()}
    for name in data.tasks:
        task = Task.of(data, name)
        limits = bootstrap(task_statistics(task, scored.risk(name)), task.subject_id, weights=task.weight, replicates=REPLICATES)
        found |= {f"{name}/{metric}": limit for metric, limit in limits.items()}
    return {name: [None if np.isnan(part) else round(float(part), 5) for part in limits] for name, limits in found.items()}


# -- Markdown --------------------------------------------------------------------------------------------------------------------------


def said(limits: Limits, digits: int, *, sign: bool = False) -> str:
    """A figure with its interval."""
    value, lower, upper = (f"{part:{'+' if sign else ''}.{digits}f}" for part in limits)
    return value if np.isnan(limits[1]) else f"{value} ({lower} to {upper})"


class Report:
    """The tables over some runs, each with its seeds; the first is the one that the others are compared with."""

    def __init__(self, runs: Mapping[str, list[dict[str, Any]]], names: Mapping[str, Any], data: Data, out: Path):
        self.lines, self.names, self.data, self.out = runs, names, data, out
        self.scored = {name: [Scored(out / line["folder"]) for line in lines] for name, lines in runs.items()}
        self.base = self.scored.get(BASE)

    def _limits(self, name: str, make: Callable[[Scored], Statistic], base: Callable[[Scored], Statistic] | None) -> tuple[Limits, Limits | None]:
        """A figure over patients, and its difference from the base's."""
        statistics = {"value": mean_of([make(one) for one in self.scored[name]])}
        if base is not None and self.base is not None:
            statistics["difference"] = minus(statistics["value"], mean_of([base(one) for one in self.base]))
        found = bootstrap(statistics, self.scored[name][0].subjects, replicates=REPLICATES)
        return found["value"], found.get("difference")

    def tokens(self) -> str:
        """What comes next."""
        rows = []
        for name, lines in self.lines.items():
            cells = [
                self.names[name].says,
                f"{np.mean([line['tokens_seen'] for line in lines]) / 1e6:.2f} M",
                f"{np.mean([line['epochs'] for line in lines]):.1f}",
            ]
            for what in ("token", "record", "what"):
                value, difference = self._limits(name, lambda one, what=what: one.tokens(what), lambda one, what=what: one.tokens(what))
                cells.append(said(value, 3))
                if what != "token":
                    # Without time tokens a record says less, and its nats are of something else.
                    unlike = name == BASE or (what == "record" and self.names[name].store == "untimed")
                    cells.append("" if difference is None or unlike else said(difference, 3, sign=True))
            rows.append(cells)
        return markdown(
            ["run", "tokens seen", "epochs", "nats per token", "record, nats per event", "difference", "what happens, nats per event", "difference"],
            rows,
        )

    def gaps(self) -> str:
        """The next gap."""
        rows = []
        for name, scored in self.scored.items():
            for forecast in scored[0].forecasts:
                cells = [self.names[name].says, FORECASTS[forecast]]
                for score, digits in (("log_score", 3), ("crps", 2)):
                    value, difference = self._limits(name, lambda one, f=forecast, s=score: one.gap(f, s), lambda one, s=score: one.gap("tokens", s))
                    itself = name == BASE and forecast == "tokens"
                    cells += [said(value, digits), "" if difference is None or itself else said(difference, digits, sign=True)]
                rows.append(cells)
        return markdown(["run", "forecast by", "log score, nats per gap", "difference", "CRPS, days", "difference"], rows)

    def calibration(self) -> str:
        """Coverage of the next gap."""
        rows = []
        for name, scored in self.scored.items():
            for forecast in scored[0].forecasts:
                found = [gap_coverage(one.gaps, forecast, 0) for one in scored]
                shares = [np.mean([each[f"{level:.0%}"][0] for each in found]) for level in LEVELS]
                largest = max(abs(share - level) for share, level in zip(shares, LEVELS, strict=True))
                half = max(np.ptp(limits[1:]) / 2 for key, limits in gap_coverage(scored[0].gaps, forecast, 100).items() if key != "largest")
                rows.append(
                    [self.names[name].says, FORECASTS[forecast], *(f"{share:.1%}" for share in shares), f"{100 * largest:.1f}", f"{100 * half:.1f}"]
                )
        return markdown(
            ["run", "forecast by", *(f"{level:.0%}" for level in LEVELS), "largest error, points", "half of the widest 95% interval"], rows
        )

    def tasks(self) -> tuple[str, str]:
        """AUROC, and calibration with likeness to the true risk."""
        tasks = {name: Task.of(self.data, name) for name in self.data.tasks}
        ranks: dict[str, list[str]] = {}
        meanings: dict[str, list[str]] = {}
        for name, scored in self._risks(tasks).items():
            ranks[name], meanings[name] = [], []
            for each, task in tasks.items():
                base = [task_statistics(task, one.risk(each))["auroc"] for one in self.base or []]
                every = [task_statistics(task, risk) for risk in scored[each]]
                if not all(every):
                    ranks[name] += ["-", "-"]
                    meanings[name] += ["-"] * 4
                    continue
                statistics = {metric: mean_of([one[metric] for one in every]) for metric in every[0]}
                if base:
                    statistics["difference"] = minus(statistics["auroc"], mean_of(base))
                found = bootstrap(statistics, task.subject_id, weights=task.weight, replicates=REPLICATES)
                itself = "difference" not in found or name == self.names[BASE].says
                ranks[name] += [said(found["auroc"], 3), "" if itself else said(found["difference"], 3, sign=True)]
                meanings[name] += [said(found["slope"], 2), said(found["intercept"], 2), f"{found['correlation'][0]:.2f}", f"{found['rmse'][0]:.3f}"]
        rank_header = [text for each in tasks for text in (f"`{each}`", "difference")]
        header = [text for each in tasks for text in (f"`{each}` slope", "intercept", "r", "RMSE")]
        first, second = (
            markdown(["risk by", *head], [[name, *cells] for name, cells in found.items()])
            for head, found in ((rank_header, ranks), (header, meanings))
        )
        return first, second

    def _risks(self, tasks: Mapping[str, Task]) -> dict[str, dict[str, list[Array]]]:
        """Whose -> task -> risks, one array per seed."""
        found = {self.names[name].says: {task: [one.risk(task) for one in scored] for task in tasks} for name, scored in self.scored.items()}
        counts = pl.read_parquet(self.out / "references.parquet")
        for method, label in REFERENCES.items():
            truth = method == "true_risk"
            found[label] = {
                task: [self.data.truth(task).sort(KEY)["true_risk"].to_numpy() if truth else risks(counts, task, method)] for task in tasks
            }
        return found

    def seeds(self) -> str:
        """Lowest and highest over seeds."""
        rows = []
        for name, lines in self.lines.items():
            wanted = ["record_nats", "what_nats", "tokens/log_score", "tokens/crps", *(f"{task}/auroc" for task in self.data.tasks)]
            spread = []
            for figure in wanted:
                values = [line["figures"][figure][0] for line in lines if figure in line["figures"]]
                spread.append(f"{min(values):.3f} to {max(values):.3f}" if values else "-")
            rows.append([self.names[name].says, str(len(lines)), *spread])
        header = ["run", "seeds", "record", "what happens", "log score", "CRPS", *(f"`{task}`" for task in self.data.tasks)]
        return markdown(header, rows)

    def text(self, title: str) -> str:
        """All tables under a heading."""
        ranks, meanings = self.tasks()
        parts = [
            f"## {title}",
            f"{said_when([line for lines in self.lines.values() for line in lines])}. {self._settings()}",
            f"What comes next:\n\n{self.tokens()}",
            f"The next gap:\n\n{self.gaps()}",
            "Calibration of the next gap: the share of gaps below each quantile of their forecasts, which should be the quantile's level:",
            self.calibration(),
            f"AUROC of the linear probe:\n\n{ranks}",
            f"Its calibration, and its likeness to the true risk (correlation r, root mean square error):\n\n{meanings}",
        ]
        if any(len(lines) > 1 for lines in self.lines.values()):
            parts.append(f"How far apart the seeds are:\n\n{self.seeds()}")
        return "\n\n".join(parts)

    def _settings(self) -> str:
        line = next(iter(self.lines.values()))[0]
        settings, facts, config = self.data.settings, self.data.facts, line["settings"]
        shape, limit = config["model"], f"{config['tokens_per_batch']:,} tokens a step, about {line['tokens']:,} in all"
        compared = len(self.data.comparable())
        powered = "; ".join(f"`{task}` {counts['events']:,} of {counts['rows']:,}" for task, counts in facts["tasks"].items())
        gaps = self.scored[next(iter(self.scored))][0].gaps
        open_share = gaps.filter(pl.col("forecast") == "tokens")["open"].mean() if gaps.height else None
        return (
            f"Population `{settings.population}`: {settings.patients:,} people to train on (seed {settings.seed}), "
            f"{settings.test_patients:,} others to test on (seed {settings.test_seed}). "
            f"{shape['width']} wide, {shape['layers']} layers, context {shape['context']}, {config['optimizer']}, "
            f"learning rate {config['learning_rate']:g}, {limit}, last weights. "
            f"Losses and gaps: {compared:,} test histories that fit the context in every store"
            + (f", {open_share:.1%} of their gaps open" if open_share is not None else "")
            + f". Probes: labels of {settings.probe_patients:,} training patients; events of known test labels: {powered}. "
            f"True risk: {settings.truth_samples:,} futures a row."
        )


def write_tables(page: Path, lines: Sequence[dict[str, Any]], names: Mapping[str, Any], data: Data, out: Path, tokens: int) -> None:
    """Put the tables of all that is done between the markers of a page (or make the page)."""
    # A later line about the same run replaces the earlier one: the figures' meaning or the settings had changed.
    newest = {(line["run"], line["seed"]): line for line in lines if line["tokens"] == tokens}
    found = {name: [newest[key] for key in sorted(newest) if key[0] == name] for name in names}
    screen = {name: [line for line in every if line["seed"] == 0] for name, every in found.items()}
    some = {name: one for name, one in screen.items() if one}
    parts = [Report(some, names, data, out).text("Screening, one seed")] if some else []
    if 0 < len(some) < len(names):
        parts.append("Runs that are not done yet, and so not in the tables: " + ", ".join(f"`{name}`" for name in names if name not in some) + ".")
    if finalists := {name: every for name, every in found.items() if len(every) > 1}:
        parts.append(Report(finalists, names, data, out).text("Finalists, means over seeds"))
    write_between(page, BEGIN, END, "\n\n".join(parts))

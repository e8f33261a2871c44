"""A run: stages in order, each with a manifest, so that a rerun skips what still holds and an interrupted run goes on.

    RUN/
        cdm/  events/  timeline/  model/  labels/  truth/  embeddings/  probe/  forecast/  synthetic/  synthetic_events/  evaluation/
        manifests/<stage>.json    what the stage was made from (see `manifest`)
        run.json                  the stages of the last run, their times and figures
        report.html

A recipe is strict YAML (`recipes/run-demo.yaml`): where the tables come from, the settings of each stage, the tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cehrxgpt import manifest, stages
from cehrxgpt.atomic import write_json
from cehrxgpt.config import read_config, to_dict
from cehrxgpt.console import Console, Progress
from cehrxgpt.errors import InputError
from cehrxgpt.forecast.config import ForecastConfig
from cehrxgpt.sources.url import has_password, is_url

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class ForecastSettings:
    """How much of the held-out population is forecast, and how. The report shows futures, so `time_to_event`, which draws none, is not among the
    estimators: what it says stands beside, where the model has learned it."""

    split: str = "held_out"
    max_rows: int = 500  # of each task
    estimator: Literal["mc", "scope", "reach"] = "mc"  # see `ForecastConfig`
    samples: int = 16
    target_std_error: float | None = None
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise ValueError(f"max_rows is {self.max_rows}; it must be at least 1")
        # Here and not when it comes to forecasting: by then an hour of training may have gone.
        ForecastConfig(**{name: value for name, value in vars(self).items() if name not in ("split", "max_rows")})


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """How many people to write."""

    patients: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. Exactly one of `simulate` and `source` says where the tables come from."""

    tasks: tuple[str, ...]
    simulate: dict[str, Any] | None = None  # settings of the simulator
    source: str | None = None  # a folder or DuckDB file of OMOP tables, a database URL, or a MEDS folder
    ingest: dict[str, Any] = field(default_factory=dict)
    tokenize: dict[str, Any] = field(default_factory=dict)
    pretrain: str = "demo"  # name of a training recipe, or a file
    pretrain_overrides: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    truth_samples: int = 2000  # re-simulations per row, where the population is simulated
    forecast: ForecastSettings = ForecastSettings()
    synthesize: SynthesisSettings = SynthesisSettings()
    patient: str = "auto"  # whose record the report shows: auto (nobody real), none, or a subject id

    def __post_init__(self) -> None:
        if (self.simulate is None) == (self.source is None):
            raise ValueError("give exactly one of 'simulate' and 'source'")
        if self.source is not None and has_password(self.source):
            raise ValueError("'source' has a password in it, which a run's manifests would keep; leave it to PGPASSWORD or ~/.pgpass")
        if self.simulate is not None and self.truth_samples < 2:
            raise ValueError(f"truth_samples is {self.truth_samples}; the true risks of a simulated run need at least 2 re-simulations a row (2000)")
        if not self.tasks:
            raise ValueError("'tasks' is empty; name at least one (cehrxgpt tasks lists them)")


@dataclass(frozen=True)
class Stage:
    """One step: what it reads and writes (paths under the run's folder), what decides its result, and the work."""

    name: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    settings: Any
    work: Callable[[Progress], dict[str, Any]]


def read_recipe(path: Path) -> Recipe:
    """Read a run recipe; a relative `source` or task file is taken from the recipe's folder.

    Raises:
        ConfigError: unknown keys, wrong types, missing keys.
    """
    recipe = read_config(Recipe, path)
    beside = [str(path.parent / task) if Path(task).suffix and not Path(task).is_absolute() else task for task in recipe.tasks]
    recipe = replace(recipe, tasks=tuple(beside))
    if recipe.source is not None and not is_url(recipe.source) and not Path(recipe.source).is_absolute():
        recipe = replace(recipe, source=str(path.parent / recipe.source))
    return recipe


def demo_recipe(*, quick: bool = False, seed: int = 7, threads: int | None = None) -> Recipe:
    """The recipe of `cehrxgpt demo`, shipped with the package."""
    recipe = read_config(Recipe, RECIPES / ("run-quick.yaml" if quick else "run-demo.yaml"))
    simulate = {**(recipe.simulate or {}), "seed": seed}
    ingest = dict(recipe.ingest) | ({"threads": threads} if threads is not None else {})
    return replace(recipe, simulate=simulate, ingest=ingest)


def plan(recipe: Recipe, run: Path, say: Callable[[str], None] = lambda line: None) -> list[Stage]:
    """The stages of a recipe, in order; `say` is told what no figure shows."""
    events, timeline, model = run / "events", run / "timeline", run / "model"
    labels, embeddings, probe, truth = run / "labels", run / "embeddings", run / "probe", run / "truth"
    forecast, synthetic, synthetic_events, evaluation = run / "forecast", run / "synthetic", run / "synthetic_events", run / "evaluation"
    source = Path(recipe.source) if recipe.source is not None and not is_url(recipe.source) else run / "cdm"
    tables = recipe.source if recipe.source is not None and is_url(recipe.source) else source
    simulated = recipe.simulate is not None
    tasks = recipe.tasks
    own = [task for task in tasks if Path(task).suffix]  # the library's are known to tokenize anyway
    chosen = {"tasks": tasks}
    planned = []
    if recipe.simulate is not None:
        settings = recipe.simulate
        planned.append(Stage("simulate", (), (source,), settings, lambda p: stages.simulate(source, settings, force=True, progress=p)))
    planned += [
        Stage(
            "ingest",
            (source,) if tables is source else (),
            (events,),
            recipe.ingest if tables is source else {**recipe.ingest, "database": tables},
            lambda p: stages.ingest(tables, events, recipe.ingest, force=True, progress=p),
        ),
        Stage(
            "tokenize",
            (events,),
            (timeline,),
            {**recipe.tokenize, "tasks": [stages.task_settings(task) for task in own]} if own else recipe.tokenize,
            lambda p: stages.tokenize(events, timeline, recipe.tokenize, tasks=own, force=True, progress=p),
        ),
        Stage(
            "pretrain",
            (timeline,),
            (model,),
            stages.training_config(recipe.pretrain, recipe.pretrain_overrides),
            lambda p: stages.pretrain(
                timeline, model, recipe.pretrain, overrides=recipe.pretrain_overrides, resume=True, force=True, progress=p, say=say
            ),
        ),
        Stage(
            "label",
            (events,),
            (labels,),
            {"tasks": [stages.task_settings(task) for task in tasks]},
            lambda p: stages.label_all(events, tasks, labels, progress=p),
        ),
    ]
    if simulated:
        settings_truth = {"samples": recipe.truth_samples, "forecast": recipe.forecast}
        planned.append(
            Stage(
                "truth",
                (source, events, labels),
                (truth,),
                settings_truth,
                lambda p: stages.true_risks(source, events, labels, truth, recipe.forecast, samples=recipe.truth_samples, progress=p),
            )
        )
    planned += [
        Stage("embed", (model, events, labels), (embeddings,), chosen, lambda p: stages.embed_all(model, events, labels, embeddings, progress=p)),
        Stage(
            "probe",
            (embeddings, labels, events),
            (probe,),
            recipe.probe,
            lambda p: stages.probe_all(embeddings, labels, events, probe, recipe.probe, progress=p),
        ),
        Stage(
            "forecast",
            (model, events, labels),
            (forecast,),
            recipe.forecast,
            lambda p: stages.forecast_all(model, events, labels, tasks, forecast, recipe.forecast, progress=p),
        ),
        Stage(
            "synthesize",
            (model,),
            (synthetic, synthetic_events),
            recipe.synthesize,
            lambda p: stages.synthesize_and_ingest(
                model, synthetic, synthetic_events, recipe.synthesize.patients, {"seed": recipe.synthesize.seed}, like=events, progress=p
            ),
        ),
        Stage(
            "evaluate",
            (labels, probe, forecast, synthetic_events, events, *((truth,) if simulated else ())),
            (evaluation,),
            chosen,
            lambda p: stages.evaluate_all(run, evaluation, progress=p),
        ),
    ]
    return planned


def _run_stage(stage: Stage, run: Path, console: Console) -> dict[str, Any]:
    path = run / "manifests" / f"{stage.name}.json"
    facts = manifest.describe(stage.name, inputs=list(stage.inputs), settings=stage.settings)
    held = manifest.still_holds(path, facts, outputs=list(stage.outputs))
    if held is not None:
        console.say(f"{stage.name:<12} holds, skipped")
        return _done(stage, held, skipped=True)
    started = time.monotonic()
    with console.progress(stage.name) as progress:
        figures = stage.work(progress)
    seconds = time.monotonic() - started
    written = manifest.write(path, facts, outputs=list(stage.outputs), figures=figures, seconds=seconds)
    console.say(f"{stage.name:<12} {seconds:7.1f} s")
    return _done(stage, written, skipped=False)


def _done(stage: Stage, written: dict[str, Any], *, skipped: bool) -> dict[str, Any]:
    """A stage's row of run.json. `finished`: when its result was made, be it in an earlier run; None in manifests of old."""
    row = {"name": stage.name, "status": "done", "skipped": skipped, "seconds": round(written["seconds"], 1)}
    return {**row, "finished": written.get("finished"), "figures": written["figures"]}


def run_recipe(recipe: Recipe, run: Path, *, console: Console) -> dict[str, Any]:
    """Run all stages that do not hold yet, then the report; returns the figures that matter.

    Raises:
        InputError: `run` is there and is not a run's folder.
    """
    if run.exists() and (not run.is_dir() or (any(run.iterdir()) and not (run / "manifests").is_dir())):
        raise InputError(f"{run}: not empty and not a run of ours; give another --out")
    run.mkdir(parents=True, exist_ok=True)
    (run / "manifests").mkdir(exist_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    done = [_run_stage(stage, run, console) for stage in plan(recipe, run, console.say)]
    # When the last result was made: a rerun that finds that all holds makes nothing new.
    made = [row["finished"] for row in done]
    finished = max(made) if all(made) else datetime.now(UTC).isoformat(timespec="seconds")
    write_json(
        run / "run.json", {"recipe": to_dict(recipe), "stages": done, "started": started, "finished": finished, "versions": manifest.versions()}
    )
    page = stages.report(run, None, patient=recipe.patient, force=True)
    figures = {row["name"]: row["figures"] for row in done}
    rows = figures["evaluate"].get("headline", [])
    console.table("Held-out patients: AUROC (95% interval)", ["task", "method", "AUROC", "rows", "subjects", "positives"], rows)
    return {
        "run": str(run),
        "report": page["report"],
        "seconds": round(sum(row["seconds"] for row in done if not row["skipped"]), 1),
        **_headline(figures),
    }


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    return {"tokens_per_second": figures["pretrain"].get("tokens_per_second"), "metrics": figures["evaluate"].get("metrics", {})}

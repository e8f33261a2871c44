"""Zero-shot risk: simulate each patient's future many times and look for the outcome with the labeler's own function.

One pool of futures is drawn per prediction time and shared by all tasks that ask about it. Each future starts from the last available
event, conditioned on nothing having happened since, and runs to the longest horizon asked for, to death, or until its token budget is
used up; only where a single task asks may it stop at the outcome. `estimators` turns what was found into risks, and keeps futures that ran
out of budget in the denominator.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.events import EVENT_DTYPES, EventDataset
from cehrxgpt.forecast.estimators import monte_carlo
from cehrxgpt.forecast.futures import Case, Pool, draw_pool, make_cases
from cehrxgpt.tasks import Task, attach_stay, had_before, load_task, outcome_in_window, outcome_tokens, resolve
from cehrxgpt.tasks.tokens import HasCodes
from cehrxgpt.timeline.moments import NO_SUBJECT, Moments, check_moments, encode_moments
from cehrxgpt.timeline.time import MINUTES_PER_DAY, datetime64_from_instant, instant_from_datetime64
from cehrxgpt.timeline.timeline import Timeline

if TYPE_CHECKING:
    from cehrxgpt.model.hub import Loaded

METHOD = "monte_carlo"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """How futures are drawn.

    Attributes:
        samples: futures per prediction time.
        seed: futures are a function of it, of subject, prediction time and sample number.
        max_new_tokens: budget of one future. At least half of the model's context is kept for the history all the same.
        batch_rows: futures written side by side.
        moments: prediction times per pool; bounds the memory that decoded futures take.
        dtype: precision to compute in; None = the model's own.
        max_unknown_share: a history with a larger share of events outside the vocabulary is refused.
        stop_at_outcome: where one task alone asks about a prediction time and its outcome is a set of tokens.
        stay_days: how long futures run for tasks whose window ends with the stay.
        trajectories: keep the futures as events (memory grows with rows x samples).
    """

    samples: int = 16
    seed: int = 0
    max_new_tokens: int = 256
    batch_rows: int = 256
    moments: int = 128
    dtype: Literal["float32", "float64", "bfloat16"] | None = None
    max_unknown_share: float = 0.5
    stop_at_outcome: bool = True
    stay_days: int = 90
    trajectories: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_rows", "moments", "stay_days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ValueError(f"dtype is '{self.dtype}'; valid: {', '.join(_DTYPES)}")
        if not 0 <= self.max_unknown_share <= 1:
            raise ValueError(f"max_unknown_share is {self.max_unknown_share}; it must lie between 0 and 1")


@dataclass(frozen=True)
class Forecast:
    """What `forecast` found.

    Attributes:
        predictions: PREDICTION_SCHEMA, one row per (row of `at`, task).
        samples: SAMPLE_SCHEMA, one row per future.
        trajectories: TRAJECTORY_SCHEMA, where it was asked for.
        summary: counts, plain JSON.
    """

    predictions: pl.DataFrame
    samples: pl.DataFrame
    trajectories: pl.DataFrame | None
    summary: dict[str, Any]


@dataclass
class _State:
    """What is collected while pools are drawn. `risk[(task, moment)]` = probability, error, completion, lower, upper."""

    risk: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    note: dict[tuple[str, int], str] = field(default_factory=dict)
    samples: list[pl.DataFrame] = field(default_factory=list)
    trajectories: list[pl.DataFrame] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    futures: int = 0


def _rows(at: pl.DataFrame, tasks: Sequence[Task]) -> pl.DataFrame:
    """`task`, `subject_id`, `prediction_time`, `boolean_value` of every prediction to make, in order."""
    keys = check_moments(at, where="rows to forecast")
    label = pl.Series("boolean_value", at["boolean_value"] if "boolean_value" in at.columns else [None] * at.height, dtype=pl.Boolean)
    keys = keys.with_columns(label)
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise InputError(f"forecast: two tasks share a name ({', '.join(names)}); names must differ")
    if "task" in at.columns:
        asked = keys.with_columns(at["task"].cast(pl.String))
        unknown = asked.filter(~pl.col("task").is_in(names))["task"].unique().to_list()
        if unknown:
            raise InputError(f"forecast: rows ask for task '{unknown[0]}', which was not given; given: {', '.join(names)}")
        return asked.select("task", "subject_id", "prediction_time", "boolean_value")
    frames = [keys.select(pl.lit(name).alias("task"), pl.all()) for name in names]
    return pl.concat(frames) if frames else keys.select(pl.lit("").alias("task"), pl.all()).clear()


def forecast(
    model: Loaded,
    events: EventDataset | pl.DataFrame,
    at: pl.DataFrame,
    tasks: Sequence[Task | str | Path],
    config: ForecastConfig | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Forecast:
    """Risk of each task's outcome at each row of `at`.

    Args:
        model: as `load_model` gives it.
        events: a data set or an EventTable.
        at: `subject_id`, `prediction_time`; with a column `task` each row asks for its task alone, else each row for all of them.
            `boolean_value` is carried along if it is there. Labels will do.
        tasks: names, files or Tasks.
        config: see `ForecastConfig`.
        progress: called with (futures drawn, futures in all, "futures").

    Returns:
        Predictions in the order of `at` (task by task without a `task` column); a row that cannot be predicted has a null probability and
        says why in `note`. Every row is there.

    Raises:
        InputError: a row asks for a task that was not given.  SchemaError: `at` lacks a column or has nulls.
    """
    config = config or ForecastConfig()
    codes = events.codes if isinstance(events, EventDataset) else None
    known = {task.name: task for task in (resolve(load_task(one), codes) for one in tasks)}
    if len(known) < len(tasks):
        raise InputError("forecast: two tasks share a name; names must differ")
    rows = _rows(at, list(known.values()))
    moments = rows.select("subject_id", "prediction_time").unique(maintain_order=True)
    numbered = rows.join(moments.with_row_index("_moment"), on=["subject_id", "prediction_time"], how="left", maintain_order="left")
    asked: dict[int, tuple[str, ...]] = {}
    for moment, names in numbered.group_by("_moment").agg(pl.col("task").unique().sort()).iter_rows():
        asked[int(moment)] = tuple(names)
    worker = _Worker(model, known, asked, config, progress)
    for chunk in encode_moments(worker.timeline, events, moments, rows=config.moments):
        worker.take(chunk)
    worker.flush()
    return _collect(worker, numbered)


class _Worker:
    """Gathers cases by the set of tasks that ask about them, and draws a pool whenever there are enough."""

    def __init__(
        self,
        model: Loaded,
        tasks: dict[str, Task],
        asked: dict[int, tuple[str, ...]],
        config: ForecastConfig,
        progress: Callable[[int, int, str], None] | None,
    ):
        self.vocabulary, self.config, self.tasks, self.asked, self.progress = model.vocabulary, config, tasks, asked, progress
        self.timeline = Timeline(model.vocabulary)
        self.decoder = model.decoder
        if config.dtype is not None and _DTYPES[config.dtype] != self.decoder.embedding.weight.dtype:
            self.decoder = copy.deepcopy(self.decoder).to(_DTYPES[config.dtype])
        context = model.config.context
        self.history_tokens = max(context - config.max_new_tokens, context // 2)
        self.tokens = {name: outcome_tokens(task, cast(HasCodes, model.vocabulary)) for name, task in tasks.items()}
        self.waiting: dict[tuple[str, ...], list[Case]] = {}
        self.state = _State()
        self.total = len(asked) * config.samples

    def take(self, moments: Moments) -> None:
        """Make cases of a chunk; refuse what cannot be forecast."""
        refused = moments.refusal(self.config.max_unknown_share)
        usable = [place for place, why in enumerate(refused) if why is None]
        for place, why in enumerate(refused):
            if why is not None:
                self._refuse(int(moments.index[place]), self.asked[int(moments.index[place])], why)
        for case in self._with_stays(moments, make_cases(moments, usable, self.vocabulary, self.timeline.grammar, self.history_tokens)):
            names = tuple(name for name in self.asked[case.moment] if (name, case.moment) not in self.state.note)
            if names:
                group = self.waiting.setdefault(names, [])
                group.append(case)
                if len(group) >= self.config.moments:
                    self._draw(names)

    def flush(self) -> None:
        """Draw what is left."""
        for names in list(self.waiting):
            self._draw(names)

    def _refuse(self, moment: int, names: Sequence[str], why: str) -> None:
        for name in names:
            self.state.note[(name, moment)] = why

    def _with_stays(self, moments: Moments, cases: list[Case]) -> list[Case]:
        """Refuse, task by task, the cases that a task cannot ask about; add the start of the index stay."""
        if not cases:
            return cases
        keys = pl.DataFrame(
            {
                "_moment": [case.moment for case in cases],
                "subject_id": [case.prompt.subject_id for case in cases],
                "prediction_time": np.array([case.prompt.prediction_time for case in cases], dtype="datetime64[us]"),
            }
        )
        starts: dict[int, dict[str, np.datetime64]] = {case.moment: {} for case in cases}
        for name, task in self.tasks.items():
            mine = keys.filter(pl.col("_moment").is_in([case.moment for case in cases if name in self.asked[case.moment]]))
            tokens = self.tokens[name]
            if tokens is not None and not tokens.any():
                for moment in mine["_moment"].to_list():
                    self._refuse(moment, [name], "the model's vocabulary has no token of the outcome")
                continue
            if task.first_onset or task.recurrence:
                before = had_before(task, moments.events, mine, by=("subject_id", "prediction_time"))
                why = f"the outcome is {'in' if task.first_onset else 'not in'} the history and the task asks for its "
                why += "first onset" if task.first_onset else "recurrence"
                for moment in mine.filter(before if task.first_onset else ~before)["_moment"].to_list():
                    self._refuse(moment, [name], why)
            if task.in_stay and mine.height:
                inside = {case.moment for case in cases if (case.in_icu if task.about_intensive_care else case.in_visit)}
                stays = attach_stay(task, moments.events, mine, by=("subject_id", "prediction_time"))
                for moment, start in stays.select("_moment", "stay_start").iter_rows():
                    if start is None or moment not in inside:
                        self._refuse(moment, [name], "no stay of the task's kind is going on at the prediction time")
                    else:
                        starts[moment][name] = np.datetime64(start, "us")
        return [replace(case, stay_start=starts[case.moment]) for case in cases]

    def _horizon(self, case: Case, names: Sequence[str]) -> int:
        """Minutes from the prediction time that a future must cover for all these tasks."""
        minutes = []
        for name in names:
            task = self.tasks[name]
            if task.outcome.stay_over_days is not None:
                until = case.stay_start[name] + np.timedelta64(round(task.outcome.stay_over_days * MINUTES_PER_DAY), "m")
                assert case.prompt.prediction_time is not None
                left = (until - case.prompt.prediction_time) / np.timedelta64(1, "m")
                minutes.append(max(int(np.ceil(left)) + 61, 1))  # an hour and a minute more: the clock inside a stay goes by hours
            elif task.follow_days is None:
                minutes.append(self.config.stay_days * MINUTES_PER_DAY)
            else:
                minutes.append(int(np.ceil(task.follow_days * MINUTES_PER_DAY)))
        return max(minutes)

    def _draw(self, names: tuple[str, ...]) -> None:
        cases = self.waiting.pop(names, [])
        if not cases:
            return
        stop = None
        if self.config.stop_at_outcome and len(names) == 1 and self.tasks[names[0]].gap_days == 0:
            stop = self.tokens[names[0]]
        base, state = self.state.futures, self.state

        def report(done: int, _: int) -> None:
            if self.progress is not None:
                self.progress(base + done, self.total, "futures")

        pool = draw_pool(
            self.decoder,
            self.vocabulary,
            cases,
            horizon_minutes=[self._horizon(case, names) for case in cases],
            samples=self.config.samples,
            seed=self.config.seed,
            max_new_tokens=self.config.max_new_tokens,
            batch_rows=self.config.batch_rows,
            stop_tokens=stop,
            progress=report,
        )
        for name in names:
            self._judge(self.tasks[name], pool)
        state.futures += len(pool.rollouts)
        state.samples.append(pool.samples)
        state.counts.update({f"stopped/{reason}": count for reason, count in pool.rollouts.stopped().items()})
        state.counts["tokens"] += int(pool.rollouts.tokens.sum())
        state.counts["gap_not_conditioned"] += int((~pool.rollouts.conditioned).sum())
        if self.config.trajectories:
            state.trajectories.append(pool.trajectories)

    def _judge(self, task: Task, pool: Pool) -> None:
        """Find the outcome in every future of the pool and estimate the risks of its cases."""
        verdict = judge(task, pool)
        shape = (len(pool.cases), self.config.samples)
        risk = monte_carlo(
            verdict.outcome.reshape(shape),
            verdict.unfinished.reshape(shape),
            verdict.end_minutes.reshape(shape),
            died=verdict.died.reshape(shape),
            open_minutes=round(task.gap_days * MINUTES_PER_DAY),
            close_minutes=None if task.follow_days is None else round(task.follow_days * MINUTES_PER_DAY),
        )
        columns = (risk.probability, risk.std_error, risk.completion, risk.lower_bound, risk.upper_bound)
        for row, case in enumerate(pool.cases):
            self.state.risk[(task.name, case.moment)] = tuple(float(column[row]) for column in columns)


@dataclass(frozen=True)
class Verdict:
    """What N futures say about a task.

    Attributes:
        outcome: bool[N]; seen within the window.
        unfinished: bool[N]; neither seen nor ruled out when the future ended.
        died: bool[N].
        end_minutes: int64[N], from the prediction time to the outcome, death, the window's close or the future's end, the first of them.
    """

    outcome: npt.NDArray[np.bool_]
    unfinished: npt.NDArray[np.bool_]
    died: npt.NDArray[np.bool_]
    end_minutes: npt.NDArray[np.int64]


def judge(task: Task, pool: Pool) -> Verdict:
    """Find a task's outcome in every future of a pool, with the function that labels real records."""
    at = pool.samples.select("subject_id", "prediction_time", "sample_id")
    prediction = instant_from_datetime64(at["prediction_time"].to_numpy())
    if task.in_stay:
        start = np.array([case.stay_start[task.name] for case in pool.cases], dtype="datetime64[us]")[pool.rollouts.prompt_index]
        stay_end = (pool.icu_end_minutes if task.about_intensive_care else pool.stay_end_minutes).copy()
        if task.outcome.stay_over_days is not None:
            # A stay that is still going on after the limit has lasted longer, whenever it may end.
            limit = instant_from_datetime64(start) + round(task.outcome.stay_over_days * MINUTES_PER_DAY)
            stay_end = np.where((stay_end < 0) & (pool.end_minutes > limit), pool.end_minutes, stay_end)
        ends = np.where(stay_end < 0, np.datetime64("NaT", "us"), datetime64_from_instant(stay_end))
        at = at.with_columns(pl.Series("stay_start", start), pl.Series("stay_end", ends))
    found = outcome_in_window(task, pool.trajectories, at)
    found = found.with_columns(pl.min_horizontal("death_time", "competing_time").alias("death_time"))  # both end follow-up
    minutes = {name: _minutes(found[name]) for name in ("outcome_time", "death_time", "window_close")}
    outcome, died = found["outcome_time"].is_not_null().to_numpy(), found["death_time"].is_not_null().to_numpy()
    closed = found["window_close"].is_not_null().to_numpy() & (pool.end_minutes >= minutes["window_close"])
    ended = np.isin(pool.rollouts.stop_reason, ("end", "death"))
    unfinished = ~(outcome | died | closed | ended)
    end = np.minimum(pool.end_minutes, minutes["window_close"])
    end = np.where(outcome, minutes["outcome_time"], np.where(died, np.minimum(minutes["death_time"], end), end))
    return Verdict(outcome, unfinished, died, np.maximum(end - prediction, 0))


_NEVER = np.iinfo(np.int64).max


def _minutes(times: pl.Series) -> npt.NDArray[np.int64]:
    """Minutes since 1970-01-01; the largest integer where null."""
    values = times.to_numpy().astype("datetime64[us]")
    return np.where(np.isnat(values), _NEVER, instant_from_datetime64(values))


def _collect(worker: _Worker, rows: pl.DataFrame) -> Forecast:
    """The results in the order of the rows."""
    state, samples = worker.state, worker.config.samples
    asked = list(zip(rows["task"].to_list(), rows["_moment"].to_list(), strict=True))
    numbers = [state.risk.get(key) for key in asked]
    notes = [None if key in state.risk else state.note.get(key, NO_SUBJECT) for key in asked]
    names = ("predicted_boolean_probability", "std_error", "completion", "lower_bound", "upper_bound")
    columns = [pl.Series(name, [None if one is None else one[place] for one in numbers], dtype=pl.Float64) for place, name in enumerate(names)]
    predictions = rows.with_columns(
        *columns,
        pl.Series("note", notes, dtype=pl.String),
        pl.lit(METHOD).alias("method"),
        pl.Series("num_samples", [0 if one is None else samples for one in numbers], dtype=pl.Int32),
    ).with_columns((pl.col("predicted_boolean_probability") >= 0.5).alias("predicted_boolean_value"))
    empty: dict[str, Any] = {**EVENT_DTYPES, "prediction_time": pl.Datetime("us"), "sample_id": pl.Int32}
    trajectories = pl.concat([pl.DataFrame(schema=empty), *state.trajectories]) if worker.config.trajectories else None
    summary = {
        "rows": rows.height,
        "predicted": len(asked) - sum(note is not None for note in notes),
        "refused": dict(Counter(note.split(" (")[0] for note in notes if note is not None)),
        "prediction_times": len(worker.asked),
        "futures": state.futures,
        "tokens": state.counts["tokens"],
        "stopped": {reason: state.counts[f"stopped/{reason}"] for reason in s.STOP_REASONS},
        "gap_not_conditioned": state.counts["gap_not_conditioned"],
        "completion": _mean(predictions["completion"]),
    }
    return Forecast(predictions.select(s.PREDICTION_SCHEMA.names), _samples(state.samples), trajectories, summary)


def _mean(values: pl.Series) -> float | None:
    mean = values.mean()
    return None if mean is None else float(mean)  # type: ignore[arg-type]


def _samples(frames: list[pl.DataFrame]) -> pl.DataFrame:
    types: dict[str, Any] = {
        "subject_id": pl.Int64,
        "prediction_time": pl.Datetime("us"),
        "sample_id": pl.Int32,
        "tokens": pl.Int32,
        "stop_reason": pl.String,
        "end_time": pl.Datetime("us"),
        "log_probability": pl.Float64,
        "seed": pl.Int64,
    }
    return pl.concat([pl.DataFrame(schema=types), *frames]).sort("subject_id", "prediction_time", "sample_id")

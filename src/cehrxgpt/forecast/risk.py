"""Zero-shot risk: simulate each patient's future many times and look for the outcome with the labeler's own function.

One pool of futures is drawn per prediction time and shared by all tasks that ask about it; with REACH each task has a pool of its own, in
which its outcome is masked. Each future starts from the last available event, conditioned on nothing having happened since, and runs to
the longest horizon asked for, to death, or until its token budget is used up; only where a single task asks may it stop at the outcome.
`increments` and `estimators` turn what was found into risks, and keep futures that ran out of budget in the denominator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from cehrxgpt import schema as s
from cehrxgpt.errors import refuse_name
from cehrxgpt.events import EVENT_DTYPES, EventDataset
from cehrxgpt.forecast.admission import admit, idle_competitors
from cehrxgpt.forecast.config import METHODS, ForecastConfig
from cehrxgpt.forecast.estimators import Curves, Evidence, Risk, curves, estimate, futures_needed
from cehrxgpt.forecast.futures import Case, Pool, draw_pool, make_cases
from cehrxgpt.forecast.increments import expected, observed, whole_dates
from cehrxgpt.forecast.journal import Found, Journal, Removed
from cehrxgpt.forecast.notes import notes_of
from cehrxgpt.forecast.rows import CURVE_TYPES, KEY, LEFT, NONE_FINISHED, RISK_TYPES, UNSAID, Questions, answer, ask, refusals
from cehrxgpt.forecast.verdict import judge
from cehrxgpt.tasks import Task, can_be_said, outcome_tokens
from cehrxgpt.tasks.tokens import HasCodes, across_bounds, hangs_on_length, why_no_tokens
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.moments import Moments, encode_moments
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.timeline import Timeline
from cehrxgpt.visits import stay_minutes

if TYPE_CHECKING:
    from cehrxgpt.model.hub import Loaded


@dataclass(frozen=True, repr=False)
class Forecast:
    """What `forecast` found.

    Attributes:
        predictions: PREDICTION_SCHEMA, one row per (row of `at`, task).
        samples: SAMPLE_SCHEMA, one row per future; REACH's, from which the outcome is taken out, are not the model's futures and are left out.
        trajectories: TRAJECTORY_SCHEMA, where it was asked for.
        curves: CURVE_SCHEMA, where it was asked for: tasks with a window of fixed length.
        summary: counts, plain JSON.
    """

    predictions: pl.DataFrame
    samples: pl.DataFrame
    trajectories: pl.DataFrame | None
    curves: pl.DataFrame | None
    summary: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """What its reader ought to know and no risk shows, a line each."""
        return notes_of(self.summary)

    def __repr__(self) -> str:
        drawn = f"{self.summary['futures']:,} futures of {self.summary['prediction_times']:,} prediction times"
        return f"Forecast({self.summary['predicted']:,} of {self.summary['rows']:,} rows predicted, {drawn}, {len(self.notes)} notes)"


def forecast(
    model: Loaded,
    events: EventDataset | pl.DataFrame,
    at: pl.DataFrame,
    tasks: Sequence[Task | str | Path] | Task | str | Path,
    config: ForecastConfig | None = None,
    *,
    journal: Journal | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Forecast:
    """Risk of each task's outcome at each row of `at`.

    Args:
        model: as `load_model` gives it.
        events: a data set or an EventTable.
        at: `subject_id`, `prediction_time`; with a column `task` each row asks for its task alone, else each row for all of them.
            `boolean_value` is carried along if it is there. Labels will do.
        tasks: names, files or Tasks; or one of these.
        config: see `ForecastConfig`.
        journal: where to keep what is done, so that an interrupted forecast goes on.
        progress: called with (futures drawn, futures in all, "futures").

    Returns:
        Predictions in the order of `at` (task by task without a `task` column); a row that cannot be predicted has a null probability and
        says why in `note`. Every row is there. With a journal that has a share, rows of other shares are null and say so.

    Raises:
        InputError: a row asks for a task that was not given.  SchemaError: `at` lacks a column or has nulls.
    """
    config = config or ForecastConfig()
    refuse_name(model, "model is", "load_model")
    questions = ask(events, at, tasks)
    worker = _Worker(model, questions, config, journal, progress)
    for chunk in encode_moments(worker.timeline, events, questions.moments, rows=config.moments):
        worker.take(chunk)
    worker.flush()
    return _collect(worker, questions)


@dataclass(frozen=True)
class _Group:
    """Tasks that share a pool; `masked`: the one task's outcome is not drawn."""

    names: tuple[str, ...]
    masked: bool


class _Worker:
    """Gathers cases by the group of tasks that ask about them, and draws a pool whenever there are enough."""

    def __init__(
        self,
        model: Loaded,
        questions: Questions,
        config: ForecastConfig,
        journal: Journal | None,
        progress: Callable[[int, int, str], None] | None,
    ):
        self.vocabulary, self.config, self.progress = model.vocabulary, config, progress
        self.tasks, self.asked = questions.tasks, questions.asked
        self.kept = None if config.trajectories_of is None else questions.moments.head(config.trajectories_of)
        self.timeline, self.journal = Timeline(model.vocabulary), journal
        self.decoder = model.decoder
        dtype = None if config.dtype is None else cast(torch.dtype, getattr(torch, config.dtype))
        if dtype is not None and dtype != self.decoder.embedding.weight.dtype:
            self.decoder = copy.deepcopy(self.decoder).to(dtype)
        context = model.config.context
        self.history_tokens = max(context - config.max_new_tokens, context // 2)
        self.tokens = {name: outcome_tokens(task, cast(HasCodes, model.vocabulary)) for name, task in self.tasks.items()}
        self.unsayable = {name for name, task in self.tasks.items() if not can_be_said(task, cast(HasCodes, model.vocabulary))}
        self.by_length = {name for name, task in self.tasks.items() if hangs_on_length(task, cast(HasCodes, model.vocabulary))}
        self.waiting: dict[_Group, list[Case]] = {}
        self.found, self.notes, self.pools = Found(), dict[tuple[str, int], str](), 0
        self.total = len(self.asked) * config.samples
        self.pool_size = config.pool_moments if journal is None else journal.pool_size(len(self.asked), config.pool_moments)

    # -- gathering ----------------------------------------------------------------------------------------------------------------

    def take(self, moments: Moments) -> None:
        """Make cases of a chunk; refuse what cannot be forecast."""
        refused = moments.refusal(self.config.max_unknown_share)
        for place, why in enumerate(refused):
            if why is not None:
                moment = int(moments.index[place])
                self.notes |= {(name, moment): why for name in self.asked[moment]}
        usable = [place for place, why in enumerate(refused) if why is None]
        cases = make_cases(moments, usable, self.vocabulary, self.timeline.grammar, self.history_tokens)
        cases, notes = admit(self.tasks, self.unsayable, self.asked, moments, cases, self.vocabulary.kind)
        self.notes |= notes
        for case in cases:
            for group in self._groups([name for name in self.asked[case.moment] if (name, case.moment) not in self.notes]):
                waiting = self.waiting.setdefault(group, [])
                waiting.append(case)
                if len(waiting) >= self.pool_size:
                    self._pool(group)

    def flush(self) -> None:
        """Draw what is left."""
        for group in list(self.waiting):
            self._pool(group)

    def _groups(self, names: Sequence[str]) -> list[_Group]:
        masked = [name for name in names if self.config.estimator == "reach" and self.tokens[name] is not None]
        shared = tuple(name for name in names if name not in masked)
        return [*(_Group((name,), True) for name in masked), *([_Group(shared, False)] if shared else [])]

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
                # A visit that begins in the window may be what is asked about once it has lasted.
                more = stay_minutes() + 1 if name in self.by_length else 0
                minutes.append(int(np.ceil(task.follow_days * MINUTES_PER_DAY)) + more)
        return max(minutes)

    def _until(self, names: Sequence[str]) -> Kind | None:
        """Kind of the token that ends what these tasks ask about, where all of them ask about the stay that is going on."""
        tasks = [self.tasks[name] for name in names]
        if not all(task.in_stay for task in tasks):
            return None
        return Kind.ICU_END if all(task.about_intensive_care for task in tasks) else Kind.VISIT_END

    # -- drawing ------------------------------------------------------------------------------------------------------------------

    def _pool(self, group: _Group) -> None:
        """The next pool: from the journal, or drawn and kept there."""
        cases, number = self.waiting.pop(group), self.pools
        self.pools += 1
        done = None if self.journal is None else self.journal.read(self.pool_size, number)
        if done is None:
            if self.journal is not None and not self.journal.mine(number):
                self.notes |= {(name, case.moment): LEFT for name in group.names for case in cases}
                return
            done = self._drawn(group, cases)
            if self.journal is not None:
                self.journal.write(self.pool_size, number, done)
        self.found.add(done)

    def _drawn(self, group: _Group, cases: list[Case]) -> Found:
        """Draw futures, all at once or as many as the first ones say are needed, and estimate the risks."""
        found, evidence, drawn = Found(), dict[str, Evidence](), 0
        needed, first = np.full(len(cases), self.config.samples), 0
        if self.config.target_std_error is not None:
            needed, first = self._needed(group, cases, found), self.config.least_samples
        while cases:
            count = self.config.next_samples(drawn)
            pool = self._futures(group, cases, count, first + drawn, found)
            unsaid = np.zeros(len(cases), dtype=bool)
            unsaid[pool.rollouts.prompt_index[~pool.rollouts.conditioned]] = True
            for name in group.names:
                more = self._evidence(name, group, pool)
                evidence[name] = evidence[name].beside(more) if drawn else more
            drawn += count
            go_on = (needed > drawn) & ~unsaid
            for name in group.names:
                self._tell(name, cases, np.flatnonzero(~go_on & ~unsaid), self._risk(name, evidence[name]), evidence[name], drawn, found)
                found.note(name, [cases[place].moment for place in np.flatnonzero(unsaid)], UNSAID)
            left = np.flatnonzero(go_on)
            cases, needed = [cases[place] for place in left], needed[left]
            evidence = {name: one.take(left) for name, one in evidence.items()}
        return found

    def _needed(self, group: _Group, cases: list[Case], found: Found) -> npt.NDArray[np.int64]:
        """How many futures make the error of every task small enough, by first futures that are then left out, int64[cases]."""
        target, first = self.config.target_std_error, self.config.least_samples
        assert target is not None
        pool = self._futures(group, cases, first, 0, found)
        errors = [self._risk(name, self._evidence(name, group, pool), expect_little=False).std_error for name in group.names]
        return np.minimum(futures_needed(np.max(errors, axis=0), first, target), self.config.samples - first).astype(np.int64)

    def _futures(self, group: _Group, cases: list[Case], count: int, first_sample: int, found: Found) -> Pool:
        """A pool of `count` further futures of each case."""
        alone = self.tokens[group.names[0]] if len(group.names) == 1 else None
        stops = alone if self.config.stop_at_outcome else None
        watched = [tokens for tokens in (self.tokens[name] for name in group.names) if tokens is not None]
        before = self.found.counts["futures"] + found.counts["futures"]

        def report(done: int, _: int) -> None:
            if self.progress is not None:
                self.progress(before + done, max(self.total, before + done), "futures")

        pool = draw_pool(
            self.decoder,
            self.vocabulary,
            cases,
            horizon_minutes=[self._horizon(case, group.names) for case in cases],
            until=self._until(group.names),
            samples=count,
            first_sample=first_sample,
            seed=self.config.seed,
            max_new_tokens=self.config.max_new_tokens,
            batch_rows=self.config.batch_rows,
            stop_tokens=stops,
            masked_tokens=alone if group.masked else None,
            dates=None if alone is None else whole_dates(self.tasks[group.names[0]], cases),
            watched=np.stack(watched) if watched and self.config.estimator != "mc" else None,
            progress=report,
        )
        found.counts.update({f"stopped/{reason}": stopped for reason, stopped in pool.rollouts.stopped().items()})
        found.counts["futures"] += len(pool.rollouts)
        found.counts["tokens"] += int(pool.rollouts.drawn.sum())
        found.counts["tokens_given_up"] += int(pool.rollouts.given_up.sum())
        found.counts["drawn_anew"] += int((pool.rollouts.given_up > 0).sum())
        found.counts["gap_not_conditioned"] += int((~pool.rollouts.conditioned).sum())
        found.removed.add(Removed.of(pool.rollouts.removed_mass, pool.rollouts.drawn))
        if not group.masked:
            found.samples.append(pool.samples)
            if self.config.trajectories:
                found.trajectories.append(self._kept(pool))
        return pool

    def _kept(self, pool: Pool) -> pl.DataFrame:
        """The futures, as events, of those prediction times whose futures are kept."""
        return pool.trajectories if self.kept is None else pool.trajectories.join(self.kept, on=list(KEY), how="semi", maintain_order="left")

    def method(self, name: str) -> str:
        """Of a task: that which was asked for, or Monte Carlo where the outcome is no set of tokens."""
        return METHODS[self.config.estimator if self.tokens[name] is not None else "mc"]

    def fallbacks(self) -> dict[str, str]:
        """Task -> why it gets Monte Carlo although something else was asked for."""
        if self.config.estimator == "mc":
            return {}
        why = {name: why_no_tokens(task, cast(HasCodes, self.vocabulary)) for name, task in self.tasks.items() if self.tokens[name] is None}
        return {name: reason for name, reason in why.items() if reason is not None}

    def _evidence(self, name: str, group: _Group, pool: Pool) -> Evidence:
        """What a pool says about a task."""
        task, tokens = self.tasks[name], self.tokens[name]
        verdict = judge(task, pool)
        if tokens is None or self.config.estimator == "mc":
            return observed(verdict, pool)
        place = [one for one in group.names if self.tokens[one] is not None].index(name)
        return expected(task, verdict, pool, place, tokens, masked=group.masked)

    def _risk(self, name: str, evidence: Evidence, *, expect_little: bool = True) -> Risk:
        task = self.tasks[name]
        close = None if task.follow_days is None else round(task.follow_days * MINUTES_PER_DAY)
        return estimate(evidence, open_minutes=self._open_minutes(name), close_minutes=close, expect_little=expect_little)

    def _open_minutes(self, name: str) -> int:
        """When the task's window opens."""
        return round(self.tasks[name].gap_days * MINUTES_PER_DAY)

    def _tell(self, name: str, cases: list[Case], places: npt.NDArray[np.int64], risk: Risk, evidence: Evidence, drawn: int, found: Found) -> None:
        """Write down the risks of the cases at these places, and their curves."""
        moments = np.array([cases[place].moment for place in places], dtype=np.int64)
        columns = (risk.probability, risk.std_error, np.full(len(cases), drawn), risk.completion, risk.lower_bound, risk.upper_bound)
        numbers = {column: values[places] for column, values in zip(list(RISK_TYPES)[2:-1], columns, strict=True)}
        frame = pl.DataFrame({"_moment": moments, **numbers}).with_columns(pl.lit(name).alias("task"), pl.lit(self.method(name)).alias("method"))
        found.risks.append(frame.with_columns(pl.col("std_error").fill_nan(None)).select(pl.col(k).cast(v) for k, v in RISK_TYPES.items()))
        found.note(name, moments[risk.completion[places] == 0].tolist(), NONE_FINISHED)
        follow = self.tasks[name].follow_days
        if self.config.curve_points and follow is not None and len(places):
            days = np.linspace(0, follow, self.config.curve_points + 1)[1:]
            of_these = Risk(*(getattr(risk, field.name)[places] for field in fields(risk)))
            told = curves(evidence.take(places), np.round(days * MINUTES_PER_DAY).astype(np.int64), of_these, open_minutes=self._open_minutes(name))
            found.curves.append(_curve_rows(name, self.method(name), moments, days, told))


def _curve_rows(name: str, method: str, moments: npt.NDArray[np.int64], days: npt.NDArray[np.float64], told: Curves) -> pl.DataFrame:
    columns = {"cumulative_incidence": told.incidence, "std_error": told.std_error, "competing_incidence": told.death}
    frame = pl.DataFrame(
        {
            "_moment": np.repeat(moments, len(days)),
            "days": np.tile(days, len(moments)),
            **{column: values.ravel() for column, values in columns.items()},
        }
    )
    return frame.with_columns(
        pl.lit(name).alias("task"), pl.lit(method).alias("method"), pl.col("days").cast(pl.Float32), pl.col("std_error").fill_nan(None)
    )


def _collect(worker: _Worker, questions: Questions) -> Forecast:
    """The results in the order of the rows."""
    found, rows = worker.found, questions.rows
    risks = pl.concat([pl.DataFrame(schema=RISK_TYPES), *found.risks])
    notes = worker.notes | {(task, moment): note for frame in found.notes for task, moment, note in frame.iter_rows()}
    predictions = answer(rows, risks, notes, methods={name: worker.method(name) for name in questions.tasks})
    empty: dict[str, Any] = {**EVENT_DTYPES, "prediction_time": pl.Datetime("us"), "sample_id": pl.Int32}
    trajectories = pl.concat([pl.DataFrame(schema=empty), *found.trajectories]) if worker.config.trajectories else None
    refused = refusals(predictions)
    left = refused.pop(LEFT, 0)
    summary = {
        "rows": rows.height - left,
        "left_to_other_shares": left,
        "predicted": rows.height - left - sum(refused.values()),
        "refused": refused,
        "methods": dict(predictions.drop_nulls("predicted_boolean_probability")["method"].value_counts(sort=True).iter_rows()),
        "monte_carlo_instead": worker.fallbacks(),
        "across_bounds": {name: asked for name, task in worker.tasks.items() if (asked := across_bounds(task, cast(HasCodes, worker.vocabulary)))},
        "idle_competitors": {name: idle for name, task in worker.tasks.items() if (idle := idle_competitors(task, worker.vocabulary.code))},
        "prediction_times": len(worker.asked),
        "futures": found.counts["futures"],
        "tokens": found.counts["tokens"] + found.counts["tokens_given_up"],
        "drawn_anew": found.counts["drawn_anew"],
        "stopped": {reason: found.counts[f"stopped/{reason}"] for reason in s.STOP_REASONS},
        "gap_not_conditioned": found.counts["gap_not_conditioned"],
        "removed_by_grammar": found.removed.summary(found.counts["tokens"]),
        "completion": _mean(predictions["completion"]),
        "none_finished": int((predictions["note"] == NONE_FINISHED).sum()),
        "mean_std_error": _mean(predictions["std_error"]),
        **_target(predictions, worker.config),
    }
    told = _curves(found, rows) if worker.config.curve_points else None
    return Forecast(predictions, _samples(found.samples), trajectories, told, summary)


def _curves(found: Found, rows: pl.DataFrame) -> pl.DataFrame:
    if not found.curves:
        return pl.DataFrame(schema=CURVE_TYPES)
    keys = rows.select("task", pl.col("_moment").cast(pl.Int64), *KEY).unique(["task", "_moment"], maintain_order=True)
    joined = keys.join(pl.concat(found.curves), on=["task", "_moment"], how="inner", maintain_order="left")
    return joined.select(pl.col(name).cast(kind) for name, kind in CURVE_TYPES.items())


def _target(predictions: pl.DataFrame, config: ForecastConfig) -> dict[str, int | None]:
    """Predicted rows whose error is larger than the target, or not known; of these those that have all futures they may have; and how many samples
    (those that decide how many are drawn included) would be enough for the last of these."""
    names = ("error_above_target", "samples_used_up", "samples_needed")
    if config.target_std_error is None:
        return dict.fromkeys(names)
    within = (pl.col("std_error") <= config.target_std_error).fill_null(False)
    above = predictions.filter(pl.col("predicted_boolean_probability").is_not_null() & ~within)
    full = above.filter(pl.col("num_samples") >= config.samples - config.least_samples)
    whole = full.filter(pl.col("completion") == 1)  # of unfinished futures more would not do
    needed = whole.select((pl.col("num_samples") * (pl.col("std_error") / config.target_std_error) ** 2).ceil().max()).item()
    return dict(zip(names, (above.height, full.height, None if needed is None else int(needed) + config.least_samples), strict=True))


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

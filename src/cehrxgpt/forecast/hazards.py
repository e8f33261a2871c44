"""Risk from one reading of the history: the hazards that the objective `time_to_event` has learned, death competing. No futures are drawn.

The head says, for each event that it forecasts, how soon it happens next, counted from the last token. At a prediction time so many days later
nothing has happened since, so the risk is the incidence from there on (`objectives.incidence`). The last piece's hazard goes on past its edge.

An outcome is a set of tokens, visits told apart by whether they last (`timeline.lasting`), and so is each event of the head: a code, or
everything below an ancestor. Where one of them is the outcome, its
hazard is the outcome's. Else those inside the outcome are put together until they hold what they can of it (`find_cover`). How they depend on each
other is not known: the estimate takes their times as independent, the bounds take nothing for granted (the largest of the risks, and their sum,
or the risk of an event that holds the whole outcome).

A window that opens later asks for any outcome in it, and the head knows the next one only. The estimate lets the hazard go on as it is through an
outcome before the window; the bounds are the risk that the *next* outcome falls into the window, and that it comes by the window's close.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from cehrxgpt.errors import refuse_name
from cehrxgpt.events import EventDataset
from cehrxgpt.forecast.cover import Cover, events_of, find_cover
from cehrxgpt.forecast.notes import unanswered
from cehrxgpt.forecast.rows import CURVE_TYPES, DEAD, NO_TOKEN, RISK_TYPES, UNSAID, Key, Questions, answer, ask, ends_in_death, refusals, wrong_onset
from cehrxgpt.model.reading import pooled_states
from cehrxgpt.objectives.event_errors import HazardErrors
from cehrxgpt.objectives.heads import load_heads
from cehrxgpt.objectives.incidence import incidences
from cehrxgpt.objectives.time_to_event import TimeToEvent
from cehrxgpt.tasks import Task
from cehrxgpt.tasks.tokens import HasCodes, why_no_tokens
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.moments import Moments, encode_moments
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.timeline import Timeline
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.timeline.window import last_window

if TYPE_CHECKING:
    from cehrxgpt.model.hub import Loaded

METHOD = "time_to_event"
NO_HEAD = "the model was trained without the objective time_to_event"
NO_SET = "no hazard is that of the outcome, as it is no set of tokens"
_PENDING = 2048  # histories gathered before they are sorted by length and read


@dataclass(frozen=True, kw_only=True)
class OnePassConfig:
    """How histories are read.

    Attributes:
        batch_tokens: places read at once, padding included.
        max_unknown_share: a history with a larger share of events outside the vocabulary is refused.
        min_covered: of an outcome that no event of the head is by itself, the share that must be within events of the head, by training
            patients who have each of its tokens; below it the task is refused.
        curve_points: of the cumulative incidence, evenly from the window's opening to its close; 0 = no curves.
    """

    batch_tokens: int = 16_384
    max_unknown_share: float = 0.5
    min_covered: float = 0.9
    curve_points: int = 0

    def __post_init__(self) -> None:
        for name in ("max_unknown_share", "min_covered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.batch_tokens < 1 or self.curve_points < 0:
            raise ValueError("batch_tokens must be at least 1 and curve_points not negative")


@dataclass(frozen=True, repr=False)
class OnePass:
    """What `one_pass` found.

    Attributes:
        predictions: PREDICTION_SCHEMA, one row per (row of `at`, task); `completion` and `num_samples` are null, as there are no futures
            (a refused row has `num_samples` 0).
        curves: CURVE_SCHEMA, one row per point of each prediction.
        summary: counts, and which of the head's events each task's risk is made of; plain JSON.
    """

    predictions: pl.DataFrame
    curves: pl.DataFrame
    summary: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """What its reader ought to know and no risk shows, a line each."""
        return unanswered(self.summary)

    def __repr__(self) -> str:
        return f"OnePass({self.summary['predicted']:,} of {self.summary['rows']:,} rows predicted)"


@dataclass(frozen=True)
class _Reading:
    moment: int
    token_id: npt.NDArray[np.int32]
    age_minutes: npt.NDArray[np.int32]
    elapsed_days: float


@dataclass
class _Found:
    risk: dict[Key, tuple[float | None, ...]] = field(default_factory=dict)
    note: dict[Key, str] = field(default_factory=dict)
    curves: list[pl.DataFrame] = field(default_factory=list)


def one_pass(
    model: Loaded,
    events: EventDataset | pl.DataFrame,
    at: pl.DataFrame,
    tasks: Sequence[str | Path | Task] | str | Path | Task,
    config: OnePassConfig | None = None,
    *,
    head: TimeToEvent | None = None,
    errors: HazardErrors | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> OnePass:
    """Risk of each task's outcome at each row of `at`, by the model's hazards.

    Args:
        model: as `load_model` gives it.
        events: a data set or an EventTable.
        at: `subject_id`, `prediction_time`; with a column `task` each row asks for its task alone, else each row for all of them.
        tasks: names, files or Tasks; or one of these.
        config: see `OnePassConfig`.
        head: None = the one in the model's folder.
        errors: of the hazards (`objectives.event_errors`, for the tasks that `asked_events` names); None: `std_error` is null.
        progress: called with (prediction times read, all of them, "histories").

    Raises:
        InputError: a row asks for a task that was not given.  SchemaError: `at` lacks a column or has nulls.
    """
    config = config or OnePassConfig()
    refuse_name(model, "model is", "load_model")
    questions = ask(events, at, tasks)
    head = head or head_of(model)
    wanted = {name: events_of(task, model.vocabulary) for name, task in questions.tasks.items()}
    covers = {name: _cover(one, head, model.vocabulary) for name, one in wanted.items()}
    reasons = {
        name: why
        for name, one in wanted.items()
        if (why := _unaskable(questions.tasks[name], model.vocabulary, one, covers[name], head, config)) is not None
    }
    found = _Found()
    pending: list[_Reading] = []
    done = 0
    for moments in encode_moments(Timeline(model.vocabulary), events, questions.moments):
        pending += _readings(moments, model, questions, reasons, config, found)
        if len(pending) >= _PENDING:
            _estimate(model, head, pending, questions, covers, errors, config, found)
            pending = []
        done += len(moments.index)
        if progress is not None:
            progress(done, len(questions.asked), "histories")
    _estimate(model, head, pending, questions, covers, errors, config, found)
    predictions = answer(questions.rows, _risk_rows(found.risk), found.note, methods=dict.fromkeys(questions.tasks, METHOD))
    summary = {
        "rows": predictions.height,
        "predicted": predictions["note"].null_count(),
        "refused": refusals(predictions),
        "prediction_times": len(questions.asked),
        "outcomes": {name: _described(name, covers[name], head) for name in questions.tasks if name not in reasons},
    }
    return OnePass(predictions, pl.concat([pl.DataFrame(schema=CURVE_TYPES), *found.curves]), summary)


def head_of(model: Loaded) -> TimeToEvent | None:
    """The head in the model's folder, where the decoder is; None where the model was trained without."""
    heads = load_heads(model.folder, model.vocabulary, model.config)
    return cast(TimeToEvent, heads[TimeToEvent.name].to(model.decoder.embedding.weight.device)) if TimeToEvent.name in heads else None


def asked_events(model: Loaded, head: TimeToEvent, tasks: Sequence[Task]) -> list[int]:
    """The head's events that these tasks' risks are made of: those of which `hazard_errors` is to tell how sure they are."""
    covers = [_cover(events_of(task, model.vocabulary), head, model.vocabulary) for task in tasks]
    return sorted({event for cover in covers if cover is not None for event in _used(cover)})


def _risk_rows(risk: Mapping[Key, Sequence[float | None]]) -> pl.DataFrame:
    rows = [
        (name, moment, probability, error, None, completion, lower, upper, METHOD)
        for (name, moment), (probability, error, completion, lower, upper) in risk.items()
    ]
    return pl.DataFrame(rows, schema=RISK_TYPES, orient="row")


def _cover(outcome: Sequence[int] | None, head: TimeToEvent | None, vocabulary: Vocabulary) -> Cover | None:
    return None if outcome is None or head is None else find_cover(outcome, list(head.tasks.values()), vocabulary)


def _used(cover: Cover) -> tuple[int, ...]:
    return cover.inside if cover.death is None else (*cover.inside, cover.death)


def _described(task: str, cover: Cover | None, head: TimeToEvent | None) -> dict[str, Any]:
    assert cover is not None
    assert head is not None
    names = list(head.tasks)
    events = [names[index] for index in cover.inside]
    # Tasks whose outcome is the same set of tokens share an event, which bears the name of the first.
    if len(events) == 1 and cover.share == 1 and events[0].startswith("outcome:") and events[0] != f"outcome:{task}":
        events = [f"outcome:{task}, the same tokens as {events[0]}"]
    return {
        "events": events,
        "covered": round(cover.share, 4),
        "competing": None if cover.death is None else names[cover.death],
    }


def _unaskable(
    task: Task, vocabulary: Vocabulary, outcome: Sequence[int] | None, cover: Cover | None, head: TimeToEvent | None, config: OnePassConfig
) -> str | None:
    """Why a task cannot be asked of the head at all."""
    if head is None:
        return NO_HEAD
    if outcome is None:
        return f"{NO_SET}: {why_no_tokens(task, cast(HasCodes, vocabulary), by_stay=True)}; futures can tell it (--estimator mc)"
    assert cover is not None
    if not outcome:
        return NO_TOKEN
    if not cover.inside or cover.share < config.min_covered:
        return f"the model's hazards do not hold the outcome (events of the head make up {cover.share:.0%} of it)"
    return None


def _readings(
    moments: Moments, model: Loaded, questions: Questions, reasons: Mapping[str, str], config: OnePassConfig, found: _Found
) -> list[_Reading]:
    """The histories of a chunk that a task still asks about; the rest is refused."""
    histories = moments.histories
    assert histories.prediction_time is not None
    kind, elapsed = model.vocabulary.kind, moments.elapsed_minutes
    keys = pl.DataFrame({"_moment": moments.index, "subject_id": histories.subject_id, "prediction_time": histories.prediction_time})
    for name, task in questions.tasks.items():
        found.note |= {(name, moment): why for moment, why in wrong_onset(task, moments.events, keys).items()}
        if name in reasons:
            found.note |= {(name, int(moment)): reasons[name] for moment in moments.index}
    readings = []
    for place, (moment, why) in enumerate(zip(moments.index.tolist(), moments.refusal(config.max_unknown_share), strict=True)):
        if why is None and ends_in_death(histories.token_id[histories.history(place)], kind):
            why = DEAD
        if why is None and elapsed[place] // MINUTES_PER_DAY > model.vocabulary.longest_gap_days:
            why = UNSAID  # nobody whom the head has learned from was out of sight for so long
        if why is not None:
            found.note |= {(name, moment): why for name in questions.asked[moment]}
        elif any((name, moment) not in found.note for name in questions.asked[moment]):
            token_id, age_minutes = _read_to_place(histories, place, model)
            readings.append(_Reading(moment, token_id, age_minutes, float(elapsed[place]) / MINUTES_PER_DAY))
    return readings


def _read_to_place(histories: EncodedHistories, index: int, model: Loaded) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Tokens and ages of the last window, up to a place at which the head has learned to look ahead: the last token of a time.

    A visit that goes by the day has one time, and its last token is [VE]; asked in the middle of it, a history ends where the head never looked.
    So it is ended there: what else the day may bring is not known, and to the head it is no future event either.
    """
    vocabulary = model.vocabulary
    token_id = histories.token_id[histories.history(index)]
    opening = np.flatnonzero(vocabulary.kind[token_id] == Kind.VISIT_START)
    by_day = (
        len(opening) > 0
        and opening[-1] + 1 < len(token_id)
        and not (vocabulary.kind[token_id[opening[-1] :]] == Kind.VISIT_END).any()
        and not vocabulary.hourly_visits[token_id[opening[-1] + 1]]
    )
    window = last_window(histories, vocabulary, index, model.config.context - by_day)
    if not by_day:
        return window.token_id, window.age_minutes
    end = vocabulary.ids_of_kind(Kind.VISIT_END)[0]
    return np.append(window.token_id, end).astype(np.int32), np.append(window.age_minutes, window.age_minutes[-1])


def _estimate(
    model: Loaded,
    head: TimeToEvent | None,
    readings: Sequence[_Reading],
    questions: Questions,
    covers: Mapping[str, Cover | None],
    errors: HazardErrors | None,
    config: OnePassConfig,
    found: _Found,
) -> None:
    """Read histories and fill in the risks of the tasks that ask about them."""
    if not readings or head is None:
        return
    state_ND = pooled_states(model.decoder, [(one.token_id, one.age_minutes) for one in readings], batch_tokens=config.batch_tokens)
    with torch.inference_mode():
        state_ND = state_ND.to(head.task)
        log_hazard_NKC = head.log_hazards(state_ND).double().cpu()
        features_NKF = None if errors is None else head.features(state_ND).double().cpu()
    edges, begin = head.edges[1:-1].double().cpu(), torch.tensor([one.elapsed_days for one in readings], dtype=torch.float64)
    for name, task in questions.tasks.items():
        rows = [row for row, one in enumerate(readings) if name in questions.asked[one.moment] and (name, one.moment) not in found.note]
        cover = covers[name]
        if not rows or cover is None:
            continue
        assert task.follow_days is not None  # a task whose window ends with a stay has no set of tokens
        hazards = Hazards(edges, log_hazard_NKC[rows].clone(), None if features_NKF is None else features_NKF[rows].clone(), begin[rows])
        points = max(config.curve_points, 1)
        days = task.follow_days * torch.arange(1, points + 1, dtype=torch.float64) / points
        risk_NG, death_NG = hazards.incidences(cover, days, opens=task.gap_days)
        lower, upper = hazards.bounds(cover, risk_NG[:, -1], days[-1:], opens=task.gap_days)
        error_NG = hazards.std_error(cover, days, errors, opens=task.gap_days) if errors is not None and errors.knows(_used(cover)) else None
        for place, row in enumerate(rows):
            error = None if error_NG is None else float(error_NG[place, -1])
            risk = float(risk_NG[place, -1])
            found.risk[(name, readings[row].moment)] = (risk, error, None, float(lower[place]), float(upper[place]))
        if config.curve_points:
            told_NG = None if cover.death is None else death_NG
            found.curves.append(_curves(questions, name, [readings[row].moment for row in rows], days, risk_NG, told_NG, error_NG))


@dataclass(frozen=True)
class Hazards:
    """What the head says of N prediction times.

    Attributes:
        edges: inner edges of the pieces in days, float64[K - 1].
        log_hazard: events per day, float64[N, K, C].
        features: what multiplies weights (`TimeToEvent.features`), float64[N, K, F]; None: no standard errors are asked for.
        begin: days from the last token to the prediction time, float64[N].
    """

    edges: Tensor
    log_hazard: Tensor
    features: Tensor | None
    begin: Tensor

    def _incidences(self, log_hazard: Tensor, death: Tensor | None, days: Tensor, opens: float = 0.0) -> tuple[Tensor, Tensor]:
        hazard = log_hazard.exp().sum(2)
        competing = torch.zeros_like(hazard) if death is None else death.exp()
        return incidences(self.edges, hazard, competing, self.begin, days, opens=opens)

    def _incidence(self, log_hazard: Tensor, death: Tensor | None, days: Tensor, opens: float = 0.0) -> Tensor:
        return self._incidences(log_hazard, death, days, opens)[0]

    def incidences(self, cover: Cover, days: Tensor, *, opens: float = 0.0) -> tuple[Tensor, Tensor]:
        """Risk by so many days after the prediction time, the outcome's events taken as independent, and the share that will have died before;
        [N, G] each."""
        return self._incidences(self._weighed(self.log_hazard[:, :, list(cover.inside)], cover), self._death(cover), days, opens)

    def _weighed(self, log_hazard: Tensor, cover: Cover) -> Tensor:
        """Of the events inside, as far as those before them do not hold the same; [N, K, I]."""
        return log_hazard + torch.tensor(cover.parts, dtype=log_hazard.dtype).log()

    def _death(self, cover: Cover) -> Tensor | None:
        return None if cover.death is None else self.log_hazard[:, :, cover.death]

    def bounds(self, cover: Cover, risk: Tensor, close: Tensor, *, opens: float = 0.0) -> tuple[Tensor, Tensor]:
        """Least and greatest risk at the window's close, however the events depend on each other and go on after an outcome before the window;
        [N] each. The estimate is always between them.

        Args:
            risk: the estimate, [N].
            close: in days after the prediction time, [1].
        """
        death = self._death(cover)
        when = torch.cat([torch.tensor([opens], dtype=torch.float64), close])
        inside = torch.stack([self._incidence(self.log_hazard[:, :, [event]], death, when) for event in cover.inside])
        lower = (inside[:, :, 1] - inside[:, :, 0]).amax(0)
        whole = cover.share == 1
        above = [self._incidence(self.log_hazard[:, :, [event]], death, close)[:, 0] for event in cover.above]
        upper = torch.stack([torch.ones_like(risk), *([inside[:, :, 1].sum(0)] if whole else []), *above]).amin(0)
        return torch.minimum(lower, risk), torch.maximum(upper, risk)

    def std_error(self, cover: Cover, days: Tensor, errors: HazardErrors, *, opens: float = 0.0) -> Tensor:
        """Standard error of the risk by the errors of the hazards' last layer, to first order; [N, G]."""
        assert self.features is not None, "standard errors need the features"
        events = list(_used(cover))
        influence = errors.of(events)
        leaf = self.log_hazard[:, :, events].clone().requires_grad_()
        inside = self._weighed(leaf[:, :, : len(cover.inside)], cover)
        risk_NG = self._incidence(inside, leaf[:, :, -1] if cover.death is not None else None, days, opens)
        columns = []
        for point in range(risk_NG.shape[1]):
            (slope_NKC,) = torch.autograd.grad(risk_NG[:, point].sum(), leaf, retain_graph=True)
            by_weight = torch.einsum("nkc,nkf->ncf", slope_NKC, self.features)
            slope = torch.cat([by_weight, slope_NKC.mT], dim=2).flatten(1)
            columns.append((slope @ influence.T).square().sum(1).sqrt())
        return torch.stack(columns, dim=1)


def _curves(
    questions: Questions, task: str, moments: Sequence[int], days: Tensor, risk_NG: Tensor, death_NG: Tensor | None, error_NG: Tensor | None
) -> pl.DataFrame:
    points = len(days)
    who = questions.moments[np.repeat(np.asarray(moments, dtype=np.int64), points)]

    def column(name: str, told_NG: Tensor | None) -> pl.Series:
        values = [None] * (points * len(moments)) if told_NG is None else told_NG.flatten().numpy()
        return pl.Series(name, values, dtype=pl.Float64)

    return who.with_columns(
        pl.lit(task).alias("task"),
        pl.lit(METHOD).alias("method"),
        pl.Series("days", np.tile(days.numpy(), len(moments)), dtype=pl.Float32),
        column("cumulative_incidence", risk_NG),
        column("std_error", error_NG),
        column("competing_incidence", death_NG),
    ).select(list(CURVE_TYPES))

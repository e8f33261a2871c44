"""Which events the time-to-event head forecasts, when its hazard changes, and how often they happen: read off the training split.

A task is a code with all its tokens (every value bin of a laboratory test counts), or, where the data brought an ontology, an ancestor with
the tokens of all codes below it (heart disease, say), or what the store says is the outcome of a task that people ask for: rare as
a bypass graft may be, it is what the head will be asked about. Death comes first, then those outcomes, and then the events whose presence in a
history is least certain, by the entropy of the share of patients who have them: events that everybody or nobody has teach little. None
is taken that fewer than `MIN_SUBJECTS` patients have.

Hazards are constant within pieces. The pieces' edges are quantiles of the times at which events happen, over all tasks together, at the squares
of even shares: hazards change fastest soon after a visit, and people ask for thirty days as well as for a year. Rates are
events per day at risk, by task and piece, drawn towards the task's own rate by ten events' worth of it; the head starts from their
logarithm, so that a new model already knows how often things happen.

All of this is kept in the model folder and so says nothing of few patients (RULES 13): no task that fewer than `MIN_SUBJECTS` of them have,
edges in round numbers, and rates to about a percent.

Read are at most `SAMPLE_TOKENS` tokens, and for edges and rates an eighth of them in windows as training draws them.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cehrxgpt.errors import ConfigError
from cehrxgpt.objectives.event_times import EventReader
from cehrxgpt.objectives.standing import Standing
from cehrxgpt.schema import TRAIN
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Loader
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.lasting import STANDINGS_PER_TOKEN, standings, tokens_of
from cehrxgpt.timeline.vocabulary import Vocabulary

SAMPLE_TOKENS = 2_000_000
MIN_SUBJECTS = 11  # patients who have an event, at least; also where fewer codes than wished for are common enough
PRIOR_EVENTS = 10.0
RATE_DECIMALS = 2  # of a natural logarithm
_BATCH_TOKENS = 8192
_COUNTED = (Kind.CODE, Kind.VALUE, Kind.LAB, Kind.CATEGORY, Kind.VISIT_TYPE, Kind.DISCHARGE, Kind.ICU_START, Kind.DEATH)


def tokens_of_codes(vocabulary: Vocabulary, ancestors: dict[str, list[str]]) -> dict[str, list[int]]:
    """Code -> its tokens and those of all codes below it."""
    tokens: dict[str, list[int]] = defaultdict(list)
    for index in np.flatnonzero(np.isin(vocabulary.kind, [int(kind) for kind in _COUNTED])):
        code = vocabulary.code[index]
        for name in {code, *ancestors.get(str(code), ())} if code is not None else ():
            tokens[str(name)].append(int(index))
    return dict(tokens)


def choose_tasks(store: TokenStore, limit: int) -> dict[str, list[int]]:
    """At most `limit` codes and outcomes -> the numbers of their tokens (`timeline.lasting`): death, outcomes, then the others, each by entropy.

    Raises:
        ConfigError: no event is common enough.
    """
    vocabulary = store.vocabulary
    outcomes = {f"outcome:{name}": tokens for name, tokens in store.outcomes.items()}
    tokens = tokens_of_codes(vocabulary, store.ancestors) | outcomes
    names = sorted(tokens)
    histories, shares = _shares(store, [tokens[name] for name in names])
    entropy = -(shares * np.log(np.maximum(shares, 1e-300)) + (1 - shares) * np.log(np.maximum(1 - shares, 1e-300)))
    common = shares * histories >= MIN_SUBJECTS
    dying = vocabulary.kind == Kind.DEATH
    turn = np.array([1 if name in outcomes else 0 if dying[tokens_of(tokens[name], len(vocabulary))].any() else 2 for name in names])
    chosen: dict[str, list[int]] = {}
    said: set[tuple[int, ...]] = set()
    for place in np.lexsort((-entropy, turn)):
        # An ancestor of one code only says the same twice, and so do tasks of one outcome.
        if len(chosen) < limit and common[place] and (same := tuple(tokens[names[place]])) not in said:
            chosen[names[place]] = tokens[names[place]]
            said.add(same)
    if not chosen:
        raise ConfigError(f"objectives: time_to_event finds no event that {MIN_SUBJECTS} training patients have; leave it out for data this small")
    return chosen


def _shares(store: TokenStore, tasks: list[list[int]]) -> tuple[int, npt.NDArray[np.float64]]:
    """Training histories looked at, and the share of them that has each task's events, float64[C]."""
    take = some_patients(store, SAMPLE_TOKENS)
    owner = np.repeat(np.arange(len(take)), store.lengths[take])
    histories, kinds = store.histories.subset(take), STANDINGS_PER_TOKEN * len(store.vocabulary)
    columns = (torch.from_numpy(column.astype(np.int64)) for column in (histories.token_id, histories.age_minutes, owner))
    pairs = np.unique(owner * kinds + Standing(store.vocabulary)(*columns).numpy())
    owner, stands = pairs // kinds, pairs % kinds
    by_standing = np.argsort(stands, kind="stable")
    owner, bounds = owner[by_standing], np.searchsorted(stands[by_standing], np.arange(kinds + 1))
    wanted = [standings(events, store.vocabulary) for events in tasks]
    counts = [len(np.unique(np.concatenate([owner[bounds[one] : bounds[one + 1]] for one in ways]))) for ways in wanted]
    return len(take), np.array(counts) / len(take)


def some_patients(store: TokenStore, tokens: int, *, least: int = 1) -> npt.NDArray[np.int64]:
    """Training histories (indices into the store) of so many tokens together at most, drawn at random; `least` of them however long they are."""
    order = np.random.default_rng(0).permutation(store.indices(TRAIN))
    return order[: max(int(np.searchsorted(np.cumsum(store.lengths[order]), tokens, side="right")), least)]


def fit_hazards(store: TokenStore, tasks: dict[str, list[int]], pieces: int, context: int) -> dict[str, Any]:
    """The facts of `TimeToEvent` as plain JSON: task names, their tokens, inner edges in days, log rates [C][pieces] per day.

    Tasks that never happen after a place are left out.

    Raises:
        ConfigError: none is left.
    """
    reader = EventReader(store.vocabulary, list(tasks.values()))
    windows = training_windows(store, context)
    batches = windows.evaluation(max(SAMPLE_TOKENS // windows.tokens_per_batch // 8, 1))
    sample = [(targets.end_days, targets.event_days) for targets in map(reader, batches)]
    times = torch.cat([event[torch.isfinite(event)] for _, event in sample])
    inner = np.unique(round_days(np.quantile(times.numpy(), np.linspace(0, 1, pieces + 1)[1:-1] ** 2))) if len(times) else np.zeros(0)
    inner = inner[inner > 0]
    edges = torch.tensor([0.0, *inner, float("inf")])
    events, days = (torch.zeros(len(tasks), len(edges) - 1, dtype=torch.float64) for _ in range(2))
    for end, event in sample:
        until, piece_of = torch.minimum(event, end[:, None]), torch.bucketize(event.contiguous(), edges[1:-1].to(event.dtype))  # as the loss has it
        for piece in range(len(edges) - 1):
            days[:, piece] += (until - edges[piece]).clamp(min=0, max=float(edges[piece + 1] - edges[piece])).double().sum(0)
            events[:, piece] += (torch.isfinite(event) & (piece_of == piece)).double().sum(0)
    seen = events.sum(1) > 0  # what only ever stands in a first day is at no place's future, and has no rate
    if not seen.any():
        raise ConfigError("objectives: time_to_event finds none of its events after the first day of a training history; leave it out for this data")
    events, days = events[seen], days[seen]
    rate = (events.sum(1) + 0.5) / (days.sum(1) + 1.0)
    smooth = (events + PRIOR_EVENTS) / (days + PRIOR_EVENTS / rate[:, None])
    return {
        "tasks": dict(compress(tasks.items(), seen.tolist())),
        "edges_days": [float(edge) for edge in inner],
        "log_rate": [[round(value, RATE_DECIMALS) for value in row] for row in smooth.log().tolist()],
    }


def round_days(days: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """To whole hours below a day, whole days below a hundred, and two digits beyond: no patient's own interval."""
    days = days.astype(np.float64)
    unit = np.where(days < 1, 1 / 24, np.where(days < 100, 1.0, 10.0 ** np.floor(np.log10(np.maximum(days, 1.0)) - 1)))
    return (days / unit).round() * unit


def training_windows(store: TokenStore, context: int, *, histories: npt.NDArray[np.integer] | None = None) -> Loader:
    """The training split as training reads it, one window to a row; of these histories alone, where they are given."""
    return Loader(store, TRAIN, tokens_per_batch=max(_BATCH_TOKENS, context), context=context, seed=0, ahead=True, histories=histories)

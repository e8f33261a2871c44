"""What a trained model is judged by: tables per patient, per gap and per label, from which all figures and intervals are made.

    patients.parquet     one row per held-out history: nats and counts of its tokens, in all and by what they say
    gaps.parquet         one row per gap and forecast (`tokens`, `gamma`, `decomposition`): log score, CRPS, randomised PIT
    embeddings.npy       the state at every labelled moment
    predictions.parquet  the linear probe's risk of every held-out label

Histories are read whole, and only those that fit into the context in every store, so that all models are asked about the same events. Where
values are tokens of their own, a bin is scored among the bins of its lab, which is what generation draws from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from objectives_data import KEY, TEST_IDS, Data, Windows
from torch import Tensor

from cehrxgpt.atomic import atomic_path
from cehrxgpt.evaluate.gaps import crps, log_score, pit
from cehrxgpt.features.embed import EXTRA, EmbedConfig, _read, _Window
from cehrxgpt.features.probe import PROBE, ProbeConfig, probe
from cehrxgpt.model.hub import Loaded, load_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives import Value
from cehrxgpt.objectives.gap_forecasts import gap_masses
from cehrxgpt.objectives.gaps import find_gaps, gap_tables
from cehrxgpt.objectives.heads import load_heads
from cehrxgpt.objectives.next_token import gap_reach
from cehrxgpt.objectives.value import lab_bins, value_places
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Segment, assemble
from cehrxgpt.timeline.kinds import EVENT_KINDS, PROMPT_KINDS, PROMPT_LENGTH, TIME_KINDS, Kind
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.vocabulary import Vocabulary

VERSION = 1  # of the figures: a change of meaning makes old results stale
BATCH_TOKENS = 8192
POSITIVES = 100  # fewer among tuning labels choose the probe's strength badly (37 chose one with slope 0.16); then folds of training patients do
CHUNK = 1024  # places whose logits or forecasts are held at once


def batches(store: TokenStore, histories: np.ndarray) -> Iterator[tuple[np.ndarray, PackedBatch]]:
    """Whole histories in batches of like length, with their indices; one per row."""
    order = histories[np.argsort(store.lengths[histories], kind="stable")]
    place = np.cumsum(store.lengths[order]) // BATCH_TOKENS
    for number in np.unique(place):
        chosen = order[place == number]
        yield chosen, assemble([_whole(store, int(history)) for history in chosen])


def _whole(store: TokenStore, history: int) -> Segment:
    place = store.histories.history(history)
    censor = int(store.censor_gap_days[history])
    return Segment(store.token_id[place], store.age_minutes[place], store.value[place], 0, censor)


def token_nats(decoder: Decoder, vocabulary: Vocabulary, hidden_BTD: Tensor, batch: PackedBatch) -> Tensor:
    """-log p of what came next at every place, float32 [B, T]; of a gap longer than g at the end of an open history; 0 elsewhere."""
    hidden, target = hidden_BTD.flatten(0, 1), batch.target.flatten()
    nats = hidden.new_zeros(len(hidden))
    places = (target != IGNORE).nonzero().squeeze(1)
    for chunk in places.split(CHUNK):
        nats[chunk] = F.cross_entropy(decoder.head(hidden[chunk]).float(), target[chunk], reduction="none")
    if vocabulary.split_values:
        labs = value_places(batch, lab_bins(vocabulary)).flatten().nonzero().squeeze(1)
        value = Value(vocabulary)
        logits = value.logits(decoder, hidden[labs], batch.token_id.flatten()[labs])
        nats[labs] = F.cross_entropy(logits, value.place[target[labs]], reduction="none")
    gap, reach = batch.censor_gap_days.flatten(), gap_reach(vocabulary)
    ends = (gap >= 0).nonzero().squeeze(1)
    logits = decoder.head(hidden[ends]).float()
    outlasts = reach > gap[ends, None].clamp(max=int(reach.max()) - 1)
    nats[ends] = logits.logsumexp(-1) - logits.masked_fill(~outlasts, float("-inf")).logsumexp(-1)
    return nats.view_as(batch.target)


@dataclass
class _Kinds:
    """bool[V]: what a token says."""

    prompt: Tensor
    time: Tensor
    event: Tensor

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> _Kinds:
        """Tables of one vocabulary."""
        groups = (PROMPT_KINDS, TIME_KINDS, EVENT_KINDS)
        return cls(*(torch.from_numpy(np.isin(vocabulary.kind, [int(kind) for kind in group])) for group in groups))


def _by_patient(nats: Tensor, batch: PackedBatch, kinds: _Kinds) -> dict[str, np.ndarray]:
    """Sums and counts of each row: every term; what follows the prompt; what is neither prompt nor time; events."""
    there, last = batch.target != IGNORE, batch.censor_gap_days >= 0
    token = batch.target.clamp(min=0)
    says = {"record": (there & ~kinds.prompt[token]) | last, "what": there & ~kinds.prompt[token] & ~kinds.time[token]}
    sums = {"nats": nats.sum(1), "terms": (there | last).sum(1), "events": (there & kinds.event[token]).sum(1)}
    sums |= {f"{name}_nats": (nats * mask).sum(1) for name, mask in says.items()}
    return {name: value.double().numpy() for name, value in sums.items()}


@dataclass
class _GapScorer:
    """Scores the gaps of batches; `uniform` are the same numbers for every model."""

    vocabulary: Vocabulary
    heads: torch.nn.ModuleDict
    planned_end: dict[int, int]
    horizon_days: int
    random: np.random.Generator

    def __call__(self, store: TokenStore, chosen: np.ndarray, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> Iterator[pl.DataFrame]:
        gaps = find_gaps(batch, *gap_tables(self.vocabulary))
        row, column = gaps.place // batch.target.shape[1], gaps.place % batch.target.shape[1]
        if not len(row):
            return
        start = batch.age_minutes[:, PROMPT_LENGTH - 1]
        subject = store.subject_id[chosen][row.numpy()]
        date = store.start_date[chosen][row.numpy()] + ((batch.age_minutes[row, column] - start[row]) // MINUTES_PER_DAY).numpy()
        watched = np.array([self.planned_end[int(one)] for one in subject]) - date >= self.horizon_days
        uniform = self.random.random(len(row))
        days, is_open = gaps.days.numpy(), gaps.open.numpy()
        for piece in np.array_split(np.arange(len(row)), -(-len(row) // CHUNK)):
            masses = gap_masses(decoder, self.heads, self.vocabulary, hidden.flatten(0, 1)[gaps.place[piece]])
            for name, mass in masses.items():
                value, lost = pit(mass.numpy(), days[piece], is_open[piece], uniform[piece])
                whole = watched[piece]
                distance = np.full(len(piece), np.nan)
                distance[whole] = crps(mass.numpy()[whole], days[piece][whole], is_open[piece][whole], horizon_days=self.horizon_days)
                yield pl.DataFrame({
                    "subject_id": subject[piece], "forecast": [name] * len(piece), "days": days[piece], "open": is_open[piece],
                    "log_score": log_score(mass.numpy(), days[piece], is_open[piece]), "crps": distance, "pit": value, "pit_censored": lost,
                })  # fmt: skip


@torch.inference_mode()
def score_histories(model: Loaded, heads: torch.nn.ModuleDict, data: Data, store_name: str, horizon_days: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`patients.parquet` and `gaps.parquet`. Gaps are those that tokens say; a store without time tokens has none."""
    store, kinds = data.store(store_name), _Kinds.of(model.vocabulary)
    scorer = _GapScorer(model.vocabulary, heads, data.planned_end(), horizon_days, np.random.default_rng(0))
    patients: list[pl.DataFrame] = []
    gaps: list[pl.DataFrame] = []
    for chosen, batch in batches(store, data.comparable()):
        hidden = model.decoder(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
        nats = token_nats(model.decoder, model.vocabulary, hidden, batch)
        patients.append(pl.DataFrame({"subject_id": store.subject_id[chosen], **_by_patient(nats, batch, kinds)}))
        gaps += list(scorer(store, chosen, model.decoder, hidden, batch))
    return pl.concat(patients), pl.concat(gaps) if gaps else pl.DataFrame()


def embed_windows(model: Loaded, windows: Windows, progress: Any = None) -> np.ndarray:
    """States of the last tokens and what the embedding says of elapsed time, as `features.embed` has them, float32 [M, width + 2]."""
    vectors = np.zeros((len(windows), model.config.width + EXTRA), dtype=np.float32)
    vectors[:, -EXTRA:] = np.stack([np.log1p(windows.elapsed_days), windows.elapsed_days / 365.25], axis=1)
    visit_end = model.vocabulary.kind == Kind.VISIT_END
    for rows in np.array_split(np.arange(len(windows)), max(len(windows) // 2048, 1)):
        bounds = [slice(int(windows.offsets[row]), int(windows.offsets[row + 1])) for row in rows]
        pieces = [_Window(int(row), windows.token_id[at], windows.age_minutes[at]) for row, at in zip(rows, bounds, strict=True)]
        _read(model.decoder, visit_end, pieces, EmbedConfig(), vectors)
        if progress is not None:
            progress(int(rows[-1]) + 1, len(windows))
    return vectors


def as_embeddings(at: pl.DataFrame, vectors: np.ndarray) -> pl.DataFrame:
    """EMBEDDING rows."""
    width = vectors.shape[1]
    return at.with_columns(pl.Series("embedding", vectors, dtype=pl.Array(pl.Float32, width)).cast(pl.List(pl.Float32)))


def probe_all(data: Data, vectors: np.ndarray, *, baselines: bool = False) -> pl.DataFrame:
    """PREDICTION rows of every task's held-out labels, by the probe or else by the baselines that see counts of codes."""
    parts = []
    for task in data.tasks:
        labels = data.labels(task).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
        given = as_embeddings(data.moments, vectors).join(labels.select(KEY), on=KEY, how="semi")
        known = labels.filter(pl.col("subject_id") < TEST_IDS)["boolean_value"].sum()
        least = ProbeConfig().min_positives if baselines or known < 2 * POSITIVES else POSITIVES  # the trees stop early by tuning labels
        config = ProbeConfig(baselines=baselines, few_shot=(), replicates=0, min_positives=least)
        result = probe(given, labels, data.events, config=config)
        parts.append(result.predictions.filter((pl.col("method") == PROBE) != baselines))
    return pl.concat(parts)


def score(model_folder: Path, out: Path, data: Data, store: str, horizon_days: int, say: Any = print) -> None:
    """Everything about one model that is not there yet."""
    model = load_model(model_folder)
    if not (out / "gaps.parquet").exists():
        say("  held-out histories")
        heads = load_heads(model_folder, model.vocabulary, model.config)
        patients, gaps = score_histories(model, heads, data, store, horizon_days)
        for name, frame in (("patients", patients), ("gaps", gaps)):
            with atomic_path(out / f"{name}.parquet", force=True) as partial:
                frame.write_parquet(partial)
    if not (out / "embeddings.npy").exists():
        say("  embeddings")
        vectors = embed_windows(model, data.windows(store))
        with atomic_path(out / "embeddings.npy") as partial, partial.open("wb") as file:
            np.save(file, vectors)
    if not (out / "predictions.parquet").exists():
        say("  linear probes")
        predictions = probe_all(data, np.load(out / "embeddings.npy"))
        with atomic_path(out / "predictions.parquet") as partial:
            predictions.write_parquet(partial)

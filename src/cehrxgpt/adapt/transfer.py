"""The transfer report: what two data sets have in common, what adaptation gained on the new one and lost on the old one, and how values drifted.

Like is compared with like. The unexpanded model reads the new data in its own vocabulary, with unknown events set aside; the expanded one sees them.
Both are asked for the same events, those that both write as the same token, and a grown vocabulary is not punished for the mass it gives
to new tokens: the loss is reported plain and renormalised over the tokens both know. Events alone are compared: gaps differ where one
of the two sees events between.

Codes and bins of fewer than `min_subjects` patients of the new data are counted together and not named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt.adapt.scores import EventScores, Ints, event_scores, histories_of, largest_change, looked_at, store_loss
from cehrxgpt.events import EventDataset
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.schema import HELD_OUT, TRAIN, TUNING
from cehrxgpt.store.format import TokenStore
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.timeline import Timeline
from cehrxgpt.timeline.vocabulary import Vocabulary

OUTER_SHARE = 0.02  # of the values a set of bins was fitted on that lie beyond its 1st and 99th percentile
SHOWN = 10  # drifted labs named in adapt.json; all are in adapt_values.parquet


@dataclass(frozen=True)
class Models:
    """A model at the three moments that are compared."""

    old: Vocabulary
    new: Vocabulary
    before: Decoder
    grown: Decoder
    adapted: Decoder


@dataclass(frozen=True)
class Transfer:
    """The report.

    Attributes:
        facts: plain JSON (`adapt.json`).
        codes: code, name, status (`known` | `new`), subjects_before, subjects_here; null where fewer than `min_subjects`.
        values: code, unit, subjects, values, share_lowest, share_highest, bins, share_beyond of known (code, unit) pairs.
    """

    facts: dict[str, Any]
    codes: pl.DataFrame
    values: pl.DataFrame


def report(models: Models, events: EventDataset, old_store: TokenStore | None) -> Transfer:
    """Compare a model before, once grown, and adapted.

    Args:
        events: the new data. Losses are of its `held_out` split (of `tuning` where there is none), codes and values of `train`.
        old_store: a token store of what the model was trained on, to measure what was forgotten.
    """
    least = int(models.old.settings.get("min_subjects", 11))
    codes, counts = compare_codes(models, events, least)
    values = value_drift(models.old, events, least)
    split = next((name for name in (HELD_OUT, TUNING) if name in events.splits), None)
    facts: dict[str, Any] = {
        "vocabulary": {"before": len(models.old), "after": len(models.new), "added": _by_kind(models)},
        "codes": counts,
        "values": {
            "labs": values.height,
            "values": int(values["values"].sum()),
            "beyond_expected_share": OUTER_SHARE,
            "beyond_share": _share(values),
            "most_drifted": values.head(SHOWN).to_dicts(),
        },
        "held_out": None if split is None else held_out_losses(models, events, split),
        "old_data": None if old_store is None else forgetting(models, old_store),
    }
    return Transfer(facts, codes, values)


def _share(values: pl.DataFrame) -> float | None:
    total = int(values["values"].sum())
    return float((values["share_beyond"] * values["values"]).sum()) / total if total else None


def _by_kind(models: Models) -> dict[str, int]:
    kinds = [Kind(int(kind)).name.lower() for kind in models.new.kind[len(models.old) :]]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


# -- codes ------------------------------------------------------------------------------------------------------------------------


def compare_codes(models: Models, events: EventDataset, least: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Codes known, new, not seen here; and the share of the new data's events that the vocabulary could say before and after."""
    seen = pl.concat([frame.group_by("code").agg(pl.col("subject_id").n_unique().alias("here")) for _, frame in events.iter_shards(TRAIN)])
    seen = seen.group_by("code").agg(pl.col("here").sum())
    rows = [
        (code, models.new.name[index], index >= len(models.old), models.new.subjects[index])
        for index, (code, kind) in enumerate(zip(models.new.code, models.new.kind, strict=True))
        if kind in (Kind.CODE, Kind.VISIT_TYPE, Kind.DISCHARGE) and code is not None and models.new.subjects[index] is not None
    ]
    shape = {"code": pl.String, "name": pl.String, "_new": pl.Boolean, "_subjects": pl.Int64}
    table = pl.DataFrame(rows, schema=shape, orient="row").join(seen, on="code", how="left").with_columns(pl.col("here").fill_null(0).cast(pl.Int64))
    counts: dict[str, Any] = {
        "known_before": int((~table["_new"]).sum()),
        "known_and_seen_here": int((~table["_new"] & (table["here"] > 0)).sum()),
        "never_seen_here": int((~table["_new"] & (table["here"] == 0)).sum()),
        "new": int(table["_new"].sum()),
        "too_rare_to_add": seen.join(table, on="code", how="anti").filter(pl.col("here") < least).height,
        "events": known_shares(models, events),
    }
    before = pl.when(~pl.col("_new")).then(pl.col("_subjects")).alias("subjects_before")
    here = pl.when(pl.col("here") >= least).then(pl.col("here")).alias("subjects_here")
    status = pl.when(pl.col("_new")).then(pl.lit("new")).otherwise(pl.lit("known")).alias("status")
    return table.select("code", "name", status, before, here).sort("subjects_here", "code", descending=[True, False], nulls_last=True), counts


def known_shares(models: Models, events: EventDataset) -> dict[str, dict[str, float]]:
    """split -> events, and the share of them in the vocabulary before and after; results (numbers, texts), and the share written as such."""
    found: dict[str, dict[str, float]] = {}
    names = ("known_before", "known_after", "results_before", "results_after")
    timelines = [Timeline(vocabulary).on(events) for vocabulary in (models.old, models.new)]
    for split, frame in events.iter_shards():
        row = found.setdefault(split, {"events": 0, "results": 0} | dict.fromkeys(names, 0.0))
        for when, timeline in zip(("before", "after"), timelines, strict=True):
            histories = timeline.encode_frame(frame)
            results, said = timeline.results(frame, histories)
            row[f"known_{when}"] += float((histories.events - histories.unknown).sum())
            row[f"results_{when}"] += float(said)
        row["events"] += int(histories.events.sum())
        row["results"] += results
    for row in found.values():
        for name in names:
            row[name] /= max(row["events" if name.startswith("known") else "results"], 1)
    return found


# -- values -----------------------------------------------------------------------------------------------------------------------


def _bins(vocabulary: Vocabulary) -> pl.DataFrame:
    """`code`, `unit`, `_low`, `_high` of every value bin."""
    rows = []
    for index in np.flatnonzero(np.isin(vocabulary.kind, (Kind.VALUE, Kind.LAB))).tolist():
        edges = vocabulary.bin_edges[index]
        bounds = [float(vocabulary.bin_low[index]), float(vocabulary.bin_high[index])] if edges is None else edges.tolist()
        rows += [(vocabulary.code[index], vocabulary.unit[index], low, high) for low, high in pairwise(bounds)]
    return pl.DataFrame(rows, {"code": pl.String, "unit": pl.String, "_low": pl.Float32, "_high": pl.Float32}, orient="row")


def value_drift(vocabulary: Vocabulary, events: EventDataset, least: int) -> pl.DataFrame:
    """Where the new data's numbers fall among the bins of known (code, unit) pairs, most drifted first.

    `share_beyond` is the share outside the outer bins' bounds, which are the 1st and 99th percentile of what they were fitted on (pulled in
    for small numbers of patients): about 0.02 where nothing has drifted. `share_lowest` and `share_highest` are the shares of the outer
    bins, about 1 / `bins` each where the bins were cut at quantiles alone.
    """
    keys = ["code", "unit"]
    bins = _bins(vocabulary).sort("_low")
    outer = bins.group_by(keys).agg(
        pl.len().cast(pl.Int64).alias("bins"),
        pl.col("_low").first().alias("_bottom"),
        pl.col("_low").get(1, null_on_oob=True).alias("_first"),
        pl.col("_low").last().alias("_last"),
        pl.col("_high").last().alias("_top"),
    )
    value = pl.col("numeric_value")
    parts = [
        frame.filter(pl.col("time").is_not_null() & value.is_finite())
        .join(outer, on=keys, how="inner", nulls_equal=True)
        .group_by([*keys, "bins"])
        .agg(
            pl.col("subject_id").n_unique().cast(pl.Int64).alias("subjects"),
            pl.len().cast(pl.Int64).alias("values"),
            (value < pl.col("_first")).fill_null(True).sum().alias("_lowest"),
            (value >= pl.col("_last")).sum().alias("_highest"),
            ((value < pl.col("_bottom")) | (value > pl.col("_top"))).sum().alias("_beyond"),
        )
        for _, frame in events.iter_shards(TRAIN)
    ]
    summed = pl.concat(parts).group_by([*keys, "bins"]).agg(pl.all().sum()).filter(pl.col("subjects") >= least)
    shares = [(pl.col(f"_{name}") / pl.col("values")).alias(f"share_{name}") for name in ("lowest", "highest", "beyond")]
    return summed.select(*keys, "subjects", "values", "bins", *shares).sort("share_beyond", *keys, descending=[True, False, False])


# -- losses -----------------------------------------------------------------------------------------------------------------------


def held_out_losses(models: Models, events: EventDataset, split: str) -> dict[str, Any]:
    """Mean loss, nats per event, of the three models on the events that both vocabularies write as the same token."""
    sums = {name: np.zeros(2) for name in ("unexpanded", "expanded", "adapted")}
    patients: list[tuple[float, float, float]] = []
    count, moved, new_events = 0, 0.0, np.zeros(2)
    for _, frame in events.iter_shards(split):
        before = Timeline(models.old).on(events).encode_frame(frame)
        after = Timeline(models.new).on(events).encode_frame(frame)
        old = event_scores(models.before, models.old, before, shared=len(models.old))
        grown, adapted = (event_scores(decoder, models.new, after, shared=len(models.old)) for decoder in (models.grown, models.adapted))
        mine, theirs = common(old, adapted)
        count += len(mine)
        for name, scores, chosen in (("unexpanded", old, mine), ("expanded", grown, theirs), ("adapted", adapted, theirs)):
            sums[name] -= scores.plain[chosen].sum(), scores.renormalised[chosen].sum()
        patients += _by_patient(old, adapted, mine, theirs)
        fresh = adapted.token >= len(models.old)
        new_events += fresh.sum(), -adapted.plain[fresh].sum()
        moved = max(moved, largest_change(models.before, models.grown, histories_of(models.old, before, models.before.config.context)))
    losses = {name: {"plain": float(total[0]) / max(count, 1), "renormalised": float(total[1]) / max(count, 1)} for name, total in sums.items()}
    return {
        "split": split,
        "events_both_know": count,
        "patients": len(patients),
        "patients_with_lower_loss": {
            "plain": sum(plain < was for was, plain, _ in patients),
            "renormalised": sum(renormalised < was for was, _, renormalised in patients),
        },
        "loss": losses,
        "new_events": int(new_events[0]),
        "loss_of_new_events": float(new_events[1] / new_events[0]) if new_events[0] else None,
        "largest_change_by_expansion": moved,
    }


def common(old: EventScores, new: EventScores) -> tuple[Ints, Ints]:
    """Places in either of the events that both write as the same token."""
    key = [one.history << 40 | one.row for one in (old, new)]
    _, mine, theirs = np.intersect1d(key[0], key[1], assume_unique=True, return_indices=True)
    same = old.token[mine] == new.token[theirs]
    return mine[same], theirs[same]


def _by_patient(old: EventScores, adapted: EventScores, mine: Ints, theirs: Ints) -> list[tuple[float, float, float]]:
    """Per patient: mean loss before, and after (plain, renormalised)."""
    _, place = np.unique(old.history[mine], return_inverse=True)
    means = [np.bincount(place, -scores) / np.bincount(place) for scores in (old.plain[mine], adapted.plain[theirs], adapted.renormalised[theirs])]
    return list(zip(*(mean.tolist() for mean in means), strict=True)) if len(place) else []


def forgetting(models: Models, store: TokenStore) -> dict[str, Any]:
    """Next-token loss on the old data before and after, and how far expansion alone moved an old token."""
    split = next((name for name in (HELD_OUT, TUNING, TRAIN) if len(store.indices(name))), TRAIN)
    losses = {
        name: store_loss(decoder, vocabulary, store, split)
        for name, decoder, vocabulary in (
            ("unexpanded", models.before, models.old),
            ("expanded", models.grown, models.new),
            ("adapted", models.adapted, models.new),
        )
    }
    batches = looked_at(store, split, models.before.config.context)
    return {"split": split, "loss": losses, "largest_change_by_expansion": largest_change(models.before, models.grown, batches)}


def said(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The report in a few rows of a table."""
    vocabulary, codes = facts["vocabulary"], facts["codes"]
    yield "tokens", f"{vocabulary['before']:,} before, {vocabulary['after']:,} after"
    yield "codes", f"{codes['known_and_seen_here']:,} known and seen here, {codes['never_seen_here']:,} known and not seen here, {codes['new']:,} new"
    share = codes["events"][TRAIN]
    yield "training events in the vocabulary", f"{share['known_before']:.1%} before, {share['known_after']:.1%} after"
    if share["results"]:
        yield "training results written with their value", f"{share['results_before']:.1%} before, {share['results_after']:.1%} after"
    if facts["held_out"] is not None:
        for name, loss in facts["held_out"]["loss"].items():
            yield f"{facts['held_out']['split']} loss of events both know, {name}", f"{loss['plain']:.3f} (renormalised {loss['renormalised']:.3f})"
    if facts["old_data"] is not None:
        loss = facts["old_data"]["loss"]
        yield "loss on the old data", f"{loss['unexpanded']:.3f} before, {loss['adapted']:.3f} after"
    if facts["values"]["beyond_share"] is not None:
        expected, found = facts["values"]["beyond_expected_share"], facts["values"]["beyond_share"]
        yield "values beyond the known bins' bounds", f"{found:.1%} of {facts['values']['values']:,} (about {expected:.0%} where nothing drifted)"

"""The token budget: what the tokens are spent on, what falls outside the vocabulary, how often training has seen them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.report.markup import Markup, count, is_number, join, note, number, paragraph, percent, readable, shorten, table, tag
from cehrxgpt.report.quality.facts import clinical
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.suppress import SMALL_CELL, Teller
from cehrxgpt.report.tokens import KINDS, TIME_KINDS, Store

CHINCHILLA = 20  # training tokens per parameter at the least loss for the computing spent: Hoffmann et al. 2022, on text


def bar(share: float) -> Markup:
    """A bar as wide as the share, for a table's cell; the figure stands in the cell beside it."""
    return tag("span", class_="bar", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%", aria_hidden="true")


def by_kind(vocabulary: pl.DataFrame, counts: npt.NDArray[np.int64]) -> list[tuple[str, int, int]]:
    """(kind, tokens of the vocabulary, how often they stand in the store), in the order of `KINDS`."""
    kind = vocabulary["kind"].to_numpy()
    return [(name, int(np.isin(kind, kinds).sum()), int(counts[np.isin(kind, kinds)].sum())) for name, kinds in KINDS.items()]


def by_origin(vocabulary: pl.DataFrame, counts: npt.NDArray[np.int64]) -> list[tuple[str, int]]:
    """(source table, tokens that stand for a row of it), most first; tokens of no table are left out."""
    if "origin" not in vocabulary.columns:
        return []
    found = vocabulary.select(pl.col("origin").cast(pl.String), pl.Series("n", counts)).drop_nulls("origin").group_by("origin").agg(pl.col("n").sum())
    return [(str(name), int(n)) for name, n in found.filter(pl.col("n") > 0).sort(["n", "origin"], descending=[True, False]).iter_rows()]


def spent(vocabulary: pl.DataFrame, counts: npt.NDArray[np.int64], store: Store, tell: Teller) -> Markup:
    """Tokens by kind and by source table, time's share, tokens per event and per year."""
    total = int(counts.sum())
    if not total:
        return note("There is no token.")
    rows = [[name, *_of(n, total, tell), count(size)] for name, size, n in by_kind(vocabulary, counts) if size]
    parts: list[Any] = [paragraph(_sentence(vocabulary, counts, store, total, tell))]
    parts.append(
        table(["Kind of token", "", "Share", "Tokens", "In the vocabulary"], rows, caption="What the tokens are spent on, by kind", class_="bars")
    )
    if origins := by_origin(vocabulary, counts):
        body = [[readable(name), *_of(n, total, tell)] for name, n in origins]
        parts.append(table(["Source table", "", "Share", "Tokens"], body, caption="Tokens that stand for a row of a table", class_="bars"))
    return join(parts)


def _of(n: int, total: int, tell: Teller) -> list[Any]:
    """Bar, share and count."""
    ratio = tell.ratio(n, total)
    return [bar(ratio or 0.0), tell.share(n, total) or "–", tell(n)]


def _sentence(vocabulary: pl.DataFrame, counts: npt.NDArray[np.int64], store: Store, total: int, tell: Teller) -> str:
    times = int(counts[np.isin(vocabulary["kind"].to_numpy(), TIME_KINDS)].sum())
    said = f"{tell(total)} tokens. {percent(times / total)} of them tell time. "
    events = store.array("events")
    if events is not None and int(events.sum()):
        unknown = store.array("unknown")
        read = int(events.sum()) - (0 if unknown is None else int(unknown.sum()))
        said += f"An event the model reads costs {number(total / max(read, 1), 2)} tokens, the time before it and the visit around it included. "
    years = store.years()
    if years is not None and np.nansum(years) > 0:
        said += f"A year of a subject’s history takes {count(total / float(np.nansum(years)))} tokens."
    return said


def left_out(run: RunFolder, store: Store | None, vocabulary: pl.DataFrame, tokenized: dict[str, Any]) -> Markup | None:
    """Events outside the vocabulary: by split, by source table, per subject, and the commonest of them."""
    parts: list[Any] = []
    splits = [one for one in tokenized.get("splits") or [] if isinstance(one, dict) and is_number(one.get("events"))]
    if splits:
        rows = []
        for one in splits:
            counted = [run.tell(one.get(key)) for key in ("patients", "events", "events_dropped")]
            lost = run.tell.share(one.get("events_dropped") or 0, one["events"]) or "–"
            rows.append([readable(str(one["split"])), *counted, lost, *(count(one.get(key)) for key in ("codes_kept", "codes_dropped"))])
        heads = ["Split", "Subjects", "Events", "Outside", "Share", "Codes inside", "Codes outside"]
        parts.append(table(heads, rows, caption="Events and codes outside the vocabulary, by split"))
    parts += _per_subject(store, run.tell)
    parts += _codes(run, vocabulary)
    if not parts:
        return None
    lead = "The vocabulary holds codes that enough training subjects have; the model does not see the others, in any split."
    return join([paragraph(lead), *parts])


def _per_subject(store: Store | None, tell: Teller) -> list[Markup]:
    """How many subjects lose more than a tenth, a quarter, half of their events."""
    events, unknown = (None, None) if store is None else (store.array("events"), store.array("unknown"))
    if events is None or unknown is None or not len(events):
        return []
    share = np.divide(unknown, events, out=np.zeros(len(events)), where=np.asarray(events) > 0)
    rows = []
    for limit in (0.1, 0.25, 0.5):
        n = int((share > limit).sum())
        rows.append([f"more than {percent(limit, 0)}", tell(n), tell.share(n, len(share)) or "–"])
    return [table(["Of a subject’s events", "Subjects", "Share"], rows, caption="Subjects by how much of their record the vocabulary leaves out")]


def _codes(run: RunFolder, vocabulary: pl.DataFrame) -> list[Markup]:
    """Source tables and codes outside the vocabulary; a code of fewer than eleven subjects is counted and not named."""
    if run.events is None or "code" not in vocabulary.columns:
        return []
    known = vocabulary["code"].cast(pl.String).drop_nulls().unique()
    events = run.events.filter(clinical())
    codes = events.group_by("origin", "code").agg(pl.len().alias("n"), pl.col("subject_id").n_unique().alias("subjects")).collect()
    codes = codes.with_columns(pl.when(pl.col("code").is_in(known.implode())).then(0).otherwise("n").alias("outside"))
    tables = (
        codes.group_by("origin").agg(pl.col("n", "outside").sum()).filter(pl.col("outside") > 0).sort(["outside", "origin"], descending=[True, False])
    )
    found = []
    if tables.height:
        tell = run.tell
        body = [[readable(name or "no table"), tell(out), tell(n), tell.share(out, n) or "–"] for name, n, out in tables.iter_rows()]
        found.append(table(["Source table", "Outside", "Events", "Share"], body, caption="Clinical events outside the vocabulary, by source table"))
    common = codes.filter((pl.col("outside") > 0) & (pl.col("subjects") >= SMALL_CELL)).sort(["n", "code"], descending=[True, False])
    if common.height:
        body = [
            [shorten(run.name(row["code"]), 60), tag("code", shorten(row["code"], 60)), run.tell(row["n"]), run.tell(row["subjects"])]
            for row in common.head(10).to_dicts()
        ]
        caption = f"The commonest codes outside the vocabulary, of {common.height:,} that {SMALL_CELL} subjects or more have in all splits"
        found.append(table(["Name", "Code", "Events", "Subjects"], body, caption=caption, left=2))
    return found


def training(run: RunFolder, store: Store, parameters: int | None) -> Markup | None:
    """Tokens of an epoch, tokens seen in training, and both beside the number of parameters."""
    train = store.in_split("train")
    figures = (run.json("model/manifest.json") or {}).get("figures")
    seen = figures.get("tokens_seen") if isinstance(figures, dict) else None
    if not is_number(seen):
        lines = run.json_lines("model/train.jsonl")
        seen = next((row["tokens_seen"] for row in reversed(lines) if is_number(row.get("tokens_seen"))), None)
    if train is None:
        return None
    epoch = int(store.lengths[train].sum())
    rows = [["tokens of the training split: one epoch", run.tell(epoch)]]
    if seen is not None and epoch:
        rows += [["tokens seen in training", count(seen)], ["epochs", number(seen / epoch, 1)]]
    if parameters and epoch:
        rows += [["parameters", count(parameters)], ["different tokens per parameter", number(epoch / parameters, 2)]]
        rows += [["tokens seen per parameter", number(seen / parameters, 1)]] if seen is not None else []
    said = (
        f"As context, not as a rule: text models make best use of computing at about {CHINCHILLA} training tokens per parameter, all different "
        "(Hoffmann et al. 2022). Histories repeat themselves more than text, and few hospitals have that many; the tuning loss says when to stop."
    )
    return join([table(["What", "Figure"], rows, caption="Tokens and training"), note(said)])

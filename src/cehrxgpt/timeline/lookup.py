"""Event rows to token ids: code, (code, unit, number) and (code, category) looked up in the vocabulary, vectorised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Run:
    """The bins of one (code, unit, comparison sign), ascending."""

    token: npt.NDArray[np.int64]  # [k]
    bin: npt.NDArray[np.int64]  # [k] token that follows, -1 = none
    inner: npt.NDArray[np.float32]  # [k - 1] edges between them


class Lookup:
    """The vocabulary as join tables.

    A number takes the bin of its (code, unit, comparison sign), or that of (code, unit) where the sign has none; without one, a
    category its token; without one, the plain code. -1 = not in the vocabulary. A visit type that is missing takes the token of its class.
    Where code and value are two tokens, the bin of a lab is one of those that all labs share.
    """

    def __init__(self, vocabulary: Vocabulary):
        kinds = vocabulary.kind
        codes = [(str(vocabulary.code[i]), i) for i in np.flatnonzero(np.isin(kinds, [Kind.CODE, Kind.VISIT_TYPE, Kind.DISCHARGE, Kind.DEATH]))]
        self._codes = pl.DataFrame(
            {"code": [code for code, _ in codes], "_plain": [int(i) for _, i in codes]}, schema={"code": pl.String, "_plain": pl.Int32}
        )
        categories = np.flatnonzero(kinds == Kind.CATEGORY)
        self._categories = pl.DataFrame(
            {"code": [vocabulary.code[i] for i in categories], "text_value": [vocabulary.text_value[i] for i in categories], "_category": categories},
            schema={"code": pl.String, "text_value": pl.String, "_category": pl.Int32},
        )
        groups = _fused(vocabulary) | _split(vocabulary)
        self._groups = pl.DataFrame(
            [(*key, place) for place, key in enumerate(groups)],
            schema={"code": pl.String, "unit": pl.String, "operator": pl.String, "_group": pl.Int32},
            orient="row",
        )
        width = max((len(run.token) for run in groups.values()), default=1)
        self._token_ids, self._bin_ids = (np.full((len(groups), width), -1, dtype=np.int32) for _ in range(2))
        self._inner = np.full((len(groups), max(width - 1, 1)), np.inf, dtype=np.float32)  # edges between bins
        for place, run in enumerate(groups.values()):
            self._token_ids[place, : len(run.token)] = run.token
            self._bin_ids[place, : len(run.token)] = run.bin
            self._inner[place, : len(run.inner)] = run.inner
        self._class_ids = {name: vocabulary.id_of(name) for name in vocabulary.token if name.startswith("Visit/") and not name[6:].isdigit()}

    def plain(self, code: pl.Series) -> Ids:
        """Token id of each code by itself, int32[n]."""
        found = pl.DataFrame({"code": code}).join(self._codes, on="code", how="left", maintain_order="left")
        return found["_plain"].fill_null(-1).to_numpy().astype(np.int32)

    def visit_types(self, code: pl.Series, visit_class: pl.Series) -> Ids:
        """Token id of each visit's type, int32[n]: its own, else its class's."""
        own = self.plain(code)
        names = ("Visit/" + visit_class).to_list()
        fallback = np.asarray([self._class_ids[name] for name in names], dtype=np.int32) if names else own
        return np.where(own >= 0, own, fallback).astype(np.int32)

    def _grouped(self, keys: pl.DataFrame) -> pl.Series:
        """Run of bins of each (code, unit, comparison sign); that of (code, unit) where the sign has none; else null."""
        frame = keys.join(self._groups, on=keys.columns, how="left", maintain_order="left", nulls_equal=True)
        unsigned = self._groups.filter(pl.col("operator").is_null()).select("code", "unit", pl.col("_group").alias("_unsigned"))
        frame = frame.join(unsigned, on=["code", "unit"], how="left", maintain_order="left", nulls_equal=True)
        return frame["_group"].fill_null(frame["_unsigned"])

    def events(self, events: pl.DataFrame) -> tuple[Ids, Ids, npt.NDArray[np.float32]]:
        """Of clinical rows: token id int32[n]; id of the bin that follows it int32[n], -1 where none does; value float32[n], NaN where
        neither holds a number."""
        token = self.plain(events["code"])
        worded = np.flatnonzero(events["text_value"].is_not_null().to_numpy())
        frame = events.select("code", "text_value")[worded].join(self._categories, on=["code", "text_value"], how="left", maintain_order="left")
        category = frame["_category"].fill_null(-1).to_numpy()
        token[worded] = np.where(category >= 0, category, token[worded])
        number = events["numeric_value"].to_numpy().astype(np.float32)
        numbered = np.flatnonzero(np.isfinite(number))
        group_of = self._grouped(events.select("code", "unit", "operator")[numbered])
        group = np.full(len(token), -1, dtype=np.int64)
        group[numbered] = group_of.fill_null(-1).to_numpy()
        binned = group >= 0
        where = group[binned]
        place = np.zeros(len(where), dtype=np.int64)
        for edge in range(self._inner.shape[1]):  # a handful of bins
            place += number[binned] >= self._inner[where, edge]
        shared = np.full(len(token), -1, dtype=np.int32)
        if len(where):
            token[binned], shared[binned] = self._token_ids[where, place], self._bin_ids[where, place]
        value = np.where(binned, number, np.float32(np.nan)).astype(np.float32)
        return token, shared, value


Key = tuple[str | None, str | None, str | None]


def _fused(vocabulary: Vocabulary) -> dict[Key, _Run]:
    """A token for every bin."""
    ids: dict[Key, list[int]] = {}
    for index in np.flatnonzero(vocabulary.kind == Kind.VALUE):
        ids.setdefault((vocabulary.code[index], vocabulary.unit[index], vocabulary.operator[index]), []).append(int(index))
    for own in ids.values():
        own.sort(key=lambda index: float(vocabulary.bin_low[index]))
    return {key: _Run(np.array(own), np.full(len(own), -1), vocabulary.bin_low[own[1:]]) for key, own in ids.items()}


def _split(vocabulary: Vocabulary) -> dict[Key, _Run]:
    """A token for all bins, and the shared one of each."""
    shared = vocabulary.ids_of_kind(Kind.BIN)
    shared = shared[np.argsort(vocabulary.amount[shared])]
    runs: dict[Key, _Run] = {}
    for index in np.flatnonzero(vocabulary.kind == Kind.LAB):
        count, edges = int(vocabulary.bin_count[index]), vocabulary.bin_edges[index]
        assert edges is not None
        runs[vocabulary.code[index], vocabulary.unit[index], vocabulary.operator[index]] = _Run(np.full(count, index), shared[:count], edges[1:-1])
    return runs

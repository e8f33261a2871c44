"""The vocabulary: one row per token, kept as columns, saved as Parquet beside the model.

NumPy and Arrow only. Fitting one from events is `timeline.fit`'s work; this is the finished thing, which encoding, training,
generation and decoding share. Nothing in it comes from fewer than `min_subjects` patients (bounds are quantiles, never extremes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cehrxgpt.errors import InputError, SchemaError
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.time import DAYS_PER_YEAR
from cehrxgpt.visits import has_hours

VOCABULARY_FILE = "vocabulary.parquet"
VERSION = 1

VOCABULARY_SCHEMA = pa.schema(
    [
        pa.field("token", pa.large_string(), nullable=False),  # unique, readable
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("amount", pa.int32(), nullable=False),  # the number in a time or prompt token; -1 = none or unknown
        pa.field("minutes", pa.int64(), nullable=False),  # how far a time token moves the clock; 0 elsewhere
        pa.field("code", pa.large_string()),  # the event code it decodes to
        pa.field("unit", pa.large_string()),
        pa.field("text_value", pa.large_string()),
        pa.field("bin_low", pa.float32()),  # value bins: winsorised bounds, low <= value < high (last bin closed); a lab's outermost ones
        pa.field("bin_high", pa.float32()),
        pa.field("quantiles", pa.list_(pa.float32())),  # inside the bin, evenly spaced in probability, ends included
        pa.field("origin", pa.large_string()),  # source table, the exporter's way back
        pa.field("subjects", pa.int64()),  # training patients who have it; null for structural tokens
        pa.field("name", pa.large_string()),  # readable name where one is known
        pa.field("operator", pa.large_string()),  # value bins of results with a comparison sign ("<", ">=", ...)
        pa.field("length_days", pa.int32()),  # of a drug's plain code: median days, first and last counted
        pa.field("bin_edges", pa.list_(pa.float32())),  # of a lab: bounds of its k bins, ascending, k + 1 of them
        pa.field("bin_quantiles", pa.list_(pa.list_(pa.float32()))),  # of a lab: `quantiles` of each of its bins
    ]
)
LATER = ("operator", "length_days", "bin_edges", "bin_quantiles")  # columns that vocabularies of earlier releases lack: null there
DRUG_ORIGIN = "drug_exposure"


class Vocabulary:
    """Tokens as columns: `kind[i]`, `amount[i]`, ... describe token id `i`. Id 0 is always `[PAD]`.

    Attributes:
        kind: int8[V].  amount: int32[V].  minutes: int64[V].
        token, code, unit, text_value, operator, origin, name: lists of V strings or None.
        length_days: list of V numbers or None.
        bin_low, bin_high: float32[V], NaN outside value tokens and labs.
        quantiles: list of V float32 arrays or None.
        bin_edges: list of V float32 arrays or None, the bounds of a lab's bins.
        bin_quantiles: list of V lists of float32 arrays or None, one for each bin of a lab.
        bin_count: int32[V]; how many of the shared bins a lab uses, 0 where the token is no lab.
        settings: how it was fitted (calendar, long_gap, min_subjects, ...), plain JSON.
    """

    def __init__(self, table: pa.Table, settings: Mapping[str, Any]):
        for name in LATER:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), VOCABULARY_SCHEMA.field(name).type))
        table = table.select(VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA)
        self.table = table
        self.settings: dict[str, Any] = dict(settings)
        names = ("token", "code", "unit", "text_value", "origin", "name", "quantiles", "subjects", "operator", "length_days")
        column = {name: table.column(name).to_pylist() for name in names}
        self.token: list[str] = column["token"]
        self.code: list[str | None] = column["code"]
        self.unit: list[str | None] = column["unit"]
        self.text_value: list[str | None] = column["text_value"]
        self.origin: list[str | None] = column["origin"]
        self.name: list[str | None] = column["name"]
        self.subjects: list[int | None] = column["subjects"]
        self.operator: list[str | None] = column["operator"]
        self.length_days: list[int | None] = column["length_days"]
        self.quantiles: list[npt.NDArray[np.float32] | None] = [None if q is None else np.asarray(q, dtype=np.float32) for q in column["quantiles"]]
        self.bin_edges, self.bin_quantiles = _bins_of(table)
        self.bin_count: npt.NDArray[np.int32] = np.array([0 if one is None else len(one) for one in self.bin_quantiles], dtype=np.int32)
        self.kind: npt.NDArray[np.int8] = table.column("kind").to_numpy().astype(np.int8)
        self.amount: npt.NDArray[np.int32] = table.column("amount").to_numpy().astype(np.int32)
        self.minutes: npt.NDArray[np.int64] = table.column("minutes").to_numpy().astype(np.int64)
        self.bin_low: npt.NDArray[np.float32] = table.column("bin_low").to_numpy(zero_copy_only=False).astype(np.float32)
        self.bin_high: npt.NDArray[np.float32] = table.column("bin_high").to_numpy(zero_copy_only=False).astype(np.float32)
        self._id = {token: index for index, token in enumerate(self.token)}
        if len(self._id) != len(self.token):
            raise SchemaError("vocabulary: a token stands twice; tokens must be unique")
        if not self.token or self.kind[0] != Kind.PAD:
            raise SchemaError("vocabulary: token 0 must be [PAD]")
        self._check_bins()

    def _check_bins(self) -> None:
        labs, bins = self.kind == Kind.LAB, np.sort(self.amount[self.kind == Kind.BIN])
        if labs.any() and (self.kind == Kind.VALUE).any():
            raise SchemaError("vocabulary: some values are fused with their code and others split from it; they must be all one or the other")
        if ((self.bin_count > 0) != labs).any():
            raise SchemaError("vocabulary: bin_quantiles must be there for labs, and for nothing else")
        if not np.array_equal(bins, np.arange(len(bins))) or self.bin_count.max() > len(bins):
            raise SchemaError(f"vocabulary: {len(bins)} shared bins; they must be numbered from 0 and as many as the most that a lab has")

    @property
    def split_values(self) -> bool:
        """Code and value are two tokens, a lab and its bin."""
        return bool((self.kind == Kind.LAB).any())

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Vocabulary:
        """Build from one mapping per token; absent keys are null, absent numbers are `amount` -1 and `minutes` 0."""
        defaults: dict[str, Any] = dict.fromkeys(VOCABULARY_SCHEMA.names) | {"amount": -1, "minutes": 0}
        return cls(pa.Table.from_pylist([defaults | dict(row) for row in rows], schema=VOCABULARY_SCHEMA), settings)

    def __len__(self) -> int:
        return len(self.token)

    def __contains__(self, token: str) -> bool:
        return token in self._id

    def id_of(self, token: str) -> int:
        """Id of a token.

        Raises:
            InputError: the vocabulary has no such token.
        """
        try:
            return self._id[token]
        except KeyError:
            raise InputError(f"vocabulary: no token '{token}' among its {len(self):,}") from None

    def ids_of_kind(self, *kinds: Kind) -> npt.NDArray[np.int64]:
        """Ids of all tokens of these kinds, ascending."""
        return np.flatnonzero(np.isin(self.kind, [int(kind) for kind in kinds])).astype(np.int64)

    @cached_property
    def longest_gap_days(self) -> float:
        """The longest time between two events outside of stays that the tokens can say; infinite with [LT] ("or more")."""
        if len(self.ids_of_kind(Kind.LONG_GAP)):
            return float("inf")
        days, years = (int(self.amount[self.ids_of_kind(kind)].max(initial=0)) for kind in (Kind.DAY_GAP, Kind.YEAR_GAP))
        return max(days, years * DAYS_PER_YEAR + DAYS_PER_YEAR - 1 if years else 0)

    @cached_property
    def amount_to_id(self) -> dict[Kind, dict[int, int]]:
        """kind -> amount -> token id, for kinds that are numbers (gaps, prompt, day of stay, bins, ...)."""
        table: dict[Kind, dict[int, int]] = {}
        counted = (2, 3, 4, 5, 11, 14, 15, 16, 17, 18, Kind.DRUG_LENGTH, Kind.BIN)
        for index in np.flatnonzero(np.isin(self.kind, counted)):
            table.setdefault(Kind(int(self.kind[index])), {})[int(self.amount[index])] = int(index)
        return table

    @cached_property
    def care_settings(self) -> tuple[int, ...]:
        """Ids of the tokens that say where the patient is until the next of them: types of visit, `[ICU]`, `[/ICU]`, `[VE]`; ascending."""
        return tuple(self.ids_of_kind(Kind.VISIT_TYPE, Kind.ICU_START, Kind.ICU_END, Kind.VISIT_END).tolist())

    @cached_property
    def hourly_visits(self) -> npt.NDArray[np.bool_]:
        """bool[V]; types of visit that have hours inside, however long they last (`visits`). All others go by the day."""
        hourly = np.zeros(len(self), dtype=np.bool_)
        types = self.ids_of_kind(Kind.VISIT_TYPE)
        hourly[types] = [has_hours(self.code[index] or self.token[index]) for index in types]
        return hourly

    @cached_property
    def drugs(self) -> npt.NDArray[np.int64]:
        """Ids of the tokens that are a drug, whose length may be said; ascending."""
        drug = np.array([origin == DRUG_ORIGIN for origin in self.origin], dtype=np.bool_)
        return np.flatnonzero(drug & np.isin(self.kind, (Kind.CODE, Kind.VALUE, Kind.LAB, Kind.CATEGORY))).astype(np.int64)

    @cached_property
    def drug_days(self) -> dict[str, int]:
        """Drug code -> median days from its first day to its last, both counted; only where enough training patients have an end."""
        known = ((self.code[index], days) for index, days in enumerate(self.length_days) if days is not None)
        return {code: days for code, days in known if code is not None}

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits; changes when any token, id or bin does. Stores and models carry it."""
        digest = hashlib.sha256()
        # Neither names nor usual lengths decide a token; columns that came later count where they say something.
        without = ["name", *(name for name in LATER if name == "length_days" or self.table[name].null_count == len(self))]
        for row in self.table.drop_columns(without).to_pylist():
            digest.update(repr(tuple(row.values())).encode())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write `vocabulary.parquet` (settings inside, as metadata) into an existing folder."""
        metadata = {b"cehrxgpt": json.dumps({"version": VERSION, "settings": self.settings}, sort_keys=True).encode()}
        pq.write_table(self.table.replace_schema_metadata(metadata), Path(folder) / VOCABULARY_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            InputError: there is none, it is unreadable, or it is of a later version.
        """
        path = Path(folder) / VOCABULARY_FILE
        if not path.exists():
            raise InputError(f"{folder}: no {VOCABULARY_FILE}; give a folder made by tokenize or pretrain")
        try:
            table = pq.read_table(path)
            facts = json.loads((table.schema.metadata or {})[b"cehrxgpt"])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: not a vocabulary (damaged or foreign file)") from error
        if facts["version"] > VERSION:
            raise InputError(f"{path}: vocabulary of version {facts['version']}, this release reads up to {VERSION}; upgrade cehrxgpt")
        return cls(table, facts["settings"])


def _bins_of(table: pa.Table) -> tuple[list[npt.NDArray[np.float32] | None], list[list[npt.NDArray[np.float32]] | None]]:
    """The columns of labs as arrays: bounds, and quantiles of each bin."""
    edges, quantiles = table.column("bin_edges").to_pylist(), table.column("bin_quantiles").to_pylist()
    return (
        [None if one is None else np.asarray(one, dtype=np.float32) for one in edges],
        [None if one is None else [np.asarray(points, dtype=np.float32) for points in one] for one in quantiles],
    )

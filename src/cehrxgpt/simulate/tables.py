"""What a writer hands over: columns of records, gathered in pieces; `cdm` makes OMOP tables of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl


@dataclass
class Table:
    """Columns of one kind of record, gathered in pieces."""

    columns: tuple[str, ...]
    pieces: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)

    def add(self, **values: npt.NDArray[Any] | float) -> None:
        """Append rows; scalars are repeated."""
        n = max(len(value) for value in values.values() if isinstance(value, np.ndarray))
        for name in self.columns:
            value = values[name]
            self.pieces.setdefault(name, []).append(value if isinstance(value, np.ndarray) else np.full(n, value))

    def drop_duplicates(self) -> None:
        """Keep the first of rows that are equal throughout."""
        columns = self.arrays()
        rows = pl.DataFrame({name: values.tolist() if values.dtype == object else values for name, values in columns.items()})
        first = rows.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
        self.pieces = {name: [values[first]] for name, values in columns.items()}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All rows."""
        return {name: np.concatenate(self.pieces[name]) if name in self.pieces else np.zeros(0) for name in self.columns}


@dataclass(frozen=True)
class Tables:
    """Visits and everything written at them; times in minutes since 1970.

    Attributes:
        visits: subject_id, visit_id (from 1), concept, start, end, place (0 = none); optionally `source` (text) and `care_site`.
        tables: condition, drug, procedure, measurement, device, observation: subject_id, visit_id, concept, time, and `end` (drug, device) or
            `value` (measurement, observation; NaN: none) and `unit` (measurement; 0: none); optionally `source`, `source_concept`, `unit_source`,
            `type`, `operator` and `answer` (concepts; 0: none).
        deaths: subject_id, time, in_stay.
        details: parts of stays: subject_id, visit_id, concept, start, end, care_site.
    """

    visits: dict[str, npt.NDArray[Any]]
    tables: dict[str, Table]
    deaths: dict[str, npt.NDArray[Any]]
    details: dict[str, npt.NDArray[Any]] | None = None

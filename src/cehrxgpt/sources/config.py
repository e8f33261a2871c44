"""Settings of an ingest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from zoneinfo import available_timezones

from cehrxgpt.schema import HELD_OUT, SPLITS, TRAIN, TUNING

MAX_BUCKETS = 4096


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How a source becomes an event data set.

    Attributes:
        format: `omop`, `meds`, or `auto` to recognise it.
        schema: of a PostgreSQL database: where the OMOP tables are; several with commas, looked through in this order. Empty = search.
        dialect: of a MEDS source: the name of a shipped one, a path to a YAML file, or `auto`.
        splits: share of the subjects in `train`, `tuning` and `held_out`; the data's own split wins.
        seed: of the split.
        memory_limit_gib: for the database; beyond it, it spills to disk beside the output. 0 = 0.2 for each thread.
        threads: of the database.
        buckets: number of groups of subjects that are handled one after the other; 0 = as many as `rows_per_bucket` asks for.
        rows_per_bucket: source rows of one group, about; bounds the memory of the part outside the database.
        time_zone: of the hospital (`America/New_York`): times with a zone are brought to its clock. Empty: an offset in text is dropped, and zoned
            columns (Parquet, databases) are read in UTC; `ingest.json` counts them.
        calendar: `true`, `shifted` (dates moved to other centuries), or `auto`: shifted when half of the rows lie in 2100 or later.
        latest: last date (YYYY-MM-DD) that a record of a true calendar can have; later rows are dropped. Empty = today.
        date_only_share: where at least this share of a table's times is exactly midnight, midnight there means "no time of day".
    """

    format: Literal["auto", "omop", "meds"] = "auto"
    schema: str = ""
    dialect: str = "auto"
    splits: dict[str, float] = field(default_factory=lambda: {TRAIN: 0.8, TUNING: 0.1, HELD_OUT: 0.1})
    seed: int = 0
    memory_limit_gib: float = 0.0
    threads: int = 2
    buckets: int = 0
    rows_per_bucket: int = 250_000
    time_zone: str = ""
    calendar: Literal["auto", "true", "shifted"] = "auto"
    latest: str = ""
    date_only_share: float = 0.10

    def __post_init__(self) -> None:
        unknown = [name for name in self.splits if name not in SPLITS]
        if unknown:
            raise ValueError(f"splits: unknown split '{unknown[0]}'; valid: {', '.join(SPLITS)}")
        if any(share < 0 for share in self.splits.values()) or abs(sum(self.splits.values()) - 1) > 1e-6:
            raise ValueError(f"splits: shares must not be negative and must add up to 1, found {self.splits}")
        if self.memory_limit_gib != 0 and self.memory_limit_gib < 0.1:
            raise ValueError(f"memory_limit_gib must be 0 (automatic) or at least 0.1, found {self.memory_limit_gib}")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, found {self.threads}")
        if not 0 <= self.buckets <= MAX_BUCKETS:
            raise ValueError(f"buckets must be 0 (automatic) to {MAX_BUCKETS}, found {self.buckets}")
        if self.rows_per_bucket < 1:
            raise ValueError(f"rows_per_bucket must be at least 1, found {self.rows_per_bucket}")
        if self.time_zone and self.time_zone not in available_timezones():
            raise ValueError(f"time_zone: '{self.time_zone}' is not known; write it as America/New_York, Europe/Berlin or UTC")
        if not 0 < self.date_only_share <= 1:
            raise ValueError(f"date_only_share must be above 0 and at most 1, found {self.date_only_share}")

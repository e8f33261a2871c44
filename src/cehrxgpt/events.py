"""An event data set on disk: a MEDS folder with our extra columns, read shard by shard.

    EVENTS/
        data/<split>/<shard>.parquet     EventTable shards; one subject lives in one of them
        metadata/dataset.json            MEDS metadata; our own facts under the key "cehrxgpt"
        metadata/codes.parquet           code, description, parent_codes, origin
        metadata/subject_splits.parquet  subject_id, split
        ingest.json                      rows read, kept, dropped by reason, mended, derived

Nothing here holds more than one shard in memory unless `read` is asked for everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError, SchemaError

EVENT_DTYPES: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "unit": pl.String(),
    "operator": pl.String(),
    "end_time": pl.Datetime("us"),
    "available_time": pl.Datetime("us"),
    "time_precision": pl.String(),
    "visit_id": pl.Int64(),
    "origin": pl.String(),
}
"""The EventTable's columns as Polars types, in order (twin of `schema.EVENT_SCHEMA`)."""


_EMERGENCY = {
    "visit_id": pl.Int64(),
    "code": pl.String(),  # Visit/...
    "time": pl.Datetime("us"),
    "time_precision": pl.String(),
    "end_time": pl.Datetime("us"),
    "available_time": pl.Datetime("us"),
    "discharge": pl.String(),  # discharge/... at its end
}
EMERGENCY_DTYPES: dict[str, pl.DataType] = {"emergencies": pl.List(pl.Struct(_EMERGENCY)), "emergency_id": pl.Int64()}
"""Further columns, which an EventTable may have: what stood in the place of an admission that came of an emergency visit, before it was known.

`emergencies`, of the admission's row: the emergency visits that it stands for, as they were. `emergency_id`, of a row in it: the one it was in.
Only `cut_history` reads them; where they are absent, what happened then stands by itself.
"""


def rank_expression(code: str = "code", time: str = "time") -> pl.Expr:
    """`schema.event_rank`, vectorised: the rank of kind of each row."""
    name = pl.col(code)
    return (
        pl.when(pl.col(time).is_null()).then(s.RANK_STATIC)
        .when(name == s.BIRTH).then(s.RANK_BIRTH)
        .when(name == s.OBSERVATION_START).then(s.RANK_OBSERVATION_START)
        .when(name.str.starts_with(s.VISIT_PREFIX)).then(s.RANK_VISIT)
        .when(name.str.starts_with(s.DISCHARGE_PREFIX)).then(s.RANK_DISCHARGE)
        .when(name == s.DEATH).then(s.RANK_DEATH)
        .when(name == s.OBSERVATION_END).then(s.RANK_OBSERVATION_END)
        .otherwise(s.RANK_CLINICAL)
        .cast(pl.Int8)
    )  # fmt: skip


def sort_events(events: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Sort by (`by` ..., subject, time with nulls first, rank of kind, code); `by` are further leading keys.

    Ties beyond that (equal subject, time and code) are broken by value, unit, text and visit, so that the order does not depend
    on the order of the input.
    """
    keys = [*by, "subject_id", "time", "_rank", "code", "numeric_value", "unit", "text_value", "visit_id"]
    return events.with_columns(rank_expression().alias("_rank")).sort(keys, nulls_last=False, maintain_order=True).drop("_rank")


def completed_years(now: pl.Expr, birth: pl.Expr) -> pl.Expr:
    """Age in whole years: the birthday of the year must have come."""

    def day_of_year(moment: pl.Expr) -> pl.Expr:
        return moment.dt.month().cast(pl.Int32) * 100 + moment.dt.day()  # a month is an Int8, which 12 * 100 would leave

    return now.dt.year() - birth.dt.year() - (day_of_year(now) < day_of_year(birth)).cast(pl.Int32)


def empty_events() -> pl.DataFrame:
    """An EventTable without rows."""
    return pl.DataFrame(schema=EVENT_DTYPES)


def conform(events: pl.DataFrame) -> pl.DataFrame:
    """Cast to the EventTable's types, add absent nullable columns as nulls, put the columns in order, drop others (but EMERGENCY_DTYPES)."""
    missing = [name for name in ("subject_id", "time", "code") if name not in events.columns]
    if missing:
        raise SchemaError(f"event table: column '{missing[0]}' is missing; expected subject_id, time, code")
    further = [pl.col(name).cast(dtype) for name, dtype in EMERGENCY_DTYPES.items() if name in events.columns]
    return events.select(
        *(pl.col(name).cast(dtype) if name in events.columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in EVENT_DTYPES.items()),
        *further,
    )


def validate_events(events: pl.DataFrame, *, where: str = "event table") -> None:
    """Raise `SchemaError` unless the frame keeps the invariants of an EventTable (see `schema`)."""
    s.check_columns(events.to_arrow(), s.EVENT_SCHEMA, where=where)
    ordered = sort_events(events.select(list(EVENT_DTYPES)))
    if not ordered.select("subject_id", "time", "code").equals(events.select("subject_id", "time", "code")):
        raise SchemaError(f"{where}: rows are not sorted by subject, time, kind, code; use events.sort_events")
    early = events.filter(pl.col("available_time") < pl.col("time")).height
    if early:
        raise SchemaError(f"{where}: {early} rows have available_time before time; available_time must not be earlier")
    unlike = events.filter(pl.col("available_time").is_null() != pl.col("time").is_null()).height
    if unlike:
        raise SchemaError(f"{where}: {unlike} rows have only one of time and available_time; static rows have neither, others both")
    visits = events.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX)).select("subject_id", "visit_id")
    if visits.is_duplicated().any():
        raise SchemaError(f"{where}: a visit_id has more than one '{s.VISIT_PREFIX}...' row in one subject; expected one")
    loose = events.filter(pl.col("visit_id").is_not_null()).join(visits, on=["subject_id", "visit_id"], how="anti", nulls_equal=True).height
    if loose:
        raise SchemaError(f"{where}: {loose} rows carry a visit_id without its '{s.VISIT_PREFIX}...' row; unlink them or add the visit")
    deaths = events.filter(pl.col("code") == s.DEATH).group_by("subject_id").agg(pl.col("time").min().alias("_death"))
    late = events.filter(pl.col("code") != s.OBSERVATION_END).join(deaths, on="subject_id").filter(pl.col("time") > pl.col("_death")).height
    if late:
        raise SchemaError(f"{where}: {late} rows stand after the subject's death; only {s.OBSERVATION_END} may")


def cut_history(events: pl.DataFrame, at: pl.DataFrame) -> pl.DataFrame:
    """What the record knew at each prediction time: one copy of the subject's history per row of `at`.

    Rows with `available_time <= prediction_time` and the static rows stay; an `end_time` that lies after the prediction time is
    made null (an open visit has no known end); a rule that is the same for labels, embeddings and rollouts. An admission that came of
    an emergency visit is that emergency visit until it is known (EMERGENCY_DTYPES); intensive care that lies in no visit so far is an event,
    as the ingest has it.

    Args:
        events: EventTable.
        at: columns `subject_id`, `prediction_time`; rows are distinct.

    Returns:
        The kept rows with `prediction_time` added, sorted by (prediction_time within subject) and then as an EventTable.
    """
    moments = at.select("subject_id", pl.col("prediction_time").cast(pl.Datetime("us"))).unique()
    waiting = _emergencies(events, moments)
    joined = events.drop("emergencies", strict=False).join(moments, on="subject_id", how="inner")
    known = joined.filter(pl.col("time").is_null() | (pl.col("available_time") <= pl.col("prediction_time")))
    known = known.filter(pl.col("code") != s.OBSERVATION_END)
    known = pl.concat([known, *waiting], how="diagonal", rechunk=False) if waiting else known
    known = known.with_columns(pl.when(pl.col("end_time") <= pl.col("prediction_time")).then(pl.col("end_time")).alias("end_time"))
    # What happened in a visit that is not known yet was in an emergency visit then, or stands by itself.
    is_visit = pl.col("code").str.starts_with(s.VISIT_PREFIX)
    opened = is_visit.any().over("subject_id", "prediction_time", "visit_id")
    if waiting:
        known = known.with_columns(pl.when(opened).then("visit_id").otherwise("emergency_id").alias("visit_id"))
    known = known.with_columns(pl.when(opened).then("visit_id").alias("visit_id")).drop("emergency_id", strict=False)
    if waiting or known.select((pl.col("visit_id").is_null() & pl.col("code").str.starts_with(s.ICU_PREFIX)).any()).item():
        known = known.with_columns(_intensive_care().alias("code"))
    keys = ["subject_id", "prediction_time", "time", "_rank", "code", "numeric_value", "unit", "text_value", "visit_id"]
    return known.with_columns(rank_expression().alias("_rank")).sort(keys, nulls_last=False, maintain_order=True).drop("_rank")


def _emergencies(events: pl.DataFrame, moments: pl.DataFrame) -> list[pl.DataFrame]:
    """Rows of emergency visits, and of where they ended, whose admission is not known at the prediction time; no frame where there is none."""
    if "emergencies" not in events.columns:
        return []
    became = events.filter(pl.col("emergencies").is_not_null()).select("subject_id", "available_time", "emergencies", "origin")
    became = became.join(moments, on="subject_id", how="inner").filter(pl.col("available_time") > pl.col("prediction_time"))
    if became.is_empty():
        return []
    visits = became.drop("available_time").explode("emergencies", empty_as_null=True).unnest("emergencies")
    visits = visits.filter(pl.col("available_time") <= pl.col("prediction_time"))
    places = visits.filter(pl.col("discharge").is_not_null() & (pl.col("end_time") <= pl.col("prediction_time")))
    ended = pl.col("end_time")
    places = places.select(
        "subject_id", "prediction_time", "visit_id", "origin", "time_precision",
        pl.col("discharge").alias("code"), ended.alias("time"), ended.alias("available_time"),
    )  # fmt: skip
    return [visits.drop("discharge"), places]


def _intensive_care() -> pl.Expr:
    """The codes, of which those of intensive care outside the visits that are known are events `visit_detail/...`."""
    code = pl.col("code")
    left = pl.col("end_time").filter(code.str.starts_with(s.VISIT_PREFIX)).max().over("subject_id", "prediction_time", "visit_id")
    outside = code.str.starts_with(s.ICU_PREFIX) & (pl.col("visit_id").is_null() | (pl.col("time") > left).fill_null(False))
    return pl.when(outside).then(pl.lit(s.DETAIL_PREFIX) + code.str.strip_prefix(s.ICU_PREFIX)).otherwise(code)


@contextmanager
def _readable(shard: Path) -> Iterator[None]:
    """Say in one line that a shard is damaged, whichever way it is being read."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{shard}: not a readable Parquet shard (truncated or damaged?); ingest again") from error


class EventDataset:
    """A handle on an event data set's folder; cheap to make, reads on demand.

    Raises:
        InputError: the folder is not an event data set.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not (self.root / "data").is_dir():
            raise InputError(f"{self.root}: not an event data set (no 'data' folder); make one with: cehrxgpt ingest SOURCE --out EVENTS")
        if not self.shards():
            raise InputError(f"{self.root}: no event shards under data/<split>/*.parquet; ingest again")
        self._check_ingested()

    def __repr__(self) -> str:
        return f"EventDataset({str(self.root)!r})"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have shards, `train`, `tuning`, `held_out` first."""
        found = {path.parent.name for path in self.shards()}
        return tuple([name for name in s.SPLITS if name in found] + sorted(found - set(s.SPLITS)))

    def shards(self, split: str | None = None) -> list[Path]:
        """Paths of the shards, sorted; of one split if named.

        Raises:
            InputError: there is no such split.
        """
        paths = sorted(path for path in (self.root / "data").glob("*/*.parquet") if not path.name.startswith("."))
        if split is None:
            return paths
        chosen = [path for path in paths if path.parent.name == split]
        if not chosen:
            raise InputError(f"{self.root}: no split '{split}'; it has {', '.join(sorted({path.parent.name for path in paths}))}")
        return chosen

    def iter_shards(self, split: str | None = None) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield (split, EventTable) shard by shard."""
        for path in self.shards(split):
            yield path.parent.name, self.read_shard(path)

    def read_shard(self, path: Path) -> pl.DataFrame:
        """One of `shards()` as an EventTable.

        Raises:
            InputError: it is damaged.
        """
        with _readable(path):
            return conform(pl.read_parquet(path, glob=False))

    def read(self, split: str | None = None, *, subject_ids: Any = None) -> pl.DataFrame:
        """All events of a split (or of everything) as one frame; `subject_ids` restricts it."""
        frames = []
        wanted = None if subject_ids is None else pl.Series("subject_id", list(subject_ids), dtype=pl.Int64).unique()
        for _, frame in self.iter_shards(split):
            frames.append(frame if wanted is None else frame.filter(pl.col("subject_id").is_in(wanted.implode())))
        return pl.concat(frames) if frames else empty_events()

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`metadata/dataset.json`; our own facts are under "cehrxgpt": format, calendar ("true" | "shifted"), observation_policy."""
        path = self.root / "metadata" / "dataset.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _check_ingested(self) -> None:
        """Raise `InputError` where the shards lack our columns: plain MEDS becomes an event table by ingest, not by itself."""
        for shard in self.shards()[:1]:
            with _readable(shard):
                names = set(pl.read_parquet(shard, n_rows=0, glob=False).columns)
            if "available_time" not in names:
                raise InputError(f"{self.root}: plain MEDS, without available_time; run: cehrxgpt ingest {self.root} --out EVENTS, and use EVENTS")

    @property
    def calendar(self) -> str:
        """`true`, or `shifted` where the release moved its dates to other centuries."""
        return self.metadata.get("cehrxgpt", {}).get("calendar", "true")

    @cached_property
    def subject_splits(self) -> pl.DataFrame:
        """`subject_id`, `split` of every subject."""
        path = self.root / "metadata" / "subject_splits.parquet"
        if path.exists():
            return pl.read_parquet(path, glob=False).select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String))
        frames = [
            pl.read_parquet(shard, columns=["subject_id"], glob=False).unique().with_columns(pl.lit(shard.parent.name).alias("split"))
            for shard in self.shards()
        ]
        return pl.concat(frames).sort("subject_id")

    @cached_property
    def codes(self) -> pl.DataFrame:
        """`code`, `description`, `parent_codes`, `origin` of the codes that have any; empty where there is no such file."""
        path = self.root / "metadata" / "codes.parquet"
        empty: dict[str, pl.DataType] = {
            "code": pl.String(),
            "description": pl.String(),
            "parent_codes": pl.List(pl.String()),
            "origin": pl.String(),
        }
        if not path.exists():
            return pl.DataFrame(schema=empty)
        frame = pl.read_parquet(path, glob=False)
        return frame.select(pl.col(name) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in empty.items())

    def names(self) -> dict[str, str]:
        """code -> readable name, where one is known."""
        named = self.codes.filter(pl.col("description").is_not_null())
        return dict(zip(named["code"].to_list(), named["description"].to_list(), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a shard is added, removed or rewritten (names, sizes, row counts and footers' checksums)."""
        digest = hashlib.sha256()
        for path in self.shards():
            footer = pq.read_metadata(path)
            digest.update(f"{path.relative_to(self.root)}|{path.stat().st_size}|{footer.num_rows}".encode())
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 65536))
                digest.update(file.read())
        return digest.hexdigest()[:16]

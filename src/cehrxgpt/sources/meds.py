"""MEDS data sets to the frames that `canonicalise` takes, by a dialect; and data sets of ours as they are.

The database only counts, checks types and sorts the rows into buckets; the dialect is applied to one bucket at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import polars as pl
from ibis.backends.duckdb import Backend

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError, SchemaError, SourceError
from cehrxgpt.events import EVENT_DTYPES, sort_events, validate_events
from cehrxgpt.sources.bucket import Bucket
from cehrxgpt.sources.columns import Columns, hashed
from cehrxgpt.sources.database import fetch, midnight_counts, quoted, reading, rows
from cehrxgpt.sources.dialect import SEPARATOR, Dialect, load_dialect, shipped
from cehrxgpt.sources.ledger import Ledger
from cehrxgpt.sources.locate import SourceTable
from cehrxgpt.sources.meds_rules import apply_dialect
from cehrxgpt.sources.names import CODES

OTHER = "other"  # what codes that the dialect does not place are counted under
_OURS = ("available_time", "time_precision", "visit_id", "origin")  # columns that only our own data sets have
_FILE = "_file"


def looks_like_meds(folder: Path) -> bool:
    """Whether the folder has data/**/*.parquet."""
    return (folder / "data").is_dir() and any((folder / "data").glob("**/*.parquet"))


class MedsSource:
    """A MEDS folder as a source of the ingest."""

    format = "meds"

    def __init__(self, connection: Backend, folder: Path, dialect: str, *, time_zone: str = ""):
        self.connection, self.folder, self.time_zone = connection, folder, time_zone
        self.zones: dict[str, int] = {}
        self.doubtful: dict[str, tuple[int, int]] = {}
        if not looks_like_meds(folder):
            raise SourceError(f"{folder}: not a MEDS data set; expected data/<split>/*.parquet")
        self.shards = sorted((folder / "data").glob("**/*.parquet"))
        self.table = self._open()
        self.native = dialect == "auto" and all(name in self.table.columns for name in _OURS)
        self.rules = None if self.native else self._recognise(dialect)
        self.dialect: str | None = "own" if self.rules is None else self.rules.name

    def _open(self) -> ir.Table:
        """All shards as one table, with lower-case names of the MEDS columns checked."""
        for path in self.shards:  # one by one, so that a damaged shard is named
            with reading(path, "a MEDS Parquet shard"):
                columns = [row[0] for row in self.connection.raw_sql(f"DESCRIBE SELECT * FROM read_parquet({quoted(path)})").fetchall()]
            for name in ("subject_id", "time", "code"):
                if name not in columns:
                    hint = " (an older MEDS: rename patient_id to subject_id)" if name == "subject_id" and "patient_id" in columns else ""
                    raise SchemaError(f"{path}: column '{name}' is missing{hint}; MEDS needs subject_id, time and code")
        paths = "[" + ", ".join(quoted(path) for path in self.shards) + "]"
        with reading(self.folder, "Parquet shards with the same columns"):
            self.connection.raw_sql(
                f"CREATE VIEW meds AS SELECT * FROM read_parquet({paths}, union_by_name=true, hive_partitioning=false, filename={quoted(_FILE)})"
            )
            return self.connection.table("meds")

    def _recognise(self, dialect: str) -> Dialect:
        if dialect != "auto":
            return load_dialect(dialect)
        for name in shipped():
            rules = load_dialect(name)
            if rules.recognise is None or rules.recognise.column not in self.table.columns:
                continue
            wanted = self.table.filter(self.table.code.cast("string").startswith(rules.recognise.code)).select("code").limit(1)
            if fetch(wanted).height:
                return rules
        return load_dialect("plain")

    def tables(self) -> list[str]:
        """All shards are one table."""
        return ["data"]

    def _counted_under(self) -> ir.StringValue:
        """The ledger's table of each row: the first segment of its code, where the dialect knows it."""
        first = self.table.code.cast("string").split(SEPARATOR)[0]
        if self.rules is None:
            return ibis.coalesce(self.table.origin.cast("string"), ibis.literal(OTHER))
        known = sorted(_known_segments(self.rules))
        return first.isin(known).fill_null(False).ifelse(first, ibis.literal(OTHER))

    def _columns(self) -> tuple[Columns, dict[str, ir.Value]]:
        columns = Columns(SourceTable("meds", self.table, str(self.folder / "data"), "data"), self.time_zone)
        rules = self.rules
        found: dict[str, ir.Value] = {
            "subject_id": columns.integer("subject_id"),
            "time": columns.instant("time"),
            "code": self.table.code.cast("string").nullif(""),
        }
        found["numeric_value"] = columns.number("numeric_value").try_cast("float32")
        found["text_value"] = self.table.text_value.cast("string") if columns.has("text_value") else ibis.null("string")
        if rules is None:
            for name in ("unit", "operator", "time_precision", "origin"):
                found[name] = self.table[name].cast("string") if columns.has(name) else ibis.null("string")
            for name in ("end_time", "available_time"):
                found[name] = columns.instant(name)
            found["visit_id"] = columns.integer("visit_id")
        else:
            found["visit_id"] = columns.integer(rules.visit_id) if rules.visit_id else ibis.null("int64")
            found["unit"] = columns.text(rules.unit_column) if rules.unit_column else ibis.null("string")
            found["race"] = columns.text(rules.race.column) if rules.race is not None and rules.race.column else ibis.null("string")
            same = [name for name in self.table.columns if name not in (*rules.identifiers, _FILE)]
            found["fingerprint"] = hashed(ibis.struct({name: self.table[name] for name in same}))
        found["table"] = self._counted_under()
        found["file"] = self.table[_FILE]
        return columns, found

    def check(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        """Rows per first segment, and unreadable values; see `Columns.check`."""
        columns, _ = self._columns()
        _, unreadable = columns.check()
        self.zones, self.doubtful = columns.zones, columns.doubtful
        with reading(self.folder / "data", "MEDS Parquet shards"):
            counted = self.table.select(table=self._counted_under()).group_by("table").aggregate(rows=ibis._.count())
            counts = {row["table"]: int(row["rows"]) for row in rows(counted)}
        return counts, unreadable

    def stage(self, name: str, folder: Path, buckets: int) -> None:
        """Write all rows, one folder per bucket."""
        folder.mkdir(parents=True, exist_ok=True)
        staged = self.table.select(**self._columns()[1])
        staged = staged.mutate(bucket=hashed(staged.subject_id.fill_null(0)) % buckets)
        with reading(self.folder / "data", "MEDS Parquet shards"):
            staged.to_parquet(folder / name, partition_by="bucket", overwrite_or_ignore=True)

    def _staged(self, folder: Path) -> ir.Table:
        return self.connection.read_parquet(sorted(str(path) for path in (folder / "data").glob("bucket=*/*.parquet")))

    def survey(self, folder: Path) -> pl.DataFrame:
        """By first segment of the code, births apart."""
        staged = self._staged(folder)
        timed = staged.filter(staged.code != s.BIRTH)
        return midnight_counts(timed.select("time", group=timed.code.split(SEPARATOR)[0]))

    def subjects(self, folder: Path) -> pl.Series:
        """Everyone with a row."""
        return fetch(self._staged(folder).select("subject_id").distinct())["subject_id"].cast(pl.Int64).drop_nulls()

    def own_splits(self, folder: Path) -> pl.DataFrame | None:
        """metadata/subject_splits.parquet, else the folders that the shards lie in where those are named as splits."""
        path = self.folder / "metadata" / "subject_splits.parquet"
        if path.exists():
            try:
                own = pl.read_parquet(path, glob=False).select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String))
            except (pl.exceptions.PolarsError, OSError) as error:
                raise SourceError(f"{path}: cannot be read; expected the columns subject_id and split") from error
            return own.drop_nulls()
        if not all(shard.parent.name in s.SPLITS for shard in self.shards):
            return None
        pairs = fetch(self._staged(folder).select("subject_id", "file").distinct())
        by_file = pairs.select("subject_id", pl.col("file").str.split("/").list.get(-2).alias("split")).drop_nulls().unique()
        if by_file["subject_id"].is_duplicated().any():
            raise InputError(f"{self.folder}: a subject has rows in two splits; each subject belongs to one folder under data/")
        return by_file

    def read(self, folder: Path, bucket: int, ledger: Ledger) -> Bucket:
        """One bucket: as it is if it is ours, else through the dialect."""
        paths = sorted((folder / "data" / f"bucket={bucket}").glob("*.parquet"))
        if not paths:
            return Bucket()
        staged = pl.concat([pl.read_parquet(path, hive_partitioning=False, glob=False) for path in paths])
        if self.rules is not None:
            return apply_dialect(staged, self.rules, ledger)
        native = staged.with_columns(pl.lit(False).alias("derived")).cast(pl.Schema(EVENT_DTYPES))
        validate_events(sort_events(native.select(*EVENT_DTYPES)), where=str(self.folder))
        return Bucket(native=native)

    def describe(self, codes: pl.DataFrame) -> pl.DataFrame:
        """Descriptions and parents of metadata/codes.parquet."""
        path = self.folder / "metadata" / "codes.parquet"
        columns = [pl.lit(None, dtype=CODES[name]).alias(name) for name in ("description", "parent_codes")]
        if not path.exists():
            return codes.with_columns(columns).select(*CODES)
        try:
            found = pl.read_parquet(path, glob=False)
            missing = [column for column in columns if column.meta.output_name() not in found.columns]
            found = found.with_columns(missing).select("code", "description", "parent_codes").cast({name: CODES[name] for name in list(CODES)[:3]})
        except (pl.exceptions.PolarsError, OSError) as error:
            raise SourceError(f"{path}: cannot be read; expected the columns code, description and parent_codes") from error
        # Some extractions pad lists with nulls and leave names blank.
        clean = found.with_columns(
            pl.col("parent_codes").list.drop_nulls(), pl.when(pl.col("description") != "").then("description").alias("description")
        )
        return codes.join(clean.unique("code"), on="code", how="left").select(*CODES).sort("code")

    def inherited(self) -> dict[str, Any]:
        """What a data set of ours already says of itself: calendar and observation policy stay."""
        path = self.folder / "metadata" / "dataset.json"
        if not self.native or not path.exists():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("cehrxgpt", {})
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise SourceError(f"{path}: not JSON; expected MEDS metadata") from error
        return {key: value for key, value in found.items() if key in ("calendar", "observation_policy")}

    def facts(self) -> dict[str, object]:
        """How many shards there were."""
        times = {"times_with_a_zone": self.zones, "unreadable_dates": self.doubtful}
        return {"files": {"data": f"{len(self.shards)} shards"}, **{name: {"data": found} if found else {} for name, found in times.items()}}


def _known_segments(rules: Dialect) -> set[str]:
    """First segments with a row of their own in the ledger."""
    known = {s.BIRTH, s.DEATH, *rules.origin}
    known |= {code for kind in rules.visits for code in (kind.opens, kind.closes)}
    known |= {code for kind in rules.intensive_care for code in (kind.opens, kind.closes)}
    known |= {part.code for part in (rules.gender, rules.race) if part is not None and part.code}
    return known

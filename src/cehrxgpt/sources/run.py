"""The ingest: a source folder or database in, an event data set out, with a book of what became of every row.

    check    count and type-check every source table (one scan each)
    stage    write each table as Parquet, one folder per bucket of subjects (the database spills; nothing is held here)
    survey   what has to be known of the whole: calendar, tables without times of day, subjects and their splits
    buckets  one by one: read, canonicalise, write one shard per split
    close    codes, splits, metadata, ingest.json

Memory is bounded by the database's limit and by one bucket. Everything is written into a partial folder that is renamed at the end.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from ibis.backends.duckdb import Backend

from cehrxgpt import __version__, visits
from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path, refuse_existing, write_json
from cehrxgpt.errors import ConfigError, InputError, SourceError, StorageError
from cehrxgpt.events import EventDataset
from cehrxgpt.sources.bucket import Bucket
from cehrxgpt.sources.canonical import FIRST_TO_LAST, LATEST_SHIFTED, OWN_PERIODS, Rules, canonicalise
from cehrxgpt.sources.config import MAX_BUCKETS, IngestConfig
from cehrxgpt.sources.database import connect, without_ibis_warnings
from cehrxgpt.sources.ledger import Ledger
from cehrxgpt.sources.splits import assign_splits
from cehrxgpt.sources.url import PostgresUrl, is_url, parse_url

Progress = Callable[[int, int, str], None]
MAX_BUCKETS_AT_ONCE = 2


class Source(Protocol):
    """What the ingest asks of a reader of one format."""

    format: str
    dialect: str | None
    native: bool  # the source is an event data set of ours: taken as it is

    def tables(self) -> list[str]:
        """Names of what is staged, each in one go."""

    def check(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        """Rows per ledger table, and unreadable values per column."""

    def stage(self, name: str, folder: Path, buckets: int) -> None:
        """Write the rows under `folder/name/bucket=<k>/`."""

    def survey(self, folder: Path) -> pl.DataFrame:
        """Columns group, rows, midnights, late (rows in the year 2100 or later)."""

    def subjects(self, folder: Path) -> pl.Series:
        """All subject ids."""

    def own_splits(self, folder: Path) -> pl.DataFrame | None:
        """`subject_id`, `split` where the data has its own."""

    def read(self, folder: Path, bucket: int, ledger: Ledger) -> Bucket:
        """The staged rows of one bucket; what is dropped in reading them is counted."""

    def describe(self, codes: pl.DataFrame) -> pl.DataFrame:
        """`code`, `origin` -> the same with `description`, `parent_codes`."""

    def inherited(self) -> dict[str, Any]:
        """Of a data set of ours: its calendar and observation policy."""

    def facts(self) -> dict[str, Any]:
        """For ingest.json: files, tables that are absent or not read."""


def ingest(
    source: str | Path, out: str | Path, config: IngestConfig | None = None, *, force: bool = False, progress: Progress | None = None
) -> EventDataset:
    """Read OMOP tables or a MEDS data set into an event data set at `out`.

    Args:
        source: a folder of OMOP tables, a DuckDB file with them, a database URL (see `url.parse_url`), or a MEDS folder.
        out: the folder to write; whole or not at all.
        config: see `IngestConfig`.
        force: replace `out` if it is there.
        progress: called as (steps done, steps in all, what is being done).

    Raises:
        SourceError, SchemaError, InputError: the source cannot be used; the message names the file and column.
        OutputExistsError, StorageError: see `atomic.atomic_path`.
    """
    config = config or IngestConfig()
    place = parse_url(str(source)) if is_url(source) else Path(source)
    out = Path(out)
    refuse_existing(out, force=force, inputs=[place] if isinstance(place, Path) else [], closed=False)
    if isinstance(place, Path):
        _refuse_absent(place)
    with without_ibis_warnings(), atomic_path(out, force=force, folder=True) as partial:
        work = partial / ".work"
        work.mkdir()
        connection = connect(config, work / "spill")
        try:
            _Ingest(connection, place, config, work, partial, progress).run()
        finally:
            connection.disconnect()
        shutil.rmtree(work)
    return EventDataset(out)


def _refuse_absent(source: Path) -> None:
    """Raise `SourceError` where nothing is."""
    expected = "expected OMOP tables, a DuckDB file, a MEDS folder or a database URL"
    if not source.exists():
        raise SourceError(f"{source}: no such file or folder; {expected}")
    try:
        there = any(source.iterdir()) if source.is_dir() else source.stat().st_size > 0
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error.strerror}); {expected}") from error
    if not there:
        raise SourceError(f"{source}: empty; {expected}")


def _schemas(config: IngestConfig) -> tuple[str, ...]:
    return tuple(name.strip() for name in config.schema.split(",") if name.strip())


def open_database(connection: Backend, url: PostgresUrl, config: IngestConfig, folder: Path, tell: Callable[[str], None]) -> Source:
    """The reader for the OMOP tables of a PostgreSQL database, copied to `folder`; see `postgres.open_postgres`."""
    from cehrxgpt.sources import omop, postgres

    if config.format == "meds":
        raise SourceError(f"{url.shown}: a database is read as OMOP tables; MEDS is a folder of Parquet files")
    asked = _schemas(config) or url.schemas
    return omop.OmopSource(connection, *postgres.open_postgres(connection, url, asked, folder, tell), time_zone=config.time_zone)


def open_source(connection: Backend, path: Path, config: IngestConfig) -> Source:
    """The reader for what `path` holds.

    Raises:
        SourceError: neither OMOP nor MEDS, or not what `config.format` says.
    """
    from cehrxgpt.sources import locate, meds, omop

    if path.is_file():
        if config.format == "meds" or path.suffix.lower() not in locate.DATABASE_SUFFIXES:
            raise SourceError(f"{path}: a single file; expected a folder, or a DuckDB file ({', '.join(locate.DATABASE_SUFFIXES)}) with OMOP tables")
        return omop.OmopSource(connection, *locate.open_duckdb(connection, path, _schemas(config)), time_zone=config.time_zone)
    if config.schema:
        raise SourceError(f"{path}: a folder has no schemas; --schema goes with a DuckDB file or a database URL")
    is_meds = meds.looks_like_meds(path)
    if config.format == "meds" or (config.format == "auto" and is_meds):
        return meds.MedsSource(connection, path, config.dialect, time_zone=config.time_zone)
    if config.format == "auto" and not locate.looks_like_omop(path):
        there = sorted(entry.name for entry in path.iterdir())
        what = f"it holds {', '.join(there[:6])}{', ...' if len(there) > 6 else ''}" if there else "the folder is empty"
        raise SourceError(
            f"{path}: neither OMOP nor MEDS ({what}); expected person.csv, visit_occurrence.parquet, ... or a MEDS folder with data/<split>/*.parquet"
        )
    return omop.OmopSource(connection, *locate.open_folder(connection, path), time_zone=config.time_zone)


def _only_ends(row: dict[str, Any]) -> bool:
    """Whether every row was dropped for what it is: the end of a stay that an opening row stands for."""
    return all(reason.startswith("only_ends_") for reason in row["dropped"])


class _Ingest:
    """One run; the steps of the module's docstring."""

    def __init__(self, connection: Backend, source: Path | PostgresUrl, config: IngestConfig, work: Path, out: Path, progress: Progress | None):
        self.config, self.work, self.out, self.progress = config, work, out, progress
        self.source: Source
        if isinstance(source, Path):
            self.name = source.resolve().name
            self.source = open_source(connection, source, config)
        else:
            self.name = source.name
            self.source = open_database(connection, source, config, work / "copied", lambda what: self._tell(0, 0, what))
        self.ledger = Ledger()
        self.events_by_origin: Counter[str] = Counter()
        self.visit_classes: Counter[str] = Counter()
        self.icu_stays = 0
        self.unlisted_visits: Counter[str] = Counter()
        self.codes: pl.DataFrame = pl.DataFrame(schema={"code": pl.String, "origin": pl.String})
        self.units: set[str] = set()
        self.first: datetime | None = None
        self.last: datetime | None = None
        self.written: list[pl.Series] = []

    def run(self) -> None:
        tables = self.source.tables()
        unreadable: dict[str, dict[str, int]] = {}
        steps = 2 * len(tables) + 2
        for number, name in enumerate(tables):
            self._tell(number, steps, f"checking {name}")
            counts, unreadable[name] = self.source.check(name)
            self.ledger.read.update(counts)
        rows = sum(self.ledger.read.values())
        if rows == 0:
            raise InputError(f"{self.name}: the source tables ({', '.join(tables)}) hold no row; nothing to ingest")
        buckets = self.config.buckets or min(MAX_BUCKETS, -(-rows // self.config.rows_per_bucket))
        steps += buckets
        staged = self.work / "staged"
        for number, name in enumerate(tables, start=len(tables)):
            self._tell(number, steps, f"staging {name}")
            self.source.stage(name, staged, buckets)
        survey = self.source.survey(staged)
        calendar = self._calendar(survey)
        rules = self._rules(survey, calendar)
        splits, split_policy = assign_splits(
            self.source.subjects(staged), self.config.splits, self.config.seed, own=self.source.own_splits(staged)
        )  # fmt: skip
        for bucket, (events, ledger) in enumerate(self._canonical(staged, buckets, rules)):
            self._tell(2 * len(tables) + bucket, steps, f"subjects, part {bucket + 1} of {buckets}")
            self.ledger.update(ledger)
            self._write(events, splits, bucket)
        self._tell(steps - 2, steps, "codes and counts")
        shutil.rmtree(staged, ignore_errors=True)
        self._close(calendar, rules, splits, split_policy, unreadable)
        self._tell(steps, steps, "done")

    def _tell(self, done: int, total: int, what: str) -> None:
        if self.progress is not None:
            self.progress(done, total, what)

    def _calendar(self, survey: pl.DataFrame) -> str:
        if self.config.calendar != "auto":
            return self.config.calendar
        if "calendar" in self.source.inherited():
            return str(self.source.inherited()["calendar"])
        rows, late = survey["rows"].sum(), survey["late"].sum()
        return "shifted" if rows and late * 2 >= rows else "true"

    def _rules(self, survey: pl.DataFrame, calendar: str) -> Rules:
        groups = survey.filter((pl.col("midnights") > 0) & (pl.col("midnights") >= self.config.date_only_share * pl.col("rows")))["group"]
        latest: datetime = LATEST_SHIFTED
        if calendar == "true":
            try:
                day = date.fromisoformat(self.config.latest) if self.config.latest else datetime.now(UTC).date()
            except ValueError as error:
                raise ConfigError(f"latest: '{self.config.latest}' is not a date; write it as 2024-12-31") from error
            latest = datetime.combine(day, time.max)
        return Rules(date_only_groups=frozenset(groups.to_list()), latest=latest, shifted=calendar == "shifted")

    def _canonical(self, staged: Path, buckets: int, rules: Rules) -> Iterator[tuple[pl.DataFrame, Ledger]]:
        """The buckets' events in order, each with what was counted in making it; the next is made while one is written.

        A bucket's rules are many short steps, which leave threads idle within one frame: two frames at once fill them. More would only cost memory.
        """

        def one(number: int) -> tuple[pl.DataFrame, Ledger]:
            ledger = Ledger()
            return canonicalise(self.source.read(staged, number, ledger), rules, ledger), ledger

        ahead = min(self.config.threads, MAX_BUCKETS_AT_ONCE) - 1
        if not ahead:
            yield from map(one, range(buckets))
            return
        with ThreadPoolExecutor(ahead) as pool:
            waiting: deque[Future[tuple[pl.DataFrame, Ledger]]] = deque()
            for number in range(buckets):
                waiting.append(pool.submit(one, number))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _write(self, events: pl.DataFrame, splits: pl.DataFrame, number: int) -> None:
        """One shard per split."""
        if not events.height:
            return
        self._count(events)
        for (split,), part in events.join(splits, on="subject_id", how="left", maintain_order="left").partition_by("split", as_dict=True).items():
            folder = self.out / "data" / str(split)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                part.drop("split").write_parquet(folder / f"{number}.parquet", compression="zstd")
            except pl.exceptions.ComputeError as error:
                raise StorageError("could not write an event shard (disk full or failing?); nothing was left behind") from error

    def _count(self, events: pl.DataFrame) -> None:
        """Add a bucket's figures to the run's."""
        counted = events.group_by("origin").len()
        self.events_by_origin.update(dict(zip(counted["origin"].fill_null("unmapped").to_list(), counted["len"].to_list(), strict=True)))
        stays = events.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX)).with_columns(
            visits.classify(pl.col("code"), (pl.col("end_time") - pl.col("time")).dt.total_minutes()).alias("class")
        )
        self.visit_classes.update(stays["class"].to_list())
        self.icu_stays += events.filter(pl.col("code").str.starts_with(s.ICU_PREFIX)).height
        self.unlisted_visits.update(stays.filter(~pl.col("code").is_in(sorted(visits.listed_codes())))["code"].to_list())
        self.codes = pl.concat([self.codes, events.group_by("code").agg(pl.col("origin").first())]).unique("code", keep="first", maintain_order=True)
        self.units.update(events["unit"].drop_nulls().unique().to_list())
        self.written.append(events["subject_id"].unique())
        timed = events.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH) & ~pl.col("code").str.starts_with("OBSERVATION//"))
        if timed.height:
            low, high = timed.select(pl.col("time").min().alias("low"), pl.col("time").max().alias("high")).row(0)
            self.first = low if self.first is None else min(self.first, low)
            self.last = high if self.last is None else max(self.last, high)

    def _unit_names(self) -> pl.DataFrame:
        """Units that are concepts, as `unit/<concept_id>` with the name that the data's own vocabulary has; those without a name are left out."""
        units = pl.DataFrame({"code": [f"unit/{unit}" for unit in sorted(self.units)]}, schema={"code": pl.String}).with_columns(
            origin=pl.lit("unit")
        )
        named = self.source.describe(units).filter(pl.col("description").is_not_null())
        return named.with_columns(pl.lit([], dtype=pl.List(pl.String)).alias("parent_codes"))

    def _close(self, calendar: str, rules: Rules, splits: pl.DataFrame, split_policy: str, unreadable: dict[str, dict[str, int]]) -> None:
        tables = self.ledger.tables()
        self._refuse_nothing(tables)
        splits = splits.join(pl.concat(self.written).to_frame(), on="subject_id", how="semi")
        metadata = self.out / "metadata"
        metadata.mkdir()
        observation = self._observation_policy()
        splits.sort("subject_id").write_parquet(metadata / "subject_splits.parquet")
        pl.concat([self.source.describe(self.codes.sort("code")), self._unit_names()]).write_parquet(metadata / "codes.parquet")
        ours = {"format": self.source.format, "dialect": self.source.dialect, "calendar": calendar, "observation_policy": observation}
        about = {"dataset_name": self.name, "etl_name": "cehrxgpt", "etl_version": __version__, "meds_version": "0.4.1", "cehrxgpt": ours}
        write_json(metadata / "dataset.json", about)
        facts = self.source.facts()
        counts = dict(splits.group_by("split").len().sort("split").iter_rows())
        report = {
            "source": self.name,
            **ours,
            "subjects": {"total": splits.height, **{name: counts[name] for name in s.SPLITS if name in counts}, **counts},
            "split_policy": split_policy,
            "events": {"total": sum(self.events_by_origin.values()), "by_origin": dict(sorted(self.events_by_origin.items()))},
            "visits_recovered": {"total": sum(self.visit_classes.values()), **{name: self.visit_classes[name] for name in visits.CLASSES}},
            "stays_in_intensive_care": self.icu_stays,
            "visits_of_unlisted_concepts": dict(self.unlisted_visits.most_common(20)),
            "codes": self.codes.height,
            "dates": {"first": self.first and self.first.date().isoformat(), "last": self.last and self.last.date().isoformat()},
            "tables": tables,
            "mended": Ledger.nested(self.ledger.mended),
            "derived": Ledger.nested(self.ledger.derived),
            "unreadable_values": {name: found for name, found in unreadable.items() if found},
            "midnight_is_a_date_only_in": sorted(rules.date_only_groups),
            "time_zone": self.config.time_zone or None,
            "notes": self._notes(tables, facts),
            **facts,
        }
        write_json(self.out / "ingest.json", report)

    def _notes(self, tables: dict[str, dict[str, Any]], facts: dict[str, Any]) -> list[str]:
        """What a reader should hear of without opening ingest.json."""
        lost = {name: row["read"] for name, row in tables.items() if row["read"] and not row["kept"] and not _only_ends(row)}
        notes = [f"{name}: all {read} rows were dropped" for name, read in lost.items()]
        if not self.config.time_zone:
            for name, columns in facts["times_with_a_zone"].items():
                zoned = sum(columns.values())
                notes.append(f"{name}: {zoned} times have a zone; offsets were dropped, instants read in UTC; --time-zone names the hospital's clock")
        for name, columns in facts["unreadable_dates"].items():
            notes += [f"{name}: {bad} of {there} values of {column} are no dates; they were set to null" for column, (bad, there) in columns.items()]
        return notes

    def _observation_policy(self) -> str:
        """Whose observation periods the data has, in one word or two."""
        own = self.ledger.kept["observation_period"]
        derived = self.ledger.derived[FIRST_TO_LAST, "OBSERVATION"]
        if self.source.native:
            return str(self.source.inherited().get("observation_policy", OWN_PERIODS))
        return (f"{OWN_PERIODS}, else {FIRST_TO_LAST}" if derived else OWN_PERIODS) if own else FIRST_TO_LAST

    def _refuse_nothing(self, tables: dict[str, dict[str, Any]]) -> None:
        """Zero clinical rows is a failure (RULES of truth 24)."""
        if self.last is None:
            reasons: Counter[str] = Counter()
            for row in tables.values():
                reasons.update(row["dropped"])
            why = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common(4)) or "the clinical tables are absent or empty"
            raise InputError(f"{self.name}: no clinical event could be kept ({why}); check that the tables belong together")


def read_omop(
    path: str | Path, *, out: str | Path, config: IngestConfig | None = None, force: bool = False, progress: Progress | None = None
) -> EventDataset:
    """`ingest` of OMOP tables (a folder, a DuckDB file or a database URL)."""
    return ingest(path, out, replace(config or IngestConfig(), format="omop"), force=force, progress=progress)


def read_meds(
    path: str | Path, *, out: str | Path, config: IngestConfig | None = None, force: bool = False, progress: Progress | None = None
) -> EventDataset:
    """`ingest` of a MEDS folder."""
    return ingest(path, out, replace(config or IngestConfig(), format="meds"), force=force, progress=progress)

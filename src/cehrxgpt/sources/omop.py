"""OMOP CDM 5.3 and 5.4 to the frames that `canonicalise` takes; with `locate`, the only reader that knows OMOP columns.

Each table becomes one Ibis expression (columns typed, codes built, a hash of everything but the row's id, the bucket of its subject),
which the database writes as Parquet, one folder per bucket. Nothing is filtered here: every source row reaches `canonicalise`, which
keeps it or says why not. Cost: two scans of each file (one to check its types), one write.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import polars as pl
from ibis.backends.duckdb import Backend

from cehrxgpt.schema import BIRTH, DISCHARGE_PREFIX, ETHNICITY_PREFIX, GENDER_PREFIX, ICU_PREFIX, RACE_PREFIX, VISIT_PREFIX
from cehrxgpt.sources.bucket import DEATHS, EVENTS, PERIODS, STATICS, VISITS, Bucket, shaped
from cehrxgpt.sources.columns import Columns, hashed
from cehrxgpt.sources.database import fetch, midnight_counts, reading
from cehrxgpt.sources.ledger import Ledger
from cehrxgpt.sources.locate import SourceTable
from cehrxgpt.sources.names import describe_codes
from cehrxgpt.visits import intensive_care

OPERATORS = {4171756: "<", 4171754: "<=", 4171755: ">=", 4172704: ">"}  # 4172703 is "=", which is null here
MOST_DAYS = 36_500  # a supply of more, or one that is no number, says nothing of the end
BILLING_TYPES = (  # condition types whose rows are written for the bill, when the visit is over
    32821,  # EHR billing record
    32810,  # claim
    *range(32853, 32856),  # inpatient claim, detail, header
    *range(32859, 32862),  # outpatient claim, detail, header
    *range(32871, 32874),  # professional claim, detail, header
    *range(38000183, 38000246),  # the older claim positions
)


@dataclass(frozen=True)
class EventTable:
    """Which columns of a clinical table mean what; `stem` names concept, source value and type columns."""

    prefix: str
    stem: str
    date: str
    end: str = ""
    billing: bool = False
    text: str = ""  # a result in words


EVENT_TABLES = {
    "condition_occurrence": EventTable("condition", "condition", "condition_start", billing=True),
    "drug_exposure": EventTable("drug", "drug", "drug_exposure_start", end="drug_exposure_end"),
    "procedure_occurrence": EventTable("procedure", "procedure", "procedure"),
    "measurement": EventTable("measurement", "measurement", "measurement", text="value_source_value"),
    "observation": EventTable("observation", "observation", "observation", text="value_as_string"),
    "device_exposure": EventTable("device", "device", "device_exposure_start", end="device_exposure_end"),
    "visit_detail": EventTable("visit_detail", "visit_detail", "visit_detail_start", end="visit_detail_end"),
}
STAGED = ("person", "observation_period", "visit_occurrence", *EVENT_TABLES, "death")


def _known(concept: ir.IntegerValue) -> ir.BooleanValue:
    """Neither null nor concept 0 (also where the whole column is missing)."""
    return concept.nullif(0).notnull()


def _code(columns: Columns, prefix: str, stem: str) -> ir.StringValue:
    """`<prefix>/<concept>`; concept 0 keeps its source value; null where there is neither concept nor source."""
    concept, source = columns.integer(f"{stem}_concept_id"), columns.text(f"{stem}_source_value")
    unmapped = source.isnull().ifelse(concept.cast("string"), ibis.literal("0/") + source)
    return ibis.literal(prefix + "/") + _known(concept).ifelse(concept.cast("string"), unmapped)


def _time(columns: Columns, stem: str) -> tuple[ir.TimestampValue, ir.BooleanValue]:
    """`*_datetime`, else `*_date`; and whether it is a date only."""
    exact, date = columns.instant(f"{stem}_datetime"), columns.instant(f"{stem}_date")
    return ibis.coalesce(exact, date), exact.isnull()


def _fingerprint(source: SourceTable) -> ir.IntegerValue:
    """Hash of the whole row but its own id.

    Of a visit detail also without the ids of other details and its source value, which is a key of the source system: some sites write
    one detail per measurement, all alike.
    """
    table = source.relation
    aside = {f"{source.name}_id"}
    if source.name == "visit_detail":
        aside |= {"preceding_visit_detail_id", "parent_visit_detail_id", "visit_detail_parent_id", "visit_detail_source_value"}
    names = [name for name in table.columns if name not in aside] or table.columns
    return hashed(ibis.struct({name: table[name] for name in names}))


def _detail_code(columns: Columns) -> ir.StringValue:
    """`VisitDetail/<concept>` of intensive care, `visit_detail/<concept>` of others; as of a visit, only the concept counts."""
    concept = columns.integer("visit_detail_concept_id").fill_null(0)
    prefix = concept.isin(intensive_care()).ifelse(ibis.literal(ICU_PREFIX), ibis.literal("visit_detail/"))
    return prefix + concept.cast("string")


def _event_expression(columns: Columns, spec: EventTable) -> dict[str, ir.Value]:
    columns.require(f"{spec.stem}_concept_id", f"{spec.stem}_source_value")
    columns.require(f"{spec.date}_date", f"{spec.date}_datetime")
    time, is_date = _time(columns, spec.date)
    found = {
        "time": time,
        "time_is_date": is_date,
        "code": _code(columns, spec.prefix, spec.stem),
        "visit_id": columns.integer("visit_occurrence_id"),
    }
    if columns.source.name == "visit_detail":
        found["code"] = _detail_code(columns)
    if spec.end:
        end, end_is_date = _time(columns, spec.end)
        given = columns.number("days_supply")
        supply = ((given >= 1) & (given <= MOST_DAYS)).ifelse(given, ibis.null("float64")).cast("int64")
        supplied = (time.truncate("D").epoch_seconds() + (supply - 1) * 86400).as_timestamp("s").cast("timestamp(6)")
        found["end_time"] = end.isnull().ifelse((supply > 0).ifelse(supplied, ibis.null("timestamp(6)")), end)
        found["end_is_date"] = end_is_date
    if spec.billing:
        found["billing"] = columns.integer(f"{spec.stem}_type_concept_id").isin(BILLING_TYPES)
    if columns.has("value_as_number", "value_as_concept_id", spec.text):
        number, concept, words = columns.number("value_as_number"), columns.integer("value_as_concept_id"), columns.text(spec.text)
        finite = (number.isnan() | number.isinf()).fill_null(False).ifelse(ibis.null("float64"), number)
        found["numeric_value"] = finite.try_cast("float32")
        found["text_value"] = _known(concept).ifelse(concept.cast("string"), number.isnull().ifelse(words, ibis.null("string")))
        unit = columns.integer("unit_concept_id")
        found["unit"] = _known(unit).ifelse(unit.cast("string"), columns.text("unit_source_value"))
        operator = columns.integer("operator_concept_id")
        found["operator"] = operator.cast("string").substitute({str(key): value for key, value in OPERATORS.items()}, else_=ibis.null("string"))
    return found


def _visit_expression(columns: Columns) -> dict[str, ir.Value]:
    columns.require("visit_occurrence_id")
    columns.require("visit_concept_id", "visit_source_value")
    columns.require("visit_start_date", "visit_start_datetime")
    time, is_date = _time(columns, "visit_start")
    end, end_is_date = _time(columns, "visit_end")
    place = "discharged_to" if columns.has("discharged_to_concept_id", "discharged_to_source_value") else "discharge_to"  # 5.4, 5.3
    concept, source = columns.integer(f"{place}_concept_id"), columns.text(f"{place}_source_value")
    # The visit's source value is often a key of the source system: only the concept names the class.
    kind = columns.integer("visit_concept_id").fill_null(0).cast("string")
    where = _known(concept).ifelse(concept.cast("string"), ibis.literal("0/") + source)
    return {
        "visit_id": columns.integer("visit_occurrence_id"),
        "time": time,
        "time_is_date": is_date,
        "end_time": end,
        "end_is_date": end_is_date,
        "code": ibis.literal(VISIT_PREFIX) + kind,
        "discharge_code": ibis.literal(DISCHARGE_PREFIX) + where,
    }


def _person_expression(columns: Columns) -> dict[str, ir.Value]:
    year, month, day = (columns.integer(f"{part}_of_birth") for part in ("year", "month", "day"))
    parts = year.cast("string").lpad(4, "0") + "-" + month.fill_null(1).cast("string").lpad(2, "0") + "-"
    given = columns.instant("birth_datetime")
    disagrees = (given.year() != year).fill_null(False)  # the year is the column that every CDM fills: the other holds a placeholder then
    exact = (parts + day.fill_null(1).cast("string").lpad(2, "0")).try_cast("timestamp(6)")
    birth = ibis.coalesce(disagrees.ifelse(ibis.null("timestamp(6)"), given), exact, (parts + "01").try_cast("timestamp(6)"))
    found = {"time": birth, "birth_disagrees": disagrees}
    for name in ("gender", "race", "ethnicity"):
        found[name] = columns.integer(f"{name}_concept_id").fill_null(0)
    return found


def _expression(columns: Columns) -> dict[str, ir.Value]:
    """The columns to stage of one table, by the table's name."""
    name = columns.source.name
    columns.require("person_id")
    if name == "person":
        return _person_expression(columns)
    if name == "visit_occurrence":
        return _visit_expression(columns)
    if name == "observation_period":
        columns.require("observation_period_start_date")
        columns.require("observation_period_end_date")
        return {"time": columns.instant("observation_period_start_date"), "end_time": columns.instant("observation_period_end_date")}
    if name == "death":
        columns.require("death_date", "death_datetime")
        time, is_date = _time(columns, "death")
        return {"time": time, "time_is_date": is_date}
    return _event_expression(columns, EVENT_TABLES[name])


class OmopStage:
    """The clinical tables of one source, checked, and written bucket by bucket."""

    def __init__(self, tables: dict[str, SourceTable], time_zone: str = ""):
        self.tables = {name: tables[name] for name in STAGED if name in tables}
        self._staged: dict[str, tuple[Columns, dict[str, ir.Value]]] = {}
        for name, source in self.tables.items():
            columns = Columns(source, time_zone)
            found = {"subject_id": columns.integer("person_id"), **_expression(columns), "fingerprint": _fingerprint(source)}
            self._staged[name] = (columns, found)

    def check(self, name: str) -> tuple[int, dict[str, int]]:
        """Rows and unreadable values of one table; see `Columns.check`."""
        return self._staged[name][0].check()

    def zones(self) -> dict[str, dict[str, int]]:
        """Times with a time zone, by table and column; after `check`."""
        return {name: columns.zones for name, (columns, _) in self._staged.items() if columns.zones}

    def doubtful(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Times of which many could not be read, by table and column; after `check`."""
        return {name: columns.doubtful for name, (columns, _) in self._staged.items() if columns.doubtful}

    def expression(self, name: str, buckets: int) -> ir.Table:
        """Everything to stage of one table, with the `bucket` of each row's subject."""
        source, found = self.tables[name], self._staged[name][1]
        staged = source.relation.select(**found)
        return staged.mutate(bucket=hashed(staged.subject_id.fill_null(0)) % buckets)


def _booked(frame: pl.DataFrame, table: str, *, derived: bool = False) -> pl.DataFrame:
    return frame.with_columns(pl.lit(table).alias("table"), pl.lit(table).alias("origin"), pl.lit(derived).alias("derived"))


def _statics(persons: pl.DataFrame) -> pl.DataFrame:
    """Demographics: the gender row stands for the person's own row, the others are derived."""
    rows = []
    for name, prefix in (("gender", GENDER_PREFIX), ("race", RACE_PREFIX), ("ethnicity", ETHNICITY_PREFIX)):
        coded = persons.with_columns(
            (pl.lit(prefix) + pl.col(name).cast(pl.String)).alias("code"), pl.lit(None, dtype=pl.Datetime("us")).alias("time")
        )
        rows.append(shaped(_booked(coded, "person", derived=name != "gender"), STATICS))
    born = persons.filter(pl.col("time").is_not_null()).with_columns(pl.lit(BIRTH).alias("code"))
    rows.append(shaped(_booked(born, "person", derived=True), STATICS))
    return pl.concat(rows)


def read_bucket(stage: Path, bucket: int, tables: dict[str, SourceTable], ledger: Ledger) -> Bucket:
    """The staged rows of one bucket as frames; nothing is dropped here."""
    found = Bucket()
    events = []
    for name in tables:
        paths = sorted((stage / name / f"bucket={bucket}").glob("*.parquet"))
        frame = pl.concat([pl.read_parquet(path, hive_partitioning=False, glob=False) for path in paths]) if paths else None
        if name == "person":
            found.known_subjects = pl.Series("subject_id", [], dtype=pl.Int64) if frame is None else frame["subject_id"].drop_nulls().unique()
        if frame is None:
            continue
        frame = _booked(frame, name).with_columns(pl.lit(name).alias("group"))
        if name == "person":
            ledger.mend(frame, pl.col("birth_disagrees"), "birth_datetime_of_another_year")
            found.statics = _statics(frame)
        elif name == "observation_period":
            found.periods = shaped(frame, PERIODS)
        elif name == "visit_occurrence":
            found.visits = shaped(frame.with_columns(pl.lit("visit_occurrence:end").alias("end_group")), VISITS)
        elif name == "death":
            found.deaths = shaped(frame, DEATHS)
        else:
            events.append(shaped(frame, EVENTS))
    if events:
        found.events = pl.concat(events)
    return found


class OmopSource:
    """OMOP tables as a source of the ingest."""

    format = "omop"
    dialect: str | None = None
    native = False

    def __init__(self, connection: Backend, tables: dict[str, SourceTable], others: list[str], *, time_zone: str = ""):
        self.connection, self.all_tables, self.others = connection, tables, others
        self._stage = OmopStage(tables, time_zone)

    def tables(self) -> list[str]:
        """The clinical tables that are there."""
        return list(self._stage.tables)

    def check(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        """See `Columns.check`."""
        rows, unreadable = self._stage.check(name)
        return {name: rows}, unreadable

    def stage(self, name: str, folder: Path, buckets: int) -> None:
        """Write one table, one folder per bucket."""
        folder.mkdir(parents=True, exist_ok=True)
        with reading(self._stage.tables[name].where, f"the OMOP table {name}"):
            self._stage.expression(name, buckets).to_parquet(folder / name, partition_by="bucket", overwrite_or_ignore=True)

    def _staged(self, folder: Path, name: str) -> ir.Table | None:
        paths = sorted(str(path) for path in (folder / name).glob("bucket=*/*.parquet"))
        return self.connection.read_parquet(paths) if paths else None

    def survey(self, folder: Path) -> pl.DataFrame:
        """See `run.Source.survey`; ends of visits are a group of their own."""
        found = []
        for name in self._stage.tables:
            staged = self._staged(folder, name)
            if staged is None or name in ("person", "observation_period"):
                continue
            found.append(midnight_counts(staged.select("time").mutate(group=ibis.literal(name))))
            if name == "visit_occurrence":
                found.append(midnight_counts(staged.select(time=staged.end_time, group=ibis.literal("visit_occurrence:end"))))
        return pl.concat(found) if found else pl.DataFrame(schema={"group": pl.String, "rows": pl.Int64, "midnights": pl.Int64, "late": pl.Int64})

    def subjects(self, folder: Path) -> pl.Series:
        """Those of the person table; where there is none, of all tables."""
        names = ["person"] if "person" in self._stage.tables else self.tables()
        found = [staged.select("subject_id").distinct() for staged in (self._staged(folder, name) for name in names) if staged is not None]
        return pl.concat([fetch(table)["subject_id"].cast(pl.Int64) for table in found]).drop_nulls().unique()

    def own_splits(self, folder: Path) -> pl.DataFrame | None:
        """OMOP has none."""
        return None

    def read(self, folder: Path, bucket: int, ledger: Ledger) -> Bucket:
        """See `read_bucket`."""
        return read_bucket(folder, bucket, self._stage.tables, ledger)

    def describe(self, codes: pl.DataFrame) -> pl.DataFrame:
        """Names from `concept`, all ancestors from `concept_ancestor` (as codes of the same prefix)."""
        return describe_codes(self.connection, codes, self.all_tables.get("concept"), self.all_tables.get("concept_ancestor"))

    def inherited(self) -> dict[str, str]:
        """OMOP says nothing of calendars and policies."""
        return {}

    def facts(self) -> dict[str, object]:
        """Which tables there were."""
        absent = [name for name in (*STAGED, "concept", "concept_ancestor") if name not in self.all_tables]
        files = {name: source.file for name, source in self.all_tables.items()}
        times = {"times_with_a_zone": self._stage.zones(), "unreadable_dates": self._stage.doubtful()}
        return {"files": files, "tables_absent": absent, "tables_not_read": self.others, **times}

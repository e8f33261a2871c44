"""EventTable -> OMOP CDM 5.4 tables as Parquet: the only writer that knows OMOP's columns.

It takes any valid EventTable, generated or real, chunk by chunk (each chunk holds whole subjects), so memory is bounded by the
largest chunk. Every row that comes in is either a row (or a column) of a table or is counted under `dropped`: nothing vanishes.

    where a row goes     `origin` (the table it came from), else the code's prefix; else `observation`, counted as `unmapped`
    concept              `<table>/<concept_id>`; everything else is concept 0 with the code as source value, counted as `concept_zero`
    keys                 numbered through in each table; `person_id` is the subject id
    dates without times  `time_precision` day leaves the `_datetime` column null, so that a reader sees what was known
    death                ends everything: later rows are dropped, ends that reach past it are moved to it; both counted
    observation periods  START/END rows in pairs; widened where an event lies outside of them; from first to last event if there are none

`docs/synthesis.md` says what a round trip through `ingest` gives back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path
from cehrxgpt.events import EventDataset, conform, rank_expression
from cehrxgpt.synthesis import cdm

_ORIGINS = [table.name for table in cdm.CLINICAL]
_BUSINESS = {s.BIRTH, s.DEATH, s.OBSERVATION_START, s.OBSERVATION_END}


def _concept(rest: pl.Expr) -> pl.Expr:
    """The concept id in the text after a code's prefix; 0 where it is none."""
    return pl.when(rest.str.contains(r"^-?\d{1,18}$")).then(rest).otherwise(pl.lit("0")).cast(pl.Int64)


def _source(code: pl.Expr, rest: pl.Expr) -> pl.Expr:
    """The source value of concept-0 codes: what follows `<prefix>/0/`, else the whole code; null for real concepts."""
    kept = rest.str.strip_prefix("0/")
    return (
        pl.when(_concept(rest) != 0).then(pl.lit(None, dtype=pl.String))
        .when(rest == "0").then(pl.lit(None, dtype=pl.String))
        .when(rest.str.starts_with("0/")).then(kept)
        .otherwise(code)
    )  # fmt: skip


def _dated(stem: str, time: str = "time") -> list[pl.Expr]:
    """`<stem>_date` and `<stem>_datetime` (null where only the date is known)."""
    moment = pl.col(time)
    return [
        moment.dt.date().alias(f"{stem}_date"),
        pl.when(pl.col("time_precision").fill_null("second") != "day").then(moment).alias(f"{stem}_datetime"),
    ]


def _fill(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """All columns of the table in the standard's order; absent ones are null."""
    columns = cdm.TABLES[table]
    return frame.select(
        pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in columns.items()
    )


def _mapped(values: Mapping[str, int], rest: pl.Expr) -> pl.Expr:
    """A concept id by name (case ignored) for text that is not a number; 0 where the name is unknown."""
    return rest.str.to_lowercase().replace_strict(values, default=0, return_dtype=pl.Int64)


class _Converter:
    """Turns chunks into tables; carries the running keys and the counts from one chunk to the next."""

    def __init__(self) -> None:
        self.next_key: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()  # "dropped/...", "changed/...", "events"
        self.concepts: dict[int, tuple[str, str]] = {}  # concept id -> (code, domain)

    def keys(self, frame: pl.DataFrame, table: str, column: str) -> pl.DataFrame:
        """Add a primary key that goes on where the last chunk stopped."""
        first = self.next_key[table] + 1
        self.next_key[table] += frame.height
        return frame.with_columns(pl.int_range(first, first + frame.height, dtype=pl.Int64).alias(column))

    def drop(self, frame: pl.DataFrame, keep: pl.Expr, reason: str) -> pl.DataFrame:
        """Filter, counting what goes."""
        kept = frame.filter(keep)
        self.counts[f"dropped/{reason}"] += frame.height - kept.height
        return kept

    def note(self, frame: pl.DataFrame, domain: str) -> None:
        """Remember which concepts were used, for the concept table. `frame`: `_concept`, `code`."""
        for concept, code in frame.filter(pl.col("_concept") != 0).select("_concept", "code").unique().iter_rows():
            self.concepts.setdefault(concept, (code, domain))

    def end_at_death(self, events: pl.DataFrame) -> pl.DataFrame:
        """Nothing after death: later rows go, ends are clipped."""
        deaths = events.filter(pl.col("code") == s.DEATH).group_by("subject_id").agg(pl.col("time").min().alias("_death"))
        events = events.join(deaths, on="subject_id", how="left", maintain_order="left")
        late = (pl.col("time") > pl.col("_death")) & (pl.col("code") != s.OBSERVATION_END)
        events = self.drop(events, ~late.fill_null(False), "after_death")
        past = pl.col("end_time") > pl.col("_death")
        self.counts["changed/end_moved_to_death"] += events.filter(past).height
        return events.with_columns(pl.when(past).then(pl.col("_death")).otherwise(pl.col("end_time")).alias("end_time")).drop("_death")

    def person(self, events: pl.DataFrame) -> pl.DataFrame:
        """One row per subject: sex, race, ethnicity, birth."""
        people = events.select(pl.col("subject_id").alias("person_id")).unique(maintain_order=True)
        for prefix, stem in ((s.GENDER_PREFIX, "gender"), (s.RACE_PREFIX, "race"), (s.ETHNICITY_PREFIX, "ethnicity")):
            rest = pl.col("code").str.strip_prefix(prefix)
            numbered = _concept(rest)
            found = pl.when(numbered != 0).then(numbered).otherwise(_mapped(cdm.GENDER_CONCEPT, rest)) if stem == "gender" else numbered
            rows = events.filter(pl.col("time").is_null() & pl.col("code").str.starts_with(prefix))
            rows = rows.select(pl.col("subject_id").alias("person_id"), "code", found.alias("_concept"), _source(rest, rest).alias("_source"))
            self.note(rows, stem.capitalize())
            first = rows.group_by("person_id", maintain_order=True).first()
            self.counts["dropped/repeated_demographics"] += rows.height - first.height
            renamed = first.select("person_id", pl.col("_concept").alias(f"{stem}_concept_id"), pl.col("_source").alias(f"{stem}_source_value"))
            people = people.join(renamed, on="person_id", how="left", maintain_order="left")
            people = people.with_columns(pl.col(f"{stem}_concept_id").fill_null(0))
        births = events.filter(pl.col("code") == s.BIRTH).group_by("subject_id").agg(pl.col("time").min(), pl.col("time_precision").first())
        self.counts["dropped/repeated_birth"] += events.filter(pl.col("code") == s.BIRTH).height - births.height
        self.counts["changed/persons_without_birth"] += people.height - births.height
        moment = pl.col("time").dt
        births = births.select(
            pl.col("subject_id").alias("person_id"),
            moment.year().alias("year_of_birth"),
            moment.month().alias("month_of_birth"),
            moment.day().alias("day_of_birth"),
            _dated("birth")[1],
        )
        people = people.join(births, on="person_id", how="left", maintain_order="left")
        self.counts["events/static"] += events.filter(pl.col("time").is_null()).height
        return _fill(people.with_columns(pl.col("person_id").cast(pl.String).alias("person_source_value")), "person")

    def observation_period(self, events: pl.DataFrame) -> pl.DataFrame:
        """Periods that cover every dated event of the subject."""
        dated = events.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH))
        # A drug may run on after the end of observation; the last day of a stay must be covered.
        reach = pl.when(pl.col("code").str.starts_with(s.VISIT_PREFIX)).then(pl.max_horizontal("time", "end_time")).otherwise(pl.col("time"))
        days = dated.select(pl.col("subject_id"), "code", pl.col("time").dt.date().alias("day"), reach.dt.date().alias("last"))
        starts = days.filter(pl.col("code") == s.OBSERVATION_START).sort("subject_id", "day")
        ends = days.filter(pl.col("code") == s.OBSERVATION_END).sort("subject_id", "day")
        number = pl.int_range(pl.len()).over("subject_id").alias("_number")
        paired = starts.select("subject_id", pl.col("day").alias("start"), number).join(
            ends.select("subject_id", pl.col("day").alias("end"), number), on=["subject_id", "_number"], how="full", coalesce=True
        )
        self.counts["changed/observation_rows_unpaired"] += paired.filter(pl.col("start").is_null() | pl.col("end").is_null()).height
        spans = days.group_by("subject_id").agg(pl.col("day").min().alias("_first"))
        known = paired.filter(pl.col("start").is_not_null()).select("subject_id", "start", "end")
        bare = spans.join(known, on="subject_id", how="anti").select(
            "subject_id", pl.col("_first").alias("start"), pl.lit(None, pl.Date).alias("end")
        )
        self.counts["changed/observation_period_from_events"] += bare.height
        periods = pl.concat([known, bare]).join(spans, on="subject_id").sort("subject_id", "start", "end")
        leading = pl.int_range(pl.len()).over("subject_id") == 0
        periods = periods.with_columns(pl.when(leading).then(pl.min_horizontal("start", "_first")).otherwise(pl.col("start")).alias("start"))
        held = days.sort("day").join_asof(
            periods.select("subject_id", pl.col("start").alias("_start")).unique().sort("_start"),
            left_on="day", right_on="_start", by="subject_id", strategy="backward", check_sortedness=False,
        )  # fmt: skip
        held = held.group_by("subject_id", pl.col("_start").alias("start")).agg(pl.col("last").max())
        periods = periods.join(held, on=["subject_id", "start"], how="left")
        widened = pl.max_horizontal("start", "end", "last")
        self.counts["changed/observation_period_widened"] += periods.filter(pl.col("last") > pl.col("end")).height
        periods = periods.select(
            pl.col("subject_id").alias("person_id"),
            pl.col("start").alias("observation_period_start_date"),
            widened.alias("observation_period_end_date"),
            pl.lit(cdm.OBSERVATION_PERIOD_TYPE).alias("period_type_concept_id"),
        ).unique(maintain_order=True)
        return _fill(self.keys(periods, "observation_period", "observation_period_id"), "observation_period")

    def visit_occurrence(self, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The visit table, and (subject_id, visit_id) -> (visit_occurrence_id, end)."""
        is_visit, is_discharge = pl.col("code").str.starts_with(s.VISIT_PREFIX), pl.col("code").str.starts_with(s.DISCHARGE_PREFIX)
        rest = pl.col("code").str.strip_prefix(s.VISIT_PREFIX)
        numbered = _concept(rest)
        visits = events.filter(is_visit).with_columns(
            pl.when(numbered != 0).then(numbered).otherwise(_mapped(cdm.VISIT_CONCEPT, rest)).alias("_concept"), _source(rest, rest).alias("_source")
        )
        self.note(visits, "Visit")
        self.counts["concept_zero/visit_occurrence"] += visits.filter(pl.col("_concept") == 0).height
        last = events.filter(pl.col("visit_id").is_not_null()).group_by("subject_id", "visit_id").agg(pl.col("time").max().alias("_last"))
        out = events.filter(is_discharge & pl.col("visit_id").is_not_null())
        self.counts["dropped/discharge_without_visit"] += events.filter(is_discharge & pl.col("visit_id").is_null()).height
        place = pl.col("code").str.strip_prefix(s.DISCHARGE_PREFIX)
        self.note(out.select("code", _concept(place).alias("_concept")), "Visit")
        out = out.select("subject_id", "visit_id", _concept(place).alias("_to"), _source(place, place).alias("_to_source"))
        final = out.group_by("subject_id", "visit_id", maintain_order=True).last()
        self.counts["dropped/repeated_discharge"] += out.height - final.height
        visits = visits.join(last, on=["subject_id", "visit_id"], how="left", maintain_order="left")
        visits = visits.join(final, on=["subject_id", "visit_id"], how="left", maintain_order="left")
        self.counts["changed/open_visit_closed_at_last_event"] += visits["end_time"].null_count()
        visits = visits.with_columns(pl.coalesce("end_time", "_last", "time").alias("end_time"))
        visits = self.keys(visits, "visit_occurrence", "visit_occurrence_id")
        table = visits.select(
            "visit_occurrence_id",
            pl.col("subject_id").alias("person_id"),
            pl.col("_concept").alias("visit_concept_id"),
            *_dated("visit_start"),
            *_dated("visit_end", "end_time"),
            pl.lit(cdm.EHR_TYPE).alias("visit_type_concept_id"),
            pl.col("_source").alias("visit_source_value"),
            pl.col("_to").alias("discharged_to_concept_id"),
            pl.col("_to_source").alias("discharged_to_source_value"),
            pl.col("visit_occurrence_id").shift(1).over("subject_id").alias("preceding_visit_occurrence_id"),
        )
        index = visits.filter(pl.col("visit_id").is_not_null()).select(
            "subject_id", "visit_id", "visit_occurrence_id", pl.col("end_time").alias("_visit_end")
        )
        return _fill(table, "visit_occurrence"), index.unique(["subject_id", "visit_id"], maintain_order=True)

    def clinical(self, events: pl.DataFrame, index: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """The clinical tables; `events` are the dated clinical rows."""
        prefix = pl.col("code").str.split_exact("/", 1).struct.field("field_0")
        by_prefix = {table.prefix: table.name for table in cdm.CLINICAL}
        events = events.with_columns(
            pl.when(pl.col("origin").is_in(_ORIGINS)).then(pl.col("origin"))
            .otherwise(prefix.replace_strict(by_prefix, default=None, return_dtype=pl.String)).alias("_table")
        )  # fmt: skip
        self.counts["changed/unmapped"] += events["_table"].null_count()
        events = events.with_columns(pl.col("_table").fill_null(cdm.FALLBACK_TABLE))
        events = events.join(index, on=["subject_id", "visit_id"], how="left", maintain_order="left")
        tables = {}
        for spec in cdm.CLINICAL:
            rows = events.filter(pl.col("_table") == spec.name)
            if rows.height:
                tables[spec.name] = self._clinical_table(rows, spec)
        return tables

    def _clinical_table(self, rows: pl.DataFrame, spec: cdm.ClinicalTable) -> pl.DataFrame:
        named = pl.col("code").str.starts_with(f"{spec.prefix}/")
        rest = pl.when(named).then(pl.col("code").str.strip_prefix(f"{spec.prefix}/")).otherwise(pl.lit(""))
        rows = rows.with_columns(_concept(rest).alias("_concept"), _source(pl.col("code"), rest).alias("_source"))
        self.note(rows, spec.domain)
        self.counts[f"concept_zero/{spec.name}"] += rows.filter(pl.col("_concept") == 0).height
        columns = [
            pl.col("subject_id").alias("person_id"),
            pl.col("_concept").alias(f"{spec.prefix}_concept_id"),
            *_dated(spec.start),
            _type_concept(spec).alias(f"{spec.prefix}_type_concept_id"),
            "visit_occurrence_id",
            pl.col("_source").alias(f"{spec.prefix}_source_value"),
        ]
        if spec.end is not None:
            columns += _dated(spec.end, "_end")
        if spec.name == "drug_exposure":
            columns.append(pl.col("end_time").dt.date().alias("verbatim_end_date"))
        if spec.has_number:
            columns += _result_columns(spec)
        else:
            self.counts["changed/result_without_column"] += rows.filter(
                pl.col("numeric_value").is_not_null() | pl.col("text_value").is_not_null()
            ).height
        # The standard wants an end for drugs and devices; `verbatim_end_date` stays null where we made it up.
        required = spec.name in ("drug_exposure", "device_exposure")
        rows = rows.with_columns((pl.coalesce("end_time", "time") if required else pl.col("end_time")).alias("_end"))
        return _fill(self.keys(rows.select(columns), spec.name, spec.key), spec.name)

    def convert(self, events: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """One chunk of whole subjects to tables."""
        self.counts["events/read"] += events.height
        events = self.end_at_death(events)
        rank = rank_expression()
        fixed = pl.any_horizontal(pl.col("code").str.starts_with(p) for p in (s.GENDER_PREFIX, s.RACE_PREFIX, s.ETHNICITY_PREFIX))
        events = self.drop(events, pl.col("time").is_not_null() | fixed, "static_without_place")
        deaths = events.filter(pl.col("code") == s.DEATH)
        first = deaths.unique("subject_id", keep="first", maintain_order=True)
        self.counts["dropped/repeated_death"] += deaths.height - first.height
        died = first.select(pl.col("subject_id").alias("person_id"), *_dated("death"), pl.lit(cdm.EHR_TYPE).alias("death_type_concept_id"))
        visits, index = self.visit_occurrence(events)
        return {
            "person": self.person(events),
            "observation_period": self.observation_period(events),
            "visit_occurrence": visits,
            "death": _fill(died, "death"),
            **self.clinical(events.filter(rank == s.RANK_CLINICAL), index),
        }

    def concept_table(self, names: Mapping[str, str]) -> pl.DataFrame:
        """The concepts used whose name is known."""
        known = [(concept, names[code], domain) for concept, (code, domain) in sorted(self.concepts.items()) if names.get(code)]
        frame = pl.DataFrame(known, schema={"concept_id": pl.Int64, "concept_name": pl.String, "domain_id": pl.String}, orient="row")
        frame = frame.with_columns(
            pl.lit("S").alias("standard_concept"),
            pl.col("concept_id").cast(pl.String).alias("concept_code"),
            pl.lit("None").alias("vocabulary_id"),
            pl.lit("Undefined").alias("concept_class_id"),
            pl.lit(date(1970, 1, 1)).alias("valid_start_date"),
            pl.lit(date(2099, 12, 31)).alias("valid_end_date"),
        )
        return _fill(frame, "concept")


def _type_concept(spec: cdm.ClinicalTable) -> pl.Expr:
    """Where the record came from. A condition known only at its visit's end is a billing diagnosis, and is written as one."""
    if spec.name != "condition_occurrence":
        return pl.lit(cdm.EHR_TYPE)
    end_of_day = pl.col("time").dt.truncate("1d") + pl.duration(days=1, microseconds=-1)
    known = pl.when(pl.col("time_precision").fill_null("second") == "day").then(end_of_day).otherwise(pl.col("time"))
    billed = (pl.col("available_time") > known) & (pl.col("available_time") == pl.col("_visit_end"))
    return pl.when(billed.fill_null(False)).then(cdm.BILLING_TYPE).otherwise(cdm.EHR_TYPE)


def _result_columns(spec: cdm.ClinicalTable) -> list[pl.Expr]:
    """Number, unit and category. The unit is the one that the event carries: it belongs to its own (concept, unit) pair."""
    is_concept = pl.col("text_value").str.contains(r"^-?\d{1,18}$").fill_null(False)
    unit_is_concept = pl.col("unit").str.contains(r"^-?\d{1,18}$").fill_null(False)
    text = pl.when(~is_concept).then(pl.col("text_value"))
    columns = [
        pl.col("numeric_value").cast(pl.Float64).alias("value_as_number"),
        pl.when(is_concept).then(pl.col("text_value")).cast(pl.Int64).alias("value_as_concept_id"),
        pl.when(unit_is_concept).then(pl.col("unit")).otherwise(pl.when(pl.col("unit").is_not_null()).then(pl.lit("0"))).cast(pl.Int64)
        .alias("unit_concept_id"),
        pl.when(~unit_is_concept).then(pl.col("unit")).alias("unit_source_value"),
        text.alias("value_source_value"),
    ]  # fmt: skip
    if spec.has_operator:
        columns.append(pl.col("operator").replace_strict(cdm.OPERATOR_CONCEPT, default=None, return_dtype=pl.Int64).alias("operator_concept_id"))
    else:
        columns.append(text.alias("value_as_string"))
    return columns


def _chunks(events: EventDataset | pl.DataFrame | Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    if isinstance(events, EventDataset):
        yield from (frame for _, frame in events.iter_shards())
    elif isinstance(events, pl.DataFrame):
        yield conform(events)
    else:
        yield from (conform(frame) for frame in events)


def write_omop(
    events: EventDataset | pl.DataFrame | Iterable[pl.DataFrame],
    out: str | Path,
    *,
    names: Mapping[str, str] | None = None,
    source_name: str = "cehrxgpt",
    description: str = "Written by cehrxgpt",
    force: bool = False,
) -> dict[str, Any]:
    """Write OMOP CDM 5.4 tables, one Parquet file each, as a folder that is there whole or not at all.

    Args:
        events: EventTable, or chunks of it; a subject lives in one chunk.
        out: the folder to make.
        names: code -> readable name, for the `concept` table (a data set's own are taken if it is given).
        source_name, description: for `cdm_source`.
        force: replace an existing folder.

    Returns:
        Counts as plain JSON: `rows` per table; `events` read; `dropped` and `changed` by reason; `concept_zero` per table.
        `events.read` = rows placed + the sum of `dropped`.

    Raises:
        OutputExistsError, StorageError: see `atomic.atomic_path`.
    """
    if names is None:
        names = events.names() if isinstance(events, EventDataset) else {}
    converter = _Converter()
    rows: Counter[str] = Counter()
    with atomic_path(out, force=force, folder=True) as folder:
        writers: dict[str, pq.ParquetWriter] = {}
        try:

            def write(table: str, frame: pl.DataFrame) -> None:
                arrow = frame.to_arrow()
                if table not in writers:
                    writers[table] = pq.ParquetWriter(folder / f"{table}.parquet", arrow.schema, compression="zstd")
                writers[table].write_table(arrow)
                rows[table] += frame.height

            for table, columns in cdm.TABLES.items():
                if table not in ("concept", "cdm_source"):
                    write(table, pl.DataFrame(schema=columns))  # a table without rows is still a table
            for chunk in _chunks(events):
                for table, frame in converter.convert(chunk).items():
                    write(table, frame)
            write("concept", converter.concept_table(names))
            write("cdm_source", _cdm_source(source_name, description))
        finally:
            for writer in writers.values():
                writer.close()
    return _summary(rows, converter.counts)


def _cdm_source(name: str, description: str) -> pl.DataFrame:
    # The release dates are fixed: a run with the same seed gives the same bytes.
    facts = {
        "cdm_source_name": name,
        "cdm_source_abbreviation": name[:25],
        "cdm_holder": "cehrxgpt",
        "source_description": description,
        "source_release_date": date(1970, 1, 1),
        "cdm_release_date": date(1970, 1, 1),
        "cdm_version": cdm.CDM_VERSION,
        "cdm_version_concept_id": cdm.CDM_VERSION_CONCEPT,
        "vocabulary_version": "none",
    }
    return _fill(pl.DataFrame([facts]), "cdm_source")


def _summary(rows: Counter[str], counts: Counter[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {"rows": dict(rows), "events": counts["events/read"], "dropped": {}, "changed": {}, "concept_zero": {}}
    for key, count in sorted(counts.items()):
        group, _, reason = key.partition("/")
        if group in summary and group != "events" and count:
            summary[group][reason] = count
    return summary

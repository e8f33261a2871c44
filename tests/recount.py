"""A second count of an ingest: plain SQL over the raw files, sharing no code with `cehrxgpt.sources`.

`recount(folder, ...)` says of every table how many rows there are and what becomes of each, judged by the rules of docs/ingest.md in their order: the
first rule that a row breaks is its reason. What is left is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

NULLS = "['', 'NULL', '\\N', 'NA']"
EVENTS = {
    "condition_occurrence": ("condition", "condition_start"),
    "drug_exposure": ("drug", "drug_exposure_start"),
    "procedure_occurrence": ("procedure", "procedure"),
    "measurement": ("measurement", "measurement"),
    "observation": ("observation", "observation"),
    "device_exposure": ("device", "device_exposure_start"),
    "visit_detail": ("visit_detail", "visit_detail_start"),
}
DETAIL_KEYS = ("visit_detail_id", "preceding_visit_detail_id", "parent_visit_detail_id", "visit_detail_parent_id", "visit_detail_source_value")
INPATIENT, INPATIENT_IF_LONG, EMERGENCY = "(9201, 262)", "(8870, 581385, 8883)", "(9203, 8870)"
Count = dict[str, dict[str, Any]]


class Recount:
    """One source folder. `latest` is the last instant that a record can have."""

    def __init__(self, folder: Path, latest: str):
        self.db = duckdb.connect()
        self.latest = latest
        self.columns: dict[str, list[str]] = {}
        for path in sorted(folder.iterdir()):
            self._load(path)

    def _load(self, path: Path) -> None:
        name = path.name.lower().split(".")[0]
        table = next((known for known in ("person", "observation_period", "visit_occurrence", "death", *EVENTS) if name.endswith(known)), None)
        if table is None or name in ("drug_era", "condition_era"):
            return
        if path.is_dir() or path.suffix == ".parquet":
            scan = f"read_parquet('{path}{'/*.parquet' if path.is_dir() else ''}')"
            columns = [row[0] for row in self.db.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()]
            # A time with a zone is read in UTC; a whole number stored as a fraction is one.
            self.db.execute("SET TimeZone = 'UTC'")
        else:
            text = f"header=true, all_varchar=true, nullstr={NULLS}"
            tabs = ", delim='\t'" if ".tsv" in path.name or ".txt" in path.name else ""
            scan = f"read_csv('{path}', {text}{tabs})"
            columns = [row[0] for row in self.db.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()]
        chosen = ", ".join(f'nullif(trim("{column}"::VARCHAR), \'\') AS "{column.lower()}"' for column in columns)
        self.db.execute(f"CREATE TABLE {table} AS SELECT {chosen} FROM {scan}")
        self.columns[table] = [column.lower() for column in columns]

    def one(self, query: str) -> Any:
        row = self.db.execute(query).fetchone()
        assert row is not None
        return row[0]

    def _column(self, table: str, name: str, kind: str) -> str:
        if name not in self.columns[table]:
            return f"NULL::{kind}"
        if kind == "TIMESTAMP":  # an offset is dropped, the clock's reading counts; 20110203 is a date
            plain = f"regexp_replace({name}, '([0-9])\\s*(Z|UTC|[+-][0-9]{{2}}(:?[0-9]{{2}})?)$', '\\1')"
            plain = f"CASE WHEN length({name}) > 10 THEN {plain} ELSE regexp_replace({name}, '^(\\d{{4}})(\\d\\d)(\\d\\d)$', '\\1-\\2-\\3') END"
            return f"TRY_CAST({plain} AS TIMESTAMP)"
        return f"TRY_CAST({name} AS {kind})"

    def _time(self, table: str, stem: str) -> tuple[str, str]:
        exact, date = self._column(table, f"{stem}_datetime", "TIMESTAMP"), self._column(table, f"{stem}_date", "TIMESTAMP")
        return f"coalesce({exact}, {date})", f"{exact} IS NULL"

    def _all_but(self, table: str, *identifiers: str) -> str:
        return ", ".join(f'"{name}"' for name in self.columns[table] if name not in identifiers)

    def _midnight(self, table: str, time: str) -> bool:
        """Whether a tenth of the table's times are at midnight."""
        return bool(self.one(f"SELECT coalesce(avg(({time} = date_trunc('day', {time}))::INT), 0) >= 0.1 FROM {table} WHERE {time} IS NOT NULL"))

    def _people(self) -> str:
        return "(SELECT DISTINCT TRY_CAST(person_id AS BIGINT) AS id FROM person)" if "person" in self.columns else "NULL"

    def births(self) -> None:
        """birth(id, born): the year decides where a birth's datetime says another."""
        self.db.execute("CREATE TABLE birth (id BIGINT, born TIMESTAMP)")
        if "person" not in self.columns:
            return
        year, month, day = (self._column("person", f"{part}_of_birth", "INT") for part in ("year", "month", "day"))
        exact = self._column("person", "birth_datetime", "TIMESTAMP")
        made = f"TRY_CAST(printf('%04d-%02d-%02d', {year}, coalesce({month}, 1), coalesce({day}, 1)) AS TIMESTAMP)"
        chosen = f"CASE WHEN {exact} IS NOT NULL AND ({year} IS NULL OR year({exact}) = {year}) THEN {exact} WHEN {year} IS NOT NULL THEN {made} END"
        self.db.execute(f"INSERT INTO birth SELECT TRY_CAST(person_id AS BIGINT) AS id, min(date_trunc('day', {chosen})) FROM person GROUP BY id")

    def _judge(self, table: str, columns: str, reasons: list[tuple[str, str]], *, name: str = "") -> Count:
        """Rows of `table` with `columns`, each under the first reason that it meets; the others stay as the table `kept_<table>`."""
        cases = " ".join(f"WHEN {condition} THEN '{reason}'" for condition, reason in reasons)
        name = name or table
        people = "" if "person" not in self.columns else f"LEFT JOIN {self._people()} known ON known.id = x.subject"
        known = "TRUE" if "person" not in self.columns else "known.id IS NOT NULL"
        self.db.execute(
            f"CREATE OR REPLACE TABLE judged_{name} AS SELECT *, CASE {cases} END AS reason FROM ("
            f"SELECT x.*, {known} AS known, birth.born, died.died FROM (SELECT {columns} FROM {table}) x "
            f"LEFT JOIN birth ON birth.id = x.subject LEFT JOIN died ON died.id = x.subject {people}) j"
        )
        dropped = dict(self.db.execute(f"SELECT reason, count(*) FROM judged_{name} WHERE reason IS NOT NULL GROUP BY reason").fetchall())
        read = self.one(f"SELECT count(*) FROM judged_{name}")
        return {table: {"read": read, "kept": read - sum(dropped.values()), "dropped": dict(sorted(dropped.items()))}}

    def _again(self, table: str, *identifiers: str, first: str) -> str:
        """Whether an equal row came before, among those that `first` has not dropped."""
        return f"row_number() OVER (PARTITION BY {self._all_but(table, *identifiers)} ORDER BY {first}) > 1"

    def deaths(self) -> Count:
        """died(id, died), and the count of the table."""
        self.db.execute("CREATE TABLE died (id BIGINT, died TIMESTAMP)")
        if "death" not in self.columns:
            return {}
        time, is_date = self._time("death", "death")
        last = f"date_trunc('day', {time}) + INTERVAL 1 DAY - INTERVAL 1 MICROSECOND"
        at_midnight = f"OR {time} = date_trunc('day', {time})" if self._midnight("death", time) else ""
        when = f"CASE WHEN {is_date} {at_midnight} THEN {last} ELSE {time} END"
        columns = f"TRY_CAST(person_id AS BIGINT) AS subject, {when} AS t, {self._again('death', first='person_id')} AS again"
        good = "t IS NOT NULL AND NOT again AND t <= $L AND t >= '1900-01-02' AND (born IS NULL OR t >= born)".replace("$L", self.latest)
        reasons = [
            ("subject IS NULL", "no_subject_id"), ("NOT known", "subject_not_in_person"), ("t IS NULL", "no_date"), ("again", "duplicate"),
            (f"t > {self.latest}", "in_the_future"), ("t < '1900-01-02'", "placeholder_date"), ("t < born", "before_birth"),
            (f"row_number() OVER (PARTITION BY subject, ({good}) ORDER BY t) > 1", "death_repeated"),
        ]  # fmt: skip
        found = self._judge("death", columns, reasons)
        self.db.execute("INSERT INTO died SELECT subject, t FROM judged_death WHERE reason IS NULL")
        return found

    def events(self, table: str) -> Count:
        """One clinical table."""
        stem, date = EVENTS[table]
        time, _ = self._time(table, date)
        concept, source = self._column(table, f"{stem}_concept_id", "DOUBLE"), self._column(table, f"{stem}_source_value", "VARCHAR")
        detail = table == "visit_detail"
        keys = DETAIL_KEYS if detail else (f"{table}_id",)
        uncoded = "FALSE" if detail else f"{concept} IS NULL AND {source} IS NULL"
        columns = (
            f"TRY_CAST(person_id AS BIGINT) AS subject, {time} AS t, {uncoded} AS uncoded, "
            f"{self._again(table, *keys, first='person_id')} AS again, coalesce({concept}::BIGINT, 0) AS concept, "
            f"{self._column(table, 'visit_occurrence_id', 'BIGINT')} AS visit"
        )
        reasons = [
            ("subject IS NULL", "no_subject_id"), ("NOT known", "subject_not_in_person"), ("t IS NULL", "no_date"), ("again", "duplicate"),
            ("uncoded", "no_code"), (f"t > {self.latest}", "in_the_future"), ("t < '1900-01-02'", "placeholder_date"), ("t < born", "before_birth"),
            ("t > died + INTERVAL 1 DAY", "after_death"),
        ]  # fmt: skip
        if detail:
            reasons.append((self._says_its_visit(), "repeats_its_visit"))
        return self._judge(table, columns, reasons)

    def _says_its_visit(self) -> str:
        """Whether the visit that a detail names, or the admission that this one went into, has the detail's concept."""
        if "visit_occurrence" not in self.columns:
            return "FALSE"
        return "EXISTS (SELECT 1 FROM own v WHERE v.subject = j.subject AND v.visit = j.visit AND coalesce(v.merged_into, v.concept) = j.concept)"

    def visits(self) -> Count:
        """`visit_occurrence`, with the merging of emergency visits into admissions."""
        table = "visit_occurrence"
        if table not in self.columns:
            return {}
        (time, is_date), (end, end_is_date) = self._time(table, "visit_start"), self._time(table, "visit_end")
        dated = f"{time} = date_trunc('day', {time})" if self._midnight(table, time) else "FALSE"
        last = f"date_trunc('day', {end}) + INTERVAL 1 DAY - INTERVAL 1 MICROSECOND"
        at_midnight = f"OR {end} = date_trunc('day', {end})" if self._midnight(table, end) else ""
        columns = (
            f"TRY_CAST(person_id AS BIGINT) AS subject, {self._column(table, 'visit_occurrence_id', 'BIGINT')} AS visit, "
            f"CASE WHEN {is_date} THEN date_trunc('day', {time}) ELSE {time} END AS t, {is_date} OR {dated} AS no_hours, "
            f"CASE WHEN {end_is_date} {at_midnight} THEN {last} ELSE {end} END AS u, "
            f"{self._column(table, 'visit_concept_id', 'DOUBLE')}::BIGINT AS concept, "
            f"{self._again(table, 'visit_occurrence_id', first='visit_occurrence_id::BIGINT')} AS again"
        )
        placed = f"t BETWEEN '1900-01-02' AND {self.latest}"
        repeated = f"row_number() OVER (PARTITION BY subject, visit, again, {placed} ORDER BY t, u) > 1"
        reasons = [
            ("subject IS NULL", "no_subject_id"), ("NOT known", "subject_not_in_person"), ("t IS NULL", "no_date"),
            (f"t > {self.latest}", "in_the_future"), ("t < '1900-01-02'", "placeholder_date"),
            ("visit IS NULL", "no_visit_id"), ("again", "duplicate"), (repeated, "visit_id_repeated"),
            ("t < born", "before_birth"), ("t > died + INTERVAL 1 DAY", "after_death"),
        ]  # fmt: skip
        found = self._judge(table, columns, reasons)
        ended = f"CASE WHEN u > {self.latest} THEN NULL WHEN u < t THEN t ELSE least(u, coalesce(died, u)) END"
        long = f"date_diff('second', t, {ended}) > 86400"
        admission = f"concept IN {INPATIENT} OR (concept IN {INPATIENT_IF_LONG} AND {long})"
        emergency = f"concept IN {EMERGENCY} AND NOT admission AND e IS NOT NULL"
        # An admission without hours may be at any hour of its day up to its end.
        same_day = "a.no_hours AND a.t = date_trunc('day', v.t) AND v.t <= coalesce(a.e, v.t)"
        into = f"SELECT min(a.concept) FROM v a WHERE a.admission AND a.subject = v.subject AND (a.t BETWEEN v.t AND v.e OR {same_day})"
        self.db.execute(
            f"CREATE TABLE own AS WITH v AS (SELECT *, {ended} AS e, {admission} AS admission FROM judged_{table} WHERE reason IS NULL) "
            f"SELECT subject, visit, concept, CASE WHEN {emergency} THEN ({into}) END AS merged_into FROM v"
        )
        merged = self.one("SELECT count(merged_into) FROM own")
        if merged:
            row = found[table]
            row["kept"] -= merged
            row["dropped"] = dict(sorted({**row["dropped"], "merged_into_admission": merged}.items()))
        return found

    def periods(self) -> Count:
        table = "observation_period"
        if table not in self.columns:
            return {}
        start, end = (self._column(table, f"observation_period_{part}_date", "TIMESTAMP") for part in ("start", "end"))
        far = "u > '2900-01-01'" if "2899" in self.latest else "FALSE"
        columns = (
            f"TRY_CAST(person_id AS BIGINT) AS subject, {start} AS t, {end} AS u, {self._again(table, f'{table}_id', first='person_id')} AS again"
        )
        reasons = [
            ("subject IS NULL", "no_subject_id"), ("NOT known", "subject_not_in_person"), ("t IS NULL", "no_date"), ("again", "duplicate"),
            (f"u IS NULL OR {far}", "no_end_date"), (f"t > {self.latest}", "in_the_future"), ("t > died", "after_death"),
        ]  # fmt: skip
        return self._judge(table, columns, reasons)

    def persons(self) -> Count:
        if "person" not in self.columns:
            return {}
        columns = f"TRY_CAST(person_id AS BIGINT) AS subject, {self._again('person', first='1')} AS again"
        reasons = [
            ("subject IS NULL", "no_subject_id"), ("again", "duplicate"),
            ("row_number() OVER (PARTITION BY subject, again) > 1", "demographic_repeated"),
        ]  # fmt: skip
        return self._judge("person", columns, reasons)


def recount(folder: Path, *, latest: str) -> Count:
    """Table -> read, kept, dropped by reason; `latest` is an SQL timestamp."""
    counter = Recount(folder, latest)
    counter.births()
    found = counter.deaths()
    steps: list[Callable[[], Count]] = [counter.persons, counter.periods, counter.visits]
    for step in steps:
        found |= step()
    for table in EVENTS:
        if table in counter.columns:
            found |= counter.events(table)
    return found


NOT_GIVEN = r"^MEDICATION//.*//(Not [A-Za-z ]+|Hold Dose|Delayed|Delayed Not [A-Za-z ]+|Infusion Reconciliation Not Done)\s*$"
ROW_NUMBERS = ("emar_id", "emar_seq", "order_id", "link_order_id", "poe_id")


def recount_mimic(folder: Path, placed: set[str]) -> Count:
    """The same of MIMIC-IV as MEDS (shifted calendar), per first segment of the code; segments that are not `placed` count as `other`."""
    db = duckdb.connect()
    source = f"read_parquet('{folder}/data/**/*.parquet', union_by_name=true)"
    columns = [row[0] for row in db.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
    same = ", ".join(f'"{name}"' for name in columns if name not in ROW_NUMBERS)
    midnight = "coalesce(avg((time = date_trunc('day', time))::INT) OVER (PARTITION BY split_part(code, '//', 1)), 0) >= 0.1"
    segments = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(placed))
    db.execute(
        f"CREATE TABLE r AS SELECT subject_id AS subject, code, split_part(code, '//', 1) AS first, "
        f"CASE WHEN split_part(code, '//', 1) IN ({segments}) THEN split_part(code, '//', 1) ELSE 'other' END AS segment, "
        f"time AS t, {midnight} AND time = date_trunc('day', time) AS day, "
        f"regexp_matches(code, '{NOT_GIVEN}') AS unreal, row_number() OVER (PARTITION BY {same} ORDER BY 1) > 1 AS again FROM {source}"
    )
    db.execute("CREATE TABLE born AS SELECT subject, min(date_trunc('day', t)) AS born FROM r WHERE code = 'MEDS_BIRTH' GROUP BY subject")
    last = "date_trunc('day', t) + INTERVAL 1 DAY - INTERVAL 1 MICROSECOND"
    db.execute(
        f"CREATE TABLE died AS SELECT subject, min(CASE WHEN day THEN {last} ELSE t END) AS died FROM r WHERE code = 'MEDS_DEATH' GROUP BY subject"
    )
    # An emergency visit lasts until the first way out from then on, unless another one has begun by then.
    db.execute(
        "CREATE TABLE ed AS SELECT subject, t, CASE WHEN following IS NULL OR e <= following THEN e END AS e FROM ("
        "SELECT i.subject, i.t, lead(i.t) OVER (PARTITION BY i.subject ORDER BY i.t) AS following, "
        "(SELECT min(o.t) FROM r o WHERE o.first = 'ED_OUT' AND o.subject = i.subject AND o.t >= i.t) AS e "
        "FROM r i WHERE i.first = 'ED_REGISTRATION' AND NOT i.again)"
    )
    merges = (
        "EXISTS (SELECT 1 FROM ed, r a WHERE ed.subject = r.subject AND ed.t = r.t AND a.subject = r.subject "
        "AND a.first = 'HOSPITAL_ADMISSION' AND a.t BETWEEN ed.t AND ed.e)"
    )
    reason = (
        "CASE WHEN unreal THEN 'not_an_exposure' WHEN first = 'ED_OUT' THEN 'only_ends_a_visit' "
        "WHEN first = 'ICU_DISCHARGE' THEN 'only_ends_intensive_care' WHEN again THEN 'duplicate' "
        "WHEN t > TIMESTAMP '2899-12-31 23:59:59' THEN 'in_the_future' "
        "WHEN first NOT IN ('MEDS_BIRTH', 'MEDS_DEATH') AND t < born THEN 'before_birth' "
        f"WHEN t > died + INTERVAL 1 DAY THEN 'after_death' WHEN first = 'ED_REGISTRATION' AND {merges} THEN 'merged_into_admission' END"
    )
    query = (
        f"SELECT segment, {reason} AS reason, count(*) FROM r LEFT JOIN born USING (subject) LEFT JOIN died USING (subject) GROUP BY ALL ORDER BY ALL"
    )
    found: Count = {}
    for segment, why, number in db.execute(query).fetchall():
        row = found.setdefault(segment, {"read": 0, "kept": 0, "dropped": {}})
        row["read"] += number
        if why is None:
            row["kept"] += number
        else:
            row["dropped"][why] = number
    return found


def written(events: Path) -> dict[str, int]:
    """Events by origin in the Parquet files that were written, what the ingest derives apart."""
    query = (
        f"SELECT origin, count(*) FROM read_parquet('{events}/data/*/*.parquet') "
        "WHERE NOT starts_with(code, 'discharge/') AND NOT starts_with(code, 'OBSERVATION//END') AND origin <> 'person' GROUP BY origin"
    )
    with duckdb.connect() as database:
        return dict(database.execute(query).fetchall())

"""What is odd in the open data sets and what the ingest makes of it, counted. Writes the table of docs/oddities.md, or prints it.

    python benchmarks/oddities.py [--data FOLDER] [--write]

Each number is counted anew: `found` in the raw files by SQL, `touched` in `ingest.json` or in the events that were written.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from cehrxgpt.sources import IngestConfig, ingest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "oddities.md"
BEGIN, END = "<!-- counted by benchmarks/oddities.py -->", "<!-- end -->"
SETS = {"meds": "mimic_iv_demo_meds", "mimic": "mimic_iv_demo_omop53", "gibleed": "gibleed_omop53", "synthea": "synthea27nj_omop54"}
TITLES = {"meds": "MIMIC, MEDS", "mimic": "MIMIC, OMOP", "gibleed": "GiBleed", "synthea": "Synthea"}
CLINICAL = ("condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement", "observation")


@dataclass(frozen=True)
class Ingested:
    """One set: its raw tables as views, the events as the view `events`, and `ingest.json`."""

    key: str
    db: duckdb.DuckDBPyConnection
    report: dict[str, Any]
    tables: tuple[str, ...]

    def sql(self, query: str) -> int:
        row = self.db.execute(query).fetchone()
        return int(row[0] or 0) if row else 0

    def dropped(self, reason: str) -> int:
        return sum(row["dropped"].get(reason, 0) for row in self.report["tables"].values())

    def mended(self, reason: str) -> int:
        return sum(row.get(reason, 0) for row in self.report["mended"].values())

    def derived(self, kind: str) -> int:
        return sum(row.get(kind, 0) for row in self.report["derived"].values())

    def clinical(self, query: str) -> int:
        """Sum over the clinical tables that are there; `{t}` is the table."""
        return sum(self.sql(query.format(t=table)) for table in CLINICAL if table in self.tables)


Figure = Callable[[Ingested], int]
Row = tuple[str, str, str, dict[str, tuple[Figure, ...]]]
"""Oddity, decision, rule, and per set the figures: found, or found and touched."""


def _raw(query: str) -> Figure:
    return lambda s: s.sql(query)


def _dropped(reason: str) -> Figure:
    return lambda s: s.dropped(reason)


def _mended(reason: str) -> Figure:
    return lambda s: s.mended(reason)


def _everywhere(*figures: Figure, sets: str = "meds mimic gibleed synthea") -> dict[str, tuple[Figure, ...]]:
    return dict.fromkeys(sets.split(), figures)


OMOP = "mimic gibleed synthea"
DEATH = "(SELECT subject_id, min(time) AS died FROM raw WHERE code = 'MEDS_DEATH' GROUP BY subject_id)"
MINE = (
    "(SELECT subject_id, hadm_id, min(time) FILTER (code LIKE 'HOSPITAL_ADMISSION%') AS a, max(time) FILTER (code LIKE 'HOSPITAL_DISCHARGE%') AS b "
    "FROM raw WHERE regexp_matches(code, '^HOSPITAL_(ADMISSION|DISCHARGE)') GROUP BY ALL)"
)
ABSENT = (
    "SELECT count(*) FROM {t} WHERE visit_occurrence_id IS NOT NULL AND NOT EXISTS "
    "(SELECT 1 FROM visit_occurrence v WHERE v.visit_occurrence_id = {t}.visit_occurrence_id AND v.person_id = {t}.person_id)"
)
ALIKE = "SELECT count(*) - (SELECT count(*) FROM (SELECT DISTINCT * EXCLUDE ({t}_id) FROM {t})) FROM {t}"
KEYS = "SELECT count(*) - count(DISTINCT {t}_id) FROM {t}"
AT_MIDNIGHT = "SELECT count(*) FROM events WHERE time_precision = 'day' AND code NOT IN ('MEDS_BIRTH') AND code NOT LIKE 'OBSERVATION%'"
VISITLESS = "SELECT count(*) FROM (SELECT DISTINCT subject_id FROM events EXCEPT SELECT subject_id FROM events WHERE code LIKE 'Visit/%')"
GAPS = (
    "SELECT count(*) FROM (SELECT date_diff('day', lag(time) OVER (PARTITION BY subject_id ORDER BY time), time) AS gap FROM events "
    "WHERE time IS NOT NULL AND code <> 'MEDS_BIRTH' AND code NOT LIKE 'OBSERVATION%') WHERE gap >= 1080"
)
OUTSIDE = (
    "SELECT count(*) FROM {t} e JOIN visit_occurrence v USING (visit_occurrence_id, person_id) "
    "WHERE NOT e.{c}::TIMESTAMP BETWEEN v.visit_start_datetime::TIMESTAMP AND v.visit_end_datetime::TIMESTAMP"
)
NAMELESS = "SELECT count(*) FROM codes WHERE description IS NULL AND regexp_matches(code, '^[a-z]+/[1-9][0-9]*$')"
LAB_UNITS = (
    "SELECT count(*) FROM (SELECT split_part(code, '//', 2) AS item FROM raw WHERE code LIKE 'LAB//%' "
    "GROUP BY item HAVING count(DISTINCT split_part(code, '//', 3)) > 1)"
)
TWO_RACES = "SELECT count(*) FROM (SELECT subject_id FROM raw WHERE race IS NOT NULL GROUP BY 1 HAVING count(DISTINCT race) > 1)"
STRADDLE = (
    "WITH ed AS (SELECT subject_id, time AS a, (SELECT min(time) FROM raw o WHERE o.subject_id = i.subject_id AND o.code LIKE 'ED_OUT%' "
    "AND o.time >= i.time) AS b FROM raw i WHERE code LIKE 'ED_REGISTRATION%') "
    "SELECT count(*) FROM ed WHERE EXISTS (SELECT 1 FROM raw h WHERE h.subject_id = ed.subject_id AND h.code LIKE 'HOSPITAL_ADMISSION%' "
    "AND h.time BETWEEN ed.a AND ed.b)"
)
INSIDE_ED = (
    "SELECT count(*) FROM visit_occurrence e WHERE visit_concept_id = 9203 AND EXISTS "
    "(SELECT 1 FROM visit_occurrence i WHERE i.visit_concept_id = 9201 AND i.person_id = e.person_id "
    "AND e.visit_start_date >= i.visit_start_date AND e.visit_end_date <= i.visit_end_date)"
)

ROWS: list[Row] = [
    ("rows equal in all but their number", "one stays (`duplicate`); keys are not trusted", "8b",
     {"meds": (_dropped("duplicate"),)} | _everywhere(lambda s: s.clinical(ALIKE), _dropped("duplicate"), sets=OMOP)),
    ("primary keys that repeat", "nothing: two people may have the same", "8b", _everywhere(lambda s: s.clinical(KEYS), sets=OMOP)),
    ("emergency visit runs into an admission", "one visit, the admission's (`merged_into_admission`)", "8b",
     {"meds": (_raw(STRADDLE), _dropped("merged_into_admission"))} | _everywhere(_dropped("merged_into_admission"), sets=OMOP)),
    ("emergency visit within an inpatient one (by date)",
     "merged where the admission starts in it, or on its day without hours, else left to the timeline", "8b",
     _everywhere(_raw(INSIDE_ED), sets="mimic gibleed synthea")),
    ("admissions as two codes", "a visit `Visit/inpatient`; the first code stays as an event, the second becomes the discharge place", "8b",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE code LIKE 'HOSPITAL_ADMISSION%'"), lambda s: int(s.report["visits_recovered"]["inpatient"]))}),
    ("emergency room as two codes without an id", "paired in order of time; the way out only ends the visit (`only_ends_a_visit`)", "8b",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE code LIKE 'ED_REGISTRATION%'"), _dropped("only_ends_a_visit"))}),
    (
        "ICU admissions",
        "an event, and a stay in intensive care inside its visit (`[ICU] ... [/ICU]`); their ends only end it (`only_ends_intensive_care`)",
        "5",
        {"meds": (_raw("SELECT count(*) FROM raw WHERE code LIKE 'ICU_ADMISSION%'"),)},
    ),
    ("ward moves (`TRANSFER_TO`)", "events; they open no visit", "8b", {"meds": (_raw("SELECT count(*) FROM raw WHERE code LIKE 'TRANSFER_TO%'"),)}),
    ("admissions that are not concept 9201", "classes of visit concepts, overridden by duration", "10",
     _everywhere(_raw("SELECT count(*) FROM visit_occurrence WHERE visit_concept_id <> 9201"),
                 lambda s: int(s.report["visits_recovered"]["inpatient"]), sets=OMOP)),
    ("outpatient visit that spans days", "ends with its first day (`day_visit_spanned_days`)", "8b", _everywhere(_mended("day_visit_spanned_days"))),
    ("event without a visit", "linked to the span visit around it (`linked_inside_visit`)", "8b",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE hadm_id IS NULL AND time IS NOT NULL AND code <> 'MEDS_BIRTH'"), _mended("linked_inside_visit"))}
     | _everywhere(lambda s: s.clinical("SELECT count(*) FROM {t} WHERE visit_occurrence_id IS NULL"), _mended("linked_inside_visit"), sets=OMOP)),
    ("event linked to a visit that is not there", "unlinked (`unlinked_visit_absent`)", "8b",
     _everywhere(lambda s: s.clinical(ABSENT), _mended("unlinked_visit_absent"), sets=OMOP)),
    ("event linked but outside its visit", "unlinked beyond 24 h (`unlinked_over_24h_outside`), kept within", "8b",
     {"meds": (_raw(f"SELECT count(*) FROM raw JOIN {MINE} s USING (subject_id, hadm_id) WHERE time < a OR time > b"),
               _mended("unlinked_over_24h_outside")),
      "mimic": (lambda s: s.sql(OUTSIDE.format(t="procedure_occurrence", c="procedure_datetime"))
                + s.sql(OUTSIDE.format(t="drug_exposure", c="drug_exposure_start_datetime")), _mended("unlinked_over_24h_outside")),
      "gibleed": (_mended("unlinked_over_24h_outside"),), "synthea": (_mended("unlinked_over_24h_outside"),)}),
    ("event on another day than its one-day visit", "unlinked (`unlinked_other_day_of_day_visit`)", "8b",
     _everywhere(_mended("unlinked_other_day_of_day_visit"))),
    ("people without a visit", "their events stand bare; no visit is invented", "8b",
     _everywhere(_raw(VISITLESS))),
    ("dates without a time of day", "known at the end of their day (`time_precision` day)", "1", _everywhere(_raw(AT_MIDNIGHT))),
    ("diagnoses written for the bill", "known when the visit has ended", "1",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE split_part(code, '//', 1) IN ('DIAGNOSIS', 'DRG')"),
               _raw("SELECT count(*) FROM events WHERE split_part(code, '//', 1) IN ('DIAGNOSIS', 'DRG') AND visit_id IS NOT NULL")),
      "mimic": (_raw("SELECT count(*) FROM condition_occurrence WHERE condition_type_concept_id = 32821"),
                _raw("SELECT count(*) FROM events WHERE origin = 'condition_occurrence' AND available_time > time"))}),
    ("events after the death", "within 24 h moved to it (`moved_to_death`), later dropped (`after_death`)", "1",
     {"meds": (_raw(f"SELECT count(*) FROM raw JOIN {DEATH} USING (subject_id) WHERE time > died"), _mended("moved_to_death")),
      **_everywhere(_mended("moved_to_death"), sets=OMOP)}),
    ("deaths at midnight", "a date: the last instant of that day", "1",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE code = 'MEDS_DEATH' AND time = date_trunc('day', time)"),)}
     | _everywhere(_raw("SELECT count(*) FROM events WHERE code = 'MEDS_DEATH' AND time_precision = 'day'"), sets=OMOP)),
    ("events before the birth", "dropped (`before_birth`)", "4", _everywhere(_dropped("before_birth"))),
    ("birth known as a year", "first of January", "4",
     _everywhere(_raw("SELECT count(*) FROM person WHERE month_of_birth IS NULL AND birth_datetime IS NULL"), sets=OMOP)),
    ("dates moved to the years 2100 to 2200", "calendar `shifted`: year unknown, no check of the future", "4",
     _everywhere(lambda s: s.sql("SELECT count(*) FROM events WHERE code <> 'MEDS_BIRTH' AND year(time) >= 2100"))),
    ("gaps of 1,080 days or more between events", "written exactly, in years and days", "3", _everywhere(_raw(GAPS))),
    ("observation periods of nobody", "dropped (`subject_not_in_person`)", "8", _everywhere(_dropped("subject_not_in_person"))),
    ("no observation period at all", "from the first to the last event, named in `ingest.json`", "8",
     _everywhere(lambda s: s.report["derived"].get("first_to_last_event", {}).get("OBSERVATION", 0) // 2)),
    ("observation that ends with the last record", "as the data says; tasks state what censors", "8",
     _everywhere(_raw("SELECT count(*) FROM (SELECT subject_id, max(time) FILTER (code = 'OBSERVATION//END')::DATE AS e, "
                      "max(greatest(time, coalesce(CASE WHEN code LIKE 'Visit/%' THEN end_time END, time))) "
                      "FILTER (code NOT LIKE 'OBSERVATION%' AND code <> 'MEDS_BIRTH')::DATE AS l FROM events GROUP BY 1) WHERE e = l"))),
    ("a drug that was not given", "dropped (`not_an_exposure`)", "dialect",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE regexp_matches(code, '^MEDICATION//.*//Not Given$')"), _dropped("not_an_exposure"))}),
    ("race in a column of other rows", "the known value most rows have; derived once a person", "dialect",
     {"meds": (_raw("SELECT count(DISTINCT subject_id) FROM raw WHERE race IS NOT NULL"), lambda s: s.derived("race"))}),
    ("people whose race disagrees with itself", "the same", "dialect", {"meds": (_raw(TWO_RACES),)}),
    ("result in words alone", "`text_value`; a number behind a sign becomes one (`number_read_from_text`)", "8b",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE text_value IS NOT NULL AND numeric_value IS NULL"), _mended("number_read_from_text"))}),
    ("`___` for a missing result", "null (`text_that_means_missing`)", "8b",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE trim(text_value) = '___'"), _mended("text_that_means_missing"))}),
    ("blood pressure as `120/80`", "two events (`pair_of_numbers_split`)", "dialect",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE regexp_matches(text_value, '^[0-9]+/[0-9]+$') AND code LIKE 'Blood Pressure%'"),
               _mended("pair_of_numbers_split"))}),
    ("unit inside the code", "taken out of the third segment; the code stays verbatim", "9",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE regexp_matches(code, '^LAB//[^/]*//') AND split_part(code, '//', 3) NOT IN ('UNK', 'N/A', '')"),
               _raw("SELECT count(*) FROM events WHERE code LIKE 'LAB//%' AND unit IS NOT NULL"))}),
    ("laboratory rows whose unit is `UNK`", "no unit; the code stays verbatim", "9",
     {"meds": (_raw("SELECT count(*) FROM raw WHERE regexp_matches(code, '^LAB//.*//UNK$')"),
               _raw("SELECT count(*) FROM events WHERE code LIKE 'LAB//%' AND unit IS NULL"))}),
    ("laboratory items with several units", "a code, and bins, for each", "13", {"meds": (_raw(LAB_UNITS),)}),
    ("rows without a time", "static: gender", "8b", {"meds": (_raw("SELECT count(*) FROM raw WHERE time IS NULL"),)}),
    ("codes without a name", "names are never needed", "9", _everywhere(_raw(NAMELESS), sets=OMOP)),
    ("no row in `concept_ancestor`", "shipped lists of concepts stand alone", "11",
     {"synthea": (_raw("SELECT count(*) FROM concept_ancestor"),), "gibleed": (_raw("SELECT count(*) FROM concept_ancestor"),)}),
    ("drugs without `days_supply`", "end minus start serves", "8b",
     _everywhere(_raw("SELECT count(*) FROM drug_exposure WHERE days_supply IS NULL"),
                 _raw("SELECT count(*) FROM events WHERE origin = 'drug_exposure' AND end_time IS NOT NULL"), sets=OMOP)),
    ("person ids below zero", "signed 64-bit numbers", "9", _everywhere(_raw("SELECT count(DISTINCT subject_id) FROM events WHERE subject_id < 0"))),
    ("most visits of one person", "histories of any length are windowed", "5",
     _everywhere(_raw("SELECT max(n) FROM (SELECT count(*) AS n FROM events WHERE code LIKE 'Visit/%' GROUP BY subject_id)"))),
    ("most events of one person", "the same", "5",
     _everywhere(_raw("SELECT max(n) FROM (SELECT count(*) AS n FROM events GROUP BY subject_id)"))),
    ("times with a zone", "an offset is dropped, an instant read in UTC, or `--time-zone`", "1",
     _everywhere(lambda s: sum(sum(row.values()) for row in s.report["times_with_a_zone"].values()))),
    ("dates up to 1900-01-01", "dropped (`placeholder_date`)", "4", _everywhere(_dropped("placeholder_date"))),
    ("visits that end before they start", "the end becomes the start (`visit_ends_before_start`)", "8b",
     _everywhere(_mended("visit_ends_before_start"))),
]  # fmt: skip


def open_set(key: str, folder: Path, out: Path) -> Ingested:
    """Ingest a set and open its raw tables."""
    ingest(folder, out, IngestConfig(), force=True)
    db = duckdb.connect()
    tables = []
    if key == "meds":
        db.execute(f"CREATE VIEW raw AS SELECT * FROM read_parquet('{folder}/data/**/*.parquet', union_by_name=true)")
    for path in sorted(folder.glob("*.csv*")) if key != "meds" else []:
        table = path.name.lower().split(".")[0].removeprefix("2b_")
        db.execute(f"CREATE VIEW {table} AS SELECT * FROM read_csv('{path}', sample_size=-1, normalize_names=true)")
        tables.append(table)
    db.execute(f"CREATE VIEW events AS SELECT * FROM read_parquet('{out}/data/*/*.parquet')")
    db.execute(f"CREATE VIEW codes AS SELECT * FROM '{out}/metadata/codes.parquet'")
    return Ingested(key, db, json.loads((out / "ingest.json").read_text(encoding="utf-8")), tuple(tables))


def table(data: Path) -> str:
    """The Markdown table; figures are found, or found / touched."""
    lines = ["| oddity | decision | rule | " + " | ".join(TITLES.values()) + " |", "|---|---|---|" + "---:|" * len(TITLES)]
    with tempfile.TemporaryDirectory() as scratch:
        sets = [open_set(key, data / name, Path(scratch) / key) for key, name in SETS.items()]
        for oddity, decision, rule, figures in ROWS:
            cells = [" / ".join(f"{figure(one):,}" for figure in figures.get(one.key, ())) for one in sets]
            lines.append(f"| {oddity} | {decision} | {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CEHRXGPT_DATA", ROOT.parent / "shared" / "data")))
    parser.add_argument("--write", action="store_true", help="into docs/oddities.md")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: the open data sets are not at {arguments.data.name}/; set CEHRXGPT_DATA")
        return
    made = table(arguments.data)
    if not arguments.write:
        print(made)
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()

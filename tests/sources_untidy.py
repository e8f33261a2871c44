"""Untidy OMOP tables, one oddity each, with what the ingest must say of them. What is in none of the open data sets has to be made up."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from sources_cdm import Rows, base, condition, measurement, person, visit, write_cdm

Tables = dict[str, Rows]
Reasons = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Untidy:
    """`tables` as `form` writes them; rows dropped and mended by table and reason."""

    tables: Tables
    form: Callable[[Path, Tables], Path] = write_cdm
    dropped: Reasons = field(default_factory=dict)
    mended: Reasons = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        return self.form(folder, self.tables)


def _with(**more: Rows) -> Tables:
    tables = base()
    for name, rows in more.items():
        tables[name] = tables.get(name, []) + rows
    return tables


def delimited(
    folder: Path, tables: Tables, *, delimiter: str = "\t", suffix: str = ".tsv", null: str = "\\N", end: str = "\n", bom: bool = False
) -> Path:
    """As a database's COPY ... CSV writes it: quotes only where a field needs them, a marker for null."""
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_MINIMAL)
        writer.writerow(rows[0])
        writer.writerows([null if value is None else value for value in row.values()] for row in rows)
        content = text.getvalue().encode("utf-8-sig" if bom else "utf-8")
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    return folder


def windows(folder: Path, tables: Tables) -> Path:
    return delimited(folder, tables, suffix=".txt", null="NULL", end="\r\n", bom=True)


def compressed(folder: Path, tables: Tables) -> Path:
    return delimited(folder, tables, delimiter=",", suffix=".csv.gz", null="NA")


def shouted_parts(folder: Path, tables: Tables) -> Path:
    """Upper-case names, each table a folder of Parquet parts, ids as fractions, as data frames with nulls leave them."""
    for name, rows in tables.items():
        frame = pl.DataFrame(rows, infer_schema_length=None).rename(str.upper).with_columns(pl.col(pl.Int64).cast(pl.Float64))
        parts = folder / name.upper()
        parts.mkdir(parents=True)
        for number in range(3):
            frame.slice(number * 13, 13 if number < 2 else None).write_parquet(parts / f"PART-{number}.parquet")
    return folder


def zoned(folder: Path, tables: Tables) -> Path:
    """Parquet whose times are instants."""
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        frame = pl.DataFrame(rows, infer_schema_length=None)
        times = [column for column in frame.columns if column.endswith("_datetime")]
        instants = [pl.col(column).str.to_datetime("%Y-%m-%d %H:%M:%S").dt.replace_time_zone("America/New_York") for column in times]
        frame.with_columns(instants).write_parquet(folder / f"{name}.parquet")
    return folder


def shift(tables: Tables, years: int) -> Tables:
    """Every date of this century `years` later."""

    def later(value: object) -> object:
        return f"{int(value[:4]) + years}{value[4:]}" if isinstance(value, str) and value[:2] == "20" and value[4:5] == "-" else value

    return {
        name: [{column: later(value) if column != "condition_source_value" else value for column, value in row.items()} for row in rows]
        for name, rows in tables.items()
    }


def _person_with(identifier: int, **more: object) -> Rows:
    return [person(identifier, **more)]


_WORDS = [
    condition(1, 1, "2010-05-01 10:00:00", concept=0, condition_source_value="left\tside, two\nlines"),
    condition(2, 1, "2010-05-01 10:00:00", concept=0, condition_source_value='5" tube'),
    condition(3, 1, "2010-05-02 10:00:00", concept=0, condition_source_value="Ménière; bilateral | old"),
    condition(4, 1, "2010-05-02 10:00:00", condition_concept_id=None, condition_source_value=None),
]
_NO_WORDS = {"condition_occurrence": {"no_code": 1}}
_DATED = {"visit_start_datetime": None, "visit_end_datetime": None}
_NIGHT = {"visit_end_date": "2012-06-01", "visit_end_datetime": None}

UNTIDY: dict[str, Untidy] = {
    "tabs": Untidy(_with(condition_occurrence=_WORDS), delimited, _NO_WORDS),
    "windows_tabs": Untidy(_with(condition_occurrence=_WORDS), windows, _NO_WORDS),
    "compressed_na": Untidy(_with(condition_occurrence=_WORDS), compressed, _NO_WORDS),
    "fractions_and_parts": Untidy(_with(visit_occurrence=[visit(7, 1, "2010-01-01 08:00:00", "2010-01-03 12:00:00")]), shouted_parts),
    "dates_or_datetimes": Untidy(
        _with(
            condition_occurrence=[
                condition(1, 1, "2010-05-01 10:00:00", concept=1, condition_start_datetime=None),
                condition(2, 1, "2010-05-01 10:00:00", concept=2, condition_start_date=None),
                condition(3, 1, "2010-05-01 10:00:00", concept=3, condition_start_date=None, condition_start_datetime=None),
            ]
        ),
        dropped={"condition_occurrence": {"no_date": 1}},
    ),
    "visits": Untidy(
        _with(
            visit_occurrence=[
                visit(1, 1, "2012-03-01 09:00:00", "2012-02-28 09:00:00"),  # ends before it starts
                visit(1, 2, "2012-03-01 09:00:00", "2012-03-05 09:00:00"),  # the same id, another person's
                visit(2, 2, "2012-03-02 09:00:00", "2012-03-03 09:00:00"),  # inside it
                visit(3, 2, "2012-03-04 09:00:00", "2012-03-09 09:00:00"),  # overlaps
                visit(4, 2, "2012-05-01 09:00:00", "2012-05-09 09:00:00", 9202),  # outpatient for days
                visit(5, 2, "2012-05-20 09:00:00", None),
                visit(6, 3, "2012-06-01 09:00:00", "2012-06-01 20:00:00", 9203, **_NIGHT),  # its end is a date
                visit(7, 3, "2012-06-01 19:00:00", "2012-06-05 12:00:00"),
                visit(8, 3, "2012-07-01 19:00:00", "2012-07-05 12:00:00"),
                visit(9, 3, "2012-07-01 19:00:00", "2012-07-05 12:00:00"),  # the same but for its id
                visit(8, 3, "2012-08-01 19:00:00", "2012-08-05 12:00:00"),  # the id again
                {**visit(1, 3, "2012-08-01 19:00:00", "2012-08-05 12:00:00"), "visit_occurrence_id": None},
            ]
        ),
        dropped={"visit_occurrence": {"duplicate": 1, "merged_into_admission": 1, "no_visit_id": 1, "visit_id_repeated": 1}},
        mended={
            "visit_occurrence": {
                "admission_start_moved_to_emergency": 1,
                "day_visit_spanned_days": 1,
                "visit_end_unknown": 1,
                "visit_ends_before_start": 1,
            }
        },
    ),
    "admissions_without_hours": Untidy(
        _with(
            visit_occurrence=[
                visit(1, 1, "2012-03-01 10:00:00", "2012-03-01 15:00:00", 9203),  # on the day of the next: merged
                visit(2, 1, "2012-03-01", "2012-03-05", **_DATED),
                visit(3, 1, "2012-03-04 10:00:00", "2012-03-04 15:00:00", 9203),  # on a later day of the stay: left
                visit(4, 2, "2012-03-01", "2012-03-01", 9203, **_DATED),  # neither has hours: merged
                visit(5, 2, "2012-03-01", "2012-03-05", **_DATED),
                visit(6, 2, "2012-05-01 20:00:00", "2012-05-02 03:00:00", 9203),  # ends on the next one's day: merged
                visit(7, 2, "2012-05-02", "2012-05-05", **_DATED),
                visit(8, 2, "2012-07-01 10:00:00", "2012-07-01 15:00:00", 9203),  # on the day before: left
                visit(9, 2, "2012-07-02", "2012-07-05", **_DATED),
                visit(1, 3, "2012-03-01", "2012-03-01 08:00:00", visit_start_datetime=None),  # over when the next begins: left
                visit(2, 3, "2012-03-01 10:00:00", "2012-03-01 15:00:00", 9203),
                visit(3, 3, "2012-05-01 10:00:00", "2012-05-01 15:00:00", 8870),  # into the one whose hour says so
                visit(4, 3, "2012-05-01", "2012-05-05", 262, **_DATED),
                visit(5, 3, "2012-05-01 14:00:00", "2012-05-05 12:00:00"),
                visit(6, 3, "2012-07-01 10:00:00", None, 9203),  # nobody knows how long: left
                visit(7, 3, "2012-07-01", "2012-07-05", **_DATED),
            ]
        ),
        dropped={"visit_occurrence": {"merged_into_admission": 4}},
        mended={"visit_occurrence": {"admission_start_moved_to_emergency": 3, "visit_end_unknown": 1}},
    ),
    "offsets": Untidy(
        _with(
            condition_occurrence=[
                condition(1, 1, "2010-05-03 23:30:00-05:00", concept=1),
                condition(2, 1, "2010-05-04T10:00:00Z", concept=2),
                condition(3, 1, "2010-05-04 10:00:00+0530", concept=3),
            ]
        )
    ),
    "instants": Untidy(base(), zoned),
    "births": Untidy(
        {
            **_with(
                condition_occurrence=[
                    condition(1, 1, "1949-12-31 10:00:00"),  # before the birth
                    condition(2, 2, "1950-03-02 10:00:00", concept=2),  # on its day
                    condition(3, 4, "1975-06-01 10:00:00"),
                    condition(4, 5, "1900-01-01 00:00:00"),  # a placeholder: nobody knows the birth
                    condition(5, 5, "1985-06-01 10:00:00"),
                ]
            ),
            "person": [
                *(person(number, birth_datetime=None) for number in (1, 2, 3)),
                person(4, birth_datetime="1900-01-01 00:00:00"),  # the year of birth says 1950
                person(5, year_of_birth=None, month_of_birth=None, day_of_birth=None, birth_datetime=None),
            ],
        },
        dropped={"condition_occurrence": {"before_birth": 1, "placeholder_date": 1}},
        mended={"person": {"birth_datetime_of_another_year": 1}},
    ),
    "far_dates": Untidy(
        _with(
            condition_occurrence=[
                condition(1, 1, "2999-12-31 10:00:00"),
                condition(2, 1, "1961-04-01 10:00:00"),
                condition(3, 1, "1995-04-01 10:00:00"),
            ],
            visit_occurrence=[visit(1, 2, "2010-03-01 09:00:00", "9999-12-31 00:00:00"), visit(2, 3, "9999-12-31 09:00:00", None)],
            observation_period=[
                {"person_id": 1, "observation_period_start_date": "1900-01-01", "observation_period_end_date": "9999-12-31"},
                {"person_id": 2, "observation_period_start_date": "2009-01-01", "observation_period_end_date": None},
                {"person_id": 3, "observation_period_start_date": "2009-01-01", "observation_period_end_date": "2008-01-01"},
            ],
        ),
        dropped={
            "condition_occurrence": {"in_the_future": 1},
            "visit_occurrence": {"in_the_future": 1},
            "observation_period": {"no_end_date": 1},
        },
        mended={
            "visit_occurrence": {"visit_end_in_the_future_unknown": 1, "visit_end_unknown": 1},
            "observation_period": {"period_end_in_the_future": 1, "period_ends_before_start": 1, "period_starts_before_birth": 1},
        },
    ),
    "far_dates_shifted": Untidy(
        shift(
            _with(
                visit_occurrence=[visit(1, 2, "2010-03-01 09:00:00", "9999-12-31 00:00:00")],
                condition_occurrence=[condition(1, 1, "9999-12-31 10:00:00")],
                observation_period=[
                    {"person_id": 1, "observation_period_start_date": "2009-01-01", "observation_period_end_date": "2999-12-31"},
                    {"person_id": 2, "observation_period_start_date": "2009-01-01", "observation_period_end_date": "2011-01-01"},
                ],
            ),
            150,
        ),
        dropped={"condition_occurrence": {"in_the_future": 1}, "observation_period": {"no_end_date": 1}},
        mended={"visit_occurrence": {"visit_end_in_the_future_unknown": 1, "visit_end_unknown": 1}},
    ),
    "deaths": Untidy(
        _with(
            death=[
                {"person_id": 1, "death_date": "2012-03-02", "death_datetime": "2012-03-02 08:00:00"},
                {"person_id": 1, "death_date": "2012-03-04", "death_datetime": "2012-03-04 08:00:00"},  # disagrees
                {"person_id": 2, "death_date": "2013-03-02", "death_datetime": None},
                {"person_id": 2, "death_date": "2013-03-02", "death_datetime": None},  # the same again
                {"person_id": 3, "death_date": "1940-03-02", "death_datetime": None},  # before the birth
                {"person_id": 99, "death_date": "2012-03-02", "death_datetime": None},
            ],
            condition_occurrence=[
                condition(1, 1, "2012-03-03 07:00:00"),
                condition(2, 1, "2012-03-03 09:00:00"),
                condition(3, 2, "2013-03-04 09:00:00"),
            ],
            visit_occurrence=[visit(1, 1, "2012-03-01 09:00:00", "2012-03-02 09:00:00"), visit(2, 1, "2012-03-04 09:00:00", "2012-03-05 09:00:00")],
        ),
        dropped={
            "death": {"before_birth": 1, "death_repeated": 1, "duplicate": 1, "subject_not_in_person": 1},
            "condition_occurrence": {"after_death": 2},
            "visit_occurrence": {"after_death": 1},
        },
        mended={"condition_occurrence": {"moved_to_death": 1}, "visit_occurrence": {"visit_ends_after_death": 1}},
    ),
    "people": Untidy(
        {
            **_with(
                condition_occurrence=[
                    condition(1, -7, "2010-05-01 10:00:00"),
                    condition(2, 99, "2010-05-01 10:00:00"),
                    {**condition(3, 1, "2010-05-01 10:00:00"), "person_id": None},
                    condition(4, 2, "2010-05-01 10:00:00"),
                    condition(5, 2, "2010-05-01 10:00:00"),
                ]
            ),
            "person": [person(1), person(2), person(3), person(3), person(2, race_concept_id=8516), person(-7), {**person(4), "person_id": None}],
        },
        dropped={
            "person": {"demographic_repeated": 1, "duplicate": 1, "no_subject_id": 1},
            "condition_occurrence": {"duplicate": 1, "no_subject_id": 1, "subject_not_in_person": 1},
        },
    ),
    "nothing_in_it": Untidy(
        _with(measurement=[measurement(1, 1, "2010-01-01 09:00:00", 1.0)]),
        lambda folder, tables: _emptied(write_cdm(folder, tables), "measurement.csv"),
    ),
}


def _emptied(folder: Path, name: str) -> Path:
    """Only the header of one table."""
    path = folder / name
    path.write_text(path.read_text().splitlines()[0] + "\n")
    return folder

"""OMOP tables out of a real PostgreSQL server: the events are those of the same tables as Parquet, and no password is ever shown."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from cehrxgpt.console import Console
from cehrxgpt.errors import ConfigError, SourceError
from cehrxgpt.pipeline import Recipe, _run_stage, plan, read_recipe
from cehrxgpt.simulate import SimulateConfig, simulate
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.sources.url import PostgresUrl, has_password, is_url, parse_url
from postgres_server import PASSWORD, Server, running_server
from sources_cdm import Rows, base, condition, measurement, person, rows_of, run, visit, write_cdm

TYPES: dict[Any, str] = {pl.Date: "date", pl.Datetime: "timestamp", pl.Float64: "numeric", pl.Int64: "bigint", pl.String: "varchar(255)"}
SAME = ("subjects", "split_policy", "events", "visits_recovered", "codes", "dates", "tables", "mended", "derived", "unreadable_values", "calendar")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("adbc_driver_postgresql", reason="the extra [postgres] is not installed")
    with running_server() as found:
        yield found


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Text columns of dates as dates and times, as a database has them."""
    changes = []
    for name in frame.columns:
        if frame[name].dtype != pl.String:
            continue
        if name.lower().endswith("_datetime"):
            changes.append(pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us"))
        elif name.lower().endswith("_date"):
            changes.append(pl.col(name).str.to_date())
    return frame.with_columns(changes)


def load(server: Server, schema: str, frames: dict[str, pl.DataFrame], types: dict[str, str] | None = None) -> None:
    """Create the tables and COPY the rows into them."""
    server.sql(f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO reader")
    for table, frame in frames.items():
        columns = ", ".join(f"{name} {(types or {}).get(name, TYPES.get(frame[name].dtype.base_type(), 'integer'))}" for name in frame.columns)
        text = io.StringIO()
        frame.write_csv(text, null_value="\\N", quote_style="necessary")
        copy = f"COPY {schema}.{table} FROM STDIN WITH (FORMAT csv, HEADER, NULL '\\N');\n{text.getvalue()}\\.\n"
        server.sql(f"CREATE TABLE {schema}.{table} ({columns});\n{copy}")
    server.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader")


def untidy() -> dict[str, Rows]:
    """A little of everything: big and negative ids, nulls, duplicates, odd visits, words with commas, quotes and line ends."""
    low = -(2**63) + 1
    tables = base((low, -5, 2**62))
    tables["person"].append(person(77))
    tables["visit_occurrence"] = [
        visit(1, low, "2010-01-01 08:00:00", "2010-01-03 12:00:00"),
        visit(1, -5, "2010-01-04 08:00:00", "2010-01-03 12:00:00"),
        visit(2, -5, "2010-02-01 08:00:00", None, 9203, discharged_to_concept_id=None),
        visit(3, -5, "2010-03-01 08:00:00", "9999-12-30 00:00:00"),
    ]
    tables["condition_occurrence"] += [
        condition(1, -5, "2010-05-01 10:00:00", concept=0, condition_source_value='5" tube, left\nside; "quoted" \\ Ménière'),
        condition(2, -5, "2010-05-01 10:00:00", concept=0, condition_source_value='5" tube, left\nside; "quoted" \\ Ménière'),
        condition(3, -5, "1940-05-01 10:00:00"),
        condition(4, 123456, "2010-05-01 10:00:00"),
    ]
    tables["measurement"] = [
        measurement(1, 77, "2010-01-01 09:00:00", 7.25),
        measurement(2, 77, "2010-01-01 09:30:00", None),
        measurement(3, 77, "2010-01-02 09:00:00", 0.1),
    ]
    tables["death"] = [{"person_id": low, "death_date": "2012-01-01", "death_datetime": None}]
    tables["concept"] = [{"concept_id": 316139, "concept_name": "Heart failure"}]
    return tables


def frames(tables: dict[str, Rows]) -> dict[str, pl.DataFrame]:
    return {name: typed(pl.DataFrame(rows, infer_schema_length=None)) for name, rows in tables.items()}


def parquet(folder: Path, tables: dict[str, pl.DataFrame]) -> Path:
    folder.mkdir()
    for name, frame in tables.items():
        frame.write_parquet(folder / f"{name}.parquet")
    return folder


def secrets_in(text: str) -> bool:
    return PASSWORD in text or quote(PASSWORD, safe="") in text or "s3cret" in text


@pytest.mark.e2e
def test_a_database_and_its_parquet_give_the_same(server: Server, tmp_path: Path) -> None:
    found = frames(untidy())
    load(server, "untidy", found)
    expected, one = run(parquet(tmp_path / "cdm", found), tmp_path / "from_files")
    events, two = run(server.url(query="?schema=untidy"), tmp_path / "from_database")
    assert events.equals(expected)
    for name in SAME:
        assert two[name] == one[name], name
    assert one["tables"]["condition_occurrence"]["dropped"] == {"before_birth": 1, "duplicate": 1, "subject_not_in_person": 1}
    assert two["files"]["person"] == "untidy.person"
    assert two["source"] == "hospital"
    for path in (tmp_path / "from_database").rglob("*.json"):
        assert not secrets_in(path.read_text(encoding="utf-8"))


@pytest.mark.e2e
def test_a_simulated_population(server: Server, tmp_path: Path) -> None:
    """Every table that the simulator writes, vocabulary in a schema of its own, found without being told where."""
    simulate(tmp_path / "cdm", SimulateConfig(patients=300, seed=5))
    found = {path.stem: pl.read_parquet(path) for path in (tmp_path / "cdm").glob("*.parquet")}
    server.sql("CREATE DATABASE population")
    vocabulary = {name: found.pop(name) for name in ("concept", "concept_ancestor")}
    for schema, tables in (("omop", found), ("vocab", vocabulary)):
        load(_Other(server.sql, "population"), schema, tables)
    expected, one = run(tmp_path / "cdm", tmp_path / "from_files")
    events, two = run(server.url("population"), tmp_path / "from_database")
    assert events.equals(expected)
    for name in SAME:
        assert two[name] == one[name], name
    assert (two["files"]["measurement"], two["files"]["concept"]) == ("omop.measurement", "vocab.concept")
    names = [pl.read_parquet(tmp_path / folder / "metadata" / "codes.parquet") for folder in ("from_files", "from_database")]
    assert names[0].equals(names[1])


class _Other:
    """The server's owner at work in another database."""

    def __init__(self, sql: Any, database: str):
        self._sql, self._database = sql, database

    def sql(self, text: str) -> str:
        return str(self._sql(text, self._database))


@pytest.mark.e2e
def test_types_that_only_databases_have(server: Server, tmp_path: Path) -> None:
    """Zoned instants, infinite dates, numeric ids, fixed-width text, and columns of types that OMOP does not know."""
    tables = base()
    tables["visit_occurrence"] = [visit(1, 1, "2010-06-01 08:00:00", "2010-06-03 12:00:00")]
    found = frames(tables)
    types = {"person_id": "numeric(20,0)", "condition_start_datetime": "timestamptz", "condition_source_value": "char(12)"}
    load(server, "types", found, types)
    server.sql("ALTER TABLE types.condition_occurrence ADD payload jsonb DEFAULT '{\"a\": [1]}', ADD noted time DEFAULT '10:00'")
    server.sql("UPDATE types.visit_occurrence SET visit_end_date = 'infinity', visit_end_datetime = 'infinity'")
    server.sql("INSERT INTO types.condition_occurrence (person_id, condition_concept_id, condition_start_date) VALUES (1, 5, '-infinity')")
    expected, _ = run(parquet(tmp_path / "cdm", found), tmp_path / "from_files")
    url = server.url(query="?schema=types")
    events, report = run(url, tmp_path / "local", time_zone="America/New_York")
    assert rows_of(events, 1, "Visit/9201")[0]["end_time"] is None
    assert report["mended"]["visit_occurrence"]["visit_end_in_the_future_unknown"] == 1
    assert report["tables"]["condition_occurrence"]["dropped"] == {"placeholder_date": 1}
    assert report["times_with_a_zone"] == {"condition_occurrence": {"condition_start_datetime": 36}}
    coded = ["subject_id", "time", "code", "time_precision"]
    assert events.filter(pl.col("code").str.starts_with("condition/")).select(coded).equals(
        expected.filter(pl.col("code").str.starts_with("condition/")).select(coded)
    )  # fmt: skip
    utc, _ = run(url, tmp_path / "utc")
    assert str(rows_of(utc, 1, "condition/316139")[0]["time"]) == "2010-01-01 15:30:00"


@pytest.mark.e2e
def test_all_tables_show_one_moment(server: Server, tmp_path: Path) -> None:
    load(server, "moving", frames(base()))

    def meanwhile(done: int, total: int, what: str) -> None:
        if what == "copying moving.condition_occurrence":
            server.sql("DELETE FROM moving.condition_occurrence WHERE person_id = 1; INSERT INTO moving.person SELECT * FROM moving.person")

    ingest(server.url(query="?schema=moving"), tmp_path / "out", IngestConfig(threads=1), progress=meanwhile)
    report = json.loads((tmp_path / "out" / "ingest.json").read_text())
    assert report["tables"]["condition_occurrence"] == {"read": 36, "kept": 36, "dropped": {}}
    assert server.sql("SELECT count(*) FROM moving.condition_occurrence") == "24"


@pytest.mark.e2e
def test_what_is_wrong_is_said_on_one_line(server: Server, tmp_path: Path) -> None:
    server.sql("CREATE DATABASE wrong")
    other = _Other(server.sql, "wrong")
    load(other, "one", frames(base()))
    load(other, "two", frames(base()))
    other.sql("CREATE SCHEMA nothing; CREATE TABLE nothing.letters (a int); REVOKE SELECT ON one.condition_occurrence FROM reader")
    closed = Server(server.binaries, 1)
    broken = "CREATE SCHEMA broken; CREATE VIEW broken.person AS SELECT ('SECRET' || n)::int AS person_id FROM generate_series(1, 3) n;"
    other.sql(broken + "GRANT USAGE ON SCHEMA broken TO reader; GRANT SELECT ON broken.person TO reader")
    cases = [
        (closed.url("wrong"), "cannot connect .*Connection refused"),
        (server.url("nowhere"), 'cannot connect .*database "nowhere" does not exist'),
        (server.url("wrong", password="wrong-s3cret"), "cannot connect .*password authentication failed"),
        (server.url("wrong"), r"OMOP tables are in the schemas broken, one, two; name one with --schema"),
        (server.url("wrong", query="?schema=nothing"), "no OMOP tables in schema nothing; expected person"),
        (server.url("wrong", query="?schema=three"), "schema 'three' has no tables or is not there; schemas with tables: broken, nothing, one, two"),
        (server.url("wrong", query="?schema=one"), r"permission denied for one\.condition_occurrence"),
        (server.url("wrong", query="?schema=broken"), r"table broken\.person: reading broke off"),
        (server.url("wrong", query="?schema=two&sslmode=nonsense"), "cannot connect"),
    ]
    for url, message in cases:
        with pytest.raises(SourceError, match=message) as caught:
            ingest(url, tmp_path / "out")
        said: BaseException | None = caught.value
        while said is not None:  # what a traceback would show
            assert not secrets_in(str(said) + repr(said)), str(caught.value)
            said = said.__cause__ or (None if said.__suppress_context__ else said.__context__)
        assert "\n" not in str(caught.value)
        assert "SECRET" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_the_command_and_a_password_from_outside(server: Server, tmp_path: Path) -> None:
    """`--schema`, PGPASSWORD, and nothing secret in what is printed or left behind."""
    load(server, "verb", frames(base()))
    command = [sys.executable, "-m", "cehrxgpt.cli", "ingest", server.url(password=None), "--schema", "verb", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["subjects"]["total"] == 3
    command[4] = server.url(query="?connect_timeout=5")
    done = subprocess.run([*command, "--force"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not secrets_in(done.stdout + done.stderr)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and secrets_in(path.read_bytes().decode("latin-1"))]


def test_urls_are_shown_without_secrets() -> None:
    assert is_url("postgresql://h/db")
    assert not is_url("cdm/")
    assert not is_url(Path("postgresql://h/db"))
    found = parse_url("postgres://ann:p%40ss@db.example:5433/cdm?schema=a,b&sslmode=require&sslpassword=xyzzy")
    assert isinstance(found, PostgresUrl)
    assert found.shown == "postgresql://ann@db.example:5433/cdm?sslmode=require"
    assert (found.name, found.schemas) == ("cdm", ("a", "b"))
    assert "schema" not in found.uri
    assert not secrets_in(repr(found))
    assert "p@ss" not in repr(found)
    assert found.scrub("bad p@ss,\n p%40ss and xyzzy") == "bad ***, *** and ***"
    assert has_password("postgresql://ann:x@h/db")
    assert not has_password("postgresql://ann@h/db")
    assert not has_password("cdm/")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p#s3cret@h/db",
        "postgresql://u:s3cret/x@h/db",
        "postgresql://u:a@s3cret@h/db",
        "postgresql://u:s3cret",
        "mysql://u:s3cret@h/db",
    ],
)
def test_urls_that_cannot_be_taken_apart_are_not_quoted(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected postgresql://user@host:5432/database") as caught:
        ingest(url, tmp_path / "out")
    assert "s3cret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_driver_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    with pytest.raises(SourceError, match=r"postgresql://u@h/db: the PostgreSQL driver is not installed; .*pip install 'cehrxgpt\[postgres\]'"):
        ingest("postgresql://u:s3cret@h/db", tmp_path / "out")


def test_a_duckdb_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    write_cdm(tmp_path / "cdm", base(), suffix=".parquet")
    with duckdb.connect(str(tmp_path / "cdm.duckdb")) as database:
        for path in (tmp_path / "cdm").glob("*.parquet"):
            database.execute(f"CREATE TABLE {path.stem} AS SELECT * FROM '{path}'")
    expected, _ = run(tmp_path / "cdm", tmp_path / "out")
    found, report = run(f"duckdb://{tmp_path}/cdm.duckdb", tmp_path / "absolute")
    assert found.equals(expected)
    assert report["source"] == "cdm.duckdb"
    monkeypatch.chdir(tmp_path)
    found, _ = run("duckdb:///cdm.duckdb", tmp_path / "relative")
    assert found.equals(expected)
    with pytest.raises(SourceError, match="no such file or folder"):
        ingest("duckdb:///nowhere.duckdb", tmp_path / "none")


def test_a_recipe_keeps_no_password(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("tasks: [t2dm_hf_1y]\nsource: postgresql://ann@h/db?schema=cdm\n")
    assert read_recipe(path).source == "postgresql://ann@h/db?schema=cdm"
    path.write_text("tasks: [t2dm_hf_1y]\nsource: postgresql://ann:s3cret@h/db\n")
    with pytest.raises(ConfigError, match="'source' has a password in it") as caught:
        read_recipe(path)
    assert "s3cret" not in str(caught.value)


@pytest.mark.e2e
def test_a_run_reads_a_database(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage of a recipe, its manifest, and that it holds the second time."""
    load(server, "staged", frames(base()))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    recipe = Recipe(tasks=("t2dm_hf_1y",), source=server.url(password=None, query="?schema=staged"))
    stage = next(stage for stage in plan(recipe, tmp_path / "run") if stage.name == "ingest")
    (tmp_path / "run" / "manifests").mkdir(parents=True)
    first, second = (_run_stage(stage, tmp_path / "run", Console(quiet=True)) for _ in range(2))
    assert (first["skipped"], second["skipped"]) == (False, True)
    assert first["figures"]["subjects"]["total"] == 3
    assert "schema=staged" in (tmp_path / "run" / "manifests" / "ingest.json").read_text()

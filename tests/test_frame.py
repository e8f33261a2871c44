"""The frame: strict configuration, atomic outputs, schemas, manifests, and how light the front door is."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest
import yaml

from cehrxgpt import manifest, schema
from cehrxgpt.atomic import atomic_path, write_json
from cehrxgpt.config import fingerprint, from_dict, parse_yaml, read_config, to_dict
from cehrxgpt.errors import ConfigError, OutputExistsError, SchemaError, StorageError
from cehrxgpt.pipeline import read_recipe

HEAVY = {
    "torch",
    "numpy",
    "polars",
    "duckdb",
    "ibis",
    "pandas",
    "pyarrow",
    "sklearn",
    "lightgbm",
    "matplotlib",
    "transformers",
    "scipy",
    "accelerate",
}


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 2e-4


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps: at least 1")


def test_config_round_trip() -> None:
    built = from_dict(Settings, {"steps": 3, "inner": {"rate": "1e-3"}, "names": ["a"], "limit": None}, where="here")
    assert built == Settings(steps=3, inner=Inner(rate=1e-3), names=("a",))
    assert from_dict(Settings, to_dict(built), where="again") == built
    assert fingerprint(built) == fingerprint(to_dict(built)) != fingerprint(Settings(steps=4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps: 1\nstpes: 2", "unknown key 'stpes'; did you mean 'steps'?"),
        ("mode: fast", "key 'steps' is required"),
        ("steps: one", "expected a whole number"),
        ("steps: true", "expected a whole number"),
        ("steps: 1\nmode: medium", "'fast' | 'slow'"),
        ("steps: 1\ninner: {rat: 1}", "unknown key 'rat'"),
        ("steps: 0", "at least 1"),
        ("steps: 1\nsteps: 2", "stands twice"),
        ("steps: [", "not valid YAML"),
        ("- 1", "expected a mapping"),
    ],
)
def test_config_refuses_and_says_why(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(Settings, path)
    message = str(caught.value)
    assert expected in message
    assert "recipe.yaml" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("forecast", "expected"),
    [
        ("estimator: time_to_event", "'mc' | 'scope' | 'reach'"),
        ("samples: 0", "samples is 0; it must be at least 1"),
        ("target_std_error: 0.7", "target_std_error is 0.7; it must lie between 0 and 0.5"),
        ("target_std_error: 0.02", "samples is 16; with target_std_error that is the most that may be drawn"),
    ],
)
def test_a_run_says_before_it_trains_what_its_forecast_cannot_be(tmp_path: Path, forecast: str, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"source: tables\ntasks: [readmission_30d]\nforecast: {{{forecast}}}\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    assert expected in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_yaml_cannot_build_objects() -> None:
    with pytest.raises(ConfigError):
        parse_yaml("a: !!python/object/apply:os.system ['true']", where="text")


def test_atomic_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError, match="stop"), atomic_path(out, folder=True) as partial:
        (partial / "half").write_text("x")
        raise RuntimeError("stop")
    assert not out.exists()
    assert list(out.parent.iterdir()) == []
    with atomic_path(out, folder=True) as partial:
        (partial / "whole").write_text("x")
    with pytest.raises(OutputExistsError, match="--force"), atomic_path(out, folder=True):
        pass
    with atomic_path(out, folder=True, force=True) as partial:
        (partial / "newer").write_text("y")
    assert [path.name for path in out.iterdir()] == ["newer"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failing_disk_leaves_the_old_result(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    write_json(out, {"a": 1})
    with pytest.raises(StorageError, match="No space left"), atomic_path(out, force=True) as partial:
        partial.write_text("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert json.loads(out.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    code = f"""
import time
from cehrxgpt.atomic import atomic_path
with atomic_path({str(tmp_path / "out")!r}, folder=True) as partial:
    (partial / 'half').write_text('x')
    print('ready', flush=True)
    time.sleep(60)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_path(tmp_path / "out", folder=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True).stdout.strip()
    former = tmp_path / f".out.old-{gone}"
    former.mkdir()
    (former / "whole").write_text("x")
    with pytest.raises(OutputExistsError), atomic_path(tmp_path / "out", folder=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "whole").read_text() == "x"


def test_schema_check_names_the_column() -> None:
    table = pa.table({"subject_id": pa.array(["a"]), "prediction_time": pa.array([0], pa.timestamp("us"))})
    with pytest.raises(SchemaError, match=r"labels\.parquet: column 'subject_id' is string; expected int64"):
        schema.check_columns(table, schema.LABEL_SCHEMA, where="labels.parquet")


def test_manifest_holds_until_something_changes(tmp_path: Path) -> None:
    source, out, path = tmp_path / "in.txt", tmp_path / "out", tmp_path / "manifest.json"
    source.write_text("one")
    out.mkdir()
    (out / "table").write_text("result")
    facts = manifest.describe("stage", inputs=[source], settings={"a": 1})
    manifest.write(path, facts, outputs=[out], figures={"rows": 1}, seconds=1.0)
    assert manifest.still_holds(path, manifest.describe("stage", inputs=[source], settings={"a": 1}), outputs=[out])
    assert not manifest.still_holds(path, manifest.describe("stage", inputs=[source], settings={"a": 2}), outputs=[out])
    (out / "table").write_text("cut")
    assert not manifest.still_holds(path, facts, outputs=[out])
    (out / "table").write_text("result")
    source.write_text("two")
    assert not manifest.still_holds(path, manifest.describe("stage", inputs=[source], settings={"a": 1}), outputs=[out])


def _modules_after(*arguments: str) -> set[str]:
    code = "import runpy, sys\ntry:\n    " + arguments[0] + "\nexcept SystemExit:\n    pass\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


def test_the_front_door_is_light() -> None:
    assert not HEAVY & _modules_after("import cehrxgpt")
    for verb in ("", "forecast", "evaluate"):
        arguments = f"sys.argv = ['cehrxgpt', *{verb.split()!r}, '--help']; from cehrxgpt import cli; cli.main()"
        assert not HEAVY & _modules_after(arguments)


def test_the_accelerator_side_runs_without_the_data_stack() -> None:
    modules = ["store.format", "store.loader", "model.hub", "objectives", "train.loop", "rollout.engine", "timeline.window"]
    loaded = _modules_after("; ".join(f"import cehrxgpt.{name}" for name in modules))
    assert "torch" in loaded
    assert not {"polars", "duckdb", "ibis", "pandas", "rich", "typer", "sklearn", "lightgbm", "matplotlib", "transformers"} & loaded


def test_an_interrupted_verb_exits_with_130(tmp_path: Path) -> None:
    code = "import sys, time; from cehrxgpt import console; sys.exit(console.run(lambda: (print('set', flush=True), time.sleep(60))))"
    for sent in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while process.stdout.readline().strip() != "set":
            time.sleep(0.01)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "interrupted" in errors


def test_a_fault_is_one_line_without_a_traceback() -> None:
    code = "import sys; from cehrxgpt import console; sys.exit(console.run(lambda: {}['secret']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "secret" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", ["0", "-1", "+30", "0.5", "-0.0", "1_000", "0x1F", "1.0e+2", "30."])
def test_plain_numbers_are_read(number: str) -> None:
    assert parse_yaml(f"a: {number}", where="x") == yaml.safe_load(f"a: {number}")

"""Documentation is executed: every command in README.md and docs/ runs, in order, in one folder that begins empty.

Fenced blocks marked ```bash or ```python are run, README first; `make demo` is run on its small recipe, other `make` targets are checked
to exist (`make -n`), because a test cannot run the tests. Blocks marked ```console show output and are not run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")), "CONTRIBUTING.md"]


def blocks(document: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def commands(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(command: str, folder: Path) -> None:
    done = subprocess.run(command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.e2e
def test_every_command_runs(tmp_path: Path) -> None:
    """One test for all documents: later ones use what earlier ones made."""
    for document in DOCUMENTS:
        for language, block in blocks(document):
            if language == "python":
                (tmp_path / "snippet.py").write_text(block, encoding="utf-8")
                run(f"{shlex.quote(sys.executable)} snippet.py", tmp_path)
                continue
            for command in commands(block):
                if command == "make demo":
                    run("cehrxgpt demo --quick --out runs/demo", tmp_path)
                elif command.startswith("make "):
                    run(f"make -n -C {shlex.quote(str(ROOT))} {command.removeprefix('make ')}", tmp_path)
                elif not command.startswith(("git clone", "cd ")):
                    run(command, tmp_path)


@pytest.mark.e2e
def test_a_run_skips_what_holds_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Kill a run in the middle of its stages, run it again: what was done is skipped, the rest is done."""
    out = tmp_path / "killed"
    command = ["cehrxgpt", "demo", "--quick", "--quiet", "--out", str(out)]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while first.poll() is None and not (out / "manifests" / "tokenize.json").exists():
            time.sleep(0.05)
    finally:
        first.kill()
        first.communicate()
    assert first.returncode != 0, "the run ended before it could be killed"
    done_before = {path.stem for path in (out / "manifests").glob("*.json")}
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    stages = {stage["name"]: stage["skipped"] for stage in json.loads((out / "run.json").read_text())["stages"]}
    assert all(stages[name] for name in done_before)
    assert not stages["forecast"]
    assert (out / "report.html").stat().st_size > 10_000
    assert not [path for path in out.rglob("*") if ".partial-" in path.name]


def test_every_verb_is_documented() -> None:
    from cehrxgpt.cli import app

    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"cehrxgpt {command.callback.__name__}" in text
        assert f"Example: cehrxgpt {command.callback.__name__}" in (command.callback.__doc__ or "")


def test_the_documents_name_nothing_that_is_not_there() -> None:
    paths = re.compile(r"`((?:src|docs|tests|recipes|benchmarks)/[\w./-]+)`")
    for document in DOCUMENTS:
        for name in paths.findall((ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{document} names {name}"


def test_recipes_list_every_key() -> None:
    """docs/recipes.md names each key that a recipe and its parts may have, and no other."""
    from cehrxgpt.features.probe import ProbeConfig
    from cehrxgpt.pipeline import ForecastSettings, Recipe, SynthesisSettings
    from cehrxgpt.simulate import SimulateConfig
    from cehrxgpt.sources import IngestConfig
    from cehrxgpt.timeline import TimelineConfig
    from cehrxgpt.train.config import TrainConfig

    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.M))
    parts = {
        "simulate": SimulateConfig, "ingest": IngestConfig, "tokenize": TimelineConfig, "pretrain_overrides": TrainConfig, "probe": ProbeConfig,
        "forecast": ForecastSettings, "synthesize": SynthesisSettings,
    }  # fmt: skip
    for part, settings in parts.items():
        told = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", rows[part]))) - {settings.__name__}
        assert told == {field.name for field in dataclasses.fields(settings)}, part
    assert all(f"{field.name}:" in page or f"`{field.name}`" in page for field in dataclasses.fields(Recipe))

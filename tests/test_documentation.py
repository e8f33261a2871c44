"""Documentation is executed: every command in README.md and docs/ runs, in order, in one folder that begins empty.

Fenced blocks marked ```bash or ```python are run, README first; `make demo` is run on its small recipe, other `make` targets are checked
to exist (`make -n`), because a test cannot run the tests. Blocks marked ```console show output and are not run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("documentation")

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documentation")


def run(command: str, folder: Path) -> None:
    done = subprocess.run(command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.e2e
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if blocks(name)])
def test_every_command_runs(document: str, folder: Path) -> None:
    """One process runs them all (they are of one xdist group), since later documents use what earlier ones made."""
    for language, block in blocks(document):
        if language == "python":
            (folder / "snippet.py").write_text(block, encoding="utf-8")
            run(f"{shlex.quote(sys.executable)} snippet.py", folder)
            continue
        for command in commands(block):
            if command == "make demo":
                run("cehrxgpt demo --quick --out runs/demo", folder)
            elif command.startswith("make "):
                run(f"make -n -C {shlex.quote(str(ROOT))} {command.removeprefix('make ')}", folder)
            elif not command.startswith(("git clone", "cd ")):
                run(command, folder)


@pytest.mark.e2e
def test_a_run_skips_what_holds_and_goes_on_after_a_kill(folder: Path) -> None:
    """Kill a run in the middle of its stages, run it again: what was done is skipped, the rest is done."""
    out = folder / "runs" / "killed"
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

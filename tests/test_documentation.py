"""Documentation is executed: every command in README.md and docs/ runs, in order, in an empty folder.

Fenced blocks marked ```bash are run; `make` targets are checked to exist (`make -n`), because a test cannot run the tests. Blocks
marked ```console show output and are not run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
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


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if blocks(name)])
def test_every_command_runs(document: str, tmp_path: Path) -> None:
    for language, block in blocks(document):
        if language == "python":
            done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{document}: {block}\n{done.stderr}"
            continue
        for command in commands(block):
            if command.startswith(("git clone", "cd ")):
                continue
            if command.startswith("make "):
                command = f"make -n -C {shlex.quote(str(ROOT))} {command.removeprefix('make ')}"
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{document}: {command}\n{done.stdout}\n{done.stderr}"


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

"""The figures of docs/oddities.md are today's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "oddities.md").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_the_table_is_what_is_counted(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import oddities

    written = PAGE.split(oddities.BEGIN)[1].split(oddities.END)[0].strip()
    assert written.splitlines() == oddities.table(shared_data).splitlines()


def test_every_name_on_the_page_is_one_of_the_ingest() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "cehrxgpt" / "sources").glob("*.py"))
    names = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", PAGE)) - {"concept_ancestor", "text_value"}
    assert len(names) > 25
    assert not {name for name in names if not re.search(rf"\b{name}\b", source)}

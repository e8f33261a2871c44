"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does; workers and children share two cores


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the open data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CEHRXGPT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the open data sets are not at {folder}; set CEHRXGPT_DATA to run this test")
    return folder

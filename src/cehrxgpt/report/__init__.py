"""What a finished run says, for people: one self-contained HTML page, and plain text for the terminal.

    report(run_folder)            -> RUN/report.html: no script, no request to anywhere, light and dark
    inspect_path(path, subject=)  -> lines of text about any artefact, or one subject's timeline
    subject_page(path, subject)   -> one subject's record as a page of its own (HTML); not for sharing

Loaded on first use: the page draws its own SVG, so nothing but Polars and NumPy is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "report": "cehrxgpt.report.page",
    "inspect_path": "cehrxgpt.report.text",
    "subject_page": "cehrxgpt.report.text",
    "subject_lines": "cehrxgpt.report.timeline_text",
}

__all__ = ["inspect_path", "report", "subject_lines", "subject_page"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'cehrxgpt.report' has no attribute '{name}'; it offers {', '.join(__all__)}")

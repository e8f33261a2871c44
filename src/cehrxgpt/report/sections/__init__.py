"""The chapters of the page, one file each: `section(run, ...) -> Section`, or `MissingInputs` saying what it would need."""

from __future__ import annotations


class MissingInputs(Exception):
    """A chapter has nothing to show; the message names the artefacts it would be made from."""

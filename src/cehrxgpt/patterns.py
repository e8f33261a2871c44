r"""How a concept set writes codes: as they are, with a `*` at the end for any ending; a star of the code itself is written `\*`."""

from __future__ import annotations


def as_pattern(code: str) -> str:
    """What matches this code alone."""
    return code.replace("*", r"\*")


def read_pattern(pattern: str) -> tuple[str, bool]:
    """The code that is meant, or what codes begin with; and whether it is such a beginning.

    Raises:
        ValueError: a `*` that stands elsewhere than at the end, or for everything.
    """
    begins = pattern.endswith("*") and not pattern.endswith(r"\*")
    text = pattern.removesuffix("*") if begins else pattern
    if not text or "*" in text.replace(r"\*", ""):
        raise ValueError(rf"code pattern '{pattern}': '*' may stand only at the end, after something; a star of the code itself is written \*")
    return text.replace(r"\*", "*"), begins

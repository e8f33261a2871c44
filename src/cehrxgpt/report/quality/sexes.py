"""Events that befall one sex alone, told from a short list of concepts (`one_sex.yaml`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.config import read_yaml

_FILE = Path(__file__).with_name("one_sex.yaml")
_TABLES = ("condition", "procedure")
GENDERS = {"women": f"{s.GENDER_PREFIX}8532", "men": f"{s.GENDER_PREFIX}8507"}


@cache
def listed() -> dict[str, str]:
    """code -> the gender's code of those who can have it."""
    return {f"{table}/{concept}": GENDERS[sex] for sex, concepts in read_yaml(_FILE).items() for concept in concepts for table in _TABLES}


def codes_of_one_sex(codes: pl.DataFrame | None) -> dict[str, str]:
    """The listed codes and those below them.

    Args:
        codes: `code` and `parent_codes`, all ancestors of each; None: the list alone.
    """
    found = dict(listed())
    if codes is not None and "parent_codes" in codes.columns:
        above = codes.select("code", pl.col("parent_codes").cast(pl.List(pl.String)).alias("_above"))
        above = above.explode("_above", empty_as_null=True).filter(pl.col("_above").is_in(list(listed())))
        found |= dict(above.with_columns(pl.col("_above").replace(listed())).iter_rows())
    return found

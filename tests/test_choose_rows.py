"""Which label rows a run forecasts."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.stages import choose_rows

DATASET: Any = SimpleNamespace(
    root="events", splits=["held_out", "train"], subject_splits=pl.DataFrame({"subject_id": range(400), "split": ["held_out", "train"] * 200})
)


def labels(task: str, subjects: list[int]) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "subject_id": subjects,
            "prediction_time": [datetime(2015, 1, 1) + timedelta(days=subject) for subject in subjects],
            "task": [task] * len(subjects),
        }
    )
    empty = pl.from_arrow(s.LABEL_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    return pl.concat([empty, frame.cast({name: empty.schema[name] for name in frame.columns})], how="diagonal")


def chosen(tables: dict[str, pl.DataFrame], **settings: Any) -> dict[str, list[int]]:
    rows = choose_rows(tables, DATASET, **{"split": "held_out", "max_rows": 20, "seed": 1, **settings})
    return {task: rows.filter(pl.col("task") == task)["subject_id"].to_list() for task in rows["task"].unique(maintain_order=True)}


TABLES = {"wide": labels("wide", list(range(400))), "narrow": labels("narrow", list(range(100))), "rare": labels("rare", [4, 6, 7])}


def test_each_task_has_its_number_of_rows_of_the_split() -> None:
    found = chosen(TABLES)
    assert [len(found[task]) for task in ("wide", "narrow", "rare")] == [20, 20, 2]
    assert all(subject % 2 == 0 for subjects in found.values() for subject in subjects)
    everything = chosen(TABLES, split=None, max_rows=None)
    assert [len(everything[task]) for task in ("wide", "narrow", "rare")] == [400, 100, 3]


def test_tasks_that_ask_at_the_same_times_draw_the_same() -> None:
    found = chosen(TABLES)
    assert set(found["wide"]) & set(range(100)) <= set(found["narrow"])


def test_the_draw_depends_on_the_seed_alone_and_grows_with_the_limit() -> None:
    assert chosen(dict(reversed(TABLES.items()))) == chosen(TABLES)
    assert chosen(TABLES) != chosen(TABLES, seed=2)
    assert set(chosen(TABLES)["wide"]) < set(chosen(TABLES, max_rows=40)["wide"])


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(InputError, match="no split 'test'; it has held_out, train"):
        chosen(TABLES, split="test")

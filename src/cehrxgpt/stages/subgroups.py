"""Which rows belong to which subgroup: facts of events, and whether the outcome would be the subject's first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cehrxgpt import schema as s

if TYPE_CHECKING:
    import polars as pl

    from cehrxgpt.events import EventDataset
    from cehrxgpt.tasks import Task

ONSET = "onset"
FIRST, RECURRENCE = "first", "recurrence"


def known_tasks(names: Sequence[str], given: Sequence[str]) -> dict[str, Task]:
    """name -> task, of those that are among `given` (names or files) or in the library; others are left out."""
    from cehrxgpt.tasks import library_tasks, load_task

    loaded = [load_task(task) for task in given] + [load_task(name) for name in names if name in library_tasks()]
    return {task.name: task for task in reversed(loaded) if task.name in names}


def subgroups(dataset: EventDataset, rows: pl.DataFrame, tasks: Sequence[str] = ()) -> tuple[pl.DataFrame, list[str]]:
    """Levels of age, sex, race, length of history, and onset of every row.

    Args:
        dataset: the events that the labels were made from.
        rows: `task`, `subject_id`, `prediction_time`.
        tasks: names or files of the tasks that the rows name, beyond the library's.

    Returns:
        the table `evaluate_predictions` takes as groups, and what could not be told apart, in words.
    """
    import polars as pl

    from cehrxgpt.evaluate.rows import KEY
    from cehrxgpt.evaluate.subgroups import GROUP_DTYPES, subgroup_levels
    from cehrxgpt.tasks import resolve_all

    key = rows.select(*KEY).unique(maintain_order=True).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    names = key["task"].unique(maintain_order=True).to_list()
    found = {task.name: task for task in resolve_all(known_tasks(names, tasks).values(), dataset.codes)}
    notes = [
        f"{name}: first onset and recurrence are not told apart (no such task in the library; give --task FILE)"
        for name in names
        if name not in found
    ]
    notes += [f"{name}: its outcome has no first onset" for name, task in found.items() if not _recurs(task)]
    readable = {code: name for code, name in dataset.names().items() if code.startswith((s.GENDER_PREFIX, s.RACE_PREFIX))}
    parts = [pl.DataFrame(schema=GROUP_DTYPES)]
    for _, events in dataset.iter_shards():
        mine = key.join(events.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
        if mine.is_empty():
            continue
        known = events.join(mine.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
        parts.append(subgroup_levels(known, mine, names=readable))
        parts += [_onset(task, known, mine.filter(pl.col("task") == name)) for name, task in found.items() if _recurs(task)]
    return pl.concat(parts), notes


def _recurs(task: Task) -> bool:
    """Can the outcome have happened before: concepts and visits can, death and the length of a stay cannot."""
    return not task.outcome.death and task.outcome.stay_over_days is None


def _onset(task: Task, events: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Had the subject the outcome before? Judged as `first_onset` judges it: on everything that is not after the prediction time."""
    import polars as pl

    from cehrxgpt.evaluate.subgroups import GROUP_DTYPES
    from cehrxgpt.tasks import had_before

    before = had_before(task, events, rows).alias("_before")
    levels = rows.with_columns(pl.lit(ONSET).alias("subgroup"), before)
    level = pl.when("_before").then(pl.lit(RECURRENCE)).otherwise(pl.lit(FIRST)).alias("level")
    return levels.with_columns(level).select(pl.col(name).cast(dtype) for name, dtype in GROUP_DTYPES.items())

"""Reading and writing the tables that travel between stages, checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path
from cehrxgpt.errors import InputError, MismatchError, SchemaError, no_parquet

if TYPE_CHECKING:
    import polars as pl

    from cehrxgpt.events import EventDataset


Settings = Mapping[str, Any]
_OTHER_FORMATS = (".csv", ".tsv", ".txt", ".gz", ".json", ".jsonl", ".yaml", ".yml", ".xlsx", ".feather", ".arrow", ".html")


def silent(done: int, total: int, what: str) -> None:
    """A `Progress` that says nothing."""


def read_table(path: Path, schema: Any, *, what: str, optional: Sequence[str] = ()) -> pl.DataFrame:
    """Read one Parquet table and check its columns.

    Raises:
        InputError: no such file, or not readable as Parquet.
        SchemaError: it lacks a column or has one of another type.
    """
    import polars as pl

    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {what}")
    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{no_parquet(path)}; expected {what}") from error
    try:
        s.check_columns(frame.to_arrow(), schema, where=str(path), optional=optional)
    except SchemaError as error:
        raise SchemaError(f"{error}; give {what}") from error
    return frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))


def write_table(frame: pl.DataFrame, path: Path, *, force: bool) -> None:
    """Write one Parquet table, atomically."""
    with atomic_path(path, force=force) as partial:
        frame.write_parquet(partial)


def refuse_other_format(path: Path) -> None:
    """Raise `InputError` where the name of a table to be written promises another format than Parquet."""
    if path.suffix.lower() in _OTHER_FORMATS:
        raise InputError(f"{path}: tables are written as Parquet, not as {path.suffix}; give a name that ends in .parquet")


def read_labels(path: Path, *, unnamed: str | None = None) -> pl.DataFrame:
    """A label table, ours or of MEDS (a file or a folder of shards); `unnamed` names its task where it does not.

    Raises:
        InputError, SchemaError: it is not there, unreadable or no label table; a (task, subject, prediction time) stands twice.
    """
    from cehrxgpt.tasks.meds_labels import read_labels as run

    return run(path, unnamed=unnamed)


def check_subjects(frame: pl.DataFrame, dataset: EventDataset, *, what: str, any_known: bool = False) -> None:
    """Raise `MismatchError` if the table names subjects that the data set lacks; with `any_known` only if it knows none of them."""
    known = dataset.subject_splits.select("subject_id")
    subjects = frame.select("subject_id").unique()
    strangers = subjects.join(known, on="subject_id", how="anti")
    if strangers.height and not (any_known and strangers.height < subjects.height):
        first = ", ".join(str(subject) for subject in strangers["subject_id"].sort().head(3).to_list())
        raise MismatchError(
            f"{what}: {strangers.height} subjects are not in {dataset.root} (first: {first}); give the data set that was labelled and forecast"
        )


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """name -> what files may be called after it: letters, digits, `_.+-`, and `_` for all else; names that would share one are numbered."""
    safe: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", name)
        # Capitals are no difference on every disk.
        taken = {one.lower() for one in safe.values()}
        tries = (plain if number == 1 else f"{plain}_{number}" for number in count(1))
        safe[name] = next(one for one in tries if one.lower() not in taken)
    return safe


def label_files(labels: Path) -> list[Path]:
    """Label tables of a folder.

    Raises:
        InputError: there are none.
    """
    files = sorted(path for path in labels.glob("*.parquet") if not path.name.startswith("."))
    if not files:
        raise InputError(f"{labels}: no label tables; make them with: cehrxgpt label EVENTS --task NAME --out {labels}/NAME.parquet")
    return files


def number(value: float | None) -> str:
    """A figure to three places; a dash where it is not defined."""
    return "-" if value is None or value != value else f"{value:.3f}".replace("-", "−")


def interval(lower: float | None, upper: float | None) -> str:
    """An interval to three places; one dash where it is not defined."""
    ends = number(lower), number(upper)
    return "-" if "-" in ends else " to ".join(ends)


def method_name(method: str) -> str:
    """What people read of a method; in tables on disk and in JSON it keeps its own name (`monte_carlo` is read as zero-shot)."""
    from cehrxgpt.report.methods import method as known

    return known(method).label


def metric_rows(metrics: pl.DataFrame, metric: str) -> list[list[str]]:
    """method, value and interval of one metric, as text for a table."""
    import polars as pl

    rows = metrics.filter(pl.col("metric") == metric)
    return [[method_name(row["method"]), number(row["value"]), interval(row["lower"], row["upper"])] for row in rows.iter_rows(named=True)]

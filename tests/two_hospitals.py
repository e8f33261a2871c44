"""Two small hospitals with a process that is quickly learnt: what follows what, at which rate. The second has codes, a unit and a visit
type that the first has not."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from cehrxgpt.events import EventDataset
from timeline_samples import row, static, table

START = datetime(2012, 3, 1)
NEW_CODE = "condition/900"
SPLITS = {"train": 0, "tuning": 1000, "held_out": 2000}


def patients(first: int, count: int, *, second: bool = False, seed: int = 0) -> pl.DataFrame:
    """`count` patients of one hospital: days with condition/1, /2 or /3 in turn, a lab in its unit, sometimes a visit.

    In the second hospital condition/900 stands beside condition/1 seven times in ten, the lab has another unit, and visits another type.
    """
    random = np.random.default_rng([seed, first])
    rows = []
    for subject in range(first, first + count):
        rows += static(subject)
        day = START + timedelta(days=int(random.integers(0, 300)))
        state = int(random.integers(1, 4))
        for number in range(int(random.integers(5, 10))):
            visit = number if random.random() < 0.3 else None
            if visit is not None:
                kind = "Visit/581477" if second else "Visit/9202"
                rows.append(row(subject, day, kind, end_time=day + timedelta(hours=1), visit_id=visit, origin="visit_occurrence"))
            rows.append(row(subject, day, f"condition/{state}", visit_id=visit, origin="condition_occurrence"))
            if second and state == 1 and random.random() < 0.7:
                rows.append(row(subject, day, NEW_CODE, visit_id=visit, origin="condition_occurrence"))
            if random.random() < 0.5:
                value = {"numeric_value": float(random.normal(5, 1)), "unit": "mmol/L" if second else "mg/dL"}
                rows.append(row(subject, day, "measurement/4", visit_id=visit, origin="measurement", **value))
            state = state % 3 + 1 if random.random() < 0.8 else int(random.integers(1, 4))
            day += timedelta(days=int(random.choice([7, 14, 30])))
        rows.append(row(subject, day, "OBSERVATION//END"))
    return table(rows)


def write_events(root: Path, by_split: dict[str, pl.DataFrame]) -> EventDataset:
    """Tables as an event data set."""
    for split, frame in by_split.items():
        path = root / "data" / split / "0.parquet"
        path.parent.mkdir(parents=True)
        frame.write_parquet(path)
    return EventDataset(root)


def hospital(root: Path, *, second: bool = False, train: int = 120, others: int = 30) -> EventDataset:
    """One hospital on disk."""
    base = 100_000 if second else 0
    counts = {"train": train, "tuning": others, "held_out": others}
    return write_events(root, {split: patients(base + SPLITS[split], count, second=second) for split, count in counts.items()})

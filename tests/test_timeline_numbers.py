"""Which patients stand for all where a (code, unit, comparison sign) has too many numbers: the incremental way against the plain one."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.timeline.fit import _Numbers

KEYS = ["code", "unit", "operator"]


def plainly(shards: list[pl.DataFrame], most: int) -> pl.DataFrame:
    """Every number held is looked at again after every shard."""
    values = shards[0].clear().with_columns(pl.lit(0, pl.UInt64).alias("_hash"))
    levels: dict[tuple[str, str | None, str | None], int] = {}
    for shard in shards:
        values = pl.concat([values, shard.with_columns(pl.col("subject_id").hash(seed=17).alias("_hash"))])
        while True:
            keep = [digits & (2 ** levels.get(tuple(key), 0) - 1) == 0 for *key, _, _, digits in values.iter_rows()]
            values = values.filter(pl.Series(keep, dtype=pl.Boolean))
            sizes = values.group_by(KEYS).agg(pl.len().alias("n"), pl.col("subject_id").n_unique().alias("m"))
            crowded = [tuple(key) for *key, n, m in sizes.iter_rows() if n > most and m > 1]
            if not crowded:
                break
            for key in crowded:
                levels[key] = levels.get(key, 0) + 1
    return values.drop("_hash")


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_thinning_as_it_goes_equals_thinning_again_and_again(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    shards = []
    for number in range(4):
        size = int(rng.integers(0, 80))
        shards.append(
            pl.DataFrame(
                {
                    "code": rng.choice(["a", "b", "c"], size).tolist(),
                    "unit": [[None, "mg", "g"][pick] for pick in rng.integers(0, 3, size)],
                    "operator": [[None, "<"][pick] for pick in rng.integers(0, 2, size)],
                    "subject_id": rng.integers(number * 10, number * 10 + int(rng.integers(1, 10)), size),
                    "numeric_value": rng.normal(size=size).astype(np.float32),
                },
                schema={"code": pl.String, "unit": pl.String, "operator": pl.String, "subject_id": pl.Int64, "numeric_value": pl.Float32},
            )
        )
    numbers = _Numbers(most)
    for shard in shards:
        numbers.add(shard)
    found = []
    for code, groups in numbers.by_code().items():
        for unit, operator, part in groups:
            found += [(code, unit, operator, *row) for row in part.select("subject_id", "numeric_value").iter_rows()]
    expected = plainly(shards, most).rows()
    assert sorted(found, key=str) == sorted(expected, key=str)

"""Train, tuning and held-out subjects: by a fixed hash of the subject, unless the data has splits of its own.

The hash is SplitMix64 (Steele, Lea, Flood 2014) of the subject id, as an unsigned 64-bit number, xor the SplitMix64 of the seed. Its top 53
bits are a number u in [0, 1): train where u is below the first share, then tuning, then held_out. A subject keeps its split when others
come or go, on any machine. Where a small set would leave a split empty, subjects are ranked by u instead and each split gets its share
of the ranks, one at least.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.errors import InputError
from cehrxgpt.schema import SPLITS


def _splitmix64(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def subject_uniform(subject_id: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """u in [0, 1) of each subject, float64[S]; see the module's docstring."""
    salt = _splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    mixed = _splitmix64(subject_id.astype(np.int64).view(np.uint64) ^ salt)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def assign_splits(subjects: pl.Series, shares: dict[str, float], seed: int, *, own: pl.DataFrame | None = None) -> tuple[pl.DataFrame, str]:
    """`subject_id`, `split` of every subject, and the policy taken: `own`, `own_and_hash`, `hash` or `ranked_hash`.

    Args:
        subjects: distinct ids.
        shares: share per split; adds up to 1.
        seed: changes who falls where.
        own: `subject_id`, `split` of the data itself; subjects it lacks are hashed.

    Raises:
        InputError: fewer subjects than splits with a share above zero; a split of the data's that cannot name a folder, or a subject in two.
    """
    ids = subjects.unique().sort().rename("subject_id")
    if own is not None:
        known = ids.to_frame().join(_checked(own), on="subject_id", how="inner")
        missing = ids.filter(~ids.is_in(known["subject_id"].implode()))
        if not missing.len():
            return known.sort("subject_id"), "own"
        if known.height:
            return pl.concat([known, _by_hash(missing, shares, seed)]).sort("subject_id"), "own_and_hash"
    wanted = [name for name in SPLITS if shares.get(name, 0) > 0]
    if ids.len() < len(wanted):
        raise InputError(
            f"{ids.len()} subjects cannot fill the splits {', '.join(wanted)}; at least {len(wanted)} subjects are needed, or fewer splits"
        )
    hashed = _by_hash(ids, shares, seed)
    if hashed["split"].n_unique() == len(wanted):
        return hashed, "hash"
    return _by_rank(ids, {name: shares[name] for name in wanted}, seed), "ranked_hash"


def _checked(own: pl.DataFrame) -> pl.DataFrame:
    """The data's own splits, one row for each subject."""
    own = own.unique()
    for name in own["split"].unique().sort():
        if name.startswith(".") or not name.isprintable() or {"/", "\\"} & set(name) or not name.strip():
            raise InputError(f"the data's own splits: {name!r} cannot be the name of a split's folder; expected train, tuning, held_out or the like")
    twice = own.filter(pl.col("subject_id").is_duplicated())["subject_id"].n_unique()
    if twice:
        raise InputError(f"the data's own splits: {twice} subjects are in two splits; each belongs to one")
    return own


def _by_hash(ids: pl.Series, shares: dict[str, float], seed: int) -> pl.DataFrame:
    names = [name for name in SPLITS if shares.get(name, 0) > 0]
    edges = np.cumsum([shares[name] for name in names])[:-1]
    chosen = np.searchsorted(edges, subject_uniform(ids.to_numpy(), seed), side="right")
    return pl.DataFrame({"subject_id": ids, "split": np.array(names, dtype=object)[chosen].astype(str)})


def _by_rank(ids: pl.Series, shares: dict[str, float], seed: int) -> pl.DataFrame:
    order = np.argsort(subject_uniform(ids.to_numpy(), seed), kind="stable")
    sizes = {name: max(1, round(share * ids.len())) for name, share in shares.items()}
    while sum(sizes.values()) != ids.len():
        largest = max(sizes, key=lambda name: sizes[name])
        sizes[largest] += 1 if sum(sizes.values()) < ids.len() else -1
    split = np.empty(ids.len(), dtype=object)
    split[order] = np.repeat(list(sizes), list(sizes.values()))
    return pl.DataFrame({"subject_id": ids, "split": split.astype(str)})

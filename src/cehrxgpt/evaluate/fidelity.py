"""Do synthetic patients look like real ones, concept by concept? Event tables in, tidy rows out.

Level 1 of three: how often each concept occurs, per patient. Two event tables are compared by the share of patients who have each
code at least once; the divergence is KL(real || synthetic) of those shares normalised over codes, each code's count raised by 1/2 on both
sides, so that a code the synthetic patients lack costs much and not infinitely. Demographics, visits and length of record stand beside.
Intervals come from drawing patients of both tables with replacement, and are centred on the value (`bootstrap.centred`): these measures grow
with noise, and drawing adds some. So an interval says how far the value would move with other patients, as many of them. Calling
`fidelity` with held-out real patients in place of synthetic ones gives the reference, in which noise counts too: how unlike two samples
of real patients are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.evaluate.bootstrap import centred

Float = npt.NDArray[np.float64]
_NOT_CODES = (s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END)
_PREVALENCE_METRICS = ("prevalence_correlation", "prevalence_log_correlation", "prevalence_mean_absolute_error", "kl_divergence")
_LEAST, _MOST = np.array([-1.0, -1.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0, np.inf])  # what each of them can be


def _pairs(events: pl.DataFrame) -> pl.DataFrame:
    """Distinct (subject_id, code) of dated events."""
    return events.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in(_NOT_CODES)).select("subject_id", "code").unique()


def _subjects(events: pl.DataFrame, what: str) -> int:
    count = events["subject_id"].n_unique()
    if count == 0:
        raise InputError(f"{what} events: no subject; expected an event table with rows")
    return count


def prevalence(real: pl.DataFrame, synthetic: pl.DataFrame, *, min_subjects: int = 11) -> pl.DataFrame:
    """Share of patients with each code, side by side.

    Args:
        real, synthetic: EventTables (columns `subject_id`, `time`, `code`).
        min_subjects: codes that fewer real *and* fewer synthetic patients have are left out.

    Returns:
        `code`, `real_subjects`, `synthetic_subjects`, `real`, `synthetic` (shares of all patients), most frequent first.
    """
    counts = None
    for name, events in (("real", real), ("synthetic", synthetic)):
        total = _subjects(events, name)
        one = _pairs(events).group_by("code").agg(pl.len().cast(pl.Int64).alias(f"{name}_subjects"))
        one = one.with_columns((pl.col(f"{name}_subjects") / total).alias(name))
        counts = one if counts is None else counts.join(one, on="code", how="full", coalesce=True)
    assert counts is not None
    counts = counts.with_columns(pl.all().exclude("code").fill_null(0))
    kept = counts.filter((pl.col("real_subjects") >= min_subjects) | (pl.col("synthetic_subjects") >= min_subjects))
    return kept.sort("real", "synthetic", "code", descending=[True, True, False]).select(
        "code", "real_subjects", "synthetic_subjects", "real", "synthetic"
    )


def _correlation(x: Float, y: Float) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def kl_divergence(real: Float, synthetic: Float) -> float:
    """KL(real || synthetic) in nats of counts [C], normalised over codes, 1/2 added to each count."""
    p, q = real + 0.5, synthetic + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _compare(real: Float, synthetic: Float, real_total: float, synthetic_total: float) -> Float:
    """The values of `_PREVALENCE_METRICS` from counts of patients per code [C]."""
    x, y = real / real_total, synthetic / synthetic_total
    smooth_x, smooth_y = np.log((real + 0.5) / (real_total + 1)), np.log((synthetic + 0.5) / (synthetic_total + 1))
    return np.array([_correlation(x, y), _correlation(smooth_x, smooth_y), np.abs(x - y).mean(), kl_divergence(real, synthetic)])


class _Incidence:
    """Patient-code pairs as indices, to count codes under patient weights."""

    def __init__(self, events: pl.DataFrame, codes: pl.DataFrame):
        subjects = events.select("subject_id").unique(maintain_order=True).with_row_index("_subject")
        pairs = _pairs(events).join(codes.select("code").with_row_index("_code"), on="code").join(subjects, on="subject_id")
        self.subject, self.code = pairs["_subject"].to_numpy(), pairs["_code"].to_numpy()
        self.subjects, self.codes = subjects.height, codes.height

    def counts(self, weight: Float) -> Float:
        return np.bincount(self.code, weights=weight[self.subject], minlength=self.codes).astype(np.float64)

    def draw(self, rng: np.random.Generator) -> Float:
        return self.counts(rng.multinomial(self.subjects, np.full(self.subjects, 1 / self.subjects)).astype(np.float64))


def _prevalence_rows(real: pl.DataFrame, synthetic: pl.DataFrame, table: pl.DataFrame, *, bootstrap: int, seed: int) -> list[dict[str, object]]:
    if table.height == 0:
        raise InputError("fidelity: no code is frequent enough to compare; lower min_subjects or give more patients")
    ours, theirs = _Incidence(real, table), _Incidence(synthetic, table)
    value = _compare(ours.counts(np.ones(ours.subjects)), theirs.counts(np.ones(theirs.subjects)), ours.subjects, theirs.subjects)
    rng = np.random.default_rng(seed)
    draws = np.array([_compare(ours.draw(rng), theirs.draw(rng), ours.subjects, theirs.subjects) for _ in range(bootstrap)])
    low, high = centred(value, draws, least=_LEAST, most=_MOST) if bootstrap else np.full((2, len(value)), np.nan)
    rows: list[dict[str, object]] = [
        {"metric": name, "value": float(v), "lower": float(a), "upper": float(b)}
        for name, v, a, b in zip(_PREVALENCE_METRICS, value, low, high, strict=True)
    ]
    known = table.filter(pl.col("real_subjects") > 0)
    rows.append({"metric": "real_codes_generated", "value": known.filter(pl.col("synthetic_subjects") > 0).height / max(known.height, 1)})
    return rows


def _total_variation(real: pl.Series, synthetic: pl.Series) -> float:
    """Half the sum of absolute differences of two categorical distributions: 0 = the same, 1 = nothing in common."""
    shares = [one.value_counts(normalize=True, name="share") for one in (real, synthetic)]
    both = shares[0].join(shares[1], on=real.name, how="full", coalesce=True).fill_null(0.0)
    return float((both["share"] - both["share_right"]).abs().sum() / 2)


def _kolmogorov_smirnov(real: Float, synthetic: Float) -> float:
    """Largest distance between two empirical distribution functions."""
    grid = np.unique(np.concatenate([real, synthetic]))
    below = [np.searchsorted(np.sort(one), grid, side="right") / max(len(one), 1) for one in (real, synthetic)]
    return float(np.abs(below[0] - below[1]).max()) if len(grid) else float("nan")


def people(events: pl.DataFrame) -> pl.DataFrame:
    """One row per subject: `gender`, `race`, `age_years` at the first event, `years` of record, `events`, `visits`, `dead`."""
    dated = events.filter(pl.col("time").is_not_null() & (pl.col("code") != s.BIRTH))
    coded = ~pl.col("code").is_in(_NOT_CODES)
    rows = dated.group_by("subject_id").agg(
        pl.col("time").filter(coded).min().alias("first"),
        ((pl.col("time").max() - pl.col("time").min()).dt.total_days() / 365.25).alias("years"),
        coded.sum().cast(pl.Float64).alias("events"),
        pl.col("code").str.starts_with(s.VISIT_PREFIX).sum().cast(pl.Float64).alias("visits"),
        (pl.col("code") == s.DEATH).any().cast(pl.Float64).alias("dead"),
    )
    birth = events.filter(pl.col("code") == s.BIRTH).group_by("subject_id").agg(pl.col("time").min().alias("birth"))
    rows = events.select("subject_id").unique().join(rows, on="subject_id", how="left").join(birth, on="subject_id", how="left")
    for prefix, name in ((s.GENDER_PREFIX, "gender"), (s.RACE_PREFIX, "race")):
        static = events.filter(pl.col("time").is_null() & pl.col("code").str.starts_with(prefix))
        rows = rows.join(static.group_by("subject_id").agg(pl.col("code").first().alias(name)), on="subject_id", how="left")
        rows = rows.with_columns(pl.col(name).fill_null(f"{prefix}0"))
    age = (pl.col("first") - pl.col("birth")).dt.total_days() / 365.25
    filled = pl.col("years", "events", "visits", "dead").fill_null(0.0)
    return rows.with_columns(filled, age.alias("age_years")).drop("first", "birth").sort("subject_id")


def _stays(events: pl.DataFrame) -> pl.DataFrame:
    """One row per visit: `visit` (its code) and `nights`: a visit without hours inside is known by its dates alone."""
    visits = events.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX))
    return visits.select(pl.col("code").alias("visit"), (pl.col("end_time").dt.date() - pl.col("time").dt.date()).dt.total_days().alias("nights"))


def _people_rows(real: pl.DataFrame, synthetic: pl.DataFrame) -> list[dict[str, object]]:
    ours, theirs = people(real), people(synthetic)
    rows: list[dict[str, object]] = [
        {"metric": f"{name}_total_variation", "value": _total_variation(ours[name], theirs[name])} for name in ("gender", "race")
    ]
    for name in ("age_years", "years", "events", "visits"):
        x, y = (frame[name].drop_nulls().cast(pl.Float64).to_numpy() for frame in (ours, theirs))
        rows.append({"metric": f"{name}_kolmogorov_smirnov", "value": _kolmogorov_smirnov(x, y)})
    for name in ("age_years", "years", "events", "visits", "dead"):
        for side, frame in (("real", ours), ("synthetic", theirs)):
            rows.append({"metric": f"{name}_mean_{side}", "value": frame[name].mean()})
    stays = _stays(real), _stays(synthetic)
    if stays[0].height and stays[1].height:
        rows.append({"metric": "visit_type_total_variation", "value": _total_variation(stays[0]["visit"], stays[1]["visit"])})
        x, y = (frame["nights"].drop_nulls().cast(pl.Float64).to_numpy() for frame in stays)
        rows.append({"metric": "visit_nights_kolmogorov_smirnov", "value": _kolmogorov_smirnov(x, y)})
    return rows


def fidelity(
    real: pl.DataFrame,
    synthetic: pl.DataFrame,
    *,
    method: str = "synthetic",
    min_subjects: int = 11,
    bootstrap: int = 200,
    seed: int = 0,
) -> pl.DataFrame:
    """Rows of METRIC_SCHEMA, `task` "fidelity".

    Args:
        real, synthetic: EventTables.
        method: name of what stands in `synthetic`, e.g. "synthetic", or "held_out" for the real-vs-real reference.
        min_subjects: see `prevalence`.
        bootstrap: draws for the intervals; 0 = none.
        seed: of the draws.

    Raises:
        InputError: a table has no subjects, or no code is frequent enough.
    """
    table = prevalence(real, synthetic, min_subjects=min_subjects)
    rows = _prevalence_rows(real, synthetic, table, bootstrap=bootstrap, seed=seed) + _people_rows(real, synthetic)
    frame = pl.DataFrame(
        [{"metric": row["metric"], "value": row["value"], "lower": row.get("lower"), "upper": row.get("upper")} for row in rows],
        schema={"metric": pl.String, "value": pl.Float64, "lower": pl.Float64, "upper": pl.Float64},
    )
    return frame.select(
        pl.lit("fidelity").alias("task"),
        pl.lit(method).alias("method"),
        "metric",
        pl.col("value", "lower", "upper").fill_nan(None),
        pl.lit(_subjects(synthetic, "synthetic"), dtype=pl.Int64).alias("subjects"),
        pl.lit(table.height, dtype=pl.Int64).alias("positives"),
        *(pl.lit(None, dtype=pl.String).alias(name) for name in ("subgroup", "level")),
    )

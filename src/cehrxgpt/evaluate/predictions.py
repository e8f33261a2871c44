"""Predictions against labels: tidy metric rows with intervals by patient.

Labels that are null (censored) have no outcome to compare with. They are counted, and the rows that remain are weighted by the inverse
of their chance of having been observed (Kaplan-Meier on the follow-up that the labels carry), AUROC, Brier score and calibration
included; without that, metrics describe the patients who happen to be followed for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import MismatchError
from cehrxgpt.evaluate import calibration, discrimination
from cehrxgpt.evaluate.bootstrap import bootstrap, bootstrap_curve
from cehrxgpt.evaluate.disclosure import Disclosure, Told
from cehrxgpt.evaluate.net_benefit import THRESHOLDS, net_benefit, treat_all
from cehrxgpt.evaluate.rows import KEY, LEFT_OUT, SHARED, Array, Judged, check_groups, ended, join_labels, share
from cehrxgpt.evaluate.time_to_event import Concordance, IntegratedBrier

METRIC_DTYPES: dict[str, pl.DataType] = {
    "task": pl.String(),
    "method": pl.String(),
    "metric": pl.String(),
    "value": pl.Float64(),
    "lower": pl.Float64(),
    "upper": pl.Float64(),
    "subjects": pl.Int64(),
    "positives": pl.Int64(),
    "subgroup": pl.String(),
    "level": pl.String(),
}
"""Metric rows as Polars types (twin of `schema.METRIC_SCHEMA`)."""

METRICS = ("auroc", "auprc", "brier", "calibration_slope", "calibration_intercept", "ece", "prevalence", "mean_predicted", "c_index")
COUNTS = ("rows", *LEFT_OUT)
WITHHELD = "levels_withheld"
GROUP_REPLICATES = 200
"""Resamples for the intervals of a subgroup, where there are many of them."""

_GRID = 50  # times at which curves that do not share a grid are compared
_Found = dict[str, tuple[float, float, float]]


def evaluate_predictions(
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    curves: pl.DataFrame | None = None,
    groups: pl.DataFrame | None = None,
    replicates: int = 1000,
    seed: int = 0,
    bins: int = 10,
    weighted: bool = True,
) -> pl.DataFrame:
    """Metric rows of every (task, method), of everybody and of each subgroup, on the rows that all methods of the task predict.

    Args:
        predictions: PredictionTable; probabilities may be null (refused), which is counted and left out.
        labels: LabelTable that holds a row for every prediction; it may hold more.
        curves: CURVE_SCHEMA rows; a method that has them gets `integrated_brier` too.
        groups: `task`, `subject_id`, `prediction_time`, `subgroup`, `level` (`subgroups.subgroup_levels`); weights for censoring are estimated within
            each level. A level of fewer than 11 people, or fewer than 11 with the outcome or 11 without it, is not shown: a row
            `levels_withheld` of its subgroup counts such levels (its `subjects` and `positives` are 0: they are not told). Nor is one that differs
            by so few people from a level of another subgroup, nor the next smallest, as long as there is one such level or all of them together are
            so small: else subtraction would tell (`disclosure`).
        replicates, seed: of the bootstrap by patient (95% percentile intervals; centred for the calibration error, which grows with noise);
            subgroups have at most GROUP_REPLICATES.
        bins: of the calibration error, of equal mass.
        weighted: weight for censoring; False leaves censored rows out and does no more.

    Returns:
        METRIC_SCHEMA rows: the metrics of `METRICS` (value null where not defined, such as AUROC with one class), then `rows`
        (compared), `censored`, `refused` and `unshared` (left out, see `rows.LEFT_OUT`). `subjects` and `positives` are of the rows compared.

    Raises:
        MismatchError: the tables do not belong together; the methods of a task have no row in common; some rows of a method have a curve and others
            none; a row has two levels in one subgroup.
    """
    parts = [pl.DataFrame(schema=METRIC_DTYPES)]
    if groups is not None:
        groups = check_groups(groups)
    for task, methods in _by_task(predictions, labels):
        settings = {"seed": seed, "bins": bins}
        shown = _levels(methods, groups, bins=bins) if groups is not None else {}
        for method, group in methods.items():
            incidence = None if curves is None else with_curves(group, curves.filter((pl.col("task") == task) & (pl.col("method") == method)))
            named = {"task": task, "method": method}
            parts.append(_rows(named, group, incidence, weighted=weighted, replicates=replicates, **settings))
            if groups is not None:
                few = min(replicates, GROUP_REPLICATES)
                parts += _subgroup_rows(named, group, incidence, groups, shown, weighted=weighted, replicates=few, **settings)
    return pl.concat(parts)


def _by_task(predictions: pl.DataFrame, labels: pl.DataFrame) -> Iterator[tuple[str, dict[str, pl.DataFrame]]]:
    """task -> method -> joined rows that know what is shared, in the order of their keys."""
    tasks: dict[str, dict[str, pl.DataFrame]] = {}
    for task, method, group in by_method(share(join_labels(predictions, labels))):
        tasks.setdefault(task, {})[method] = group.sort(KEY)
    yield from tasks.items()


def _levels(methods: dict[str, pl.DataFrame], groups: pl.DataFrame, *, bins: int) -> dict[str, list[str]]:
    """subgroup -> its levels that may be shown."""
    judged = {
        method: rows for method, rows in ((method, Judged.of(group, weighted=False)) for method, group in methods.items()) if rows.counts["rows"]
    }
    return {subgroup: list(levels) for subgroup, levels in Disclosure(judged, groups, bins=bins).levels.items()} if judged else {}


def by_method(joined: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """task, method and rows, in the order in which they come."""
    for (task, method), group in joined.group_by("task", "method", maintain_order=True):
        yield str(task), str(method), group


def _statistics(rows: Judged, bins: int) -> dict[str, Callable]:
    truth, p, lp, unbounded = rows.truth, rows.probability, rows.logit, calibration.logit(rows.probability, clip=0.0)
    return {
        "auroc": lambda w: discrimination.auroc(truth, p, w),
        "auprc": lambda w: discrimination.auprc(truth, p, w),
        "brier": lambda w: calibration.brier(truth, p, w),
        "calibration_slope": lambda w: calibration.slope(truth, lp, w),
        "calibration_intercept": lambda w: calibration.intercept(truth, unbounded, w),
        "ece": lambda w: calibration.ece(truth, p, w, bins=bins),
        "prevalence": lambda w: calibration.prevalence(truth, w),
        "mean_predicted": lambda w: calibration.prevalence(p, w),
    }


def _subgroup_rows(
    named: dict[str, str],
    group: pl.DataFrame,
    incidence: Incidence | None,
    groups: pl.DataFrame,
    shown: dict[str, list[str]],
    *,
    weighted: bool,
    **settings: int,
) -> Iterator[pl.DataFrame]:
    """Metric rows of the levels that may be shown, then how many may not, subgroup by subgroup."""
    placed = group.with_row_index("_place").join(groups, on=list(KEY), how="inner", maintain_order="left")
    counted = {name: Told(group["subject_id"]) for name in LEFT_OUT}
    for subgroup in groups["subgroup"].unique(maintain_order=True).to_list():
        mine = placed.filter(pl.col("subgroup") == subgroup)
        levels = {level: mine.filter(pl.col("level") == level) for level in mine["level"].unique().sort().to_list()}
        few, told = _few(group, levels, counted), [level for level in levels if level in shown.get(subgroup, [])]
        for level in told:
            rows = levels[level]
            part = None if incidence is None else (incidence[0], incidence[1][rows["_place"].to_numpy()])
            found = _rows(named | {"subgroup": subgroup, "level": level}, rows, part, weighted=weighted, **settings)
            yield found.with_columns(pl.when(~pl.col("metric").is_in(few)).then("value").alias("value"))
        if withheld := len(levels) - len(told):
            yield _table(named | {"subgroup": subgroup}, {WITHHELD: (float(withheld), np.nan, np.nan)}, 0, 0)


def _few(group: pl.DataFrame, levels: dict[str, pl.DataFrame], counted: dict[str, Told]) -> list[str]:
    """Which counts of rows that are left out are of few people in some level, in none, or but for what another subgroup tells, and so are told of no
    level: the rest would tell them by subtraction. What is told is added to `counted`."""
    few = []
    for name, which in LEFT_OUT.items():
        left = group.select(which).to_series().to_numpy()
        parts = []
        for rows in levels.values():
            part = np.zeros(group.height, dtype=bool)
            part[rows["_place"].to_numpy()] = True
            parts.append(part & left)
        nowhere = left & ~np.logical_or.reduce([*parts, np.zeros_like(left)])
        people = [np.unique(group["subject_id"].to_numpy()[part]).size for part in (*parts, nowhere)]
        if any(0 < count < s.SMALL_CELL for count in people) or not all(counted[name].may(part) for part in parts if part.any()):
            few.append(name)
        else:
            for part in parts:
                counted[name].add(part)
    return few


def _rows(
    named: dict[str, str], group: pl.DataFrame, incidence: Incidence | None, *, replicates: int, seed: int, bins: int, weighted: bool
) -> pl.DataFrame:
    rows = Judged.of(group, weighted=weighted)
    found: _Found = dict.fromkeys(METRICS, (np.nan, np.nan, np.nan))
    if rows.counts["rows"]:
        found |= bootstrap(_statistics(rows, bins), rows.subject_id, weights=rows.weight, replicates=replicates, seed=seed, noisy=("ece",))
        asked = group[SHARED].to_numpy()
        seen = group.filter(asked)  # those lost from sight included
        follow = ended(seen, weighted=weighted)
        times: dict[str, Callable] = {}
        if not seen.filter(pl.col("label") & pl.col("time_to_event_days").is_null()).height:  # labels from elsewhere may not say when
            times["c_index"] = Concordance(follow, seen["predicted_boolean_probability"].to_numpy())
            if incidence is not None:
                times["integrated_brier"] = IntegratedBrier(follow, incidence[0], incidence[1][asked])
        found |= bootstrap(times, seen["subject_id"].to_numpy(), replicates=replicates, seed=seed)
    found |= {name: (float(count), np.nan, np.nan) for name, count in rows.counts.items()}
    return _table(named, found, rows.subjects[0], int(rows.truth.sum()))


def _table(named: dict[str, str], found: _Found, subjects: int, positives: int) -> pl.DataFrame:
    every = {
        "metric": list(found),
        "value": [value for value, _, _ in found.values()],
        "lower": [lower for _, lower, _ in found.values()],
        "upper": [upper for _, _, upper in found.values()],
    }
    same = {"subgroup": None, "level": None, "subjects": subjects, "positives": positives, **named}
    columns = every | {name: [value] * len(found) for name, value in same.items()}
    table = pl.DataFrame({name: columns[name] for name in METRIC_DTYPES}, schema=METRIC_DTYPES)
    return table.with_columns(pl.col("value", "lower", "upper").fill_nan(None))


Incidence = tuple[Array, Array]
"""Days of a grid, float64[m], and the cumulative incidence of each row of a group by then, float64[rows, m] (NaN where it was refused)."""


def with_curves(group: pl.DataFrame, curves: pl.DataFrame) -> Incidence | None:
    """The curves of one task and method in the order of its rows; None where it has none.

    Points after the close of the labels' window are left out. Rows that do not share their days are read at 50 times, by straight lines
    between their points and from (0, 0), the last value holding on.

    Raises:
        MismatchError: a predicted row has no curve.
        SchemaError: `curves` is no table of curves.
    """
    s.check_columns(curves.to_arrow(), s.CURVE_SCHEMA, where="curves", optional=("std_error", "competing_incidence"))
    if curves.is_empty():
        return None
    points = curves.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")), pl.col("days").cast(pl.Float64)).filter(pl.col("days") > 0)
    lists = points.sort("days").group_by(KEY).agg("days", "cumulative_incidence")
    placed = group.select(*KEY, "end_reason", "time_to_event_days").join(lists, on=list(KEY), how="left", maintain_order="left")
    bare = int((placed["days"].is_null() & group["predicted_boolean_probability"].is_not_null()).sum())
    if bare:
        raise MismatchError(f"curves: {bare} of {group.height} predictions of {group['method'][0]} have none; expected one for each, or for none")
    there = placed.filter(pl.col("days").is_not_null())
    if there.is_empty():
        return None
    close = _close(placed)
    grids = there["days"].unique()
    days = grids[0].to_numpy() if grids.len() == 1 else np.linspace(0, close, _GRID + 1)[1:]
    days = days[days <= close * (1 + 1e-6)]
    if not days.size:
        return None
    read = [
        np.full(days.size, np.nan) if x is None else np.interp(days, [0.0, *x], [0.0, *y])
        for x, y in zip(placed["days"].to_list(), placed["cumulative_incidence"].to_list(), strict=True)
    ]
    return days, np.array(read)


def _close(rows: pl.DataFrame) -> float:
    """The longest that labels look ahead, days."""
    closed = rows.filter(pl.col("end_reason") == "horizon")
    return float((closed if closed.height else rows)["time_to_event_days"].cast(pl.Float64).max() or 0.0)  # type: ignore[arg-type]


def calibration_table(
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    groups: pl.DataFrame | None = None,
    bins: int = 10,
    replicates: int = 1000,
    seed: int = 0,
    weighted: bool = True,
) -> pl.DataFrame:
    """`task`, `method`, and what `calibration.calibration_curve` says of each bin of equal mass, of the rows that `evaluate_predictions` compares.

    Of a bin of fewer than 11 people only `predicted` is told, the rest is null, and so of one that, or an edge of which, parts from those of the
    task's other methods, or from a level of `groups` that is shown, by so few; nor do the next smallest say more, as long as there is one such bin or
    all of them together are so small: else subtraction would tell (`disclosure`).
    """
    figures = ("predicted", "observed", "lower", "upper", "rows", "subjects")
    types: dict[str, pl.DataType] = {"task": pl.String(), "method": pl.String(), **dict.fromkeys(figures, pl.Float64())}
    parts: list[dict[str, str | float | None]] = []
    groups = None if groups is None else check_groups(groups)
    for task, judged in _judged(predictions, labels, weighted=weighted):
        told = Disclosure(judged, groups, bins=bins).bins
        for method, rows in judged.items():
            curve = calibration.calibration_curve(
                rows.truth, rows.probability, rows.weight, bins=bins, subject_id=rows.subject_id, replicates=replicates, seed=seed
            )
            for point, fine in zip(curve, told[method], strict=True):
                values = {name: value if fine or name == "predicted" else None for name, value in point.items()}
                parts.append({"task": task, "method": method, **values})
    return pl.DataFrame(parts, schema=types).with_columns(pl.col("rows", "subjects").cast(pl.Int64))


def _judged(predictions: pl.DataFrame, labels: pl.DataFrame, *, weighted: bool) -> Iterator[tuple[str, dict[str, Judged]]]:
    """task -> method -> its rows, where there are any."""
    for task, methods in _by_task(predictions, labels):
        judged = {method: Judged.of(group, weighted=weighted) for method, group in methods.items()}
        if there := {method: rows for method, rows in judged.items() if rows.counts["rows"]}:
            yield task, there


def net_benefit_table(
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    groups: pl.DataFrame | None = None,
    bins: int = 10,
    replicates: int = 1000,
    seed: int = 0,
    weighted: bool = True,
) -> pl.DataFrame:
    """`task`, `method`, `threshold`, `net_benefit` with its 95% limits by patient (`lower`, `upper`), and that of treating everybody (`treat_all`).

    That of treating nobody is 0. A net benefit is null where the treated differ by 1 to 10 people from others of whom something is told: the treated
    at other thresholds and by other methods, the calibration table's `bins`, the levels of `groups` (`disclosure`).
    """
    types = {"task": pl.String()} | {"method": pl.String()} | dict.fromkeys(("threshold", "net_benefit", "lower", "upper", "treat_all"), pl.Float64())
    parts = [pl.DataFrame(schema=types)]
    groups = None if groups is None else check_groups(groups)
    for task, judged in _judged(predictions, labels, weighted=weighted):
        thresholds = Disclosure(judged, groups, bins=bins).thresholds
        for method, rows in judged.items():

            def worth(every: Array, rows: Judged = rows) -> Array:
                return net_benefit(rows.truth, rows.probability, THRESHOLDS, every)

            value, lower, upper = bootstrap_curve(worth, rows.subject_id, weights=rows.weight, replicates=replicates, seed=seed)
            everybody = treat_all(rows.truth, THRESHOLDS, rows.weight)[0]
            named = {"net_benefit": value, "lower": lower, "upper": upper}
            curve = {name: np.where(thresholds[method], values, np.nan) for name, values in named.items()}
            table = pl.DataFrame({"threshold": THRESHOLDS, **curve, "treat_all": everybody})
            parts.append(table.select(pl.lit(task).alias("task"), pl.lit(method).alias("method"), pl.all().fill_nan(None)))
    return pl.concat(parts)

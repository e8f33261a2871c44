"""Predictions against labels: tidy metric rows with intervals by patient.

Labels that are null (censored) have no outcome to compare with. They are counted, and the rows that remain are weighted by the inverse
of their chance of having been observed (Kaplan-Meier on the follow-up that the labels carry), AUROC, Brier score and calibration
included; without that, metrics describe the patients who happen to be followed for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import MismatchError
from cehrxgpt.evaluate import calibration, discrimination
from cehrxgpt.evaluate.bootstrap import bootstrap, bootstrap_curve
from cehrxgpt.evaluate.net_benefit import THRESHOLDS, net_benefit, tellable, treat_all
from cehrxgpt.evaluate.rows import KEY, LEFT_OUT, Array, Judged, Mask, follow_up, join_labels
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
_Part = TypeVar("_Part")
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
    """Metric rows of every (task, method), of everybody and of each subgroup.

    Args:
        predictions: PredictionTable; probabilities may be null (refused), which is counted and left out.
        labels: LabelTable that holds a row for every prediction; it may hold more.
        curves: CURVE_SCHEMA rows; a method that has them gets `integrated_brier` too.
        groups: `task`, `subject_id`, `prediction_time`, `subgroup`, `level` (`subgroups.subgroup_levels`); weights for censoring are estimated within
            each level. A level of fewer than 11 people, or fewer than 11 with the outcome or 11 without it, is not shown: a row
            `levels_withheld` of its subgroup counts such levels (its `subjects` and `positives` are 0: they are not told). Nor are the next smallest,
            as long as there is one such level or all of them together are so small: else subtraction would tell.
        replicates, seed: of the bootstrap by patient (95% percentile intervals; centred for the calibration error, which grows with noise);
            subgroups have at most GROUP_REPLICATES.
        bins: of the calibration error, of equal mass.
        weighted: weight for censoring; False leaves censored rows out and does no more.

    Returns:
        METRIC_SCHEMA rows: the metrics of `METRICS` (value null where not defined, such as AUROC with one class), then `rows`
        (compared), `censored` and `refused` (left out). `subjects` and `positives` count the rows that were compared.

    Raises:
        MismatchError: the tables do not belong together; some rows of a method have a curve and others none.
    """
    parts = [pl.DataFrame(schema=METRIC_DTYPES)]
    for task, method, group in by_method(join_labels(predictions, labels)):
        incidence = None if curves is None else with_curves(group, curves.filter((pl.col("task") == task) & (pl.col("method") == method)))
        named = {"task": task, "method": method}
        parts.append(_rows(named, group, incidence, replicates=replicates, seed=seed, bins=bins, weighted=weighted))
        if groups is not None:
            few = min(replicates, GROUP_REPLICATES)
            parts += _subgroup_rows(named, group, incidence, groups, replicates=few, seed=seed, bins=bins, weighted=weighted)
    return pl.concat(parts)


def by_method(joined: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """task, method and rows, in the order in which they come."""
    for (task, method), group in joined.group_by("task", "method", maintain_order=True):
        yield str(task), str(method), group


def _statistics(rows: Judged, bins: int) -> dict[str, Callable]:
    truth, p, lp = rows.truth, rows.probability, rows.logit
    return {
        "auroc": lambda w: discrimination.auroc(truth, p, w),
        "auprc": lambda w: discrimination.auprc(truth, p, w),
        "brier": lambda w: calibration.brier(truth, p, w),
        "calibration_slope": lambda w: calibration.slope(truth, lp, w),
        "calibration_intercept": lambda w: calibration.intercept(truth, lp, w),
        "ece": lambda w: calibration.ece(truth, p, w, bins=bins),
        "prevalence": lambda w: calibration.prevalence(truth, w),
        "mean_predicted": lambda w: calibration.prevalence(p, w),
    }


def _subgroup_rows(
    named: dict[str, str], group: pl.DataFrame, incidence: Incidence | None, groups: pl.DataFrame, *, weighted: bool, **settings: int
) -> Iterator[pl.DataFrame]:
    """Metric rows of the levels that may be shown, then how many may not, subgroup by subgroup."""
    placed = group.with_row_index("_place").join(groups, on=list(KEY), how="inner", maintain_order="left")
    for subgroup in groups["subgroup"].unique(maintain_order=True).to_list():
        mine = placed.filter(pl.col("subgroup") == subgroup)
        levels = {level: mine.filter(pl.col("level") == level) for level in mine["level"].unique().sort().to_list()}
        withheld, few = _withheld(levels), _few(levels)
        for level, rows in levels.items():
            if level in withheld:
                continue
            part = None if incidence is None else (incidence[0], incidence[1][rows["_place"].to_numpy()])
            found = _rows(named | {"subgroup": subgroup, "level": level}, rows, part, weighted=weighted, **settings)
            yield found.with_columns(pl.when(~pl.col("metric").is_in(few)).then("value").alias("value"))
        if withheld:
            yield _table(named | {"subgroup": subgroup}, {WITHHELD: (float(len(withheld)), np.nan, np.nan)}, 0, 0)


def _withheld(levels: dict[str, pl.DataFrame]) -> list[str]:
    """Levels that are not shown: the small ones, and the next smallest until what everybody has more than those shown is not small either."""
    people = {level: Judged.of(rows, weighted=False).subjects for level, rows in levels.items()}
    withheld = [level for level, counts in people.items() if min(counts) < s.SMALL_CELL]
    rest = sorted((level for level in levels if level not in withheld), key=lambda level: people[level])
    return _hidden(withheld, rest, lambda those: min(Judged.of(pl.concat([levels[level] for level in those]), weighted=False).subjects))


def _few(levels: dict[str, pl.DataFrame]) -> list[str]:
    """Which counts of rows that are left out are of few people in some level, and so are told of none: the rest would tell them by subtraction."""
    people = {name: [rows.filter(which)["subject_id"].n_unique() for rows in levels.values()] for name, which in LEFT_OUT.items()}
    return [name for name, counts in people.items() if any(0 < count < s.SMALL_CELL for count in counts)]


def _hidden(small: list[_Part], rest: list[_Part], people: Callable[[list[_Part]], float]) -> list[_Part]:
    """The small parts of what is known whole, and of the `rest`, smallest first, as many as it takes: one part alone, or parts that together have
    few `people`, would be told by subtraction."""
    hidden, rest = list(small), list(rest)
    while rest and hidden and (len(hidden) == 1 or people(hidden) < s.SMALL_CELL):
        hidden.append(rest.pop(0))
    return hidden


def _rows(
    named: dict[str, str], group: pl.DataFrame, incidence: Incidence | None, *, replicates: int, seed: int, bins: int, weighted: bool
) -> pl.DataFrame:
    rows = Judged.of(group, weighted=weighted)
    found: _Found = dict.fromkeys(METRICS, (np.nan, np.nan, np.nan))
    if rows.counts["rows"]:
        found |= bootstrap(_statistics(rows, bins), rows.subject_id, weights=rows.weight, replicates=replicates, seed=seed, noisy=("ece",))
        seen, follow = follow_up(group, weighted=weighted)
        times: dict[str, Callable] = {}
        if not seen.filter(pl.col("label") & pl.col("time_to_event_days").is_null()).height:  # labels from elsewhere may not say when
            times["c_index"] = Concordance(follow, seen["predicted_boolean_probability"].to_numpy())
            if incidence is not None:
                times["integrated_brier"] = IntegratedBrier(follow, incidence[0], incidence[1][_predicted(group)])
        found |= bootstrap(times, seen["subject_id"].to_numpy(), replicates=replicates, seed=seed)
    found |= {name: (float(count), np.nan, np.nan) for name, count in rows.counts.items()}
    return _table(named, found, rows.subjects[0], int(rows.truth.sum()))


def _predicted(group: pl.DataFrame) -> np.ndarray:
    return group["predicted_boolean_probability"].is_not_null().to_numpy()


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
    bare = int((placed["days"].is_null() & pl.Series(_predicted(group))).sum())
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
    predictions: pl.DataFrame, labels: pl.DataFrame, *, bins: int = 10, replicates: int = 1000, seed: int = 0, weighted: bool = True
) -> pl.DataFrame:
    """`task`, `method`, and what `calibration.calibration_curve` says of each bin of equal mass.

    Of a bin of fewer than 11 people only `predicted` is told, the rest is null, and so of one that, or an edge of which, parts from those of the
    task's other methods by so few; nor do the next smallest say more, as long as there is one such bin or all of them together are so small: else
    subtraction would tell.
    """
    figures = ("predicted", "observed", "lower", "upper", "rows", "subjects")
    types: dict[str, pl.DataType] = {"task": pl.String(), "method": pl.String(), **dict.fromkeys(figures, pl.Float64())}
    parts: list[dict[str, str | float | None]] = []
    for task, judged in _judged(predictions, labels, weighted=weighted).items():
        person, places = _common_rows(list(judged.values()))
        known = [np.zeros(person.size, dtype=bool), *(_members(place, person.size) for place in places)]
        for (method, rows), place in zip(judged.items(), places, strict=True):
            curve = calibration.calibration_curve(
                rows.truth, rows.probability, rows.weight, bins=bins, subject_id=rows.subject_id, replicates=replicates, seed=seed
            )
            number = calibration.bins_of(rows.probability, bins=bins)
            members = [_members(place[number == one], person.size) for one in np.unique(number)]
            parts += [{"task": task, "method": method, **point} for point in _told(curve, members, known, person)]
    return pl.DataFrame(parts, schema=types).with_columns(pl.col("rows", "subjects").cast(pl.Int64))


def _told(curve: list[dict[str, float]], members: list[Mask], known: list[Mask], person: npt.NDArray[np.int64]) -> list[dict[str, float | None]]:
    """The bins, without what small ones have observed, and those that differ by few people from what is `known` already: of these sets of rows the
    outcomes have been told. What is told here is added to them.

    Args:
        curve: of one method.
        members: of each bin, bool[n].
        known: bool[n] each.
        person: int64[n].
    """
    below = list(np.logical_or.accumulate(np.array(members))) if members else []
    apart = tellable([*members, *below], known, person, s.SMALL_CELL, add=False)
    fine, edge = apart[: len(members)], np.concatenate([[True], apart[len(members) :]])
    fine &= np.array([point["subjects"] >= s.SMALL_CELL for point in curve], dtype=bool)
    small = [index for index in range(len(curve)) if not (fine[index] and edge[index] and edge[index + 1])]
    rest = sorted((index for index in range(len(curve)) if index not in small), key=lambda index: curve[index]["subjects"])
    hidden = set(_hidden(small, rest, lambda those: sum(curve[index]["subjects"] for index in those)))
    known += [one for index, one in enumerate(members) if index not in hidden]
    known += [one for index, one in enumerate(below) if not {index, index + 1} <= hidden]
    return [{name: None if index in hidden and name != "predicted" else value for name, value in point.items()} for index, point in enumerate(curve)]


def _judged(predictions: pl.DataFrame, labels: pl.DataFrame, *, weighted: bool) -> dict[str, dict[str, Judged]]:
    """task -> method -> its rows, where there are any."""
    methods: dict[str, dict[str, Judged]] = {}
    for task, method, group in by_method(join_labels(predictions, labels)):
        rows = Judged.of(group, weighted=weighted)
        if rows.counts["rows"]:
            methods.setdefault(task, {})[method] = rows
    return methods


def _common_rows(methods: list[Judged]) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """The people of all rows that some method has, int64[n], and where the rows of each method stand among them."""
    key = ["subject_id", "prediction_time"]
    rows = pl.concat([judged.table.select(key) for judged in methods]).unique(maintain_order=True).with_row_index("_row")
    places = [judged.table.select(key).join(rows, on=key, how="left", maintain_order="left")["_row"].to_numpy() for judged in methods]
    return rows["subject_id"].to_numpy(), places


def _members(places: npt.NDArray[np.int64], rows: int) -> Mask:
    """These places of so many rows, bool[rows]."""
    found = np.zeros(rows, dtype=bool)
    found[places] = True
    return found


def net_benefit_table(
    predictions: pl.DataFrame, labels: pl.DataFrame, *, replicates: int = 1000, seed: int = 0, weighted: bool = True
) -> pl.DataFrame:
    """`task`, `method`, `threshold`, `net_benefit` with its 95% limits by patient (`lower`, `upper`), and that of treating everybody (`treat_all`).

    That of treating nobody is 0. A net benefit is null where it and another that is told, of the task's other methods too, are of treating groups
    that differ by 1 to 10 people (nobody and everybody are such groups): what it says of these few could be worked out.
    """
    types = {"task": pl.String()} | {"method": pl.String()} | dict.fromkeys(("threshold", "net_benefit", "lower", "upper", "treat_all"), pl.Float64())
    parts = [pl.DataFrame(schema=types)]
    for task, judged in _judged(predictions, labels, weighted=weighted).items():
        for (method, rows), told in zip(judged.items(), _tellable(list(judged.values())), strict=True):

            def worth(every: Array, rows: Judged = rows) -> Array:
                return net_benefit(rows.truth, rows.probability, THRESHOLDS, every)

            value, lower, upper = bootstrap_curve(worth, rows.subject_id, weights=rows.weight, replicates=replicates, seed=seed)
            everybody = treat_all(rows.truth, THRESHOLDS, rows.weight)[0]
            curve = {name: np.where(told, values, np.nan) for name, values in (("net_benefit", value), ("lower", lower), ("upper", upper))}
            table = pl.DataFrame({"threshold": THRESHOLDS, **curve, "treat_all": everybody})
            parts.append(table.select(pl.lit(task).alias("task"), pl.lit(method).alias("method"), pl.all().fill_nan(None)))
    return pl.concat(parts)


def _tellable(methods: list[Judged]) -> Mask:
    """At which thresholds the net benefits of a task's methods may be told, bool[methods, m]; the highest of all methods come first."""
    person, places = _common_rows(methods)
    risk = np.full((len(methods), person.size), np.nan)
    for mine, place, judged in zip(risk, places, methods, strict=True):
        mine[place] = judged.probability
    asked = ~np.isnan(risk)
    treated = (mine >= threshold for threshold in reversed(THRESHOLDS) for mine in risk)
    told = tellable(treated, [*asked, np.zeros(person.size, dtype=bool)], person, s.SMALL_CELL)
    return told.reshape(len(THRESHOLDS), len(methods)).T[:, ::-1]

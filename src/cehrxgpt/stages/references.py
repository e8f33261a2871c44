"""What a model has to beat, fitted on labels of other people: the prevalence for everybody, and age with sex."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cehrxgpt import schema as s

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from cehrxgpt.events import EventDataset
    from cehrxgpt.features.baselines import Fitted

KEY = ("subject_id", "prediction_time")
_THEMSELVES = "of the very rows that are judged"


def references(
    predictions: pl.DataFrame, labels: pl.DataFrame, *, dataset: EventDataset | None, tuning: pl.DataFrame | None, seed: int = 0
) -> tuple[pl.DataFrame, list[str]]:
    """Predictions of `constant`, and with a data set of `age+sex`, but where they are among the predictions, for the rows that all methods predict.

    They are fitted on known labels of people who are not judged: of the training split, else of the tuning split, else of the tuning
    predictions. Where there are none, the constant is the prevalence of the judged rows themselves.

    Args:
        predictions: PredictionTable.
        labels: LabelTable of all its tasks, of training patients too if age and sex are to be fitted.
        dataset: the events.
        tuning: predictions of tuning patients.
        seed: of the fit.

    Returns:
        PredictionTable rows, and a line for each task that says what they were fitted on, or why one is missing.
    """
    import polars as pl

    from cehrxgpt.evaluate.rows import SHARED, share
    from cehrxgpt.features.probe import PREDICTION_DTYPES

    frames, notes = [pl.DataFrame(schema=PREDICTION_DTYPES)], []
    typed = [pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us"))]
    predicted = share(predictions).filter(SHARED).with_columns(typed)
    people = None if dataset is None else _people(dataset)
    for task in predicted["task"].unique(maintain_order=True).to_list():
        mine = predicted.filter(pl.col("task") == task)
        table = labels.filter(pl.col("task") == task).select(*KEY, "boolean_value", "time_to_event_days", "end_reason").with_columns(typed)
        table = table.join(mine.select(KEY).unique().with_columns(pl.lit(True).alias("_judged")), on=list(KEY), how="left", maintain_order="left")
        table = table.with_columns(_splits(table, dataset), _in(table, tuning, task))
        fit, lost, where = _fitted_on(table)
        known = people if where != _THEMSELVES else None
        found = _fit(table, fit, lost, known, seed=seed)
        notes += [f"{task}: no {method}: {fitted.note}" for method, fitted in found.items() if fitted.note is not None]
        made = [method for method, fitted in found.items() if fitted.note is None and method not in mine["method"].to_list()]
        frames += [_rows(table, found[method], task=task, method=method) for method in made]
        if made:
            alone = " (no age+sex: there are no labels of others)" if people is not None and known is None else ""
            others = dataset is None and where == _THEMSELVES and table["_judged"].null_count()
            hint = "; with --events, whose splits tell who is of the training data, it is fitted on others" if others else ""
            notes.append(f"{task}: {' and '.join(made)} fitted on {int(fit.sum()):,} {where}{alone}{hint}")
        judged = table.filter(pl.col("_judged") & pl.col("boolean_value").is_not_null())
        if seen := judged.filter(pl.col("_split") == s.TRAIN).height:
            notes.append(
                f"{task}: {seen:,} of {judged.height:,} judged rows are of the training split; of a model that was trained on it they are no test"
            )
    return pl.concat(frames), notes


def _people(dataset: EventDataset) -> pl.DataFrame:
    """Births and sexes, the only events that age and sex are read from."""
    import polars as pl

    wanted = (pl.col("code") == s.BIRTH) | pl.col("code").str.starts_with(s.GENDER_PREFIX)
    return pl.concat([frame.filter(wanted) for _, frame in dataset.iter_shards()])


def _splits(table: pl.DataFrame, dataset: EventDataset | None) -> pl.Series:
    """`_split` of each row; null where it is not known."""
    import polars as pl

    if dataset is None:
        return pl.Series("_split", [None] * table.height, dtype=pl.String)
    return table.join(dataset.subject_splits, on="subject_id", how="left", maintain_order="left")["split"].alias("_split")


def _in(table: pl.DataFrame, tuning: pl.DataFrame | None, task: str) -> pl.Series:
    """`_tuned`: is there a tuning prediction of each row?"""
    import polars as pl

    if tuning is None:
        return pl.Series("_tuned", [False] * table.height, dtype=pl.Boolean)
    rows = tuning.filter(pl.col("task") == task).select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
    known = rows.unique().with_columns(pl.lit(True).alias("_tuned"))
    return table.join(known, on=list(KEY), how="left", maintain_order="left")["_tuned"].fill_null(False)


def _fitted_on(table: pl.DataFrame) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], str]:
    """The rows to fit on, those beside them whose label is not known, bool[rows] each, and which they are."""
    import polars as pl

    known, judged = pl.col("boolean_value").is_not_null(), pl.col("_judged").fill_null(False)
    others = ~judged.any().over("subject_id")
    choices = {
        "training rows": pl.col("_split") == s.TRAIN,
        "tuning rows": pl.col("_split") == s.TUNING,
        "rows of the tuning predictions": pl.col("_tuned"),
    }
    for where, chosen in choices.items():
        rows, lost = _masks(table, others & chosen, known)
        if rows.any():
            return rows, lost, where
    return *_masks(table, judged, known), _THEMSELVES


def _masks(table: pl.DataFrame, chosen: pl.Expr, known: pl.Expr) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    found = table.select((chosen & known).fill_null(False).alias("fit"), (chosen & ~known).fill_null(False).alias("lost"))
    return found["fit"].to_numpy(), found["lost"].to_numpy()


def _fit(
    table: pl.DataFrame, fit: npt.NDArray[np.bool_], lost: npt.NDArray[np.bool_], people: pl.DataFrame | None, *, seed: int
) -> dict[str, Fitted]:
    import numpy as np

    from cehrxgpt.features.baselines import AGE_SEX, CONSTANT, Examples, age_and_sex, constant
    from cehrxgpt.features.counts import count_features

    outcome = table["boolean_value"].fill_null(False).to_numpy().astype(bool)
    weight = _weights(table, fit, lost)
    found = {CONSTANT: constant(outcome, fit, weight)}
    if people is not None:
        given = Examples(outcome, fit, np.zeros_like(fit), table["subject_id"].to_numpy(), weight=weight, seed=seed)
        found[AGE_SEX] = age_and_sex(count_features(people, table, fit), given)
    return found


def _weights(table: pl.DataFrame, fit: npt.NDArray[np.bool_], lost: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Of the rows `fit`, for those that are lost beside them, as all is weighted that is judged; float64[rows], 0 of others."""
    import numpy as np
    import polars as pl

    from cehrxgpt.evaluate.rows import ended

    weight = np.zeros(table.height)
    weight[fit | lost] = ended(table.filter(pl.Series(fit | lost))).weight
    return weight


def _rows(table: pl.DataFrame, fitted: Fitted, *, task: str, method: str) -> pl.DataFrame:
    """PredictionTable rows of those that are judged."""
    import polars as pl

    from cehrxgpt.features.probe import PREDICTION_DTYPES

    told = table.with_columns(
        pl.Series("predicted_boolean_probability", fitted.probability), pl.lit(task).alias("task"), pl.lit(method).alias("method")
    )
    told = told.filter("_judged").with_columns((pl.col("predicted_boolean_probability") >= 0.5).alias("predicted_boolean_value"))
    return told.select((pl.col(name) if name in told.columns else pl.lit(None).alias(name)).cast(dtype) for name, dtype in PREDICTION_DTYPES.items())

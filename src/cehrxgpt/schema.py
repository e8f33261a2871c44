"""The tables that travel between the stages: their columns, dtypes and invariants, in one place.

Every stage is `function(table, config) -> table`, and these are the tables. They are supersets of the MEDS schemas (Medical Event
Data Standard 0.4): a MEDS reader can read ours. Polars frames, Arrow tables and Parquet files all carry the same columns; this
module only knows Arrow, so that it costs nothing to import on the accelerator side.

EventTable, invariants
    1. sorted by `subject_id`, `time` (nulls, the static rows, first), rank of kind (`event_rank`), `code`;
    2. one subject lives in one shard;
    3. `available_time >= time` where both are there, and null exactly where `time` is null;
    4. every `visit_id` in use has one `Visit/...` row of that subject, unless the table is marked as lacking visits;
    5. nothing stands after `MEDS_DEATH` but `OBSERVATION//END`.

What an event's further columns mean: a stay in intensive care is one row `VisitDetail/...` from `time` to `end_time`, linked to the visit it
lies in by `visit_id`; a move to a ward is an event `visit_detail/<concept>` whose `end_time` says when it was left. A drug and a device
may have an `end_time`, a number an `operator`, any event a category in `text_value`. Nothing of free text is carried but a short
result in words.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from cehrxgpt.errors import SchemaError

# -- Codes with a meaning of their own. All others are `<table>/<concept_id>` (OMOP) or verbatim (MEDS). -------------------------
BIRTH = "MEDS_BIRTH"
DEATH = "MEDS_DEATH"
OBSERVATION_START = "OBSERVATION//START"
OBSERVATION_END = "OBSERVATION//END"
VISIT_PREFIX = "Visit/"  # Visit/<concept_id or class>: time, end_time, visit_id
ICU_PREFIX = "VisitDetail/"  # VisitDetail/<concept_id or unit>: a stay in intensive care, inside a visit; time, end_time, visit_id
DETAIL_PREFIX = "visit_detail/"  # visit_detail/<concept_id>: a move to a ward, or intensive care outside every visit: an event like others
DISCHARGE_PREFIX = "discharge/"  # discharge/<concept_id or place>: at the visit's end
ENTRY_PREFIX = "cohort/"  # cohort/index, cohort/outcome: entries of cohort tables and label files, while labels are made; no part of a record
GENDER_PREFIX = "gender/"  # static
RACE_PREFIX = "race/"  # static
ETHNICITY_PREFIX = "ethnicity/"  # static, carried but not encoded

TRAIN, TUNING, HELD_OUT = "train", "tuning", "held_out"
SPLITS = (TRAIN, TUNING, HELD_OUT)

SMALL_CELL = 11  # counts of people below it, but for none, are told to nobody
PRECISIONS = ("day", "hour", "minute", "second")  # values of `time_precision`

# Order of rows that share subject and time. A date-only death carries the last instant of its day as `time`, so it sorts last there.
RANK_STATIC, RANK_BIRTH, RANK_OBSERVATION_START, RANK_VISIT, RANK_CLINICAL, RANK_DISCHARGE, RANK_DEATH, RANK_OBSERVATION_END = range(8)


def event_rank(code: str, *, static: bool = False) -> int:
    """Rank of kind of one event; the vectorised twin is `events.rank_expression`."""
    if static:
        return RANK_STATIC
    if code == BIRTH:
        return RANK_BIRTH
    if code == OBSERVATION_START:
        return RANK_OBSERVATION_START
    if code.startswith(VISIT_PREFIX):
        return RANK_VISIT
    if code.startswith(DISCHARGE_PREFIX):
        return RANK_DISCHARGE
    if code == DEATH:
        return RANK_DEATH
    if code == OBSERVATION_END:
        return RANK_OBSERVATION_END
    return RANK_CLINICAL


_TIME = pa.timestamp("us")


def _field(name: str, dtype: pa.DataType, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, dtype, nullable=nullable)


EVENT_SCHEMA = pa.schema(
    [
        _field("subject_id", pa.int64(), nullable=False),
        _field("time", _TIME),  # null = static
        _field("code", pa.large_string(), nullable=False),
        _field("numeric_value", pa.float32()),
        _field("text_value", pa.large_string()),  # a category: OMOP value_as_concept_id in digits, MEDS verbatim
        _field("unit", pa.large_string()),  # OMOP unit_concept_id in digits (else the source unit), MEDS verbatim
        _field("operator", pa.large_string()),  # "<", "<=", ">=", ">"; null means "="
        _field("end_time", _TIME),  # of a visit, of a stay in intensive care or on a ward; of a drug, of a device
        _field("available_time", _TIME),  # when the record could know it (null = static)
        _field("time_precision", pa.large_string()),  # one of PRECISIONS
        _field("visit_id", pa.int64()),
        _field("origin", pa.large_string()),  # the table it came from: "condition_occurrence", "measurement", ...
    ]
)
"""EventTable. The first five columns are MEDS; the rest are ours."""

LABEL_SCHEMA = pa.schema(
    [
        _field("subject_id", pa.int64(), nullable=False),
        _field("prediction_time", _TIME, nullable=False),
        _field("boolean_value", pa.bool_()),  # null = censored before the outcome could be known
        _field("task", pa.large_string(), nullable=False),
        _field("time_to_event_days", pa.float64()),  # to the outcome, else to the end of follow-up; to the microsecond
        _field("observed", pa.bool_(), nullable=False),  # was the outcome seen within the window?
        _field("end_reason", pa.large_string(), nullable=False),  # one of END_REASONS
    ]
)
"""LabelTable; key (task, subject_id, prediction_time)."""

END_REASONS = ("outcome", "death", "competing", "horizon", "censored")

TRAJECTORY_SCHEMA = pa.schema([*EVENT_SCHEMA, _field("prediction_time", _TIME, nullable=False), _field("sample_id", pa.int32(), nullable=False)])
"""Simulated futures as events; key (subject_id, prediction_time, sample_id)."""

SAMPLE_SCHEMA = pa.schema(
    [
        _field("subject_id", pa.int64(), nullable=False),
        _field("prediction_time", _TIME, nullable=False),
        _field("sample_id", pa.int32(), nullable=False),
        _field("tokens", pa.int32(), nullable=False),  # generated
        _field("stop_reason", pa.large_string(), nullable=False),  # one of STOP_REASONS
        _field("end_time", _TIME, nullable=False),  # how far the future was simulated
        _field("log_probability", pa.float64(), nullable=False),
        _field("seed", pa.int64(), nullable=False),
    ]
)
"""One row per simulated future, whether or not it holds an event."""

STOP_REASONS = ("end", "death", "outcome", "horizon", "budget")

PREDICTION_SCHEMA = pa.schema(
    [
        _field("subject_id", pa.int64(), nullable=False),
        _field("prediction_time", _TIME, nullable=False),
        _field("boolean_value", pa.bool_()),
        _field("predicted_boolean_value", pa.bool_()),
        _field("predicted_boolean_probability", pa.float64()),  # null = refused, see `note`
        _field("task", pa.large_string(), nullable=False),
        _field("method", pa.large_string(), nullable=False),
        _field("std_error", pa.float64()),
        _field("num_samples", pa.int32()),
        _field("completion", pa.float64()),  # share of futures whose answer is known; null where none are drawn
        _field(
            "lower_bound", pa.float64()
        ),  # risk if every unfinished future were free of the outcome; of the head: the least, however its events hang together
        _field("upper_bound", pa.float64()),  # risk if every unfinished future had it; of the head: the greatest
        _field("note", pa.large_string()),  # why there is no prediction, or none to rely on
    ]
)
"""PredictionTable: the MEDS prediction schema plus how sure we are."""

CURVE_SCHEMA = pa.schema(
    [
        _field("subject_id", pa.int64(), nullable=False),
        _field("prediction_time", _TIME, nullable=False),
        _field("task", pa.large_string(), nullable=False),
        _field("method", pa.large_string(), nullable=False),
        _field("days", pa.float32(), nullable=False),  # after the prediction time
        _field("cumulative_incidence", pa.float64(), nullable=False),  # chance of the outcome by then, competing events counted
        _field("std_error", pa.float64()),
        _field("competing_incidence", pa.float64()),  # chance of death, or of another competing event, before the outcome and by then
    ]
)
"""Cumulative-incidence curves, one row per point of the grid; beside predictions `<name>.parquet` as `<name>.curves.parquet`."""

EMBEDDING_SCHEMA = pa.schema(
    [
        _field("subject_id", pa.int64(), nullable=False),
        _field("prediction_time", _TIME, nullable=False),
        _field("embedding", pa.list_(pa.float32()), nullable=False),
        _field("unknown_share", pa.float32(), nullable=False),  # share of the history's events the vocabulary lacks
        _field("note", pa.large_string()),
    ]
)

METRIC_SCHEMA = pa.schema(
    [
        _field("task", pa.large_string(), nullable=False),
        _field("method", pa.large_string(), nullable=False),
        _field("metric", pa.large_string(), nullable=False),
        _field("value", pa.float64()),
        _field("lower", pa.float64()),  # 95% interval, bootstrap by patient
        _field("upper", pa.float64()),
        _field("subjects", pa.int64(), nullable=False),
        _field("positives", pa.int64(), nullable=False),
        _field("subgroup", pa.large_string()),  # what people are grouped by: "age", "sex", ...; null = everybody
        _field("level", pa.large_string()),  # which of its groups
    ]
)
"""Tidy metric rows, as every evaluator returns them."""


def _family(dtype: pa.DataType) -> str:
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "string"
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return f"list<{_family(dtype.value_type)}>"
    if pa.types.is_dictionary(dtype):
        return _family(dtype.value_type)
    return str(dtype)


def check_columns(table: pa.Table | pa.Schema, schema: pa.Schema, *, where: str, optional: Iterable[str] = ()) -> None:
    """Raise `SchemaError` unless `table` has the columns of `schema` with their types (extra columns are allowed).

    `string`, `large_string` and dictionaries of them count as one type, as do `list` and `large_list`. Null values in
    non-nullable columns are an error when a table (not a bare schema) is given.
    """
    names = set((table if isinstance(table, pa.Schema) else table.schema).names)
    skipped = set(optional)
    for field in schema:
        if field.name not in names:
            if field.name in skipped:
                continue
            raise SchemaError(
                f"{where}: column '{field.name}' is missing; expected {_family(field.type)} (columns there: {', '.join(sorted(names))})"
            )
        actual = (table if isinstance(table, pa.Schema) else table.schema).field(field.name).type
        if _family(actual) != _family(field.type):
            raise SchemaError(f"{where}: column '{field.name}' is {actual}; expected {_family(field.type)}")
        if not field.nullable and isinstance(table, pa.Table) and table.column(field.name).null_count:
            raise SchemaError(f"{where}: column '{field.name}' holds {table.column(field.name).null_count} nulls; none are allowed")

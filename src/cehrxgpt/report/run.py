"""A finished run as a folder of things that may be there: read what is, remember what is not.

Nothing here fails because a file is absent; a file that is there but cannot be read, or lacks a column, is left out and named in
`problems`, which the page prints. Events are only ever scanned (Polars lazy frames) and aggregated; they are never held whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.report.suppress import Teller

TRUE_RISK = "true risk"
KEY = ["subject_id", "prediction_time"]

EVENT_COLUMNS: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "unit": pl.String(),
    "operator": pl.String(),
    "end_time": pl.Datetime("us"),
    "available_time": pl.Datetime("us"),
    "time_precision": pl.String(),
    "visit_id": pl.Int64(),
    "origin": pl.String(),
}
"""The columns of an EventTable that the report looks at; absent ones read as null (a plain MEDS shard has only the first five)."""


class RunFolder:
    """Lazy access to a run's artefacts; every reader returns None (or something empty) for what is not there."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: list[str] = []

    # -- files --------------------------------------------------------------------------------------------------------------------

    def json(self, relative: str) -> dict[str, Any] | None:
        """A JSON object, or None."""
        path = self.root / relative
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            self._problem(f"{relative} is not readable JSON")
            return None
        if not isinstance(value, dict):
            self._problem(f"{relative} holds no JSON object")
            return None
        return value

    def json_rows(self, relative: str) -> list[dict[str, Any]]:
        """A JSON list of objects (attrition); a mapping {step: count} is read as rows too."""
        path = self.root / relative
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError):
            self._problem(f"{relative} is not readable JSON")
            return []
        if isinstance(value, dict):
            value = value.get("attrition", [{"step": key, "rows": count} for key, count in value.items()])
        return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []

    def json_lines(self, relative: str) -> list[dict[str, Any]]:
        """One JSON object per line; a torn line (a run that was killed while writing) is skipped and named."""
        path = self.root / relative
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            self._problem(f"{relative} is not readable")
            return []
        rows, torn = [], 0
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                torn += bool(line.strip())
                continue
            if isinstance(row, dict):
                rows.append(row)
        if torn:
            self._problem(f"{relative}: {torn} lines are not JSON and were skipped")
        return rows

    def parquet(self, relative: str, required: Sequence[str] = ()) -> pl.DataFrame | None:
        """A small table (predictions, metrics, labels), or None where it is absent, damaged or lacks a column."""
        path = self.root / relative
        if not path.is_file():
            return None
        try:
            frame = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError):
            self._problem(f"{relative} is not readable Parquet")
            return None
        missing = [name for name in required if name not in frame.columns]
        if missing:
            self._problem(f"{relative} has no column '{missing[0]}'")
            return None
        return frame

    def stems(self, folder: str, pattern: str = "*.parquet") -> list[str]:
        """Names of the files in a folder, without their suffix, sorted."""
        return sorted(path.stem for path in (self.root / folder).glob(pattern) if not path.name.startswith("."))

    def has(self, relative: str) -> bool:
        return (self.root / relative).exists()

    def _problem(self, message: str) -> None:
        if message not in self.problems:
            self.problems.append(message)

    @cached_property
    def simulated(self) -> bool:
        """The population is the simulator's: nobody real stands behind a row."""
        recipe = (self.json("run.json") or {}).get("recipe")
        return isinstance(recipe, dict) and recipe.get("simulate") is not None and recipe.get("source") is None

    @cached_property
    def tell(self) -> Teller:
        """How counts are told: of real people small ones are hidden and the others rounded."""
        return Teller(exact=self.simulated)

    # -- events -------------------------------------------------------------------------------------------------------------------

    def scan_events(self, folder: str = "events") -> pl.LazyFrame | None:
        """All shards of an event data set as one lazy frame with `EVENT_COLUMNS` and `split`; None where there is none.

        Shards that are not Parquet, or lack the first three columns, are left out and named.
        """
        frames = []
        for path in sorted((self.root / folder).glob("data/*/*.parquet")):
            if path.name.startswith("."):
                continue
            where = f"{folder}/data/{path.parent.name}/{path.name}"
            try:
                lazy = pl.scan_parquet(path)
                columns = lazy.collect_schema().names()
            except (pl.exceptions.PolarsError, OSError):
                self._problem(f"{where} is not readable Parquet")
                continue
            if missing := [name for name in ("subject_id", "time", "code") if name not in columns]:
                self._problem(f"{where} has no column '{missing[0]}'")
                continue
            selected = [
                pl.col(name).cast(dtype) if name in columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in EVENT_COLUMNS.items()
            ]
            frames.append(lazy.select(*selected, pl.lit(path.parent.name).alias("split")))
        return pl.concat(frames) if frames else None

    @cached_property
    def events(self) -> pl.LazyFrame | None:
        return self.scan_events("events")

    @cached_property
    def synthetic_events(self) -> pl.LazyFrame | None:
        return self.scan_events("synthetic_events")

    @cached_property
    def names(self) -> dict[str, str]:
        """code -> readable name, from the event data set and from the vocabulary."""
        found: dict[str, str] = {}
        for relative, column in (("timeline/vocabulary.parquet", "name"), ("events/metadata/codes.parquet", "description")):
            frame = self.parquet(relative)
            if frame is not None and {"code", column} <= set(frame.columns):
                found.update(spoken(frame, column))
        return found

    def name(self, code: str) -> str:
        """Readable name of a code, or the code itself."""
        return self.names.get(code) or _PLAIN.get(code, code)

    # -- predictions --------------------------------------------------------------------------------------------------------------

    @cached_property
    def tasks(self) -> list[str]:
        """Every task that has labels, predictions or metrics, sorted."""
        forecast = {name for name in self.stems("forecast") if not name.endswith(".curves")} - {"samples"}
        found = set(self.stems("labels")) | forecast
        found |= {path.name for path in (self.root / "probe").glob("*") if path.is_dir()}
        if self.metrics is not None:
            found |= set(self.metrics["task"].drop_nulls().to_list())
        return sorted(found)

    @cached_property
    def metrics(self) -> pl.DataFrame | None:
        """Metric rows of all methods: `evaluation/metrics.parquet`, else what the probes wrote."""
        frame = self.metric_table("evaluation/metrics.parquet")
        if frame is None:
            found = [self.metric_table(f"probe/{path.name}/metrics.parquet") for path in sorted((self.root / "probe").glob("*"))]
            parts = [part for part in found if part is not None]
            frame = pl.concat(parts, how="vertical_relaxed") if parts else None
        return frame

    def metric_table(self, relative: str) -> pl.DataFrame | None:
        """Metric rows of everybody, as `parquet`; those of subgroups, where a table has them, are left out."""
        names = [name for name in s.METRIC_SCHEMA.names if name not in ("subgroup", "level")]
        frame = self.parquet(relative, names)
        if frame is None:
            return None
        return (frame.filter(pl.col("subgroup").is_null()) if "subgroup" in frame.columns else frame).select(names)

    def labels(self, task: str) -> pl.DataFrame | None:
        return self.parquet(f"labels/{task}.parquet", ("subject_id", "prediction_time", "boolean_value"))

    def predictions(self, task: str) -> pl.DataFrame:
        """All methods' predictions of one task: key, `boolean_value` (null = censored), `probability`, `method`, `std_error`, bounds.

        Where there is a forecast, the other methods' rows are those that were forecast, so that curves compare like with like. The
        true risk, where a simulator left one, is joined as the method `true risk` on the rows the others predicted.
        """
        wanted: dict[str, pl.DataType] = {"subject_id": pl.Int64(), "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean()}
        wanted |= {"predicted_boolean_probability": pl.Float64(), "method": pl.String()}
        wanted |= dict.fromkeys(("std_error", "completion", "lower_bound", "upper_bound"), pl.Float64())
        needed = ("subject_id", "prediction_time", "predicted_boolean_probability", "method")
        frames = []
        for relative in (f"forecast/{task}.parquet", f"probe/{task}/predictions.parquet"):
            frame = self.parquet(relative, needed)
            if frame is not None:
                frames.append(
                    frame.select(
                        pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in wanted.items()
                    )
                )
        if len(frames) == 2 and (self.root / f"forecast/{task}.parquet").is_file():
            frames[1] = frames[1].join(frames[0].select(KEY).unique(), on=KEY, how="semi")
        both = pl.concat(frames) if frames else pl.DataFrame(schema=wanted)
        labels = self.labels(task)
        if labels is not None:
            known = labels.select(*KEY, pl.col("boolean_value").alias("_label")).unique(KEY)
            both = both.join(known, on=KEY, how="left").with_columns(pl.coalesce("boolean_value", "_label").alias("boolean_value")).drop("_label")
        truth = self._truth(task, both)
        if truth is not None:
            both = pl.concat([both, truth], how="diagonal")
        return both.rename({"predicted_boolean_probability": "probability"}).sort("method", *KEY, maintain_order=True)

    def _truth(self, task: str, predicted: pl.DataFrame) -> pl.DataFrame | None:
        truth = self.parquet(f"truth/{task}.parquet", (*KEY, "true_risk"))
        if truth is None or predicted.is_empty():
            return None
        rows = predicted.group_by(KEY).agg(pl.col("boolean_value").drop_nulls().first()).sort(KEY)
        return rows.join(truth.select(*KEY, pl.col("true_risk").cast(pl.Float64)).unique(KEY), on=KEY, how="inner").select(
            *KEY, "boolean_value", pl.col("true_risk").alias("predicted_boolean_probability"), pl.lit(TRUE_RISK).alias("method")
        )


def spoken(codes: pl.DataFrame, column: str = "description") -> dict[str, str]:
    """code -> readable name, of a table with `code` and a column of names; a place of discharge is said to be one."""
    named = codes.select(pl.col("code").cast(pl.String), pl.col(column).cast(pl.String)).drop_nulls()
    place = pl.col("code").str.starts_with(s.DISCHARGE_PREFIX) & ~pl.col(column).str.to_lowercase().str.starts_with("discharge")
    words = pl.when(place).then(pl.format("Discharged to: {}", column)).otherwise(column)
    return dict(named.select("code", words.alias(column)).iter_rows())


_PLAIN = {s.BIRTH: "Birth", s.DEATH: "Death", s.OBSERVATION_START: "Observation begins", s.OBSERVATION_END: "Observation ends"}

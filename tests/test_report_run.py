"""A run's folder made by hand (`make_run`), realistic enough to look at, and tests of how a report reads such folders."""

from __future__ import annotations

import json
import shutil
import struct
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.events import EVENT_DTYPES, sort_events
from cehrxgpt.report.run import TRUE_RISK, RunFolder, spoken

EVIL = "<script>alert('x')</script> & \"friends\""
TASKS = ("hf_readmission_30d", "t2dm_hf_365d")
NAMES = {
    "condition/316866": "Hypertensive disorder", "condition/201826": "Type 2 diabetes mellitus", "condition/316139": "Heart failure",
    "condition/317576": "Coronary arteriosclerosis", "condition/255573": "Chronic obstructive lung disease", "condition/0/odd": EVIL,
    "drug/1308216": "Lisinopril", "drug/1503297": "Metformin", "drug/1545958": "Atorvastatin", "procedure/4336464": "Coronary artery bypass graft",
    "measurement/3004410": "Hemoglobin A1c", "measurement/3016723": "Creatinine", "measurement/3004249": "Systolic blood pressure",
    "Visit/9201": "Inpatient visit", "Visit/9202": "Outpatient visit", "Visit/9203": "Emergency visit",
    "gender/8532": "Female", "gender/8507": "Male",
}  # fmt: skip
_ORIGIN = {"condition": "condition_occurrence", "drug": "drug_exposure", "procedure": "procedure_occurrence", "measurement": "measurement"}
_LABS = (("measurement/3004410", "8554", 6.8, 1.1), ("measurement/3016723", "8840", 1.1, 0.3), ("measurement/3004249", "8876", 134.0, 16.0))


def _row(subject: int, time: datetime | None, code: str, **more: object) -> dict[str, object]:
    table = code.split("/")[0]
    origin = _ORIGIN.get(table, "visit_occurrence" if table == "Visit" else None)
    return {"subject_id": subject, "time": time, "available_time": time, "code": code, "origin": origin} | more


def _visit(rng: np.random.Generator, subject: int, start: datetime, identifier: int, rows: list[dict[str, object]]) -> datetime:
    kind = rng.choice(["Visit/9202", "Visit/9202", "Visit/9202", "Visit/9203", "Visit/9201"])
    hours = {"Visit/9202": 1.0, "Visit/9203": float(rng.uniform(2, 12)), "Visit/9201": float(rng.uniform(26, 240))}[kind]
    end = start + timedelta(hours=hours)
    rows.append(_row(subject, start, kind, end_time=end, visit_id=identifier))
    codes = [code for code in NAMES if code.split("/")[0] in ("condition", "drug", "procedure")]
    weights = np.linspace(3, 0.4, len(codes))
    for code in rng.choice(codes, size=rng.integers(1, 5), p=weights / weights.sum(), replace=False):
        more = {"end_time": start + timedelta(days=int(rng.integers(7, 90)))} if code.startswith("drug") else {}
        rows.append(_row(subject, start + timedelta(minutes=int(rng.integers(0, 60))), code, visit_id=identifier, **more))
    for code, unit, middle, spread in _LABS:
        if rng.random() < 0.6:
            value = float(rng.normal(middle, spread))
            rows.append(_row(subject, start + timedelta(minutes=30), code, numeric_value=value, unit=unit, visit_id=identifier))
    return end


def make_events(subjects: int, seed: int, *, first: int = 1) -> pl.DataFrame:
    """A plausible EventTable of `subjects` people with 3 to 25 visits each."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for subject in range(first, first + subjects):
        birth = datetime(1930, 1, 1) + timedelta(days=int(rng.integers(0, 24000)))
        start = datetime(2011, 1, 1) + timedelta(days=int(rng.integers(0, 1500)))
        rows.append(_row(subject, birth, s.BIRTH))
        rows.append(_row(subject, None, "gender/8532" if rng.random() < 0.53 else "gender/8507"))
        rows.append(_row(subject, start, s.OBSERVATION_START))
        time = start
        for visit in range(rng.integers(3, 26)):
            time += timedelta(days=float(rng.gamma(1.2, 70)), hours=float(rng.uniform(8, 17)))
            time = _visit(rng, subject, time, subject * 100 + visit, rows)
        if rng.random() < 0.15:
            rows.append(_row(subject, time + timedelta(days=20), s.DEATH, origin="death"))
        rows.append(_row(subject, time + timedelta(days=400), s.OBSERVATION_END))
    return sort_events(pl.DataFrame(rows, schema=EVENT_DTYPES))


def _write(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_event_folder(folder: Path, events: pl.DataFrame) -> pl.DataFrame:
    """Shards by split (70/10/20 by id), metadata, ingest.json; returns subject_id, split."""
    split = (
        pl.when(pl.col("subject_id") % 10 < 7)
        .then(pl.lit("train"))
        .when(pl.col("subject_id") % 10 == 7)
        .then(pl.lit("tuning"))
        .otherwise(pl.lit("held_out"))
    )
    events = events.with_columns(split.alias("split"))
    for (name,), part in events.group_by("split"):
        _write(folder / "data" / str(name) / "0.parquet", part.drop("split"))
    splits = events.select("subject_id", "split").unique()
    _write(folder / "metadata/subject_splits.parquet", splits)
    _write(folder / "metadata/codes.parquet", pl.DataFrame({"code": list(NAMES), "description": list(NAMES.values())}))
    _json(folder / "metadata/dataset.json", {"cehrxgpt": {"calendar": "true", "observation_policy": "observation_period"}})
    tables = {"condition_occurrence": {"read": 41210, "kept": 41000, "dropped": {"exact_duplicate": 180, "after_death": 30}}}
    tables["measurement"] = {"read": 60000, "kept": 60000, "dropped": {}}
    _json(folder / "ingest.json", {"tables": tables, "mended": {"end_before_start": 12}, "derived": {"MEDS_BIRTH": 400}, "format": "omop"})
    return splits


def _labels(rng: np.random.Generator, events: pl.DataFrame, task: str) -> pl.DataFrame:
    stays = events.filter(pl.col("code") == "Visit/9201").group_by("subject_id").agg(pl.col("end_time").max().alias("prediction_time"))
    stays = stays.sort("subject_id")
    risk = rng.beta(3, 3, stays.height)
    drawn = rng.random(stays.height)
    value = [None if u > 0.97 else bool(rng.random() < p) for u, p in zip(drawn, risk)]
    return stays.with_columns(
        pl.Series("boolean_value", value, dtype=pl.Boolean), pl.lit(task).alias("task"), pl.Series("true_risk", risk),
        pl.lit(10.0, dtype=pl.Float32).alias("time_to_event_days"), pl.lit(True).alias("observed"), pl.lit("horizon").alias("end_reason"),
    )  # fmt: skip


def _predictions(rng: np.random.Generator, labels: pl.DataFrame, method: str, noise: float) -> pl.DataFrame:
    risk = labels["true_risk"].to_numpy()
    shown = 1 / (1 + np.exp(-(np.log(risk / (1 - risk)) * (1 - noise / 2) + rng.normal(0, noise, len(risk)) - 0.2)))
    more: dict[str, object] = {}
    if method == "monte_carlo":
        shown = np.round(shown * 16) / 16
        more = {
            "std_error": np.sqrt(shown * (1 - shown) / 16),
            "completion": 0.97,
            "lower_bound": shown * 0.98,
            "upper_bound": np.minimum(1, shown + 0.02),
            "num_samples": 16,
        }
    frame = labels.select("subject_id", "prediction_time", "boolean_value", "task").with_columns(
        pl.Series("predicted_boolean_probability", shown), pl.lit(method).alias("method")
    )
    return frame.with_columns(
        *(pl.Series(name, value) if isinstance(value, np.ndarray) else pl.lit(value).alias(name) for name, value in more.items())
    )


def _metrics(rng: np.random.Generator, task: str, methods: dict[str, float], positives: int, subjects: int) -> pl.DataFrame:
    rows = []
    for method, noise in methods.items():
        for metric, value, half in (("auroc", 0.83 - noise / 6, 0.03), ("auprc", 0.4 - noise / 8, 0.05), ("brier", 0.1 + noise / 50, 0.01)):
            rows.append({"task": task, "method": method, "metric": metric, "value": value, "lower": value - half, "upper": value + half})
        slope = float(rng.normal(1, 0.1))
        rows.append({"task": task, "method": method, "metric": "calibration_slope", "value": slope, "lower": slope - 0.2, "upper": slope + 0.2})
    return pl.DataFrame(rows).with_columns(pl.lit(subjects, dtype=pl.Int64).alias("subjects"), pl.lit(positives, dtype=pl.Int64).alias("positives"))


def _trajectories(rng: np.random.Generator, labels: pl.DataFrame, samples: int = 16) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows, ends = [], []
    for subject, at in labels.select("subject_id", "prediction_time").head(3).iter_rows():
        for sample in range(samples):
            time, made = at, []
            for visit in range(rng.integers(0, 9)):
                time += timedelta(days=float(rng.gamma(1.2, 50)), hours=9)
                time = _visit(rng, subject, time, visit, made)
            limit = at + timedelta(days=365)
            dead = rng.random() < 0.15
            stop = at + timedelta(days=float(rng.uniform(10, 364))) if dead else limit
            kept = [row for row in made if row["time"] <= stop]
            kept += [_row(subject, stop, s.DEATH)] if dead else []
            rows += [row | {"prediction_time": at, "sample_id": sample} for row in kept]
            reason = "death" if dead else "budget" if rng.random() < 0.04 else "horizon"
            ends.append(
                {
                    "subject_id": subject,
                    "prediction_time": at,
                    "sample_id": sample,
                    "tokens": int(rng.integers(5, 200)),
                    "stop_reason": reason,
                    "end_time": stop,
                }
            )
    schema = {**EVENT_DTYPES, "prediction_time": pl.Datetime("us"), "sample_id": pl.Int32()}
    frame = pl.DataFrame(ends).with_columns(pl.col("sample_id").cast(pl.Int32), pl.lit(-30.0).alias("log_probability"), pl.lit(0).alias("seed"))
    return pl.DataFrame(rows, schema=schema), frame


def _model(folder: Path, rng: np.random.Generator) -> None:
    _json(folder / "config.json", {"model_type": "cehrxgpt", "width": 192, "layers": 4, "vocabulary_fingerprint": "0123456789abcdef"})
    lines = []
    for step in range(10, 1510, 10):
        loss = {"next_token": 2.1 + 4 * np.exp(-step / 200) + rng.normal(0, 0.05)}
        speed = 9000 + rng.normal(0, 300)
        lines.append(
            json.dumps({"kind": "train", "step": step, "loss": loss, "learning_rate": 1e-3 * min(1, step / 100), "tokens_per_second": speed})
        )
        if step % 150 == 0:
            lines.append(json.dumps({"kind": "tuning", "step": step, "tuning_loss": 2.15 + 4 * np.exp(-step / 210), "best": True}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    header = json.dumps(
        {"embedding.weight": {"dtype": "F32", "shape": [500, 192], "data_offsets": [0, 384000]}, "__metadata__": {"format": "pt"}}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def make_run(root: Path, *, subjects: int = 120, seed: int = 0, first: int = 1) -> Path:
    """A whole run's folder; real subjects are numbered from `first`."""
    rng = np.random.default_rng(seed)
    events = make_events(subjects, seed, first=first)
    splits = write_event_folder(root / "events", events)
    held_out = events.join(splits.filter(pl.col("split") == "held_out"), on="subject_id", how="semi")
    write_event_folder(root / "synthetic_events", make_events(subjects, seed + 1, first=first + 10_000))
    _write(root / "synthetic/person.parquet", pl.DataFrame({"person_id": [1]}))
    metrics = []
    for task in TASKS:
        everyone = _labels(rng, events, task)
        chosen = everyone.join(held_out.select("subject_id").unique(), on="subject_id", how="semi")
        _write(root / f"labels/{task}.parquet", everyone.drop("true_risk"))
        _json(
            root / f"labels/{task}.attrition.json",
            [{"step": "index events", "subjects": 300, "rows": 420}, {"step": "history of 360 d", "subjects": 200, "rows": 260}],
        )
        _write(root / f"truth/{task}.parquet", chosen.select("subject_id", "prediction_time", "task", "true_risk", pl.lit(0.01).alias("std_error")))
        _write(root / f"forecast/{task}.parquet", _predictions(rng, chosen, "monte_carlo", 0.7))
        methods = {"probe": 0.5, "counts+lightgbm": 0.6, "counts+logistic": 0.9, "age+sex": 1.8}
        _write(root / f"probe/{task}/predictions.parquet", pl.concat([_predictions(rng, chosen, name, noise) for name, noise in methods.items()]))
        few = pl.DataFrame({"task": task, "method": "probe", "labels": [30, 100, 1000], "positives": [4, 15, 150], "auroc": [0.6, 0.66, 0.74]})
        _write(root / f"probe/{task}/few_shot.parquet", few.with_columns(lowest=pl.col("auroc") - 0.03, highest=pl.col("auroc") + 0.03))
        _write(root / f"probe/{task}/metrics.parquet", _metrics(rng, task, methods, 99, everyone.height))
        positives = int(chosen["boolean_value"].sum() or 0)
        metrics.append(_metrics(rng, task, {"monte_carlo": 0.7, **methods, TRUE_RISK: 0.0}, positives, chosen.height))
    _write(root / "evaluation/metrics.parquet", pl.concat(metrics))
    fidelity = [("kl_divergence", "synthetic", 0.041), ("kl_divergence", "held_out", 0.012), ("prevalence_correlation", "synthetic", 0.97)]
    ends = [{"task": "fidelity", "method": m, "metric": k, "value": v, "lower": v * 0.9, "upper": v * 1.1} for k, m, v in fidelity]
    _write(root / "evaluation/fidelity.parquet", pl.DataFrame(ends))
    trajectories, samples = _trajectories(rng, chosen)
    _write(root / "forecast/trajectories/0.parquet", trajectories)
    _write(root / "forecast/samples.parquet", samples)
    _model(root / "model", rng)
    vocabulary = {
        "token": ["[PAD]", "[BOS]", "D1", *NAMES],
        "kind": [0, 1, 14, *[19] * len(NAMES)],
        "code": [None] * 3 + list(NAMES),
        "name": [None] * 3 + list(NAMES.values()),
    }
    _write(root / "timeline/vocabulary.parquet", pl.DataFrame(vocabulary, schema_overrides={"kind": pl.Int8}))
    _json(
        root / "timeline/tokenize.json",
        {"tokens": 123456, "subjects": subjects, "unknown_share": 0.012, "dropped": [{"code": "condition/1", "events": 12, "share": 0.001}]},
    )
    np.save(root / "timeline/offsets.npy", np.concatenate([[0], np.cumsum(rng.integers(20, 900, subjects))]).astype(np.int64))
    stages = [
        {"name": name, "status": "done", "skipped": False, "seconds": sec, "figures": {"rows": 12345}}
        for name, sec in (("simulate", 12.0), ("pretrain", 341.5))
    ]
    recipe = {"simulate": {"patients": subjects, "seed": 7}, "tasks": list(TASKS)}
    _json(
        root / "run.json",
        {
            "recipe": recipe,
            "stages": stages,
            "started": "2026-01-05T10:00:00+00:00",
            "finished": "2026-01-05T10:09:00+00:00",
            "versions": {"cehrxgpt": "0.1.0"},
        },
    )
    _json(root / "manifests/pretrain.json", {"key": "00ff00ff00ff00ff", "inputs": {"timeline": "11ee11ee11ee11ee"}, "versions": {"torch": "2"}})
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(make_run(tmp_path_factory.mktemp("runs") / "demo"))


def test_true_risk_joins_the_rows_that_were_predicted(run: RunFolder) -> None:
    task = TASKS[0]
    found = run.predictions(task)
    truth, forecast = found.filter(pl.col("method") == TRUE_RISK), found.filter(pl.col("method") == "monte_carlo")
    assert truth.height == forecast.height > 0
    joined = truth.join(forecast, on=["subject_id", "prediction_time"])
    assert joined["boolean_value"].equals(joined["boolean_value_right"].rename("boolean_value"))


def test_all_methods_are_compared_on_the_rows_that_were_forecast(run: RunFolder, tmp_path: Path) -> None:
    task = TASKS[0]
    for part in ("labels", "probe", "truth"):
        shutil.copytree(run.root / part, tmp_path / part)
    forecast = pl.read_parquet(run.root / f"forecast/{task}.parquet").head(7)
    _write(tmp_path / f"forecast/{task}.parquet", forecast)
    counted = RunFolder(tmp_path).predictions(task).group_by("method").len()
    assert counted["len"].to_list() == [7] * 6


def test_labels_fill_an_outcome_that_the_predictions_lack(run: RunFolder, tmp_path: Path) -> None:
    at = datetime(2020, 1, 1)
    key = {"subject_id": [1], "prediction_time": [at]}
    (tmp_path / "forecast").mkdir()
    (tmp_path / "labels").mkdir()
    overrides = {"prediction_time": pl.Datetime("us")}
    blank = pl.DataFrame({**key, "predicted_boolean_probability": [0.4], "method": ["monte_carlo"]}, schema_overrides=overrides)
    blank.write_parquet(tmp_path / "forecast/t.parquet")
    pl.DataFrame({**key, "boolean_value": [True]}, schema_overrides=overrides).write_parquet(tmp_path / "labels/t.parquet")
    assert RunFolder(tmp_path).predictions("t")["boolean_value"].to_list() == [True]


def test_a_place_of_discharge_is_said_to_be_one() -> None:
    codes = pl.DataFrame({"code": ["discharge/8536", "discharge/SNF", "condition/1"], "description": ["Home", "Discharged to a nursing home", None]})
    assert spoken(codes) == {"discharge/8536": "Discharged to: Home", "discharge/SNF": "Discharged to a nursing home"}


def test_damaged_and_incomplete_files_are_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "short.parquet")
    run = RunFolder(tmp_path)
    assert run.parquet("bad.parquet") is None
    assert run.json("bad.json") is None
    assert run.json_lines("log.jsonl") == [{"step": 1}]
    assert run.parquet("short.parquet", ("b",)) is None
    assert run.parquet("absent.parquet") is None
    assert len(run.problems) == 4
    assert "short.parquet has no column 'b'" in run.problems


def test_shards_without_our_extra_columns_are_scanned(tmp_path: Path) -> None:
    (tmp_path / "events/data/train").mkdir(parents=True)
    pl.DataFrame({"subject_id": [1], "time": [datetime(2020, 1, 1)], "code": ["A"]}).write_parquet(tmp_path / "events/data/train/0.parquet")
    (tmp_path / "events/data/train/1.parquet").write_bytes(b"")
    run = RunFolder(tmp_path)
    assert run.events is not None
    row = run.events.collect().row(0, named=True)
    assert (row["split"], row["numeric_value"], row["origin"]) == ("train", None, None)
    assert run.problems == ["events/data/train/1.parquet is not readable Parquet"]

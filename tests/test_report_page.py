"""The page as a whole: complete, safe, self-contained, honest about what is absent, and alive on odd input."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cehrxgpt.errors import InputError, OutputExistsError
from cehrxgpt.report import report
from cehrxgpt.report.page import report_with_figures
from test_report_run import EVIL, TASKS, make_run

FIRST = 700_000_000
VOID = {"meta", "br", "link", "img", "input"}
CHAPTERS = ("data", "attrition", "quality", "vocabulary", "training", "tasks", "forecast", "patient", "synthetic", "provenance")


class Page(HTMLParser):
    """Ids, links, and whether every element is closed in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.heads: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        assert len(found) == len(attrs), f"<{tag}> has an attribute twice"
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        if tag == "svg":
            self.images.append(found)
        if tag == "th":
            self.heads.append(found)
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.get_starttag_text() and tag in ("path", "rect", "circle") and (not self._open or self._open[-1] != tag):
            return
        assert self._open.pop() == tag


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo", subjects=260, first=FIRST)


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Page:
    return Page(report(run_folder))


def test_every_chapter_is_there_and_linked(page: Page) -> None:
    assert [name for name in CHAPTERS if name not in page.ids] == []
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "Not on this page" not in page.source
    for words in ("zero-shot", "counts + LightGBM", "true risk", "ROC", "Calibration", "simulated futures", "Hemoglobin A1c, %", "Fingerprints"):
        assert words in page.source


def test_the_page_is_self_contained_small_and_without_script(page: Page) -> None:
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form"}
    assert re.search(r"(https?:)?//[\w.]+", page.source) is None
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert "default-src 'none'" in page.source
    assert len(page.source) < 1_000_000


def test_names_from_the_data_are_escaped(page: Page) -> None:
    assert "alert('x')" not in page.source
    assert EVIL not in page.source
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in page.source


def test_charts_and_tables_speak_to_screen_readers(page: Page) -> None:
    assert len(page.images) > 20
    assert all(image.get("role") == "img" and image.get("aria-label") for image in page.images)
    assert all(head.get("scope") in ("col", "row") for head in page.heads)


def test_only_the_shown_subject_is_named(page: Page, run_folder: Path) -> None:
    named = set(re.findall(r"\b7000\d{5}\b", page.source))
    assert len(named) == 1
    splits = pl.read_parquet(run_folder / "events/metadata/subject_splits.parquet")
    assert splits.filter(pl.col("subject_id") == int(named.pop()))["split"].to_list() == ["held_out"]


@pytest.mark.parametrize("whom", [None, "none"])
def test_no_single_person_when_none_is_wanted(run_folder: Path, tmp_path: Path, whom: str | None) -> None:
    found = Page(report(run_folder, tmp_path / "page.html", patient=whom))
    assert re.findall(r"\b7000\d{5}\b", found.source) == []
    assert "patient" not in found.ids
    assert "left out on request" in found.source


def test_the_subject_asked_for_is_shown_even_without_a_forecast(run_folder: Path, tmp_path: Path) -> None:
    train = pl.read_parquet(run_folder / "events/metadata/subject_splits.parquet").filter(pl.col("split") == "train")["subject_id"].min()
    found = Page(report(run_folder, tmp_path / "page.html", patient=train))  # type: ignore[arg-type]
    assert f"Subject {train} as the record stood" in found.source
    assert "held out from training" not in found.source
    with pytest.raises(InputError, match=r"no subject 5 in .*events"):
        report(run_folder, tmp_path / "other.html", patient=5)
    assert not (tmp_path / "other.html").exists()


def test_the_page_in_numbers(run_folder: Path, copy: Path, tmp_path: Path) -> None:
    path, figures = report_with_figures(run_folder, tmp_path / "page.html")
    assert figures["bytes"] == path.stat().st_size
    assert (figures["chapters"], figures["left_out"], figures["tasks"]) == (len(CHAPTERS), [], len(TASKS))
    events = pl.scan_parquet(run_folder / "events/data/*/*.parquet").select(pl.col("subject_id").n_unique().alias("people"), pl.len()).collect()
    assert (figures["subjects"], figures["events"]) == events.row(0)
    assert set(figures["findings"]) == {"high", "medium", "low"}
    assert sum(figures["findings"].values()) == Page(path).source.count('class="severity ')
    (copy / "truth" / f"{TASKS[0]}.parquet").write_text("no table", encoding="utf-8")
    less = report_with_figures(copy, patient=None)[1]
    assert less["left_out"] == ["One patient"]
    assert less["problems"] == figures["problems"] + 1


@pytest.mark.parametrize(
    "gone", ["run.json", "events", "timeline", "model", "labels", "truth", "probe", "forecast", "evaluation", "synthetic_events"]
)
def test_a_missing_artefact_costs_its_chapter_and_no_more(copy: Path, gone: str) -> None:
    target = copy / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    found = Page(report(copy))
    lost = {"timeline": ["vocabulary"], "model": ["training"], "forecast": ["forecast"], "events": ["data", "quality", "patient"]}.get(gone, [])
    assert [name for name in CHAPTERS if name not in found.ids] == lost
    assert ("Not on this page" in found.source) == bool(lost)


def test_each_artefact_alone_makes_a_page(run_folder: Path, tmp_path: Path) -> None:
    for name in ("run.json", "events", "timeline", "model", "labels", "probe", "forecast", "evaluation"):
        alone = tmp_path / f"only-{name}"
        alone.mkdir()
        source = run_folder / name
        shutil.copytree(source, alone / name) if source.is_dir() else shutil.copy(source, alone / name)
        assert "Not on this page" in Page(report(alone)).source


def _rewrite(path: Path, frame: pl.DataFrame) -> None:
    frame.write_parquet(path)


def test_empty_tables(copy: Path) -> None:
    for path in copy.rglob("*.parquet"):
        _rewrite(path, pl.read_parquet(path).clear())
    (copy / "model/train.jsonl").write_text("", encoding="utf-8")
    Page(report(copy))


def test_no_positives_and_censored_labels(copy: Path) -> None:
    for folder, value in ((TASKS[0], False), (TASKS[1], None)):
        for path in (copy / f"labels/{folder}.parquet", copy / f"forecast/{folder}.parquet", copy / f"probe/{folder}/predictions.parquet"):
            _rewrite(path, pl.read_parquet(path).with_columns(pl.lit(value, dtype=pl.Boolean).alias("boolean_value")))
    metrics = pl.read_parquet(copy / "evaluation/metrics.parquet")
    _rewrite(
        copy / "evaluation/metrics.parquet", metrics.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in ("value", "lower", "upper"))
    )
    found = Page(report(copy))
    assert "there is no ROC curve" in found.source
    assert "ROC curves of the rows" not in found.source


def test_refused_predictions_are_counted(copy: Path) -> None:
    path = copy / f"forecast/{TASKS[0]}.parquet"
    frame = pl.read_parquet(path)
    _rewrite(path, frame.with_columns(pl.lit(None, dtype=pl.Float64).alias("predicted_boolean_probability")))
    assert f"{frame.height} refused" in Page(report(copy)).source


def test_damaged_files_are_named_on_the_page(copy: Path) -> None:
    (copy / "evaluation/metrics.parquet").write_bytes(b"PAR1")
    (copy / "events/ingest.json").write_text("[", encoding="utf-8")
    source = Page(report(copy)).source
    assert "evaluation/metrics.parquet is not readable Parquet" in source
    assert "events/ingest.json is not readable JSON" in source


def test_rare_codes_are_not_named(copy: Path) -> None:
    shard = copy / "events/data/train/0.parquet"
    frame = pl.read_parquet(shard)
    few = frame["subject_id"].unique().head(10).to_list()
    rare = frame.head(10).with_columns(
        pl.Series("subject_id", few), pl.lit(datetime(2015, 1, 1)).alias("time"), pl.lit("condition/rare-thing").alias("code")
    )
    _rewrite(shard, pl.concat([frame, rare]))
    assert "rare-thing" not in Page(report(copy, patient=None)).source


def test_ten_thousand_patients_make_a_small_page(tmp_path: Path) -> None:
    """No row of the data is on the page, so its size does not grow with them."""
    people, each = 10_000, 12
    rng = np.random.default_rng(0)
    codes = np.array([*(f"condition/{n}" for n in range(400)), *(f"drug/{n}" for n in range(400)), "Visit/9202", "Visit/9201"])
    n = people * each
    starts = np.datetime64("2010-01-01T00:00", "us") + rng.integers(0, 5_000_000, n) * np.timedelta64(60_000_000, "us")
    chosen = codes[rng.integers(0, len(codes), n)]
    table = pl.Series(chosen).str.split("/").list.first()
    origin = table.replace_strict({"condition": "condition_occurrence", "drug": "drug_exposure", "Visit": "visit_occurrence"})
    frame = pl.DataFrame({"subject_id": np.repeat(np.arange(people), each), "time": starts, "code": chosen, "origin": origin})
    frame = frame.with_columns(end_time=pl.col("time") + pl.duration(hours=5), visit_id=pl.int_range(pl.len()))
    (tmp_path / "events/data/train").mkdir(parents=True)
    frame.write_parquet(tmp_path / "events/data/train/0.parquet")
    labels = frame.group_by("subject_id").agg(pl.col("time").max().alias("prediction_time"))
    labels = labels.with_columns(boolean_value=pl.col("subject_id") % 7 == 0, task=pl.lit("t"))
    (tmp_path / "labels").mkdir()
    labels.write_parquet(tmp_path / "labels/t.parquet")
    source = Page(report(tmp_path)).source
    assert "10,000" in source
    assert len(source) < 120_000


@pytest.mark.parametrize("subjects", [0, 1])
def test_nobody_and_one_person(tmp_path: Path, subjects: int) -> None:
    frame = pl.DataFrame({"subject_id": [7], "time": [datetime(2020, 1, 1)], "code": ["condition/1"]}).head(subjects)
    (tmp_path / "events/data/train").mkdir(parents=True)
    frame.write_parquet(tmp_path / "events/data/train/0.parquet")
    (tmp_path / "synthetic_events/data/train").mkdir(parents=True)
    frame.write_parquet(tmp_path / "synthetic_events/data/train/0.parquet")
    page = Page(report(tmp_path))
    assert {"data", "quality"} <= set(page.ids)
    assert ("patient" in page.ids) == (subjects == 1)


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_letters_and_marks_stand_out(page: Page, scheme: int) -> None:
    """WCAG 2 AA: 4.5 for text (findings' severities included), 3 for what is drawn."""
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\n *\}", page.source, re.DOTALL)[scheme]))
    for text, least in ((("ink", "soft", "link", "c2", "c6"), 4.5), (tuple(f"c{n}" for n in range(1, 9)), 3.0)):
        for name in text:
            for ground in ("bg", "panel"):
                high, low = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


def test_out_is_kept_unless_forced(copy: Path) -> None:
    (copy / "report.html").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError):
        report(copy, force=False)
    assert (copy / "report.html").read_text(encoding="utf-8") == "mine"
    report(copy)
    assert sorted(path.name for path in copy.iterdir() if path.name.startswith(".")) == []


def test_the_page_is_the_same_when_made_twice(copy: Path, tmp_path: Path) -> None:
    def without_clock(path: Path) -> str:
        return re.sub(r"page made [^<]*", "", path.read_text(encoding="utf-8"))

    assert without_clock(report(copy, tmp_path / "a.html")) == without_clock(report(copy, tmp_path / "b.html"))


def test_a_folder_that_is_no_run_and_a_bad_patient(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        report(tmp_path / "nowhere")
    (tmp_path / "truth").mkdir()  # as a simulated hospital's tables have
    with pytest.raises(InputError, match="nothing to report on"):
        report(tmp_path)
    with pytest.raises(InputError, match="'auto', 'none' or a subject id"):
        report(run_folder, tmp_path / "x.html", patient="Jane")
    assert not (tmp_path / "x.html").exists()

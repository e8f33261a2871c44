"""The page as a whole: complete, safe, self-contained, honest about what is absent, and alive on odd input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cehrxgpt.errors import InputError, OutputExistsError
from cehrxgpt.report import report
from cehrxgpt.report.markup import readable
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


COUNTED = {
    "Subjects",
    "Events",
    "Visits",
    "Values",
    "Deaths",
    "Rows",
    "Read",
    "Kept",
    "Dropped",
    "Positive",
    "Outside",
    "Outcome: yes",
    "Outcome: no",
    "Not known",
}
TOLD = re.compile(r"–|0|&lt;11|11–14|[\d,]*0|")


def _columns(source: str) -> Iterator[tuple[str, str]]:
    """(head, text of the cell) of every figure of every table."""
    for table in re.findall(r"<table.*?</table>", source, re.S):
        heads = re.findall(r"<th[^>]*scope=\"col\"[^>]*>(.*?)</th>", table)
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.S):
            yield from zip(heads, re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row), strict=False)


def test_no_count_of_a_real_population_can_be_had_by_subtraction(copy: Path) -> None:
    """Wherever it stands on the page a count is hidden or rounded to tens, so that no two tables give a third figure away."""
    exact = dict.fromkeys(cell for head, cell in _columns(Page(report(copy, patient=None)).source) if head in COUNTED)
    assert not all(TOLD.fullmatch(cell) for cell in exact)  # of the simulated population they stand as they are
    facts = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    facts["recipe"] = {"source": "cdm", "tasks": facts["recipe"]["tasks"]}
    (copy / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    page = Page(report(copy, patient=None)).source
    found = [(head, cell) for head, cell in _columns(page) if head in COUNTED]
    assert len(found) > 80
    assert [pair for pair in found if not TOLD.fullmatch(pair[1])] == []
    words = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.S)
    said = re.findall(r"([\d,]+) (?:of [\d,]+ )?(?:subjects|events|visits|rows|positives?|held out|refused|histories)\b", words)
    assert len(said) > 20
    assert {n for n in said if int(n.replace(",", "")) % 10} <= {"11"}  # of "<11", and of "11 subjects or more"
    bars = re.findall(r"<title>[^<]*: (\S+) (?:subjects|events)</title>", page)
    assert len(bars) > 10
    assert [n for n in bars if not TOLD.fullmatch(n)] == []


def test_metrics_of_few_outcomes_are_withheld(copy: Path) -> None:
    """Not drawn at a glance, not in the table, no curve; and the finding goes by the rows that were forecast."""
    path, task = copy / "evaluation/metrics.parquet", TASKS[0]
    metrics = pl.read_parquet(path)
    _rewrite(path, metrics.with_columns(pl.when(pl.col("task") == task).then(4).otherwise("positives").cast(pl.Int64).alias("positives")))
    labels = pl.read_parquet(copy / f"labels/{task}.parquet").with_columns((pl.col("subject_id") % 29 == 0).alias("boolean_value"))
    _rewrite(copy / f"labels/{task}.parquet", labels)
    for name in (f"forecast/{task}.parquet", f"probe/{task}/predictions.parquet"):
        _rewrite(copy / name, pl.read_parquet(copy / name).with_columns((pl.col("subject_id") % 29 == 0).alias("boolean_value")))
    source = Page(report(copy, patient=None)).source
    glance = source[source.index('id="glance"') : source.index('id="data"')]
    assert f"{readable(task)} (4 with the outcome)" in glance
    assert f">{readable(task)}</text>" not in glance
    assert f">{readable(TASKS[1])}</text>" in glance
    chapter = source[source.index(f'id="task-{task.replace("_", "-")}"') : source.index(f'id="task-{TASKS[1].replace("_", "-")}"')]
    assert "Too few outcomes for a metric" in chapter
    assert "ROC curves of the rows" not in chapter
    assert f"{readable(task)}: few outcomes to judge by" in source


@pytest.mark.parametrize(("precision", "said"), [("day", ["1 day", "2 days"]), ("minute", ["24.0 h", "48.0 h"])])
def test_visits_known_by_the_day_have_no_hours(tmp_path: Path, precision: str, said: list[str]) -> None:
    start = datetime(2020, 1, 1)
    stays = [("Visit/9202", start.replace(hour=23, minute=59, second=59)), ("Visit/9201", datetime(2020, 1, 2, 23, 59, 59))]
    rows = [{"subject_id": n, "time": start, "end_time": end, "code": code, "time_precision": precision} for n in range(12) for code, end in stays]
    (tmp_path / "events/data/train").mkdir(parents=True)
    pl.DataFrame(rows).sort("subject_id", "code").write_parquet(tmp_path / "events/data/train/0.parquet")
    lengths = [cell for head, cell in _columns(Page(report(tmp_path)).source) if head == "Median length"]
    assert sorted(lengths) == said


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


@pytest.mark.parametrize("source", ["simulate", "source"])
def test_figures_of_stages_are_no_people_s_unless_they_count(tmp_path: Path, source: str) -> None:
    """A loss on `train` is no count; rows and subjects are, and an AUROC stands in its own chapter or nowhere."""
    stages = [
        {
            "name": "pretrain",
            "status": "done",
            "seconds": 1.0,
            "figures": {"steps": 7, "train_loss": 4.939, "loss": {"train": 2.0}, "tokens_seen": 47_451},
        },
        {"name": "label", "status": "done", "seconds": 1.0, "figures": {"t": {"rows": 238, "positive": 7}}},
        {"name": "probe", "status": "done", "seconds": 1.0, "figures": {"t": {"probe": 0.083}}},
        {"name": "synthesize", "status": "done", "seconds": 1.0, "figures": {"patients": 8}},
    ]
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {source: {}}, "stages": stages}), encoding="utf-8")
    told = dict(_columns(Page(report(tmp_path)).source))
    assert "Figures" in told
    shown = re.sub(r"<[^>]+>", "", str(Page(report(tmp_path)).source))
    assert "steps 7; train loss 4.939; loss · train 2.000; tokens seen 47,451" in shown
    assert ("t · rows 238; t · positive 7" if source == "simulate" else "t · rows 240; t · positive &lt;11") in shown
    assert "0.083" not in shown
    assert "patients 8" in shown

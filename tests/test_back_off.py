"""Roll-up and back-off: to the nearest ancestor, never across a task's concept set, and no rare code's name beside the vocabulary."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import stages
from cehrxgpt.adapt.expand import expand
from cehrxgpt.errors import ConfigError, InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.stages.data import boundaries
from cehrxgpt.tasks import library, library_tasks, load_task, resolve
from cehrxgpt.tasks.codes import matching_codes
from cehrxgpt.timeline import Timeline, TimelineConfig
from cehrxgpt.timeline.back_off import Aliases, ConceptSet, Ontology, aliases, common_ancestors, ontology_facts, rolled_up
from cehrxgpt.timeline.fit import fit_vocabulary
from cehrxgpt.timeline.moments import encode_moments
from cehrxgpt.timeline.vocabulary import Vocabulary
from test_timeline_roundtrip import assert_round_trip, assert_sentences
from timeline_samples import histories, row, static, table, training_table

START = datetime(2012, 3, 1)

# condition/10 > 11 > 12 > 13 and 10 > 21 > 13; 11 and what is below it are a task's outcome
PARENTS = {
    "condition/11": ["condition/10"],
    "condition/12": ["condition/11"],
    "condition/13": ["condition/12", "condition/21"],
    "condition/21": ["condition/10"],
    "condition/22": ["condition/21"],
}
SETS = {"task/outcome": ConceptSet(("condition/11",))}


def codes_table(parents: dict[str, list[str]]) -> pl.DataFrame:
    return pl.DataFrame(
        {"code": list(parents), "parent_codes": list(parents.values())}, schema={"code": pl.String, "parent_codes": pl.List(pl.String)}
    )


# -- which ancestor -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "targets", "expected"),
    [
        ("condition/12", ["condition/10", "condition/11"], "condition/11"),
        ("condition/13", ["condition/11", "condition/12"], "condition/12"),
        ("condition/12", ["condition/10"], None),  # out of the outcome: never
        ("condition/13", ["condition/21"], None),
        ("condition/22", ["condition/10", "condition/21"], "condition/21"),
        ("condition/22", ["condition/10"], "condition/10"),
        ("condition/10", ["condition/11"], None),  # downwards: never
        ("condition/99", ["condition/10"], None),
    ],
)
def test_the_nearest_ancestor_inside_the_same_sets(code: str, targets: list[str], expected: str | None) -> None:
    assert Ontology(PARENTS, SETS).nearest(code, dict.fromkeys(targets, 1)) == expected


def test_of_several_nearest_ancestors_the_rarest() -> None:
    assert Ontology({"a": ["b", "c"]}, {}).nearest("a", {"b": 20, "c": 12}) == "c"
    assert Ontology({"a": ["b"], "b": ["a"]}, {}).nearest("a", {"b": 1}) == "b"  # a cycle, as bad vocabularies have


def test_patterns_are_read_as_tasks_read_them() -> None:
    ontology = Ontology({}, {"s": ConceptSet((r"A\*", "B*"))})
    assert [code for code in ("A*", "AB", "A", "B", "B2") if ontology.members_of(code)] == ["A*", "B", "B2"]


_names = st.sampled_from([f"condition/{number}" for number in range(9)])


@settings(max_examples=60, deadline=None)
@given(
    edges=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda pair: pair[0] < pair[1]), max_size=16),
    targets=st.dictionaries(_names, st.integers(1, 3)),
    sets=st.lists(st.tuples(st.lists(_names, min_size=1, max_size=2), st.booleans()), max_size=3),
)
def test_nearest_is_what_a_walk_upwards_finds(edges: list[tuple[int, int]], targets: dict[str, int], sets: list[tuple[list[str], bool]]) -> None:
    """An ancestor, a target, with the same memberships, and no other such between; brute force over all pairs."""
    parents: dict[str, list[str]] = {}
    for above, below in edges:
        parents.setdefault(f"condition/{below}", []).append(f"condition/{above}")
    named = {f"set{number}": ConceptSet(tuple(patterns), descendants) for number, (patterns, descendants) in enumerate(sets)}

    def reaches(code: str, above: str) -> bool:
        return any(parent == above or reaches(parent, above) for parent in parents.get(code, []))

    def members(code: str) -> set[str]:
        return {
            name for name, one in named.items() if code in one.patterns or (one.descendants and any(reaches(code, other) for other in one.patterns))
        }

    ontology = Ontology(parents, named)
    for code in (f"condition/{number}" for number in range(9)):
        assert ontology.members_of(code) == members(code)
        allowed = [one for one in targets if reaches(code, one) and members(one) == members(code)]
        lowest = [one for one in allowed if not any(reaches(other, one) for other in allowed)]
        assert ontology.nearest(code, targets) == min(lowest, key=lambda one: (targets[one], one), default=None)


# -- the library's boundaries -----------------------------------------------------------------------------------------------------------


def _around_the_library() -> tuple[dict[str, list[str]], list[str]]:
    """For every code that a library task lists: a broad ancestor outside, a child, a grandchild; and a stranger under the ancestor."""
    parents: dict[str, list[str]] = {}
    listed = sorted(
        {pattern for one in boundaries(library().values()).values() for pattern in one.patterns if not pattern.endswith("*") and "//" not in pattern}
    )
    for pattern in listed:
        prefix = pattern.split("/")[0]
        parents[pattern] = [f"{prefix}/broad"]
        parents[f"{pattern}1111"] = [pattern]
        parents[f"{pattern}2222"] = [f"{pattern}1111"]
        parents[f"{prefix}/stranger"] = [f"{prefix}/broad"]
    return parents, listed


def test_memberships_are_those_of_the_labels() -> None:
    parents, _ = _around_the_library()
    codes = codes_table(parents)
    ontology = Ontology(parents, boundaries(library().values()))
    everything = {*parents, *(above for many in parents.values() for above in many)}
    for task in library_tasks():
        for which, concepts in resolve(load_task(task), codes).concept_sets.items():
            inside = matching_codes(concepts, everything)
            assert inside == {code for code in everything if f"{task}/{which}" in ontology.members_of(code)}, f"{task}/{which}"


@pytest.mark.parametrize("known", ["ancestors outside alone", "the listed codes too"])
def test_no_code_crosses_a_library_sets_edge(known: str) -> None:
    """By the labeler's own judgement: a code and what it is written as are in the same concept sets of every task."""
    parents, listed = _around_the_library()
    broad = {above for many in parents.values() for above in many if above.endswith("/broad")}
    rows = [{"token": "[PAD]", "kind": 0}] + [
        {"token": code, "kind": 19, "code": code, "subjects": 20} for code in sorted(broad | (set(listed) if known.startswith("the") else set()))
    ]
    plain = Vocabulary.from_rows(rows, {})
    codes = codes_table(parents)
    facts = ontology_facts([row["code"] for row in rows[1:]], codes, boundaries(library().values()))
    vocabulary = Vocabulary(plain.table, {"back_off": True, "ontology": facts})
    found = aliases(vocabulary, codes).target
    assert found["condition/stranger"] == "condition/broad"
    assert not [code for code in found if code.rstrip("12") in listed] or known.startswith("the")
    if known.startswith("the"):
        assert {code for code in parents if code.endswith("1111")} <= found.keys()
    for task in library_tasks():
        for concepts in resolve(load_task(task), codes).concept_sets.values():
            inside = matching_codes(concepts, {*found, *found.values()})
            assert all((code in inside) == (above in inside) for code, above in found.items())


def test_the_boundary_holds_on_data_that_knows_less() -> None:
    """New data names the ancestors of its own codes only: that a vocabulary's code is a task's outcome is remembered from its own data."""
    events = pl.concat([training_table(), *(table([*static(s), row(s, START, "condition/12")]) for s in range(100, 120))])
    config = TimelineConfig(back_off=True)
    vocabulary = fit_vocabulary(events, split=None, config=config, concept_sets=SETS)
    assert "ontology" in vocabulary.settings
    facts = {"sets": vocabulary.settings["ontology"]["sets"], "ancestors": {}, "members": {"condition/12": ["task/outcome"]}}
    told = Vocabulary(vocabulary.table, vocabulary.settings | {"ontology": facts})
    inside = codes_table({"condition/13": ["condition/12", "condition/11"]})
    outside = codes_table({"condition/14": ["condition/12"]})  # as this data tells it, no descendant of condition/11
    assert aliases(told, inside).target == {"condition/13": "condition/12"}
    assert aliases(told, outside).target == {}


# -- fitting, encoding, decoding ------------------------------------------------------------------------------------------------------


def _dataset(root: Path, *, rare: int = 4) -> EventDataset:
    """30 training patients with conditions 10, 11, 21; `rare` of them have condition/22, /12 and /13 as well."""
    for split, first, count in (("train", 0, 30), ("tuning", 100, 4)):
        rows = []
        for subject in range(first, first + count):
            rows += static(subject)
            for number, code in enumerate(("condition/10", "condition/11", "condition/21")):
                rows.append(row(subject, START + timedelta(days=number), code, origin="condition_occurrence"))
            if subject - first < rare:
                more = {"numeric_value": 3.0, "unit": "mg", "text_value": "high", "origin": "condition_occurrence"}
                rows += [row(subject, START + timedelta(days=5), f"condition/{code}", **more) for code in (12, 13, 22, 99)]
        path = root / "data" / split / "0.parquet"
        path.parent.mkdir(parents=True)
        table(rows).write_parquet(path)
    (root / "metadata").mkdir()
    codes_table(PARENTS).write_parquet(root / "metadata" / "codes.parquet")
    return EventDataset(root)


def test_rare_codes_are_written_as_ancestors_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cehrxgpt.stages.data.boundaries", lambda _: SETS)
    dataset = _dataset(tmp_path / "events")
    without = stages.tokenize(dataset.root, tmp_path / "without", {})
    facts = stages.tokenize(dataset.root, tmp_path / "with", {"back_off": True})
    assert (without["events_dropped"], without["events_backed_off"]) == (32, 0)
    assert (facts["events_dropped"], facts["events_backed_off"], facts["codes_dropped"]) == (8, 24, 1)  # condition/99 has no ancestor
    assert facts["backed_off_share"] == 24 / facts["events"]
    vocabulary = Vocabulary.load(tmp_path / "with")
    assert vocabulary.table.equals(Vocabulary.load(tmp_path / "without").table)
    for path in (tmp_path / "with").iterdir():  # no rare code is named, nor what it became
        assert not [code for code in (b"condition/12", b"condition/13", b"condition/22", b"condition/99") if code in path.read_bytes()], path
    frame = dataset.read("tuning")
    timeline = Timeline.load(tmp_path / "with").on(dataset)
    assert timeline.aliases.target == {"condition/12": "condition/11", "condition/13": "condition/11", "condition/22": "condition/21"}
    assert_round_trip(timeline, frame)
    # Embedding and forecasting go the same way in, with the ontology of the data they are given.
    at = pl.DataFrame({"subject_id": [100], "prediction_time": [datetime(2013, 1, 1)]}, schema_overrides={"prediction_time": pl.Datetime("us")})
    (moments,) = encode_moments(Timeline(vocabulary), dataset, at)
    assert moments.histories.unknown.tolist() == [1]


def test_roll_up_comes_before_counting(tmp_path: Path) -> None:
    """Descendants of a listed code are it, for the vocabulary too; one inside a task's set does not go to one outside."""
    dataset = _dataset(tmp_path / "events", rare=20)
    config = TimelineConfig(roll_up=("condition/10", "condition/11"))
    timeline = Timeline.fit(dataset, config=config, concept_sets=SETS)
    words = {code for code in timeline.vocabulary.code if code and code.startswith("condition")}
    assert words == {"condition/10", "condition/11", "condition/99"}
    assert timeline.aliases.target == dict.fromkeys(["condition/12", "condition/13"], "condition/11") | dict.fromkeys(
        ["condition/21", "condition/22"], "condition/10"
    )
    assert timeline.aliases.backed_off == frozenset()
    assert_round_trip(timeline, dataset.read("tuning"))
    assert rolled_up(codes_table(PARENTS), (), SETS).target == {}


def test_rare_codes_of_enough_patients_bring_their_ancestor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three codes of five patients each under condition/50, which nobody has itself; two under condition/60, ten patients together."""
    monkeypatch.setattr("cehrxgpt.stages.data.boundaries", lambda _: SETS)
    rows = []
    for subject in range(25):
        number = subject // 5
        rows += [*static(subject), row(subject, START, "condition/10", origin="condition_occurrence")]
        rows.append(row(subject, START, f"condition/{(501, 502, 503, 601, 602)[number]}", origin="condition_occurrence"))
    path = tmp_path / "events" / "data" / "train" / "0.parquet"
    path.parent.mkdir(parents=True)
    table(rows).write_parquet(path)
    (tmp_path / "events" / "metadata").mkdir()
    parents = {f"condition/{code}": [f"condition/{code // 10}", "condition/1"] for code in (501, 502, 503)}
    parents |= {f"condition/{code}": ["condition/60", "condition/1"] for code in (601, 602)}
    codes_table(parents).write_parquet(tmp_path / "events" / "metadata" / "codes.parquet")
    facts = stages.tokenize(tmp_path / "events", tmp_path / "timeline", {"back_off": True})
    vocabulary = Vocabulary.load(tmp_path / "timeline")
    added = {code: vocabulary.subjects[i] for i, code in enumerate(vocabulary.code) if code in ("condition/50", "condition/60", "condition/1")}
    # condition/1 is above all five: 25 patients, and the nearest for the last two alone, who are ten: it is not worth a token.
    assert added == {"condition/50": 15}
    assert vocabulary.origin[vocabulary.id_of("condition/50")] == "condition_occurrence"
    assert (facts["events_backed_off"], facts["events_dropped"]) == (15, 10)
    assert_round_trip(Timeline(vocabulary).on(EventDataset(tmp_path / "events")), table(rows))


@settings(max_examples=60, deadline=None)
@given(
    edges=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda pair: pair[0] < pair[1]), max_size=16),
    having=st.lists(st.tuples(st.integers(0, 7), st.integers(3, 8)), min_size=1, max_size=20, unique=True),
    known=st.dictionaries(st.sampled_from([f"condition/{number}" for number in range(3)]), st.integers(1, 9), max_size=2),
)
def test_added_ancestors_are_said_of_enough_patients(edges: list[tuple[int, int]], having: list[tuple[int, int]], known: dict[str, int]) -> None:
    parents: dict[str, list[str]] = {}
    for above, below in edges:
        parents.setdefault(f"condition/{below}", []).append(f"condition/{above}")
    rare = pl.DataFrame([(subject, f"condition/{code}") for subject, code in having], schema=["subject_id", "code"], orient="row")
    added = common_ancestors(rare, known, codes_table(parents), SETS, 2)
    ontology = Ontology(parents, SETS)
    said: dict[str, set[int]] = {}
    for subject, code in rare.iter_rows():
        target = code if code in added else ontology.nearest(code, {**known, **added})
        if target is not None:
            assert ontology.members_of(target) == ontology.members_of(code)
            said.setdefault(target, set()).add(subject)
    assert all(len(said.get(one, ())) >= 2 for one in added)
    assert all(subjects >= len(said[one]) for one, subjects in added.items())


def test_a_list_of_codes_is_read(tmp_path: Path) -> None:
    (tmp_path / "codes.txt").write_text("# ingredients\ndrug/1125315  # acetaminophen\n\ndrug/1118084\n")
    assert stages.read_codes(tmp_path / "codes.txt") == ["drug/1125315", "drug/1118084"]
    (tmp_path / "none.txt").write_text("# nothing\n")
    for name in ("none.txt", "absent.txt"):
        with pytest.raises(InputError, match=f"{name}: .*expected one"):
            stages.read_codes(tmp_path / name)


def test_a_grown_vocabulary_knows_the_ancestors_of_its_new_codes(tmp_path: Path) -> None:
    few, many = _dataset(tmp_path / "few"), _dataset(tmp_path / "many", rare=20)
    vocabulary = fit_vocabulary(few, config=TimelineConfig(back_off=True), concept_sets=SETS)
    assert set(aliases(vocabulary, few.codes).target) == {"condition/12", "condition/13", "condition/22"}
    grown = expand(vocabulary, many)
    assert {grown.code[i] for i in range(len(vocabulary), len(grown))} == {"condition/12", "condition/13", "condition/22", "condition/99"}
    assert grown.settings["ontology"]["ancestors"]["condition/12"] == ["condition/10", "condition/11"]
    assert grown.settings["ontology"]["members"]["condition/13"] == ["task/outcome"]
    assert aliases(grown, few.codes).target == {}
    assert expand(grown, many) is grown


@settings(max_examples=20, deadline=None)
@given(events=histories())
def test_round_trip_with_aliases(events: pl.DataFrame) -> None:
    target = {"unheard/9": "condition/1", "condition/2": "condition/1", "measurement/4": "measurement/5"}
    timeline = Timeline(_VOCABULARY, aliases=Aliases(target, frozenset(["unheard/9"])))
    assert_round_trip(timeline, events)
    assert_sentences(timeline, events)


_VOCABULARY = fit_vocabulary(training_table(), split=None)


def test_boundaries_must_be_said() -> None:
    with pytest.raises(ConfigError, match="roll_up and back_off need concept_sets"):
        fit_vocabulary(training_table(), split=None, config=TimelineConfig(back_off=True))
    facts = fit_vocabulary(training_table(), split=None, config=TimelineConfig(back_off=True), concept_sets={}).settings["ontology"]
    assert json.loads(json.dumps(facts)) == {"sets": {}, "ancestors": {}, "members": {}}


def test_a_vocabulary_that_is_given_takes_no_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--min-subjects: .* was fitted already"):
        stages.tokenize(tmp_path, tmp_path / "out", {"min_subjects": 50, "value_bins": 10}, vocabulary=tmp_path)

"""The compiled set of tokens says what the labeler says of decoded futures, values included; bins take the edges that tasks name."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import schema as s
from cehrxgpt.events import conform, sort_events
from cehrxgpt.stages.data import _outcomes, _with_edges, _with_own
from cehrxgpt.tasks import Index, Outcome, Task, can_be_said, library_tasks, outcome_in_window, outcome_tokens, value_edges
from cehrxgpt.tasks.definition import ConceptSet
from cehrxgpt.tasks.tokens import across_bounds, why_no_tokens
from cehrxgpt.timeline.decode import decode_futures
from cehrxgpt.timeline.fit import TimelineConfig, fit_vocabulary
from cehrxgpt.timeline.grammar import Grammar, State
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from timeline_samples import training_table

SETS = {
    "lab": ConceptSet(measurement=(4,)),
    "labs": ConceptSet(codes=("measurement/*",)),
    "disease": ConceptSet(condition=(1,)),
    "drug": ConceptSet(drug=(3,)),
    "absent": ConceptSet(condition=(77,)),
}
NAMED = {"at_least": (2.0, 9.0), "below": (2.0, 9.0), "above": (5.0,), "at_most": (5.0,)}  # bounds that tasks name: edges of bins
LAST_DAY = np.datetime64("2015-06-01")


def task(outcome: Outcome, **more) -> Task:
    used = {leaf.concepts for _, leaf in outcome.leaves()} | {"disease"}
    sets = {name: concepts for name, concepts in SETS.items() if name in used}
    return Task(name="t", description="", index=Index(concepts="disease"), outcome=outcome, horizon_days=90_000, concept_sets=sets, **more)


def named_edges() -> dict[str, tuple[float, ...]]:
    tasks = [task(Outcome(concepts="labs", **{name: bound})) for name, bounds in NAMED.items() for bound in bounds]
    return value_edges(tasks, ["measurement/4", "measurement/5", "condition/1"])


def fitted(values: str = "fused", **more) -> Vocabulary:
    config = TimelineConfig(min_subjects=3, value_bins=4, values=values, fixed_edges=named_edges(), **more)
    return fit_vocabulary(training_table(), config=config)


VOCABULARY, SPLIT = fitted(), fitted("split")
GRAMMAR = {id(words): Grammar(words) for words in (VOCABULARY, SPLIT)}
PROMPT = ["[BOS]", "year:2010", "month:6", "age:60", "age_months:1", "gender:8532", "race:8527"]


def walk(vocabulary: Vocabulary, rng: np.random.Generator, length: int) -> np.ndarray:
    """Tokens of a random sentence of the grammar behind the prompt: a kind, then a token of it."""
    grammar = GRAMMAR[id(vocabulary)]
    state, found = after_prompt(vocabulary), []
    barred = np.isin(vocabulary.kind, (Kind.YEAR_GAP, Kind.LONG_GAP, Kind.VISIT_RESUME, Kind.END))
    for _ in range(length):
        allowed = np.flatnonzero(grammar.allowed[state.phase[0]] & ~barred)
        if not len(allowed):
            break
        kinds = np.unique(vocabulary.kind[allowed])
        weights = np.where(kinds == Kind.DEATH, 0.1, 1.0)
        kind = rng.choice(kinds, p=weights / weights.sum())
        found.append(int(rng.choice(allowed[vocabulary.kind[allowed] == kind])))
        state = grammar.advance(state, np.array(found[-1:]))
    return np.array(found, dtype=np.int32)


def after_prompt(vocabulary: Vocabulary) -> State:
    grammar = GRAMMAR[id(vocabulary)]
    state = grammar.start(1)
    for token in PROMPT:
        state = grammar.advance(state, np.array([vocabulary.id_of(token)]))
    return state


def found_in(asked: Task, vocabulary: Vocabulary, tokens: np.ndarray, seed: int | None) -> datetime | None:
    """What the labeler finds in the tokens, decoded."""
    state = after_prompt(vocabulary)
    key = {"subject_id": np.array([1]), "prediction_time": np.array([LAST_DAY - 1], "datetime64[us]"), "sample_id": np.array([0])}
    start = {"phase": state.phase, "clock_minutes": state.clock_minutes, "start_date": np.array([LAST_DAY.astype(int)])}
    rng = None if seed is None else np.random.default_rng(seed)
    future = decode_futures(vocabulary, tokens, np.array([0, len(tokens)]), rng=rng, **start, **key)
    rows = pl.DataFrame({**key, "sample_id": key["sample_id"].astype(np.int32)})
    return outcome_in_window(asked, future, rows)["outcome_time"][0]


@st.composite
def outcomes(draw, depth: int = 2) -> Outcome:
    kind = draw(st.sampled_from(["value", "value", "concepts", "visit", "death", *["any"] * depth]))
    if kind == "any":
        return Outcome(any=tuple(draw(st.lists(outcomes(depth - 1), min_size=2, max_size=3))))
    if kind == "death":
        return Outcome(death=True)
    if kind == "visit":
        return Outcome(visit=draw(st.sampled_from([("inpatient",), ("outpatient",), ("intensive_care",), ("inpatient", "emergency")])))
    if kind == "concepts":
        return Outcome(concepts=draw(st.sampled_from(["lab", "labs", "disease", "drug", "absent"])))
    name = draw(st.sampled_from(list(NAMED)))
    bounds = {name: draw(st.sampled_from([*NAMED[name], 4.7]))}
    if name == "at_least" and bounds[name] < 9 and draw(st.booleans()):
        bounds["below"] = 9.0
    return Outcome(concepts=draw(st.sampled_from(["lab", "labs"])), unit=draw(st.sampled_from([None, 8840, ("8840", "mg")])), **bounds)


@settings(deadline=None, max_examples=100)
@given(outcomes(), st.integers(0, 2**32 - 1), st.booleans())
def test_tokens_are_what_the_labeler_finds(outcome: Outcome, seed: int, draws: bool) -> None:
    """The first token of the set is where the outcome comes to be there, on its very day; numbers as medians of their bins, and drawn."""
    asked = task(outcome)
    wanted = outcome_tokens(asked, VOCABULARY)
    bounds = {bound for _, leaf in outcome.leaves() for bound in leaf.bounds}
    visits = any(leaf.visit for _, leaf in outcome.leaves())
    if wanted is None:
        assert visits or 4.7 in bounds  # no bin lies across a bound that a task names
        return
    tokens = walk(VOCABULARY, np.random.default_rng(seed), 30)
    drawn = seed if draws else None
    first = int(np.argmax(wanted[tokens])) if wanted[tokens].any() else len(tokens)
    assert found_in(asked, VOCABULARY, tokens[:first], drawn) is None
    if first < len(tokens):
        at_first, in_all = (found_in(asked, VOCABULARY, part, drawn) for part in (tokens[: first + 1], tokens))
        assert at_first is not None
        assert in_all is not None
        assert at_first.date() == in_all.date()


@settings(deadline=None, max_examples=100)
@given(outcomes(), outcomes(), st.sampled_from(["any", "all", "competing", "alone"]), st.integers(0, 2**32 - 1), st.booleans())
def test_what_cannot_be_said_is_never_found(one: Outcome, other: Outcome, how: str, seed: int, split: bool) -> None:
    """And what is a set of tokens can be said where the set has any."""
    outcome = one if how in ("alone", "competing") else Outcome(**{how: (one, other)})
    asked, vocabulary = task(outcome), SPLIT if split else VOCABULARY
    sayable, wanted = can_be_said(asked, vocabulary), outcome_tokens(asked, vocabulary)
    if wanted is not None:
        assert sayable == bool(wanted.any())
    if how == "competing":
        beside = replace(asked, competing=(Outcome(concepts="drug"),), concept_sets=asked.concept_sets | {"drug": SETS["drug"]})
        assert can_be_said(beside, vocabulary) == sayable
    if not sayable:
        assert found_in(asked, vocabulary, walk(vocabulary, np.random.default_rng(seed), 30), None) is None


def test_what_is_lacking_cannot_be_said() -> None:
    here, gone = Outcome(concepts="disease"), Outcome(concepts="absent")
    said = {"any": True, "all": False}
    for how, sayable in said.items():
        assert can_be_said(task(Outcome(**{how: (here, gone)})), VOCABULARY) == sayable
        assert not can_be_said(task(Outcome(**{how: (gone, gone)})), VOCABULARY)
        assert can_be_said(task(Outcome(**{how: (here, here)})), VOCABULARY)
    for vocabulary in (VOCABULARY, SPLIT):
        assert not can_be_said(task(Outcome(concepts="lab", above=1e6)), vocabulary)
        assert not can_be_said(task(Outcome(concepts="disease", above=1.0)), vocabulary), "no number"
        assert can_be_said(task(Outcome(concepts="lab", above=5.0)), vocabulary)


@settings(deadline=None, max_examples=40)
@given(outcomes(), st.integers(0, 2**32 - 1))
def test_the_same_where_code_and_number_are_two_tokens(outcome: Outcome, seed: int) -> None:
    asked = task(outcome)
    wanted = outcome_tokens(asked, SPLIT)
    if any(leaf.by_value for _, leaf in outcome.leaves()):
        assert wanted is None
    if wanted is None:
        return
    tokens = walk(SPLIT, np.random.default_rng(seed), 30)
    assert (found_in(asked, SPLIT, tokens, None) is not None) == bool(wanted[tokens].any())


def test_which_bins_are_in_the_range() -> None:
    """By hand: the bins of one lab around 5."""
    rows = [{"token": "[PAD]", "kind": int(Kind.PAD)}, {"token": "lab", "kind": int(Kind.CODE), "code": "measurement/4"}]
    bins = [(None, "8840", 1.0, 5.0), (None, "8840", 5.0, 9.0), (None, "8840", 9.0, 12.0), ("<", "8840", 2.0, 5.0), (">", "8840", 5.0, 7.0)]
    bins += [(None, None, 6.0, 7.0)]
    for number, (sign, unit, low, high) in enumerate(bins):
        value = {"operator": sign, "unit": unit, "bin_low": low, "bin_high": high, "quantiles": [low, low, low]}
        rows.append({"token": f"lab {number}", "kind": int(Kind.VALUE), "code": "measurement/4"} | value)
    words = Vocabulary.from_rows(rows, {})

    def chosen(**bounds) -> list[int] | None:
        found = outcome_tokens(task(Outcome(concepts="lab", **bounds)), words)
        return None if found is None else [int(token) - 2 for token in np.flatnonzero(found)]

    assert chosen(at_least=5) == [1, 2, 4, 5]
    assert chosen(at_least=5, unit=8840) == [1, 2, 4]
    assert chosen(above=5) is None  # 5 itself is in the second bin
    assert chosen(below=5) == [0, 3]  # the last bin of the run with a sign holds 5, and "< 5" is below 5
    assert chosen(above=5, unit=8840) is None
    assert chosen(above=12) == []
    assert chosen(at_least=6.5, unit="8840") is None
    assert chosen(at_least=5, below=9, unit="8840") == [1]
    assert chosen(at_least=6, at_most=7, unit="8840") is None
    assert outcome_tokens(task(Outcome(concepts="lab")), words).sum() == 7


def test_what_is_no_set_of_tokens() -> None:
    disease, drug = Outcome(concepts="disease"), Outcome(concepts="drug")
    either, both = Outcome(any=(disease, drug)), Outcome(all=(disease, drug))
    assert outcome_tokens(task(both), VOCABULARY) is None
    assert outcome_tokens(task(Outcome(any=(both, drug))), VOCABULARY) is None
    union = outcome_tokens(task(disease), VOCABULARY) | outcome_tokens(task(drug), VOCABULARY)
    assert outcome_tokens(task(either), VOCABULARY).tolist() == union.tolist()
    alone = task(disease)
    competes = replace(alone, competing=(drug,), concept_sets=alone.concept_sets | {"drug": SETS["drug"]})
    assert outcome_tokens(competes, VOCABULARY) is None


def test_bins_take_the_edges_that_tasks_name_however_rare_what_lies_beyond() -> None:
    """Twelve of 2,000 patients are above 9: fewer than the outer hundredth, and still a bin of their own."""
    rng = np.random.default_rng(0)
    values = np.round(rng.uniform(4, 8, 2000), 1)
    values[:12] = np.linspace(9.1, 14, 12)
    start = datetime(2015, 1, 1)
    rows = {
        "subject_id": np.arange(2000),
        "time": [start] * 2000,
        "available_time": [start + timedelta(hours=1)] * 2000,
        "code": ["measurement/4"] * 2000,
        "numeric_value": values.astype(np.float32),
        "unit": ["8554"] * 2000,
        "origin": ["measurement"] * 2000,
    }
    events = sort_events(conform(pl.DataFrame(rows)))
    above = task(Outcome(concepts="lab", above=9, unit=8554))
    named = fit_vocabulary(events, config=TimelineConfig(fixed_edges=value_edges([above], ["measurement/4"])))
    tokens = np.flatnonzero(outcome_tokens(above, named))
    assert [named.subjects[token] for token in tokens] == [12]
    assert 9 < named.bin_low[tokens[0]] < 9.00001
    assert named.bin_high[tokens[0]] < 14  # nobody's extreme is stored
    without = fit_vocabulary(events)
    assert not outcome_tokens(above, without).any()
    rarer = fit_vocabulary(events, config=TimelineConfig(min_subjects=13, fixed_edges=value_edges([above], ["measurement/4"])))
    assert not outcome_tokens(above, rarer).any()


def test_edges_of_tasks() -> None:
    tasks = [task(Outcome(concepts="lab", at_least=5, below=9)), task(Outcome(concepts="lab", above=5)), task(Outcome(concepts="disease"))]
    edges = value_edges(tasks, ["measurement/4", "measurement/40", "condition/1"])
    more = {five: float(np.nextafter(np.float32(five), np.float32(99))) for five in (5, 9)}
    assert edges == {
        "measurement/4": (5, more[5], 9),
        "measurement/4 <": (more[9],),
        "measurement/4 <=": (9,),
        "measurement/4 >": (5,),
        "measurement/4 >=": (5, more[5]),
    }


def test_tokenize_takes_the_edges_of_the_library() -> None:
    codes = pl.DataFrame(
        {"code": ["measurement/3004410", "measurement/1"], "parent_codes": [[], []]}, schema_overrides={"parent_codes": pl.List(pl.String)}
    )
    config = _with_edges(
        _with_own([]), SimpleNamespace(codes=codes), TimelineConfig(fixed_edges={"measurement/1": (3.0,), "measurement/3004410": (6.0,)})
    )
    edges = config.fixed_edges
    assert edges["measurement/1"] == (3.0,)
    assert {6.0, float(np.nextafter(np.float32(9), np.float32(10)))} <= set(edges["measurement/3004410"])
    assert 9.0 in edges["measurement/3004410 >"]


def test_tokenize_takes_the_edges_and_the_outcome_of_a_task_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\ndescription: own\nconcept_sets: {ldl: {measurement: [1]}, a: {condition: [1]}}\nindex: {concepts: a}\n"
        "outcome: {any: [{concepts: ldl, at_least: 130}, {concepts: a}]}\nhorizon_days: 365\n"
    )
    codes = pl.DataFrame({"code": ["measurement/1", "condition/1"], "parent_codes": [[], []]}, schema_overrides={"parent_codes": pl.List(pl.String)})
    data, tasks = SimpleNamespace(codes=codes), _with_own([own])
    assert len(tasks) == len(library_tasks()) + 1
    assert _with_edges(tasks, data, TimelineConfig()).fixed_edges["measurement/1"] == (130.0,)
    assert "measurement/1" not in _with_edges(_with_own([]), data, TimelineConfig()).fixed_edges
    vocabulary = SimpleNamespace(
        code=["measurement/1", "measurement/1", "condition/1"], unit=["u", "u", None], operator=[None] * 3,
        bin_low=np.array([90.0, 130.0, np.nan]), bin_high=np.array([130.0, 200.0, np.nan]), split_values=False,
    )  # fmt: skip
    assert _outcomes(tasks, data, vocabulary)["own"] == [1, 2]


def test_tokenize_names_the_outcomes_of_the_library() -> None:
    """With what an ontology puts below them; tasks without a set of tokens, or with none in the vocabulary, are left out."""
    codes = ["condition/316139", "condition/1", "condition/2", s.DEATH]
    rows = pl.DataFrame({"code": codes, "parent_codes": [[], ["condition/316139"], [], []]}, schema_overrides={"parent_codes": pl.List(pl.String)})
    vocabulary = SimpleNamespace(
        code=[None, *codes], unit=[None] * 5, operator=[None] * 5, bin_low=np.full(5, np.nan), bin_high=np.full(5, np.nan), split_values=False
    )
    outcomes = _outcomes(_with_own([]), SimpleNamespace(codes=rows), vocabulary)
    assert outcomes["t2dm_hf_1y"] == [1, 2]
    assert outcomes["discharge_home_death_1y"] == [4]
    assert not {"cad_cabg_1y", "long_stay_7d"} & outcomes.keys()


def test_bounds_that_bins_lie_across_are_named():
    """Whatever else keeps the outcome from being a set of tokens: their values are told by the median of a bin."""
    odd, edge, disease = Outcome(concepts="lab", above=5.3), Outcome(concepts="lab", above=5.0), Outcome(concepts="disease")
    assert [across_bounds(task(one), VOCABULARY) for one in (odd, edge, disease)] == [["lab above 5.3"], [], []]
    assert across_bounds(task(Outcome(all=(disease, odd)), competing=(edge,)), VOCABULARY) == ["lab above 5.3"]
    assert across_bounds(task(odd), SPLIT) == []


def test_why_an_outcome_is_no_set_of_tokens():
    disease, lab = Outcome(concepts="disease"), Outcome(concepts="lab", above=5.0)
    both = Outcome(all=(disease, Outcome(concepts="drug")))
    assert [why_no_tokens(task(one), VOCABULARY) for one in (disease, lab)] == [None, None]
    assert why_no_tokens(task(Outcome(any=(disease, both))), VOCABULARY) == "the outcome is all of several things"
    assert why_no_tokens(task(lab), SPLIT) == "the vocabulary writes 'lab' and its number as two tokens"
    assert outcome_tokens(task(lab), SPLIT) is None

"""Risk in one pass: against hazards that are known, death competing; what it makes of outcomes, silence and windows; how sure it says it is."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from cehrxgpt import schema as s
from cehrxgpt import stages
from cehrxgpt.errors import MismatchError
from cehrxgpt.events import EventDataset, conform, sort_events
from cehrxgpt.forecast import OnePass, OnePassConfig, one_pass
from cehrxgpt.forecast.cover import find_cover
from cehrxgpt.forecast.hazards import Hazards, asked_events, head_of
from cehrxgpt.forecast.rows import CURVE_TYPES
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import Loaded, load_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.event_errors import HazardErrors, errors_of_batches, hazard_errors
from cehrxgpt.objectives.incidence import incidences
from cehrxgpt.objectives.time_to_event import TimeToEvent
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Segment, assemble
from cehrxgpt.tasks import Task, load_task, parse_task
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from toy_capabilities import BENIGN, OUTCOME, history, vocabulary
from toy_objectives import VOCABULARY
from toy_store import toy_histories

LAST = datetime(2015, 6, 1)
WORDS = vocabulary()
DEATH = "MEDS_DEATH"
WIDTH, RANK = 8, 3
PROMPT = toy_histories(VOCABULARY, 1, seed=0).token_id[:PROMPT_LENGTH]


@pytest.fixture(scope="module")
def model() -> Loaded:
    return small_model()


def small_model() -> Loaded:
    torch.manual_seed(0)
    config = ModelConfig(vocabulary_size=len(WORDS), width=WIDTH, layers=1, heads=2, kv_heads=2, context=64)
    return Loaded(Decoder(config).eval(), WORDS, config, Path("toy"))


def tokens(*codes: str) -> list[int]:
    return [index for index, code in enumerate(WORDS.code) if code in codes]


def head(hazards: dict[str, list[float]], edges: tuple[float, ...] = (), *, states: bool = False, **events: list[int]) -> TimeToEvent:
    """Hazards per day by code (or by a name of `events`, tokens) and piece, the same for everybody; `states`: patients differ about them."""
    named = {name: events.get(name) or tokens(name) for name in hazards}
    facts = {"tasks": named, "edges_days": list(edges), "log_rate": [[math.log(one) for one in row] for row in hazards.values()]}
    torch.manual_seed(1)
    made = TimeToEvent(WORDS, WIDTH, RANK, facts).double()
    if states:
        made.state.weight.data.normal_(std=0.2)
    else:
        made.task.data.zero_()
    return made


def task(outcome: str = "{concepts: outcome}", *, codes: str = "condition: [2]", horizon: float = 365, gap: float = 0, more: str = "") -> Task:
    sets = "{index: {condition: [1]}, outcome: {" + codes + "}}" if "concepts" in outcome else "{index: {condition: [1]}}"
    return parse_task(
        f"name: toy\ndescription: toy\nconcept_sets: {sets}\nindex: {{concepts: index, occurrence: last}}\noutcome: {outcome}\n"
        f"horizon_days: {horizon}\ngap_days: {gap}\n{more}",
        where="toy",
    )


def at(*elapsed_days: float, subject: int = 1) -> pl.DataFrame:
    rows = [(subject, LAST + timedelta(days=days)) for days in elapsed_days]
    return pl.DataFrame(rows, schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}, orient="row")


def risks(model: Loaded, hazards: TimeToEvent, asked: Task, *elapsed_days: float) -> list[float]:
    return one_pass(model, history(1), at(*elapsed_days), [asked], head=hazards).predictions["predicted_boolean_probability"].to_list()


def constant(outcome: float, death: float, days: float) -> float:
    return outcome / (outcome + death) * -math.expm1(-(outcome + death) * days)


# -- from hazards to risks ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(0, 4), st.floats(0, 60), st.sampled_from([0.0, 7.0, 100.0]))
@settings(deadline=None, max_examples=25)
def test_incidence_is_the_integral(seed: int, inner: int, begin: float, opens: float) -> None:
    random = np.random.default_rng(seed)
    edges = np.sort(random.uniform(1, 200, size=inner))
    outcome, death = random.exponential(0.01, size=(2, inner + 1))
    days = np.array([opens + 3.0, opens + 250.0])
    told, _ = incidences(*(torch.from_numpy(one) for one in (edges, outcome[None], death[None], np.array([begin]), days)), opens=opens)
    found = told[0].tolist()
    step = 0.002
    time = begin + np.arange(0, days[-1], step) + step / 2
    piece = np.searchsorted(edges, time)
    hazard = np.where(time > begin + opens, outcome[piece], 0.0)
    survival = np.exp(-np.cumsum((hazard + death[piece]) * step))
    for until, value in zip(days, found, strict=True):
        assert value == pytest.approx(float((hazard * survival * step)[time < begin + until].sum()), abs=5e-4)


def test_before_the_window_opens_all_who_die_count_and_no_outcome_does() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    outcome, death = 0.01 * one, 0.002 * one
    days = torch.tensor([50.0, 150.0], dtype=torch.float64)
    risk, dead = incidences(torch.zeros(0, dtype=torch.float64), outcome, death, torch.zeros(1, dtype=torch.float64), days, opens=50.0)
    assert risk[0, 0] == 0
    assert dead[0, 0].item() == pytest.approx(-math.expm1(-0.1))
    assert dead[0, 1].item() == pytest.approx(-math.expm1(-0.1) + math.exp(-0.1) * constant(0.002, 0.01, 100))


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_incidences_and_survival_share_one(seed: int) -> None:
    """Outcome, death, or neither: the incidences of both add up to 1 - S of either, and grow with time."""
    random = np.random.default_rng(seed)
    edges = torch.from_numpy(np.sort(random.uniform(1, 900, size=5)))
    outcome, death = torch.from_numpy(random.exponential(0.01, size=(2, 4, 6)) * random.integers(0, 2, size=(2, 4, 6)))
    begin, days = torch.from_numpy(random.uniform(0, 500, size=4)), torch.linspace(0, 3000, 60, dtype=torch.float64)
    first, second = incidences(edges, outcome, death, begin, days)[0], incidences(edges, death, outcome, begin, days)[0]
    either = incidences(edges, outcome + death, torch.zeros_like(death), begin, days)[0]
    assert torch.allclose(first + second, either, atol=1e-12)
    assert torch.allclose(incidences(edges, outcome, death, begin, days)[1], second, atol=1e-12)
    assert (first[:, 0] == 0).all()
    assert (first.diff(dim=1) >= -1e-15).all()
    alone = incidences(edges, outcome, torch.zeros_like(death), begin, days)[0]
    assert (alone >= first - 1e-12).all()


# -- one pass -------------------------------------------------------------------------------------------------------------------------


def test_risk_of_constant_hazards_whatever_the_silence(model: Loaded) -> None:
    known = head({OUTCOME: [0.002], DEATH: [0.001]})
    found = risks(model, known, task(), 0.5, 40, 400)
    assert found == pytest.approx([constant(0.002, 0.001, 365)] * 3, rel=1e-6)
    assert found[0] < -math.expm1(-0.002 * 365) - 0.05  # what leaving death out would say
    assert risks(model, known, task("{death: true}"), 3) == pytest.approx([-math.expm1(-0.001 * 365)], rel=1e-6)


def test_silence_is_known(model: Loaded) -> None:
    """Hazard 0.01 a day for ten days and 0.001 from then on, past the last edge as well: what counts is when the question is asked."""
    known = head({OUTCOME: [0.01, 0.001], DEATH: [0.002, 0.002]}, (10.0,))
    early = constant(0.01, 0.002, 6) + math.exp(-0.012 * 6) * constant(0.001, 0.002, 359)
    assert risks(model, known, task(), 4, 10, 5000) == pytest.approx([early, *[constant(0.001, 0.002, 365)] * 2], rel=1e-5)


def test_nothing_is_told_after_a_silence_that_no_token_can_say(model: Loaded) -> None:
    known, longest = head({OUTCOME: [0.002], DEATH: [0.001]}), model.vocabulary.longest_gap_days
    found = one_pass(model, history(1), at(longest, longest + 1), [task()], head=known)
    assert found.predictions["predicted_boolean_probability"].is_null().to_list() == [False, True]
    assert "nothing happened between" in found.predictions["note"][1]


def test_curves_end_in_the_prediction(model: Loaded) -> None:
    known = head({OUTCOME: [0.01, 0.001], DEATH: [0.002, 0.004]}, (100.0,), states=True)
    found = one_pass(model, history(2), at(1, 30), [task()], OnePassConfig(curve_points=12), head=known)
    assert dict(found.curves.schema) == CURVE_TYPES
    for _, curve in found.curves.group_by("prediction_time"):
        assert curve["days"].to_list() == pytest.approx(np.arange(1, 13) * 365 / 12)
        assert (np.diff(curve["cumulative_incidence"].to_numpy(), prepend=0) > 0).all()
        assert (np.diff(curve["competing_incidence"].to_numpy(), prepend=0) > 0).all()
        assert (curve["cumulative_incidence"] + curve["competing_incidence"] < 1).all()
    last = found.curves.filter(pl.col("days") == 365)["cumulative_incidence"].to_list()
    assert last == found.predictions["predicted_boolean_probability"].to_list()
    assert last[0] != last[1]
    unknown = one_pass(model, history(2), at(1), [task()], OnePassConfig(curve_points=3), head=head({OUTCOME: [0.01]}))
    assert unknown.curves["competing_incidence"].is_null().all()  # the head knows nothing of death


def test_a_window_that_opens_later(model: Loaded) -> None:
    """Any outcome in the window counts, whether or not one came before it: for a constant hazard that is exact, and the bounds hold it."""
    known = head({OUTCOME: [0.004], DEATH: [0.001]})
    found = one_pass(model, history(1), at(2), [task(horizon=100, gap=50)], OnePassConfig(curve_points=4), head=known)
    truth = math.exp(-0.001 * 50) * constant(0.004, 0.001, 100)
    row = found.predictions.row(0, named=True)
    assert row["predicted_boolean_probability"] == pytest.approx(truth, rel=1e-6)
    assert row["lower_bound"] == pytest.approx(constant(0.004, 0.001, 150) - constant(0.004, 0.001, 50), rel=1e-6)
    assert row["upper_bound"] == pytest.approx(constant(0.004, 0.001, 150), rel=1e-6)
    # On the days that curves of futures have, so that scores over time compare; nothing counts before the window.
    assert found.curves["days"].to_list() == [37.5, 75, 112.5, 150]
    before, *_, close = found.curves["cumulative_incidence"].to_list()
    assert (before, close) == (0, pytest.approx(truth))


def test_an_outcome_of_several_events(model: Loaded) -> None:
    rates = {BENIGN: [0.002], OUTCOME: [0.001], DEATH: [0.0005]}
    both = task(codes="condition: [1, 2]")
    row = one_pass(model, history(1), at(2), [both], head=head(rates)).predictions.row(0, named=True)
    assert row["predicted_boolean_probability"] == pytest.approx(constant(0.003, 0.0005, 365), rel=1e-6)  # independent
    assert row["lower_bound"] == pytest.approx(constant(0.002, 0.0005, 365), rel=1e-6)  # one never without the other
    assert row["upper_bound"] == pytest.approx(constant(0.002, 0.0005, 365) + constant(0.001, 0.0005, 365), rel=1e-6)  # never both
    # An event of the head that is the outcome, an ancestor say, settles it; one that holds more bounds it.
    found = one_pass(model, history(1), at(2), [both], head=head(rates | {"above": [0.0025]}, above=tokens(BENIGN, OUTCOME)))
    row = found.predictions.row(0, named=True)
    assert found.summary["outcomes"]["toy"] == {"events": ["above"], "covered": 1.0, "competing": DEATH}
    assert row["lower_bound"] == row["predicted_boolean_probability"] == row["upper_bound"] == pytest.approx(constant(0.0025, 0.0005, 365), rel=1e-6)
    # Tasks of one outcome share an event, which bears the name of the first; told is the one that was asked about.
    shared = one_pass(
        model, history(1), at(2), [both], head=head({"outcome:other": [0.0025], DEATH: [0.0005]}, **{"outcome:other": tokens(BENIGN, OUTCOME)})
    )
    assert shared.summary["outcomes"]["toy"]["events"] == ["outcome:toy, the same tokens as outcome:other"]
    inside = asked_events(model, head(rates), [both])
    assert inside == [0, 1, 2]


def test_a_visit_that_only_counts_where_it_lasts() -> None:
    rows = [*WORDS.table.to_pylist(), {**WORDS.table.to_pylist()[-1], "token": "visit:8870", "kind": int(Kind.VISIT_TYPE), "code": "Visit/8870"}]
    words = type(WORDS).from_rows([{key: value for key, value in row.items() if key != "id"} for row in rows], WORDS.settings)
    stay, size = words.id_of("visit:8870"), len(words)
    certain = [index for index, code in enumerate(words.code) if code == "Visit/9201"]
    events = [[*certain, size + stay], [*certain, stay], certain, [2 * size + stay]]
    cover = find_cover([*certain, size + stay], events, words)
    assert (cover.inside, cover.above, cover.share) == ((0,), (1,), 1.0)
    assert find_cover([stay], events[3:], words).inside == (0,)  # short ones alone: not the whole
    assert find_cover([stay], [[stay], *events], words).inside == (0,)


def test_a_cover_takes_what_adds_most() -> None:
    ids = [VOCABULARY.id_of(f"condition/{number}") for number in range(5)]
    outcome = ids[:4]
    events = [[ids[0]], [ids[0], ids[1]], [ids[2]], [*ids], [ids[3], ids[4]], [VOCABULARY.id_of("MEDS_DEATH")]]
    cover = find_cover(outcome, events, VOCABULARY)
    assert (set(cover.inside), cover.above, cover.death) == ({1, 2}, (3,), 5)
    rows = [row | {"subjects": 50 if row["token"] == "condition/3" else 150 if row["code"] else None} for row in VOCABULARY.table.to_pylist()]
    counted = type(VOCABULARY).from_rows(rows, VOCABULARY.settings)
    assert find_cover(outcome, events, counted).share == pytest.approx(0.9)
    assert find_cover(outcome, events, counted).parts == (1, 1)


def test_what_two_events_both_hold_counts_once() -> None:
    """A, B and C are the outcome, the head forecasts A or B and B or C: of the second the hazard of C alone is added."""
    three = [f"condition/{number}" for number in range(3)]
    rows = [row | {"subjects": 100 if row["token"] in three else None} for row in VOCABULARY.table.to_pylist()]
    words = type(VOCABULARY).from_rows(rows, VOCABULARY.settings)
    a, b, c = (words.id_of(token) for token in three)
    cover = find_cover([a, b, c], [[a, b], [b, c]], words)
    assert (cover.inside, cover.parts, cover.share) == ((0, 1), (1, 0.5), 1)
    hazards = Hazards(
        torch.zeros(0, dtype=torch.float64), torch.tensor([[[0.004, 0.002]]], dtype=torch.float64).log(), None, torch.zeros(1, dtype=torch.float64)
    )
    risk, _ = hazards.incidences(cover, torch.tensor([100.0], dtype=torch.float64))
    assert float(risk) == pytest.approx(1 - math.exp(-100 * (0.004 + 0.001)))
    lower, upper = hazards.bounds(cover, risk[:, -1], torch.tensor([100.0], dtype=torch.float64))
    assert float(lower) == pytest.approx(1 - math.exp(-0.4))
    assert float(upper) == pytest.approx(2 - math.exp(-0.4) - math.exp(-0.2))


def test_refused_rows_say_why(model: Loaded) -> None:
    known = head({OUTCOME: [0.002], DEATH: [0.001]})
    strange = history(1, code="condition/999").with_columns(pl.lit(2, dtype=pl.Int64).alias("subject_id"))
    had = history(1, code=OUTCOME).with_columns(pl.lit(3, dtype=pl.Int64).alias("subject_id"))
    dead = pl.concat([history(1), history(1).tail(1).with_columns(pl.lit(DEATH).alias("code"))]).with_columns(
        pl.lit(4, dtype=pl.Int64).alias("subject_id")
    )
    events = sort_events(pl.concat([history(1), strange, had, dead]))
    rows = pl.concat([at(2, subject=subject) for subject in (1, 2, 3, 4, 5)])

    def notes(asked: Task, hazards: TimeToEvent | None = known) -> list[str | None]:
        found = one_pass(model, events, rows, [asked], head=hazards).predictions
        s.check_columns(found.to_arrow(), s.PREDICTION_SCHEMA, where="predictions")
        assert found["subject_id"].to_list() == rows["subject_id"].to_list()
        assert found["predicted_boolean_probability"].is_null().to_list() == found["note"].is_not_null().to_list()
        return found["note"].to_list()

    plain = notes(task(more="first_onset: true"))
    assert plain[0] is None
    for note, part in zip(plain[1:], ("100%", "first onset", "death", "not in the events"), strict=True):
        assert note is not None
        assert part in note
    assert "trained without" in str(notes(task(), None)[0])
    assert "no token" in str(notes(task(codes="condition: [77]"))[0])
    assert "hazards do not hold the outcome (events of the head make up 0% of it)" in str(notes(task(codes="condition: [1]"))[0])
    stay = parse_task(
        "name: stay\ndescription: toy\nindex: {visit: [inpatient], at: start}\noutcome: {stay_over_days: 7}\n",
        where="stay",
    )
    assert "no set of tokens" in str(notes(stay)[0])


def test_nothing_after_the_prediction_time_is_used(model: Loaded) -> None:
    known = head({OUTCOME: [0.01, 0.001], DEATH: [0.002, 0.004]}, (100.0,), states=True)
    future = history(3, last=LAST + timedelta(days=40), code=OUTCOME).filter(pl.col("time") > LAST + timedelta(days=2))
    config = OnePassConfig(curve_points=5)

    def found(events: pl.DataFrame) -> OnePass:
        return one_pass(model, events, at(1), [task()], config, head=known)

    plain, later = found(history(3)), found(sort_events(pl.concat([history(3), future])))
    assert later.predictions.equals(plain.predictions, null_equal=True)
    assert later.curves.equals(plain.curves, null_equal=True)
    moved = future.with_columns(pl.col("time", "available_time") + timedelta(days=11))
    assert found(sort_events(pl.concat([history(3), moved]))).curves.equals(plain.curves, null_equal=True)
    past = history(3, code=OUTCOME)
    assert not found(past).curves.equals(plain.curves, null_equal=True)


def test_a_visit_of_a_day_is_ended_before_it_is_read() -> None:
    """Asked in the middle of a visit that goes by the day, the head is read at the visit's end, the only place it learned at."""
    rows = [{"token": "Visit/9202", "kind": 10, "code": "Visit/9202", "origin": "visit_occurrence"}]
    words = type(WORDS).from_rows([*WORDS.table.to_pylist(), *rows], WORDS.settings)
    torch.manual_seed(0)
    config = ModelConfig(vocabulary_size=len(words), width=WIDTH, layers=1, heads=2, kv_heads=2, context=64)
    loaded = Loaded(Decoder(config).eval(), words, config, Path("toy"))
    read: list[list[str]] = []
    handle = loaded.decoder.register_forward_hook(lambda _, inputs, output: read.append([words.token[int(index)] for index in inputs[0][0]]))

    def last(code: str) -> str:
        shared = {"subject_id": 1, "visit_id": 7, "time_precision": "minute"}
        noon = LAST + timedelta(days=9, hours=12)
        visit = [
            shared | {"time": noon, "code": code, "available_time": noon, "end_time": noon + timedelta(hours=1)},
            shared | {"time": noon + timedelta(minutes=9), "code": BENIGN, "available_time": noon + timedelta(minutes=9), "end_time": None},
        ]
        frame = conform(pl.DataFrame(visit, schema_overrides=dict.fromkeys(("time", "available_time", "end_time"), pl.Datetime("us"))))
        events = sort_events(pl.concat([history(1), frame]))
        known = head({OUTCOME: [0.002], DEATH: [0.001]})
        assert one_pass(loaded, events, at(9.52), [task()], head=known).predictions["note"].to_list() == [None]
        return read[-1][-1]

    assert last("Visit/9202") == "[VE]"
    assert last("Visit/9201") == BENIGN
    handle.remove()


# -- how sure -------------------------------------------------------------------------------------------------------------------------


class OneState(nn.Module):
    """A decoder that knows nothing of anybody."""

    def __init__(self, width: int = 1):
        super().__init__()
        self.width = width

    def forward(self, token_id: Tensor, **_: Tensor) -> Tensor:
        return torch.ones(*token_id.shape, self.width, dtype=torch.float64)


def _patient(random: np.random.Generator, days: int = 700) -> Segment:
    """Somebody with an outcome every 150 days and a benign event every 40, watched for so many days."""
    names, when = [], []
    for name, gap in (("condition/1", 150), ("condition/3", 40)):
        times = np.cumsum(random.exponential(gap, size=60))
        when.append(times[times < days])
        names.append(np.full(len(when[-1]), VOCABULARY.id_of(name)))
    time, token = np.concatenate(when), np.concatenate(names)
    order = np.argsort(time)
    age = np.concatenate([np.zeros(PROMPT_LENGTH), [0], np.round(time[order] * 1440)]).astype(np.int64)
    told = np.concatenate([PROMPT, [VOCABULARY.id_of("condition/0")], token[order]])
    watched = days - int(time.max(initial=0))
    return Segment(told, age, np.full(len(told), np.nan, dtype=np.float32), 0, watched)


def test_the_standard_error_is_that_of_another_sample_of_patients() -> None:
    """Hazards fitted to each of 100 hospitals of 30 patients spread as every one of them says; places as news would say far too little."""
    random = np.random.default_rng(5)
    facts = {"tasks": {"condition/1": [VOCABULARY.id_of("condition/1")]}, "edges_days": [], "log_rate": [[-5.0]]}
    fitted = TimeToEvent(VOCABULARY, 1, 1, facts).double()
    fitted.state.weight.data.zero_()
    found, said, naive = [], [], []
    for _ in range(100):
        batch = assemble([_patient(random) for _ in range(30)])
        targets = fitted.reader(batch)
        events = torch.isfinite(targets.event_days).sum().item()
        days = torch.minimum(targets.event_days, targets.end_days[:, None]).double().sum().item()
        fitted.bias.data.fill_(math.log(events / days))
        errors = errors_of_batches(OneState(), fitted, [batch], [0])  # type: ignore[arg-type]
        assert errors.patients == 30
        hazards = Hazards(
            torch.zeros(0, dtype=torch.float64),
            fitted.bias.data[None].clone(),
            torch.tensor([[[0.0, 1.0]]], dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
        )
        outcome = [VOCABULARY.id_of("condition/1")]
        cover, window = find_cover(outcome, list(fitted.tasks.values()), VOCABULARY), torch.tensor([100.0], dtype=torch.float64)
        found.append(hazards.incidences(cover, window)[0].item())
        said.append(hazards.std_error(cover, window, errors).item())
        places = HazardErrors((0,), torch.tensor([[0.0, 0.0, events**-0.5]], dtype=torch.float64), 1)
        naive.append(hazards.std_error(cover, window, places).item())
    spread = float(np.std(found, ddof=1))
    assert np.mean(said) == pytest.approx(spread, rel=0.2)
    assert np.mean(naive) < 0.6 * spread
    assert np.mean(found) == pytest.approx(-math.expm1(-100 / 150), abs=0.03)


def test_errors_of_many_wide_tasks_stay_small() -> None:
    """40 tasks of a state of 600 numbers: what is kept grows with patients and weights, not with the square of all weights (4.7 GB)."""
    facts = {"tasks": {str(task): [VOCABULARY.id_of(f"condition/{1 + task % 4}")] for task in range(40)}, "edges_days": [], "log_rate": [[-5.0]] * 40}
    fitted = TimeToEvent(VOCABULARY, 600, 2, facts)
    batch = assemble([_patient(np.random.default_rng(one), days=200) for one in range(4)])
    state = OneState(600)
    errors = errors_of_batches(state, fitted, [batch], range(40))  # type: ignore[arg-type]
    assert errors.influence.shape == (4, 40 * 603)
    alone = errors_of_batches(state, fitted, [batch], [3])  # type: ignore[arg-type]
    torch.testing.assert_close(errors.of([3]), alone.influence)
    torch.testing.assert_close(errors.of([7, 3]), torch.cat([errors.of([7]), errors.of([3])], dim=1))


def test_standard_errors_reach_predictions_and_curves(model: Loaded) -> None:
    """To first order: what the risk moves by when weights are moved, in the direction in which they are unsure."""
    known = head({BENIGN: [0.002, 0.001], OUTCOME: [0.01, 0.001], DEATH: [0.002, 0.004]}, (100.0,), states=True)
    size = RANK + WIDTH + known.pieces
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=2 * size))
    errors = HazardErrors((1, 2), direction[None], 1)
    config = OnePassConfig(curve_points=3)
    found = one_pass(model, history(1), at(20), [task(gap=10)], config, head=known, errors=errors)
    step = 1e-4
    moved = head({BENIGN: [0.002, 0.001], OUTCOME: [0.01, 0.001], DEATH: [0.002, 0.004]}, (100.0,), states=True)
    for place, event in enumerate((1, 2)):
        mine = direction[place * size : (place + 1) * size] * step
        moved.task.data[:, event] += mine[:RANK]
        moved.direct.weight.data[event] += mine[RANK : RANK + WIDTH]
        moved.bias.data[:, event] += mine[RANK + WIDTH :]
    after = one_pass(model, history(1), at(20), [task(gap=10)], config, head=moved)
    slope = (after.curves["cumulative_incidence"] - found.curves["cumulative_incidence"]).abs() / step
    assert found.curves["std_error"].to_list() == pytest.approx(slope.to_list(), rel=1e-2)
    assert found.predictions["std_error"][0] == found.curves["std_error"][-1]
    other = replace(errors, tasks=(0, 2))
    assert one_pass(model, history(1), at(20), [task()], config, head=known, errors=other).predictions["std_error"].to_list() == [None]


# -- a model that was trained -----------------------------------------------------------------------------------------------------------


MARKER = "measurement/10"
RATES = {BENIGN: (1 / 1500, 1 / 3000), MARKER: (1 / 200, 1 / 800)}  # of outcome and death, a day


def _lives(random: np.random.Generator, sort: str) -> Segment:
    """Somebody of a sort: two records of it ten days apart, then outcomes until death or for 900 days."""
    outcome, death = (random.exponential(1 / rate, size=40) for rate in RATES[sort])
    dies = min(float(death[0]), 900)
    times = [0, 10, *(10 + when for when in np.cumsum(outcome).round() if when < dies), *([10 + round(dies)] if dies < 900 else [])]
    codes = [sort, sort, *[OUTCOME] * (len(times) - 2 - (dies < 900)), *([DEATH] if dies < 900 else [])]
    names = ["[BOS]", "year:2015", "month:5", "age:65", "age_months:0", "gender:8532", "race:8527"]
    ages, before = [0] * len(names), 0
    for time, code in zip(times, codes, strict=True):
        names += [f"D{min(int(time - before), 60)}", code] if time > before else [code]
        ages += [int(time) * 1440] * (2 if time > before else 1)
        before = time
    last = -1 if dies < 900 else int(910 - before)
    told = np.array([WORDS.id_of(name) for name in names], dtype=np.int32)
    return Segment(told, np.array(ages) + 65 * 525_960, np.full(len(told), np.nan, dtype=np.float32), 0, last)


def test_a_trained_head_finds_the_rates() -> None:
    """Two sorts of patients, seven times as likely to have the outcome and four times as likely to die: both risks, death competing, are learned."""
    random = np.random.default_rng(2)
    batch = assemble([_lives(random, sort) for sort in RATES for _ in range(200)])
    torch.manual_seed(0)
    config = ModelConfig(vocabulary_size=len(WORDS), width=WIDTH, layers=1, heads=2, kv_heads=2, context=64)
    decoder = Decoder(config)
    learned = head({OUTCOME: [1 / 400] * 2, DEATH: [1 / 1500] * 2}, (100.0,)).float()
    learned.task.data.normal_(std=RANK**-0.5)
    optimizer = torch.optim.Adam([*decoder.parameters(), *learned.parameters()], lr=0.02)
    for _ in range(40):
        hidden = decoder(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
        total, count = learned(decoder, hidden, batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    trained = Loaded(decoder.eval(), WORDS, config, Path("toy"))
    errors = errors_of_batches(decoder, learned.eval(), [batch], [0, 1])
    found = {
        sort: one_pass(trained, history(1, code=sort), at(1, 60), [task(horizon=300)], head=learned, errors=errors).predictions for sort in RATES
    }
    for sort, (outcome, death) in RATES.items():
        for risk, error in found[sort].select("predicted_boolean_probability", "std_error").iter_rows():
            assert error < 0.06
            assert abs(risk - constant(outcome, death, 300)) < 0.1


@pytest.mark.slow
def test_a_trained_head_ranks_patients(tmp_path: Path) -> None:
    """From simulated tables to risks of death, better than chance and about as high as deaths are."""
    stages.simulate(tmp_path / "cdm", {"patients": 1500, "seed": 3, "truth_samples": 0})
    stages.ingest(tmp_path / "cdm", tmp_path / "events", {})
    stages.tokenize(tmp_path / "events", tmp_path / "timeline", {})
    shape = {"width": 64, "layers": 1, "heads": 4, "kv_heads": 2, "context": 256}
    objectives = {"next_token": 1.0, "time_to_event": {"tasks": 32}}
    given = {"model": shape, "objectives": objectives, "steps": 300, "evaluate_every": 10_000, "patience": 0, "precision": "float32"}
    stages.pretrain(tmp_path / "timeline", tmp_path / "model", "demo", overrides=given)
    stages.label(tmp_path / "events", "discharge_home_death_1y", tmp_path / "labels.parquet")
    events, loaded = EventDataset(tmp_path / "events"), load_model(tmp_path / "model")
    hazards = head_of(loaded)
    assert hazards is not None
    assert "outcome:t2dm_hf_1y" in hazards.tasks
    labels = pl.read_parquet(tmp_path / "labels.parquet").join(events.subject_splits.filter(pl.col("split") != s.TRAIN), on="subject_id", how="semi")
    store = TokenStore(tmp_path / "timeline")
    errors = hazard_errors(loaded.decoder, hazards, store, asked_events(loaded, hazards, [load_task("discharge_home_death_1y")]))
    found = one_pass(loaded, events, labels, ["discharge_home_death_1y"], errors=errors).predictions
    assert found["note"].null_count() == found.height
    known = found.filter(pl.col("boolean_value").is_not_null())
    positives = int(known["boolean_value"].sum())
    by_chance = math.sqrt((known.height + 1) / (12 * positives * (known.height - positives)))  # standard error of an AUROC of 0.5
    assert roc_auc_score(known["boolean_value"].to_numpy(), known["predicted_boolean_probability"].to_numpy()) > 0.5 + 2 * by_chance
    mean, share = known["predicted_boolean_probability"].mean(), known["boolean_value"].mean()
    assert 0.5 < mean / share < 2
    assert found["std_error"].is_between(0, 0.2, closed="none").all()
    stages.tokenize(tmp_path / "events", tmp_path / "other", {"value_bins": 5})
    given = {"estimator": "time_to_event"}
    with pytest.raises(MismatchError, match="other was written with another vocabulary than that of"):
        stages.forecast(
            tmp_path / "model", tmp_path / "events", [tmp_path / "labels.parquet"], tmp_path / "risk.parquet", given, timeline=tmp_path / "other"
        )

"""Time to event: targets and loss against brute force, where its tasks, pieces and rates come from, and a rate that stays under censoring."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cehrxgpt.errors import ConfigError
from cehrxgpt.objectives.event_tasks import choose_tasks, fit_hazards, round_days
from cehrxgpt.objectives.event_times import EventReader
from cehrxgpt.objectives.standing import Standing
from cehrxgpt.objectives.time_to_event import TimeToEvent
from cehrxgpt.schema import TRAIN
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import ANCESTORS_FILE, OUTCOMES_FILE, TokenStore
from cehrxgpt.store.loader import Loader, Segment, assemble
from cehrxgpt.store.packing import first_fit
from cehrxgpt.timeline.encoded import concatenate
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.train import TrainConfig
from cehrxgpt.train.optim import HEAD_BETA2, make_optimizer
from toy_objectives import VOCABULARY, decoder, loss_of, segments
from toy_store import retold, save_store, toy_histories, toy_vocabulary

PROMPT = toy_histories(VOCABULARY, 1, seed=0).token_id[:PROMPT_LENGTH]
TASKS = [
    [VOCABULARY.id_of("condition/1")],
    [VOCABULARY.id_of("condition/2"), VOCABULARY.id_of("condition/3")],
    [VOCABULARY.id_of("MEDS_DEATH")],
    [VOCABULARY.id_of("visit:9201"), VOCABULARY.id_of("condition/1")],
    [len(VOCABULARY) + VOCABULARY.id_of("visit:9201")],  # only one that lasts
    [2 * len(VOCABULARY) + VOCABULARY.id_of("visit:9201"), VOCABULARY.id_of("condition/2")],  # only one that does not
]


def happens(batch: PackedBatch, row: int, column: int, inside: list[int], events: list[int]) -> bool:
    """Whether the token is one of these events, by `timeline.lasting`."""
    token, size = int(batch.token_id[row, column]), len(VOCABULARY)
    ends = [x for x in inside if x > column and VOCABULARY.kind[int(batch.token_id[row, x])] == Kind.VISIT_END]
    lasts = int(batch.age_minutes[row, min([*ends, inside[-1]])] - batch.age_minutes[row, column]) > 1440
    is_visit = VOCABULARY.kind[token] == Kind.VISIT_TYPE
    return token in events or (is_visit and (1 if lasts else 2) * size + token in events)


def brute_force(batch: PackedBatch) -> dict[int, tuple[float, list[float]]]:
    """place -> (days observed, days to each task's next occurrence), token by token."""
    rows, width = batch.token_id.shape
    found = {}
    for r in range(rows):
        for c in range(width):
            segment = int(batch.segment_id[r, c])
            inside = [x for x in range(width) if int(batch.segment_id[r, x]) == segment]
            kind = VOCABULARY.kind[int(batch.token_id[r, c])]
            if not segment or int(batch.position[r, c]) < PROMPT_LENGTH or kind in (Kind.YEAR_GAP, Kind.DEATH, Kind.END):
                continue
            age, last = int(batch.age_minutes[r, c]), inside[-1]
            end = int(batch.age_minutes[r, last]) + 1440 * max(int(batch.censor_gap_days[r, last]), 0)
            is_last_of_time = c == last or int(batch.age_minutes[r, c + 1]) > age
            opened = [x for x in inside if x < c and VOCABULARY.kind[int(batch.token_id[r, x])] == Kind.VISIT_TYPE]
            ends_stay = kind == Kind.VISIT_END and int(batch.token_id[r, opened[-1]]) == VOCABULARY.id_of("visit:9201")
            if not (is_last_of_time or ends_stay) or (c == last and end == age):
                continue
            later = [(int(batch.age_minutes[r, x]) - age, x) for x in inside if x > c]
            next_days = [min((days / 1440 for days, x in later if happens(batch, r, x, inside, events)), default=math.inf) for events in TASKS]
            found[r * width + c] = ((end - age) / 1440, next_days)
    return found


@given(st.integers(0, 10_000), st.integers(1, 6), st.booleans())
@settings(deadline=None, max_examples=20)
def test_targets_are_those_of_brute_force(seed: int, patients: int, packed: bool) -> None:
    batch = assemble(segments(toy_histories(VOCABULARY, patients, seed=seed)), width=200 if packed else None)
    targets = EventReader(VOCABULARY, TASKS)(batch)
    expected = brute_force(batch)
    assert targets.place.tolist() == sorted(expected)
    for place, end, events in zip(targets.place.tolist(), targets.end_days.tolist(), targets.event_days.tolist(), strict=True):
        assert end == pytest.approx(expected[place][0], rel=1e-6)
        assert events == pytest.approx(expected[place][1], rel=1e-6)


def test_at_the_end_of_a_stay_the_same_day_is_still_to_come() -> None:
    """Whoever is admitted again at once counts where people ask; the end of a visit by the day is followed by its day's other units."""
    words = ["condition/1", "[VE]", "D0", "[VS]", "visit:9201", "i-H5", "condition/2", "[VE]", "D0", "condition/1", "D9", "condition/3"]
    for opens, place in (("visit:9201", True), ("visit:9202", False)):
        token = np.concatenate([PROMPT, [VOCABULARY.id_of(word) for word in ("[VS]", opens, *words)]])
        _, age = Grammar(VOCABULARY).follow(token[None])
        reader = EventReader(VOCABULARY, [[VOCABULARY.id_of("visit:9201")], [VOCABULARY.id_of("condition/1")]])
        found = reader(assemble([Segment(token, age[0], np.full(len(token), np.nan, np.float32), 0, 5)]))
        first_end = PROMPT_LENGTH + 3
        assert (first_end in found.place.tolist()) == place
        if place:
            at = found.place.tolist().index(first_end)
            assert found.event_days[at, 0] == 0
            assert found.event_days[at, 1] == pytest.approx(5 / 24)


@given(st.integers(0, 10_000), st.sampled_from([48, 64, 100]))
@settings(deadline=None, max_examples=15)
def test_a_window_looks_as_far_ahead_as_the_whole_history(seed: int, context: int) -> None:
    """Targets inside windows that were cut are those of the same tokens in their histories: also which visits last."""
    histories = toy_histories(VOCABULARY, 4, seed=seed, units=(12, 60))
    reader = EventReader(VOCABULARY, TASKS)
    with TemporaryDirectory() as folder:
        store = TokenStore(save_store(Path(folder) / "timeline", VOCABULARY, {TRAIN: histories}))
        loader = Loader(store, TRAIN, tokens_per_batch=256, context=context, seed=seed, ahead=True)
        compared = 0
        for step in range(loader.batches_per_epoch):
            batch = loader.batch(step)
            targets, width = reader(batch), batch.token_id.shape[1]
            for row, history in enumerate(loader.subjects(step)):
                (length,) = (batch.segment_id[row] > 0).nonzero()[-1:, 0] + 1
                after = batch.ahead_place == row * width + length - 1
                if after.any() and batch.ahead_token[after][-1] != 0:
                    continue  # not shown to its end
                whole = reader(assemble(segments(histories.subset(np.array([history])))))
                stop = len(histories.token_id[histories.history(int(history))]) - max(int(after.sum()) - 1, 0)
                known = dict(zip(whole.place.tolist(), zip(whole.end_days.tolist(), whole.event_days.tolist(), strict=True), strict=True))
                mine = (targets.place // width == row).nonzero().squeeze(1)
                for at in mine.tolist():
                    place = int(targets.place[at]) % width
                    end, events = known[stop - int(length) + place]
                    assert float(targets.end_days[at]) == pytest.approx(end, rel=1e-6)
                    assert targets.event_days[at].tolist() == pytest.approx(events, rel=1e-6)
                    compared += 1
        assert compared > 20


def test_rates_do_not_depend_on_the_context(tmp_path: Path) -> None:
    """People who are often ill fill a context sooner: with one window of each, or none of what comes after it, late rates would be too low."""
    random, parts = np.random.default_rng(0), []
    base, one, other = toy_histories(VOCABULARY, 1), VOCABULARY.id_of("condition/1"), VOCABULARY.id_of("condition/2")
    for subject in range(300):
        mean_days, share = (10, 0.04) if subject % 3 else (100, 0.02)
        gaps = random.integers(1, 2 * mean_days, size=2000 // mean_days).tolist()
        tokens = [token for gap in gaps for token in (one if random.random() < share else other, VOCABULARY.id_of(f"D{gap}"))]
        parts.append(retold(VOCABULARY, base, [*tokens, other], subject=subject))
    store = TokenStore(save_store(tmp_path / "timeline", VOCABULARY, {TRAIN: concatenate(parts)}))
    task = {"one": [one]}
    whole, cut = (np.exp(fit_hazards(store, task, 3, context)["log_rate"][0]) for context in (4096, 48))
    np.testing.assert_allclose(cut, whole, rtol=0.1)


def test_visits_that_last_are_told_from_those_that_do_not() -> None:
    every = segments(toy_histories(VOCABULARY, 40, seed=5, units=(3, 8)))
    _, _, _, _, lasts, short = EventReader(VOCABULARY, TASKS)(assemble(every)).event_days.isfinite().any(0).tolist()
    assert lasts
    assert short
    stay, size = VOCABULARY.id_of("visit:9201"), len(VOCABULARY)
    kept = [[stay], [size + stay, 2 * size + stay]]
    both = EventReader(VOCABULARY, kept)(assemble(every)).event_days
    assert torch.equal(both[:, 0], both[:, 1])


def test_a_visit_that_was_cut_lasts_where_so_much_of_it_is_seen() -> None:
    """A window ends inside a stay, and another patient's stay, which has an end, comes behind it."""
    words = ["[BOS]", "condition/1", "[VS]", "visit:9201", "condition/2"]
    token = torch.tensor([*(VOCABULARY.id_of(word) for word in words), *(VOCABULARY.id_of(word) for word in (*words, "[VE]"))])
    segment = torch.tensor([1] * 5 + [2] * 6)
    day, size, stay = 1440, len(VOCABULARY), VOCABULARY.id_of("visit:9201")
    for seen, cut_lasts in ((3 * day, True), (day, False)):
        age = torch.tensor([0, 0, day, day, day + seen, 0, 0, day, day, day, 4 * day])
        stands = Standing(VOCABULARY)(token, age, segment)
        assert stands[[3, 8]].tolist() == [size + stay if cut_lasts else stay, size + stay]
    alone = Standing(VOCABULARY)(token[:5], age[:5] * 2, segment[:5])
    assert alone[3] == size + stay


def test_patients_without_a_listed_event_shift_nobody() -> None:
    """METHOD, defect 6: rows stay aligned under packing when a patient has none of the events."""
    listed = np.concatenate(TASKS) % len(VOCABULARY)
    every = segments(toy_histories(VOCABULARY, 20, seed=3, units=(2, 7)))
    without = [part for part in segments(toy_histories(VOCABULARY, 60, seed=1, units=(2, 3))) if not np.isin(part.token_id, listed).any()][:3]
    parts = [part for part in every if np.isin(part.token_id, listed).any()][:5]
    assert (len(without), len(parts)) == (3, 5)
    bare = Segment(parts[0].token_id[:PROMPT_LENGTH], parts[0].age_minutes[:PROMPT_LENGTH], parts[0].value[:PROMPT_LENGTH], 0, 30)
    order = [bare, parts[0], without[0], *parts[1:3], bare, without[1], *parts[3:], without[2], bare]
    reader = EventReader(VOCABULARY, TASKS)
    batch = assemble(order, width=400)
    row, column = first_fit(np.array([len(part) for part in order]), 400)
    together = reader(batch)
    expected = {}
    for part, r, c in zip(order, row, column, strict=True):
        alone = reader(assemble([part]))
        found = zip(alone.place.tolist(), alone.end_days.tolist(), alone.event_days.tolist(), strict=True)
        expected |= {int(r) * 400 + int(c) + place: (end, events) for place, end, events in found}
    assert together.place.tolist() == sorted(expected)
    for place, end, events in zip(together.place.tolist(), together.end_days.tolist(), together.event_days.tolist(), strict=True):
        assert (end, events) == expected[place]
    assert any(not np.isfinite(events).any() for _, events in expected.values()), "some have none"
    assert any(np.isfinite(events).any() for _, events in expected.values())


def _facts(edges: list[float]) -> dict[str, object]:
    rates = np.random.default_rng(0).normal(-6, 1, size=(len(TASKS), len(edges) + 1))
    return {"tasks": {str(index): tokens for index, tokens in enumerate(TASKS)}, "edges_days": edges, "log_rate": rates.tolist()}


def test_the_loss_is_the_likelihood_of_piecewise_exponential_times() -> None:
    edges = [2.0, 30.0, 400.0]
    torch.manual_seed(0)
    objective, model = TimeToEvent(VOCABULARY, 16, 4, _facts(edges)).double(), decoder()
    objective.state.weight.data.normal_()
    batch = assemble(segments(toy_histories(VOCABULARY, 4, seed=8)))
    total, count = loss_of(model, objective, batch)
    hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id).flatten(0, 1)
    expected = brute_force(batch)
    whole = 0.0
    for place, (end, next_days) in expected.items():
        log_hazard = objective.log_hazards(hidden[place][None])[0].detach().numpy()
        for task, event in enumerate(next_days):
            until = min(event, end)
            for piece, (low, high) in enumerate(zip([0.0, *edges], [*edges, math.inf], strict=True)):
                whole += math.exp(log_hazard[piece, task]) * max(min(until, high) - low, 0.0)
                if math.isfinite(event) and low < event <= high:
                    whole -= log_hazard[piece, task]
    assert count == len(expected) * len(TASKS)
    assert float(total.detach()) == pytest.approx(whole, rel=1e-6)


def test_survival_falls_from_one_as_the_hazards_say() -> None:
    objective = TimeToEvent(VOCABULARY, 16, 4, _facts([10.0])).double()
    hidden = torch.zeros(1, 16, dtype=torch.float64)
    hazard = objective.log_hazards(hidden).exp()[0]
    days = torch.tensor([0.0, 4.0, 10.0, 25.0], dtype=torch.float64)
    survival = objective.survival(hidden, days)[0]
    exposure = torch.tensor([[0.0, 0.0], [4.0, 0.0], [10.0, 0.0], [10.0, 15.0]], dtype=torch.float64)
    assert torch.allclose(survival, torch.exp(-exposure @ hazard))


# -- what is read off the training split ----------------------------------------------------------------------------------------------


def _poisson_history(random: np.random.Generator, days: int, rates: dict[str, float]) -> Segment:
    times = {name: np.cumsum(random.exponential(1 / rate, size=int(4 * days * rate) + 9)) for name, rate in rates.items()}
    events = sorted((int(time), name) for name, all_times in times.items() for time in all_times if time < days)
    names, clock = ["condition/0"], 0
    for day, name in events:
        names += [f"D{day - clock}", name] if day > clock else [name]
        clock = day
    token = np.concatenate([PROMPT, [VOCABULARY.id_of(name) for name in names]]).astype(np.int32)
    _, age = Grammar(VOCABULARY).follow(token[None])
    return Segment(token, age[0].astype(np.int32), np.full(len(token), np.nan, dtype=np.float32), 0, days - clock)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TokenStore]:
    """People whose events come at known rates, watched for so many days."""
    made = {}
    for days in (700, 350):
        random = np.random.default_rng(1)
        parts = [_poisson_history(random, days, {"condition/1": 1 / 100, "condition/2": 1 / 300, "condition/3": 1 / 40}) for _ in range(300)]
        template = toy_histories(VOCABULARY, len(parts), seed=0)
        lengths = np.array([len(part) for part in parts])
        histories = replace(
            template,
            token_id=np.concatenate([part.token_id for part in parts]),
            age_minutes=np.concatenate([part.age_minutes for part in parts]),
            value=np.concatenate([part.value for part in parts]),
            event_index=np.full(lengths.sum(), -1, dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            censor_gap_days=np.array([part.censor_gap_days for part in parts], dtype=np.int32),
        )
        made[days] = TokenStore(save_store(tmp_path_factory.mktemp("poisson") / "store", VOCABULARY, {"train": histories}))
    return made


@pytest.mark.parametrize("days", [700, 350])
def test_the_starting_rates_are_the_true_ones_whatever_the_follow_up(stores: dict[int, TokenStore], days: int) -> None:
    """RULES 7: what was not watched adds neither events nor time."""
    tasks = {name: [VOCABULARY.id_of(name)] for name in ("condition/1", "condition/2", "condition/3")}
    facts = fit_hazards(stores[days], tasks, 4, 512)
    assert facts["edges_days"] == sorted(facts["edges_days"])
    for rates, truth in zip(facts["log_rate"], (1 / 100, 1 / 300, 1 / 40), strict=True):
        assert np.exp(rates) == pytest.approx(truth, rel=0.15)


def _trained_rates(days: int, *, censoring: bool) -> list[float]:
    """Events per day in each of two pieces that the head finds from a wrong beginning, where the states say nothing."""
    random = np.random.default_rng(3)
    parts = [_poisson_history(random, days, {"condition/1": 1 / 100}) for _ in range(300)]
    batch = assemble([part if censoring else replace(part, censor_gap_days=-1) for part in parts])
    facts = {"tasks": {"condition/1": [VOCABULARY.id_of("condition/1")]}, "edges_days": [60.0], "log_rate": [[-2.0, -7.0]]}
    objective = TimeToEvent(VOCABULARY, 1, 1, facts).double()
    hidden = torch.ones(*batch.token_id.shape, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total, count = objective(torch.nn.Module(), hidden, batch)
        (total / count).backward()
        return (total / count).detach()

    optimizer.step(closure)
    return objective.log_hazards(torch.ones(1, 1, dtype=torch.float64)).exp().flatten().tolist()


def test_halving_the_follow_up_does_not_move_the_trained_hazards() -> None:
    """RULES 7."""
    assert _trained_rates(800, censoring=True) == pytest.approx([1 / 100] * 2, rel=0.1)
    assert _trained_rates(400, censoring=True) == pytest.approx([1 / 100] * 2, rel=0.12)
    # The negative control.
    whole, half = (max(_trained_rates(days, censoring=False)) for days in (800, 400))
    assert half > whole > 1.1 / 100


def test_tasks_are_the_least_certain_events_and_death(tmp_path: Path) -> None:
    vocabulary = toy_vocabulary()
    histories = toy_histories(vocabulary, 200, seed=1, units=(2, 8))
    store = TokenStore(save_store(tmp_path / "store", vocabulary, {"train": histories}))
    chosen = choose_tasks(store, 4)
    assert next(iter(chosen)) == "MEDS_DEATH"
    assert len(chosen) == 4
    owner = np.repeat(np.arange(200), histories.lengths)

    def entropy(tokens: list[int]) -> float:
        share = len(np.unique(owner[np.isin(histories.token_id, tokens)])) / 200
        return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)

    others = [entropy([int(token)]) for token in vocabulary.ids_of_kind(Kind.CODE, Kind.VISIT_TYPE)]
    assert sorted(entropy(tokens) for tokens in list(chosen.values())[1:]) == pytest.approx(sorted(others)[-3:])
    few = TokenStore(save_store(tmp_path / "few", vocabulary, {"train": toy_histories(vocabulary, 5, seed=1)}))
    with pytest.raises(ConfigError, match="time_to_event finds no event that 11 training patients have"):
        choose_tasks(few, 4)


def test_outcomes_of_tasks_come_before_what_is_common(tmp_path: Path) -> None:
    vocabulary = toy_vocabulary()
    histories = toy_histories(vocabulary, 200, seed=1, units=(2, 8))
    store = TokenStore(save_store(tmp_path / "store", vocabulary, {"train": histories}))
    least = list(choose_tasks(store, 400).values())[-1]
    assert least not in choose_tasks(store, 4).values()
    death = [int(token) for token in vocabulary.ids_of_kind(Kind.DEATH)]
    unseen = [int(token) for token in vocabulary.ids_of_kind(Kind.PAD)]
    asked = {"rare_1y": least, "again_90d": least, "death_1y": death, "unheard_of_1y": unseen}
    (store.folder / OUTCOMES_FILE).write_text(json.dumps(asked))
    chosen = choose_tasks(TokenStore(store.folder), 4)
    assert next(iter(chosen)) == "MEDS_DEATH"
    assert list(chosen.values()).count(least) == 1
    assert len(chosen) == 4
    assert {name for name in chosen if name.startswith("outcome:")} <= {"outcome:rare_1y", "outcome:again_90d"}
    assert list(chosen)[1].startswith("outcome:")  # no event without patients, death once


@pytest.mark.parametrize("deaths", [0, 10, 11])
def test_death_is_a_task_where_enough_patients_died(tmp_path: Path, deaths: int) -> None:
    """RULES 13: what is saved says nothing of ten patients."""
    vocabulary = toy_vocabulary()
    histories = toy_histories(vocabulary, 200, seed=1, units=(2, 8))
    dead = np.array([(vocabulary.kind[histories.token_id[histories.history(index)]] == Kind.DEATH).any() for index in range(200)])
    chosen = np.concatenate([np.flatnonzero(dead)[:deaths], np.flatnonzero(~dead)[:60]])
    store = TokenStore(save_store(tmp_path / "store", vocabulary, {"train": histories.subset(chosen)}))
    assert ("MEDS_DEATH" in choose_tasks(store, 400)) == (deaths >= 11)


def test_what_is_saved_of_times_is_in_round_numbers(stores: dict[int, TokenStore]) -> None:
    assert round_days(np.array([0.0, 0.06, 0.99, 1.4, 27.6, 99.4, 114.9, 1234.5])).tolist() == pytest.approx([0, 1 / 24, 1, 1, 28, 99, 110, 1200])
    facts = fit_hazards(stores[700], {"condition/1": [VOCABULARY.id_of("condition/1")]}, 8, 512)
    assert facts["edges_days"] == round_days(np.array(facts["edges_days"])).tolist()
    assert all(rate == round(rate, 2) for row in facts["log_rate"] for rate in row)


def test_an_event_that_never_happens_has_no_rate(stores: dict[int, TokenStore]) -> None:
    tasks = {name: [VOCABULARY.id_of(name)] for name in ("condition/1", "MEDS_DEATH", "condition/2")}
    facts = fit_hazards(stores[700], tasks, 4, 512)
    assert list(facts["tasks"]) == ["condition/1", "condition/2"]
    assert len(facts["log_rate"]) == 2
    with pytest.raises(ConfigError, match="none of its events"):
        fit_hazards(stores[700], {"MEDS_DEATH": tasks["MEDS_DEATH"]}, 4, 512)


def test_codes_are_rolled_up_where_the_data_has_an_ontology(tmp_path: Path) -> None:
    vocabulary = toy_vocabulary()
    store = TokenStore(save_store(tmp_path / "store", vocabulary, {"train": toy_histories(vocabulary, 200, seed=1, units=(1, 3))}))
    above = {"condition/4": ["condition/900", "condition/999"], "condition/5": ["condition/900"], "condition/6": ["condition/999"]}
    (store.folder / ANCESTORS_FILE).write_text(json.dumps(above | {"condition/7": ["condition/901"]}))
    chosen = choose_tasks(store, 40)
    assert chosen["condition/900"] == sorted(vocabulary.id_of(f"condition/{code}") for code in (4, 5))
    assert chosen["condition/999"] == sorted(vocabulary.id_of(f"condition/{code}") for code in (4, 6))
    # What is above a single code says no more than it.
    assert "condition/901" not in chosen or "condition/7" not in chosen


def test_rare_events_count_as_much_as_asked() -> None:
    """An event's own gradient is scaled by its weight and by nothing else; the weights together leave the size of the loss."""
    facts = _facts([30.0])
    rate = torch.tensor(facts["log_rate"]).exp().mean(1)
    plain, even = (TimeToEvent(VOCABULARY, 16, 4, facts, balance=balance).double() for balance in (0.0, 1.0))
    assert plain.weight.tolist() == pytest.approx([1.0] * len(TASKS))
    assert (even.weight * rate).tolist() == pytest.approx([float(rate.sum()) / len(TASKS)] * len(TASKS))
    even.load_state_dict(plain.state_dict())
    batch = assemble(segments(toy_histories(VOCABULARY, 6, seed=8)))
    model, slopes = decoder(), []
    for objective in (plain, even):
        loss_of(model, objective, batch)[0].backward()
        slopes.append(objective.bias.grad)
    torch.testing.assert_close(slopes[1], slopes[0] * even.weight)


def test_rare_events_are_learned_at_their_own_rate() -> None:
    """AdamW that forgets between one event and the next ends too low; the optimiser of training does not."""
    random = torch.Generator().manual_seed(0)
    ends = {}
    for beta2 in (0.95, HEAD_BETA2):
        log_rate = nn.Parameter(torch.tensor([-3.0]))
        (group,) = make_optimizer([("objectives.rate.bias", log_rate)], TrainConfig()).param_groups
        optimizer = torch.optim.AdamW([log_rate], lr=3e-3, betas=(0.9, beta2), weight_decay=group["weight_decay"])
        kept = []
        for step in range(12_000):
            happened = 20.0 * (torch.rand(1, generator=random) < 1 / 30)  # places of one patient, all before the same event
            loss = (log_rate.exp() * 100 - happened * log_rate).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step > 4_000:
                kept.append(log_rate.item())
        ends[beta2] = math.exp(np.mean(kept)) * 100 / (20 / 30)
    assert ends[0.95] < 0.8
    assert ends[HEAD_BETA2] == pytest.approx(1.0, abs=0.1)

"""What must be true of every objective: its loss and gradients do not depend on padding, packing or micro-batches, and it is finite and trains."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cehrxgpt.errors import ConfigError, InputError, MismatchError
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives import OBJECTIVES, Objective, build, prepare, read_settings
from cehrxgpt.objectives.heads import HEAD_WEIGHTS_FILE, HEADS_FILE, load_heads, save_heads
from cehrxgpt.store.batch import IGNORE, PAIRS_PER_GROUP, PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Loader, Segment, assemble
from toy_objectives import VOCABULARY, decoder, loss_of, padded, segments
from toy_store import toy_histories, toy_store

NAMED = {
    **{name: 1.0 for name, kind in OBJECTIVES.items() if kind.__module__.startswith("cehrxgpt.")},  # other tests enter some of their own
    "time_to_event": {"tasks": 9, "pieces": 3, "rank": 4},
    "contrastive": {"share": 1.0, "width": 8},
}


@pytest.fixture(scope="module")
def objectives(tmp_path_factory: pytest.TempPathFactory) -> nn.ModuleDict:
    store = TokenStore(toy_store(tmp_path_factory.mktemp("objectives") / "store", train=60, units=(2, 8), vocabulary=VOCABULARY))
    settings, shape = read_settings(NAMED), decoder().config
    torch.manual_seed(1)
    made = build(settings, prepare(settings, store, shape), store.vocabulary, shape).double()
    for weight in made.parameters():
        if weight.dim() > 1:
            weight.data.mul_(20)  # far from where heads start
    return made


def paired_segments(count: int, seed: int) -> list[Segment]:
    """Random histories, each beside another that counts as its partner; in two groups."""
    parts = segments(toy_histories(VOCABULARY, 2 * count, seed=seed))
    return [replace(part, pair=(index // 2 % 2) * PAIRS_PER_GROUP + index // 4) for index, part in enumerate(parts)]


def gradients_of(model: Decoder, objective: Objective, batches: list[PackedBatch]) -> tuple[float, int, list[torch.Tensor]]:
    model.zero_grad()
    objective.zero_grad()
    found = [loss_of(model, objective, batch) for batch in batches]
    total, count = torch.stack([total for total, _ in found]).sum(), sum(count for _, count in found)
    total.backward()
    grads = [weight.grad.clone() for weight in (*model.parameters(), *objective.parameters()) if weight.grad is not None]
    return float(total.detach()), count, grads


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_packing_and_micro_batches_change_nothing(objectives: nn.ModuleDict, name: str) -> None:
    model, objective = decoder(), objectives[name]
    parts = paired_segments(8, seed=3)
    groups = [[part for part in parts if part.pair // PAIRS_PER_GROUP == group] for group in (0, 1)]
    whole = assemble(parts)
    total, count, gradients = gradients_of(model, objective, [whole])
    assert count > 0
    assert np.isfinite(total)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients)
    others = {
        "padded": [padded(whole, 23)],
        "packed": [assemble(parts, width=160)],
        "shuffled": [assemble(parts[::-1], width=160)],
        "micro-batches": [assemble(group) for group in groups],
        "micro-batches, packed": [assemble(group, width=200) for group in groups],
    }
    for how, batches in others.items():
        other_total, other_count, other_gradients = gradients_of(model, objective, batches)
        assert other_total == pytest.approx(total, rel=1e-9), how
        assert other_count == count, how
        for one, other in zip(gradients, other_gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-9), how


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_without_any_term_costs_nothing(objectives: nn.ModuleDict, name: str) -> None:
    model = decoder()
    prompt = toy_histories(VOCABULARY, 1, seed=0)
    alone = assemble([Segment(prompt.token_id[:1], prompt.age_minutes[:1], prompt.value[:1], 0, -1)])
    total, count = loss_of(model, objectives[name], alone)
    assert count == 0
    assert float(total.detach()) == 0
    total.backward()
    assert all(weight.grad is None or torch.isfinite(weight.grad).all() for weight in (*model.parameters(), *objectives[name].parameters()))


def test_a_pair_alone_in_its_group_gives_no_term(objectives: nn.ModuleDict) -> None:
    """It would be its own only candidate: a loss of nothing, counted twice."""
    model, objective = decoder(), objectives["contrastive"]
    parts = segments(toy_histories(VOCABULARY, 6, seed=3))
    group = [replace(part, pair=PAIRS_PER_GROUP + index // 2) for index, part in enumerate(parts[:4])]
    lone = [replace(part, pair=2 * PAIRS_PER_GROUP) for part in parts[4:]]
    total, count = loss_of(model, objective, assemble(lone))
    assert (float(total.detach()), count) == (0.0, 0)
    expected, four = loss_of(model, objective, assemble(group))
    total, count = loss_of(model, objective, assemble([group[0], lone[0], *group[1:], lone[1]], width=200))
    assert count == four == 4
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


def test_the_entropy_penalty_is_minus_the_entropy(objectives: nn.ModuleDict) -> None:
    """By hand, place by place: between -log V where nothing is known and 0 where all is."""
    model, batch = decoder(), assemble(segments(toy_histories(VOCABULARY, 3, seed=6)), width=150)
    total, count = loss_of(model, objectives["entropy_penalty"], batch)
    hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
    expected = 0.0
    for row, place in (batch.target != IGNORE).nonzero().tolist():
        p = model.head(hidden[row, place]).detach().softmax(-1).tolist()
        expected -= math.fsum(-x * math.log(x) for x in p if x > 0)
    assert count == int((batch.target != IGNORE).sum())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-9)
    assert -math.log(len(VOCABULARY)) < expected / count < 0
    sure, unsure = (loss_of_scaled(objectives["entropy_penalty"], batch, scale) for scale in (1e4, 0.0))
    assert unsure == pytest.approx(-math.log(len(VOCABULARY)))
    assert unsure < expected / count < sure <= 0, "certainty costs more"


def loss_of_scaled(objective: Objective, batch: PackedBatch, scale: float) -> float:
    """Mean loss of a model whose logits are so many times larger."""
    model = decoder()
    model.norm.weight.data.mul_(scale)
    total, count = loss_of(model, objective, batch)
    return float(total.detach()) / count


def test_every_objective_learns(tmp_path: Path) -> None:
    """One small model, all objectives on: each falls, on the data it is trained on."""
    store = TokenStore(toy_store(tmp_path / "store", train=16, tuning=0, units=(3, 8), vocabulary=VOCABULARY))
    model = decoder().float()
    settings = read_settings(NAMED)
    torch.manual_seed(0)
    objectives = build(settings, prepare(settings, store, model.config), store.vocabulary, model.config)
    loader = Loader(store, "train", tokens_per_batch=2048, context=512, seed=0, pair_share=0.5)
    batch = loader.batch(0)
    optimizer = torch.optim.AdamW([*model.parameters(), *objectives.parameters()], lr=3e-3)
    seen: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(60):
        hidden = model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
        loss = torch.zeros(())
        for name, objective in objectives.items():
            total, count = objective(model, hidden, batch)
            seen[name].append(float(total.detach()) / int(count))
            loss = loss + total / count * (1.0 if name != "entropy_penalty" else 0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, values in seen.items():
        if name != "entropy_penalty":  # it pulls against the others
            assert values[-1] < 0.96 * values[0], (name, values[0], values[-1])


def test_heads_come_back_from_a_model_folder(objectives: nn.ModuleDict, tmp_path: Path) -> None:
    settings = read_settings(NAMED)
    store = TokenStore(toy_store(tmp_path / "store", train=60, units=(2, 8), vocabulary=VOCABULARY))
    shape = decoder().config
    facts = prepare(settings, store, shape)
    made = build(settings, facts, store.vocabulary, shape)
    save_heads(tmp_path, made, settings, facts)
    again = load_heads(tmp_path, store.vocabulary, shape)
    assert list(again) == list(made)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    model, batch = decoder().float(), assemble(paired_segments(4, seed=5))
    for name in made:
        assert torch.equal(loss_of(model, made[name], batch)[0], loss_of(model, again[name], batch)[0]), name


def test_heads_from_before_events_read_the_state_themselves(tmp_path: Path) -> None:
    """They are what they were: the weights that they lack are 0."""
    settings = read_settings({"time_to_event": NAMED["time_to_event"]})
    facts = {"time_to_event": {"tasks": {"condition/1": [1], "condition/2": [2]}, "edges_days": [], "log_rate": [[-3.0], [-4.0]]}}
    shape = decoder().config
    save_heads(tmp_path, build(settings, facts, VOCABULARY, shape), settings, facts)
    kept = load_file(tmp_path / HEAD_WEIGHTS_FILE)
    save_file({name: tensor for name, tensor in kept.items() if name != "time_to_event.direct.weight"}, tmp_path / HEAD_WEIGHTS_FILE)
    head = load_heads(tmp_path, VOCABULARY, shape)["time_to_event"]
    assert not head.direct.weight.any()
    assert torch.equal(head.task, kept["time_to_event.task"])
    save_file({"time_to_event.bias": kept["time_to_event.bias"]}, tmp_path / HEAD_WEIGHTS_FILE)
    with pytest.raises(MismatchError):
        load_heads(tmp_path, VOCABULARY, shape)


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        ("tasks", {"MEDS_DEATH": [10**6]}, "task 'MEDS_DEATH' names event 1000000"),
        ("tasks", {"MEDS_DEATH": [-1]}, "task 'MEDS_DEATH' names event -1"),
        ("tasks", {"MEDS_DEATH": ["x"]}, "task 'MEDS_DEATH' names event x"),
        ("tasks", [1], "AttributeError"),
        ("edges_days", ["a", "b"], "TypeError"),
        ("edges_days", [3.0, 2.0], "edges_days must rise from 0"),
        ("log_rate", [[-3.0, -3.0, -3.0, -3.0]] * 9, "log_rate must have 9 rows"),
        ("log_rate", [[-3.0]], "log_rate must have 9 rows"),
        (None, [1], "TypeError"),
    ],
)
def test_damaged_facts_are_one_line(tmp_path: Path, fact: str | None, value: object, message: str) -> None:
    settings = read_settings({"time_to_event": NAMED["time_to_event"]})
    shape = decoder().config
    rates = np.full((9, 3), -3.0).tolist()
    facts = {"time_to_event": {"tasks": {f"task/{index}": [index] for index in range(9)}, "edges_days": [1.0, 9.0], "log_rate": rates}}
    save_heads(tmp_path, build(settings, facts, VOCABULARY, shape), settings, facts)
    assert list(load_heads(tmp_path, VOCABULARY, shape)) == ["time_to_event"]
    said = json.loads((tmp_path / HEADS_FILE).read_text())
    if fact is None:
        said["time_to_event"]["facts"] = value
    else:
        said["time_to_event"]["facts"][fact] = value
    (tmp_path / HEADS_FILE).write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"heads\.json: damaged") as caught:
        load_heads(tmp_path, VOCABULARY, shape)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_data_cannot_serve_is_left_out_where_that_is_allowed(tmp_path: Path) -> None:
    """This store's values are fused with their codes, so that `value` has nothing to learn."""
    store = TokenStore(toy_store(tmp_path / "store", train=20, units=(2, 4)))
    shape, said = replace(decoder().config, vocabulary_size=len(store.vocabulary)), []
    with pytest.raises(ConfigError, match="value"):
        prepare(read_settings({"next_token": 1.0, "value": 1.0}), store, shape)
    facts = prepare(read_settings({"next_token": 1.0, "value": {"where_possible": True}}), store, shape, said.append)
    assert list(facts) == ["next_token"]
    assert len(said) == 1
    assert said[0].startswith("value is left out: ")

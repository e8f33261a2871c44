"""The value objective: conditioned on the lab that was drawn, every lab trained, and what generation draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cehrxgpt.errors import ConfigError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives import NextToken, Value, build, read_settings
from cehrxgpt.rollout.constraints import allowed_table
from cehrxgpt.rollout.sampler import masked_weights
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.loader import Segment, assemble
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.vocabulary import Vocabulary
from toy_objectives import VOCABULARY, decoder, loss_of, padded
from toy_store import toy_vocabulary

BINS = {f"lab/{count}": count for count in (2, 3, 5)}
IDS = {name: VOCABULARY.id_of(name) for name in (*BINS, *(f"bin:{place}" for place in range(5)))}
CONFIG = decoder().config


def sentence(random: np.random.Generator, labs: int) -> Segment:
    """A prompt, then labs with their bins, conditions and gaps."""
    prompt = [VOCABULARY.id_of(name) for name in ("[BOS]", "year:2010", "month:3", "age:50", "age_months:2", "gender:8532", "race:0")]
    tokens = list(prompt)
    for _ in range(labs):
        name = str(random.choice(list(BINS)))
        tokens += [IDS[name], IDS[f"bin:{random.integers(BINS[name])}"]]
        tokens += [VOCABULARY.id_of("condition/1"), VOCABULARY.id_of(f"D{random.integers(1, 50)}")][: int(random.integers(0, 3))]
    tokens.append(VOCABULARY.id_of("condition/2"))
    token = np.array(tokens, dtype=np.int32)
    _, age = Grammar(VOCABULARY).follow(token[None].astype(np.int64))
    return Segment(token, age[0], np.full(len(token), np.nan, np.float32), 0, int(random.integers(-1, 300)))


def segments(count: int, seed: int = 0, labs: tuple[int, int] = (1, 6)) -> list[Segment]:
    random = np.random.default_rng(seed)
    return [sentence(random, int(random.integers(*labs))) for _ in range(count)]


def made(*names: str, vocabulary: Vocabulary = VOCABULARY) -> nn.ModuleDict:
    return build(read_settings(dict.fromkeys(names, 1.0)), {}, vocabulary, CONFIG)


def states(model: Decoder, batch: PackedBatch) -> Tensor:
    return model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)


# -- what it is ---------------------------------------------------------------------------------------------------------------------


def test_the_loss_is_what_it_says() -> None:
    """Place by place in plain Python: the softmax over that lab's own bins."""
    model, batch = decoder(), assemble(segments(5))
    total, count = loss_of(model, Value(VOCABULARY), batch)
    hidden = states(model, batch)
    expected = []
    for row, place in np.argwhere(np.isin(batch.token_id.numpy(), [IDS[name] for name in BINS])):
        lab = VOCABULARY.token[int(batch.token_id[row, place])]
        logits = model.head(hidden[row, place])[[IDS[f"bin:{number}"] for number in range(BINS[lab])]]
        number = int(VOCABULARY.amount[int(batch.target[row, place])])
        expected.append(-float(logits.log_softmax(-1)[number].detach()))
    assert count == len(expected) > 0
    assert total.item() == pytest.approx(sum(expected), rel=1e-10)


def test_a_lab_that_stands_alone_is_trained() -> None:
    """One lab between conditions, days apart, as no flag of the token behind it could tell."""
    names = ["[BOS]", "year:2010", "month:3", "age:50", "age_months:2", "gender:8532", "race:0", "condition/1", "D9", "lab/3", "bin:1", "D30"]
    token = np.array([VOCABULARY.id_of(name) for name in [*names, "condition/2"]])
    batch = assemble([Segment(token, np.full(len(token), 10_000_000), np.full(len(token), np.nan, np.float32), 0, -1)])
    model = decoder()
    total, count = loss_of(model, Value(VOCABULARY), batch)
    total.backward()
    gradient = model.embedding.weight.grad.norm(dim=1)
    assert count == 1
    assert gradient[IDS["lab/3"]] > 0
    assert (gradient[[IDS[f"bin:{place}"] for place in range(3)]] > 0).all()
    assert (gradient[[IDS["bin:3"], IDS["bin:4"], IDS["lab/5"]]] == 0).all(), "bins that the lab has not are no part of it"
    # And it learns: a few steps make that value likely.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model, Value(VOCABULARY), batch)[0].backward()
        optimizer.step()
    assert loss_of(model, Value(VOCABULARY), batch)[0].item() < 0.05


def test_the_value_depends_on_which_lab_was_drawn() -> None:
    """The same history, another lab of as many bins drawn: another distribution."""
    rows = VOCABULARY.table.to_pylist()
    words = Vocabulary.from_rows([*rows, rows[-1] | {"token": "lab/other", "code": "lab/other"}], {})
    torch.manual_seed(1)
    model = Decoder(ModelConfig(**{**CONFIG.to_dict(), "vocabulary_size": len(words)})).double()
    model.embedding.weight.data.mul_(20)
    labs = torch.tensor([words.id_of("lab/5"), words.id_of("lab/other")])
    history = torch.tensor([words.id_of(name) for name in ("[BOS]", "condition/1")]).repeat(2, 1)
    token = torch.cat([history, labs[:, None]], 1)
    hidden = model(token, position=torch.arange(3).repeat(2, 1), age_minutes=torch.zeros(2, 3, dtype=torch.int64))
    first, second = Value(words).logits(model, hidden[:, -1], labs).softmax(-1).detach()
    assert (first - second).abs().sum() > 0.05
    before = model.head(hidden[:, -2]).detach()
    torch.testing.assert_close(before[0], before[1], msg="the state that drew the lab knows nothing of it")


def test_generation_draws_exactly_that_distribution() -> None:
    model, batch = decoder(), assemble(segments(6, seed=4))
    grammar, objective = Grammar(VOCABULARY), Value(VOCABULARY)
    hidden = states(model, batch).detach()
    allowed = allowed_table(VOCABULARY, grammar).to(hidden.dtype)
    labs = np.argwhere(np.isin(batch.token_id.numpy(), [IDS[name] for name in BINS]))
    assert len(labs) > 5
    for row, place in labs:
        state, _ = grammar.follow(batch.token_id[row : row + 1, : place + 1].numpy())
        weights, _ = masked_weights(model.head(hidden[row, place][None]).detach(), allowed, torch.from_numpy(state.phase.astype(np.int64)))
        drawn = (weights / weights.sum())[0]
        own = objective.logits(model, hidden[row, place][None], batch.token_id[row, place][None]).softmax(-1)[0].detach()
        bins = torch.tensor([IDS[f"bin:{number}"] for number in range(5)])
        assert torch.allclose(drawn[bins].double(), own, atol=1e-12)
        assert float(drawn.sum() - drawn[bins].sum()) == pytest.approx(0, abs=1e-12)


# -- what the loss must not depend on -------------------------------------------------------------------------------------------------


def test_padding_changes_nothing() -> None:
    model, objective = decoder(), Value(VOCABULARY)
    batch = assemble(segments(3))
    results = []
    for columns in (0, 20, 40):
        model.zero_grad()
        total, count = loss_of(model, objective, padded(batch, columns))
        (total / count).backward()
        results.append(((total / count).item(), count, model.embedding.weight.grad.clone()))
    for value, count, gradient in results[1:]:
        assert value == pytest.approx(results[0][0], abs=1e-12)
        assert count == results[0][1]
        assert torch.allclose(gradient, results[0][2], atol=1e-12)


@given(st.integers(0, 1000), st.integers(2, 8))
@settings(deadline=None, max_examples=8)
def test_packing_and_micro_batches_change_nothing(seed: int, patients: int) -> None:
    model, objective = decoder(), Value(VOCABULARY)
    parts = segments(patients, seed=seed, labs=(0, 5))
    rows = loss_of(model, objective, assemble(parts))
    packed = loss_of(model, objective, assemble(parts, width=80))
    alone = [loss_of(model, objective, assemble([part])) for part in parts]
    for total, count in (packed, (sum(total for total, _ in alone), sum(count for _, count in alone))):
        assert total.item() == pytest.approx(rows[0].item(), rel=1e-10)
        assert count == rows[1]


def test_a_batch_without_labs_is_nothing_and_can_be_learnt_from() -> None:
    model = decoder()
    total, count = loss_of(model, Value(VOCABULARY), assemble(segments(2, labs=(0, 1))))
    assert (total.item(), count) == (0.0, 0)


# -- beside the other objectives ------------------------------------------------------------------------------------------------------


def test_no_target_counts_twice() -> None:
    model, batch = decoder(), assemble(segments(6, seed=7))
    both = made("next_token", "value")
    alone = made("next_token")["next_token"]
    counts = {name: loss_of(model, objective, batch)[1] for name, objective in both.items()}
    whole, count = loss_of(model, alone, batch)
    assert counts["value"] == int((torch.isin(batch.target, torch.tensor([IDS[f"bin:{place}"] for place in range(5)]))).sum()) > 0
    assert sum(counts.values()) == count
    # What the next token leaves out is the bins' terms and nothing else.
    hidden = states(model, batch)
    bins = torch.isin(batch.target, torch.tensor([IDS[f"bin:{place}"] for place in range(5)]))
    left_out = nn.functional.cross_entropy(model.head(hidden[bins]), batch.target[bins], reduction="sum")
    assert loss_of(model, both["next_token"], batch)[0].item() == pytest.approx((whole - left_out).item(), rel=1e-10)
    assert (whole - left_out).item() < whole.item()


def test_fused_values_have_no_value_objective() -> None:
    with pytest.raises(ConfigError, match="objectives: value needs values that are tokens of their own; tokenize with --values split"):
        made("next_token", "value", vocabulary=toy_vocabulary())
    without = Vocabulary.from_rows(toy_vocabulary().table.to_pylist(), {"values": "split"})
    with pytest.raises(ConfigError, match="this data has no numeric values"):
        made("next_token", "value", vocabulary=without)
    assert isinstance(made("next_token", vocabulary=toy_vocabulary())["next_token"], NextToken)

"""Single tokens by the arranged decoder: the decoder's own states, used only where they are, and never of weights that are no more."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.steps import LARGEST_SCORE, Steps, arranged, largest_score
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import Prompt, Rollouts, rollout
from oracle_rollout import Oracle, toy_vocabulary
from toy_capabilities import gaps, markov

VOCABULARY = toy_vocabulary()
DEMOGRAPHICS = "[BOS] year:2011 month:7 age:71 age_months:5 gender:8532 race:8527"
HISTORIES = ("condition/1", "[VS] Visit/inpatient i-H9 condition/0", "condition/1 D30 condition/2 condition/3")
PROMPTS = [
    Prompt(token_id=np.array([VOCABULARY.id_of(token) for token in f"{DEMOGRAPHICS} {history}".split()]), subject_id=subject)
    for subject, history in enumerate(HISTORIES)
]
ROTARY_AND_HEADS = [("both", 4, 2), ("both", 4, 4), ("order", 4, 1), ("age", 4, 2), ("none", 2, 2)]


def make(seed: int = 3, **changes) -> Decoder:
    """Random weights that matter: norms that multiply by something, as after training, states far from zero."""
    generator = torch.Generator().manual_seed(seed)
    told = {"vocabulary_size": len(VOCABULARY), "care_settings": VOCABULARY.care_settings}
    settings = {"width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "context": 48, "norm_eps": 1e-3} | told | changes
    decoder = Decoder(ModelConfig(**settings)).double().eval()
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.3, 2, generator=generator)
            else:
                weight.normal_(0, 0.5 if "embedding" in name else 0.2, generator=generator)
    return decoder


def read_three_more(decoder: Decoder, dtype: torch.dtype, *, share: bool, arrange: bool, by_column: bool | None = None) -> Tensor:
    """States behind three more tokens in each of four rows, two prompts of unequal length before them; [3, rows, D]."""
    steps = arranged(decoder, dtype) if arrange else None
    decoder, generator = copy.deepcopy(decoder).to(dtype), torch.Generator().manual_seed(1)
    read, cache = (KVCache(decoder.config, rows, 1, dtype, by_column=by_column) for rows in (2, 0))
    token, age = (torch.randint(1, most, (2, 9), generator=generator) for most in (40, 4_000_000))
    segment = (torch.arange(9) < torch.tensor([[9], [5]])).long()
    decoder(token, position=torch.arange(9).repeat(2, 1), age_minutes=age, segment_id=segment, cache=read)
    (cache.share if share else cache.append)(read, torch.tensor([1, 0, 0, 1]))
    rows, states = cache.batch_rows(), []
    for _ in range(3):
        token, age = (torch.randint(1, most, (rows,), generator=generator) for most in (40, 4_000_000))
        cache.prepare(rows, 1)
        if steps is not None:
            states.append(steps(token, age, cache)[:4])
        else:
            states.append(decoder(token[:, None], position=cache.positions(rows)[:, None], age_minutes=age[:, None], cache=cache)[:4, 0])
    return torch.stack(states)


def futures(decoder: Decoder, **changes) -> Rollouts:
    return rollout(decoder, VOCABULARY, PROMPTS, **({"samples": 6, "seed": 2, "max_new_tokens": 12} | changes))


def assert_same(found: Rollouts, expected: Rollouts) -> None:
    """Token for token, and their probabilities."""
    assert np.array_equal(found.token_id, expected.token_id)
    assert np.array_equal(found.stop_reason, expected.stop_reason)
    assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-9)
    assert found.removed_mass == pytest.approx(expected.removed_mass, abs=1e-9)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Grows with every step that an arranged decoder takes."""
    taken: list[int] = []
    step = Steps.__call__

    def counted(self: Steps, token_B: Tensor, age_minutes_B: Tensor, cache: KVCache) -> Tensor:
        taken.append(len(token_B))
        return step(self, token_B, age_minutes_B, cache)

    monkeypatch.setattr(Steps, "__call__", counted)
    return taken


# -- the same numbers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rotary", "heads", "kv_heads"), ROTARY_AND_HEADS)
@pytest.mark.parametrize("share", [False, True])
def test_its_states_are_those_of_the_decoder(rotary, heads, kv_heads, share):
    decoder = make(rotary=rotary, heads=heads, kv_heads=kv_heads)
    with torch.no_grad():
        expected, found = (read_three_more(decoder, torch.float64, share=share, arrange=arrange) for arrange in (False, True))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        found = read_three_more(decoder, torch.float64, share=share, arrange=True, by_column=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        single = read_three_more(decoder, torch.float32, share=share, arrange=True)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("rotary", "heads", "kv_heads"), ROTARY_AND_HEADS)
@pytest.mark.parametrize("share", [False, True])
def test_in_16_bits_it_is_no_further_from_the_truth_than_the_decoder(rotary, heads, kv_heads, share):
    off = torch.zeros(2, dtype=torch.float64)  # the decoder's, and its
    with torch.no_grad():
        for seed in range(6):
            decoder = make(seed, rotary=rotary, heads=heads, kv_heads=kv_heads)
            expected = read_three_more(decoder, torch.float64, share=share, arrange=False)
            for place, arrange in enumerate((False, True)):
                off[place] += (read_three_more(decoder, torch.bfloat16, share=share, arrange=arrange).double() - expected).abs().mean()
    assert off[1] < 1.25 * off[0]


def test_what_scores_are_scaled_by_is_not_rounded_to_16_bits():
    decoder = make().to(torch.bfloat16)
    E, attention = decoder.config.head_width, decoder.blocks[0].attention
    scale = arranged(decoder, torch.bfloat16).layers[0].qk_norm_HE
    expected = torch.cat([attention.query_norm.weight.double().expand(4, E) / (E**0.5 * np.log(2)), attention.key_norm.weight.double().expand(2, E)])
    torch.testing.assert_close(scale.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("rotary", "heads", "kv_heads"), ROTARY_AND_HEADS)
@pytest.mark.parametrize(("tie", "head_bias"), list(itertools.product([True, False], repeat=2)))
def test_futures_are_those_of_the_decoder(rotary, heads, kv_heads, tie, head_bias, monkeypatch, calls):
    decoder = make(rotary=rotary, heads=heads, kv_heads=kv_heads, tie=tie, head_bias=head_bias)
    shared, alone = futures(decoder), futures(decoder, samples=2)
    assert calls, "single tokens were not read by the arranged decoder: the test has lost its point"
    monkeypatch.setattr("cehrxgpt.rollout.reader.arranged", lambda *_: None)
    calls.clear()
    assert_same(shared, futures(decoder))
    assert_same(alone, futures(decoder, samples=2))
    assert not calls


# -- where it is not used ------------------------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """A linear layer and a product of small rank beside it, as adapters have it."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.base = base
        self.down, self.up = (
            nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in ((2, base.in_features), (base.out_features, 2))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.1 * x @ self.down.T @ self.up.T


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Another(Decoder):
    """A model of its own, even where it changes nothing yet."""


def with_low_rank(decoder: Decoder) -> None:
    decoder.blocks[0].attention.query_key_value = LowRank(decoder.blocks[0].attention.query_key_value)


def with_another_class(decoder: Decoder) -> None:
    decoder.__class__ = Another


def with_another_linear(decoder: Decoder) -> None:
    decoder.blocks[1].feedforward.down.__class__ = type("Quantised", (nn.Linear,), {})


def with_parametrized_weight(decoder: Decoder) -> None:
    parametrize.register_parametrization(decoder.blocks[1].feedforward.gate_up, "weight", Doubled())


def with_hook(decoder: Decoder) -> None:
    decoder.blocks[0].register_forward_hook(lambda _, given, output: output * 1.5)


def with_hook_before(decoder: Decoder) -> None:
    decoder.blocks[0].feedforward.register_forward_pre_hook(lambda _, given: (given[0] * 0.5,))


def with_another_forward(decoder: Decoder) -> None:
    forward = decoder.norm.forward
    decoder.norm.forward = lambda x: forward(x) * 0.5


def with_another_head(decoder: Decoder) -> None:
    head = decoder.head
    decoder.head = lambda hidden, token_id=None: head(hidden, token_id) * 0.5


CHANGES = [
    with_low_rank,
    with_another_class,
    with_another_linear,
    with_parametrized_weight,
    with_hook,
    with_hook_before,
    with_another_forward,
    with_another_head,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_decoder_that_does_more_than_its_weights_say_reads_for_itself(change: Callable[[Decoder], None], calls):
    """Its futures are those of the generator that reads the whole sequence anew for every token."""
    decoder = make()
    change(decoder)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert arranged(decoder, dtype) is None
    written, oracle = futures(decoder, samples=4, max_new_tokens=5), Oracle(decoder, VOCABULARY)
    assert not calls
    for row in (0, 5, 10):
        prompt, sample = PROMPTS[written.prompt_index[row]], int(written.sample_id[row])
        tokens, reason, log_probability = oracle.generate(prompt, sample, seed=2, max_new_tokens=5)
        assert written.tokens_of(row).tolist() == [int(token) for token in tokens]
        assert written.stop_reason[row] == reason
        assert written.log_probability[row] == pytest.approx(log_probability, abs=1e-9)


def test_an_adapter_that_is_merged_is_arranged_and_writes_what_it_wrote_beside_its_layer(calls):
    decoder = make()
    plain = futures(decoder)
    with_low_rank(decoder)
    calls.clear()
    beside = futures(decoder)
    assert not calls
    adapter = decoder.blocks[0].attention.query_key_value
    with torch.no_grad():
        adapter.base.weight += 0.1 * adapter.up @ adapter.down
    decoder.blocks[0].attention.query_key_value = adapter.base
    assert_same(futures(decoder), beside)
    assert calls
    assert not np.array_equal(beside.log_probability, plain.log_probability)


def test_what_cannot_be_arranged_is_left_to_the_decoder():
    decoder = make()
    assert largest_score(decoder) < LARGEST_SCORE
    assert arranged(decoder, torch.float64) is not None
    assert arranged(decoder, torch.float16) is None
    assert arranged(copy.deepcopy(decoder).to("meta"), torch.float32) is None, "on another device"
    assert arranged(markov({"condition/1": gaps({30: 1.0})}).decoder, torch.float64) is None, "another kind of model"
    with torch.no_grad():
        decoder.blocks[1].attention.key_norm.weight[0] = 100
    assert arranged(decoder, torch.float64) is None, "scores without a bound"
    with torch.no_grad():
        decoder.blocks[1].attention.key_norm.weight[0] = float("nan")
    assert arranged(decoder, torch.float64) is None, "no scores at all"


def test_scores_as_large_as_may_be_are_still_exact():
    """Queries and keys that point the same way, at the bound itself."""
    decoder = make(rotary="none")
    with torch.no_grad():
        for block in decoder.blocks:
            block.attention.query_norm.weight.fill_(LARGEST_SCORE / 2)  # sqrt(E) is 2
            block.attention.key_norm.weight.fill_(1)
        assert largest_score(decoder) == LARGEST_SCORE
        expected, found = (read_three_more(decoder, torch.float64, share=True, arrange=arrange) for arrange in (False, True))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
        rough = read_three_more(decoder, torch.float32, share=True, arrange=True)
    torch.testing.assert_close(rough.double(), expected, rtol=0, atol=1e-3)


def test_gradients_are_never_silently_lost():
    decoder = make()
    steps, cache = arranged(decoder, torch.float64), KVCache(decoder.config, 2, 8, torch.float64)
    token = torch.ones(2, 3, dtype=torch.int64)
    with torch.no_grad():
        decoder(token, position=torch.arange(3).repeat(2, 1), age_minutes=token, cache=cache)
    with pytest.raises(AssertionError, match="without gradients"):
        steps(token[:, 0], token[:, 0], cache)


# -- never of weights that are no more -----------------------------------------------------------------------------------------------


def train_on(decoder: Decoder) -> None:
    decoder.train()
    optimiser = torch.optim.SGD(decoder.parameters(), lr=0.1)
    token = torch.arange(1, 9)[None]
    hidden = decoder(token, position=torch.arange(8)[None], age_minutes=1000 * token)
    torch.nn.functional.cross_entropy(decoder.head(hidden[0, :-1]), token[0, 1:]).backward()
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in decoder.parameters())
    optimiser.step()


def load_another(decoder: Decoder) -> None:
    other = make()
    train_on(other)
    decoder.load_state_dict(other.state_dict())


def change_in_place(decoder: Decoder) -> None:
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(1.25)


@pytest.mark.parametrize("change", [train_on, load_another, change_in_place])
def test_after_weights_have_changed_futures_are_of_the_new_ones(change: Callable[[Decoder], None], calls):
    decoder = make()
    before = futures(decoder)
    change(decoder)
    fresh = make()
    fresh.load_state_dict(copy.deepcopy(decoder.state_dict()))
    calls.clear()
    after = futures(decoder)
    assert calls
    assert_same(after, futures(fresh))
    assert not np.array_equal(after.log_probability, before.log_probability)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_the_decoder_is_left_as_it_was(dtype):
    decoder = make().train()
    weights = copy.deepcopy(decoder.state_dict())
    futures(decoder, dtype=dtype)
    assert decoder.training
    assert all(weight.grad is None and weight.requires_grad for weight in decoder.parameters())
    for name, weight in decoder.state_dict().items():
        assert weight.dtype == torch.float64
        assert torch.equal(weight, weights[name])
    train_on(decoder)

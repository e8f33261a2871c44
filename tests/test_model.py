"""The decoder: what it may see, what padding and packing must not change, how it turns by order and age; the cache."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.model import cache as cache_module
from cehrxgpt.model.attention import causal_attention, explicit_attention, packed_attention, varlen_attention
from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.documents import LIKE_LENGTH, SLACK, DocumentEnds, DocumentGroups
from cehrxgpt.model.rotary import Rotation
from cehrxgpt.model.transformer import Decoder, RMSNorm

CENTURY = 100 * 525_960  # minutes


def make(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> Decoder:
    torch.manual_seed(seed)
    settings = {
        "vocabulary_size": 40,
        "width": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "context": 64,
        "care_settings": (3, 8, 15, 16, 23),
    } | changes
    decoder = Decoder(ModelConfig(**settings)).to(dtype)
    with torch.no_grad():
        decoder.embedding.weight.mul_(20)  # states that differ by more than rounding
        decoder.care_setting.embedding.weight.mul_(20)
    return decoder


def document(length: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(1, 40, (length,), generator=generator)
    age = torch.randint(0, 4_000_000, (length,), generator=generator).sort().values
    return token, torch.arange(length), age


def lay_out(rows, width: int):
    """Documents per row -> token, position, age, segment, each [B, width]."""
    arrays = [torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(4)]
    for row, documents in enumerate(rows):
        start = 0
        for number, parts in enumerate(documents, start=1):
            stop = start + len(parts[0])
            for target, values in zip(arrays, (*parts, torch.full_like(parts[0], number)), strict=True):
                target[row, start:stop] = values
            start = stop
    return arrays


def alone(decoder: Decoder, parts) -> torch.Tensor:
    token, position, age = (values[None] for values in parts)
    return decoder(token, position=position, age_minutes=age)[0]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=3), spare=st.integers(0, 9))
def test_a_document_has_the_same_states_alone_padded_and_packed(lengths, spare):
    decoder = make()
    rows = [[document(length, 100 * r + c) for c, length in enumerate(row)] for r, row in enumerate(lengths)]
    width = max(sum(row) for row in lengths) + spare
    token, position, age, segment = lay_out(rows, width)
    hidden = decoder(token, position=position, age_minutes=age, segment_id=segment)
    assert torch.isfinite(hidden).all()
    for row, documents in enumerate(rows):
        start = 0
        for parts in documents:
            stop = start + len(parts[0])
            torch.testing.assert_close(hidden[row, start:stop], alone(decoder, parts), rtol=0, atol=1e-12)
            start = stop


def test_packing_gives_the_gradients_of_single_documents():
    decoder = make()
    documents = [document(length, length) for length in (5, 9, 3, 30)]
    sum(alone(decoder, parts).square().sum() for parts in documents).backward()
    expected = [weight.grad.clone() for weight in decoder.parameters()]
    decoder.zero_grad()
    token, position, age, segment = lay_out([documents[:2] + documents[3:], documents[2:3]], 50)
    hidden = decoder(token, position=position, age_minutes=age, segment_id=segment)
    hidden[segment > 0].square().sum().backward()
    for weight, gradient in zip(decoder.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_attention_over_a_pack_costs_what_its_documents_cost(lengths):
    """Cells of score matrices stay within LIKE_LENGTH squared of the documents' own (plus slack), never the pack's square."""
    segment = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))[None]
    groups = DocumentGroups(segment)
    cells = sum(place.shape[0] * place.shape[1] ** 2 for place in groups.places)
    assert cells <= sum(max(length * LIKE_LENGTH, length + SLACK) ** 2 for length in lengths) + 1
    assert sorted(torch.cat([p.flatten()[k] for p, k in zip(groups.places, groups.kept, strict=True)]).tolist()) == list(range(sum(lengths)))


@pytest.mark.parametrize("rotary", ["both", "order", "age", "none"])
def test_no_state_sees_what_comes_after_it(rotary):
    decoder = make(rotary=rotary)
    token, position, age = document(12, 1)
    before = alone(decoder, (token, position, age))
    token, age = token.clone(), age.clone()
    token[7:], age[7:] = 3, age[7:] + 999_999
    torch.testing.assert_close(alone(decoder, (token, position, age))[:7], before[:7], rtol=0, atol=0)


def test_order_within_a_day_is_seen():
    """The same events of one day in another order give another state, even where all ages are equal (the age heads cannot tell)."""
    token, position, age = document(8, 3)
    age = torch.full_like(age, 1000)
    swapped = token.clone()
    swapped[[2, 3]] = token[[3, 2]]
    assert token[2] != token[3]
    for rotary, seen in (("both", True), ("order", True), ("age", False), ("none", False)):
        decoder = make(rotary=rotary, layers=1)
        change = (alone(decoder, (token, position, age)) - alone(decoder, (swapped, position, age)))[-1].abs().max()
        assert bool(change > 1e-4) == seen, rotary


def test_elapsed_time_is_seen_to_the_hour_and_over_decades():
    token, position, age = document(6, 4)
    for rotary, seen in (("age", True), ("both", True), ("order", False)):
        decoder = make(rotary=rotary, width=64)  # heads of 16: wavelengths from a day to 160 years in steps of 4.8
        for step in (60, 1440, 20 * 525_960):
            later = age.clone()
            later[3:] += step
            change = (alone(decoder, (token, position, later)) - alone(decoder, (token, position, age)))[-1].abs().max()
            assert bool(change > 1e-5) == seen, (rotary, step)


def test_only_differences_of_time_and_place_matter_also_in_float32():
    decoder = make(dtype=torch.float32)
    token, position, age = document(10, 5)
    here = alone(decoder, (token, position, age))
    there = alone(decoder, (token, position + 3000, age + CENTURY))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-4)
    double = make(dtype=torch.float64)
    torch.testing.assert_close(alone(double, (token, position + 3000, age + CENTURY)), alone(double, (token, position, age)), rtol=0, atol=1e-8)


def assert_same_logits(decoder: Decoder, found: torch.Tensor, expected: torch.Tensor) -> None:
    """States, and what the head makes of them."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(decoder.head(found), decoder.head(expected), rtol=0, atol=1e-10)


ROTARY = pytest.mark.parametrize("rotary", ["both", "order", "age", "none"])


@ROTARY
@pytest.mark.parametrize("by_column", [False, True])
def test_the_cache_gives_the_logits_of_a_whole_reading(rotary, by_column):
    decoder = make(rotary=rotary)
    documents = [document(length, length) for length in (14, 20, 17)]
    expected = [alone(decoder, parts) for parts in documents]
    read = [6, 11, 1]
    token, position, age, segment = lay_out([[tuple(v[:n] for v in parts)] for parts, n in zip(documents, read, strict=True)], 11)
    cache = KVCache(decoder.config, 3, 2, torch.float64, by_column=by_column)
    hidden = decoder(token, position=position, age_minutes=age, segment_id=segment, cache=cache)
    for row, n in enumerate(read):
        assert_same_logits(decoder, hidden[row, :n], expected[row][:n])
    cache, owner = cache.take(torch.tensor([0, 0, 1, 1, 2, 2])), [0, 0, 1, 1, 2, 2]
    gone = torch.tensor([True, False, False, True, False, False])
    source, target = cache.drop(gone)
    for s, t in zip(source.tolist(), target.tolist(), strict=True):
        owner[t] = owner[s]
    owner = owner[: cache.rows]
    assert sorted(owner) == [0, 1, 2, 2]
    other = KVCache(decoder.config, 1, 4, torch.float64, by_column=by_column)
    decoder(*(v[None, :9] for v in documents[0][:1]), position=documents[0][1][None, :9], age_minutes=documents[0][2][None, :9], cache=other)
    cache.append(other, torch.tensor([0]))
    owner.append(0)
    for _ in range(4):
        at = cache.lengths
        pick = [torch.stack([documents[o][k][i] for o, i in zip(owner, at.tolist(), strict=True)])[:, None] for k in range(3)]
        hidden = decoder(pick[0], position=pick[1], age_minutes=pick[2], cache=cache)
        for row, (o, i) in enumerate(zip(owner, at.tolist(), strict=True)):
            assert_same_logits(decoder, hidden[row, 0], expected[o][i])


@ROTARY
@pytest.mark.parametrize(("stays", "by_column"), [(False, False), (True, False), (False, True)])
def test_rows_that_share_what_they_have_read_have_the_logits_of_a_whole_reading(rotary, stays, by_column):
    """Prompts of unequal length, rows that go, prompts that come later and prompts that nobody goes on from any more.

    Batches are filled up with rows that are nobody's; a cache whose tensors stay (as on a GPU) keeps its layout while it can.
    """
    decoder = make(rotary=rotary)
    documents = [document(length, length) for length in (14, 20, 17)]
    expected = [alone(decoder, parts) for parts in documents]

    def read(which, counts):
        token, position, age, segment = lay_out([[tuple(v[:n] for v in documents[d])] for d, n in zip(which, counts, strict=True)], max(counts))
        cache = KVCache(decoder.config, len(which), 2, torch.float64, by_column=by_column)
        decoder(token, position=position, age_minutes=age, segment_id=segment, cache=cache)
        return cache

    def step(cache, owner):
        at = cache.lengths
        pick = [torch.stack([documents[o][k][i] for o, i in zip(owner, at.tolist(), strict=True)])[:, None] for k in range(3)]
        rows = cache.batch_rows()
        layout, *_ = cache.prepare(rows, 1)
        with cache.undone():
            decoder(torch.zeros(rows, 1, dtype=torch.int64), position=pick[1][:1], age_minutes=pick[2][:1], cache=cache)
        assert cache.positions(rows)[: len(at)].tolist() == at.tolist()
        hidden = decoder(*(F.pad(p, (0, 0, 0, rows - len(p))) for p in pick[:1]), **padded(pick[1:], rows), cache=cache)
        assert cache.layout == layout
        for row, (o, i) in enumerate(zip(owner, at.tolist(), strict=True)):
            assert_same_logits(decoder, hidden[row, 0], expected[o][i])

    def padded(values, rows):
        return {name: F.pad(value, (0, 0, 0, rows - len(value))) for name, value in zip(("position", "age_minutes"), values, strict=True)}

    cache = KVCache(decoder.config, 0, 1, torch.float64, stays=stays, by_column=by_column)
    cache.share(read([0, 1], [5, 9]), torch.tensor([1, 0, 0, 1, 1]))
    owner = [1, 0, 0, 1, 1]
    step(cache, owner)
    step(cache.take(torch.tensor([3, 1])), [1, 0])  # a copy that is read on leaves the rows as they were
    step(cache, owner)
    for s, t in zip(*(x.tolist() for x in cache.drop(torch.tensor([False, True, True, False, True]))), strict=True):
        owner[t] = owner[s]
    owner = owner[: cache.rows]
    step(cache, owner)
    cache.share(read([2, 0], [11, 2]), torch.tensor([1, 0, 1]))
    owner += [0, 2, 0]
    assert (cache.prefix.lengths > 0).sum() == 3, "the prompt whose rows are all gone is kept"
    layout = cache.layout
    for _ in range(3):
        step(cache, owner)
    cache.drop(torch.tensor([False, True, *[False] * (len(owner) - 2)]))
    cache.share(read([1], [3]), torch.tensor([0]))
    assert (cache.layout == layout) == stays


@pytest.mark.parametrize("by_column", [False, True])
def test_what_is_laid_out_anew_takes_the_memory_of_another_and_nothing_of_its_content(by_column, monkeypatch):
    kept_memory, asked = cache_module._kept_memory, []

    def poisoned(used, like_BKSE, numbers):
        flat = kept_memory(used, like_BKSE, numbers)
        asked.append(used is None or flat.data_ptr() != used.untyped_storage().data_ptr())
        return flat.fill_(float("nan"))

    monkeypatch.setattr(cache_module, "_kept_memory", poisoned)
    decoder = make()
    documents = [document(length, length) for length in (60, 50)]
    expected = [alone(decoder, parts) for parts in documents]
    cache, owner = KVCache(decoder.config, 0, 1, torch.float64, by_column=by_column), [0]
    token, position, age = (values[None, :3] for values in documents[0])
    prompt = KVCache(decoder.config, 1, 3, torch.float64, by_column=by_column)
    decoder(token, position=position, age_minutes=age, cache=prompt)
    cache.append(prompt, torch.tensor([0]))
    widths = set()
    for count in range(50):
        if count == 40:  # one that has just begun joins, and the long one goes
            token, position, age = (values[None, :2] for values in documents[1])
            other = KVCache(decoder.config, 1, 2, torch.float64, by_column=by_column)
            decoder(token, position=position, age_minutes=age, cache=other)
            cache.append(other, torch.tensor([0]))
            cache.drop(torch.tensor([True, False]))
            owner = [1]
        at = int(cache.lengths)
        token, position, age = (values[None, at : at + 1] for values in documents[owner[0]])
        assert_same_logits(decoder, decoder(token, position=position, age_minutes=age, cache=cache)[0, 0], expected[owner[0]][at])
        widths.add(cache.capacity)
    assert widths == {16, 32, 48}
    stores = len(cache.key_BKSE) * 2
    assert len(asked) > 4 * stores
    assert sum(asked[-stores:]) == 0, "narrower again, and yet in new memory"
    assert sum(asked) <= len(asked) / 2


@ROTARY
@pytest.mark.parametrize("by_column", [False, True])
def test_several_new_tokens_of_unequal_number_can_be_read_at_once(rotary, by_column):
    decoder = make(rotary=rotary)
    documents = [document(length, length) for length in (9, 13)]
    expected = [alone(decoder, parts) for parts in documents]
    cache = KVCache(decoder.config, 2, 64, torch.float64, by_column=by_column)
    at = [0, 0]
    for counts in ((4, 6), (1, 4), (4, 3)):
        rows = [[tuple(v[a : a + n] for v in parts)] for parts, a, n in zip(documents, at, counts, strict=True)]
        token, position, age, segment = lay_out(rows, max(counts))
        hidden = decoder(token, position=position, age_minutes=age, segment_id=segment, cache=cache)
        for row, (a, n) in enumerate(zip(at, counts, strict=True)):
            assert_same_logits(decoder, hidden[row, :n], expected[row][a : a + n])
        at = [a + n for a, n in zip(at, counts, strict=True)]
    assert cache.lengths.tolist() == [9, 13]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_bfloat16_autocast_stays_near_float32():
    decoder = make(dtype=torch.float32)
    token, position, age, segment = lay_out([[document(9, 1), document(4, 2)], [document(12, 3)]], 16)
    exact = decoder.head(decoder(token, position=position, age_minutes=age, segment_id=segment))
    # Without oneDNN: some virtual machines advertise AMX and kill the process that uses it.
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        rough = decoder.head(decoder(token, position=position, age_minutes=age, segment_id=segment))
    assert torch.isfinite(rough).all()
    assert (rough.float() - exact)[segment > 0].abs().mean() < 0.05 * exact[segment > 0].abs().mean()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_written_out_attention_is_attention(heads, kv_heads):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 11, heads, 8), (3, 11, kv_heads, 8), (3, 11, kv_heads, 8)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    outputs = [attend(*given) for attend in (causal_attention, explicit_attention)]
    torch.testing.assert_close(outputs[0], outputs[1])
    weight = torch.randn(outputs[0].shape, generator=generator, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((output * weight).sum(), given) for output in outputs), strict=True):
        torch.testing.assert_close(one, other)


def test_the_norm_is_what_it_says_and_its_gradient_too():
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(6, 1e-6).double()
    norm.weight.data.uniform_(0.5, 2, generator=generator)
    x = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64).requires_grad_()
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, norm.weight))


def test_turning_is_the_same_with_and_without_complex_numbers():
    generator = torch.Generator().manual_seed(0)
    tables = [torch.rand(2, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    position, age = torch.arange(10).view(2, 5), torch.randint(0, 10**7, (2, 5), generator=generator)
    rotation = Rotation(position, age, *tables, torch.float64)
    x = torch.randn(2, 5, 2, 3, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(rotation(x), rotation.turn_real(x.unflatten(-1, (-1, 2))).flatten(-2))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3), spare=st.integers(0, 4))
def test_documents_of_any_length_are_bounded_where_they_begin(lengths, spare):
    """What the kernel of accelerators is told, used here with plain attention on each piece: the states are those of packed rows."""
    width = max(sum(row) for row in lengths) + spare
    _, _, _, segment = lay_out([[document(length, c) for c, length in enumerate(row)] for row in lengths], width)
    ends = DocumentEnds.of(segment)
    bounds = ends.bounds.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == segment.numel()
    assert max(stop - start for start, stop in itertools.pairwise(bounds)) <= ends.longest
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(*segment.shape, heads, 4, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    pieces = [causal_attention(*(x.flatten(0, 1)[None, start:stop] for x in (q, k, v)))[0] for start, stop in itertools.pairwise(bounds)]
    real = segment > 0
    torch.testing.assert_close(torch.cat(pieces).view_as(q)[real], packed_attention(q, k, v, DocumentGroups(segment))[real])


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=3), min_size=1, max_size=3))
def test_narrow_packed_rows_can_be_attended_under_a_mask(lengths):
    _, _, _, segment = lay_out([[document(length, c) for c, length in enumerate(row)] for row in lengths], max(sum(row) for row in lengths))
    groups = DocumentGroups(segment)
    if groups.unseen_BTT is None:
        return
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(*segment.shape, heads, 4, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    real = segment > 0
    torch.testing.assert_close(explicit_attention(q, k, v, groups.unseen_BTT)[real], packed_attention(q, k, v, groups)[real])


@pytest.mark.gpu
def test_the_kernel_for_documents_of_any_length_gives_the_states_of_packed_rows():
    q, k, v = (torch.randn(3, 96, heads, 32, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
    segment = torch.ones(3, 96, dtype=torch.int64, device="cuda")
    segment[:, 40:] = 2
    segment[1, 70:] = 0
    real = segment > 0
    expected = packed_attention(q.double(), k.double(), v.double(), DocumentGroups(segment))
    torch.testing.assert_close(varlen_attention(q, k, v, DocumentEnds.of(segment))[real].double(), expected[real], atol=2e-2, rtol=2e-2)


def test_a_new_model_predicts_almost_uniformly_whatever_its_depth():
    for layers in (1, 8):
        torch.manual_seed(0)
        decoder = Decoder(ModelConfig(vocabulary_size=500, width=64, layers=layers, heads=4, kv_heads=2))
        token, position, age = document(40, 1)
        logits = decoder.head(alone(decoder, (token, position, age)))
        loss = torch.nn.functional.cross_entropy(logits[:-1], token[1:])
        assert abs(loss.item() - torch.tensor(500.0).log().item()) < 0.3


def test_matmul_parameters_are_the_weights_a_token_is_multiplied_with():
    for tie in (True, False):
        decoder = make(tie=tie, rotary="order", kv_heads=1)
        looked_up = {"care_setting.embedding.weight", *([] if tie else ["embedding.weight"])}
        matrices = sum(w.numel() for name, w in decoder.named_parameters() if w.dim() > 1 and name not in looked_up)
        assert decoder.config.matmul_parameters == matrices


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"width": 15}, "even width"),
        ({"heads": 3}, "even width"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"kv_heads": 1}, "at least 2"),
        ({"layers": 0}, "layers"),
        ({"rotary": "time"}, "valid: both"),
        ({"feedforward": -1}, "feedforward"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"care_settings": (3, 3)}, "different tokens"),
        ({"care_settings": (40,)}, "different tokens of 40"),
        ({"care_settings": (0,)}, "different tokens"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        make(**changes)

"""The cross-entropy that makes its gradients beside itself, against PyTorch's chain of linear and cross_entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cehrxgpt.objectives import cross_entropy
from cehrxgpt.objectives.cross_entropy import linear_cross_entropy


def _layer(places: int, width: int, tokens: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, weights and bias, all of which learn, and targets."""
    random = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*shape, generator=random, dtype=dtype) for shape in ((places, width), (tokens, width), (tokens,)))
    target = torch.randint(0, tokens, (places,), generator=random)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), target


def _reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    return F.cross_entropy(
        F.linear(hidden, weight, bias).float() if hidden.dtype.itemsize == 2 else F.linear(hidden, weight, bias), target, reduction="sum"
    )


@given(st.integers(1, 23), st.integers(1, 9), st.integers(1, 40), st.integers(1, 30), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_loss_and_gradients_are_those_of_the_chain(places: int, width: int, tokens: int, rows: int, biased: bool, seed: int) -> None:
    hidden, weight, bias, target = _layer(places, width, tokens, seed=seed)
    learn = [hidden, weight, *([bias] if biased else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK_ROWS", rows)
        loss = linear_cross_entropy(hidden, weight, bias if biased else None, target)
        found = torch.autograd.grad(3 * loss, learn)
    wanted = _reference(hidden, weight, bias if biased else None, target)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12, abs=1e-12)
    for mine, other in zip(found, torch.autograd.grad(3 * wanted, learn), strict=True):
        assert torch.allclose(mine, other, rtol=1e-10, atol=1e-12)


def test_one_tensor_may_be_both_states_and_weights() -> None:
    """As where embeddings are tied: what flows back by both ways is added up."""
    hidden, weight, _, target = _layer(7, 5, 11)
    found, wanted = (torch.autograd.grad(loss(hidden @ weight[:5], weight, None, target), weight)[0] for loss in (linear_cross_entropy, _reference))
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_rests_gets_no_gradient(frozen: int) -> None:
    hidden, weight, bias, target = _layer(7, 5, 11)
    (hidden, weight, bias)[frozen].requires_grad_(False)
    linear_cross_entropy(hidden, weight, bias, target).backward()
    assert [one.grad is None for one in (hidden, weight, bias)] == [place == frozen for place in range(3)]


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, bias, target = _layer(7, 5, 11)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, bias, target)
    assert not loss.requires_grad
    assert loss == linear_cross_entropy(hidden, weight, bias, target)


def test_it_may_be_gone_back_over_twice() -> None:
    hidden, weight, bias, target = _layer(7, 5, 11)
    loss = linear_cross_entropy(hidden, weight, bias, target)
    once = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, weight)[0], once)


@pytest.mark.parametrize("autocast", [True, False])
def test_in_16_bits_sums_and_gradients_of_float32_weights_stay_wide(autocast: bool) -> None:
    """Products alone are in bfloat16, as in the chain; of weights that have 16 bits so are the gradients."""
    made = _layer(300, 32, 513, dtype=torch.float32 if autocast else torch.bfloat16)
    target, learn = made[3], made[:3]
    exact = [one.detach().double().requires_grad_() for one in learn]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, chain = linear_cross_entropy(*made), _reference(*made)
    wanted = _reference(*exact, target)
    assert loss.dtype == torch.float32
    assert abs(loss - wanted) <= 2 * abs(chain - wanted) + 1e-3 * wanted
    found = torch.autograd.grad(loss, learn)
    assert [one.dtype for one in found] == [one.dtype for one in learn]
    for mine, right in zip(found, torch.autograd.grad(wanted, exact), strict=True):
        assert (mine - right).norm() <= 0.02 * right.norm()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(wrong: float) -> None:
    """The step that it belongs to is skipped: it must not pass for a number."""
    hidden, weight, bias, target = _layer(7, 5, 11)
    with torch.no_grad():
        weight[3, 2] = wrong
    assert not linear_cross_entropy(hidden, weight, bias, target).isfinite()

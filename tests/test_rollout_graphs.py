"""Captured steps, without a GPU: futures written by recorded and replayed operations are those of the decoder itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cehrxgpt.model.cache import ROWS, KVCache
from cehrxgpt.model.graphs import StepGraphs
from cehrxgpt.model.prefix import PLACES
from cehrxgpt.rollout import Rollouts, rollout
from recorded_graphs import graphs_on_a_cpu, tensors  # noqa: F401
from test_rollout import PROMPTS, VOCABULARY, make_decoder


def written(samples: int, rows: int) -> Rollouts:
    return rollout(make_decoder(1), VOCABULARY, PROMPTS, samples=samples, seed=3, max_new_tokens=24, batch_rows=rows)


@pytest.mark.parametrize(("samples", "rows"), [(1, 8), (3, 17), (6, 200)])
def test_captured_steps_write_the_same_futures(samples: int, rows: int, request: pytest.FixtureRequest) -> None:
    """Rows that come and go, prompts of their own and shared ones, and looks ahead that read a copy of the cache."""
    plain = written(samples, rows)
    graphs = request.getfixturevalue("graphs_on_a_cpu")
    captured = written(samples, rows)
    assert 0 < graphs.made < graphs.replays
    assert captured.token_id.tolist() == plain.token_id.tolist()
    assert captured.offsets.tolist() == plain.offsets.tolist()
    assert captured.stop_reason.tolist() == plain.stop_reason.tolist()
    np.testing.assert_allclose(captured.log_probability, plain.log_probability, atol=1e-9)


@pytest.mark.parametrize("works", [0, 1, 3])
def test_where_a_capture_is_refused_the_same_futures_are_written_step_by_step(works: int, request: pytest.FixtureRequest, monkeypatch) -> None:
    """The first capture, or a later one, in the middle of what is being recorded."""
    plain = written(6, 200)
    graphs = request.getfixturevalue("graphs_on_a_cpu")
    step, told_no = StepGraphs._step, False

    def refused(self: StepGraphs, *args: object) -> torch.Tensor:
        nonlocal told_no
        hidden = step(self, *args)
        if graphs.made > works and not told_no:  # the passes before a capture are taken before its graph is made
            told_no = True
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be reported later")
        return hidden

    monkeypatch.setattr(StepGraphs, "_step", refused)
    with pytest.warns(RuntimeWarning, match="not captured.*no others: operation not permitted when stream is capturing$") as told:
        found = written(6, 200)
    assert len(told) == 1
    assert graphs.made == works + 1
    assert found.token_id.tolist() == plain.token_id.tolist()
    np.testing.assert_allclose(found.log_probability, plain.log_probability, atol=1e-9)


def test_an_error_of_the_model_is_no_refusal(request: pytest.FixtureRequest, monkeypatch) -> None:
    request.getfixturevalue("graphs_on_a_cpu")

    def breaks(self: StepGraphs, *args: object) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(StepGraphs, "_step", breaks)
    with pytest.raises(RuntimeError, match="shapes differ"):
        written(6, 200)


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices; numbers on the processor go along as arguments."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        met = {one.device.type for one in tensors([args, kwargs, found]) if one.dim()}
        assert len(met) < 2, f"{operation} between {met}"
        return found


@pytest.mark.parametrize("shared", [False, True])
def test_a_captured_step_fetches_nothing_and_brings_nothing(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either would end a capture. On a device without numbers, what fetches one fails by itself."""
    for table in (PLACES, ROWS):
        monkeypatch.setitem(table, "meta", 32)
    decoder = make_decoder().to("meta")

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device="meta")

    with torch.inference_mode():
        read, cache = (KVCache(decoder.config, rows, 1, torch.float64, "meta") for rows in (2, 0))
        decoder(zeros(2, 9), position=zeros(2, 9), age_minutes=zeros(2, 9), cache=read)
        (cache.share if shared else cache.append)(read, torch.tensor([0, 0, 0, 1, 1]))
        graphs, rows = StepGraphs(decoder), cache.batch_rows()
        cache.prepare(rows, 1)
        with cache.undone():  # what is sent once is sent here
            graphs._step(cache, zeros(rows, 1), zeros(rows, 1))
        with cache.undone(captured=True), OneDevice():
            assert graphs._step(cache, zeros(rows, 1), zeros(rows, 1)).shape == (rows, 1, decoder.config.width)
        with pytest.raises(AssertionError, match="between"), OneDevice():
            zeros(2, 2).copy_(torch.zeros(2, 2, dtype=torch.int64))

"""The script for GPUs runs, on a CPU and a tiny size, and its bound counts the bytes that it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_script_for_gpus_runs_on_a_cpu(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_rollout

    monkeypatch.setitem(gpu_rollout.COPIED_BYTES, "cpu", 1 << 20)
    out = tmp_path / "figures.json"
    sizes = ["--patients", "3", "--samples", "4", "--history", "40", "--new", "5", "--rows", "8", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu_rollout.py", "--size", "tiny", "--device", "cpu", "--out", str(out), *sizes])
    gpu_rollout.main()
    figures = json.loads(out.read_text())
    assert figures == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["realised_length"] == 5
    shape = gpu_rollout.SIZES["tiny"]
    place = 2 * 2 * shape["layers"] * shape["kv_heads"] * shape["width"] // shape["heads"]  # keys and values of one token, in 16 bits
    assert figures["bytes_per_step"] == 2 * figures["parameters"] + place * (2 * 40 + 8 * 2.5)
    assert figures["share_of_bandwidth_bound"] == pytest.approx(figures["tokens_per_second"] / figures["bandwidth_bound_tokens_per_second"], abs=2e-3)

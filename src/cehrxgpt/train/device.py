"""Where and in which precision to compute, and how fast this machine multiplies.

One device, chosen by plain Torch; more of them are a later matter. bfloat16 is taken on CUDA, and on a CPU that announces instructions
for it (AVX512-BF16, AMX) *and* was measured to multiply it faster than float32. The measurement runs in a process of its own, once.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from cehrxgpt.errors import ConfigError
from cehrxgpt.train.config import TrainConfig

_RATE_SIZE = {"cpu": 1024, "cuda": 8192}
_RATE_SECONDS = 0.2
_WORTH_IT = 1.2  # bfloat16 must be this much faster
_PROBE_SECONDS = 60.0
_PROBE = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
for name in ("float32", "bfloat16"):
    left = torch.full((512, 512), 0.5, dtype=getattr(torch, name))
    left @ left
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < 0.1:
        left @ left
        products += 1
    print(name, 2 * 512**3 * products / (time.perf_counter() - start), flush=True)
"""


def choose_device(name: str) -> torch.device:
    """The device of a recipe's `device`.

    Raises:
        ConfigError: unknown, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}': not a device; valid: auto, cpu, cuda, cuda:<number>") from error
    if device.type not in _RATE_SIZE or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device '{name}': not available here; valid: auto, cpu{', cuda' if torch.cuda.is_available() else ''}")
    return device


@functools.cache
def _cpu_speeds(threads: int) -> dict[str, float]:
    """FLOP per second of a product in float32 and in bfloat16, measured in a process of its own; no "bfloat16" where that died.

    Processors (virtual ones above all) exist that announce AMX and trap its instructions, and others on which bfloat16 is slower than
    float32. Neither can be read off a flag, and the first would end the process that finds out.
    """
    try:
        found = subprocess.run([sys.executable, "-c", _PROBE, str(threads)], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {line.split()[0]: float(line.split()[1]) for line in found.stdout.splitlines()}


def bfloat16_works(device: torch.device) -> bool:
    """Whether a product in bfloat16 can be computed here at all."""
    return device.type == "cuda" or not _announces_bfloat16() or "bfloat16" in _cpu_speeds(torch.get_num_threads())


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 clearly faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if not _announces_bfloat16():
        return False
    speeds = _cpu_speeds(torch.get_num_threads())
    return speeds.get("bfloat16", 0.0) > _WORTH_IT * speeds.get("float32", float("inf"))


def _announces_bfloat16() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in; weights, their moments, norms and losses stay float32.

    Raises:
        ConfigError: bfloat16 was asked for, and this processor dies of it.
    """
    if config.precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    if config.precision == "bfloat16" and not bfloat16_works(device):
        raise ConfigError("precision bfloat16: this processor announces bfloat16 and cannot compute it; use precision: float32 (or auto)")
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context a forward pass runs in."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = _RATE_SECONDS) -> float:
    """FLOP per second of one large square product, measured: what the share of achieved FLOP (MFU) is taken of."""
    size = _RATE_SIZE[device.type]
    left = torch.full((size, size), 0.5, dtype=dtype, device=device)
    right = left.clone()
    left @ right
    _synchronise(device)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        left @ right
        _synchronise(device)
        products += 1
    return 2 * size**3 * products / (time.perf_counter() - start)

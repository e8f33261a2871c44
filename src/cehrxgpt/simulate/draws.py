"""Random numbers that belong to a patient, not to a batch: a pure function of (key, step, purpose).

NumPy's generators hand out numbers in the order they are asked for, so a patient's fate would depend on who stands beside them. Here
each row carries a 64-bit key (from the seed and the subject) and a step counter, and a draw is a hash of key, step and the purpose it
serves (SplitMix64's finaliser, applied twice). Population of 1,000 or of 100,000: patient 17 lives the same life. About 15 ns a draw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0xD1342543DE82EF95)
_TO_UNIT = 2.0**-53


def _mix(value: Keys) -> Keys:
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


def make_keys(*parts: int | npt.NDArray[np.integer]) -> Keys:
    """Keys [n] from any number of integers or integer arrays (broadcast together)."""
    key = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            words = np.atleast_1d(np.asarray(part, dtype=np.int64)).view(np.uint64)
            key = _mix((key + _GOLDEN) ^ _mix(words + _GOLDEN))
    return key


def uniform(key: Keys, step: Keys | int, purpose: int) -> Floats:
    """Uniform draws in (0, 1), one per key; never exactly 0 or 1."""
    with np.errstate(over="ignore"):
        salt = _mix(np.atleast_1d(np.asarray(purpose, dtype=np.uint64)) + _GOLDEN)
        bits = _mix(_mix(key + np.asarray(step, dtype=np.uint64) * _STEP) ^ salt)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * _TO_UNIT


def normal(key: Keys, step: Keys | int, purpose: int) -> Floats:
    """Standard normal draws (Box-Muller over two uniforms; uses purposes `purpose` and `purpose + 1`)."""
    radius = np.sqrt(-2.0 * np.log(uniform(key, step, purpose)))
    return radius * np.cos(2.0 * np.pi * uniform(key, step, purpose + 1))

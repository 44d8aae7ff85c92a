"""Random numbers keyed by what they are for, not by who draws them.

A draw depends on (seed, epoch, sample, purpose) alone. So the same seed gives every method the same
data order and augmentation, whatever the number of workers, processes or devices.

The generator is splitmix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195): its finaliser
applied to a counter, which needs no state and vectorises.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned ``value``."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _mix_numpy(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
        return z ^ (z >> np.uint64(31))


def salt(purpose: str) -> int:
    """A 64-bit number for a purpose such as ``"mask"``, so that two purposes never share draws."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def sample_keys(seed: int, epoch: np.ndarray | int, index: np.ndarray) -> np.ndarray:
    """One int64 key a sample, [B], out of (seed, epoch, index)."""
    index = np.asarray(index, dtype=np.uint64)
    epoch = np.broadcast_to(np.asarray(epoch, dtype=np.uint64), index.shape)
    with np.errstate(over="ignore"):
        z = _mix_numpy(np.full(index.shape, np.uint64(seed & _MASK64)) + np.uint64(GOLDEN))
        z = _mix_numpy(z ^ (epoch + np.uint64(1)) * np.uint64(GOLDEN))
        z = _mix_numpy(z ^ (index + np.uint64(1)) * np.uint64(GOLDEN))
    return z.view(np.int64)


def numpy_generator(key: int, purpose: str) -> np.random.Generator:
    """A numpy generator for one sample key and one purpose."""
    return np.random.Generator(np.random.PCG64([int(key) & _MASK64, salt(purpose)]))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch ``epoch`` visits ``n`` samples, int64 [n]."""
    return np.random.Generator(np.random.PCG64([seed & _MASK64, epoch, salt("order")])).permutation(n)


def uniform(keys: Tensor, n: int, purpose: str) -> Tensor:
    """Uniform numbers in [0, 1), float32 [B, n], a row for each int64 key of ``keys`` [B].

    Runs on the device of ``keys`` and gives the same bits on every device.
    """
    import torch

    counter = torch.arange(1, n + 1, device=keys.device, dtype=torch.int64) * _signed(GOLDEN)
    z = _mix(branch(keys, purpose).unsqueeze(1) + counter)
    return _shift(z, 40).to(torch.float32) * 2.0**-24


def chances(keys: Tensor, n: int, probability: float, purpose: str) -> Tensor:
    """Whether each of ``n`` things happens to each sample, bool [B, n], a row for each key of ``keys`` [B].

    ``probability`` is rounded to a multiple of 2^-16: a 64-bit number decides four of them, which makes
    many draws, such as those of dropout, as cheap as torch's own.
    """
    import torch

    words = -(-n // 4)
    counter = torch.arange(1, words + 1, device=keys.device, dtype=torch.int64) * _signed(GOLDEN)
    draws = _mix(branch(keys, purpose).unsqueeze(1) + counter).view(torch.int16)[:, :n]
    return draws < min(round(probability * 2**16), 2**16 - 1) - 2**15


def branch(keys: Tensor, purpose: str) -> Tensor:
    """Keys for something else of each sample that draws on its own, such as a second view; int64 [B]."""
    return _mix(keys + _signed(salt(purpose)))


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_MIX1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX2)
    return z ^ _shift(z, 31)


def normal(keys: Tensor, n: int, purpose: str) -> Tensor:
    """Standard normal numbers, float32 [B, n], a row for each int64 key of ``keys`` [B].

    Box and Muller's transform (1958, doi:10.1214/aoms/1177706645) of keyed uniform numbers.
    """
    import math

    import torch

    radius, angle = uniform(keys, 2 * n, purpose).view(len(keys), 2, n).unbind(1)
    # 1 - u lies in (0, 1], so that the logarithm is finite.
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)

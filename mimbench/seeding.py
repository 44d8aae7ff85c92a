"""Global generators, seeded by what the draws are for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mimbench import rng


def key(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for a torch generator out of the run's seed, a purpose and, say, step and process."""
    mixed = seed ^ rng.salt(purpose)
    for number in numbers:
        mixed = int(rng.sample_keys(mixed, 0, np.array([number]))[0])
    return mixed & ((1 << 63) - 1)


@contextmanager
def seeded_init(seed: int, purpose: str = "init") -> Iterator[None]:
    """What draws from torch's global generator inside depends on ``seed`` alone; outside nothing changes."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(key(seed, purpose))
        yield


@contextmanager
def seeded_python(key: int) -> Iterator[None]:
    """What draws from Python's and numpy's global generators inside depends on ``key`` alone, as timm's
    augmentations do; outside nothing changes."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(key)
    np.random.seed(key % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

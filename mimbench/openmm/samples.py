"""Samples on their way through mmdet's or mmseg's transforms, the same for any number of workers.

Those transforms draw from numpy's and Python's global generators. Here these are set for each sample by its
key and put back behind it, so that what happens to a sample depends on (seed, epoch, sample) alone, as in
``mimbench.data.loading``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from mimbench import rng
from mimbench.data.loading import in_order
from mimbench.errors import UserError

TRIES = 20  # of a pipeline that gives nothing, because it cropped away all there was


class Samples:
    """What a model is shown of a split.

    load: index to what the pipeline begins with, a new dict at each call. transforms: mmengine's
    configurations, or callables. metainfo: what mmdet and mmseg want to know of a data set, as classes.
    """

    def __init__(
        self,
        count: int,
        load: Callable[[int], dict[str, Any]],
        transforms: Sequence[Any],
        metainfo: dict[str, Any],
    ):
        from mmengine.dataset import Compose

        self.count, self.load, self.metainfo = count, load, metainfo
        self.pipeline = Compose(transforms)

    def __len__(self) -> int:
        return self.count

    def at(self, index: int, key: int) -> dict[str, Any]:
        """The sample as a model takes it. Raises UserError when its file is gone meanwhile."""
        for attempt in range(TRIES):
            with keyed_randomness(key, attempt):
                found = self.pipeline(self.load(index))
            if found is not None:
                return found
        raise UserError(
            f"after {TRIES} random crops of sample {index} nothing was left of it; try a larger one"
        )


@contextmanager
def keyed_randomness(key: int, attempt: int = 0) -> Iterator[None]:
    """Python's and numpy's global generators depend on ``key`` and ``attempt`` alone inside, and go on as if
    nothing had been outside."""
    draws = rng.numpy_generator(key, f"transforms {attempt}").integers(1 << 32, size=2)
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(int(draws[0]))
    np.random.seed(int(draws[1]))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng.permutation(seed, epoch, count)


class Stream:
    """Micro-batches of one endless stream, as in ``mimbench.data.loading``; what mmengine calls a dataloader.

    share: samples of this process in each step; micro_batch: those that go through the model together, of
    which ``share`` is a multiple.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        seed: int,
        batch_size: int,
        micro_batch: int | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ):
        if batch_size % world:
            raise UserError(
                f"a batch of {batch_size} cannot be shared evenly by {world} processes; "
                f"use a multiple of {world}"
            )
        self.dataset, self.seed, self.batch_size = samples, seed, batch_size
        self.rank, self.world, self.workers = rank, world, workers
        self.share = batch_size // world
        most = min(micro_batch or self.share, self.share)
        # Equal parts: mmengine divides the loss by their number.
        self.micro_batch = next(size for size in range(most, 0, -1) if self.share % size == 0)

    def __len__(self) -> int:
        """Steps an epoch; mmengine's schedulers ask, those counted in steps do not use it."""
        return -(-len(self.dataset) // self.batch_size)

    @property
    def parts(self) -> int:
        """Micro-batches a step."""
        return self.share // self.micro_batch

    def batches(self, start: int, stop: int) -> Iterator[dict[str, list[Any]]]:
        """The micro-batches of this process in the steps [start, stop)."""
        wanted = (
            np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world)[
                part * self.micro_batch : (part + 1) * self.micro_batch
            ]
            for step in range(start, stop)
            for part in range(self.parts)
        )
        return in_order(_AtPositions(self.dataset, self.seed), lambda: wanted, self.workers)


class _AtPositions:
    """Positions in the stream to a micro-batch."""

    def __init__(self, samples: Samples, seed: int):
        self.samples, self.seed = samples, seed

    def __getitem__(self, positions: np.ndarray) -> dict[str, list[Any]]:
        count = len(self.samples)
        epochs = positions // count
        indices = [int(_order(self.seed, int(p) // count, count)[int(p) % count]) for p in positions]
        keys = rng.sample_keys(self.seed, epochs, np.array(indices))
        return collate([self.samples.at(i, int(key)) for i, key in zip(indices, keys, strict=True)])


class AtIndices:
    """Indices of samples to a batch, for testing; nothing is random there."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, indices: np.ndarray) -> dict[str, list[Any]]:
        return collate([self.samples.at(int(index), 0) for index in indices])


def collate(found: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Samples of several sizes side by side, as mmengine's preprocessors take them."""
    return {name: [one[name] for one in found] for name in found[0]}

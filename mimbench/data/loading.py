"""Batches: the same for any number of workers and processes.

Training data is one endless stream. Position p holds the sample ``rng.permutation(seed, p // N, N)[p % N]``
of epoch p // N; optimiser step s covers positions [s B, (s + 1) B), of which rank r takes every world-th.
What happens to a sample is drawn from its key, which is made of (seed, epoch, sample). So a batch is a
function of (seed, step), and resuming is starting at another step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mimbench import rng
from mimbench.data.dataset import Split
from mimbench.data.transforms import EvalTransform, TrainTransform
from mimbench.errors import UserError
from mimbench.spec import Augmentation, View


class CropBatch(NamedTuple):
    """One crop of each sample and where it lies."""

    images: Tensor  # uint8 [b, 3, S, S]
    boxes: Tensor  # float32 [b, 4]: top, left, height, width, as shares of the image's sides
    flipped: Tensor  # bool [b]


class Batch(NamedTuple):
    """Training samples that go through the model together."""

    images: Tensor  # uint8 [b, 3, S, S]
    labels: Tensor | None  # int64 [b]; None for an unlabelled dataset
    keys: Tensor  # int64 [b], rng.sample_keys(seed, epoch, sample)
    views: tuple[CropBatch, ...] = ()  # where views were asked for: ``images`` again, then the views


def training_batches(
    split: Split,
    *,
    augmentation: Augmentation,
    image_size: int,
    seed: int,
    batch_size: int,
    start: int = 0,
    stop: int,
    rank: int = 0,
    world: int = 1,
    micro_batch: int | None = None,
    workers: int = 0,
    views: tuple[View, ...] = (),
) -> Iterator[list[Batch]]:
    """The micro-batches of this rank, a list for each optimiser step in [start, stop).

    ``batch_size`` is global: over accumulation and processes. ``micro_batch`` is how many samples of this
    rank go through the model at once (default: all); the last of a step may hold fewer, so weigh losses by
    size. Pass ``augmentation`` and ``views`` through ``Dataset.defaults``' ``suit`` and ``suit_views``. With
    ``workers`` > 0 that many processes prepare batches ahead.

    Raises UserError if the processes cannot share a batch evenly, or if an image is gone meanwhile.
    """
    if batch_size % world:
        raise UserError(
            f"a batch of {batch_size} cannot be shared evenly by {world} processes; use a multiple of {world}"
        )
    source = _Training(split, TrainTransform(augmentation, image_size, views), seed)
    share = batch_size // world
    micro_batch = min(micro_batch or share, share)
    cuts = [slice(first, first + micro_batch) for first in range(0, share, micro_batch)]

    def wanted() -> Iterator[np.ndarray]:
        for step in range(start, stop):
            positions = np.arange(step * batch_size + rank, (step + 1) * batch_size, world)
            yield from (positions[cut] for cut in cuts)

    batches = in_order(source, wanted, workers)
    for _ in range(start, stop):
        yield [next(batches) for _ in cuts]


def evaluation_batches(
    split: Split,
    *,
    image_size: int,
    crop_pct: float,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(indices int64 [b], images uint8 [b, 3, S, S]) of the samples rank::world, each once, in order.

    Nothing is padded: the last batch may be smaller, and ranks may differ by one sample.
    """
    indices = np.arange(rank, len(split), world)

    def wanted() -> Iterator[np.ndarray]:
        return (indices[first : first + batch_size] for first in range(0, len(indices), batch_size))

    return in_order(_Evaluation(split, EvalTransform(image_size, crop_pct)), wanted, workers)


def picked_batches(
    split: Split,
    wanted: Callable[[], Iterator[np.ndarray]],
    *,
    image_size: int,
    crop_pct: float,
    workers: int = 0,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(indices int64 [b], images uint8 [b, 3, S, S]) of the samples that ``wanted`` picks, in its order.

    wanted: gives the indices of each batch; called once. The images are those of ``evaluation_batches``.
    """
    return in_order(_Evaluation(split, EvalTransform(image_size, crop_pct)), wanted, workers)


class _Training:
    """Positions of the stream to a batch."""

    def __init__(self, split: Split, transform: TrainTransform, seed: int):
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, positions: np.ndarray) -> Batch:
        count, size = len(self.split), self.transform.image_size
        epochs = positions // count
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = _order(self.seed, int(epoch), count)[positions[here] % count]
        keys = rng.sample_keys(self.seed, epochs, samples)
        labels = self.split.labels
        wanted = None if labels is None else torch.from_numpy(labels[samples])
        if self.transform.views:
            views = self._views(samples, keys)
            return Batch(views[0].images, wanted, torch.from_numpy(keys), views)
        images = torch.empty(len(samples), 3, size, size, dtype=torch.uint8)
        for row, (sample, key) in enumerate(zip(samples.tolist(), keys.tolist(), strict=True)):
            images[row] = self.transform(self.split.image(sample), key)
        return Batch(images, wanted, torch.from_numpy(keys))

    def _views(self, samples: np.ndarray, keys: np.ndarray) -> tuple[CropBatch, ...]:
        cuts, shapes = [], []
        for sample, key in zip(samples.tolist(), keys.tolist(), strict=True):
            pixels = self.split.image(sample)
            cuts.append(self.transform.cuts(pixels, key))
            shapes.append(2 * pixels.shape[:2])  # height, width, height, width
        sides = torch.tensor(shapes, dtype=torch.float32)
        return tuple(
            CropBatch(
                torch.stack([cut.image for cut in view]),
                torch.tensor([cut.box for cut in view], dtype=torch.float32) / sides,
                torch.tensor([cut.flipped for cut in view]),
            )
            for view in zip(*cuts, strict=True)
        )


class _Evaluation:
    """Sample indices to images."""

    def __init__(self, split: Split, transform: EvalTransform):
        self.split, self.transform = split, transform

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, Tensor]:
        size = self.transform.image_size
        images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            images[row] = self.transform(self.split.image(index))
        return indices, images


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng.permutation(seed, epoch, count)


class _Guarded(torch.utils.data.Dataset[Any]):
    """Hands a worker's UserError over as a value; torch would wrap its sentence into a traceback."""

    def __init__(self, source: Any):
        self.source = source

    def __getitem__(self, item: np.ndarray) -> Any:
        try:
            return self.source[item]
        except UserError as error:
            return error


class _Sampler:
    def __init__(self, wanted: Any):
        self.wanted = wanted

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.wanted()


def _as_it_is(item: Any) -> Any:
    return item


def in_order(source: Any, wanted: Any, workers: int) -> Iterator[Any]:
    """``source[item]`` for each of ``wanted()``, in order, ahead of time where there are workers."""
    if workers == 0:
        yield from (source[item] for item in wanted())
        return
    loader: DataLoader[Any] = DataLoader(
        _Guarded(source),
        batch_size=None,
        sampler=_Sampler(wanted),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch

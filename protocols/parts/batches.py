"""Batches of frozen features to train on: at hand, or read off augmented images as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from mimbench import rng
from mimbench.data import training_batches
from mimbench.spec import Augmentation, Readout
from protocols.parts.course import Course
from protocols.parts.fitted import Features
from protocols.parts.processes import Team

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.encoder import Encoder
    from mimbench.protocol import Surroundings

Labelled = tuple[Features, Tensor]  # features [b, D] of each part, labels int64 [b]
Batches = Callable[
    [int, int], Generator[Labelled, None, None]
]  # (first, last) to the batches of these updates

IMAGES = 128  # through the frozen encoder at once, where nobody says how many

# Of probes: random resized crops of 8 % and more of the area and flips, torchvision's defaults. MAE, DINOv2
# and CAPI resize bicubically, BEiT, DINO and iBOT bilinearly.
Augment = Literal["none", "crop", "crop-bilinear"]
AUGMENTATIONS = {
    "crop": Augmentation(crop_scale=(0.08, 1.0), interpolation="bicubic"),
    "crop-bilinear": Augmentation(crop_scale=(0.08, 1.0), interpolation="bilinear"),
}


def stream(seed: int, count: int, batch_size: int, steps: int, start: int = 0) -> Iterator[Tensor]:
    """Sample indices, int64 [batch_size], of updates ``start`` to ``steps``.

    The same endless row of permutations of ``count`` samples that ``training_batches`` reads.
    """
    epoch, skipped = divmod(start * batch_size, count)
    ahead = np.empty(0, np.int64)
    for _ in range(start, steps):
        while len(ahead) < batch_size:
            ahead = np.concatenate([ahead, rng.permutation(seed, epoch, count)[skipped:]])
            epoch, skipped = epoch + 1, 0
        yield torch.from_numpy(ahead[:batch_size])
        ahead = ahead[batch_size:]


def at_hand(train: Features, labels: Tensor, seed: int, course: Course) -> Batches:
    """Batches of features that are there already. What is yielded is overwritten by the next batch."""
    size, device = course.batch_size, labels.device
    rows = {part: torch.empty(size, x.shape[1], device=device) for part, x in train.items()}
    target = torch.empty(size, dtype=torch.int64, device=device)

    def batches(first: int, last: int) -> Generator[Labelled, None, None]:
        for indices in stream(seed, len(labels), size, last, first):
            indices = indices.to(device)
            for part, x in rows.items():
                torch.index_select(train[part], 0, indices, out=x)
            torch.index_select(labels, 0, indices, out=target)
            yield rows, target

    return batches


def widths_of(encoder: Encoder, parts: Sequence[Readout], team: Team) -> dict[Readout, int]:
    """How many features each part has; those of a plain image's pixels differ between its tokens."""
    image = torch.zeros(1, 3, encoder.image_size, encoder.image_size, dtype=torch.uint8, device=team.device)
    return {part: vector.shape[1] for part, vector in encoder.readouts(image, parts).items()}


def augmented_images(
    augment: Augment, encoder: Encoder, data: Dataset, around: Surroundings, team: Team, course: Course
) -> Callable[[int, int], Iterator[list[tuple[Tensor, Tensor]]]]:
    """This process's share of the augmented images of each update, and their labels, in pieces.

    Images uint8 [b, 3, S, S] where the encoder computes, labels int64 [b] where training does.
    """

    def pieces(first: int, last: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        for micro_batches in training_batches(
            data.train,
            augmentation=data.defaults.suit(AUGMENTATIONS[augment]),
            image_size=encoder.image_size,
            seed=around.seed,
            batch_size=course.batch_size,
            start=first,
            stop=last,
            rank=team.rank,
            world=team.world,
            micro_batch=around.micro_batch or IMAGES,
            workers=around.workers,
        ):
            found = []
            for batch in micro_batches:
                assert batch.labels is not None, "Protocol.check refuses unlabelled data"
                found.append(
                    (
                        batch.images.to(team.device, non_blocking=True),
                        batch.labels.to(team.computing, non_blocking=True),
                    )
                )
            yield found

    return pieces


def augmented(
    augment: Augment,
    encoder: Encoder,
    parts: Sequence[Readout],
    data: Dataset,
    around: Surroundings,
    team: Team,
    course: Course,
) -> Batches:
    """Batches of the features of augmented images: this process's share of each update."""
    images_of = augmented_images(augment, encoder, data, around, team, course)

    def batches(first: int, last: int) -> Generator[Labelled, None, None]:
        for pieces in images_of(first, last):
            found = []
            for images, _ in pieces:
                with team.autocast():
                    found.append(encoder.readouts(images, parts))
            features = {
                part: torch.cat([piece[part].float() for piece in found]).to(team.computing) for part in parts
            }
            yield features, torch.cat([labels for _, labels in pieces])

    return batches

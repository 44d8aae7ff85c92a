"""Frozen tokens of a split: kept in memory where they fit, otherwise read off the images again each time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from mimbench.data import evaluation_batches, picked_batches
from mimbench.progress import Progress
from protocols.parts.attentive_heads import Tokens
from protocols.parts.batches import IMAGES, Augment, augmented_images, stream
from protocols.parts.course import Course
from protocols.parts.frozen import labels_of
from protocols.parts.processes import Team

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder
    from mimbench.protocol import Surroundings

Attended = Literal["patches", "all"]  # "all": the class token too, where there is one
Pieces = Iterator[tuple[Tokens, Tensor]]  # tokens of some samples and their labels

MEMORY = 2 * 2**30  # bytes of tokens that are kept, of each split


class TokenSource:
    """Reads tokens [B, N, D] of some layers, through the final norm, off a data set's images."""

    def __init__(
        self,
        encoder: Encoder,
        data: Dataset,
        around: Surroundings,
        team: Team,
        layers: Sequence[int],
        attended: Attended,
    ):
        self.encoder, self.data, self.around, self.team = encoder, data, around, team
        self.layers, self.attended = tuple(dict.fromkeys(layers)), attended
        self.at_once = around.micro_batch or IMAGES
        self._kept: dict[str, dict[int, Tensor]] = {}

    def _read(self, images: Tensor) -> dict[int, Tensor]:
        with self.team.autocast():
            found = self.encoder.tokens(images.to(self.team.device, non_blocking=True), self.layers)
        tokens = {}
        for layer, (cls, patches) in zip(self.layers, found, strict=True):
            flat = patches.flatten(1, 2)
            if self.attended == "all" and cls is not None and cls.shape[1] == flat.shape[2]:
                flat = torch.cat([cls[:, None], flat], 1)
            tokens[layer] = flat.float().to(self.team.computing)
        return tokens

    @property
    def shape(self) -> tuple[int, int]:
        """How many tokens an image has, and features a token."""
        size = self.encoder.image_size
        (tokens, *_) = self._read(torch.zeros(1, 3, size, size, dtype=torch.uint8)).values()
        return tokens.shape[1], tokens.shape[2]

    def _labels(self, split: Split) -> Tensor:
        return labels_of(split, self.encoder).to(self.team.computing)

    # -- to score on -------------------------------------------------------------------------------

    def in_order(self, split: Split) -> Iterator[tuple[np.ndarray, Tokens]]:
        """This process's share of a split: indices int64 [b] and their tokens."""
        if kept := self._keep(split):
            for first in range(0, len(split), self.at_once):
                rows = np.arange(first, min(first + self.at_once, len(split)))
                yield rows, {layer: x[rows[0] : rows[-1] + 1] for layer, x in kept.items()}
            return
        for indices, images in self._images(split):
            yield indices, self._read(images)

    def labelled(self, split: Split) -> Pieces:
        """``in_order`` with the samples' labels."""
        labels = self._labels(split)
        for indices, tokens in self.in_order(split):
            yield tokens, labels[torch.from_numpy(indices).to(labels.device)]

    def _images(self, split: Split) -> Iterator[tuple[np.ndarray, Tensor]]:
        return evaluation_batches(
            split,
            image_size=self.encoder.image_size,
            crop_pct=self.data.defaults.crop_pct,
            batch_size=self.at_once,
            rank=self.team.rank,
            world=self.team.world,
            workers=self.around.workers,
        )

    def _keep(self, split: Split) -> dict[int, Tensor]:
        """All tokens of a split, read once; empty where they are too many or shared by processes."""
        if split.fingerprint in self._kept:
            return self._kept[split.fingerprint]
        kept: dict[int, Tensor] = {}
        if self.team.alone and self._bytes(len(split)) <= MEMORY:
            for indices, images in self._images(split):
                for layer, x in self._read(images).items():
                    if layer not in kept:
                        kept[layer] = torch.empty(len(split), *x.shape[1:], device=x.device)
                    kept[layer][indices[0] : indices[-1] + 1] = x
                done = (int(indices[-1]) + 1) / len(split)
                self.around.report(Progress(stage="extracting tokens", done=done))
        self._kept[split.fingerprint] = kept
        return kept

    def _bytes(self, count: int) -> int:
        tokens, width = self.shape
        return 4 * count * len(self.layers) * tokens * width

    # -- to train on -------------------------------------------------------------------------------

    def to_train_on(
        self, augment: Augment, course: Course, first: int, last: int, whole: bool
    ) -> Generator[Pieces, None, None]:
        """This process's share of the batches of updates ``first`` to ``last``, each in pieces.

        whole: a batch in one piece, for those that must see all of it.
        """
        updates = self._untouched(course, first, last)
        if augment != "none":
            updates = self._augmented(augment, course, first, last)
        for pieces in updates:
            yield _joined(list(pieces)) if whole else pieces

    def _augmented(self, augment: Augment, course: Course, first: int, last: int) -> Iterator[Pieces]:
        images_of = augmented_images(augment, self.encoder, self.data, self.around, self.team, course)
        for pieces in images_of(first, last):
            yield ((self._read(images), labels) for images, labels in pieces)

    def _untouched(self, course: Course, first: int, last: int) -> Iterator[Pieces]:
        train, seed = self.data.train, self.around.seed
        labels, orders = self._labels(train), stream(seed, len(train), course.batch_size, last, first)
        share = slice(self.team.rank, None, self.team.world)
        if kept := self._keep(train):
            for order in orders:
                rows = order.to(labels.device)
                yield iter([({layer: x[rows] for layer, x in kept.items()}, labels[rows])])
            return
        size = -(-course.batch_size // self.team.world)

        def wanted() -> Iterator[np.ndarray]:
            for order in orders:
                mine = order[share].numpy()
                yield from (mine[i : i + self.at_once] for i in range(0, len(mine), self.at_once))

        batches = picked_batches(
            train,
            wanted,
            image_size=self.encoder.image_size,
            crop_pct=self.data.defaults.crop_pct,
            workers=self.around.workers,
        )
        cuts = -(-size // self.at_once)

        def one() -> Pieces:
            for _ in range(cuts):
                indices, images = next(batches)
                yield self._read(images), labels[torch.from_numpy(indices).to(labels.device)]

        for _ in range(first, last):
            yield one()


def _joined(pieces: list[tuple[Tokens, Tensor]]) -> Pieces:
    layers = pieces[0][0]
    tokens = {layer: torch.cat([piece[layer] for piece, _ in pieces]) for layer in layers}
    return iter([(tokens, torch.cat([labels for _, labels in pieces]))])

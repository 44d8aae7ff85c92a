"""The labelled patches of a training split: tokens and labels, in memory that has a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mimbench import rng
from mimbench.errors import UserError
from mimbench.processes import gathered
from protocols.parts.patches import Fit, label_patches, see

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimbench.data import Split
    from mimbench.encoder import Encoder
    from mimbench.protocol import Surroundings


class Bank(NamedTuple):
    """Patches of all images, in their order."""

    tokens: dict[int, Tensor]  # by layer: float32 [N, D]
    labels: Tensor  # uint8 (int32 of more than 254 classes) [N, P·P]
    majority: Tensor  # int64 [N], the class of most pixels
    ignore: int  # the label of pixels without an annotation
    total: int  # patches of a class there are


def bank_of(
    encoder: Encoder,
    split: Split,
    layers: Sequence[int],
    fit: Fit,
    around: Surroundings,
    *,
    classes: int,
    limit: int | None,
) -> Bank:
    """All patches of a split that are of a class; of more than ``limit`` a random draw.

    Pixels without an annotation count as a class of their own, and a patch that has most of them is left
    out, as in CAPI. The draw takes equally many of each image (at least one), by (seed, image) alone. On all
    processes; each extracts its share. Raises UserError where no patch is left.
    """
    each = None if limit is None else max(1, limit // len(split))
    grid = encoder.backbone.grid
    found: dict[int, _Part] = {}
    ignore = 255
    for image in see(encoder, split, layers, fit, around, stage="reading training patches"):
        ignore = image.ignore
        labels = label_patches(image.labels, grid).flatten(0, 1)
        most = majority(labels, classes, ignore)
        kept = (most < classes).nonzero().squeeze(1)
        total = len(kept)
        if each is not None and total > each:
            key = int(rng.sample_keys(around.seed, 0, np.array([image.number]))[0])
            draw = rng.numpy_generator(key, "patches").choice(total, each, replace=False)
            kept = kept[torch.from_numpy(np.sort(draw)).to(kept.device)]
        found[image.number] = _Part(
            {layer: tokens.flatten(0, 1)[kept] for layer, tokens in image.tokens.items()},
            labels[kept].to(torch.uint8 if ignore == 255 else torch.int32),
            most[kept],
            total,
        )
    device = encoder.mean.device
    everyone: dict[int, _Part] = {}
    for part in gathered(around.fabric, found):
        everyone |= part
    del found
    images = [everyone.pop(index) for index in sorted(everyone)]
    total = sum(image.total for image in images)
    if not total:
        raise UserError(
            "no patch of the training images has a class on most of its pixels; look at the label maps"
        )
    return Bank(
        {layer: torch.cat([image.tokens[layer].to(device) for image in images]) for layer in layers},
        torch.cat([image.labels.to(device) for image in images]),
        torch.cat([image.majority.to(device) for image in images]),
        ignore,
        total,
    )


class _Part(NamedTuple):
    """One image's share of the bank."""

    tokens: dict[int, Tensor]
    labels: Tensor
    majority: Tensor
    total: int


def majority(labels: Tensor, classes: int, ignore: int) -> Tensor:
    """The most frequent label of each patch, int64 [N]; ``classes`` where most pixels have none.

    labels: [N, P·P]. Of equals the lower.
    """
    counts = torch.zeros(len(labels), classes + 1, device=labels.device)
    wide = labels.long().masked_fill(labels == ignore, classes)
    return counts.scatter_add_(1, wide, torch.ones_like(wide, dtype=counts.dtype)).argmax(1)

"""Made-up sets of shapes, encoders for them, and what an evaluation gets around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol_toys import around

from mimbench import registry
from mimbench.data import Dataset, open_dataset
from mimbench.encoder import Encoder
from mimbench.outcomes import Overlaps
from mimbench.protocol import Evaluation, Protocol, sampled
from mimbench.seeding import seeded_init
from tests.dense_data import write_ade20k

SIZE, PATCH = 32, 4
TINY = {"embed_dim": 16, "depth": 4, "num_heads": 2}


def shapes(folder: Path, **options: Any) -> Dataset:
    """A set of coloured shapes; 18 training images of which 2 become validation, by default."""
    options = {"train": 18, "validation": 5, "size": (32, 40), **options}
    return open_dataset(f"ade20k:{write_ade20k(folder, **options)}")


def encoder(
    name: str = f"vit_micro_patch{PATCH}", size: int = SIZE, seed: int = 0, **options: Any
) -> Encoder:
    """An encoder of random weights."""
    with seeded_init(seed):
        backbone = registry.build_backbone(name, size, **{**TINY, **options})
    return Encoder(backbone, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def pixels(size: int = SIZE) -> Encoder:
    """Raw pixels: as the shapes' classes are colours, an encoder that knows them."""
    backbone = registry.build_backbone("pixels", size, patch_size=PATCH)
    return Encoder(backbone, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def blind(size: int = SIZE) -> Encoder:
    """An encoder that sees nothing but places."""
    found = encoder(size=size)
    with torch.no_grad():
        found.backbone.patch_embed.proj.weight.zero_()
    return found


def evaluate(protocol: Protocol, data: Dataset, folder: Path, of: Encoder | None = None, **options: Any):
    return protocol.evaluate(of or encoder(), data, around(folder, **options))


def check_samples(found: Evaluation, data: Dataset) -> None:
    """The label maps that are kept for people are those that were scored."""
    split = data.open_test()
    places = sampled(len(split))
    assert {name: labels.shape for name, labels in found.samples.items()} == {
        f"labels {place}": split.target(place).shape for place in places
    }
    assert isinstance(found.outcomes, Overlaps)
    pairs = [(found.samples[f"labels {place}"], split.target(place)) for place in places]
    again = Overlaps.of_maps(pairs, len(data.classes), 255)
    np.testing.assert_array_equal(again.intersections, found.outcomes.intersections[places])
    np.testing.assert_array_equal(again.unions, found.outcomes.unions[places])

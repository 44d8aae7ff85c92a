"""Where patches of one crop lie in another, against crops of an image that holds its own coordinates."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.testing import assert_close

from method_zoo.backbones.positions import sincos_positions
from method_zoo.parts.relative_positions import Placement, coordinates, placement, relative_sincos
from mimbench.data.transforms import TrainTransform
from mimbench.method import Crop
from mimbench.spec import Augmentation, View

GRID = (4, 4)
SIDE = 240  # of the image, in pixels
WIDE = Augmentation(crop_scale=(0.3, 1.0), interpolation="bilinear")


def test_a_flipped_crop_s_patches_are_found_where_they_are() -> None:
    """An image's pixels tell their place, so two crops of it tell where they lie by what they show."""
    ramp = np.linspace(0, 255, SIDE)
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = np.round(ramp)[:, None], np.round(ramp)[None]
    transform = TrainTransform(WIDE, 64, (View(augmentation=WIDE, image_size=64),))
    cuts = [transform.cuts(image, key) for key in range(12)]
    flips = {(first.flipped, second.flipped) for first, second in cuts}
    assert len(flips) == 4, "every pair of flips must be among the cases"
    first, second = (
        Crop(
            torch.stack([cut[i].image for cut in cuts]).double(),
            torch.tensor([cut[i].box for cut in cuts]).double() / SIDE,
            torch.tensor([cut[i].flipped for cut in cuts]),
        )
        for i in (0, 1)
    )
    rows, columns = coordinates(placement(first, second), GRID)
    for axis, found in ((0, rows), (1, columns)):
        expected = found_by_looking(first.images[:, axis], second.images[:, axis], axis)
        assert_close(found, expected, rtol=0, atol=0.1)


def found_by_looking(first: Tensor, second: Tensor, axis: int) -> Tensor:
    """Coordinates [B, N] of the second crops' patches on the first ones' grid: the value at a patch's
    centre, looked up on the line through the first crop's values along ``axis``."""
    values = second.unfold(1, 16, 16).unfold(2, 16, 16).mean((3, 4)).flatten(1)
    line = first.mean(2 - axis)  # [B, 64]
    slope = (line[:, 47] - line[:, 16]) / 31  # per pixel, away from the crop's edges
    pixel = 16 + (values - line[:, 16:17]) / slope[:, None]
    return (pixel + 0.5) / 16 - 0.5


def test_a_crop_in_its_own_frame_has_the_ordinary_positions() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    place = Placement(zero, zero, one, one, torch.tensor([False]), zero)
    embedded = relative_sincos(place, GRID, 8)
    assert_close(embedded[0, :, :8], sincos_positions(8, GRID, first="y"))
    assert_close(embedded[0, :, 8:], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]).expand(16, -1))


def test_scale_is_embedded_by_its_logarithm() -> None:
    two, zero = torch.full((1,), 2.0), torch.zeros(1)
    place = Placement(zero, zero, two, 1 / two, torch.tensor([False]), zero)
    height, width = relative_sincos(place, GRID, 8)[0, 0, 8:].split(4)
    angles = [10 * math.log(2), 10 * math.log(2) / 100]
    assert_close(height.tolist(), [*map(math.sin, angles), *map(math.cos, angles)], rtol=0, atol=1e-6)
    assert_close(
        width.tolist(), [-math.sin(a) for a in angles] + [math.cos(a) for a in angles], rtol=0, atol=1e-6
    )

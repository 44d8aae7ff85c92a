"""Histograms of oriented gradients (Dalal & Triggs 2005, doi:10.1109/CVPR.2005.177) as targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.errors import UserError


@dataclass(frozen=True)
class HOG:
    """One histogram of gradient directions for each cell of pixels and each colour.

    A pixel adds its gradient's length to the bin of its direction; opposite directions are one. Gradients
    at the border see the image mirrored.

    cell: side of a cell in pixels. bins: directions in half a turn. sobel: gradients by Sobel's filter and
    directions counted from the vertical, as in the code of MaskFeat (arXiv:2112.09133) and LocalMIM
    (arXiv:2303.05251); otherwise by central differences and from the horizontal, as in that of DMJD
    (arXiv:2301.00230). normalise: histograms have length 1; otherwise they are means over the cell's
    pixels. window: side in pixels of the tiles over which a Gaussian weights the gradients; 0 for none.
    """

    cell: int
    bins: int = 9
    sobel: bool = True
    normalise: bool = True
    window: int = 0

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, bins, H / cell, W / cell] of images [B, C, H, W], in their precision.

        Raises UserError where cells or windows do not tile the image.
        """
        height, width = images.shape[-2:]
        for size, what in ((self.cell, "cells"), (self.window or 1, "windows")):
            if height % size or width % size:
                raise UserError(
                    f"HOG {what} of {size} pixels do not tile an image of {height}x{width}; "
                    "choose an image size that is a multiple of it"
                )
        down, right = self._gradient(images)
        weight = torch.hypot(down, right)
        if self.window:
            tiles = (height // self.window, width // self.window)
            weight = weight * gaussian_tile(self.window).to(weight).repeat(tiles)
        # From the vertical means that the horizontal part is the sine.
        angle = torch.atan2(right, down) if self.sobel else torch.atan2(down, right)
        direction = (angle / math.pi * self.bins).floor() % self.bins
        histogram = torch.stack(
            [cell_means(weight * (direction == k), self.cell) for k in range(self.bins)], dim=2
        )
        return F.normalize(histogram, dim=2) if self.normalise else histogram

    def _gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Differences of a pixel's neighbours, downwards and to the right."""
        around = F.pad(images, (1, 1, 1, 1), mode="reflect")
        down = around[..., 2:, :] - around[..., :-2, :]
        right = around[..., 2:] - around[..., :-2]
        if not self.sobel:
            return down[..., 1:-1], right[..., 1:-1, :]
        return (
            down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:],
            right[..., :-2, :] + 2 * right[..., 1:-1, :] + right[..., 2:, :],
        )


def cell_means(values: Tensor, cell: int) -> Tensor:
    """Means over cells of ``cell`` x ``cell``, [..., H / cell, W / cell] of [..., H, W].

    Halves as long as it can, which on a CPU takes half the time of pooling.
    """
    side = cell
    while side % 2 == 0:
        values = values[..., ::2] + values[..., 1::2]
        values = values[..., ::2, :] + values[..., 1::2, :]
        side //= 2
    return (F.avg_pool2d(values, side) * side**2 if side > 1 else values) / cell**2


def gaussian_tile(side: int) -> Tensor:
    """A Gaussian of standard deviation side / 2 centred on a square, [side, side]; its sum is 1."""
    offset = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (side // 2)
    profile = (-offset.square() / 2).exp()
    tile = torch.outer(profile, profile)
    return tile / tile.sum()


def cell_side(patch_size: int, per_patch: int) -> int:
    """Side in pixels of HOG cells of which ``per_patch`` fit along a patch; UserError where none do."""
    if patch_size % per_patch:
        raise UserError(
            f"{per_patch} HOG cells do not fit along a patch of {patch_size} pixels; "
            f"choose a patch size that is a multiple of {per_patch}"
        )
    return patch_size // per_patch

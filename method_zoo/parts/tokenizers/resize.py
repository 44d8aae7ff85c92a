"""Bringing images to the size at which a tokenizer gives the grid that is asked for."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize_to(images: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Images in [0, 1] of H·stride x W·stride pixels for a ``grid`` of (H, W); unchanged where they fit.

    Bicubic with antialiasing, what overshoots cut off. images: float [B, 3, S, S].
    """
    size = (grid[0] * stride, grid[1] * stride)
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)

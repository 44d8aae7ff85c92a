"""Images as frozen networks take them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.spec import Card


class Denormalise(nn.Module):
    """Normalised images back to [0, 1], which tokenizers and teachers take."""

    def __init__(self, card: Card):
        super().__init__()
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W], normalised by the card's mean and std -> [0, 1]."""
        return (images * self.std + self.mean).clamp(0, 1)

    def inverse(self, images: Tensor) -> Tensor:
        """Images in [0, 1], normalised."""
        return (images - self.mean) / self.std


def resize_to(images: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Images in [0, 1] of H·stride x W·stride pixels for a ``grid`` of (H, W); unchanged where they fit.

    Bicubic with antialiasing, what overshoots cut off. images: float [B, 3, S, S].
    """
    size = (grid[0] * stride, grid[1] * stride)
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)

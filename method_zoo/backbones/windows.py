"""Attention within windows, as in ViTDet (Li et al., 2022, arXiv:2203.16527)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Windows(NamedTuple):
    """Square windows of ``size`` x ``size`` patches that tile a grid of patches.

    A grid that they do not tile is filled up with zeros at its right and bottom. As in ViTDet's code, zeros
    take the place of normalised tokens and are looked at like others.
    """

    grid: tuple[int, int]
    size: int

    @property
    def number(self) -> tuple[int, int]:
        """Windows in a column and in a row."""
        return -(-self.grid[0] // self.size), -(-self.grid[1] // self.size)

    def split(self, x: Tensor) -> Tensor:
        """Tokens [B, H·W, D] in raster order -> [B·n, size², D], an image's windows side by side."""
        (rows, columns), size = self.number, self.size
        below, right = rows * size - self.grid[0], columns * size - self.grid[1]
        x = F.pad(x.unflatten(1, self.grid), (0, 0, 0, right, 0, below))
        x = x.reshape(len(x), rows, size, columns, size, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, size * size, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """``split`` undone, without what was filled in."""
        (rows, columns), size = self.number, self.size
        x = x.reshape(-1, rows, columns, size, size, x.shape[-1]).transpose(2, 3)
        x = x.reshape(len(x), rows * size, columns * size, x.shape[-1])
        return x[:, : self.grid[0], : self.grid[1]].flatten(1, 2)

"""Masks that leave one block visible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from method_zoo.parts.masking import RandomMask
from mimbench import rng
from mimbench.errors import UserError


@dataclass(frozen=True)
class InverseBlockMask:
    """All but one rectangle is hidden (CAPI, arXiv:2502.08769); int(N · ratio) patches, in every image.

    The rectangle's aspect ratio is log-uniform in [min_aspect, 1 / min_aspect] as far as the grid allows;
    rounded up to whole patches it is cut off in its last row to have exactly the patches asked for.
    ``roll`` moves it over the grid's edges, so that each patch is hidden equally often; without, it lies
    inside and patches in the middle are visible more often.
    """

    ratio: float
    roll: bool = True
    min_aspect: float = 0.5

    def __post_init__(self) -> None:
        RandomMask(self.ratio)  # the same bounds
        if not 0 < self.min_aspect <= 1:
            raise UserError(f"the aspect ratio's lower bound must lie in (0, 1], got {self.min_aspect:g}")

    def n_hidden(self, grid: tuple[int, int]) -> int:
        """How many patches of ``grid`` are hidden; UserError where none or all would be."""
        n = grid[0] * grid[1]
        hidden = int(n * self.ratio)
        if not hidden:
            raise UserError(
                f"a mask ratio of {self.ratio:g} hides no patch of the {grid[0]}x{grid[1]} patch grid; "
                "take a larger ratio or smaller patches"
            )
        return hidden

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        height, width = grid
        visible = height * width - self.n_hidden(grid)
        aspect, down, right = rng.uniform(keys, 3, "mask").double().unbind(1)
        low = max(math.log(self.min_aspect), math.log(visible / width**2))
        high = min(-math.log(self.min_aspect), math.log(height**2 / (visible + 1e-5)))
        aspect = (low + (high - low) * aspect).exp()
        # Rounding must not take the block beyond the grid.
        tall = (visible * aspect).sqrt().ceil().long().clamp(max=height)
        wide = (visible / aspect).sqrt().ceil().long().clamp(max=width)
        top, left = (
            (draw * (side if self.roll else side - extent + 1)).long()
            for draw, side, extent in ((down, height, tall), (right, width, wide))
        )
        rows, columns = (torch.arange(side, device=keys.device) for side in grid)
        row = (rows - top.unsqueeze(1)).remainder(height).unsqueeze(2)  # inside of the block, [B, H, 1]
        column = (columns - left.unsqueeze(1)).remainder(width).unsqueeze(1)
        tall, wide = tall[:, None, None], wide[:, None, None]
        shown = (row < tall) & (column < wide) & (row * wide + column < visible)
        return ~shown.flatten(1)

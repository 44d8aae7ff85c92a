"""Two masks of an image that hide different patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from method_zoo.parts.masking import RandomMask, mask_from_scores, patches_of_cells, random_scores
from mimbench.errors import UserError


@dataclass(frozen=True)
class DisjointMask:
    """Two random masks, the second of which hides what the first shows, as far as their ratio allows.

    The disjoint masks of DMJD (arXiv:2301.00230): together they hide at least the share ``covered`` of all
    patches where the ratio is half of that or more. Ratio and cells are those of ``RandomMask``.
    """

    ratio: float
    unit: int = 1
    covered: float = 1.0

    def __post_init__(self) -> None:
        if not self.ratio <= self.covered <= 1:
            raise UserError(
                f"two masks that hide {self.ratio:g} of the patches each cover that much or more, up to 1; "
                f"got {self.covered:g}"
            )

    def hidden_cells(self, grid: tuple[int, int]) -> int:
        """How many cells each mask hides on ``grid``; UserError as of ``RandomMask``."""
        return RandomMask(self.ratio, self.unit).hidden_cells(grid)

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        n_hidden = self.hidden_cells(grid)
        n_cells = (grid[0] // self.unit) * (grid[1] // self.unit)
        scores, again = random_scores(keys, n_cells), random_scores(keys, n_cells, "mask/disjoint")
        first, second = self.from_scores(scores, again, n_hidden)
        return patches_of_cells(first, grid, self.unit), patches_of_cells(second, grid, self.unit)

    def from_scores(self, first: Tensor, second: Tensor, n_hidden: int) -> tuple[Tensor, Tensor]:
        """Masks that hide cells of large scores: first of all, then of those the first shows and hides."""
        mask = mask_from_scores(first, n_hidden)
        n_cells = first.shape[1]
        fresh = min(int(min(self.covered - self.ratio, self.ratio) * n_cells), n_cells - n_hidden)
        shown = mask_from_scores(second.masked_fill(mask, -torch.inf), fresh)
        again = mask_from_scores(second.masked_fill(~mask, -torch.inf), n_hidden - fresh)
        return mask, shown | again

"""Which patches are hidden.

A sampler is called as ``sampler(keys, grid)`` with one int64 key a sample (``Step.keys``, [B]) and the
patch grid (H, W); it returns bool [B, N], True = hidden, N = H·W in raster order. A row depends on its
own key alone: neither the batch it came in nor the process that drew it changes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench import rng
from mimbench.errors import UserError


def random_scores(keys: Tensor, n: int, purpose: str = "mask") -> Tensor:
    """Uniform scores in [0, 1), float32 [B, n]: sorted, they give a random order of ``n`` patches."""
    return rng.uniform(keys, n, purpose)


def mask_from_scores(scores: Tensor, n_hidden: int) -> Tensor:
    """Hide the ``n_hidden`` patches of the largest scores; bool [B, N], as many in each row.

    Of equal scores the earlier patch is hidden first. scores: [B, N].
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, order[:, :n_hidden], True)


def ranks(scores: Tensor) -> Tensor:
    """The place of each score in its row, largest first, int64 [B, N]: ``ranks(s) < k`` hides k patches.

    Of equal scores the earlier comes first, as in ``mask_from_scores``; ``k`` may differ between rows.
    """
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def check_leaves_both(n_hidden: int, n: int, asked: str, grid: tuple[int, int]) -> int:
    if not 0 < n_hidden < n:
        what = "every patch" if n_hidden >= n else "no patch"
        raise UserError(
            f"a mask of {asked} hides {what} of the {grid[0]}x{grid[1]} patch grid; "
            "choose a ratio that leaves some hidden and some visible, or a smaller patch size"
        )
    return n_hidden


def check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise UserError(f"the mask ratio must lie between 0 and 1, got {ratio:g}; 0.75 hides three in four")


@dataclass(frozen=True)
class RandomMask:
    """Cells of ``unit`` x ``unit`` patches, each equally likely to be hidden.

    ``unit=1`` is MAE's random masking (arXiv:2111.06377), which keeps int(N·(1 - ratio)) patches;
    larger units are SimMIM's (arXiv:2111.09886), which hide ceil(cells·ratio) cells. The rounding of
    both is the official code's. ``hide_fewer`` rounds the number of hidden cells down instead.
    """

    ratio: float
    unit: int = 1
    hide_fewer: bool = False

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.unit < 1:
            raise UserError(f"the mask unit must be at least 1 patch, got {self.unit}")

    def hidden_cells(self, grid: tuple[int, int]) -> int:
        """How many cells are hidden on ``grid``; UserError where cells do not tile it or none is left."""
        height, width = grid
        if height % self.unit or width % self.unit:
            raise UserError(
                f"mask cells of {self.unit}x{self.unit} patches do not tile the {height}x{width} patch grid; "
                f"choose a mask unit that divides {math.gcd(height, width)}"
            )
        cells = (height // self.unit) * (width // self.unit)
        hidden = cells - int(cells * (1 - self.ratio)) if self.unit == 1 else math.ceil(cells * self.ratio)
        if self.hide_fewer:
            hidden = int(cells * self.ratio)
        asked = f"ratio {self.ratio:g} in cells of {self.unit}x{self.unit} patches"
        return check_leaves_both(hidden, cells, asked, grid)

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        n_hidden = self.hidden_cells(grid)
        n_cells = (grid[0] // self.unit) * (grid[1] // self.unit)
        cells = mask_from_scores(random_scores(keys, n_cells), n_hidden)
        return patches_of_cells(cells, grid, self.unit)


def patches_of_cells(cells: Tensor, grid: tuple[int, int], unit: int) -> Tensor:
    """A mask of cells of ``unit`` x ``unit`` patches, [B, cells], as one of patches, [B, N]."""
    if unit == 1:
        return cells
    rows, columns = grid[0] // unit, grid[1] // unit
    blocks = cells.view(-1, rows, 1, columns, 1).expand(-1, -1, unit, -1, unit)
    return blocks.reshape(len(cells), -1)


@dataclass(frozen=True)
class GridMask:
    """One patch of each ``cell`` x ``cell`` stays visible: UM-MAE's uniform sampling (arXiv:2205.10063).

    Which one is drawn for each cell, without replacement, as its code does, out of a table that holds each
    place in a cell as many times as there are cells. Cells of 2 hide three in four patches.
    """

    cell: int = 2

    def __post_init__(self) -> None:
        if self.cell < 2:
            raise UserError(f"a grid mask takes cells of at least 2x2 patches, got {self.cell}")

    def hidden_cells(self, grid: tuple[int, int]) -> int:
        """How many patches are hidden on ``grid``; UserError where cells do not tile it."""
        height, width = grid
        if height % self.cell or width % self.cell:
            raise UserError(
                f"mask cells of {self.cell}x{self.cell} patches do not tile the {height}x{width} patch grid; "
                "choose another masking or patch size"
            )
        return height * width - (height // self.cell) * (width // self.cell)

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        self.hidden_cells(grid)
        rows, columns, places = grid[0] // self.cell, grid[1] // self.cell, self.cell**2
        cells = rows * columns
        shown = random_scores(keys, cells * places, "mask/grid").argsort(1)[:, :cells] % places
        mask = shown.unsqueeze(-1) != torch.arange(places, device=keys.device)
        mask = mask.view(-1, rows, columns, self.cell, self.cell).transpose(2, 3)
        return mask.reshape(len(keys), -1)


def hide_redundant(stages: Sequence[Tensor], amounts: Sequence[int]) -> Tensor:
    """Hide, stage by stage, the patches most similar to the average of those left; bool [B, N].

    Hybrid Distill's progressive redundant token masking (arXiv:2306.15876, section 3.2). stages: a
    network's patch tokens [B, N, D] at some depths; amounts: how many patches each of them hides.
    """
    hidden = torch.zeros(stages[0].shape[:2], dtype=torch.bool, device=stages[0].device)
    for tokens, amount in zip(stages, amounts, strict=True):
        left = (~hidden).unsqueeze(-1).to(tokens.dtype)
        average = (tokens * left).sum(1, keepdim=True) / left.sum(1, keepdim=True)
        similarity = F.cosine_similarity(tokens, average, dim=-1).masked_fill(hidden, -torch.inf)
        hidden = hidden | mask_from_scores(similarity, amount)
    return hidden


class Masked(NamedTuple):
    """Patches that are hidden, and those of them that are left out of the encoder; bool [B, N]."""

    hidden: Tensor  # a number of its own in each row
    dropped: Tensor  # equally many in each row


@dataclass(frozen=True)
class VaryingMask:
    """Each image hides a random share of its patches, drawn from a truncated normal distribution.

    MAGE's masking (arXiv:2211.09117): the share has ``mean`` and ``std`` before it is cut to [low, high];
    the first ceil(N·low) of the hidden patches can be left out of the encoder, since that many are
    hidden in every image. The rounding is the official code's, which draws one share for a whole batch.
    """

    mean: float = 0.55
    std: float = 0.25
    low: float = 0.5
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1 or self.std <= 0:
            raise UserError(
                f"shares of hidden patches take 0 < low <= high <= 1 and a positive standard deviation, got "
                f"low {self.low:g}, high {self.high:g} and {self.std:g}"
            )

    def n_dropped(self, grid: tuple[int, int]) -> int:
        """How many patches of ``grid`` every image hides; UserError where that is all of them."""
        n = grid[0] * grid[1]
        return check_leaves_both(math.ceil(n * self.low), n, f"at least {self.low:g}", grid)

    def shares(self, keys: Tensor) -> Tensor:
        """Share of hidden patches of each image, float64 [B]: the inverse distribution of a uniform draw."""
        low, high = (
            torch.special.ndtr(torch.tensor((edge - self.mean) / self.std, dtype=torch.float64))
            for edge in (self.low, self.high)
        )
        draws = rng.uniform(keys, 1, "mask/share")[:, 0].double()
        normal = torch.special.ndtri(low.to(keys.device) + draws * (high - low).to(keys.device))
        return (self.mean + self.std * normal).clamp(self.low, self.high)

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> Masked:
        n = grid[0] * grid[1]
        n_hidden = (n * self.shares(keys)).ceil()
        places = ranks(random_scores(keys, n))
        return Masked(places < n_hidden.unsqueeze(1), places < self.n_dropped(grid))


ATTEMPTS = 10  # per block, as published
_CHUNK = 16  # attempts whose random numbers are drawn together


@dataclass(frozen=True)
class BlockMask:
    """Rectangles of random size and shape until enough patches are hidden (BEiT, arXiv:2106.08254, Alg. 1).

    Each block's area is uniform between ``min_block`` and what is still missing (at most ``max_block``),
    its aspect ratio log-uniform in [min_aspect, 1 / min_aspect]. A block that would hide nothing new or
    too much is drawn again; after ``attempts`` failures in a row (10 as published; the code of CAE and
    BootMAE never gives up) the row stays as it is, so that rows may hide a few patches fewer than asked.
    ``exact=True`` then hides further patches at random, as BEiT v2 (arXiv:2208.06366) does, which makes
    the count equal over the batch.

    Give the amount as ``ratio`` of the grid or as ``count`` of patches.
    """

    ratio: float | None = None
    count: int | None = None
    min_block: int = 16
    max_block: int | None = None
    min_aspect: float = 0.3
    exact: bool = False
    attempts: int = ATTEMPTS

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.count is None):
            raise UserError("a block mask takes either a ratio or a count of patches to hide, not both")
        if self.ratio is not None:
            check_ratio(self.ratio)
        if not 0 < self.min_aspect <= 1:
            raise UserError(f"the aspect ratio's lower bound must lie in (0, 1], got {self.min_aspect:g}")
        if self.min_block < 1 or (self.max_block is not None and self.max_block < self.min_block):
            raise UserError(
                f"block areas must satisfy 1 <= min_block <= max_block, "
                f"got {self.min_block} and {self.max_block}"
            )

    def n_hidden(self, grid: tuple[int, int]) -> int:
        """How many patches of ``grid`` are asked to be hidden."""
        n = grid[0] * grid[1]
        if self.count is not None:
            return check_leaves_both(self.count, n, f"{self.count} patches", grid)
        assert self.ratio is not None
        return check_leaves_both(round(n * self.ratio), n, f"ratio {self.ratio:g}", grid)

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        wanted = self.n_hidden(grid)
        # Data-dependent loops are faster on the CPU, wherever the model runs.
        host = keys.detach().cpu()
        smallest = min(self.min_block, wanted)
        largest = wanted if self.max_block is None else min(self.max_block, wanted)
        amounts = np.full(len(keys), wanted)
        blocks = random_blocks(host, grid, amounts, smallest, largest, self.min_aspect, self.attempts)
        mask = torch.from_numpy(blocks).flatten(1)
        if self.exact:
            # Hidden patches come first in the order, then the others at random.
            mask = mask_from_scores(random_scores(host, mask.shape[1], "mask/rest") + mask, wanted)
        return mask.to(keys.device, non_blocking=True)


def random_blocks(
    keys: Tensor,
    grid: tuple[int, int],
    wanted: np.ndarray,
    smallest: int,
    largest: float = math.inf,
    min_aspect: float = 0.3,
    attempts: int = ATTEMPTS,
) -> np.ndarray:
    """Rectangles until ``wanted`` [B] patches are hidden in each row, as ``BlockMask`` says; bool [B, H, W].

    Draws blocks for all rows at once, one attempt a turn; rows that are done drop out. ``wanted`` need not
    be whole: a row stops at or below it. smallest, largest: bounds of a block's area.
    """
    height, width = grid
    mask = np.zeros((len(keys), height, width), dtype=bool)
    missing = wanted.copy()
    failures = np.zeros(len(keys), dtype=np.int64)
    rows, columns = np.arange(height), np.arange(width)

    turn = 0
    alive = np.flatnonzero(missing > 0)
    while len(alive):
        if turn % _CHUNK == 0:  # a purpose a chunk: a row's draws must not depend on other rows' turns
            draws = rng.uniform(keys, 4 * _CHUNK, f"mask/blocks/{turn // _CHUNK}").double().numpy()
            draws = draws.reshape(len(keys), _CHUNK, 4)
        area, aspect, top, left = draws[alive, turn % _CHUNK].T
        limit = np.minimum(missing[alive], largest)
        area = smallest + area * (limit - smallest)
        aspect = np.exp(math.log(min_aspect) * (1 - 2 * aspect))
        tall = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        wide = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        top = (top * (height - tall + 1)).astype(np.int64)[:, None]
        left = (left * (width - wide + 1)).astype(np.int64)[:, None]

        in_rows = (rows >= top) & (rows < top + tall[:, None])
        in_columns = (columns >= left) & (columns < left + wide[:, None])
        block = in_rows[:, :, None] & in_columns[:, None, :]
        added = np.count_nonzero(block & ~mask[alive], axis=(1, 2))
        accepted = (tall < height) & (wide < width) & (added > 0) & (added <= limit)

        taken = alive[accepted]
        mask[taken] |= block[accepted]
        missing[taken] -= added[accepted]
        failures[alive] = np.where(accepted, 0, failures[alive] + 1)
        alive = alive[(missing[alive] > 0) & (failures[alive] < attempts)]
        turn += 1
    return mask

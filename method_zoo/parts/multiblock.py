"""Target blocks to predict and a context to predict them from: I-JEPA's masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mimbench import rng
from mimbench.errors import UserError

_TRIES = 20  # placements of a context before it may cover one target block more, as published


class Blocks(NamedTuple):
    """Raster indices of patches."""

    contexts: Tensor  # int64 [E, B, n]: E contexts of each image
    targets: Tensor  # int64 [T, B, m]: T target blocks of each image, which may overlap


@dataclass(frozen=True)
class MultiBlockMask:
    """Blocks to predict, and a larger block without them to see (I-JEPA, arXiv:2301.08243, section 3).

    ``targets`` blocks cover a share of the grid that is uniform in ``target_scale`` each, their height over
    their width uniform in ``aspect``; one random number decides both, as in the official code. ``contexts``
    square blocks cover a share in ``context_scale``, less the patches of every target block. A context of
    not more than ``min_context`` of the grid is placed again; after every 20 placements it may cover one
    target block more.

    In the official code a block never reaches the last row or column of the grid: its place comes from an
    integer draw whose upper bound is meant inclusively and is not. ``whole_grid=False`` has it so.

    What all images of a step must share, so that they make a batch, is a function of the step, which is
    known by the run's ``progress``: the sizes of the blocks (the official code seeds them by the number of
    the step) and the number of patches in a context. The official code cuts contexts to the smallest of its
    batch, from the end in raster order; here they are cut to the smallest of ``companions`` imagined images,
    whose keys come from the step. One image in ``companions``, chosen by its own key, gets the blocks of
    that smallest; any other is drawn until its context is not smaller. That is how an image of a batch and
    the smallest of it are distributed, and a row depends on its own key and the step alone.
    """

    targets: int = 4
    contexts: int = 1
    target_scale: tuple[float, float] = (0.15, 0.2)
    context_scale: tuple[float, float] = (0.85, 1.0)
    aspect: tuple[float, float] = (0.75, 1.5)
    min_context: float = 10 / 196
    whole_grid: bool = True
    companions: int = 128  # images a process held in the published runs

    def __post_init__(self) -> None:
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise UserError(
                    f"{name} is a range of shares of the grid, 0 < low <= high <= 1; got {low:g} to {high:g}"
                )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"the aspect range must be positive and ascending, got {self.aspect}")

    def check(self, grid: tuple[int, int]) -> None:
        """UserError where the grid is too small for these blocks."""
        n = grid[0] * grid[1]
        if min(grid) < 3 or int(n * self.target_scale[0]) < 1:
            raise UserError(
                f"a target block of {self.target_scale[0]:g} of the {grid[0]}x{grid[1]} patch grid holds no "
                "patch; choose larger target blocks or smaller patches"
            )
        side = min(max(round(math.sqrt(int(n * self.context_scale[0]))), 1), min(grid) - 1)
        if side**2 <= self._least(grid):
            raise UserError(
                f"a context of {self.context_scale[0]:g} of the {grid[0]}x{grid[1]} patch grid is always too "
                f"small; choose a larger context_scale or a smaller min_context than {self.min_context:g}"
            )

    def __call__(self, keys: Tensor, grid: tuple[int, int], progress: float) -> Blocks:
        """Blocks for one int64 key a sample, [B], at a step of the run."""
        host = keys.detach().cpu()
        step = torch.tensor([progress], dtype=torch.float64).view(torch.int64)
        target, context = self._sizes(step, grid)
        least = self._least(grid) + 1
        imagined, theirs = self._draw(step + torch.arange(self.companions), grid, target, context, least)
        counts = np.count_nonzero(theirs, axis=2).min(0)
        smallest, least = int(counts.argmin()), int(counts.min())
        alike = (rng.uniform(host, 1, "mask/smallest")[:, 0] < 1 / self.companions).numpy()
        drawn = np.repeat(imagined[:, [smallest]], len(keys), axis=1)
        seen = np.repeat(theirs[:, [smallest]], len(keys), axis=1)
        drawn[:, ~alike], seen[:, ~alike] = self._draw(host[~alike], grid, target, context, least)
        # A stable sort puts the chosen patches first, in raster order.
        targets = np.argsort(~drawn, axis=2, kind="stable")[:, :, : target[0] * target[1]]
        contexts = np.argsort(~seen, axis=2, kind="stable")[:, :, :least]
        return Blocks(*(torch.from_numpy(x).to(keys.device, non_blocking=True) for x in (contexts, targets)))

    def _least(self, grid: tuple[int, int]) -> int:
        """A context has more patches than this."""
        return int(self.min_context * grid[0] * grid[1])

    def _sizes(self, step: Tensor, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heights and widths of a step's target blocks and contexts."""
        draws = rng.uniform(step, 2, "mask/block sizes")[0].tolist()
        sizes = []
        for u, scale, aspect in zip(
            draws, (self.target_scale, self.context_scale), (self.aspect, (1.0, 1.0)), strict=True
        ):
            area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
            ratio = aspect[0] + u * (aspect[1] - aspect[0])
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            sizes.append((min(max(height, 1), grid[0] - 1), min(max(width, 1), grid[1] - 1)))
        return sizes[0], sizes[1]

    def _draw(
        self,
        keys: Tensor,
        grid: tuple[int, int],
        target: tuple[int, int],
        context: tuple[int, int],
        least: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Target blocks, bool [T, B, N], and contexts of at least ``least`` patches, bool [E, B, N]."""
        drawn = np.zeros((self.targets, len(keys), grid[0] * grid[1]), dtype=bool)
        seen = np.zeros((self.contexts, len(keys), grid[0] * grid[1]), dtype=bool)
        missing, turn = np.arange(len(keys)), 0
        while len(missing):
            blocks = self._place(keys[missing], grid, target, self.targets, f"mask/targets/{turn}")
            chosen = np.stack(
                [
                    self._context(keys[missing], grid, context, blocks, f"{turn}/{i}")
                    for i in range(self.contexts)
                ]
            )
            good = (np.count_nonzero(chosen, axis=2) >= least).all(0)
            drawn[:, missing[good]], seen[:, missing[good]] = blocks[:, good], chosen[:, good]
            missing, turn = missing[~good], turn + 1
        return drawn, seen

    def _context(
        self, keys: Tensor, grid: tuple[int, int], size: tuple[int, int], blocks: np.ndarray, purpose: str
    ) -> np.ndarray:
        """A block without target blocks, placed until enough of it is left; bool [B, N]."""
        chosen = np.zeros(blocks.shape[1:], dtype=bool)
        missing, tries = np.arange(len(keys)), 0
        while len(missing):
            (block,) = self._place(keys[missing], grid, size, 1, f"mask/context/{purpose}/{tries}")
            avoided = blocks[: max(self.targets - tries // _TRIES, 0), missing].any(0)
            chosen[missing] = block & ~avoided
            missing, tries = (
                missing[np.count_nonzero(chosen[missing], axis=1) <= self._least(grid)],
                tries + 1,
            )
        return chosen

    def _place(
        self, keys: Tensor, grid: tuple[int, int], size: tuple[int, int], n: int, purpose: str
    ) -> np.ndarray:
        """``n`` blocks of one size at random places, bool [n, B, N]."""
        draws = rng.uniform(keys, 2 * n, purpose).double().numpy().reshape(len(keys), 2, n).T  # [n, 2, B]
        axes = []
        for axis in (0, 1):
            places = grid[axis] - size[axis] + int(self.whole_grid)
            start = (draws[:, axis] * places).astype(np.int64)[..., None]
            line = np.arange(grid[axis])
            axes.append((line >= start) & (line < start + size[axis]))
        return (axes[0][..., :, None] & axes[1][..., None, :]).reshape(n, len(keys), -1)

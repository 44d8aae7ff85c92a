"""Masks cut out of filtered noise: what is hidden together has a typical size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from method_zoo.parts.masking import check_leaves_both, check_ratio, mask_from_scores
from mimbench import rng
from mimbench.errors import UserError

_REACH = 4.0  # standard deviations at which a Gaussian is cut off


def _gaussian(sigma: float, reach: int) -> Tensor:
    """Weights of a Gaussian at -reach ... reach, float64, summing to 1."""
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-at.square() / (2 * sigma**2))
    return weights / weights.sum()


def _blurred(noise: Tensor, sigma: float, reach: int) -> Tensor:
    """Noise [B, H + 2 reach, W + 2 reach] under a Gaussian, where it has all its neighbours: [B, H, W]."""
    weights = _gaussian(sigma, reach).to(noise.device)
    for axis in (1, 2):
        noise = noise.unfold(axis, 2 * reach + 1, 1) @ weights
    return noise


@dataclass(frozen=True)
class NoiseMask:
    """Patches whose filtered noise is weak are hidden (ColorMAE, arXiv:2407.13036, section 3).

    color: "green" keeps a band of the frequencies of white noise w, G(narrow) * w - G(wide) * w; "red" the
    lower ones, G(wide) * w; "blue" the higher ones, w - G(narrow) * w; "purple" all but the band.
    narrow, wide: standard deviations of the Gaussians, in patches. int(N·(1 - ratio)) patches stay
    visible, those of the strongest noise, as in the official code.
    """

    ratio: float
    color: str = "green"
    narrow: float = 1.0
    wide: float = 2.0

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.color not in ("red", "blue", "green", "purple"):
            raise UserError(f"noise is red, blue, green or purple, not {self.color!r}")
        if not 0 < self.narrow < self.wide:
            raise UserError(
                f"narrow must lie between 0 and wide, got narrow={self.narrow:g} and wide={self.wide:g}; "
                "both are in patches"
            )

    def n_hidden(self, grid: tuple[int, int]) -> int:
        """How many patches of ``grid`` are hidden; UserError where none or all would be."""
        n = grid[0] * grid[1]
        return check_leaves_both(n - int(n * (1 - self.ratio)), n, f"ratio {self.ratio:g}", grid)

    def noise(self, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        """Filtered noise, float64 [B, H, W], a window of an endless pattern for each key."""
        reach = math.ceil(_REACH * self.wide)
        sides = [side + 2 * reach for side in grid]
        white = rng.normal(keys, math.prod(sides), "mask/noise").double().view(-1, *sides)
        window = white[:, reach : reach + grid[0], reach : reach + grid[1]]
        low, high = _blurred(white, self.wide, reach), window - _blurred(white, self.narrow, reach)
        if self.color in ("red", "blue"):
            return low if self.color == "red" else high
        return low + high if self.color == "purple" else window - low - high

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        return weakest(self.noise(keys, grid), self.n_hidden(grid))


def weakest(noise: Tensor, n_hidden: int) -> Tensor:
    """Hide the ``n_hidden`` patches of the weakest noise, bool [B, N]. noise: [B, H, W]."""
    return mask_from_scores(-noise.flatten(1), n_hidden)

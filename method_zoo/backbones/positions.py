"""Tables of positions, and how one is brought to another grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.errors import UserError


def sincos_positions(dim: int, grid: tuple[int, int], first: Literal["x", "y"] = "x") -> Tensor:
    """Fixed 2-D position table, float32 [H·W, dim] in raster order.

    The first half of the channels encodes x, the second y, each as dim/4 sines, then dim/4 cosines, of
    frequencies 10000^(-4k/dim): the table of MAE (arXiv:2111.06377), computed in float64 as there.
    ``first="y"`` swaps the halves, as the code of MoCo v3 (arXiv:2104.02057) has them.
    """
    if dim % 4:
        raise UserError(f"sin-cos positions take a width that is a multiple of 4, got {dim}")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in ((x, y) if first == "x" else (y, x))]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def interpolated(
    table: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int], offset: float
) -> Tensor:
    """A position table [1, prefix + N, D] of the grid ``old`` brought to the grid ``new``, bicubically.

    The rule of DINO (arXiv:2104.14294) and iBOT (arXiv:2111.07832): the ratio of the sides, ``offset``
    added to the new one, is also the step between samples, so that the offset shifts them slightly. The
    first ``prefix`` rows, of class tokens, stay as they are.
    """
    leading, patches = table.split([prefix, old[0] * old[1]], dim=1)
    factors = tuple((n + offset) / o for n, o in zip(new, old, strict=True))
    patches = F.interpolate(
        patches.unflatten(1, old).permute(0, 3, 1, 2), scale_factor=factors, mode="bicubic"
    )
    return torch.cat([leading, patches.flatten(2).transpose(1, 2)], dim=1)


def stretched_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """LatentMIM's fixed table (arXiv:2407.15837), float32 [H·W, dim] in raster order.

    MAE's with the last row and column at H and W instead of H - 1 and W - 1, computed in float32 as there.
    """
    if dim % 4:
        raise UserError(f"sin-cos positions take a width that is a multiple of 4, got {dim}")
    frequencies = 1.0 / 10000 ** (torch.arange(dim // 4) / dim * 4.0)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, n) * n for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


# Tables that are not learned, by the name that a backbone's option ``positions`` has for them.
FIXED: dict[str, Callable[[int, tuple[int, int]], Tensor]] = {
    "sincos": sincos_positions,
    "sincos_y_first": partial(sincos_positions, first="y"),
    "stretched": stretched_positions,
}

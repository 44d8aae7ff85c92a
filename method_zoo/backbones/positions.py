"""Positions of patches on other grids than the one a backbone was built for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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

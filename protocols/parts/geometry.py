"""What the geometry of features says of an encoder without any label."""

from __future__ import annotations

import torch
from torch import Tensor


def uniformity(unit: Tensor, block: int = 2048) -> float:
    """Uniformity (Wang & Isola 2020, arXiv:2005.10242, t = 2) of rows of length one, [N, D]: at most 0.

    log of the mean of exp(-2 |x - y|²) over all pairs of different rows; the lower, the more evenly spread.
    """
    count, total = len(unit), 0.0
    x = unit.double()
    for first in range(0, count, block):
        distances = 2 - 2 * (x[first : first + block] @ x.T)
        total += float(torch.exp(-2 * distances.clamp(min=0)).sum())
    pairs = count * (count - 1)
    return float(torch.log(torch.tensor((total - count) / pairs, dtype=torch.float64)))


def attention_distance(probabilities: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """How far patches look, in pixels, [B, heads]: the mean distance between a patch and what it attends to.

    probabilities: [B, heads, T, T], class tokens and registers first, which are left out and the rest made
    to add up to 1 (Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7; Raghu et al. 2021,
    arXiv:2108.08810).
    """
    patches = grid[0] * grid[1]
    among = probabilities[..., -patches:, -patches:].float()
    among = among / among.sum(-1, keepdim=True).clamp(min=1e-12)
    device = probabilities.device
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in grid)
    places = torch.cartesian_prod(rows, columns).view(patches, 2)
    distances = torch.cdist(places, places) * patch_size
    return (among * distances).sum(-1).mean(-1)

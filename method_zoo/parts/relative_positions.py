"""Where the patches of one crop lie in the frame of another.

The rule of Siamese image modeling (Tao et al., 2023, arXiv:2206.01204, section 3.2 and its code).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimbench.method import Crop


class Placement(NamedTuple):
    """Where second crops lie relative to first ones; each [B], lengths in sides of the first crop."""

    top: Tensor  # of the second crop's upper edge, from the first's
    left: Tensor  # of the second crop's left edge, from the first's, where both are flipped alike
    height: Tensor  # of the second crop
    width: Tensor
    mirrored: Tensor  # bool: one of the two is flipped
    mirrored_left: Tensor  # of the second crop's left edge, where one of the two is flipped


def placement(first: Crop, second: Crop) -> Placement:
    """Place second crops in the frames of first ones, each frame being the crop as it is looked at."""

    def left_edge(crop: Crop) -> Tensor:  # in the image as this crop sees it, maybe flipped
        left, width = crop.boxes[:, 1], crop.boxes[:, 3]
        return torch.where(crop.flipped, 1 - left - width, left)

    height, width = first.boxes[:, 2], first.boxes[:, 3]
    return Placement(
        top=(second.boxes[:, 0] - first.boxes[:, 0]) / height,
        left=(left_edge(second) - left_edge(first)) / width,
        height=second.boxes[:, 2] / height,
        width=second.boxes[:, 3] / width,
        mirrored=first.flipped ^ second.flipped,
        mirrored_left=(1 - left_edge(first) - left_edge(second)) / width,
    )


def coordinates(place: Placement, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows and columns of the second crops' patches on the patch grid of the first ones, each [B, N].

    The first crop's own patches have the whole numbers from 0 on.
    """
    row, column = torch.meshgrid(
        *(torch.arange(n, device=place.top.device, dtype=place.top.dtype) + 0.5 for n in grid), indexing="ij"
    )
    rows = place.height.unsqueeze(1) * row.flatten() + place.top.unsqueeze(1) * grid[0]
    across = place.width.unsqueeze(1) * column.flatten()
    plain = across + place.left.unsqueeze(1) * grid[1]
    mirrored = place.mirrored_left.unsqueeze(1) * grid[1] - across
    return rows - 0.5, torch.where(place.mirrored.unsqueeze(1), mirrored, plain) - 0.5


def relative_sincos(place: Placement, grid: tuple[int, int], dim: int) -> Tensor:
    """Embeddings of the second crops' patches in the frames of the first ones, [B, N, 2·dim].

    Four quarters of sines, then cosines: of the row, the column, and ten times the logarithms of relative
    height and width; frequencies are those of ``sincos_positions`` for the width ``dim``.
    """
    like = place.top
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=like.dtype, device=like.device) / (dim / 4))
    row, column = coordinates(place, grid)
    scales = [(10 * scale.log()).unsqueeze(1).expand_as(row) for scale in (place.height, place.width)]
    angles = [value.unsqueeze(-1) * frequencies for value in (row, column, *scales)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=-1)

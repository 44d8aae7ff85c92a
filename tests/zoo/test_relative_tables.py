"""Tables of relative positions on another grid, against BEiT's rule written out."""

from __future__ import annotations

from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import numpy as np
import pytest
import torch
from torch import nn

from method_zoo.backbones.relative import RelativePositions

from .backbone_kinds import (
    BEIT,
    assert_close,
    images,
    ours,
)


def beit_axis(old: int, new: int, values: np.ndarray) -> np.ndarray:
    """One axis of a table as BEiT's code interpolates it, [2·old - 1] -> [2·new - 1], linearly.

    The old offsets are put at 0, ±1, ±(1 + q), ±(1 + q + q²), ... with the q that brings the last of them
    to new - 1; q is at least 1.01 there.
    """
    steps, reach = old - 1, new - 1
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**steps) / (1 - q) > reach else (q, high)
    ahead = np.cumsum(q ** np.arange(steps))
    return np.interp(np.arange(-reach, reach + 1), np.concatenate([-ahead[::-1], [0], ahead]), values)


@pytest.mark.parametrize("side", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("prefix", [0, 1])
def test_a_table_on_another_grid_is_beits(side: int, prefix: int) -> None:
    table = RelativePositions((4, 4), 3, prefix).double()
    nn.init.normal_(table.relative_position_bias_table)
    values = table.relative_position_bias_table.detach()
    near = values[:49].view(7, 7, 3).numpy()
    near = np.apply_along_axis(lambda v: beit_axis(4, side, v), 0, near) if side != 4 else near
    near = np.apply_along_axis(lambda v: beit_axis(4, side, v), 1, near) if side != 4 else near
    found = table.bias((side, side), True)[0]
    row, column = (torch.arange(side * side) // side).numpy(), (torch.arange(side * side) % side).numpy()
    offsets = [axis[:, None] - axis[None] + side - 1 for axis in (row, column)]  # query minus key
    assert_close(
        found[:, prefix:, prefix:], torch.tensor(near[offsets[0], offsets[1]]).permute(2, 0, 1), 1e-5
    )
    if prefix:
        patch = side * side // 2 + 1
        for (q, k), row in {(0, patch): -3, (patch, 0): -2, (0, 0): -1}.items():
            assert_close(found[:, q, k], values[row])
        assert_close(table.bias((side, side), False)[0], found[:, 1:, 1:])
    chosen = torch.stack([torch.randperm(prefix + side**2)[: 1 + prefix] for _ in range(2)])
    for b, rows in enumerate(chosen):
        assert_close(table.bias((side, side), True, chosen)[b], found[:, rows][:, :, rows])


def test_interpolating_under_autocast_and_inference_mode_spoils_nothing() -> None:
    table = RelativePositions((3, 3), 2, 1)
    with torch.inference_mode():
        first = table.bias((8, 8), True).clone()
    with torch.autocast("cpu", torch.bfloat16):
        bias = table.bias((8, 8), True)
    assert torch.equal(bias, first)
    bias.sum().backward()
    assert table.relative_position_bias_table.grad.any()


def test_dropped_patches_keep_their_bias_in_a_resized_copy() -> None:
    torch.manual_seed(0)
    backbone: Any = ours(**BEIT).double().eval()
    for table in backbone.rel_pos:
        nn.init.normal_(table.relative_position_bias_table)
    copy = backbone.rebuilt(image_size=28)
    x = images(copy, grid=7)
    none = torch.zeros(2, 49, dtype=torch.bool)
    assert_close(copy.encode(x, none, fill="drop").patches, copy.encode(x).patches)

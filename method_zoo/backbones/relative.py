"""Tables of relative positions, as BEiT has them (arXiv:2106.08254), on any grid."""

from __future__ import annotations

import warnings
from functools import lru_cache

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.layers import RelPosBias, resize_rel_pos_bias_table
from torch import Tensor


class RelativePositions(RelPosBias):
    """One table of relative positions, which belongs to the grid that the encoder was pre-trained on.

    Attention on another grid or within windows gets what timm's ``resize_rel_pos_bias_table`` (BEiT's rule:
    offsets grow geometrically, near ones keep their bias) makes of the table. The interpolation is part of
    the forward pass, so that one table, trained through it, serves blocks that look at the whole image and
    blocks that look at windows, and windows of the pre-training grid get exactly the pre-trained bias.
    BEiT's code interpolates once and trains the larger table: the same function to start from.
    """

    def bias(self, grid: tuple[int, int], prefix: bool, tokens: Tensor | None = None) -> Tensor:
        """Attention bias [1, heads, T, T] on ``grid``, for the given tokens [B, t] only [B, heads, t, t].

        prefix: whether the class token is among the tokens (first), if the table knows one.
        """
        whole = grid == tuple(self.window_size) and prefix == bool(self.prefix_tokens)
        if whole:
            if tokens is None:
                return self.get_bias()
            full = self.window_area + self.prefix_tokens
            index = self.relative_position_index.view(full, full)
            index = index[tokens.unsqueeze(2), tokens.unsqueeze(1)]
            return self.relative_position_bias_table[index].permute(0, 3, 1, 2).contiguous()
        bias = self._between_patches(grid)
        if prefix and self.prefix_tokens:
            bias = self._with_class_token(bias)
        if tokens is not None:
            return bias[:, tokens.unsqueeze(2), tokens.unsqueeze(1)].transpose(0, 1).contiguous()
        return bias.unsqueeze(0).contiguous()

    def _between_patches(self, grid: tuple[int, int]) -> Tensor:
        """[heads, H·W, H·W], queries first."""
        table, old = self.relative_position_bias_table, tuple(self.window_size)
        height, width = (2 * n - 1 for n in old)
        near = table[: height * width].T.reshape(-1, height, width)
        if grid != old:
            down, across = (_interpolation(*pair).to(near) for pair in zip(old, grid, strict=True))
            with torch.autocast(near.device.type, enabled=False):
                near = torch.einsum("ia,jb,hab->hij", down, across, near)
        rows, columns = (_offsets(n, near.device) for n in grid)
        pairs = near[:, :, columns][:, rows]  # [heads, row of query, of key, column of query, of key]
        area = grid[0] * grid[1]
        return pairs.transpose(2, 3).reshape(-1, area, area)

    def _with_class_token(self, bias: Tensor) -> Tensor:
        from_class, to_class, alone = self.relative_position_bias_table[-3:].unsqueeze(2).unbind(0)
        patches = bias.shape[1]
        below = torch.cat([to_class.unsqueeze(1).expand(-1, patches, -1), bias], dim=2)
        top = torch.cat([alone, from_class.expand(-1, patches)], dim=1)
        return torch.cat([top.unsqueeze(1), below], dim=1)


def _offsets(n: int, device: torch.device) -> Tensor:
    """Place in a table of the offset from each key to each query along an axis of n patches, [n, n]."""
    places = torch.arange(n, device=device)
    return places.unsqueeze(1) - places.unsqueeze(0) + n - 1


@lru_cache(maxsize=64)
def _interpolation(old: int, new: int) -> Tensor:
    """What timm's interpolation does along one axis: float32 [2·new - 1, 2·old - 1].

    It is linear in the table and goes axis by axis, so tables that vary along one axis show all of it.
    """
    side = 2 * old - 1
    if old == 1:  # one offset, zero: its bias is that of all
        return torch.ones(2 * new - 1, 1)
    with torch.inference_mode(False), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # timm's indexing, which torch wants written otherwise
        probes = torch.eye(side).unsqueeze(1).expand(-1, side, -1).reshape(side * side, side)
        resized = resize_rel_pos_bias_table(probes, (new, new), ((2 * new - 1) ** 2, side))
        return resized.view(2 * new - 1, 2 * new - 1, side)[:, 0].clone()

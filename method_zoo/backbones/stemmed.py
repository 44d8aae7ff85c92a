"""What transformers behind a stem of finer cells share: a stem's part in drop path and layer decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from method_zoo.backbones.blocks import drop_path_scales
from method_zoo.backbones.transformer import Transformer


class Merge(nn.Module):
    """Cells of twice the side and width: Swin's patch merging (Liu et al., 2021, arXiv:2103.14030)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, W, D] -> [..., H / 2, W / 2, 2·D]"""
        rows = (x[..., 0::2, :, :], x[..., 1::2, :, :])
        corners = [row[..., column::2, :] for column in (0, 1) for row in rows]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Stemmed(Transformer):
    """A transformer whose patches come out of stages of blocks on finer cells, ``stem``.

    As in the official codes of such pyramids, drop path's rates grow through the stem, too: from 0 at its
    first block to ``drop_path`` at the transformer's last. stem_decays: whether each of its blocks is a layer
    of layer-wise decay, as the transformer's are, or all of it is layer 0. stem_tensors: the rest of what is
    layer 0, names as in regular expressions.
    """

    stem: nn.ModuleList  # of a ModuleList a stage
    stem_decays = True
    stem_tensors = ""

    def stem_blocks(self) -> Iterator[nn.Module]:
        """The stem's blocks in order."""
        for stage in self.stem:
            assert isinstance(stage, nn.ModuleList)
            yield from stage

    def _all_rates(self) -> list[float]:
        n = sum(1 for _ in self.stem_blocks()) + self.depth
        if self.drop_path_rule == "constant":
            return [self.drop_path] * n
        return torch.linspace(0, self.drop_path, n, device="cpu").tolist()

    def drop_rates(self) -> list[float]:
        """See ``Transformer``."""
        return self._all_rates()[-self.depth :]

    def stem_scales(self, x: Tensor, keys: Tensor | None) -> list[Tensor | None]:
        """Drop path's factors [2, B, 1, 1] for each of the stem's blocks, see ``drop_path_scales``."""
        rates = self._all_rates()[: -self.depth]
        found = drop_path_scales(rates, x, keys, "drop path of the stem") if self.training else None
        return [None] * len(rates) if found is None else list(found)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of parameters for timm's layer-wise decay; see ``mimbench.encoder.Backbone``."""
        groups = super().group_matcher(coarse)
        first = groups["stem"].removeprefix("^(?:")
        if not self.stem_decays:
            return {**groups, "stem": rf"^(?:{self.stem_tensors}|stem|{first}"}
        return {
            "stem": rf"^(?:{self.stem_tensors}|{first}",
            "stages": [(r"^stem\.(\d+)\.(\d+)", None)],
            "blocks": groups["blocks"],
        }


def scaled(scales: Tensor | None, branch: int, y: Tensor) -> Tensor:
    """A residual branch's output y [B, ...] under drop path's factors [2, B, 1, 1]."""
    return y if scales is None else scales[branch].view(-1, *[1] * (y.ndim - 1)) * y

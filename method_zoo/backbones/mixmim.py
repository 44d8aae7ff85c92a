"""MixMIM's encoder, of MixMAE: a Swin-like pyramid whose windows are large and do not shift."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import attention_probabilities, run_block
from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import sincos_positions
from method_zoo.backbones.relative import RelativePositions
from method_zoo.backbones.stemmed import Merge, Stemmed
from method_zoo.backbones.transformer import Placing, check_image_size, check_images
from method_zoo.backbones.windows import Windows
from mimbench.encoder import Encoded
from mimbench.errors import UserError

CELL, STAGES = 4, 4  # pixels along a cell of the first stage; each later stage's are twice as large
EPS = 1e-5  # of every layer norm: torch's own

# Sense-X/MixMIM, models_mixmim_ft.py
SIZES: dict[str, dict[str, Any]] = {
    "mixmim_base": {"embed_dim": 1024, "num_heads": [4, 8, 16, 32]},
    "mixmim_large": {"embed_dim": 1536, "num_heads": [6, 12, 24, 48]},
    "mixmim_huge": {"embed_dim": 2816, "num_heads": [11, 22, 44, 88]},
}


class MixMIM(Stemmed):
    """The encoder of MixMAE (Liu et al., 2023, arXiv:2205.13137; its code calls it MixMIM), on whole images.

    Four stages of transformer blocks within windows, with relative positions and without Swin's shift. What
    is read are the last stage's tokens, 32 pixels apart: ``blocks`` are its blocks, and ``stem`` are all that
    come before.

    embed_dim: of the last stage; each earlier one has half of the next one's. num_heads, depths, windows: of
    the stages; windows at ``table_size``, the side of the images in pixels that tables of positions belong to
    (None: ``image_size``). Images of another size get the least windows that tile the grid and are not
    smaller, which gives the official ones at 384, and interpolated tables.
    """

    takes_mask = False
    leading = prefix = 0
    stem_tensors = "cells|cells_norm"

    def __init__(
        self,
        *,
        name: str,
        image_size: int,
        embed_dim: int,
        num_heads: Sequence[int],
        depths: Sequence[int] = (2, 2, 18, 2),
        windows: Sequence[int] = (14, 14, 14, 7),
        mlp_ratio: float = 4.0,
        table_size: int | None = None,
        drop_path: float = 0.0,
        drop_path_rule: Literal["linear", "constant"] = "linear",
    ):
        config: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        patch_size = CELL * 2 ** (STAGES - 1)
        table_size = config["table_size"] = table_size or image_size
        for size in (image_size, table_size):
            check_image_size(name, patch_size, size)
        lists = {"num_heads": list(num_heads), "depths": list(depths), "windows": list(windows)}
        if any(len(each) != STAGES for each in lists.values()) or embed_dim % 32:
            raise UserError(
                f"{name} takes {STAGES} numbers of heads, depths and windows and a width that is a multiple "
                f"of 32; got {lists} and {embed_dim}"
            )
        config |= lists
        self.measure({**config, "depth": depths[-1], "num_heads": num_heads[-1]}, patch_size)
        self.config = config
        sides = [window_side(table_size // CELL >> stage, windows[stage]) for stage in range(STAGES)]

        def block(stage: int) -> Block:
            dim = embed_dim >> STAGES - 1 - stage
            return Block(dim, num_heads[stage], mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=nn.LayerNorm)

        def tables(stage: int) -> nn.ModuleList:
            side = (sides[stage], sides[stage])
            return nn.ModuleList(RelativePositions(side, num_heads[stage]) for _ in range(depths[stage]))

        width = embed_dim >> STAGES - 1
        self.cells = nn.Conv2d(3, width, CELL, stride=CELL)
        self.cells_norm = nn.LayerNorm(width, eps=EPS)
        self.stem = nn.ModuleList(
            nn.ModuleList(block(stage) for _ in range(depths[stage])) for stage in range(STAGES - 1)
        )
        self.stem_rel_pos = nn.ModuleList(tables(stage) for stage in range(STAGES - 1))
        self.blocks = nn.ModuleList(block(STAGES - 1) for _ in range(depths[-1]))
        self.rel_pos = tables(STAGES - 1)
        for stage, blocks in enumerate([*self.stem, self.blocks]):
            if stage:  # the merging before a block is of its layer, as in the official layer decay
                blocks[0].merge = Merge(embed_dim >> STAGES - stage, EPS)
        self.norm = nn.LayerNorm(embed_dim, eps=EPS)
        xavier_(self)
        for name_, table in self.named_parameters():
            if name_.endswith("bias_table"):
                nn.init.trunc_normal_(table, std=0.02)
        self._place()

    def _place(self) -> None:
        """Positions and windows of each stage at ``image_size``."""
        table_size, old = self.config["table_size"], self.config["table_size"] // CELL
        self.sides = [
            window_side(self.image_size // CELL >> stage, window_side(table_size // CELL >> stage, window))
            for stage, window in enumerate(self.config["windows"])
        ]
        positions = sincos_positions(self.embed_dim >> STAGES - 1, (old, old))
        if self.image_size != table_size:  # the official util/pos_embed.py
            side = self.image_size // CELL
            positions = positions.T.unflatten(1, (old, old)).unsqueeze(0)
            positions = F.interpolate(positions, (side, side), mode="bicubic").flatten(2)[0].T
        device, dtype = self.cells.weight.device, self.cells.weight.dtype
        self.register_buffer("positions", positions.to(device, dtype)[None].clone(), persistent=False)

    def adapt(self, image_size: int) -> None:
        """See ``Transformer``; tables are interpolated in the forward pass."""
        self.image_size = image_size
        self._place()

    def enter(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """The last stage's tokens before its first block, [B, N, D]."""
        x = self.cells_norm(self.cells(images).flatten(2).transpose(1, 2)) + self.positions
        scales = iter(self.stem_scales(x, keys))
        for stage, (blocks, tables) in enumerate(zip(self.stem, self.stem_rel_pos, strict=True)):
            side = self.image_size // CELL >> stage
            if stage:
                x = self._merged(blocks[0], x, 2 * side)
            windows = Windows((side, side), self.sides[stage])
            for block, table in zip(blocks, tables, strict=True):
                bias = table.bias((windows.size, windows.size), False)
                x = run_block(block, x, bias, next(scales), windows)
        return self._merged(self.blocks[0], x, 2 * self.grid[0])

    @staticmethod
    def _merged(block: Any, x: Tensor, side: int) -> Tensor:
        return block.merge(x.unflatten(1, (side, side))).flatten(1, 2)

    def placing(self, leading: bool) -> Placing:
        """Attention biases within windows, see ``Transformer``."""
        side = (self.sides[-1],) * 2

        @cache
        def bias(i: int) -> Tensor:
            return self.rel_pos[i].bias(side, False)

        return lambda i, windows: bias(i)

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: Tensor,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """The output of the i-th block on x [B, N, D], place being its attention's bias."""
        return run_block(self.blocks[i], x, place, scales, Windows(self.grid, self.sides[-1]))

    def look(self, i: int, x: Tensor, place: Tensor) -> Tensor:
        """See ``Transformer``. Patches of different windows do not look at each other: 0."""
        windows = Windows(self.grid, self.sides[-1])
        within = attention_probabilities(self.blocks[i], windows.split(x), place)
        here = windows.split(torch.arange(x.shape[1], device=x.device).view(1, -1, 1)).squeeze(2)
        within = within.unflatten(0, (len(x), -1))  # [B, windows, heads, t, t]
        found = within.new_zeros(len(x), self.num_heads, x.shape[1], x.shape[1])
        for window, patches in enumerate(here):
            found[:, :, patches.unsqueeze(1), patches] = within[:, window]
        return found

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: Literal["drop", "token"] = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
    ) -> Encoded:
        """As ``mimbench.encoder.Backbone.encode``; a mask is a ValueError."""
        if mask is not None:
            raise ValueError(f"{self.config['name']} sees whole images; it takes no mask")
        if any(not -self.depth <= layer < 0 for layer in layers):
            raise ValueError(f"layers count from the end, -1 to -{self.depth}; got {list(layers)}")
        check_images(images, self.image_size)
        taps, probabilities = {}, None
        for i, before, place, x in self._run(images, self.depth - 1, [None] * self.depth, True, keys):
            taps[i - self.depth] = x
            if attention and i == self.depth - 1:
                probabilities = self.look(i, before, place)
        tapped = tuple((None, taps[layer]) for layer in layers)
        return Encoded(None, self.norm(taps[-1]), None, tapped, probabilities)

    def _windows(self, window: int | None, global_blocks: Sequence[int]) -> list[Windows | None]:
        if window is not None:
            raise UserError(
                f"{self.config['name']} attends within windows of its own; ask for its maps without others"
            )
        return super()._windows(None, ())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of parameters, tables with their blocks; see ``mimbench.encoder.Backbone``.

        The official code gives the final norm and the head the last block's rate, these the next layer's.
        """
        return {
            "stem": r"^(?:cells|cells_norm)\b",
            "stages": [(r"^stem\.(\d+)\.(\d+)", None), (r"^stem_rel_pos\.(\d+)\.(\d+)", None)],
            "blocks": [(r"^blocks\.(\d+)", None), (r"^rel_pos\.(\d+)", None)],
        }


def window_side(grid: int, least: int) -> int:
    """The least side of windows that tile ``grid`` cells and are not smaller than ``least``, or the grid."""
    return next((side for side in range(min(least, grid), grid) if grid % side == 0), grid)

"""A vision transformer with registers, gated MLPs and positions resized as DINOv2 resizes them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.layers import SwiGLUPacked

from method_zoo.backbones.initial import initialise
from method_zoo.backbones.vit import ViT
from mimbench.errors import UserError


class RegisterViT(ViT):
    """The encoder of DINOv2 (Oquab et al., 2023, arXiv:2304.07193; with registers: arXiv:2309.16588).

    registers: tokens between class token and patches that have no positions and are not given out.
    mlp: GELU's, or SwiGLU's (arXiv:2002.05202) of two thirds of the width, rounded up to a multiple of 8.
    interpolate_antialias: whether positions are averaged where a grid gets smaller. They are interpolated
    by this class's rule for images of another size as they come and for copies (``rebuilt``): to the grid
    with ``interpolate_offset`` patches added, or to its very size where that is 0.
    """

    def __init__(
        self,
        *,
        registers: int = 0,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        interpolate_antialias: bool = False,
        **options: Any,
    ):
        super().__init__(**options)
        self.config |= {"registers": registers, "mlp": mlp, "interpolate_antialias": interpolate_antialias}
        if self.rel_pos:
            raise UserError("a backbone with registers, mlp or interpolate_antialias takes rel_pos='none'")
        self.interpolate_antialias = interpolate_antialias
        self.leading = self.prefix + registers
        if mlp == "swiglu":
            hidden = int(int(self.embed_dim * self.config["mlp_ratio"]) * 2 / 3)
            hidden = (hidden + 7) // 8 * 8
            for block in self.blocks:
                block.mlp = SwiGLUPacked(self.embed_dim, hidden_features=2 * hidden)
            initialise(self, self.config["init"])
        self.register_tokens = nn.Parameter(torch.empty(1, registers, self.embed_dim)) if registers else None
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for ``grid``, [1, T, D], interpolated in float32 as the official code's."""
        assert self.pos_embed is not None
        if grid == self.grid:
            return self.pos_embed
        leading, table = self.pos_embed.split([self.prefix, self.grid[0] * self.grid[1]], dim=1)
        offset = self.interpolate_offset
        scaled = tuple((n + offset) / o for n, o in zip(grid, self.grid, strict=True))
        target: dict[str, Any] = {"scale_factor": scaled} if offset else {"size": grid}
        patches = F.interpolate(
            table.unflatten(1, self.grid).permute(0, 3, 1, 2).float(),
            mode="bicubic",
            antialias=self.interpolate_antialias,
            **target,
        )
        return torch.cat([leading, patches.flatten(2).transpose(1, 2).to(leading.dtype)], dim=1)

    def embed(
        self, images: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See ``ViT.embed``; the registers are among the tokens, behind the class token."""
        x, kept, tokens = super().embed(images, *args, **options)
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, : self.prefix], registers, x[:, self.prefix :]], dim=1)
        return x, kept, tokens

    def adapt(self, image_size: int) -> None:
        """See ``ViT``; positions are interpolated by this class's rule."""
        side = image_size // self.patch_size
        if self.pos_embed is not None:
            table = self._positions((side, side)).detach().clone()
            del self.pos_embed  # a buffer's name is not free for a parameter
            self.pos_embed = nn.Parameter(table)
            self.config["positions"] = "learned"
        self.mask_token = None
        self.config["mask_token"] = False

"""A vision transformer whose norms come behind the residual branches: data2vec 2.0's."""

from __future__ import annotations

from typing import Any, Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.backbones.vit import ViT
from method_zoo.backbones.windows import Windows
from mimbench.errors import UserError


class PostNormBlock(nn.Module):
    """x = norm1(x + attention(x)), then norm2(x + MLP(x)), of the parts of a pre-norm block."""

    def __init__(self, block: Block):
        super().__init__()
        self.attn, self.norm1 = block.attn, block.norm1
        self.mlp, self.norm2 = block.mlp, block.norm2

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        scales: Tensor | None = None,
        windows: Windows | None = None,
    ) -> Tensor:
        """[B, T, D]; the arguments are those of ``blocks.run_block``."""
        if windows is None:
            y = self.attn(x, attn_mask=bias)
        else:
            y = windows.join(self.attn(windows.split(x), attn_mask=bias))
        x = self.norm1(x + (y if scales is None else scales[0] * y))
        y = self.mlp(x)
        return self.norm2(x + (y if scales is None else scales[1] * y))


class PostNormViT(ViT):
    """The encoder of data2vec 2.0 (Baevski et al., 2022, arXiv:2212.07525).

    A norm comes before the first block and behind each residual branch, none behind the last block.

    norm_order: "post", which names all this.
    """

    def __init__(self, *, norm_order: Literal["post"] = "post", **options: Any):
        super().__init__(**{"final_norm": False, **options})
        self.config |= {"norm_order": norm_order}
        if self.config["layer_scale"] is not None or self.config["final_norm"]:
            raise UserError("a backbone with norm_order='post' takes neither layer_scale nor final_norm")
        self.embed_norm = LayerNorm(self.embed_dim)
        self.blocks = nn.ModuleList(PostNormBlock(block) for block in self.blocks)

    def embed(
        self, images: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See ``ViT.embed``; through the norm before the first block."""
        x, kept, tokens = super().embed(images, *args, **options)
        return self.embed_norm(x), kept, tokens

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: Tensor | None,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """See ``ViT.run_block``."""
        return self.blocks[i](x, place, scales, windows)

    def look(self, i: int, x: Tensor, place: Tensor | None) -> Tensor:
        """See ``Transformer.look``."""
        attn: Any = self.blocks[i].attn
        q, k, _ = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        return (scores if place is None else scores + place).softmax(-1)

"""ConvMAE's encoder: two stages of convolutions before a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.stemmed import Stemmed, scaled
from method_zoo.backbones.vit import NO_EDITS, Edits, ViT
from mimbench.encoder import Encoded
from mimbench.errors import UserError

# Alpha-VL/ConvMAE, models_convvit.py; mx-mark/DMJD, models_convit.py, whose stems have MLPs twice as wide.
SIZES: dict[str, dict[str, Any]] = {
    "convmae_base_patch16": {"embed_dim": 768, "depth": 11, "num_heads": 12, "stem_dims": [256, 384]},
    "convmae_large_patch16": {"embed_dim": 1024, "depth": 23, "num_heads": 16, "stem_dims": [384, 768]},
}


class ConvMAE(Stemmed, ViT):
    """The encoder of ConvMAE (Gao et al., 2022, arXiv:2205.03892) as its authors evaluate it.

    Blocks of depth-wise convolutions at a fourth and an eighth of the image's side, then a transformer on
    patches of 16 pixels. In pre-training both stages' outputs are also added to the last block's tokens, and
    a norm follows; the official linear probe and fine-tuning leave all that out, and so it is here, where
    images are always whole.

    stem_dims: widths of the two stages. stem_depth: blocks in each. stem_mlp_ratio: as of a transformer's.
    options: of ``ViT``, which it is in all else.
    """

    takes_mask = False
    stem_decays = False  # as in the official util/lr_decay.py
    stem_tensors = "embeddings|projection"

    def __init__(
        self,
        *,
        stem_dims: Sequence[int],
        stem_depth: int = 2,
        stem_mlp_ratio: float = 4.0,
        cls_token: bool = False,
        final_norm: bool = False,
        **options: Any,
    ):
        super().__init__(cls_token=cls_token, final_norm=final_norm, **options)
        self.config |= {
            "stem_dims": list(stem_dims),
            "stem_depth": stem_depth,
            "stem_mlp_ratio": stem_mlp_ratio,
        }
        if self.patch_size != 16 or len(stem_dims) != 2:
            raise UserError(
                f"{self.config['name']} takes patches of 16 pixels and the widths of two stages; got "
                f"{self.patch_size} and {list(stem_dims)}"
            )
        del self.patch_embed
        widths = (3, *stem_dims, self.embed_dim)
        self.embeddings = nn.ModuleList(
            Embedding(widths[i], widths[i + 1], side) for i, side in enumerate((4, 2, 2))
        )
        self.projection = nn.Linear(self.embed_dim, self.embed_dim)
        self.stem = nn.ModuleList(
            nn.ModuleList(ConvBlock(dim, int(dim * stem_mlp_ratio)) for _ in range(stem_depth))
            for dim in stem_dims
        )
        xavier_(self.projection)

    def stages(
        self, images: Tensor, seen: Tensor | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the stages of convolutions, [B, D, S/4, S/4] and [B, D, S/8, S/8].

        seen: [B, 1, H, W], 1 for each patch that convolutions may see, else 0.
        """
        outputs, x, scales = [], images, iter(self.stem_scales(images, keys))
        # the last embedding is ``project``'s
        for embedding, stage in zip(self.embeddings[:-1], self.stem, strict=True):
            x = embedding(x)
            shown = None if seen is None else F.interpolate(seen, x.shape[2:])
            for block in stage:
                x = block(x, next(scales), shown)
            outputs.append(x)
        return outputs[0], outputs[1]

    def _embed(self, images: Tensor, kept: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """See ``ViT``; ``kept`` is always None."""
        return self.project(self.stages(images, keys=keys)[1])

    def project(self, x: Tensor) -> Tensor:
        """Patches [B, N, D] of the second stage's output."""
        return self.projection(self.embeddings[2](x).flatten(2).transpose(1, 2))

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: Literal["drop", "token"] = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
        edits: Edits = NO_EDITS,
    ) -> Encoded:
        """As ``ViT.encode``; a mask is a ValueError."""
        if mask is not None:
            raise ValueError(f"{self.config['name']} sees whole images; it takes no mask")
        return super().encode(images, None, fill, layers, attention, keys, edits)


class Embedding(nn.Module):
    """Patches of a map [B, C, H, W]: a convolution, a norm of the channels, an activation."""

    def __init__(self, inputs: int, dim: int, side: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, side, stride=side)
        self.norm = nn.LayerNorm(dim)  # its epsilon is torch's here, as in ConvBlock
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(channels_first(self.norm, self.proj(x)))


class ConvBlock(nn.Module):
    """A transformer block on a map [B, D, H, W] whose attention is a depth-wise convolution."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Conv2d(dim, inner, 1), "fc2": nn.Conv2d(inner, dim, 1)})
        self.act = nn.GELU()

    def forward(self, x: Tensor, scales: Tensor | None, seen: Tensor | None = None) -> Tensor:
        y = self.conv1(channels_first(self.norm1, x))
        x = x + scaled(scales, 0, self.conv2(self.attn(y if seen is None else seen * y)))
        hidden = self.act(self.mlp["fc1"](channels_first(self.norm2, x)))
        return x + scaled(scales, 1, self.mlp["fc2"](hidden))


def channels_first(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm of each place's channels, x being [B, D, H, W]."""
    return norm(x.movedim(1, -1)).movedim(-1, 1)

"""From an encoder's tokens to predictions."""

from __future__ import annotations

from typing import Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from method_zoo.backbones.blocks import LayerNorm, choose_attention
from method_zoo.backbones.dropout import run_dropping_block
from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import sincos_positions
from mimbench.encoder import Backbone, Encoded
from mimbench.errors import UserError

HEAD_WIDTH = 32  # of decoder attention: MAE's is 512 wide with 16 heads


def decoder_size(
    backbone: Backbone,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    *,
    published: tuple[int, int] = (512, 8),
) -> tuple[int, int, int]:
    """Width, depth and heads of a decoder; what is None follows from the backbone.

    published: width and depth of the decoder that was published with a ViT-B, MAE's by default. It keeps
    its proportion to that backbone (MAE's: 2/3 of the width, rounded to a multiple of 32, and 2/3 of the
    depth) and never exceeds what was published: beside a ViT-S the full one costs more than the encoder.

    Raises UserError where the width does not divide into the heads.
    """
    widest, deepest = published
    dim = dim or min(widest, max(1, round(backbone.embed_dim * widest / 768 / HEAD_WIDTH)) * HEAD_WIDTH)
    depth = depth or min(deepest, max(1, round(backbone.depth * deepest / 12)))
    heads = heads or max(1, dim // HEAD_WIDTH)
    if dim % heads:
        raise UserError(f"a decoder width of {dim} does not divide into {heads} heads; change decoder_heads")
    return dim, depth, heads


class MaskTokens(nn.Module):
    """Turns the visible tokens of an encoder into a decoder's full sequence.

    Projects them, appends a learned mask token for each hidden patch and adds fixed positions to both, or
    to the hidden ones only (``visible_positions=False``). first: see ``sincos_positions``.
    """

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        grid: tuple[int, int],
        *,
        first: Literal["x", "y"] = "x",
        visible_positions: bool = True,
    ):
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.visible_positions = visible_positions
        self.register_buffer("positions", sincos_positions(dim, grid, first), persistent=False)
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Encoded, hidden: Tensor | None = None) -> Tensor:
        """[B, T, dim]: class token if any, visible patches, hidden patches in that order.

        hidden: raster indices of the hidden patches, [B, m]; None appends none. A transformer with
        positions does not care for the order, so nothing is shuffled back.
        """
        parts = [self.embed(encoded.patches)]
        if self.visible_positions:
            parts[0] = parts[0] + (self.positions if encoded.kept is None else self.positions[encoded.kept])
        if encoded.cls is not None:  # its position is zero, as in MAE
            parts.insert(0, self.embed(encoded.cls).unsqueeze(1).to(parts[0].dtype))
        if hidden is not None:
            parts.append(self.mask_token + self.positions[hidden])
        return torch.cat(parts, dim=1)


class HiddenTokens(nn.Module):
    """A learned mask token with a fixed position for each hidden patch. first: see ``sincos_positions``."""

    def __init__(self, dim: int, grid: tuple[int, int], *, first: Literal["x", "y"] = "x"):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(dim, grid, first), persistent=False)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, m, dim]. hidden: raster indices of the hidden patches, [B, m]."""
        return self.mask_token + self.positions[hidden]


class TransformerDecoder(nn.Module):
    """Transformer blocks, a norm and a linear head on a sequence's last tokens (MAE, arXiv:2111.06377).

    out_features: of the head; None leaves it out. dropout: rate inside of blocks while training (see
    ``backbones.dropout``).
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        out_features: int | None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dropout = dropout
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)
        )
        self.norm = LayerNorm(dim)
        self.head = nn.Identity() if out_features is None else nn.Linear(dim, out_features)
        xavier_(self)

    def forward(self, tokens: Tensor, last: int, keys: Tensor | None = None) -> Tensor:
        """Predictions for the ``last`` tokens of [B, T, dim]: [B, last, out_features], dim without a head.

        keys: int64 [B], what dropout depends on.
        """
        choose_attention(self.blocks, tokens)
        rate = self.dropout if self.training else 0.0
        for i, block in enumerate(self.blocks):
            tokens = run_dropping_block(block, tokens, rate, keys, f"decoder/{i}")
        return self.head(self.norm(tokens[:, -last:]))


def mae_decoder(
    backbone: Backbone,
    out_features: int,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> tuple[MaskTokens, TransformerDecoder]:
    """MAE's decoder beside ``backbone``: the module that makes its input and the one that predicts from it.

    What is None follows from the backbone (``decoder_size``); the MLPs are as wide as the backbone's in
    proportion, as in MAE's code. Raises UserError where the width does not divide into the heads.
    """
    dim, depth, heads = decoder_size(backbone, dim, depth, heads)
    mlp_ratio = backbone.config.get("mlp_ratio", 4.0)
    mask_tokens = MaskTokens(backbone.embed_dim, dim, backbone.grid)
    return mask_tokens, TransformerDecoder(dim, depth, heads, out_features, mlp_ratio)

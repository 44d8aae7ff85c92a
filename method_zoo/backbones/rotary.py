"""Rotary positions as CAPI has them, with the attention and the block that are turned by them."""

from __future__ import annotations

from typing import NamedTuple

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import fused_attention_pays
from method_zoo.backbones.windows import Windows
from mimbench.errors import UserError

NORM_EPS = 1e-5  # of every RMS norm, as in CAPI


class Rotation(NamedTuple):
    """What turns queries and keys by their place, [B, 1, T, D / heads] each."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x: [B, heads, T, D / heads]."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return (x * self.cos + turned * self.sin).to(x.dtype)


class Rotary(nn.Module):
    """Rotary positions (Su et al., 2021, arXiv:2104.09864) of points in a unit square, as in CAPI's code.

    The first half of a head's channels turns with the row, the second with the column, each at dim / 4
    frequencies twice, from 7 turns over the image down to 7e-4. A channel is paired with the one half a
    head further on, which turns with the other coordinate: so in the code and in its released weights.
    """

    def __init__(self, dim: int, fastest: float = 7.0, slowest: float = 7e-4):
        super().__init__()
        if dim % 4:
            raise UserError(f"rotary positions take attention heads of a multiple of 4 channels, got {dim}")
        frequencies = fastest * (fastest / slowest) ** torch.linspace(0, -1, dim // 4)
        twice = torch.cat([frequencies, frequencies])
        turns = torch.stack([F.pad(twice, (0, dim // 2)), F.pad(twice, (dim // 2, 0))])
        self.register_buffer("frequencies", turns * 2 * torch.pi, persistent=False)

    def forward(self, places: Tensor) -> Rotation:
        """places: row and column of each token, [B, T, 2]."""
        # Not a matrix product, which autocast would round: the fastest angle goes up to 44.
        angle = (places.unsqueeze(-1) * self.frequencies).sum(-2).unsqueeze(1)
        return Rotation(angle.cos(), angle.sin())


class RotaryAttention(nn.Module):
    """Multi-head attention to a context, or of tokens to each other, without biases."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim, bias=False)

    def queries_keys(
        self, x: Tensor, rotation: Rotation, context: Tensor, there: Rotation
    ) -> tuple[Tensor, Tensor]:
        """Turned queries of x and keys of the context, [B, heads, T, D / heads]."""
        return rotation(self._heads(self.q(x))), there(self._heads(self.k(context)))

    def forward(
        self, x: Tensor, rotation: Rotation, context: Tensor | None = None, there: Rotation | None = None
    ) -> Tensor:
        """[B, T, D]. context: [B, S, D], at the places of ``there``; x itself by default."""
        if context is None or there is None:
            context, there = x, rotation
        q, k = self.queries_keys(x, rotation, context, there)
        v = self._heads(self.v(context))
        if fused_attention_pays(x):
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class RotaryBlock(nn.Module):
    """A pre-norm block with RMS norms (arXiv:1910.07467) and no biases."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.attn = RotaryAttention(dim, heads)
        self.norm2 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        context: Tensor | None = None,
        there: Rotation | None = None,
        scales: Tensor | None = None,
        windows: Windows | None = None,
    ) -> Tensor:
        """[B, T, D]. context: what tokens look at instead of each other. scales: [2, B, 1, 1], what the
        residual branches are multiplied with. windows: within which patches look at each other."""
        looked = self.norm1(x)
        if windows is None:
            looked = self.attn(looked, rotation, context, there)
        else:
            looked = windows.join(self.attn(windows.split(looked), rotation))
        x = x + (looked if scales is None else scales[0] * looked)
        thought = self.mlp(self.norm2(x))
        return x + (thought if scales is None else scales[1] * thought)

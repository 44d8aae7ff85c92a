"""A vision transformer with rotary positions, registers and no biases: CAPI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import fused_attention_pays
from method_zoo.backbones.initial import xavier_
from method_zoo.parts.patches import patchify, take, where
from mimbench import rng
from mimbench.encoder import Encoded
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
    ) -> Tensor:
        """[B, T, D]. context: what tokens look at instead of each other. scales: [2, B, 1, 1], what the
        residual branches are multiplied with."""
        looked = self.attn(self.norm1(x), rotation, context, there)
        x = x + (looked if scales is None else scales[0] * looked)
        thought = self.mlp(self.norm2(x))
        return x + (thought if scales is None else scales[1] * thought)


def residual_scales(rate: float, depth: int, x: Tensor, keys: Tensor | None, purpose: str) -> Tensor:
    """Drop path (arXiv:1603.09382) at one rate in all blocks: [depth, 2, B, 1, 1]. x: [B, ...]."""
    if keys is None:
        draws = torch.rand(len(x), 2 * depth, device=x.device)
    else:
        draws = rng.uniform(keys, 2 * depth, purpose)
    scales = (draws >= rate) / (1 - rate)
    return scales.T.reshape(depth, 2, -1, 1, 1).to(x.dtype)


class Seen(NamedTuple):
    """All tokens of an encoder, registers first."""

    tokens: Tensor  # [B, R + n, D], through the final norm
    places: Tensor  # [B, R + n, 2], row and column in the unit square
    kept: Tensor | None  # [B, n], see ``Encoded``


class RopeViT(nn.Module):
    """The encoder of CAPI (Darcet et al., 2025, arXiv:2502.08769).

    Rotary positions, so that any image size will do; RMS norms, the last without a gain; no biases but the
    patch embedding's; registers (arXiv:2309.16588) instead of a class token, placed around the edge of
    what is visible. Hidden patches can be left out only, not replaced.

    registers: a multiple of 4, evenly many on each side. drop_path: the same rate in every block.
    """

    prefix = 0  # registers are no class token: they are not given out

    def __init__(
        self,
        *,
        name: str,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        positions: Literal["rope"] = "rope",
        registers: int = 16,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "positions": positions,
            "registers": registers,
            "drop_path": drop_path,
        }
        if embed_dim % num_heads:
            raise UserError(f"a width of {embed_dim} does not divide into {num_heads} attention heads")
        if registers % 4:
            raise UserError(f"registers lie on four sides: take a multiple of 4, not {registers}")
        self.image_size, self.patch_size = image_size, patch_size
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.drop_path, self.registers = drop_path, registers

        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        self.register_tokens = nn.Parameter(torch.empty(1, registers, embed_dim))
        self.rotary = Rotary(embed_dim // num_heads)
        self.blocks = nn.ModuleList(RotaryBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.RMSNorm(embed_dim, eps=NORM_EPS, elementwise_affine=False)
        self.register_buffer("edge", _edge(registers), persistent=False)
        xavier_(self)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(embed_dim, -1))
        nn.init.normal_(self.register_tokens, std=0.02)

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Row and column of each patch, from 0 at the first to 1 at the last, [N, 2] in raster order."""
        sides = [torch.linspace(0, 1, n, device=self.edge.device, dtype=self.edge.dtype) for n in grid]
        return torch.cartesian_prod(*sides)

    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, their places and which patches are there, see ``Seen``."""
        height, width = images.shape[2:]
        if images.shape[1] != 3 or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"this backbone takes images [B, 3, H, W], sides multiples of {self.patch_size}; "
                f"got {list(images.shape)}"
            )
        kept = None if mask is None else where(~mask)
        patches = patchify(images, self.patch_size, order="channel")
        places = self.places((height // self.patch_size, width // self.patch_size))
        places = places.expand(len(images), -1, -1)
        if kept is not None:
            patches, places = take(patches, kept), take(places, kept)
        x = F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        low, high = places.amin(1, keepdim=True), places.amax(1, keepdim=True)
        places = torch.cat([low + self.edge * (high - low), places], dim=1)
        return torch.cat([self.register_tokens.expand(len(x), -1, -1), x], dim=1), places, kept

    def _blocks(
        self, x: Tensor, places: Tensor, keys: Tensor | None, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """The last block's output, those of ``layers`` by number and what the last block got."""
        rotation = self.rotary(places)
        scales: Tensor | list[None] = [None] * self.depth
        if self.training and self.drop_path:
            scales = residual_scales(self.drop_path, self.depth, x, keys, "drop path")
        taps, before = {}, x
        for i, block in enumerate(self.blocks):
            if i - self.depth - 1 in layers:
                taps[i - self.depth - 1] = x
            before, x = x, block(x, rotation, scales=scales[i])
        return x, taps | {-1: x}, before

    def see(self, images: Tensor, mask: Tensor | None = None, keys: Tensor | None = None) -> Seen:
        """All tokens, registers included, for decoders that look at them. See ``encode``."""
        x, places, kept = self._embed(images, mask)
        return Seen(self.norm(self._blocks(x, places, keys)[0]), places, kept)

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: Literal["drop", "token"] = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
    ) -> Encoded:
        """Tokens of a batch of images [B, 3, H, W] without the registers; see ``mimbench.encoder.Backbone``.

        ``attention`` includes the registers, which come first.
        """
        if any(not -self.depth <= layer < 0 for layer in layers):
            raise ValueError(f"layers count from the end, -1 to -{self.depth}; got {list(layers)}")
        if mask is not None and fill == "token":
            raise ValueError("this backbone has no mask token: it leaves hidden patches out (fill='drop')")
        x, places, kept = self._embed(images, mask)
        x, taps, before = self._blocks(x, places, keys, layers)
        probabilities = None
        if attention:
            rotation, block = self.rotary(places), self.blocks[-1]
            normed = block.norm1(before)
            q, k = block.attn.queries_keys(normed, rotation, normed, rotation)
            probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        patches = self.norm(x)[:, self.registers :]
        tapped = tuple((None, taps[layer][:, self.registers :]) for layer in layers)
        return Encoded(None, patches, kept, tapped, probabilities)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The RMS norm after the last block, on the last dimension."""
        return self.norm(tokens)

    def forward(self, images: Tensor) -> Encoded:
        return self.encode(images)


def _edge(registers: int) -> Tensor:
    """Places of the registers around the unit square, a quarter of them from each corner on, [1, R, 2]."""
    side = registers // 4
    if not side:
        return torch.zeros(1, 0, 2)
    step = torch.arange(side) / side
    zero, one = torch.zeros(side), torch.ones(side)
    sides = [(step, zero), (one, step), (1 - step, one), (zero, 1 - step)]
    return torch.cat([torch.stack(pair, dim=1) for pair in sides]).unsqueeze(0)

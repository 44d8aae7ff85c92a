"""A vision transformer with rotary positions, registers and no biases: CAPI's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.rotary import NORM_EPS, Rotary, RotaryBlock, Rotation
from method_zoo.backbones.transformer import Placing, Transformer
from method_zoo.backbones.windows import Windows
from method_zoo.parts.patches import patchify, take, where
from mimbench.encoder import Encoded
from mimbench.errors import UserError


class Seen(NamedTuple):
    """All tokens of an encoder, registers first."""

    tokens: Tensor  # [B, R + n, D], through the final norm
    places: Tensor  # [B, R + n, 2], row and column in the unit square
    kept: Tensor | None  # [B, n], see ``Encoded``


class RopeViT(Transformer):
    """The encoder of CAPI (Darcet et al., 2025, arXiv:2502.08769).

    Rotary positions, so that any image size will do; RMS norms, the last without a gain; no biases but the
    patch embedding's; registers (arXiv:2309.16588) instead of a class token, placed around the edge of
    what is visible. Hidden patches can be left out only, not replaced.

    registers: a multiple of 4, evenly many on each side. drop_path: the same rate in every block, or growing
    linearly (drop_path_rule).
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
        drop_path_rule: Literal["linear", "constant"] = "constant",
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "patch_size", "__class__")}
        super().__init__()
        self.measure(config, patch_size)
        if registers % 4:
            raise UserError(f"registers lie on four sides: take a multiple of 4, not {registers}")
        self.registers = self.leading = registers

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
        return torch.cat([self.register_tokens.expand(len(x), -1, -1), x], dim=1), self._edged(places), kept

    def _edged(self, places: Tensor) -> Tensor:
        """Places of patches, [B, n, 2], behind those of the registers around them."""
        low, high = places.amin(1, keepdim=True), places.amax(1, keepdim=True)
        return torch.cat([low + self.edge * (high - low), places], dim=1)

    def _blocks(
        self, x: Tensor, places: Tensor, keys: Tensor | None, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """The last block's output, those of ``layers`` by number and what the last block got."""
        rotation = self.rotary(places)
        scales = self.branch_scales(x, keys)
        taps, before = {}, x
        for i, block in enumerate(self.blocks):
            if i - self.depth - 1 in layers:
                taps[i - self.depth - 1] = x
            before, x = x, block(x, rotation, scales=None if scales is None else scales[i])
        return x, taps | {-1: x}, before

    def enter(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """See ``Transformer``."""
        return self._embed(images, None)[0]

    def placing(self, leading: bool) -> Placing:
        """Rotations, see ``Transformer``. A window is a unit square of its own: attention depends on the
        distance of two patches only, and in a window as large as the pre-training images' grid that is
        then what it was in pre-training."""

        @cache
        def rotation(grid: tuple[int, int]) -> Rotation:
            places = self.places(grid).unsqueeze(0)
            return self.rotary(self._edged(places) if leading else places)

        return lambda i, windows: rotation(self.grid if windows is None else (windows.size, windows.size))

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: Rotation,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """The output of the i-th block on x [B, T, D], place being its rotation."""
        return self.blocks[i](x, place, scales=scales, windows=windows)

    def look(self, i: int, x: Tensor, place: Rotation) -> Tensor:
        """See ``Transformer``."""
        block = self.blocks[i]
        normed = block.norm1(x)
        q, k = block.attn.queries_keys(normed, place, normed, place)
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)

    def adapt(self, image_size: int) -> None:
        """Nothing to change: places are computed, in a unit square whatever the image size."""

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
            probabilities = self.look(self.depth - 1, before, self.rotary(places))
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        cls = self.summarised(x, places, grid)
        patches = self.norm(x)[:, self.registers :]
        tapped = tuple(
            (self.summarised(taps[layer], places, grid), taps[layer][:, self.registers :]) for layer in layers
        )
        return Encoded(None if cls is None else self.norm(cls), patches, kept, tapped, probabilities)

    def summarised(self, tokens: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """One vector [B, D] for a block's tokens [B, R + n, D] at places [B, R + n, 2]; here none."""
        return None


def _edge(registers: int) -> Tensor:
    """Places of the registers around the unit square, a quarter of them from each corner on, [1, R, 2]."""
    side = registers // 4
    if not side:
        return torch.zeros(1, 0, 2)
    step = torch.arange(side) / side
    zero, one = torch.zeros(side), torch.ones(side)
    sides = [(step, zero), (one, step), (1 - step, one), (zero, 1 - step)]
    return torch.cat([torch.stack(pair, dim=1) for pair in sides]).unsqueeze(0)

"""One vision transformer for every method that needs one: it drops hidden patches or replaces them.

Built of timm's blocks, so that fused attention and whatever timm improves come along. MAE's, BEiT's and
SimMIM's encoders are settings of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.layers import PatchEmbed, resample_abs_pos_embed

from method_zoo.backbones.blocks import (
    LayerNorm,
    choose_attention,
    make_block,
    run_block,
)
from method_zoo.backbones.initial import Way, initialise
from method_zoo.backbones.positions import FIXED, interpolated
from method_zoo.backbones.relative import RelativePositions
from method_zoo.backbones.transformer import Placing, Transformer
from method_zoo.backbones.windows import Windows
from method_zoo.parts.patches import patchify, take, where
from mimbench.encoder import Encoded
from mimbench.errors import UserError

Edits = Mapping[int, Callable[[Tensor], Tensor]]
NO_EDITS: Edits = MappingProxyType({})


class ViT(Transformer):
    """Vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929) that takes a mask.

    positions: added to the embedded patches: MAE's fixed table, the same with y's half first (MoCo v3's),
    or stretched (LatentMIM's), a learned one (class token included), none.
    rel_pos: BEiT's relative position bias on the attention: one table, one a block, none. rel_pos_size: side
    of the images whose grid the tables are of, where that is not ``image_size`` (see ``RelativePositions``).
    layer_scale: initial factor on each residual branch (arXiv:2103.17239); None leaves it out.
    qkv_bias: on queries, keys and values, or on queries and values only.
    drop_path: rate of dropped residual branches (arXiv:1603.09382) at the last block. drop_path_rule: of the
    blocks before it, growing linearly from 0 at the first, or constant.
    final_norm: whether a layer norm follows the last block; without, the tokens are the last block's.
    mask_token: whether there is one, which ``encode(..., fill="token")`` asks for.
    init: "mae" (Xavier), "mocov3" (the same, queries, keys and values each on its own), "beit" (normal
    of 0.02 cut at one standard deviation, output projections scaled down by depth), "ijepa" (the same
    without the cut) or "dino" (normal of 0.02).
    interpolate_offset: patches added to either side of the grid that positions are interpolated to for
    images of another size (see ``encode``): DINO's 0.1 or none.
    """

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
        cls_token: bool = True,
        positions: Literal["sincos", "sincos_y_first", "stretched", "learned", "none"] = "sincos",
        rel_pos: Literal["none", "shared", "per_block"] = "none",
        rel_pos_size: int | None = None,
        layer_scale: float | None = None,
        qkv_bias: Literal["full", "query_value", "none"] = "full",
        drop_path: float = 0.0,
        drop_path_rule: Literal["linear", "constant"] = "linear",
        mask_token: bool = False,
        final_norm: bool = True,
        init: Way = "mae",
        interpolate_offset: float = 0.1,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "patch_size", "__class__")}
        super().__init__()
        self.measure(config, patch_size)
        self.interpolate_offset = interpolate_offset
        self.prefix = self.leading = int(cls_token)

        self.patch_embed = PatchEmbed(image_size, patch_size, 3, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if cls_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if mask_token else None
        n_patches = self.grid[0] * self.grid[1]
        if positions in FIXED:
            # Derived from the config, so it is not part of the state. The class token's row is zero.
            table = F.pad(FIXED[positions](embed_dim, self.grid), (0, 0, self.prefix, 0))
            self.register_buffer("pos_embed", table[None], persistent=False)
        elif positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + n_patches, embed_dim))
        else:
            self.pos_embed = None

        tables = {"none": 0, "shared": 1, "per_block": depth}[rel_pos]
        side = (rel_pos_size or image_size) // patch_size
        self.rel_pos = nn.ModuleList(
            RelativePositions((side, side), num_heads, self.prefix) for _ in range(tables)
        )
        self.blocks = nn.ModuleList(make_block(self.config) for _ in range(depth))
        self.norm = LayerNorm(embed_dim) if final_norm else nn.Identity()
        initialise(self, init)

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        """The patch grid of images that may be smaller or larger than ``image_size``."""
        size = images.shape[-1]
        if tuple(images.shape[1:]) != (3, size, size) or size % self.patch_size or not size:
            raise ValueError(
                f"this backbone takes square images [B, 3, S, S] such as [B, 3, {self.image_size}, "
                f"{self.image_size}], S a multiple of {self.patch_size}; got {list(images.shape)}"
            )
        grid = (size // self.patch_size, size // self.patch_size)
        if grid != self.grid and self.rel_pos:
            raise UserError(
                f"relative positions belong to images of {self.image_size} pixels; crops of {size} pixels "
                "take a backbone with positions='learned', 'sincos' or 'none'"
            )
        return grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for ``grid``, [1, T, D]."""
        assert self.pos_embed is not None
        if grid == self.grid:
            return self.pos_embed
        return interpolated(self.pos_embed, self.prefix, self.grid, grid, self.interpolate_offset)

    def _embed(self, images: Tensor, kept: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """Embedded patches, [B, N, D], or of the kept ones only, [B, n, D]. keys: as of ``encode``."""
        # A convolution whose stride is its kernel is a matrix product over patches; taking the kept
        # patches before it spares the product of the others.
        patches = patchify(images, self.patch_size, order="channel")
        if kept is not None:
            patches = take(patches, kept)
        projection = self.patch_embed.proj
        return F.linear(patches, projection.weight.flatten(1), projection.bias)

    def position_bias(self, table: int = 0, tokens: Tensor | None = None) -> Tensor | None:
        """Attention bias [1, heads, T, T] of relative positions, or for the given tokens [B, t] only:
        [B, heads, t, t]. None for a backbone without."""
        return self.rel_pos[table].bias(self.grid, True, tokens) if self.rel_pos else None

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
        """Tokens of a batch of images.

        images: normalised [B, 3, S, S]; another S than ``image_size`` gives another grid, on which
        positions are interpolated (UserError for relative ones). mask: bool [B, N], True = hidden; the
        hidden patches are left out (``fill="drop"``, equally many in each row) or replaced by the mask
        token. layers: blocks whose output to give before the final norm, counted from the end (-1 is the
        last); -depth - 1 is what the first block gets. attention: also give the last block's attention
        probabilities, [B, heads, T, T]. keys: int64 [B], what drop path's draws depend on; torch's
        generator where None. edits: what a method does to the patch tokens [B, n, D] on their way: key 0
        to the embedded patches before positions are added, key k to those that enter the k-th block, 1 to
        depth.
        """
        x, kept, tokens = self.embed(images, mask, fill, edits, keys)
        return self.transform(x, kept, tokens, layers, attention, keys=keys, edits=edits)

    def embed(
        self,
        images: Tensor,
        mask: Tensor | None,
        fill: Literal["drop", "token"],
        edits: Edits = NO_EDITS,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the first block gets of images, [B, T, D]; the patches that are there (``Encoded.kept``); the
        indices of the tokens that are, class token included. None where all are. See ``encode``."""
        grid = self._grid_of(images)
        kept = where(~mask) if mask is not None and fill == "drop" else None
        x = self._embed(images, kept, keys)
        if mask is not None and kept is None:
            if self.mask_token is None:
                raise ValueError("fill='token' takes a backbone built with mask_token=True")
            x = torch.where(mask.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        if 0 in edits:
            x = edits[0](x)
        tokens = None
        if kept is not None:
            tokens = F.pad(kept + self.prefix, (self.prefix, 0))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        if self.pos_embed is not None:
            positions = self._positions(grid)
            x = x + (positions if tokens is None else positions[0][tokens])
        return x, kept, tokens

    def transform(
        self,
        x: Tensor,
        kept: Tensor | None = None,
        tokens: Tensor | None = None,
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
        edits: Edits = NO_EDITS,
    ) -> Encoded:
        """The blocks and the final norm, on what ``embed`` gave. See ``encode``."""
        if any(not -self.depth - 1 <= layer < 0 for layer in layers):
            raise ValueError(
                f"layers count from the end, -1 to -{self.depth}, and -{self.depth + 1} for what the first "
                f"block gets; got {list(layers)}"
            )
        if any(not 0 <= place <= self.depth for place in edits):
            raise ValueError(f"edits take place at 0 to {self.depth}; got {sorted(edits)}")
        taps: dict[int, Tensor] = {}
        probabilities = None
        biases = [self.position_bias(i, tokens) for i in range(len(self.rel_pos))]
        scales = self.branch_scales(x, keys)
        choose_attention(self.blocks, x)
        for i in range(self.depth):
            bias = biases[i % len(biases)] if biases else None
            if i + 1 in edits:
                x = torch.cat([x[:, : self.leading], edits[i + 1](x[:, self.leading :])], dim=1)
            taps.setdefault(-self.depth - 1, x)
            if attention and i == self.depth - 1:
                probabilities = self.look(i, x, bias)
            x = self.run_block(i, x, bias, None if scales is None else scales[i], keys)
            if i - self.depth in layers:
                taps[i - self.depth] = x

        cls, patches = self._split(self.norm(x))
        return Encoded(cls, patches, kept, tuple(self._split(taps[i]) for i in layers), probabilities)

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: Tensor | None,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """The output of the i-th block on x [B, T, D], place being its attention's bias."""
        return run_block(self.blocks[i], x, place, scales, windows)

    def enter(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """See ``Transformer``."""
        return self.embed(images, None, "drop", keys=keys)[0]

    def placing(self, leading: bool) -> Placing:
        """Attention biases, see ``Transformer``."""

        @cache
        def bias(table: int, grid: tuple[int, int]) -> Tensor:
            return self.rel_pos[table].bias(grid, leading)

        def place(i: int, windows: Windows | None) -> Tensor | None:
            if not self.rel_pos:
                return None
            grid = self.grid if windows is None else (windows.size, windows.size)
            return bias(i % len(self.rel_pos), grid)

        return place

    def adapt(self, image_size: int) -> None:
        """See ``Transformer``. Each choice is the official codes':

        A table of positions is interpolated, a fixed one too, as MAE's, ViTDet's and mmsegmentation's are:
        places that the encoder has seen, where a table computed anew would go on to unseen ones. Being
        loaded into a parameter there, it is one here, and trained. A table of relative positions that the
        blocks share becomes one a block (BEiT, SimMIM). The mask token, which nothing would train, goes.
        """
        side = image_size // self.patch_size
        if self.pos_embed is not None:
            table = resample_abs_pos_embed(
                self.pos_embed.detach(), [side, side], list(self.grid), num_prefix_tokens=self.prefix
            )
            del self.pos_embed  # a buffer's name is not free for a parameter
            self.pos_embed = nn.Parameter(table.clone())
            self.config["positions"] = "learned"
        if self.rel_pos:
            if len(self.rel_pos) < self.depth:
                (table,) = self.rel_pos
                self.rel_pos = nn.ModuleList(deepcopy(table) for _ in range(self.depth))
            trained = self.rel_pos[0].window_size[0] * self.patch_size
            self.config |= {"rel_pos": "per_block", "rel_pos_size": trained}
        self.mask_token = None
        self.config["mask_token"] = False

    def _split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        return (x[:, 0] if self.prefix else None), x[:, self.leading :]

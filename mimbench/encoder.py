"""The only thing a protocol ever sees of a method: a sealed encoder that gives tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mimbench.errors import UserError
from mimbench.spec import Readout


class Tokens(NamedTuple):
    """An encoder's output."""

    cls: Tensor | None  # [B, D]; None when the backbone has no class token
    patches: Tensor  # [B, H, W, D]


class Linear(NamedTuple):
    """A linear map that is only applied."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]"""
        return nn.functional.linear(x, self.weight, self.bias)

    def to(self, device: torch.device) -> Linear:
        return Linear(self.weight.to(device), None if self.bias is None else self.bias.to(device))


class Encoded(NamedTuple):
    """A backbone's output for one batch, possibly masked.

    ``patches`` holds visible tokens only under ``fill="drop"``, in raster order of the kept patches
    unless ``kept`` says otherwise.
    """

    cls: Tensor | None  # [B, D], through the final norm
    patches: Tensor  # [B, n, D], through the final norm
    kept: Tensor | None  # [B, n] int64 raster indices of the patches, None when all are there
    layers: tuple[tuple[Tensor | None, Tensor], ...]  # (cls, patches) as asked for, before the final norm
    attention: Tensor | None  # [B, heads, n, n] of the last block, prefix tokens included


@runtime_checkable
class Backbone(Protocol):
    """What the harness asks of a backbone module."""

    config: dict[str, Any]  # JSON; rebuilds the module through registry.build_backbone
    embed_dim: int
    depth: int
    grid: tuple[int, int]
    patch_size: int

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: Literal["drop", "token"] = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
    ) -> Encoded:
        """images: normalised [B, 3, H, W]; mask: bool [B, N], True = hidden; layers: from the end, -1 last;
        keys: int64 [B], what random parts such as drop path depend on (``Step.keys``) while training"""
        ...

    def final_norm(self, tokens: Tensor) -> Tensor: ...

    def rebuilt(self, *, image_size: int | None = None, drop_path: float | None = None) -> Any:
        """A trainable copy with the same weights, in the same mode; the original stays as it is.

        image_size: of square images, in pixels; positions are interpolated. drop_path: rate at the last
        block, growing linearly from 0 at the first. None keeps either. Raises UserError for a size that is
        impossible. What only pre-training uses (a mask token) may be left out.
        """
        ...

    def maps(
        self,
        images: Tensor,
        layers: Sequence[int],
        *,
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        keys: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Patch tokens [B, D, H, W] as blocks left them, before the final norm; with gradients.

        images: normalised [B, 3, S, S], S being ``image_size``. layers: from the end, -1 last. window: all
        blocks but ``global_blocks`` (counted from 0) attend within windows of window x window patches, and
        there is no class token. keys: as of ``encode``.
        """
        ...

    def attentions(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """Attention probabilities [B, heads, T, T] of blocks, class token and registers first.

        images, layers: as of ``maps``. Raises UserError where there is no attention.
        """
        ...

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names in timm's form, for ``timm.optim.param_groups_layer_decay``.

        Embeddings, positions and tokens are layer 0, block i is layer i + 1, the rest is matched by nothing,
        which puts it into the last layer, depth + 1, together with a head's parameters. Blocks of a stem that
        are layers, too, come between layer 0 and the first block.
        """
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed, beside those of one dimension."""
        ...


class Encoder(nn.Module):
    """A frozen backbone behind one forward that always normalises, checks shapes and stays in eval mode."""

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        super().train(False)

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode: a frozen encoder in train mode is a known source of wrong probes."""
        return self

    @property
    def image_size(self) -> int:
        return int(self.backbone.config["image_size"])

    @property
    def depth(self) -> int:
        return int(self.backbone.depth)

    @property
    def takes_mask(self) -> bool:
        """Whether patches can be hidden from it; False for backbones that see whole images only."""
        return bool(getattr(self.backbone, "takes_mask", True))

    @property
    def has_cls(self) -> bool:
        return bool(self.backbone.config.get("cls_token", False))

    def require(self, *names: str) -> None:
        """Raise UserError where the backbone, a third party's say, lacks methods of ``Backbone``."""
        missing = [name for name in names if not hasattr(self.backbone, name)]
        if missing:
            raise UserError(
                f"the backbone {self.backbone.config['name']} has no {' and no '.join(missing)}, which this "
                "takes; see mimbench.encoder.Backbone"
            )

    def _normalised(self, images: Tensor) -> Tensor:
        size = self.image_size
        if images.ndim != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != (size, size):
            raise UserError(
                f"the encoder takes images of shape [B, 3, {size}, {size}], got {list(images.shape)}; "
                "resize them or build the encoder for that size"
            )
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        return (images - self.mean) / self.std

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tokens:
        """Tokens of the last layer. images: uint8, or float in [0, 1], [B, 3, S, S]."""
        out = self.backbone.encode(self._normalised(images))
        return Tokens(out.cls, out.patches.unflatten(1, self.backbone.grid))

    @torch.no_grad()
    def tokens(
        self,
        images: Tensor,
        layers: Sequence[int] = (-1,),
        norm: Literal["final", "raw"] = "final",
    ) -> tuple[Tokens, ...]:
        """Tokens of blocks, counted from the end (-1 is the last), through the final norm or as they are.

        images: as of ``forward``.
        """
        out = self.backbone.encode(self._normalised(images), layers=layers)
        finish = self.backbone.final_norm if norm == "final" else lambda tokens: tokens
        return tuple(
            Tokens(None if cls is None else finish(cls), finish(patches).unflatten(1, self.backbone.grid))
            for cls, patches in out.layers
        )

    @torch.no_grad()
    def attentions(self, images: Tensor, layers: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """Attention probabilities [B, heads, T, T] of blocks, class token and registers first.

        images: as of ``forward``. layers: as of ``tokens``. UserError where there is no attention.
        """
        self.require("attentions")
        return self.backbone.attentions(self._normalised(images), layers)

    def resized(self, image_size: int) -> Encoder:
        """The same encoder for images of another size, positions interpolated; see ``Backbone.rebuilt``."""
        if image_size == self.image_size:
            return self
        self.require("rebuilt")
        backbone = self.backbone.rebuilt(image_size=image_size)
        return Encoder(backbone, self.mean.flatten().tolist(), self.std.flatten().tolist()).to(
            self.mean.device
        )

    @torch.no_grad()
    def readouts(self, images: Tensor, readouts: Sequence[Readout]) -> dict[Readout, Tensor]:
        """Vectors [B, D] of single-token readouts (``Readout.parts``), all out of one pass."""
        layers = sorted({r.layer for r in readouts})
        out = self.backbone.encode(self._normalised(images), layers=layers)
        taps = dict(zip(layers, out.layers, strict=True))
        vectors = {}
        for readout in readouts:
            cls, patches = taps[readout.layer]
            tokens = patches if readout.token == "mean" else cls
            if tokens is None:
                raise ValueError(f"readout {readout.label} asks for a class token the backbone does not have")
            if readout.norm == "final":
                tokens = self.backbone.final_norm(tokens)
            vectors[readout] = tokens.mean(1) if readout.token == "mean" else tokens
        return vectors

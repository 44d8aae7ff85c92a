"""What the transformers of this package share: their blocks one by one, copies of them, parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from method_zoo.backbones.blocks import attention_probabilities, choose_attention, drop_path_scales
from method_zoo.backbones.windows import Windows
from method_zoo.parts.frozen import Frozen
from mimbench.encoder import Encoded
from mimbench.errors import UserError

# What tells a block about places, given its number and its windows: a bias, a rotation or nothing.
Placing = Callable[[int, Windows | None], Any]
# Parameters that timm and the official codes keep from weight decay beside those of one dimension.
UNDECAYED = (
    "cls_token",
    "dist_token",
    "mask_token",
    "pos_embed",
    "reg_token",
    "register_tokens",
    "relative_position_bias_table",
)


def check_image_size(name: str, patch_size: int, image_size: int) -> None:
    """Raise UserError for images that patches do not tile."""
    if image_size < 1 or image_size % patch_size:
        below = image_size // patch_size * patch_size or patch_size
        raise UserError(
            f"backbone {name} cuts images into patches of {patch_size} pixels, which do not divide an "
            f"image size of {image_size}; take an image size such as {below} or another patch size"
        )


def check_images(images: Tensor, image_size: int) -> None:
    """Raise UserError for anything but images [B, 3, image_size, image_size]."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, image_size, image_size):
        raise UserError(
            f"this backbone takes images of shape [B, 3, {image_size}, {image_size}], got "
            f"{list(images.shape)}; rebuild it for another size"
        )


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise UserError for layers that are not counted from the end."""
    if not layers or any(not -depth <= layer < 0 for layer in layers):
        raise UserError(f"layers count from the end, -1 to -{depth}; got {list(layers)}")


class Transformer(nn.Module):
    """A vision transformer whose blocks are run one by one.

    ``leading`` tokens, such as a class token or registers, come before the patches. drop_path_rule: rates of
    the blocks before the last, growing linearly from 0 at the first, or constant.
    """

    config: dict[str, Any]
    image_size: int
    patch_size: int
    grid: tuple[int, int]
    embed_dim: int
    depth: int
    num_heads: int
    leading: int
    blocks: nn.ModuleList
    norm: nn.Module
    encode: Callable[..., Encoded]
    drop_path: float
    drop_path_rule: Literal["linear", "constant"]

    def measure(self, config: dict[str, Any], patch_size: int) -> None:
        """Note what a backbone of ours was built with. UserError for heads that do not divide the width."""
        self.config = config
        self.embed_dim, self.num_heads = config["embed_dim"], config["num_heads"]
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"a width of {self.embed_dim} does not divide into {self.num_heads} attention heads"
            )
        self.depth, self.image_size, self.patch_size = config["depth"], config["image_size"], patch_size
        self.grid = (self.image_size // patch_size, self.image_size // patch_size)
        self.drop_path, self.drop_path_rule = config["drop_path"], config["drop_path_rule"]

    def enter(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """What the first block gets of images, [B, leading + N, D]."""
        raise NotImplementedError

    def placing(self, leading: bool) -> Placing:
        """What ``run_block`` and ``look`` are told of places. leading: whether leading tokens are there."""
        raise NotImplementedError

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: Any,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """The output of the i-th block on x [B, T, D]. scales: [2, B, 1, 1], on its residual branches."""
        raise NotImplementedError

    def look(self, i: int, x: Tensor, place: Any) -> Tensor:
        """Attention probabilities [B, heads, T, T] of the i-th block on its input x [B, T, D]."""
        return attention_probabilities(self.blocks[i], x, place)

    def adapt(self, image_size: int) -> None:
        """Change this backbone into one to train on a task, for images of another size (see ``rebuilt``)."""
        raise NotImplementedError

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm after the last block, if there is one, on the last dimension."""
        return self.norm(tokens)

    def forward(self, images: Tensor) -> Encoded:
        return self.encode(images)

    def drop_rates(self) -> list[float]:
        """Drop path's rate of each block while training."""
        if self.drop_path_rule == "constant":
            return [self.drop_path] * self.depth
        return torch.linspace(0, self.drop_path, self.depth, device="cpu").tolist()

    def branch_scales(self, x: Tensor, keys: Tensor | None) -> Tensor | None:
        """Drop path's factors for a batch x while training, see ``drop_path_scales``; None for none."""
        return drop_path_scales(self.drop_rates(), x, keys) if self.training else None

    def rebuilt(self, *, image_size: int | None = None, drop_path: float | None = None) -> Any:
        """A trainable copy with the same weights; the original stays as it is.

        image_size: of square images; positions are interpolated. drop_path: rate at the last block, growing
        linearly from 0 at the first, as in fine-tuning recipes whatever the pre-training's rule; None keeps
        rates and rule. Raises UserError for images that patches do not tile and for a rate outside [0, 1).
        """
        size = self.image_size if image_size is None else image_size
        check_image_size(self.config["name"], self.patch_size, size)
        copy = deepcopy(self)
        copy.zero_grad(set_to_none=True)
        copy.adapt(size)
        copy.image_size, copy.grid = size, (size // self.patch_size, size // self.patch_size)
        copy.config["image_size"] = size
        if drop_path is not None:
            if not 0 <= drop_path < 1:
                raise UserError(f"a drop path rate is at least 0 and below 1; got {drop_path}")
            copy.drop_path, copy.drop_path_rule = drop_path, "linear"
            copy.config |= {"drop_path": drop_path, "drop_path_rule": "linear"}
        copy.requires_grad_(True)
        for part in copy.modules():
            if isinstance(part, Frozen):
                part.requires_grad_(False)
        return copy

    def maps(
        self,
        images: Tensor,
        layers: Sequence[int],
        *,
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        keys: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Patch tokens [B, D, H, W] as the blocks ``layers`` left them; see ``mimbench.encoder.Backbone``.

        Blocks behind the last that is asked for are not run. With windows, class tokens and registers are
        left out from the start, as in ViTDet (arXiv:2203.16527); a window that is larger than the image is
        the image. What is not run (the final norm, too) gets no gradient, of which
        DistributedDataParallel wants to be told.
        """
        check_images(images, self.image_size)
        check_layers(layers, self.depth)
        windows = self._windows(window, global_blocks)
        leading = self.leading if window is None else 0
        taps = {}
        for i, _, _, x in self._run(images, self.depth + max(layers), windows, window is None, keys):
            taps[i - self.depth] = x
        tokens = (taps[layer][:, leading:] for layer in layers)
        return tuple(x.transpose(1, 2).unflatten(2, self.grid) for x in tokens)

    def attentions(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """Attention probabilities [B, heads, T, T] of blocks; see ``mimbench.encoder.Backbone``."""
        check_images(images, self.image_size)
        check_layers(layers, self.depth)
        windows: list[Windows | None] = [None] * self.depth
        found = {}
        for i, before, place, _ in self._run(images, self.depth + max(layers), windows, True, None):
            if i - self.depth in layers:
                found[i - self.depth] = self.look(i, before, place)
        return tuple(found[layer] for layer in layers)

    def _windows(self, window: int | None, global_blocks: Sequence[int]) -> list[Windows | None]:
        """The windows of each block; None where it looks at the whole image."""
        if window is None:
            return [None] * self.depth
        if window < 1 or any(not 0 <= i < self.depth for i in global_blocks):
            raise UserError(
                f"windows are at least 1 patch wide and global blocks count from 0 to {self.depth - 1}; "
                f"got window={window}, global_blocks={list(global_blocks)}"
            )
        windows = Windows(self.grid, min(window, max(self.grid)))
        return [None if i in global_blocks else windows for i in range(self.depth)]

    def _run(
        self,
        images: Tensor,
        last: int,
        windows: Sequence[Windows | None],
        leading: bool,
        keys: Tensor | None,
    ) -> Iterator[tuple[int, Tensor, Any, Tensor]]:
        """Number, input, place and output of each block up to ``last``."""
        x = self.enter(images, keys)
        if not leading:
            x = x[:, self.leading :]
        placing, scales = self.placing(leading), self.branch_scales(x, keys)
        choose_attention(self.blocks, x)
        for i in range(last + 1):
            before, place = x, placing(i, windows[i])
            x = self.run_block(i, x, place, None if scales is None else scales[i], keys, windows[i])
            yield i, before, place, x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of parameters for timm's layer-wise decay; see ``mimbench.encoder.Backbone``.

        What is matched by nothing (the final norm, a shared table of relative positions as in BEiT's code,
        the head of a model around) is timm's last layer, depth + 1.
        """
        stem = "cls_token|embed_norm|mask_token|model|patch_embed|pos_embed|register_tokens|words"
        per_block = self.config.get("rel_pos") == "per_block"
        tables = [(r"^rel_pos\.(\d+)", None)] if per_block else []
        return {"stem": rf"^(?:{stem})\b", "blocks": [(r"^blocks\.(\d+)", None), *tables]}

    def no_weight_decay(self) -> set[str]:
        """Names of tables and tokens that are not to be decayed; see ``mimbench.encoder.Backbone``."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in UNDECAYED}

"""Vision transformers of timm, with whatever weights timm has for them, as backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from method_zoo.backbones.blocks import choose_attention, run_block
from method_zoo.backbones.transformer import Placing, Transformer
from method_zoo.backbones.windows import Windows
from mimbench.encoder import Encoded
from mimbench.errors import UserError

PREFIX = "timm:"


def create(name: str, **options: Any) -> VisionTransformer:
    """timm's model ``name`` without a classifier.

    Raises UserError where timm does not know it or it is no plain vision transformer.
    """
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.partition('.')[0][:12]}*", module="vision_transformer")[:3]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"timm has no model {name!r}{hint}")
    model = timm.create_model(name, num_classes=0, **options)
    if not isinstance(model, VisionTransformer):
        raise UserError(
            f"timm's {name} is a {type(model).__name__}; give a plain vision transformer such as "
            "vit_base_patch16_clip_224.openai"
        )
    return model


class TimmViT(Transformer):
    """A vision transformer of timm behind the interface of backbones, for whole images only.

    ``model`` is timm's own up to the first block; ``blocks`` and ``norm`` are its blocks and the layer norm
    after the last, run here one by one.

    name: "timm:" and timm's name. image_size: in pixels; positions are interpolated when weights load.
    weights: a file in timm's layout, which timm brings to ``image_size``; None leaves random weights.
    drop_path: rate of dropped residual branches at the last block, growing linearly from 0 at the first.
    """

    takes_mask = False

    def __init__(self, *, name: str, image_size: int, weights: str | None = None, drop_path: float = 0.0):
        super().__init__()
        options: dict[str, Any] = {"img_size": image_size}
        if weights is not None:
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights, "num_classes": 0}}
        model = create(name.removeprefix(PREFIX), **options)
        self.blocks, self.norm, self.model = model.blocks, model.norm, model
        model.blocks, model.norm = nn.Sequential(), nn.Identity()
        model.attn_pool = model.fc_norm = nn.Identity()  # only timm's heads use them
        self.image_size, self.patch_size = image_size, model.patch_embed.patch_size[0]
        self.embed_dim, self.depth = model.embed_dim, len(self.blocks)
        attention = getattr(self.blocks[0], "attn", self.blocks[0])  # fused with an MLP in some
        if not hasattr(attention, "num_heads"):
            raise UserError(f"{name} has blocks of several attentions; give a plain vision transformer")
        self.num_heads = int(attention.num_heads)
        self.grid = tuple(model.patch_embed.grid_size)
        self.leading = model.num_prefix_tokens
        self.config: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "cls_token": model.has_class_token,
            "drop_path": drop_path,
        }
        self.drop_path, self.drop_path_rule = drop_path, "linear"
        if drop_path:
            self._check_plain("drop path")

    def _check_plain(self, what: str) -> None:
        for block in self.blocks:
            if type(block) is not Block:
                raise UserError(
                    f"{what} takes a vision transformer of plain blocks; those of {self.config['name']} are "
                    f"{type(block).__name__}s"
                )

    def enter(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """Patches, positions, class token, registers and what norm timm's model has before its blocks."""
        return self.model.forward_features(images)

    def placing(self, leading: bool) -> Placing:
        """timm's plain blocks are told nothing of places."""
        return lambda i, windows: None

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: None,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """The output of the i-th block on x [B, T, D]."""
        if windows is not None:
            self._check_plain("attention within windows")
        if scales is None and windows is None:
            return self.blocks[i](x)
        return run_block(self.blocks[i], x, None, scales, windows)

    def adapt(self, image_size: int) -> None:
        """timm's own change of size, which interpolates positions as its loading of weights does."""
        if image_size != self.image_size:
            self.model.set_input_size(img_size=(image_size, image_size))

    def rebuilt(self, *, image_size: int | None = None, drop_path: float | None = None) -> TimmViT:
        """See ``Transformer``. UserError for drop path in a model whose blocks are not timm's plain ones."""
        if drop_path:
            self._check_plain("drop path")
        copy = super().rebuilt(image_size=image_size, drop_path=drop_path)
        copy.config.pop("drop_path_rule", None)  # always linear here
        return copy

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: str = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
    ) -> Encoded:
        """As ``mimbench.encoder.Backbone.encode``; a mask is a ValueError."""
        if mask is not None:
            raise ValueError("a model of timm sees whole images; it takes no mask")
        if any(not -self.depth <= layer < 0 for layer in layers):
            raise ValueError(f"layers count from the end, -1 to -{self.depth}; got {list(layers)}")
        x, taps, probabilities = self.enter(images, keys), {}, None
        scales = self.branch_scales(x, keys)
        choose_attention(self.blocks, x)
        for i in range(self.depth):
            if attention and i == self.depth - 1:
                probabilities = self.look(i, x, None)
            x = self.run_block(i, x, None, None if scales is None else scales[i], keys)
            taps[i - self.depth] = x
        cls, patches = self._split(self.norm(x))
        return Encoded(cls, patches, None, tuple(self._split(taps[i]) for i in layers), probabilities)

    def _split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        return (x[:, 0] if self.model.has_class_token else None), x[:, self.leading :]

"""Vision transformers of timm, with whatever weights timm has for them, as backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from method_zoo.backbones.blocks import attention_probabilities
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


class TimmViT(nn.Module):
    """A vision transformer of timm behind the interface of backbones, for whole images only.

    name: "timm:" and timm's name. image_size: in pixels; positions are interpolated when weights load.
    weights: a file in timm's layout, which timm brings to ``image_size``; None leaves random weights.
    """

    def __init__(self, *, name: str, image_size: int, weights: str | None = None):
        super().__init__()
        options: dict[str, Any] = {"img_size": image_size}
        if weights is not None:
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights, "num_classes": 0}}
        self.model = create(name.removeprefix(PREFIX), **options)
        self.embed_dim, self.depth = self.model.embed_dim, len(self.model.blocks)
        self.num_heads = self.model.blocks[0].attn.num_heads
        self.grid = tuple(self.model.patch_embed.grid_size)
        self.patch_size = self.model.patch_embed.patch_size[0]
        self.config: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "cls_token": self.model.has_class_token,
        }

    @property
    def blocks(self) -> nn.Module:
        return self.model.blocks

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
        # timm wants to be asked for at least one layer
        wanted = sorted({-1, *layers, *([-2] if attention and self.depth > 1 else [])})
        given: Any = self.model.forward_intermediates(
            images,
            indices=[self.depth + layer for layer in wanted],
            return_prefix_tokens=True,
            output_fmt="NLC",
        )
        tokens, taps = given
        found = dict(zip(wanted, taps, strict=True))
        probabilities = None
        if attention:
            if self.depth < 2:
                raise ValueError("attention is read behind another block; this model has one only")
            patches, prefix = found[-2]
            before = torch.cat([prefix, patches], dim=1)
            probabilities = attention_probabilities(self.model.blocks[-1], before, None)
        n_prefix = self.model.num_prefix_tokens
        return Encoded(
            tokens[:, 0] if self.model.has_class_token else None,
            tokens[:, n_prefix:],
            None,
            tuple(
                (found[layer][1][:, 0] if self.model.has_class_token else None, found[layer][0])
                for layer in layers
            ),
            probabilities,
        )

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The layer norm after the last block."""
        return self.model.norm(tokens)

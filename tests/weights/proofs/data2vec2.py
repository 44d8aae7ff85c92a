"""data2vec 2.0: against timm with blocks of the other order of norms, as CAPI's benchmark builds it."""

from __future__ import annotations

from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor

from tests.weights.proof import Proof, images_of, small

from ._reference import SIZES, noise, timm_model, tokens
from .ijepa import sincos

SIZE, PATCH = 70, 14


class Block(ResPostBlock):
    """timm's block with norms behind its branches, but behind the sums as well."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


def whole_images() -> Proof:
    model = timm_model(
        "vit_huge_patch14_224",
        SIZE,
        block_fn=Block,
        no_embed_class=True,
        pre_norm=True,
        final_norm=False,
        weight_init="skip",
    )
    model.patch_embed.proj.bias = torch.nn.Parameter(noise(SIZES["embed_dim"]))
    with torch.no_grad():
        model.pos_embed.copy_(sincos(SIZES["embed_dim"], SIZE // PATCH))
    images, state = images_of(SIZE), dict(model.state_dict())
    image = "modality_encoders.IMAGE."
    student = {
        f"{image}extra_tokens": state["cls_token"],
        f"{image}fixed_positional_encoder.positions": state["pos_embed"],
        **{f"{image}local_encoder.proj.{k}": state[f"patch_embed.proj.{k}"] for k in ("weight", "bias")},
        **{f"{image}context_encoder.norm.{k}": state[f"norm_pre.{k}"] for k in ("weight", "bias")},
        **{name: value for name, value in state.items() if name.startswith("blocks.")},
    }
    average = {name: value + 1 for name, value in student.items()}
    decoder = {
        f"{image}decoder.blocks.0.0.weight": noise(32, 3, 5, 5),
        f"{image}decoder.blocks.0.0.bias": noise(32),
        f"{image}decoder.proj.weight": noise(48, 32),
        f"{image}decoder.proj.bias": noise(48),
    }
    out = tokens(model, images)
    entry = small("data2vec2@vit_huge_patch14", image_size=SIZE, options=SIZES)
    content = {"model": student | decoder | {"_ema": average}, "extra_state": {"epoch": 100}}
    return Proof(entry, content, images, out[:, 0], out[:, 1:], "timm's VisionTransformer")


PROOFS = {"whole images": whole_images}

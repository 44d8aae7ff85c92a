"""First weights, drawn as the official codes draw them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from torch import nn

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models.vision_transformer import Block

if TYPE_CHECKING:
    from method_zoo.backbones.vit import ViT

Way = Literal["mae", "mocov3", "beit", "ijepa", "dino"]


def initialise(vit: ViT, way: Way) -> None:
    """Draw all weights of a vision transformer as one of the official codes does."""
    {"mae": _mae, "mocov3": _mocov3, "beit": _beit, "ijepa": _ijepa, "dino": _dino}[way](vit)


def _mae(vit: ViT) -> None:
    """As facebookresearch/mae initialises: Xavier for every matrix, normal of 0.02 for tokens."""
    xavier_(vit)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(vit.embed_dim, -1))
    nn.init.zeros_(vit.patch_embed.proj.bias)
    for token in (vit.cls_token, vit.mask_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if isinstance(vit.pos_embed, nn.Parameter):
        nn.init.trunc_normal_(vit.pos_embed, std=0.02)


def _mocov3(vit: ViT) -> None:
    """As facebookresearch/moco-v3 initialises its ViT, which BootMAE's code does too."""
    _mae(vit)
    xavier_(vit, joint=False)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)


def _beit(vit: ViT, cut: float = 1.0) -> None:
    """As microsoft/unilm's beit initialises, truncated at one standard deviation as there."""
    truncated_normal_(vit, cut=cut)
    for parameter in (vit.cls_token, vit.mask_token, vit.pos_embed):
        if isinstance(parameter, nn.Parameter):
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.02 * cut, b=0.02 * cut)
    shrink_outputs_(vit.blocks)
    for bias in vit.rel_pos:
        nn.init.zeros_(bias.relative_position_bias_table)


def _ijepa(vit: ViT) -> None:
    """As facebookresearch/ijepa initialises: BEiT's way without its cut at one standard deviation."""
    _beit(vit, cut=100)


def _dino(vit: ViT) -> None:
    """As facebookresearch/dino initialises; the patch embedding keeps torch's draw, mask tokens are 0."""
    for part in vit.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for parameter in (vit.cls_token, vit.pos_embed):
        if isinstance(parameter, nn.Parameter):
            nn.init.trunc_normal_(parameter, std=0.02)


def xavier_(module: nn.Module, joint: bool = True) -> None:
    """Initialise every linear layer inside as MAE's code does: Xavier uniform, biases zero.

    joint: whether a joint query-key-value matrix is drawn as one matrix; False draws it as three, as MoCo
    v3's code does.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            parts = 1 if joint or name.rpartition(".")[2] != "qkv" else 3
            for weight in part.weight.chunk(parts):
                nn.init.xavier_uniform_(weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def truncated_normal_(module: nn.Module, std: float = 0.02, cut: float = 1.0) -> None:
    """Initialise every linear and convolutional layer inside as BEiT's code does, biases zero.

    cut: where the normal distribution is cut off, in standard deviations.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=std, a=-cut * std, b=cut * std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def shrink_outputs_(blocks: Iterable[Block], first: int = 1) -> None:
    """Divide the last weights of each block's branches by √(2·i), as BEiT does; i counts from ``first``."""
    for i, block in enumerate(blocks, start=first):
        for projection in (block.attn.proj, block.mlp.fc2):
            projection.weight.data.div_(math.sqrt(2 * i))

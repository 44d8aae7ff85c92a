"""Every kind of backbone, tiny: 5 x 5 patches, one to ten blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from torch import Tensor, nn

from method_zoo.backbones import build
from method_zoo.backbones.timm_vit import TimmViT
from method_zoo.parts.tokenizers.dalle import DalleEncoder

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 2}
BEIT = {"positions": "none", "rel_pos": "shared", "layer_scale": 0.1, "qkv_bias": "query_value"}


def ours(patch: int = 4, **options: Any) -> nn.Module:
    return build(f"vit_micro_patch{patch}", 5 * patch, **{**TINY, **options})


def of_timm(name: str) -> TimmViT:
    return TimmViT(name=f"timm:{name}", image_size=80)


def with_tokens(**options: Any) -> nn.Module:
    tokenizer = DalleEncoder(vocabulary=32, width=4, blocks=1)
    with torch.no_grad():  # else all patches get the same token
        for parameter in tokenizer.parameters():
            parameter.normal_(std=0.2)
    return ours(8, tokenizer=tokenizer, **options)


def pyramid(name: str, **options: Any) -> nn.Module:
    """Patches of 16 pixels in an 80-pixel image."""
    return build(name, 80, **{**TINY, "stem_depth": 2, **options})


KINDS: dict[str, Callable[[], nn.Module]] = {
    "mae": lambda: ours(mask_token=True),
    "mocov3": lambda: ours(
        positions="sincos_y_first", init="mocov3", drop_path=0.1, drop_path_rule="constant"
    ),
    "latentmim": lambda: ours(positions="stretched", final_norm=False),
    "beit": lambda: ours(**BEIT, mask_token=True),
    "one table a block, and positions": lambda: ours(
        **{**BEIT, "rel_pos": "per_block", "positions": "learned"}
    ),
    "no class token": lambda: ours(cls_token=False, rel_pos="shared", qkv_bias="none"),
    "one block": lambda: ours(depth=1, rel_pos="shared"),
    "capi": lambda: ours(positions="rope", registers=8, embed_dim=32),
    "rotary without registers": lambda: ours(positions="rope", registers=0, embed_dim=32, depth=1),
    "dinov2": lambda: ours(
        positions="learned",
        registers=3,
        mlp="swiglu",
        layer_scale=0.1,
        interpolate_offset=0.0,
        interpolate_antialias=True,
    ),
    "registers and fixed positions, no class token": lambda: ours(
        registers=2, cls_token=False, interpolate_offset=0.0, interpolate_antialias=True
    ),
    "data2vec 2.0": lambda: ours(norm_order="post"),
    "mage": with_tokens,
    "tokens and relative positions": lambda: with_tokens(rel_pos="shared"),
    "hivit": lambda: pyramid("hivit_base_patch16"),
    "itpn": lambda: pyramid(
        "itpn_base_patch16", positions="learned", rel_pos="per_block", layer_scale=0.1, final_norm=True
    ),
    "a class token behind a stem": lambda: pyramid("itpn_large_patch16", cls_token=True, stem_depth=1),
    "convmae": lambda: pyramid("convmae_base_patch16", stem_dims=[8, 16]),
    "timm": lambda: of_timm("test_vit"),
    "timm with a register, without class token": lambda: of_timm("test_vit2"),
    "timm's clip": lambda: of_timm("vit_xsmall_patch16_clip_224"),
}


def in_double(backbone: Any) -> Any:
    """In float64 but for the tokenizer, which looks at images in float32 whatever the encoder's precision."""
    backbone.double()
    if hasattr(backbone, "tokenizer"):
        backbone.tokenizer.float()
    return backbone


def images(backbone: Any, n: int = 2, grid: int = 5) -> Tensor:
    return torch.rand(n, 3, *(grid * backbone.patch_size,) * 2, dtype=torch.float64)


def everything(backbone: Any, x: Tensor, **options: Any) -> Tensor:
    """Class token (if there is one) and patches, [B, T, D]."""
    out = backbone.encode(x, **options)
    return out.patches if out.cls is None else torch.cat([out.cls.unsqueeze(1), out.patches], dim=1)


def assert_close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def trained(backbone: Any) -> dict[str, nn.Parameter]:
    """All parameters but the tokenizer's, and none that is empty (of no registers)."""
    return {k: p for k, p in backbone.named_parameters() if p.numel() and not k.startswith("tokenizer")}

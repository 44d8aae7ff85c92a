"""Dropout whose draws belong to the samples, and transformer blocks under it."""

from __future__ import annotations

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones.blocks import query_key_value, run_block
from method_zoo.backbones.windows import Windows
from mimbench import rng


def dropout(x: Tensor, rate: float, keys: Tensor | None, purpose: str) -> Tensor:
    """x with a share ``rate`` of its numbers set to 0 and the others divided by 1 - rate.

    Srivastava et al. (2014). x: [B, ...], or [B·n, ...] with n parts of each sample side by side. keys:
    int64 [B], what the draws depend on together with ``purpose``; torch's generator where None.
    """
    if not rate:
        return x
    if keys is None:
        return F.dropout(x, rate)
    dropped = rng.chances(keys, x.numel() // len(keys), rate, f"dropout/{purpose}").view(x.shape)
    # A product is several times as fast as filling in zeros, forward and backward. Its factor is not
    # exact in half precision.
    factor = (~dropped).to(torch.promote_types(x.dtype, torch.float32)).mul_(1 / (1 - rate))
    return (x * factor).to(x.dtype)


def run_dropping_block(
    block: Block,
    x: Tensor,
    rate: float,
    keys: Tensor | None,
    purpose: str,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    windows: Windows | None = None,
) -> Tensor:
    """A block's output on x [B, T, D] with dropout where the original transformer has it (arXiv:1706.03762):

    on attention probabilities, after the attention's projection and after both layers of the MLP. The
    probabilities are computed in float32, as MAGE's code does. scales, bias, windows: see
    ``backbones.blocks.run_block``.
    """
    if not rate:
        return run_block(block, x, bias, scales, windows)

    def drop(y: Tensor, place: str) -> Tensor:
        return dropout(y, rate, keys, f"{purpose}/{place}")

    def attend(y: Tensor) -> Tensor:
        q, k, v = query_key_value(block, y, windows)
        with torch.autocast(y.device.type, enabled=False):
            q, k = (z if z.dtype == torch.float64 else z.float() for z in (q, k))
            scores = (q * block.attn.scale) @ k.transpose(-2, -1)
            probabilities = (scores if bias is None else scores + bias).softmax(-1)
        mixed = drop(probabilities, "attention").to(v.dtype) @ v
        mixed = block.attn.proj(mixed.transpose(1, 2).flatten(2))
        return drop(mixed if windows is None else windows.join(mixed), "projection")

    def transform(y: Tensor) -> Tensor:
        inner = block.mlp.act(block.mlp.fc1(block.norm2(y)))
        return drop(block.mlp.fc2(drop(inner, "inner")), "outer")

    for i, (branch, layer_scale) in enumerate([(attend, block.ls1), (transform, block.ls2)]):
        y = layer_scale(branch(x))
        x = x + (y if scales is None else scales[i] * y)
    return x

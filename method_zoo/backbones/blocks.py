"""Blocks of a vision transformer: timm's, with what masked image modelling asks of them beyond."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models.vision_transformer import Attention, Block

from method_zoo.backbones.windows import Windows
from mimbench import rng
from mimbench.errors import UserError

NORM_EPS = 1e-6  # of every layer norm, as in ViT, MAE, BEiT and SimMIM


class QueryValueBias(nn.Linear):
    """A joint query-key-value projection whose key part has no bias, as in BEiT (arXiv:2106.08254)."""

    def __init__(self, dim: int):
        super().__init__(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.weight, bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm with this family's epsilon, which is not torch's."""

    def __init__(self, dim: int, **kwargs: Any):
        super().__init__(dim, eps=NORM_EPS, **kwargs)


def make_block(config: Mapping[str, Any]) -> Block:
    """A block as the backbone of this ``config`` has them."""
    dim = config["embed_dim"]
    block = Block(
        dim,
        config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"] == "full",
        init_values=config["layer_scale"],
        norm_layer=LayerNorm,
    )
    if config["qkv_bias"] == "query_value":
        block.attn.qkv = QueryValueBias(dim)
    return block


def run_block(
    block: Block,
    x: Tensor,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    windows: Windows | None = None,
) -> Tensor:
    """A block's output on x [B, T, D]. bias: added to the attention's scores; scales: [2, B, 1, 1], on its
    residual branches (see ``drop_path_scales``); windows: within which the patches x look at each other."""
    if scales is None and windows is None:
        return block(x, attn_mask=bias)
    y = block.norm1(x)
    if windows is None:
        y = block.attn(y, attn_mask=bias)
    else:
        y = windows.join(block.attn(windows.split(y), attn_mask=bias))
    y = block.ls1(y)
    x = x + (y if scales is None else scales[0] * y)
    y = block.ls2(block.mlp(block.norm2(x)))
    return x + (y if scales is None else scales[1] * y)


def drop_path_scales(
    rates: Sequence[float], x: Tensor, keys: Tensor | None, purpose: str = "drop path"
) -> Tensor | None:
    """What the two residual branches of blocks are multiplied with under drop path (arXiv:1603.09382).

    rates: of each block, [n]. x: tokens [B, T, D]. keys: int64 [B], what the draws depend on; torch's
    generator where None. Returns [n, 2, B, 1, 1]: 0, or 1 / (1 - rate); None where all rates are 0.
    """
    if not any(rates):
        return None
    shape = (len(x), len(rates), 2)
    if keys is None:
        draws = torch.rand(shape, device=x.device)
    else:
        draws = rng.uniform(keys, 2 * len(rates), purpose).view(shape)
    rate = torch.tensor(rates, device=x.device).view(1, -1, 1)
    scales = (draws >= rate) / (1 - rate)
    return scales.permute(1, 2, 0)[..., None, None].to(x.dtype)


def fused_attention_pays(x: Tensor) -> bool:
    """Whether fused attention is the faster choice for x.

    The backward pass of torch's fused CPU attention in bfloat16 takes 3 to 10 times as long as two batched
    products and a softmax at the 17 to 197 tokens of these models (torch 2.13); it is the one case.
    """
    half = x.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    return not (x.device.type == "cpu" and half and torch.is_grad_enabled())


def choose_attention(blocks: Iterable[nn.Module], x: Tensor) -> None:
    """Set the ``attn`` of blocks to fused, or to separate products where those are faster by far."""
    fused = fused_attention_pays(x)
    for block in blocks:
        if hasattr(block.attn, "fused_attn"):  # a rotary one chooses by itself
            block.attn.fused_attn = fused


def attention_probabilities(block: Block, x: Tensor, bias: Tensor | None) -> Tensor:
    """A block's attention probabilities [B, heads, T, T] on its input x [B, T, D], by explicit softmax."""
    q, k, _ = query_key_value(block, x)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1)


def query_key_value(block: Block, x: Tensor, windows: Windows | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries, keys and values on its input x [B, T, D], each [B, heads, T, D / heads].

    With windows [B·n, heads, size², D / heads]. UserError for a block that is not a plain ViT's.
    """
    if not isinstance(block, Block) or not isinstance(block.attn, Attention):
        raise UserError(
            f"queries, keys and values are asked of a plain ViT; this encoder has a {type(block).__name__} "
            f"with {type(block.attn).__name__ if hasattr(block, 'attn') else 'another attention'}, so name "
            "another"
        )
    attn, y = block.attn, block.norm1(x)
    y = y if windows is None else windows.split(y)
    q, k, v = attn.qkv(y).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attn.q_norm(q), attn.k_norm(k), v

"""Decoders whose tokens look at other tokens: cross-attention, its block, and stacks of it.

One block covers what CrossMAE (arXiv:2401.14391), BootMAE (arXiv:2207.07116), CroCo (arXiv:2210.10716),
DiffMAE (arXiv:2304.03283) and CAE (arXiv:2202.03026) build; their differences are its options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from timm.layers import Attention, LayerScale, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm, QueryValueBias, choose_attention, fused_attention_pays
from method_zoo.backbones.initial import xavier_

Bias = Literal["full", "query_value", "none"]


class KeyValue(nn.Linear):
    """A joint key-value projection whose key part has no bias: it would change no attention."""

    def __init__(self, context_dim: int, dim: int):
        super().__init__(context_dim, 2 * dim, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, torch.cat([torch.zeros_like(self.v_bias), self.v_bias]))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context (Vaswani et al., 2017, arXiv:1706.03762).

    context_dim: width of the context, ``dim`` by default; keys and values have the width ``dim``.
    bias: on queries, keys and values, or on queries and values only.
    separate: keys and values have a projection each, which allows them inputs of their own; else one
    matrix makes both.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        *,
        bias: Bias = "full",
        separate: bool = False,
    ):
        super().__init__()
        context_dim = context_dim or dim
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias != "none")
        if separate:
            self.k = nn.Linear(context_dim, dim, bias=bias == "full")
            self.v = nn.Linear(context_dim, dim, bias=bias != "none")
        elif bias == "query_value":
            self.kv: nn.Linear = KeyValue(context_dim, dim)
        else:
            self.kv = nn.Linear(context_dim, 2 * dim, bias=bias == "full")
        self.separate = separate
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, context: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """[B, T, dim]. x: [B, T, dim]; context: [B, S, context_dim], what keys are made of, and values too
        unless ``values`` are given; mask: bool [B, T, S], True = may be looked at."""
        if self.separate:
            k, v = self.k(context), self.v(context if values is None else values)
        elif values is None:
            k, v = self.kv(context).chunk(2, dim=-1)
        else:
            raise ValueError("values of their own take a CrossAttention(separate=True)")
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (self.q(x), k, v))
        if mask is not None:
            mask = mask.unsqueeze(1)
        if fused_attention_pays(x):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            out = scores.softmax(-1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """A pre-norm block: tokens look at a context and, where asked for, at each other; then an MLP.

    self_attention: None, or whether it comes "before" the cross-attention or "after" it.
    context_norm: "none" leaves the context as it comes, "shared" norms it, "separate" gives keys and
    values a norm each (takes ``separate``).
    layer_scale: initial factor on each residual branch (arXiv:2103.17239); None leaves it out.
    The other options are CrossAttention's.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        *,
        mlp_ratio: float = 4.0,
        self_attention: Literal["before", "after"] | None = None,
        context_norm: Literal["none", "shared", "separate"] = "shared",
        bias: Bias = "full",
        separate: bool = False,
        layer_scale: float | None = None,
    ):
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, init_values=layer_scale)

        context_dim = context_dim or dim
        self.self_attention = self_attention
        if self_attention is not None:
            self.norm_self = LayerNorm(dim)
            self.attn = Attention(dim, heads, qkv_bias=bias == "full")
            if bias == "query_value":
                self.attn.qkv = QueryValueBias(dim)
            self.ls_self = scale()
        self.norm_query = LayerNorm(dim)
        self.norm_key = nn.Identity() if context_norm == "none" else LayerNorm(context_dim)
        self.norm_value = LayerNorm(context_dim) if context_norm == "separate" else None
        self.cross = CrossAttention(dim, heads, context_dim, bias=bias, separate=separate)
        self.ls_cross = scale()
        self.norm_mlp = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls_mlp = scale()

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, dim]. x: [B, T, dim], context: [B, S, context_dim], mask: as of CrossAttention."""
        if self.self_attention == "before":
            x = self._look_at_each_other(x)
        values = None if self.norm_value is None else self.norm_value(context)
        x = x + self.ls_cross(self.cross(self.norm_query(x), self.norm_key(context), values, mask))
        if self.self_attention == "after":
            x = self._look_at_each_other(x)
        return x + self.ls_mlp(self.mlp(self.norm_mlp(x)))

    def _look_at_each_other(self, x: Tensor) -> Tensor:
        choose_attention([self], x)
        return x + self.ls_self(self.attn(self.norm_self(x)))


class CrossDecoder(nn.Module):
    """Cross-attention blocks, a norm and a linear head. ``options`` are CrossBlock's."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        out_features: int,
        context_dim: int | None = None,
        **options: Any,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(dim, heads, context_dim, **options) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, out_features)
        xavier_(self)

    def forward(self, x: Tensor, context: Tensor | Sequence[Tensor], last: int | None = None) -> Tensor:
        """Predictions for the ``last`` of the tokens x [B, T, dim], or for all: [B, last, out_features].

        context: [B, S, context_dim] for all blocks, or a sequence of one for each block.
        """
        contexts = [context] * len(self.blocks) if isinstance(context, Tensor) else context
        for block, seen in zip(self.blocks, contexts, strict=True):
            x = block(x, seen)
        return self.head(self.norm(x if last is None else x[:, -last:]))

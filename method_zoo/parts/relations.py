"""How tokens relate to each other, as what one network learns from another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimbench.errors import UserError


class Relations(NamedTuple):
    """Logarithms of how each token relates to each other one, [B, heads, T, T], rows summing up to 1."""

    query_key: Tensor  # what attention is made of
    value_value: Tensor


def check_heads(width: int, heads: int) -> None:
    """Raises UserError where a network of ``width`` cannot be compared in ``heads`` relation heads."""
    if width % heads:
        raise UserError(
            f"a width of {width} does not divide into {heads} relation heads, which are the teacher's "
            "attention heads; take a backbone or a teacher of another size"
        )


def relations(query_key_value: tuple[Tensor, Tensor, Tensor], heads: int) -> Relations:
    """Softmax of scaled products of queries and keys, and of values with themselves, in ``heads`` heads.

    query_key_value: [B, h, T, D / h] each, cut into heads anew: two networks' relations have one shape
    whatever their widths and heads. As in MiniLMv2 (arXiv:2012.15828) and TinyMIM (arXiv:2301.01296), in
    the tensors' precision outside of autocast.

    Raises UserError where the width does not divide into ``heads``.
    """
    query = query_key_value[0]
    check_heads(query.shape[1] * query.shape[3], heads)

    def recut(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)

    def related(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ b.transpose(-2, -1)) * a.shape[-1] ** -0.5).log_softmax(-1)

    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (recut(x if x.dtype == torch.float64 else x.float()) for x in query_key_value)
        return Relations(related(query, key), related(value, value))


def divergence(found: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of ``found`` from ``target``, mean over rows. Logarithms, [..., T]."""
    return (target.exp() * (target - found)).sum(-1).mean()

"""Pooling by attention over frozen tokens, many candidates at once.

Tokens are frozen and each pooling has few queries, which allows a shortcut: q · (K x) = (Kᵀ q) · x, and the
weights of a softmax sum to one, so that V may be applied after pooling. Keys and values of all tokens are
never computed, and the cost an image falls from 2 N D² to 2 N D · queries; all candidates that read one
layer share two matrix products over its tokens. A bias of the keys shifts all scores of a query alike and
would do nothing; it is left out. Affine maps of norms before keys and values are folded in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# capi: one query, keys and values (arXiv:2502.08769, eval_classification.py). vjepa: a cross-attention block
# with norms, residual and MLP (arXiv:2404.08471, attentive_pooler.py). cae: norms of query, keys and values,
# and batch norm behind (arXiv:2202.03026, modeling_finetune.py). aim: batch norm before, no biases
# (arXiv:2401.08541, AttentionPoolingClassifier). ep: many queries that are compared with the tokens
# themselves, each pools its part of the values (arXiv:2506.10178).
Pooling = Literal["capi", "vjepa", "cae", "aim", "ep"]

Start = Literal["zeros", "ones", "trunc", "rescaled", "uniform", "small"]

EP_QUERIES, AIM_HEADS, HEAD_WIDTH = 32, 12, 64
NORMED_AFTER = frozenset({"cae"})  # batch norm of what was pooled
NORMED_BEFORE = frozenset({"aim"})  # batch norm of the tokens
BN_EPS = 1e-6
LN_EPS = {"vjepa": 1e-5, "cae": 1e-6}  # torch's default; CAE's

Parameters = Mapping[str, Tensor]  # of the candidates of one kind, [C, ...]


class Kind(NamedTuple):
    """A parameter: its shape, what it starts from, and whether it decays."""

    shape: tuple[int, ...]
    start: Start
    decays: bool


def heads_of(pooling: Pooling, width: int) -> int:
    """How many heads attend, or for ``ep`` queries: the most that the papers have and ``width`` allows."""
    most = {"ep": EP_QUERIES, "aim": AIM_HEADS}.get(pooling, max(1, width // HEAD_WIDTH))
    return next(heads for heads in range(most, 0, -1) if width % heads == 0)


def parameters_of(pooling: Pooling, width: int, classes: int) -> dict[str, Kind]:
    """The trained parameters of a pooling and the linear layer behind it, as the papers' code has them."""

    def norm(name: str) -> dict[str, Kind]:
        return {
            f"{name}.weight": Kind((width,), "ones", False),
            f"{name}.bias": Kind((width,), "zeros", False),
        }

    def linear(name: str, rows: int, columns: int, start: Start, bias: Start | None) -> dict[str, Kind]:
        found = {f"{name}.weight": Kind((rows, columns), start, True)}
        return found | ({f"{name}.bias": Kind((rows,), bias, False)} if bias else {})

    square = (width, width)
    if pooling == "capi":
        return {
            "query": Kind((width,), "trunc", True),
            **linear("k", *square, "trunc", None),
            **linear("v", *square, "trunc", "zeros"),
            **linear("linear", classes, width, "trunc", "zeros"),
        }
    if pooling == "vjepa":
        return {
            "query": Kind((width,), "trunc", True),
            **norm("norm1"),
            **linear("q", *square, "trunc", "zeros"),
            **linear("k", *square, "trunc", None),
            **linear("v", *square, "trunc", "zeros"),
            **linear("proj", *square, "rescaled", "zeros"),
            **norm("norm2"),
            **linear("fc1", 4 * width, width, "trunc", "zeros"),
            **linear("fc2", width, 4 * width, "rescaled", "zeros"),
            **linear("linear", classes, width, "uniform", "zeros"),
        }
    if pooling == "cae":
        return {
            "query": Kind((width,), "zeros", True),
            **norm("norm_q"),
            **norm("norm_k"),
            **norm("norm_v"),
            **linear("q", *square, "trunc", "zeros"),
            **linear("k", *square, "trunc", None),
            **linear("v", *square, "trunc", "zeros"),
            **linear("proj", *square, "trunc", "zeros"),
            **linear("linear", classes, width, "small", "zeros"),
        }
    if pooling == "aim":
        return {
            "query": Kind((width,), "trunc", True),
            **linear("k", *square, "uniform", None),
            **linear("v", *square, "uniform", None),
            **linear("linear", classes, width, "uniform", None),
        }
    return {
        "query": Kind((heads_of("ep", width), width), "trunc", True),
        **linear("v", *square, "uniform", None),
        **linear("linear", classes, width, "uniform", "zeros"),
    }


def begin(kind: Kind, generator: torch.Generator) -> Tensor:
    """First values of one candidate's parameter."""
    tensor = torch.zeros(kind.shape)
    if kind.start == "ones":
        tensor.fill_(1.0)
    elif kind.start == "uniform":  # nn.Linear's own
        bound = kind.shape[-1] ** -0.5
        tensor.uniform_(-bound, bound, generator=generator)
    elif kind.start != "zeros":
        std = 0.01 if kind.start == "small" else 0.02
        torch.nn.init.trunc_normal_(tensor, std=std, generator=generator)
        if kind.start == "rescaled":  # by the depth of the block, 1
            tensor.div_(2**0.5)
    return tensor


def pool(
    pooling: Pooling,
    p: Parameters,
    tokens: Tensor,
    after: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits [C, B, classes] of C candidates. tokens: [B, N, D], for ``aim`` batch-normed already.

    after: batch norm [C, B, D] -> the same, of what was pooled; for ``cae``.
    """
    width = tokens.shape[2]
    heads = heads_of(pooling, width)
    if pooling == "ep":
        pooled = attend(tokens, p["query"] * width**-0.5)
        return linear(values(pooled, p["v.weight"], heads), p, "linear")
    if pooling in ("capi", "aim"):
        pooled = attend(tokens, keys_of(p["query"], p["k.weight"], heads))
        return linear(values(pooled, p["v.weight"], heads, p.get("v.bias")), p, "linear")
    tokens = F.layer_norm(tokens, (width,), eps=LN_EPS[pooling])
    if pooling == "vjepa":
        query = one_query(p["query"], p)
        pooled = attend(tokens, keys_of(query, p["k.weight"], heads) * p["norm1.weight"][:, None])
        pooled = pooled * p["norm1.weight"][:, None, None] + p["norm1.bias"][:, None, None]
        x = linear(values(pooled, p["v.weight"], heads, p["v.bias"]), p, "proj")
        x = x + p["query"][:, None]
        inside = norm(x, p, "norm2", LN_EPS[pooling])
        x = x + linear(F.gelu(linear(inside, p, "fc1")), p, "fc2")
        return linear(x, p, "linear")
    query = one_query(norm(p["query"][:, None], p, "norm_q", LN_EPS[pooling])[:, 0], p)
    pooled = attend(tokens, keys_of(query, p["k.weight"], heads) * p["norm_k.weight"][:, None])
    pooled = pooled * p["norm_v.weight"][:, None, None] + p["norm_v.bias"][:, None, None]
    x = linear(values(pooled, p["v.weight"], heads, p["v.bias"]), p, "proj")
    assert after is not None, "what cae pools is batch-normed"
    return linear(after(x), p, "linear")


def one_query(query: Tensor, p: Parameters) -> Tensor:
    """Queries [C, D] through the layer ``q``."""
    return linear(query[:, None], p, "q")[:, 0]


def keys_of(query: Tensor, weight: Tensor, heads: int) -> Tensor:
    """What tokens are compared with: scaled Kᵀ q of each head, [C, heads, D]. query: [C, D]."""
    count, width = query.shape
    size = width // heads
    by_head = weight.view(count * heads, size, width)
    found = torch.bmm(query.view(count * heads, 1, size), by_head)
    return found.view(count, heads, width) * size**-0.5


def attend(tokens: Tensor, query: Tensor) -> Tensor:
    """Tokens [B, N, D] averaged by the softmax of their scores: [C, B, heads, D]. query: [C, heads, D]."""
    scores = tokens @ query.flatten(0, 1).T  # [B, N, C heads]
    pooled = scores.softmax(1).transpose(1, 2) @ tokens
    return pooled.unflatten(1, query.shape[:2]).transpose(0, 1)


def values(pooled: Tensor, weight: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Each head's part of the values of what it pooled, side by side: [C, B, D]. weight: [C, D, D]."""
    count, batch, _, width = pooled.shape
    by_head = pooled.permute(0, 2, 1, 3).reshape(count * heads, batch, width)
    found = torch.bmm(by_head, weight.view(count * heads, width // heads, width).transpose(1, 2))
    found = found.view(count, heads, batch, -1).transpose(1, 2).reshape(count, batch, width)
    return found if bias is None else found + bias[:, None]


def linear(x: Tensor, p: Parameters, name: str) -> Tensor:
    """Each candidate's linear layer. x: [C, B, D]."""
    found = torch.bmm(x, p[f"{name}.weight"].transpose(1, 2))
    bias = p.get(f"{name}.bias")
    return found if bias is None else found + bias[:, None]


def norm(x: Tensor, p: Parameters, name: str, eps: float) -> Tensor:
    """Each candidate's layer norm. x: [C, B, D]."""
    x = F.layer_norm(x, x.shape[-1:], eps=eps)
    return x * p[f"{name}.weight"][:, None] + p[f"{name}.bias"][:, None]

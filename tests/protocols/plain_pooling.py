"""The attentive probes as their papers' code has them: modules, keys and values of all tokens, autograd."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def split(x: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, heads, N, D / heads]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[B, n, D] for n queries."""
    return F.scaled_dot_product_attention(*(split(x, heads) for x in (q, k, v))).transpose(1, 2).flatten(2)


class Capi(nn.Module):
    """AttnPoolClassifier."""

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(width))
        self.k, self.v = nn.Linear(width, width), nn.Linear(width, width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query.expand(len(x), 1, -1)
        return self.linear(attention(q, self.k(x), self.v(x), self.heads)[:, 0])


class Vjepa(nn.Module):
    """AttentiveClassifier: CrossAttentionBlock and a linear layer."""

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query.expand(len(x), 1, -1)
        x = self.norm1(x)
        q = q + self.proj(attention(self.q(q), self.k(x), self.v(x), self.heads))
        q = q + self.fc2(F.gelu(self.fc1(self.norm2(q))))
        return self.linear(q[:, 0])


class Cae(nn.Module):
    """AttentiveBlock, batch norm and a linear layer."""

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(width))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.q, self.v, self.proj = (nn.Linear(width, width) for _ in range(3))
        self.k = nn.Linear(width, width, bias=False)
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.norm_q(self.query.expand(len(x), 1, -1)))
        out = self.proj(attention(q, self.k(self.norm_k(x)), self.v(self.norm_v(x)), self.heads))
        return self.linear(self.bn(out[:, 0]))


class Aim(nn.Module):
    """AttentionPoolingClassifier with one query."""

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(width))
        self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x.transpose(1, 2)).transpose(1, 2)
        q = self.query.expand(len(x), 1, -1)
        return self.linear(attention(q, self.k(x), self.v(x), self.heads)[:, 0])


class Ep(nn.Module):
    """EfficientProbing: each query's scores pool its own part of the values."""

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(heads, width))
        self.v = nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query * x.shape[2] ** -0.5 @ x.transpose(1, 2)).softmax(2)  # [B, queries, N]
        parts = split(self.v(x), self.heads)  # [B, queries, N, D / queries]
        return self.linear((weights[:, :, None] @ parts).flatten(1))


MODULES = {"capi": Capi, "vjepa": Vjepa, "cae": Cae, "aim": Aim, "ep": Ep}


def load(pooling: str, parameters: dict[str, Tensor], heads: int) -> nn.Module:
    """The module of a candidate's parameters, [1, ...] each."""
    classes, width = parameters["linear.weight"].shape[1:]
    module = MODULES[pooling](width, classes, heads)
    state = {name: value[0].detach().clone() for name, value in parameters.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name == "k.bias" or name.startswith("bn.") for name in missing)
    if "k.bias" in missing:
        nn.init.normal_(module.k.bias, generator=torch.Generator().manual_seed(0))  # is to change nothing
    return module


def optimizer_of(name: str, module: nn.Module, lr: float, decay: float) -> torch.optim.Optimizer:
    """Decay for matrices and queries, none for biases and norms."""
    plain = [n for n, _ in module.named_parameters() if n.endswith("bias") or n.startswith("norm")]
    named = dict(module.named_parameters())
    named.pop("k.bias", None)  # its gradient is rounding, which Adam would make steps of
    groups = [
        {"params": [p for n, p in named.items() if n not in plain], "weight_decay": decay},
        {"params": [p for n, p in named.items() if n in plain], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    return partial(torch.optim.AdamW, betas=(0.9, 0.95))(groups, lr=lr)

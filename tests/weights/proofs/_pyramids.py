"""What the proofs write official pyramids anew with: functions of a state under its official names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def randomised(state: State, fixed: str = "pos_embed", seed: int = 3) -> dict[str, Tensor]:
    """The state with every tensor drawn anew but for fixed tables and indices."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value
        if not value.is_floating_point() or name.endswith(fixed)
        else (torch.randn(value.shape, generator=generator) * 0.2).double()
        for name, value in state.items()
    }


def norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def mlp(state: State, name: str, x: Tensor) -> Tensor:
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", x)))


def attention(state: State, name: str, x: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """bias: [heads, T, T], or with a batch before."""
    qkv = linear(state, f"{name}.qkv", x)
    if f"{name}.q_bias" in state:
        q, v = state[f"{name}.q_bias"], state[f"{name}.v_bias"]
        qkv = qkv + torch.cat([q, torch.zeros_like(q), v])
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    mixed = (scores if bias is None else scores + bias).softmax(-1) @ v
    return linear(state, f"{name}.proj", mixed.transpose(1, 2).flatten(2))


def block(
    state: State, name: str, x: Tensor, heads: int, eps: float = 1e-6, bias: Tensor | None = None
) -> Tensor:
    """A transformer block, of an MLP alone where the state has no attention for it."""
    if f"{name}.attn.qkv.weight" in state:
        y = attention(state, f"{name}.attn", norm(state, f"{name}.norm1", x, eps), heads, bias)
        x = x + state.get(f"{name}.gamma_1", 1.0) * y
    return x + state.get(f"{name}.gamma_2", 1.0) * mlp(
        state, f"{name}.mlp", norm(state, f"{name}.norm2", x, eps)
    )


def offsets(side: int) -> Tensor:
    """Rows of a table of relative positions for a window, [side², side²]."""
    places = [(row, column) for row in range(side) for column in range(side)]
    return torch.tensor(
        [[(a - c + side - 1) * (2 * side - 1) + b - d + side - 1 for c, d in places] for a, b in places]
    )


def merged(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """Patch merging of cells [..., H, W, D]."""
    corners = [x[..., i::2, j::2, :] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return linear(state, f"{name}.reduction", norm(state, f"{name}.norm", torch.cat(corners, dim=-1), eps))


def block_shapes(name: str, dim: int, inner: int, attends: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what ``block`` reads, without biases of positions and layer scales."""
    widths = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)} if attends else {}
    widths |= {"mlp.fc1": (inner, dim), "mlp.fc2": (dim, inner)}
    found: dict[str, tuple[int, ...]] = {}
    for layer, (outputs, inputs) in widths.items():
        found |= {f"{name}.{layer}.weight": (outputs, inputs), f"{name}.{layer}.bias": (outputs,)}
    for layer in ("norm1", "norm2") if attends else ("norm2",):
        found |= {f"{name}.{layer}.weight": (dim,), f"{name}.{layer}.bias": (dim,)}
    return found


def shown(mask: Tensor) -> Tensor:
    """Raster indices of what a mask (1 = hidden) leaves, [B, n]."""
    return (mask == 0).nonzero()[:, 1].view(len(mask), -1)


def gathered(x: Tensor, kept: Tensor) -> Tensor:
    return torch.stack([row[index] for row, index in zip(x, kept, strict=True)])


def filled(x: Tensor, kept: Tensor, token: Tensor, n: int) -> Tensor:
    """Tokens at their places among ``n``, a mask token at all others."""
    whole = token.expand(len(x), n, -1).clone()
    for b, index in enumerate(kept):
        whole[b, index] = x[b]
    return whole


def decoded(state: State, x: Tensor, heads: int, eps: float = 1e-6) -> Tensor:
    """An official decoder's prediction from what enters its first block."""
    depth = len({name.split(".")[1] for name in state if name.startswith("decoder_blocks.")})
    for i in range(depth):
        x = block(state, f"decoder_blocks.{i}", x, heads, eps)
    return linear(state, "decoder_pred", norm(state, "decoder_norm", x, eps))

"""EVA-02's layout and UTA's: against the official forward written anew, in the official names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.weights.proof import Proof, images_of, small

from ._reference import noise, within

WIDTH, DEPTH, HEADS, HIDDEN = 48, 3, 3, 128
State = dict[str, Tensor]


def random_state(patch: int, side: int, sub_norms: bool, reference: int) -> State:
    """An official state dict; reference: patches a side of the images whose places are whole numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double() * 0.2

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> State:
        return {f"{name}.weight": draw(rows, columns)} | ({f"{name}.bias": draw(rows)} if bias else {})

    def norm(name: str, width: int = WIDTH) -> State:
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    cos, sin = turns(side, reference)
    rope = {"rope.freqs_cos": cos, "rope.freqs_sin": sin}
    state = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, 1 + side * side, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, patch, patch),
        "patch_embed.proj.bias": draw(WIDTH),
        **norm("norm"),
        **rope,
    }
    for i in range(DEPTH):
        at = f"blocks.{i}."
        state |= norm(f"{at}norm1") | norm(f"{at}norm2") | linear(f"{at}attn.proj", WIDTH, WIDTH)
        state |= {f"{at}attn.q_bias": draw(WIDTH), f"{at}attn.v_bias": draw(WIDTH)}
        state |= within(f"{at}attn.", rope)
        if sub_norms:
            for name in ("q_proj", "k_proj", "v_proj"):
                state |= linear(f"{at}attn.{name}", WIDTH, WIDTH, bias=False)
            state |= linear(f"{at}mlp.w1", HIDDEN, WIDTH) | linear(f"{at}mlp.w2", HIDDEN, WIDTH)
            state |= norm(f"{at}mlp.ffn_ln", HIDDEN)
        else:
            state |= linear(f"{at}attn.qkv", 3 * WIDTH, WIDTH, bias=False)
            state |= linear(f"{at}mlp.w12", 2 * HIDDEN, WIDTH)
        state |= linear(f"{at}mlp.w3", WIDTH, HIDDEN)
    return state


def turns(side: int, reference: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [side², head] of each patch: row and column, each at frequencies in pairs."""
    half = WIDTH // HEADS // 2
    frequencies = [10000 ** (-2 * k / half) for k in range(half // 2) for _ in range(2)]
    steps = [i / side * reference for i in range(side)]
    angles = [[p * f for p in (y, x) for f in frequencies] for y in steps for x in steps]
    table = torch.tensor(angles, dtype=torch.float64)
    return table.cos(), table.sin()


def forward(state: State, images: Tensor) -> Tensor:
    """All tokens through the final norm, [B, T, D], as ``forward_features`` of the official codes."""

    def norm(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.layer_norm(x, (len(weight),), weight, state[f"{name}.bias"], 1e-6)

    def turn(x: Tensor) -> Tensor:
        """x: [B, heads, T, d]; the class token stays."""
        pairs = x[:, :, 1:].unflatten(-1, (-1, 2))
        other = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        turned = x[:, :, 1:] * state["rope.freqs_cos"] + other * state["rope.freqs_sin"]
        return torch.cat([x[:, :, :1], turned], dim=2)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    patch = state["patch_embed.proj.weight"]
    x = F.conv2d(images, patch, state["patch_embed.proj.bias"], stride=patch.shape[-1])
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state["pos_embed"]
    for i in range(DEPTH):
        at = f"blocks.{i}."
        y = norm(x, f"{at}norm1")
        if f"{at}attn.qkv.weight" in state:
            q, k, v = linear(y, f"{at}attn.qkv").chunk(3, dim=-1)
        else:
            q, k, v = (linear(y, f"{at}attn.{name}_proj") for name in "qkv")
        q, v = q + state[f"{at}attn.q_bias"], v + state[f"{at}attn.v_bias"]
        q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (q, k, v))
        weights = (turn(q) @ turn(k).transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{at}attn.proj")
        y = norm(x, f"{at}norm2")
        if f"{at}mlp.w12.weight" in state:
            gate, value = linear(y, f"{at}mlp.w12").chunk(2, dim=-1)
            y = F.silu(gate) * value
        else:
            y = norm(F.silu(linear(y, f"{at}mlp.w1")) * linear(y, f"{at}mlp.w2"), f"{at}mlp.ffn_ln")
        x = x + linear(y, f"{at}mlp.w3")
    return norm(x, "norm")


SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 8 / 3}


def _proof(name: str, state: State, content: Any, size: int, **args: Any) -> Proof:
    images = images_of(size)
    out = forward(state, images)
    entry = small(name, image_size=size)
    given = {**entry.options.get("model_args", {}), **SMALL, **args}
    entry = entry.model_copy(update={"options": {"model_args": given}})
    # Rotations are float32 in timm's model.
    return Proof(
        entry, content, images, out[:, 0], out[:, 1:], "the official forward in plain steps", tolerance=1e-5
    )


def masked(name: str, sub_norms: bool, container: str) -> Proof:
    state = random_state(14, 5, sub_norms, 5)
    head = {
        "mask_token": noise(1, 1, WIDTH),
        "lm_head.weight": noise(64, WIDTH),
        "lm_head.bias": noise(64),
    }
    return _proof(name, state, {container: state | head}, 70, ref_feat_shape=[5, 5])


def uta(name: str, patch: int, side: int) -> Proof:
    state = random_state(patch, side, True, 16)
    rest = {
        "visual.head.weight": noise(32, WIDTH),
        "visual.head.bias": noise(32),
        "text.positional_embedding": noise(7, 16),
        "logit_scale": noise(1),
    }
    return _proof(name, state, within("visual.", state) | rest, side * patch)


PROOFS = {
    "sub-layer norms": lambda: masked("eva02@vit_base_patch14", True, "module"),
    "gates packed": lambda: masked("eva02@vit_small_patch14", False, "model"),
    "uta": lambda: uta("uta@vit_base", 16, 3),
    "uta, patches of 14": lambda: uta("uta@vit_giant_patch14-336px", 14, 4),
}

"""CAPI's layout: against the official forward written anew, in the official names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.weights.proof import Proof, images_of, part, record, small

from ._reference import noise, within

WIDTH, DEPTH, HEADS, REGISTERS, SIDE, PATCH = 48, 3, 3, 8, 5, 14
State = dict[str, Tensor]


def random_state() -> State:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double() * 0.2

    state = {
        "registers": draw(1, REGISTERS, WIDTH),
        "mask_token": draw(1, WIDTH),
        "patch_embed.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.bias": draw(WIDTH),
    }
    for block in [*(f"encoder.blocks.{i}." for i in range(DEPTH)), "decoder.blocks.0.", "decoder.blocks.1."]:
        state |= {
            f"{block}residual1.fn.{n}.weight": draw(WIDTH, WIDTH) for n in ("q_proj", "k_proj", "v_proj")
        }
        state[f"{block}residual1.fn.proj.weight"] = draw(WIDTH, WIDTH)
        state[f"{block}residual1.fn.rope.freqs"] = frequencies(WIDTH // HEADS)
        state[f"{block}residual2.fn.fc1.weight"] = draw(4 * WIDTH, WIDTH)
        state[f"{block}residual2.fn.fc2.weight"] = draw(WIDTH, 4 * WIDTH)
        state |= {f"{block}residual{i}.norm.weight": 1 + draw(WIDTH) for i in (1, 2)}
    return state


def frequencies(dim: int) -> Tensor:
    """Two rows, of what turns with the row and with the column: 7 turns over the image down to 7e-4."""
    turns = [7.0 * 1e-4 ** (k / (dim // 4 - 1)) * 2 * math.pi for k in range(dim // 4)]
    half, zero = torch.tensor(turns * 2).double(), torch.zeros(dim // 2).double()
    return torch.stack([torch.cat([half, zero]), torch.cat([zero, half])])


def rms(x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def attend(state: State, at: str, x: Tensor, places: Tensor, context: Tensor, there: Tensor) -> Tensor:
    def heads(name: str, tokens: Tensor) -> Tensor:
        return (tokens @ state[f"{at}{name}.weight"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def turn(y: Tensor, where: Tensor) -> Tensor:
        angle = (where @ state[f"{at}rope.freqs"]).unsqueeze(1)
        first, second = y.chunk(2, -1)
        return y * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    q, k = turn(heads("q_proj", x), places), turn(heads("k_proj", context), there)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).softmax(-1)
    return (weights @ heads("v_proj", context)).transpose(1, 2).flatten(2) @ state[f"{at}proj.weight"].T


def block(
    state: State,
    at: str,
    x: Tensor,
    places: Tensor,
    context: Tensor | None = None,
    there: Tensor | None = None,
) -> Tensor:
    y = rms(x, state[f"{at}residual1.norm.weight"])
    here = places if there is None else there
    x = x + attend(state, f"{at}residual1.fn.", y, places, y if context is None else context, here)
    y = rms(x, state[f"{at}residual2.norm.weight"])
    hidden = F.gelu(y @ state[f"{at}residual2.fn.fc1.weight"].T)
    return x + hidden @ state[f"{at}residual2.fn.fc2.weight"].T


def forward(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """Global vector [B, D] and feature map [B, N, D], as ``EncoderDecoder.forward``."""
    patch = state["patch_embed.weight"]
    x = F.conv2d(images, patch, state["patch_embed.bias"], stride=patch.shape[-1])
    side, x = x.shape[-1], x.flatten(2).transpose(1, 2)
    axis = torch.linspace(0, 1, side, dtype=x.dtype)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2)
    step = [i / (REGISTERS // 4) for i in range(REGISTERS // 4)]
    corners = [(s, 0) for s in step] + [(1, s) for s in step] + [(1 - s, 1) for s in step]
    edge = torch.tensor([corners + [(0, 1 - s) for s in step]]).to(x.dtype)
    x = torch.cat([state["registers"].expand(len(x), -1, -1), x], 1)
    everywhere = torch.cat([edge, places], 1)
    for i in range(DEPTH):
        x = block(state, f"encoder.blocks.{i}.", x, everywhere)
    x = rms(x)
    asked = state["mask_token"].expand(len(x), side * side, -1)
    answers = block(state, "decoder.blocks.0.", asked, places, x, everywhere)
    return rms(answers).mean(1), x[:, REGISTERS:]


def _proof(content: State, images: Tensor, with_global: bool, **changes: Any) -> Proof:
    state = {name.removeprefix("backbone."): value for name, value in content.items()}
    vector, features = forward(state, images)
    options = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "registers": REGISTERS}
    name = f"capi@vit_large_patch14{'-global' * with_global}"
    return Proof(
        small(name, image_size=images.shape[-1], options=options, **changes),
        content,
        images,
        rms(vector) if with_global else None,
        features,
        "the official forward in plain steps",
        # Places and turns are float32 in our encoder, and turn by up to 44.
        tolerance=2e-5,
    )


def whole_images(with_global: bool) -> Proof:
    head = {"head.layer.weight": noise(40, WIDTH), "head.layer.bias": noise(40)}
    content = within("backbone.", random_state()) | head
    return _proof(content, images_of(SIDE * PATCH), with_global)


def official(case: str, network: str, with_global: bool) -> Proof:
    """The state of an official network, under the names that its code gave."""
    run = record("capi", case)
    return _proof(
        part(run, network),
        run.inputs["images"],
        with_global,
        backbone=f"vit_large_patch{run.config['patch_size']}",
    )


PROOFS = {
    "encoder": lambda: whole_images(False),
    "with the global vector": lambda: whole_images(True),
    "official teacher": lambda: official("pos0", "teacher", False),
    "official student, with the global vector": lambda: official("pos1", "student", True),
}

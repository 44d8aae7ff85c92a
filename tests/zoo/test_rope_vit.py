"""The encoder with rotary positions against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones import build
from method_zoo.backbones.rope_vit import RopeViT
from method_zoo.backbones.rotary import Rotary, RotaryAttention, RotaryBlock
from method_zoo.capi import CAPI, Predictor
from mimbench.encoder import Backbone
from mimbench.errors import UserError

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "positions": "rope", "registers": 8}


def encoder(**options: Any) -> RopeViT:
    """A tiny one of 5 x 5 patches in float64, every parameter away from its special initial value."""
    backbone = build("vit_micro_patch4", 20, **{**TINY, **options}).double()
    assert isinstance(backbone, RopeViT)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return backbone


def images(n: int = 3, side: int = 20) -> Tensor:
    return torch.randn(n, 3, side, side, dtype=torch.float64)


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def turned(x: Tensor, place: tuple[float, float]) -> Tensor:
    """A query or key [d] at a place, channel by channel as CAPI's code has it."""
    d = len(x)
    out = torch.empty_like(x)
    for c in range(d):
        k = c % (d // 2) % (d // 4)
        steps = max(d // 4 - 1, 1)
        turns = 7 * (7 / 7e-4) ** (-k / steps)
        angle = 2 * math.pi * turns * place[0 if c < d // 2 else 1]
        partner = -x[c + d // 2] if c < d // 2 else x[c - d // 2]
        out[c] = x[c] * math.cos(angle) + partner * math.sin(angle)
    return out


def test_queries_and_keys_turn_with_their_places() -> None:
    places = torch.rand(2, 5, 2, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    found = Rotary(16).double()(places)(x)
    for b in range(2):
        for h in range(3):
            for t in range(5):
                expected = turned(x[b, h, t], tuple(places[b, t].tolist()))
                # frequencies are float32 numbers, as in the released code
                torch.testing.assert_close(found[b, h, t], expected, rtol=1e-4, atol=1e-4)


def test_attention_looks_at_the_context() -> None:
    attention, rotary = RotaryAttention(32, 2).double(), Rotary(16).double()
    x, context = (torch.randn(2, n, 32, dtype=torch.float64) for n in (4, 7))
    here, there = (rotary(torch.rand(2, n, 2, dtype=torch.float64)) for n in (4, 7))
    found = attention(x, here, context, there)
    q, k, v = (
        layer(t).view(2, -1, 2, 16)
        for layer, t in ((attention.q, x), (attention.k, context), (attention.v, context))
    )
    heads = []
    for h in range(2):
        queries, keys = (r(t[:, :, h].unsqueeze(1)).squeeze(1) for r, t in ((here, q), (there, k)))
        heads.append((queries @ keys.transpose(1, 2) / 4).softmax(-1) @ v[:, :, h])
    assert_close(found, attention.proj(torch.cat(heads, dim=-1)))


def test_a_block_is_pre_norm_without_biases() -> None:
    block, rotary = RotaryBlock(32, 2).double(), Rotary(16).double()
    assert not [name for name, _ in block.named_parameters() if "bias" in name]
    x, here = torch.randn(2, 4, 32, dtype=torch.float64), rotary(torch.rand(2, 4, 2, dtype=torch.float64))

    def normed(t: Tensor) -> Tensor:
        return t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    y = x + block.attn(normed(x), here)
    assert_close(block(x, here), y + block.mlp.fc2(F.gelu(block.mlp.fc1(normed(y)))))


def test_hidden_pixels_are_never_looked_at() -> None:
    backbone, mask = encoder(), torch.rand(3, 25).argsort(1) < 16
    one = images()
    other = torch.where(mask.view(3, 1, 5, 5).repeat_interleave(4, 2).repeat_interleave(4, 3), images(), one)
    a, b = backbone.encode(one, mask), backbone.encode(other, mask)
    assert_close(a.patches, b.patches)
    assert a.patches.shape == (3, 9, 32)
    assert torch.equal(a.kept, (~mask).nonzero()[:, 1].view(3, 9))


def test_registers_lie_around_what_is_visible() -> None:
    mask = torch.ones(1, 5, 5, dtype=torch.bool)
    mask[:, 1:3, 2:5] = False  # rows 0.25 to 0.5, columns 0.5 to 1
    seen = encoder().see(images(1), mask.flatten(1))
    expected = [
        (0.25, 0.5),
        (0.375, 0.5),
        (0.5, 0.5),
        (0.5, 0.75),
        (0.5, 1),
        (0.375, 1),
        (0.25, 1),
        (0.25, 0.75),
    ]
    assert_close(seen.places[0, :8], torch.tensor(expected, dtype=torch.float64))
    assert_close(seen.places[0, 8], torch.tensor([0.25, 0.5], dtype=torch.float64))  # row, then column
    assert_close(seen.places[0, -1], torch.tensor([0.5, 1], dtype=torch.float64))


def test_layers_and_attention_are_those_of_the_pass() -> None:
    backbone, x = encoder(), images()
    out = backbone.encode(x, layers=(-3, -1), attention=True)
    assert_close(backbone.final_norm(out.layers[1][1]), out.patches)
    assert out.cls is None
    assert out.attention.shape == (3, 2, 33, 33)
    assert_close(out.attention.sum(-1), torch.ones(3, 2, 33, dtype=torch.float64))
    tokens, places, _ = backbone._embed(x, None)
    before = backbone._blocks(tokens, places, None)[2]
    block = backbone.blocks[-1]
    values = block.attn.v(block.norm1(before)).view(3, 33, 2, 16).transpose(1, 2)
    looked = block.attn.proj((out.attention @ values).transpose(1, 2).flatten(2))
    assert_close(looked, block.attn(block.norm1(before), backbone.rotary(places)))


def test_other_image_sizes_have_other_grids() -> None:
    backbone = encoder()
    assert isinstance(backbone, Backbone)
    assert backbone.encode(images(2, 32)).patches.shape == (2, 64, 32)
    with pytest.raises(ValueError, match="multiples of 4"):
        backbone.encode(images(2, 18))


def test_drop_path_hangs_on_keys_and_keeps_the_mean() -> None:
    backbone, x = encoder(drop_path=0.5, depth=1), images(1).expand(4000, -1, -1, -1)
    plain = backbone.eval().encode(x[:1]).layers
    backbone.train()
    keys = torch.arange(4000)
    one, again = (backbone.encode(x, keys=keys, layers=(-1,)).layers[0][1] for _ in range(2))
    assert torch.equal(one, again)
    assert len(one[:, 0, 0].unique()) == 4  # both branches, either one or none
    assert plain == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"registers": 6}, "multiple of 4"),
        ({"num_heads": 3}, "3 attention heads"),
        ({"num_heads": 16}, "4 channels"),
    ],
)
def test_an_impossible_encoder_is_a_sentence(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder(**options)


def test_a_mask_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no mask token"):
        encoder().encode(images(), torch.rand(3, 25) < 0.5, fill="token")


def test_predictions_of_patches_do_not_hang_on_each_other() -> None:
    backbone = encoder()
    predictor = Predictor(backbone, 2).double()
    seen = backbone.see(images(), torch.rand(3, 25).argsort(1) < 16)
    index = torch.tensor([[3, 7, 20]] * 3)
    together = predictor(backbone, seen, index, None)
    alone = torch.cat([predictor(backbone, seen, index[:, i : i + 1], None) for i in range(3)], dim=1)
    assert_close(together, alone)


def test_capi_refuses_another_encoder_in_a_sentence() -> None:
    with pytest.raises(UserError, match="rotary"):
        CAPI(build("vit_micro_patch4", 20))


def test_the_teacher_stands_still_at_both_ends_of_the_run() -> None:
    method = CAPI(build("vit_micro_patch4", 20, **TINY), clusters=16)
    momenta = [method.momentum_at(p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    expected = [1, 0.9995, 0.999, 1 - 0.001 * (1 + math.cos(0.4 * math.pi)) / 2]
    assert momenta == pytest.approx([*expected, 1 - 0.001 * (1 + math.cos(0.8 * math.pi)) / 2])

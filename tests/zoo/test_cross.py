"""Cross-attention and its blocks against torch's own attention and against loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import sincos_positions
from method_zoo.parts.cross import CrossAttention, CrossBlock, CrossDecoder

X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))
CONTEXT = torch.randn(3, 7, 20, generator=torch.Generator().manual_seed(1))
KINDS: list[dict[str, Any]] = [
    {"bias": bias, "separate": separate}
    for bias in ("full", "query_value", "none")
    for separate in (True, False)
]


def attention(**kind: Any) -> CrossAttention:
    torch.manual_seed(2)
    made = CrossAttention(12, 3, 20, **kind)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def key_value(made: CrossAttention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and biases of keys and values, whatever they are held in."""
    zero = torch.zeros(12)
    if made.separate:
        biases = (zero if part.bias is None else part.bias for part in (made.k, made.v))
        return (made.k.weight, made.v.weight, *biases)
    bias = torch.cat([zero, zero]) if made.kv.bias is None else made.kv.bias
    if hasattr(made.kv, "v_bias"):
        bias = torch.cat([zero, made.kv.v_bias])
    return (*made.kv.weight.chunk(2), *bias.chunk(2))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cross_attention_is_not_another_attention(kind: dict[str, Any]) -> None:
    """torch's multi-head attention with the same weights says the same."""
    made = attention(**kind)
    reference = nn.MultiheadAttention(12, 3, kdim=20, vdim=20, batch_first=True)
    k, v, k_bias, v_bias = key_value(made)
    q_bias = torch.zeros(12) if made.q.bias is None else made.q.bias
    with torch.no_grad():
        reference.q_proj_weight.copy_(made.q.weight)
        reference.k_proj_weight.copy_(k)
        reference.v_proj_weight.copy_(v)
        reference.in_proj_bias.copy_(torch.cat([q_bias, k_bias, v_bias]))
    reference.out_proj.load_state_dict(made.proj.state_dict())
    expected, _ = reference(X, CONTEXT, CONTEXT, need_weights=False)
    torch.testing.assert_close(made(X, CONTEXT), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_attention_in_half_precision_is_the_same_attention(kind: dict[str, Any]) -> None:
    """Training in bfloat16 on a CPU takes separate products instead of the fused kernel."""
    made = attention(**kind)
    mask = torch.arange(35).view(1, 5, 7).expand(3, -1, -1) % 3 > 0
    for seen in (None, mask):
        exact = made(X, CONTEXT, mask=seen)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = made(X, CONTEXT, mask=seen)
        torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


def test_what_is_masked_is_not_looked_at() -> None:
    made = attention()
    mask = torch.ones(3, 5, 7, dtype=torch.bool)
    mask[:, :, 4:] = False
    torch.testing.assert_close(made(X, CONTEXT, mask=mask), made(X, CONTEXT[:, :4]))


def test_keys_and_values_of_a_joint_matrix_cannot_part() -> None:
    with pytest.raises(ValueError, match="separate=True"):
        attention()(X, CONTEXT, values=CONTEXT)


@pytest.mark.parametrize("order", [None, "before", "after"])
@pytest.mark.parametrize("norm", ["none", "shared", "separate"])
def test_a_block_adds_its_branches_in_the_order_it_says(order: Any, norm: Any) -> None:
    torch.manual_seed(3)
    block = CrossBlock(
        12, 3, 20, self_attention=order, context_norm=norm, separate=norm == "separate", layer_scale=0.5
    )
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)

    def layer_norm(x: Tensor, part: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * part.weight + part.bias

    def among(x: Tensor) -> Tensor:
        return x + block.ls_self.gamma * block.attn(layer_norm(x, block.norm_self))

    x = among(X) if order == "before" else X
    keys = CONTEXT if norm == "none" else layer_norm(CONTEXT, block.norm_key)
    values = layer_norm(CONTEXT, block.norm_value) if norm == "separate" else None
    x = x + block.ls_cross.gamma * block.cross(layer_norm(x, block.norm_query), keys, values)
    x = among(x) if order == "after" else x
    x = x + block.ls_mlp.gamma * block.mlp(layer_norm(x, block.norm_mlp))
    torch.testing.assert_close(block(X, CONTEXT), x)


def test_each_block_of_a_decoder_sees_its_own_context() -> None:
    decoder = CrossDecoder(12, 2, 3, 6, 20, self_attention="before")
    contexts = [CONTEXT, CONTEXT.flip(0)]
    x = decoder.blocks[1](decoder.blocks[0](X, contexts[0]), contexts[1])
    torch.testing.assert_close(decoder(X, contexts), decoder.head(decoder.norm(x)))
    torch.testing.assert_close(decoder(X, contexts, last=2), decoder(X, contexts)[:, -2:])
    torch.testing.assert_close(decoder(X, CONTEXT), decoder(X, [CONTEXT, CONTEXT]))
    with pytest.raises(ValueError, match="shorter"):
        decoder(X, [CONTEXT])


def test_the_halves_of_a_position_table_are_swapped_and_nothing_else() -> None:
    x_first, y_first = sincos_positions(8, (3, 2)), sincos_positions(8, (3, 2), "y")
    assert torch.equal(y_first, x_first.roll(4, dims=1))
    assert not torch.equal(y_first, x_first)


def test_queries_keys_and_values_are_drawn_as_three_matrices_where_asked() -> None:
    layers = nn.ModuleDict({"qkv": nn.Linear(64, 192), "proj": nn.Linear(64, 64)})
    for joint, limit in ((True, math.sqrt(6 / 256)), (False, math.sqrt(6 / 128))):
        xavier_(layers, joint=joint)
        largest = layers["qkv"].weight.abs().max().item()
        assert 0.99 * limit < largest <= limit
        assert layers["proj"].weight.abs().max().item() <= math.sqrt(6 / 128)

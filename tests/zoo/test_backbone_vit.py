"""The mask-aware ViT against timm's ViT, loops and its own unmasked self."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models.vision_transformer import VisionTransformer

from method_zoo.backbones import build
from method_zoo.backbones.blocks import drop_path_scales
from method_zoo.backbones.positions import sincos_positions
from method_zoo.backbones.vit import ViT
from mimbench.encoder import Backbone
from mimbench.errors import UserError

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 2}
BEIT = {
    "positions": "none",
    "rel_pos": "shared",
    "layer_scale": 0.1,
    "qkv_bias": "query_value",
    "mask_token": True,
    "init": "beit",
}
KINDS: dict[str, dict[str, Any]] = {
    "mae": {"mask_token": True},
    "beit": BEIT,
    "per block": {**BEIT, "rel_pos": "per_block", "positions": "learned"},
    "no final norm": {"positions": "sincos_y_first", "final_norm": False, "mask_token": True},
    "no class token": {"cls_token": False, "rel_pos": "shared", "mask_token": True, "qkv_bias": "none"},
}


def vit(**options: Any) -> ViT:
    """A tiny ViT of 5 x 5 patches in float64, every parameter away from its special initial value."""
    backbone = build("vit_micro_patch4", 20, **{**TINY, **options}).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return backbone


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 20, 20, dtype=torch.float64)


def mask(n: int = 3, hidden: int = 15) -> Tensor:
    return torch.rand(n, 25).argsort(1) < hidden


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


def assert_close(one: Tensor | None, other: Tensor | None) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_tokens_are_those_of_timms_vit() -> None:
    """Ours with a learned position table is timm's ViT; so its weights and speed can be compared."""
    theirs = VisionTransformer(
        20, 4, num_classes=0, global_pool="", norm_layer=partial(nn.LayerNorm, eps=1e-6), **TINY
    ).double()
    ours = vit(positions="learned")
    theirs.load_state_dict(ours.state_dict())
    x = images()
    encoded = ours.encode(x)
    assert_close(torch.cat([encoded.cls[:, None], encoded.patches], 1), theirs.forward_features(x))


def test_the_position_table_is_mae_s() -> None:
    table = sincos_positions(8, (2, 3))
    for row, (y, x) in enumerate((y, x) for y in range(2) for x in range(3)):
        expected = [f(p / 10000 ** (k / 2)) for p in (x, y) for f in (math.sin, math.cos) for k in range(2)]
        np.testing.assert_allclose(table[row], expected, rtol=0, atol=1e-7)


def test_embedding_patches_is_the_convolution() -> None:
    backbone, x = vit(), images()
    assert_close(backbone._embed(x, None), backbone.patch_embed(x))


def naive(backbone: ViT, x: Tensor, hidden: Tensor) -> Tensor:
    """The kept tokens of one image, with explicit attention and a position bias read off by loops."""
    side, prefix = backbone.grid[0], backbone.prefix
    kept = (~hidden).nonzero()[:, 0].tolist()
    tokens = backbone.patch_embed(x[None])[0][kept]
    if prefix:
        tokens = torch.cat([backbone.cls_token[0], tokens])
    places = ["cls"] * prefix + [(i // side, i % side) for i in kept]
    if backbone.pos_embed is not None:
        rows = [0] * prefix + [prefix + i for i in kept]
        tokens = tokens + backbone.pos_embed[0][rows]

    def bias(table: Tensor) -> Tensor:
        """[heads, T, T]: offsets from key to query, then class to patch, patch to class, class to class."""
        near = (2 * side - 1) ** 2
        rows = []
        for q in places:
            for k in places:
                if q == "cls" or k == "cls":
                    rows.append(near + (2 if q == k else 0 if q == "cls" else 1))
                else:
                    rows.append((q[0] - k[0] + side - 1) * (2 * side - 1) + q[1] - k[1] + side - 1)
        return table[rows].view(len(places), len(places), -1).permute(2, 0, 1)

    for i, block in enumerate(backbone.blocks):
        q, k, v = block.attn.qkv(block.norm1(tokens)).view(len(tokens), 3, 2, -1).permute(1, 2, 0, 3)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if len(backbone.rel_pos):
            shared = len(backbone.rel_pos) == 1
            scores = scores + bias(backbone.rel_pos[0 if shared else i].relative_position_bias_table)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        tokens = tokens + block.ls1(block.attn.proj(mixed))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return backbone.norm(tokens)


def test_dropping_patches_keeps_places_and_biases_right(kind: dict[str, Any]) -> None:
    backbone, x, hidden = vit(**kind), images(), mask()
    encoded = backbone.encode(x, hidden, fill="drop")
    for i in range(len(x)):
        expected = naive(backbone, x[i], hidden[i])
        assert_close(encoded.patches[i], expected[backbone.prefix :])
        if backbone.prefix:
            assert_close(encoded.cls[i], expected[0])
        assert encoded.kept[i].tolist() == [p for p in range(25) if not hidden[i, p]]


@pytest.mark.parametrize("fill", ["drop", "token"])
def test_nothing_of_a_hidden_patch_leaks(kind: dict[str, Any], fill: str) -> None:
    backbone, hidden = vit(**kind), mask()
    x = images().requires_grad_()
    encoded = backbone.encode(x, hidden, fill=fill)
    encoded.patches.square().sum().backward()
    reached = x.grad.view(3, 3, 5, 4, 5, 4).abs().sum((1, 3, 5)).flatten(1)
    assert torch.equal(reached > 0, ~hidden)


def test_a_mask_token_stands_at_the_hidden_places(kind: dict[str, Any]) -> None:
    """With all patches already equal to the mask token, a mask changes nothing."""
    backbone, x = vit(**kind), torch.zeros(1, 3, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        backbone.patch_embed.proj.bias.copy_(backbone.mask_token.view(-1))
    whole, masked = backbone.encode(x), backbone.encode(x, mask(1), fill="token")
    assert_close(whole.patches, masked.patches)
    assert masked.kept is None
    assert masked.patches.shape == (1, 25, 24)


def test_a_mask_that_hides_nothing_is_no_mask(kind: dict[str, Any]) -> None:
    backbone, x = vit(**kind), images()
    none = torch.zeros(3, 25, dtype=torch.bool)
    for fill in ("drop", "token"):
        assert_close(backbone.encode(x).patches, backbone.encode(x, none, fill=fill).patches)


def test_rows_that_hide_unequally_are_refused_and_not_reshaped() -> None:
    hidden = mask(2)
    hidden[0, hidden[0].nonzero()[0]] = False
    hidden[1, (~hidden[1]).nonzero()[0]] = True  # the same sum over both rows
    with pytest.raises(ValueError, match="equally many"):
        vit().encode(images(2), hidden)


def test_taps_come_before_the_norm_and_in_the_order_asked(kind: dict[str, Any]) -> None:
    backbone, x = vit(**kind), images()
    encoded = backbone.encode(x, layers=(-1, -3))
    assert_close(backbone.final_norm(encoded.layers[0][1]), encoded.patches)
    if backbone.prefix:
        assert_close(backbone.final_norm(encoded.layers[0][0]), encoded.cls)
    shorter = build(**{**backbone.config, "depth": 1}).double()
    own = shorter.state_dict()
    shorter.load_state_dict({name: v for name, v in backbone.state_dict().items() if name in own})
    assert_close(encoded.layers[1][1], shorter.encode(x, layers=(-1,)).layers[0][1])


def test_the_layer_before_the_first_block_is_its_input(kind: dict[str, Any]) -> None:
    backbone, x = vit(**kind), images()
    encoded = backbone.encode(x, layers=(-3, -4))
    seen: list[Tensor] = []
    backbone.blocks[0].register_forward_pre_hook(lambda block, given: seen.append(given[0]))
    backbone.encode(x)
    cls, patches = encoded.layers[1]
    assert torch.equal(patches if cls is None else torch.cat([cls[:, None], patches], 1), seen[0])


@pytest.mark.parametrize("layer", [0, 2, -5])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match="-1 to -3"):
        vit().encode(images(), layers=(layer,))


@pytest.mark.parametrize("hidden", [None, 15])
def test_attention_maps_are_what_fused_attention_computes(kind: dict[str, Any], hidden: int | None) -> None:
    backbone, x = vit(**kind), images()
    given = None if hidden is None else mask()
    encoded = backbone.encode(x, given, layers=(-2, -1), attention=True)
    before, after = (
        tokens if cls is None else torch.cat([cls[:, None], tokens], 1) for cls, tokens in encoded.layers
    )
    block = backbone.blocks[-1]
    v = block.attn.qkv(block.norm1(before)).unflatten(2, (3, 2, -1))[:, :, 2].transpose(1, 2)
    mixed = (encoded.attention @ v).transpose(1, 2).flatten(2)
    half = before + block.ls1(block.attn.proj(mixed))
    assert_close(half + block.ls2(block.mlp(block.norm2(half))), after)
    assert_close(encoded.attention.sum(-1), torch.ones(encoded.attention.shape[:-1], dtype=torch.float64))


def test_separate_and_fused_attention_agree(kind: dict[str, Any]) -> None:
    """In bfloat16 on a CPU the products are separate while training and fused otherwise."""
    backbone, x = vit(**kind).float(), images().float()
    with torch.autocast("cpu", torch.bfloat16):
        training = backbone.encode(x).patches
        assert not backbone.blocks[0].attn.fused_attn
        with torch.no_grad():
            frozen = backbone.encode(x).patches
        assert backbone.blocks[0].attn.fused_attn
    exact = backbone.encode(x).patches
    scale = exact.abs().max()
    for found in (training, frozen):
        assert (found - exact).abs().max() / scale < 0.05


def test_a_saved_backbone_comes_back_from_its_config(kind: dict[str, Any]) -> None:
    backbone, x = vit(**kind, drop_path=0.1).eval(), images()
    again = build(**json.loads(json.dumps(backbone.config))).double().eval()
    again.load_state_dict(backbone.state_dict(), strict=True)
    assert again.config == backbone.config
    assert_close(again.encode(x).patches, backbone.encode(x).patches)


def test_channels_last_images_give_the_same_tokens() -> None:
    backbone, x = vit(), images()
    assert_close(backbone.encode(x.to(memory_format=torch.channels_last)).patches, backbone.encode(x).patches)


def test_dropped_branches_hang_on_the_sample_and_not_on_its_batch() -> None:
    backbone, x = vit(drop_path=0.5).train(), images(4)
    keys = torch.tensor([5, 6, 7, 8])
    whole = backbone.encode(x, keys=keys).patches
    assert_close(whole, backbone.encode(x, keys=keys).patches)
    assert_close(whole[2:], backbone.encode(x[2:], keys=keys[2:]).patches)
    assert not torch.allclose(whole, backbone.encode(x, keys=keys + 4).patches)
    assert not torch.allclose(whole, backbone.eval().encode(x, keys=keys).patches)


def test_dropped_branches_keep_their_mean_and_their_rate() -> None:
    backbone = vit(drop_path=0.4).train()
    keys = torch.arange(20_000)
    scales = drop_path_scales(backbone.drop_rates(), torch.zeros(len(keys), 1, 1), keys)
    assert scales.shape == (3, 2, 20_000, 1, 1)
    rates = (scales == 0).double().mean((2, 3, 4))
    expected = torch.tensor([[0.0], [0.2], [0.4]], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(rates, expected, rtol=0, atol=0.015)
    torch.testing.assert_close(scales.mean((2, 3, 4)), torch.ones(3, 2), rtol=0, atol=0.02)


def test_a_query_value_bias_is_a_full_one_without_the_key_part() -> None:
    ours, full = vit(qkv_bias="query_value"), vit(qkv_bias="full")
    state = ours.state_dict()
    for name in [name for name in state if name.endswith("q_bias")]:
        q, v = state.pop(name), state.pop(name.replace("q_bias", "v_bias"))
        state[name.replace("q_bias", "bias")] = torch.cat([q, torch.zeros_like(q), v])
    full.load_state_dict(state)
    x = images()
    assert_close(ours.encode(x).patches, full.encode(x).patches)


def test_mae_weights_start_in_xaviers_range_as_one_matrix() -> None:
    backbone = build("vit_micro_patch4", 32)
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.98 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()
    assert 0.01 < backbone.cls_token.std() < 0.03
    bound = math.sqrt(6 / (backbone.embed_dim + 48))
    assert 0.98 * bound < backbone.patch_embed.proj.weight.abs().max() <= bound


def test_beit_weights_start_small_and_smaller_with_depth() -> None:
    backbone = build("vit_micro_patch4", 32, **BEIT)
    for depth, block in enumerate(backbone.blocks, start=1):
        scale = math.sqrt(2 * depth)
        for projection in (block.attn.proj, block.mlp.fc2):
            assert projection.weight.abs().max().item() * scale == pytest.approx(0.02, rel=0.01)
        assert block.attn.qkv.weight.abs().max().item() == pytest.approx(0.02, rel=0.01)
        assert torch.equal(block.ls1.gamma, torch.full((backbone.embed_dim,), 0.1))
    assert not backbone.rel_pos[0].relative_position_bias_table.any()


@pytest.mark.parametrize("size", ["micro", "tiny", "small", "base", "large"])
def test_every_size_builds_without_its_weights(size: str) -> None:
    with torch.device("meta"):
        backbone = build(f"vit_{size}_patch16", 224)
    assert isinstance(backbone, Backbone)
    millions = {"micro": 0.249, "tiny": 5.5, "small": 21.6, "base": 85.6, "large": 303.1}[size]
    count = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)


def test_a_patch_that_does_not_tile_the_image_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"patches of 16 pixels, which do not divide an image size of 100"):
        build("vit_tiny_patch16", 100)


@pytest.mark.parametrize("name", ["vit_tinny_patch16", "vit_tiny_patch0", "vit_tiny", "resnet50"])
def test_a_misspelt_backbone_gets_a_suggestion(name: str) -> None:
    with pytest.raises(UserError, match="vit_tiny_patch16"):
        build(name, 224)


@pytest.mark.parametrize(
    ("options", "message"), [({"num_heads": 5}, "5 attention heads"), ({"embed_dim": 26}, "4")]
)
def test_a_width_that_does_not_divide_is_a_sentence(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vit(**options)


def test_images_that_patches_do_not_tile_are_refused() -> None:
    for shape in ((2, 3, 22, 22), (2, 3, 20, 24), (2, 1, 20, 20)):
        with pytest.raises(ValueError, match=r"\[B, 3, 20, 20\]"):
            vit().encode(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("positions", ["sincos", "learned", "none"])
@pytest.mark.parametrize("side", [8, 28])
def test_a_crop_of_another_size_is_encoded_as_by_a_backbone_of_that_size(positions: str, side: int) -> None:
    """Once that backbone's position table is what DINO's rule makes of the trained one."""
    ours = vit(positions=positions, mask_token=True)
    other = build("vit_micro_patch4", side, **TINY, positions=positions, mask_token=True).double()
    state = {name: value for name, value in ours.state_dict().items() if name != "pos_embed"}
    other.load_state_dict(state, strict=False)
    if positions != "none":
        n = side // 4
        table = ours.pos_embed.detach()
        rows = table[:, 1:].view(1, 5, 5, -1).permute(0, 3, 1, 2)
        grown = nn.functional.interpolate(rows, scale_factor=((n + 0.1) / 5,) * 2, mode="bicubic")
        assert grown.shape[2:] == (n, n)
        other.pos_embed.data = torch.cat([table[:, :1], grown.flatten(2).transpose(1, 2)], dim=1)
    x = torch.randn(3, 3, side, side, dtype=torch.float64)
    n_patches = (side // 4) ** 2
    hidden = torch.rand(3, n_patches).argsort(1) < n_patches // 2
    for fill in ("drop", "token"):
        found, expected = (backbone.encode(x, hidden, fill=fill) for backbone in (ours, other))
        assert_close(found.cls, expected.cls)
        assert_close(found.patches, expected.patches)


def test_relative_positions_refuse_crops_of_another_size_in_a_sentence() -> None:
    with pytest.raises(UserError, match="crops of 8 pixels"):
        vit(**BEIT).encode(torch.zeros(2, 3, 8, 8, dtype=torch.float64))


def test_a_mask_token_that_was_not_asked_for_is_named() -> None:
    with pytest.raises(ValueError, match="mask_token=True"):
        vit().encode(images(), mask(), fill="token")


def test_edits_that_change_nothing_change_nothing(kind: dict[str, Any]) -> None:
    backbone, x, hidden = vit(**kind), images(), mask()
    places = range(backbone.depth + 1)
    plain = backbone.encode(x, hidden, layers=[-2])
    edited = backbone.encode(x, hidden, layers=[-2], edits=dict.fromkeys(places, torch.clone))
    for one, other in zip((*plain[:2], *plain.layers[0]), (*edited[:2], *edited.layers[0]), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("place", range(4))
def test_an_edit_reaches_the_blocks_after_its_place_and_no_earlier_one(place: int) -> None:
    backbone, x = vit(positions="learned"), images()
    layers = [-4, -3, -2, -1]  # -4 is what the first block gets
    plain = backbone.encode(x, layers=layers)
    edited = backbone.encode(x, layers=layers, edits={place: lambda tokens: tokens + 1})
    for block, (before, after) in enumerate(zip(plain.layers, edited.layers, strict=True)):
        assert torch.equal(before[1], after[1]) == (max(block, 1) < place)


def test_editing_the_embedded_patches_is_editing_what_positions_are_added_to() -> None:
    backbone, x = vit(positions="learned"), images()
    shift = torch.randn(1, 25, 24, dtype=torch.float64)
    by_edit = backbone.encode(x, edits={0: lambda tokens: tokens + shift})
    with torch.no_grad():
        backbone.pos_embed[:, 1:] += shift
    assert_close(by_edit.patches, backbone.encode(x).patches)


def test_an_edit_nowhere_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 to 3"):
        vit().encode(images(), edits={4: torch.clone})

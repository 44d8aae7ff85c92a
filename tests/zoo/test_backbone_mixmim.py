"""MixMIM's pyramid: what every backbone is asked, without windows that are not its own, and its windows."""

from __future__ import annotations

from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import pytest
import torch
from timm.layers import RelPosBias, resize_rel_pos_bias_table
from timm.optim import param_groups_layer_decay
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones import build
from method_zoo.backbones.mixmim import window_side
from mimbench.encoder import Backbone
from mimbench.errors import UserError

from . import test_backbone_rebuilt as rebuilt
from .backbone_kinds import assert_close, everything, trained

# Asked of this backbone as they are of every other.
from .test_backbone_maps import test_maps_are_the_patch_tokens_before_the_norm  # noqa: F401
from .test_backbone_rebuilt import (  # noqa: F401
    test_a_copy_comes_back_from_its_config_and_weights,
    test_a_copy_gives_the_same_tokens_bit_for_bit,
    test_a_resized_encoder_is_frozen_and_its_own,
    test_a_size_that_patches_do_not_tile_is_a_sentence,
    test_training_a_copy_leaves_the_original_alone,
)

SMALL = {"embed_dim": 64, "num_heads": [1, 2, 4, 8], "depths": [1, 2, 1, 2], "windows": [4, 4, 5, 5]}


@pytest.fixture
def backbone() -> Any:
    """Of images of 160 pixels, in float64 and eval mode, every parameter away from its initial value."""
    torch.manual_seed(0)
    made: Any = build("mixmim_base", 160, **SMALL)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.double().eval().requires_grad_(False)


def images(side: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "millions"), [("mixmim_base", 86.7), ("mixmim_large", 195.0), ("mixmim_huge", 653.0)]
)
def test_every_size_builds(name: str, millions: float) -> None:
    with torch.device("meta"):
        made = build(name, 224)
    assert isinstance(made, Backbone)
    assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_windows_at_384_pixels_are_the_official_ones() -> None:
    """Sense-X/MixMIM, models_mixmim_ft.py, mixmim_base_384."""
    with torch.device("meta"):
        made = build("mixmim_base", 224)
        assert made.sides == [14, 14, 14, 7]
        assert made.rebuilt(image_size=384).sides == [16, 16, 24, 12]
    assert window_side(13, 5) == 13, "a prime grid is one window"
    assert window_side(3, 5) == 3


@pytest.mark.parametrize("size", [96, 256])
def test_another_size_is_a_fresh_pyramid_with_interpolated_tables(backbone: Any, size: int) -> None:
    copy = backbone.rebuilt(image_size=size)
    other: Any = build("mixmim_base", size, **{**SMALL, "windows": copy.sides}).double().eval()
    state = dict(backbone.state_dict())
    for name, table in other.state_dict().items():
        if name.endswith("bias_table"):
            window = (round(len(table) ** 0.5) + 1) // 2
            state[name] = resize_rel_pos_bias_table(state[name], (window, window), table.shape)
    other.load_state_dict(state, strict=True)
    rows = backbone.positions.view(1, 40, 40, -1).permute(0, 3, 1, 2)
    rows = F.interpolate(rows, (size // 4, size // 4), mode="bicubic")
    other.positions.copy_(rows.flatten(2).transpose(1, 2))
    x = images(size)
    assert_close(copy.encode(x).patches, other.encode(x).patches, 2e-6)
    assert copy.config["table_size"] == 160


def test_attention_is_within_windows_and_what_blocks_mix_by(backbone: Any) -> None:
    copy = backbone.rebuilt(image_size=320)  # 10 x 10 patches: 4 windows of 5 x 5
    assert copy.sides[-1] == 5
    copy.requires_grad_(False)
    x = images(320)
    (found,) = copy.attentions(x, (-1,))
    assert torch.equal(found, copy.encode(x, attention=True).attention)
    assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    rows, columns = torch.arange(100) // 10 // 5, torch.arange(100) % 10 // 5
    together = (rows[:, None] == rows) & (columns[:, None] == columns)
    assert torch.equal((found > 0).all(0).all(0), together)

    before, after = (tokens for _, tokens in copy.encode(x, layers=(-2, -1)).layers)
    block = copy.blocks[-1]
    v = block.attn.qkv(block.norm1(before)).chunk(3, dim=-1)[2].unflatten(2, (8, -1)).transpose(1, 2)
    half = before + block.attn.proj((found @ v).transpose(1, 2).flatten(2))
    assert_close(half + block.mlp(block.norm2(half)), after)


def test_tables_are_biases_as_timm_has_them(backbone: Any) -> None:
    bias = RelPosBias((5, 5), 8).double()
    bias.load_state_dict(backbone.rel_pos[1].state_dict())
    assert_close(backbone.placing(False)(1, None), bias.get_bias())


def test_drop_path_hangs_on_the_sample_and_reaches_the_stem(backbone: Any) -> None:
    copy, x, keys = backbone.rebuilt(drop_path=0.6).train(), images(160, 4), torch.tensor([5, 6, 7, 8])
    whole = everything(copy, x, keys=keys)
    assert_close(whole[2:], everything(copy, x[2:], keys=keys[2:]))
    assert not torch.allclose(copy.enter(x, keys), backbone.enter(x, None))
    assert_close(everything(copy.eval(), x), everything(backbone, x))
    rates = copy._all_rates()
    assert rates == pytest.approx([0.6 * i / 5 for i in range(6)])


def test_gradients_reach_every_weight(backbone: Any) -> None:
    copy = backbone.rebuilt(image_size=192).train()
    out = everything(copy, images(192), keys=torch.tensor([1, 2]))
    (out * torch.randn_like(out)).sum().backward()
    assert [k for k, p in trained(copy).items() if p.grad is None or not p.grad.any()] == []


def test_every_block_is_a_layer_and_merging_belongs_to_the_block_behind_it(backbone: Any) -> None:
    """As in the official util/lr_decay.py."""
    model = rebuilt.Wrapped(backbone.rebuilt())
    kept = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    names = {id(p): k.removeprefix("backbone.") for k, p in model.named_parameters()}
    groups = param_groups_layer_decay(model, 0.05, kept, layer_decay=0.5)
    scale = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    decay = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    first = [(0, 0), (1, 0), (1, 1), (2, 0)]
    expected = {
        "head.weight": 0,
        "norm.weight": 0,
        **{f"blocks.{i}.mlp.fc1.weight": 2 - i for i in range(2)},
        **{f"rel_pos.{i}.relative_position_bias_table": 2 - i for i in range(2)},
        "blocks.0.merge.reduction.weight": 2,
        **{f"stem.{s}.{i}.attn.proj.weight": 6 - n for n, (s, i) in enumerate(first)},
        **{f"stem_rel_pos.{s}.{i}.relative_position_bias_table": 6 - n for n, (s, i) in enumerate(first)},
        "stem.1.0.merge.norm.weight": 5,
        "cells.weight": 7,
        "cells_norm.bias": 7,
    }
    assert {name: scale[name] for name in expected} == {k: 0.5**v for k, v in expected.items()}
    assert not any(decay[name] for name in decay if name.endswith("bias_table"))


def test_masks_and_windows_of_others_are_refused(backbone: Any) -> None:
    assert not backbone.takes_mask
    with pytest.raises(ValueError, match="takes no mask"):
        backbone.encode(images(160), torch.zeros(2, 25, dtype=torch.bool))
    with pytest.raises(UserError, match="windows of its own"):
        backbone.maps(images(160), (-1,), window=2)
    with pytest.raises(ValueError, match="layers count"):
        backbone.encode(images(160), layers=(-3,))
    with pytest.raises(UserError, match="takes 4 numbers of heads"):
        build("mixmim_base", 160, depths=[2, 2])


def test_a_detector_s_layer_decay_counts_the_stem_s_blocks_too(backbone: Any) -> None:
    pytest.importorskip("mmengine")
    from mimbench.openmm.layer_decay import parameter_groups

    model = torch.nn.Module()
    model.backbone = torch.nn.Module()
    model.backbone.body = body = backbone.rebuilt()
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rate[id(body.blocks[1].norm1.weight)] == 0.5
    assert rate[id(body.stem[0][0].norm1.weight)] == 0.5**6
    assert rate[id(body.cells.weight)] == 0.5**7

"""Backbones taken to a task: copies for training and other sizes, drop path, groups of parameters.

The references are timm's functions and freshly built backbones with weights interpolated here.
"""

from __future__ import annotations

import json
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import numpy as np
import pytest
import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models.vision_transformer import checkpoint_filter_fn
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones import build
from method_zoo.backbones.rope_vit import RopeViT
from method_zoo.backbones.timm_vit import TimmViT
from mimbench.encoder import Backbone, Encoder
from mimbench.errors import UserError

from .backbone_kinds import (
    BEIT,
    assert_close,
    everything,
    images,
    in_double,
    ours,
    trained,
    with_tokens,
)


@torch.no_grad()  # a bias that takes gradients gets another kernel, which rounds elsewhere
def test_a_copy_gives_the_same_tokens_bit_for_bit(backbone: Any) -> None:
    copy, x = backbone.rebuilt(), images(backbone)
    assert isinstance(copy, Backbone)
    assert torch.equal(everything(copy, x), everything(backbone, x))
    assert torch.equal(everything(copy.rebuilt(image_size=copy.image_size), x), everything(backbone, x))


def test_training_a_copy_leaves_the_original_alone(backbone: Any) -> None:
    x, state = images(backbone), {k: v.clone() for k, v in backbone.state_dict().items()}
    before, config = everything(backbone, x), json.dumps(backbone.config)
    copy = backbone.rebuilt(image_size=7 * backbone.patch_size, drop_path=0.3)
    assert all(p.requires_grad for p in trained(copy).values())
    assert not any(p.requires_grad for k, p in copy.named_parameters() if k.startswith("tokenizer"))
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += 1
    assert not any(p.requires_grad for p in backbone.parameters())
    assert torch.equal(everything(backbone, x), before)
    assert json.dumps(backbone.config) == config
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())


def test_a_copy_comes_back_from_its_config_and_weights(backbone: Any) -> None:
    copy = backbone.rebuilt(image_size=7 * backbone.patch_size, drop_path=0.2)
    config = json.loads(json.dumps(copy.config))
    again = in_double(build(**config)).eval()
    again.load_state_dict(copy.state_dict(), strict=True)
    x = images(copy, grid=7)
    assert torch.equal(everything(again, x), everything(copy, x))
    assert again.config == copy.config
    keys = torch.tensor([3, 4])
    assert torch.equal(everything(again.train(), x, keys=keys), everything(copy.train(), x, keys=keys))


def stretched(table: Tensor, prefix: int, side: int) -> Tensor:
    """A position table [1, prefix + 25, D] on another grid: bicubic with antialiasing, as timm's loading."""
    rows = table[:, prefix:].float().view(1, 5, 5, -1).permute(0, 3, 1, 2)
    rows = F.interpolate(rows, (side, side), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return torch.cat([table[:, :prefix], rows.to(table.dtype)], dim=1)


def reference(backbone: Any, grid: int) -> Any:
    """An independent backbone for images of ``grid`` x ``grid`` patches with what the weights become."""
    size = grid * backbone.patch_size
    if isinstance(backbone, TimmViT):
        model = timm.create_model(backbone.config["name"][5:], num_classes=0, img_size=size).double().eval()
        if isinstance(model.norm, nn.Identity):  # it comes after pooling
            model.norm, model.fc_norm = model.fc_norm, nn.Identity()
        state = {k.removeprefix("model."): v for k, v in backbone.state_dict().items()}
        model.load_state_dict(checkpoint_filter_fn(state, model), strict=True)
        return model
    if isinstance(backbone, RopeViT):
        return backbone  # takes images of any size
    config = {**backbone.config, "image_size": size}
    if backbone.pos_embed is not None:
        config["positions"] = "learned"
    other = in_double(build(**config)).eval()
    state = backbone.state_dict()
    if backbone.pos_embed is not None:
        state["pos_embed"] = stretched(backbone.pos_embed, backbone.prefix, grid)
    for name, table in state.items():
        if name.endswith("bias_table"):
            shape = other.state_dict()[name].shape
            state[name] = resize_rel_pos_bias_table(table, (grid, grid), shape, old_window_size=(5, 5))
    other.load_state_dict(state, strict=True)
    return other


@pytest.mark.parametrize("grid", [3, 9])
def test_a_copy_of_another_size_has_what_loading_would_interpolate(backbone: Any, grid: int) -> None:
    copy = backbone.rebuilt(image_size=grid * backbone.patch_size)
    assert copy.grid == (grid, grid)
    x, other = images(copy, grid=grid), reference(backbone, grid)
    if isinstance(backbone, TimmViT):
        expected, found = other.forward_features(x), copy.encode(x)
        expected = (
            expected if found.cls is None else torch.cat([expected[:, :1], expected[:, copy.leading :]], 1)
        )
        assert_close(everything(copy, x), expected[:, -everything(copy, x).shape[1] :])
    else:
        # interpolation of relative positions is done in float32 there
        assert_close(everything(copy, x), everything(other, x), 2e-6)


def test_a_size_that_patches_do_not_tile_is_a_sentence(backbone: Any, pixels: Any) -> None:
    for one in (backbone, pixels):
        for size in (5 * one.patch_size + 1, 0):
            with pytest.raises(UserError, match="do not divide an image size"):
                one.rebuilt(image_size=size)
    for rate in (1.0, -0.1):
        with pytest.raises(UserError, match="drop path rate"):
            backbone.rebuilt(drop_path=rate)


def test_a_resized_encoder_is_frozen_and_its_own(backbone: Any) -> None:
    encoder = Encoder(backbone.float(), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    larger, x = encoder.resized(6 * backbone.patch_size), images(backbone, grid=6).float()
    assert not any(p.requires_grad for p in larger.parameters())
    assert not larger.train().backbone.training
    assert encoder.resized(encoder.image_size) is encoder
    assert encoder.image_size == 5 * backbone.patch_size
    normalised = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.2, 0.1]).view(
        3, 1, 1
    )
    expected = backbone.rebuilt(image_size=larger.image_size).encode(normalised, layers=(-1,))
    for norm, patches in (("final", expected.patches), ("raw", expected.layers[0][1])):
        (tokens,) = larger.tokens(x, norm=norm)
        torch.testing.assert_close(tokens.patches, patches.unflatten(1, (6, 6)))
        assert (tokens.cls is None) == (not larger.has_cls)
    torch.testing.assert_close(larger(x).patches, larger.tokens(x)[0].patches)


def test_a_third_partys_backbone_that_cannot_be_rebuilt_is_a_sentence() -> None:
    third: Any = nn.Module()
    third.config = {"name": "their_patches", "image_size": 8}
    with pytest.raises(UserError, match="the backbone their_patches has no rebuilt, which"):
        Encoder(third, (0, 0, 0), (1, 1, 1)).resized(16)
    with pytest.raises(UserError, match="no attentions, which"):
        Encoder(third, (0, 0, 0), (1, 1, 1)).attentions(torch.zeros(1, 3, 8, 8))


def stem_blocks(backbone: Any) -> int:
    """How many blocks come before those of the backbone's ``depth``."""
    return len(list(backbone.stem_blocks())) if hasattr(backbone, "stem") else 0


# Drop path --------------------------------------------------------------------------------------------


def test_drop_path_hangs_on_the_sample_and_not_on_its_batch(backbone: Any) -> None:
    copy, x = backbone.rebuilt(drop_path=0.6).train(), images(backbone, 4)
    if hasattr(copy, "dropout"):
        copy.dropout = 0.0
    keys = torch.tensor([5, 6, 7, 8])
    torch.manual_seed(1)
    maps = copy.maps(x, (-1,), window=3, keys=keys)[0]
    whole = everything(copy, x, keys=keys)
    torch.manual_seed(2)
    assert_close(whole, everything(copy, x, keys=keys))
    assert_close(whole[2:], everything(copy, x[2:], keys=keys[2:]))
    assert_close(maps[2:], copy.maps(x[2:], (-1,), window=3, keys=keys[2:])[0])
    assert_close(everything(copy.eval(), x, keys=keys), everything(backbone, x))
    rates, before = copy.drop_rates(), stem_blocks(copy)
    np.testing.assert_allclose(rates, np.linspace(0, 0.6, before + copy.depth)[before:], atol=1e-6)
    if copy.depth > 1:  # the rate grows from 0, so that a single block drops nothing
        assert not torch.allclose(whole, everything(copy.train(), x, keys=keys + 4))


def test_dropout_of_a_token_encoder_hangs_on_the_sample_within_windows_too() -> None:
    torch.manual_seed(0)
    copy = with_tokens(rel_pos="shared").rebuilt().train()
    x, keys = images(copy, 4).float(), torch.tensor([5, 6, 7, 8])
    whole = copy.maps(x, (-1,), window=2, keys=keys)[0]
    torch.testing.assert_close(whole[1:], copy.maps(x[1:], (-1,), window=2, keys=keys[1:])[0])
    assert not torch.allclose(whole, copy.maps(x, (-1,), window=2, keys=keys + 4)[0])


# Training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [5, 7])
def test_gradients_reach_every_weight(backbone: Any, grid: int) -> None:
    copy = backbone.rebuilt(image_size=grid * backbone.patch_size).train()
    x = images(copy, grid=grid)
    out = everything(copy, x, keys=torch.tensor([1, 2]))
    (out * torch.randn_like(out)).sum().backward()
    assert [k for k, p in trained(copy).items() if p.grad is None or not p.grad.any()] == []

    copy.zero_grad()
    chosen = (0,) if copy.depth > 1 else ()
    maps = copy.maps(x, (-1,), window=3, global_blocks=chosen, keys=torch.tensor([1, 2]))[0]
    (maps * torch.randn_like(maps)).sum().backward()
    without = ("cls_token", "reg_token", "dist_token", "register_tokens", "norm.weight", "norm.bias")
    missed = [k for k, p in trained(copy).items() if p.grad is None or not p.grad.any()]
    assert [k for k in missed if k.removeprefix("model.") not in without] == []


class Wrapped(nn.Module):
    """A backbone behind a head, as fine-tuning has it."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.embed_dim, 10)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        def moved(pattern: str) -> str:
            assert pattern.startswith("^")
            return r"^backbone\." + pattern[1:]

        groups = self.backbone.group_matcher(coarse)
        return {
            name: moved(found) if isinstance(found, str) else [(moved(p), order) for p, order in found]
            for name, found in groups.items()
        }


def stages_of(backbone: Any) -> list[tuple[str, ...]]:
    """Stage and number of each block of a stem that is a layer of its own, in order."""
    if not getattr(backbone, "stem_decays", False):
        return []
    return [(str(i), str(j)) for i, stage in enumerate(backbone.stem) for j in range(len(stage))]


def test_layer_decay_finds_depth_plus_two_learning_rates(backbone: Any) -> None:
    model = Wrapped(backbone.rebuilt())
    kept = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    groups = param_groups_layer_decay(model, 0.05, kept, layer_decay=0.5)
    names = {id(p): k for k, p in model.named_parameters()}
    stages = stages_of(model.backbone)
    depth = model.backbone.depth + len(stages)
    layer = {names[id(p)]: -np.log2(g["lr_scale"]) for g in groups for p in g["params"]}
    decay = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert sorted(set(layer.values())) == list(range(depth + 2))
    for name, found in layer.items():
        parts = name.split(".")
        if parts[1] in ("blocks", "rel_pos"):
            expected = model.backbone.depth - int(parts[2])  # block i is layer i + 1 of 0 to depth + 1
        elif tuple(parts[2:4]) in stages:
            expected = depth - stages.index(tuple(parts[2:4]))
        elif parts[0] == "head" or parts[1] == "norm":
            expected = 0
        else:
            expected = depth + 1
        assert found == expected, name
    exempt = ("cls_token", "pos_embed", "bias_table", "register_tokens", "reg_token", "dist_token")
    for name, parameter in model.named_parameters():
        if name in decay:
            assert (decay[name] == 0) == (parameter.ndim < 2 or name.endswith(exempt)), name


def test_a_table_that_blocks_share_is_of_the_last_layer_as_in_beits_code() -> None:
    model = Wrapped(ours(**BEIT))
    (group,) = [
        g
        for g in param_groups_layer_decay(model, 0.05, layer_decay=0.5)
        if any(p is model.backbone.rel_pos[0].relative_position_bias_table for p in g["params"])
    ]
    assert group["lr_scale"] == 1


def test_pixels_have_nothing_to_train_and_take_any_size(pixels: Any) -> None:
    larger, x = pixels.rebuilt(image_size=28, drop_path=0.1), torch.rand(2, 3, 28, 28)
    assert torch.equal(larger.encode(x).patches, build("pixels", 28, patch_size=4).encode(x).patches)
    model = Wrapped(larger)
    (group,) = [
        g
        for g in param_groups_layer_decay(model, 0.05, model.backbone.no_weight_decay())
        if g["weight_decay"]
    ]
    assert group["lr_scale"] == 1
    assert larger.no_weight_decay() == set()


def test_drop_path_and_windows_of_timms_other_blocks_are_a_sentence() -> None:
    """Where branches run side by side, or norms come last, these would mean something else."""
    with torch.device("meta"):
        parallel = TimmViT(name="timm:vit_base_patch16_rpn_224", image_size=32)
    with pytest.raises(UserError, match="ResPostBlocks"):
        parallel.rebuilt(drop_path=0.1)
    with pytest.raises(UserError, match="ResPostBlocks"):
        parallel.maps(torch.zeros(1, 3, 32, 32, device="meta"), (-1,), window=2)
    with pytest.raises(UserError, match="no plain vision transformer"), torch.device("meta"):
        TimmViT(name="timm:vit_small_patch16_18x2_224", image_size=32)

"""Models of timm behind the interface of backbones: timm's tokens, at any size, trained and frozen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
from timm.models import group_parameters
from torch import Tensor, nn
from torch.testing import assert_close

from method_zoo.backbones import build
from method_zoo.backbones.timm_features import TimmFeatures
from method_zoo.backbones.timm_vit import TimmViT
from mimbench.encoder import Backbone
from mimbench.errors import UserError

SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]}
NEXT = {"depths": [1, 1, 1, 2], "dims": [8, 16, 24, 32]}
TRUNK = {"embed_dim": 24, "depth": 3, "num_heads": 2}
# name, arguments of timm's class, image size, another size, its layers, the width of its patches in pixels
KINDS: dict[str, tuple[str, dict[str, Any], int, int, int, int]] = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN | {"window_size": 4}, 32, 64, 1, 8),
    "swin v2": ("swinv2_tiny_window8_256", SWIN | {"window_size": 4}, 32, 64, 1, 8),
    "convnext": ("convnext_atto", NEXT, 64, 96, 1, 32),
    "convnext v2": ("convnextv2_atto", NEXT, 64, 96, 1, 32),
    "resnet": ("test_resnet", {}, 64, 96, 1, 32),
    "hiera": ("hiera_tiny_224", {"embed_dim": 16, "stages": [1, 1, 1, 1]}, 64, 96, 1, 32),
    "beit": ("beit_base_patch16_224", TRUNK, 64, 96, 3, 16),
    "eva": ("eva02_tiny_patch14_224", TRUNK, 56, 84, 3, 14),
    "efficientnet": ("test_efficientnet", {}, 64, 96, 1, 32),
    "cait": ("cait_xxs24_224", TRUNK, 64, 96, 1, 16),
    "plain": ("test_vit", {}, 64, 96, 6, 16),
    "plain, norm after pooling": ("test_vit2", {}, 64, 96, 8, 16),
    "parallel blocks": ("vit_small_patch16_18x2_224", TRUNK, 64, 96, 3, 16),
}


@pytest.fixture(params=KINDS)
def kind(request) -> tuple[str, dict[str, Any], int, int, int, int]:
    return KINDS[request.param]


def made(name: str, args: dict[str, Any], size: int, **options: Any) -> Any:
    """A backbone all of whose weights are drawn: none is at what its module begins with."""
    torch.manual_seed(0)
    backbone = build(f"timm:{name}", size, **({"model_args": args} if args else {}), **options).eval()
    with torch.no_grad():
        for tensor in backbone.parameters():
            tensor += torch.randn_like(tensor) * 0.1
        for key, tensor in backbone.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                tensor += torch.rand_like(tensor)
    return backbone


def of_timm(name: str, args: dict[str, Any], size: int, state: dict[str, Tensor]) -> nn.Module:
    """timm's own model with given weights; those of its classifier are left as they are."""
    probe = timm.create_model(name, **args)
    sized = {"img_size": size} if "img_size" in type(probe).__init__.__code__.co_varnames else {}
    model = timm.create_model(name, **args, **sized).eval()
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.split(".")[0] in ("head", "fc", "classifier") for key in left.missing_keys)
    return model


def tokens(features: Tensor, width: int) -> Tensor:
    """timm's features as [B, T, D]."""
    if features.ndim == 3:
        return features
    return features.flatten(1, 2) if features.shape[-1] == width else features.flatten(2).transpose(1, 2)


def test_tokens_are_timms(kind) -> None:
    name, args, size, _, depth, patch = kind
    backbone = made(name, args, size)
    assert isinstance(backbone, Backbone)
    assert (backbone.depth, backbone.patch_size) == (depth, patch)
    assert backbone.grid == (size // patch, size // patch)
    state = {backbone.timm_name(key): value for key, value in backbone.state_dict().items()}
    model = of_timm(name, args, size, state)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        ours = backbone.encode(images, layers=tuple(range(-depth, 0)))
        features = tokens(model.forward_features(images), backbone.embed_dim)
        if (found := ours.cls) is not None:
            assert_close(found, finished(model, name, features[:, 0]))
        count = ours.patches.shape[1]
        assert count == backbone.grid[0] * backbone.grid[1]
        assert_close(ours.patches, finished(model, name, features[:, -count:]))
        if depth > 1:
            taps = model.forward_intermediates(images, intermediates_only=True)
            for (_, ours_then), theirs in zip(ours.layers, taps, strict=True):
                assert_close(ours_then, theirs.flatten(2).transpose(1, 2))
    assert_close(backbone.final_norm(ours.layers[-1][1]), ours.patches)


def finished(model: Any, name: str, features: Tensor) -> Tensor:
    """Features through a norm that timm applies after pooling, written out."""
    norm = getattr(model, "fc_norm", nn.Identity())
    if name.startswith(("convnext", "hiera")):
        norm = model.head.norm
    if isinstance(norm, nn.Identity):
        return features
    return nn.functional.layer_norm(features, features.shape[-1:], norm.weight, norm.bias, norm.eps)


def test_it_comes_back_from_its_config_without_storage_too(kind) -> None:
    name, args, size, other, _, _ = kind
    backbone = made(name, args, size).rebuilt(image_size=other, drop_path=0.2)
    config = json.loads(json.dumps(backbone.config))
    again = build(**config)
    again.load_state_dict(backbone.state_dict(), strict=True)
    assert again.config == backbone.config
    with torch.device("meta"):
        empty = build(**config)
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in backbone.state_dict().items()
    }
    assert empty.grid == backbone.grid


def test_a_copy_of_another_size_has_what_timm_would_load(kind) -> None:
    name, args, size, other, _, patch = kind
    backbone = made(name, args, size).requires_grad_(False)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    copy = backbone.rebuilt(image_size=other)
    assert copy.grid == (other // patch, other // patch)
    assert all(parameter.requires_grad for parameter in copy.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = torch.randn(2, 3, other, other)
    state = {backbone.timm_name(key): value for key, value in before.items()}
    args = {**args, **copy.config.get("model_args", {})}
    probe = of_timm(name, args, other, {copy.timm_name(k): v for k, v in copy.state_dict().items()})
    if name.startswith(("cait", "hiera")):  # whose positions timm leaves as they are
        rows = backbone.model.pos_embed
        side, new = round(rows.shape[1] ** 0.5), round(probe.pos_embed.shape[1] ** 0.5)
        square = rows.detach().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        wanted = nn.functional.interpolate(square, (new, new), mode="bicubic", antialias=True)
        state["pos_embed"] = wanted.flatten(2).transpose(1, 2)
    full = {**probe.state_dict(), **state}
    overlay = {"state_dict": full, "num_classes": probe.num_classes, "label_offset": 0}
    sized = {} if "img_size" not in type(probe).__init__.__code__.co_varnames else {"img_size": other}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args, **sized).eval()
    with torch.no_grad():
        features = tokens(model.forward_features(images), copy.embed_dim)
        ours = copy.encode(images).patches
        assert_close(ours, finished(model, name, features[:, -ours.shape[1] :]), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_windows_grow_with_the_image_and_do_not_shrink() -> None:
    backbone = made(*KINDS["swin"][:3])
    assert backbone.rebuilt(image_size=64).config["model_args"]["window_size"] == 8
    smaller = backbone.rebuilt(image_size=16)
    assert smaller.config["model_args"]["window_size"] == 4
    table = "model.layers.0.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(smaller.state_dict()[table], backbone.state_dict()[table])


def test_maps_are_the_tokens_before_the_norm_with_gradients(kind) -> None:
    name, args, size, _, depth, _ = kind
    backbone = made(name, args, size)
    images = torch.randn(1, 3, size, size)
    layers = (-depth, -1)
    maps = backbone.maps(images, layers)
    taps = backbone.encode(images, layers=layers).layers
    for found, (_, patches) in zip(maps, taps, strict=True):
        assert found.shape == (1, backbone.embed_dim, *backbone.grid)
        assert_close(found.flatten(2).transpose(1, 2), patches)
        assert found.requires_grad
    with pytest.raises(UserError, match="rebuild it"):
        backbone.maps(images[..., :-1], (-1,))
    if isinstance(backbone, TimmFeatures):
        with pytest.raises(UserError, match="plain vision transformer"):
            backbone.maps(images, (-1,), window=2)
        with pytest.raises(UserError, match="no attention maps"):
            backbone.attentions(images, (-1,))


@pytest.mark.parametrize("name", ["swin", "convnext", "resnet", "hiera", "beit", "plain"])
def test_drop_path_depends_on_each_images_key_alone(name: str) -> None:
    name, args, size, *_ = KINDS[name]
    backbone = made(name, args, size).rebuilt(drop_path=0.5).train()
    for part in backbone.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()  # mixes the images of a batch
    images, keys = torch.randn(6, 3, size, size), torch.arange(6)
    with torch.no_grad():
        whole = backbone.encode(images, keys=keys).patches
        halves = [backbone.encode(images[i : i + 3], keys=keys[i : i + 3]).patches for i in (0, 3)]
        assert_close(torch.cat(halves), whole)
        assert not torch.allclose(backbone.encode(images, keys=keys + 100).patches, whole)
        backbone.eval()
        assert_close(backbone.encode(images, keys=keys).patches, backbone.encode(images).patches)
        draws = torch.stack(
            [made(name, args, size).rebuilt().encode(images).patches, backbone.encode(images).patches]
        )
    assert_close(draws[0], draws[1])


def test_every_parameter_has_its_layer_and_learns(kind) -> None:
    name, args, size, *_ = kind
    backbone = made(name, args, size).rebuilt()
    layers = group_parameters(backbone, backbone.group_matcher(), reverse=True)
    parameters = dict(backbone.named_parameters())
    assert layers.keys() == parameters.keys()
    assert (
        layers[next(key for key in parameters if "patch_embed" in key or "stem" in key or "conv1" in key)]
        == 0
    )
    if "norm.weight" in layers:
        assert layers["norm.weight"] == max(layers.values())
    undecayed = backbone.no_weight_decay()
    assert undecayed <= parameters.keys()
    tables = {
        key for key in parameters if key.rpartition(".")[2] in ("pos_embed", "relative_position_bias_table")
    }
    if "cait" not in name and "swin" not in name:
        assert tables <= undecayed
    out = backbone.train().encode(torch.randn(4, 3, size, size))
    (out.patches.square().mean() + (0 if out.cls is None else out.cls.square().mean())).backward()
    without = [key for key, parameter in parameters.items() if parameter.grad is None]
    assert not without


def test_batch_norm_of_a_frozen_encoder_does_not_move() -> None:
    from mimbench.encoder import Encoder

    name, args, size, *_ = KINDS["resnet"]
    encoder = Encoder(made(name, args, size), (0.5,) * 3, (0.5,) * 3)
    before = encoder.backbone.state_dict()["model.bn1.running_mean"].clone()
    encoder.train()(torch.rand(4, 3, size, size))
    assert torch.equal(encoder.backbone.state_dict()["model.bn1.running_mean"], before)
    assert not encoder.takes_mask


def test_what_it_cannot_be_is_a_sentence() -> None:
    for name, size, said in (
        ("timm:vit_tinny", 64, "no model 'vit_tinny'"),
        ("timm:crossvit_9_240", 240, "no single map"),
        ("timm:levit_128s", 256, "gives no map of images of 256 pixels"),
    ):
        with pytest.raises(UserError, match=said):
            build(name, size)
    with pytest.raises(UserError, match=r"takes whole images.*no mask_token"):
        build("timm:resnet18", 64, mask_token=True)
    with pytest.raises(UserError, match="has no class token"):
        build("timm:resnet18", 64, cls_token=True)
    swin = made(*KINDS["swin"][:3])
    with pytest.raises(ValueError, match="takes no mask"):
        swin.encode(torch.zeros(1, 3, 32, 32), mask=torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(UserError, match="below 1"):
        swin.rebuilt(drop_path=1.0)


def test_a_norm_that_was_not_trained_is_left_out() -> None:
    for name in ("convnext v2", "plain"):
        name, args, size, *_ = KINDS[name]
        backbone = made(name, args, size, final_norm=False)
        assert "norm.weight" not in backbone.state_dict()
        out = backbone.encode(torch.randn(1, 3, size, size), layers=(-1,))
        assert torch.equal(out.patches, out.layers[0][1])
        assert build(**backbone.config).config == backbone.config


def test_plain_transformers_are_run_block_by_block() -> None:
    assert isinstance(made(*KINDS["plain"][:3]), TimmViT)
    assert np.isfinite(made(*KINDS["plain"][:3]).attentions(torch.zeros(1, 3, 64, 64), (-1,))[0].sum().item())

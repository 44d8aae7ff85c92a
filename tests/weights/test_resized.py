"""Encoders of released files at other sizes: positions as the official codes interpolate them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

from mimbench.checkpoint import load_encoder
from mimbench.encoder import Encoder
from mimbench.weights.convert import convert
from mimbench.weights.entry import Entry

from .proof import images_of, small
from .proofs._reference import SIZES, timm_model, tokens

NATIVE = 5  # patches a side


def _converted(entry: Entry, content: Any, folder: Path) -> Encoder:
    torch.save(content, folder / "official.pth")
    encoder = load_encoder(convert(folder / "official.pth", entry, folder / "encoder.safetensors").path)
    encoder.backbone.double()
    return encoder


def _dino(table: Tensor, side: int) -> Tensor:
    """``interpolate_pos_encoding`` of DINO, iBOT and DINOv2 without registers, in float64."""
    grid = table.reshape(1, NATIVE, NATIVE, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / NATIVE
    return F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")


def _msn(table: Tensor, side: int) -> Tensor:
    grid = table.reshape(1, NATIVE, NATIVE, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, scale_factor=side / NATIVE, mode="bicubic")


def _registers(table: Tensor, side: int) -> Tensor:
    """``interpolate_pos_encoding`` of DINOv2 with registers."""
    grid = table.reshape(1, NATIVE, NATIVE, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)


CASES = {
    "dino@vit_small": ("vit_small_patch16_224", _dino, lambda state: state),
    "ibot@vit_base": ("vit_base_patch16_224", _dino, lambda state: {"state_dict": state}),
    "msn@vit_base": ("vit_base_patch16_224", _msn, lambda state: {"target_encoder": state}),
    "dinov2@vit_base_patch14": ("vit_base_patch14_dinov2", _dino, lambda state: state),
}


@pytest.mark.parametrize("side", [3, 8])
@pytest.mark.parametrize("name", CASES)
def test_positions_go_to_another_size_as_in_the_official_code(name: str, side: int, tmp_path: Path) -> None:
    architecture, rule, wrap = CASES[name]
    native = timm_model(architecture, NATIVE * 16, patch_size=16)
    entry = small(name, backbone="vit_base_patch16", image_size=NATIVE * 16, options=SIZES)
    encoder = _converted(entry, wrap(native.state_dict()), tmp_path).resized(side * 16)
    other, images = timm_model(architecture, side * 16, patch_size=16), images_of(side * 16)
    table = native.pos_embed.detach()
    state = native.state_dict() | {
        "pos_embed": torch.cat([table[:, :1], rule(table[:, 1:], side).flatten(2).transpose(1, 2)], dim=1)
    }
    other.load_state_dict(state)
    _same(encoder, other, images)


@pytest.mark.parametrize("side", [3, 8])
def test_positions_behind_registers_too(side: int, tmp_path: Path) -> None:
    native = timm_model("vit_base_patch14_reg4_dinov2", NATIVE * 14)
    state = dict(native.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    zero = torch.zeros(1, 1, native.embed_dim, dtype=torch.float64)  # timm's class token has no position
    state["pos_embed"] = torch.cat([zero, state["pos_embed"]], dim=1)
    entry = small("dinov2@vit_base_patch14-reg", image_size=NATIVE * 14, options=SIZES)
    encoder = _converted(entry, state, tmp_path).resized(side * 14)
    other, images = timm_model("vit_base_patch14_reg4_dinov2", side * 14), images_of(side * 14)
    table = _registers(native.pos_embed.detach(), side).flatten(2).transpose(1, 2)
    other.load_state_dict(native.state_dict() | {"pos_embed": table})
    _same(encoder, other, images)


def test_ijepa_s_fixed_table_is_resized_as_timm_does_it(tmp_path: Path) -> None:
    """The official code has no way: for a table without a class token it asks for a root of N - 1."""
    from .proofs.ijepa import sincos

    native = timm_model("vit_huge_patch14_gap_224", 64, patch_size=16, fc_norm=False)
    with torch.no_grad():
        native.pos_embed.copy_(sincos(native.embed_dim, 4))
    entry = small("ijepa@vit_huge-448px", image_size=64, options=SIZES)
    encoder = _converted(entry, {"target_encoder": native.state_dict()}, tmp_path).resized(32)
    other = timm_model("vit_huge_patch14_gap_224", 32, patch_size=16, fc_norm=False)
    table = resample_abs_pos_embed(native.pos_embed.detach(), [2, 2], [4, 4], num_prefix_tokens=0)
    other.load_state_dict(native.state_dict() | {"pos_embed": table})
    _same(encoder, other, images_of(32))


def _same(encoder: Encoder, reference: Any, images: Tensor) -> None:
    """Our tables are interpolated in float32 at most, so 1e-5."""
    out, found = tokens(reference, images), encoder.backbone.encode(images)
    patches = out[:, reference.num_prefix_tokens :]
    torch.testing.assert_close(found.patches, patches, rtol=0, atol=1e-5)
    if found.cls is not None:
        torch.testing.assert_close(found.cls, out[:, 0], rtol=0, atol=1e-5)

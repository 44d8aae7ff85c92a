"""What the vision transformers of released files have beyond ours: registers, gated MLPs, norms behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from method_zoo.backbones import build
from method_zoo.backbones.post_norm_vit import PostNormViT
from method_zoo.backbones.register_vit import RegisterViT
from mimbench.errors import UserError

from .backbone_kinds import assert_close, everything, images, ours


def registered(**options: Any) -> RegisterViT:
    """A tiny one with registers in float64, every parameter away from its initial value."""
    made = ours(registers=3, positions="learned", **options).double().eval()
    assert isinstance(made, RegisterViT)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


def test_a_gated_mlp_is_as_wide_as_dinov2_s() -> None:
    with torch.device("meta"):
        giant: Any = build("vit_giant_patch14", 518, mlp="swiglu", embed_dim=1536, num_heads=24)
    assert giant.blocks[0].mlp.fc1.weight.shape == (2 * 4096, 1536)
    assert giant.blocks[39].mlp.fc2.weight.shape == (1536, 4096)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_images_of_another_size_see_the_positions_that_a_copy_of_that_size_has(
    antialias: bool, offset: float
) -> None:
    backbone = registered(interpolate_antialias=antialias, interpolate_offset=offset)
    for grid in (3, 8):
        x = images(backbone, grid=grid)
        copy = backbone.rebuilt(image_size=grid * backbone.patch_size)
        assert_close(everything(copy, x), everything(backbone, x))


def test_registers_change_the_patches_and_are_not_given_out() -> None:
    backbone = registered()
    x = images(backbone)
    before = backbone.encode(x, layers=(-1,), attention=True)
    assert before.patches.shape[1] == before.layers[0][1].shape[1] == 25
    assert before.attention.shape[-1] == 1 + 3 + 25
    with torch.no_grad():
        backbone.register_tokens += torch.randn_like(backbone.register_tokens)
    assert not torch.allclose(backbone.encode(x).patches, before.patches)


def test_hidden_patches_are_left_out_and_registers_are_not() -> None:
    """What is left is what an encoder sees of which the other patches never were."""
    backbone = registered()
    x = images(backbone)
    hidden = torch.zeros(2, 25, dtype=torch.bool)
    hidden[0, ::2] = hidden[1, 12:] = True
    out = backbone.encode(x, mask=hidden)
    assert out.patches.shape == (2, 12, backbone.embed_dim)
    one = backbone.encode(x[1:], mask=hidden[1:])
    assert_close(out.patches[1:], one.patches)
    changed = x.clone()
    changed[1, :, -8:, -8:] = 0  # among the hidden ones
    assert_close(backbone.encode(changed, mask=hidden).patches, out.patches)


def test_edits_see_patches_only() -> None:
    backbone = registered()
    seen = []

    def note(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return tokens

    x = images(backbone)
    assert_close(backbone.encode(x, edits={0: note, 2: note}).patches, backbone.encode(x).patches)
    assert seen == [25, 25]


def test_a_block_without_its_branches_leaves_two_norms() -> None:
    backbone: Any = ours(norm_order="post").double()
    block, x = backbone.blocks[0], torch.randn(2, 7, 24, dtype=torch.float64)
    none = torch.zeros(2, 2, 1, 1, dtype=torch.float64)
    assert_close(block(x, scales=none), block.norm2(block.norm1(x)))
    assert_close(block(x, scales=none + 1), block(x))
    assert not torch.allclose(block(x), block.norm2(block.norm1(x)))


def test_options_that_do_not_go_together_are_sentences() -> None:
    with pytest.raises(UserError, match="rel_pos='none'"):
        ours(registers=2, rel_pos="shared")
    with pytest.raises(UserError, match="neither layer_scale nor final_norm"):
        ours(norm_order="post", layer_scale=0.1)
    with pytest.raises(UserError, match="neither layer_scale nor final_norm"):
        ours(norm_order="post", final_norm=True)
    assert isinstance(ours(norm_order="post"), PostNormViT)

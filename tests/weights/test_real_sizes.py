"""Entries' sizes: the shapes of timm's model of the same release, without storage, are the encoder's."""

from __future__ import annotations

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import pytest
import timm
import torch
from torch import Tensor

from mimbench import registry
from mimbench.weights.entries import find_entry

PLAIN = {"weight_init": "skip"}
IJEPA = {**PLAIN, "fc_norm": False}
CASES = {
    "dino@vit_small": ("vit_small_patch16_224", PLAIN),
    "dino@vit_base_patch8": ("vit_base_patch8_224", PLAIN),
    "ibot@vit_large": ("vit_large_patch16_224", PLAIN),
    "msn@vit_base_patch4": ("vit_base_patch16_224", {**PLAIN, "patch_size": 4}),
    "msn@vit_large_patch7": ("vit_large_patch16_224", {**PLAIN, "patch_size": 7}),
    "ijepa@vit_huge_patch14": ("vit_huge_patch14_gap_224", IJEPA),
    "ijepa@vit_huge-448px": ("vit_huge_patch16_gap_448", IJEPA),
    "ijepa@vit_giant-pt22k": ("vit_giant_patch16_gap_224", IJEPA),
    "dinov2@vit_small_patch14": ("vit_small_patch14_dinov2", PLAIN),
    "dinov2@vit_base_patch14-reg": ("vit_base_patch14_reg4_dinov2", PLAIN),
    "dinov2@vit_large_patch14": ("vit_large_patch14_dinov2", PLAIN),
    "dinov2@vit_giant_patch14": ("vit_giant_patch14_dinov2", PLAIN),
    "dinov2@vit_giant_patch14-reg": ("vit_giant_patch14_reg4_dinov2", PLAIN),
}


def _official(state: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """timm's state under the names, and in the shapes, of the official code."""
    if origin != "dinov2":
        return state
    width = state["cls_token"].shape[-1]
    if "reg_token" in state:  # timm has no position of the class token then
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.empty(1, state["pos_embed"].shape[1] + 1, width)
    if state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]:
        state = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in state.items()}
    return state | {"mask_token": torch.empty(1, width)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_file_of_the_released_size_fills_the_encoder(name: str) -> None:
    architecture, options = CASES[name]
    entry = find_entry(name)
    way = registry.find_origin(entry.origin)
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0, **options)
        state = _official(dict(model.state_dict()), entry.origin)
        encoder = registry.build_backbone(**way.config(entry)).state_dict()
        made = way.convert({key: tensor.shape for key, tensor in state.items()}, entry).made
    found = {ours: state[conversion.of[0]].shape for ours, conversion in made.items()}
    assert found == {ours: tensor.shape for ours, tensor in encoder.items()}

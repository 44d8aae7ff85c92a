"""Frozen teachers: the same tokens as where they come from, on the student's grid."""

from __future__ import annotations

import pytest
import torch

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
from torch.testing import assert_close

from method_zoo.backbones import build
from method_zoo.backbones.blocks import attention_probabilities
from method_zoo.parts.teachers import FrozenTeacher, load_teacher
from mimbench.checkpoint import encoder_metadata, load_encoder, save_weights
from mimbench.errors import UserError
from mimbench.method import Teacher
from mimbench.registry import find_method

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    """A model of timm with random weights, as it is kept once it was fetched."""
    torch.manual_seed(0)
    backbone = build(f"timm:{NAME}", 224)
    model = timm.create_model(NAME, num_classes=0).eval()
    model.load_state_dict({backbone.timm_name(name): value for name, value in backbone.state_dict().items()})
    path = tmp_path_factory.mktemp("teachers") / "model.safetensors"
    half = [0.5, 0.5, 0.5]
    save_weights(path, backbone, {"backbone_config": backbone.config, "mean": half, "std": half})
    return path, model


def test_a_teacher_of_timm_gives_timms_tokens(timm_file) -> None:
    path, model = timm_file
    teacher = load_teacher(path, (14, 14))
    assert isinstance(teacher, Teacher)
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected, (tap,) = model.forward_intermediates(
            (images - 0.5) / 0.5, indices=[10], return_prefix_tokens=True, output_fmt="NLC"
        )
    encoded = teacher.encode(images, layers=(-2,), attention=True)
    assert_close(encoded.cls, expected[:, 0])
    assert_close(encoded.patches, expected[:, 1:])
    assert_close(encoded.layers[0][1], tap[0])
    before = torch.cat([tap[1], tap[0]], 1)
    with torch.no_grad():
        assert_close(encoded.attention, attention_probabilities(model.blocks[-1], before, None))
        q, k, v = teacher.query_key_value(-1, before)
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = model.blocks[-1].attn.proj((attention @ v).transpose(1, 2).flatten(2))
        assert_close(mixed, model.blocks[-1].attn(model.blocks[-1].norm1(before)))
    assert_close(encoded.attention, attention)
    assert not encoded.patches.requires_grad


def test_a_teacher_lies_on_the_student_s_grid_whatever_its_own_size(timm_file) -> None:
    teacher = load_teacher(timm_file[0], (8, 8))
    assert teacher.encode(torch.rand(2, 3, 96, 96)).patches.shape == (2, 64, 192)
    assert teacher.grid == (8, 8)


def test_our_own_encoder_teaches_what_it_encodes(tmp_path) -> None:
    torch.manual_seed(0)
    card = find_method("mae").card
    backbone = build("vit_micro_patch4", 16, **card.backbone)
    save_weights(tmp_path / "encoder.safetensors", backbone, encoder_metadata(backbone, card))
    teacher, encoder = load_teacher(tmp_path, (4, 4)), load_encoder(tmp_path)
    images = torch.rand(3, 3, 16, 16)
    encoded = teacher.encode(images, attention=True)
    assert_close(encoded.patches, encoder(images).patches.flatten(1, 2))
    assert encoded.attention.shape == (3, 2, 17, 17)
    assert teacher.train().training is False
    assert not any(p.requires_grad for p in teacher.parameters())
    larger = torch.rand(3, 3, 32, 32)
    assert teacher.encode(larger).patches.shape == (3, 16, 64)


def test_what_is_no_teacher_is_refused_in_one_sentence(tmp_path) -> None:
    card = find_method("pixels").card
    pixels = build("pixels", 16, **card.backbone)
    save_weights(tmp_path / "encoder.safetensors", pixels, encoder_metadata(pixels, card))
    with pytest.raises(UserError, match="no transformer"):
        load_teacher(tmp_path, (4, 4))
    convolutions = build("timm:test_resnet", 64)
    half = [0.5, 0.5, 0.5]
    save_weights(
        tmp_path / "resnet.safetensors",
        convolutions,
        {"backbone_config": convolutions.config, "mean": half, "std": half},
    )
    with pytest.raises(UserError, match="no transformer"):
        load_teacher(tmp_path / "resnet.safetensors", (2, 2))


def test_frozen_teacher_is_the_contract() -> None:
    backbone = build("vit_micro_patch4", 16)
    assert isinstance(FrozenTeacher(backbone, (0, 0, 0), (1, 1, 1), (4, 4)), Teacher)

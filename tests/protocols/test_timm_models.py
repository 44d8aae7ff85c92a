"""Models of timm that are no plain vision transformers go through the real protocols, on digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from protocol_toys import around
from segmentation_tiny import shapes

from mimbench import registry
from mimbench.data import Dataset, open_dataset
from mimbench.encoder import Encoder
from mimbench.seeding import seeded_init
from protocols.attentive import AttentiveProbe
from protocols.finetune import FineTune
from protocols.knn import KNN
from protocols.linprobe import LinearProbe
from protocols.seglinear import SegLinear

MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        32,
    ),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 32),
    "resnet": ("test_resnet", {}, 32),
    "beit": ("beit_base_patch16_224", {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}, 32),
    "hiera": ("hiera_tiny_224", {"embed_dim": 16, "stages": [1, 1, 1, 1]}, 64),
}


@pytest.fixture(params=MODELS)
def encoder(request) -> Encoder:
    name, args, size = MODELS[request.param]
    with seeded_init(0):
        backbone = registry.build_backbone(f"timm:{name}", size, model_args=args)
    return Encoder(backbone, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset("digits")


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol",
    [
        KNN(),
        LinearProbe(epochs=1, min_steps=60, lr=(0.1,)),
        AttentiveProbe(epochs=1, min_steps=20, lr=(0.01,), pooling=("capi",)),
        FineTune(epochs=1, min_steps=10, batch_size=64, lr=(0.1,), rand_augment=""),
    ],
    ids=lambda protocol: protocol.key,
)
def test_a_classification_is_made(encoder: Encoder, digits: Dataset, protocol: Any, tmp_path) -> None:
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    found = protocol.evaluate(encoder, digits, around(tmp_path))
    assert found.outcomes.n == 359
    assert found.metrics["top1"] > {"knn": 0.3, "linprobe": 0.2}.get(protocol.key, 0)
    after = encoder.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "a frozen encoder moved"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "convnext", "beit"])
def test_a_segmentation_is_made(name: str, tmp_path) -> None:
    model, args, _ = MODELS[name]
    with seeded_init(0):
        backbone = registry.build_backbone(f"timm:{model}", 32, model_args=args)
    found = SegLinear(epochs=1, min_steps=5).evaluate(
        Encoder(backbone, (0.5,) * 3, (0.25,) * 3), shapes(tmp_path / "set"), around(tmp_path / "store")
    )
    assert 0 <= found.metrics["miou"] <= 1

"""Fine-tuning of pyramids, whose stems learn more slowly than their transformers."""

from __future__ import annotations

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import pytest
import torch
from torch.nn import functional as F

from method_zoo.backbones import build
from protocols.parts.classifier import Classifier

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# The backbone, and how many learning rates there are: of embeddings, of blocks that count, of the head.
CASES = {
    "convmae": (lambda: build("convmae_base_patch16", 64, **SIZES, stem_dims=[8, 16]), 1 + 2 + 1),
    "hivit": (lambda: build("hivit_base_patch16", 64, **SIZES, stem_depth=3), 1 + 2 * 3 + 2 + 1),
    "mixmim": (
        lambda: build("mixmim_base", 64, embed_dim=64, num_heads=[1, 1, 2, 2], depths=[1, 1, 2, 2]),
        1 + 4 + 2 + 1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pyramid_is_fine_tuned_layer_by_layer(name: str) -> None:
    torch.manual_seed(0)
    make, rates = CASES[name]
    model = Classifier(
        make().rebuilt(drop_path=0.1), 3, token="mean", head_std=0.02, mean=(0.5,) * 3, std=(0.2,) * 3
    ).train()
    groups = model.parameter_groups(0.05, 0.5)
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == [0.5**i for i in reversed(range(rates))]
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW([{**g, "lr": 3e-3 * g["lr_scale"]} for g in groups])
    labels = torch.arange(12) % 3
    images = 0.3 * torch.randn(12, 3, 64, 64) + labels.view(-1, 1, 1, 1) - 1
    losses = []
    for step in range(12):
        loss = F.cross_entropy(model(images, torch.arange(12) + 100 * step), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

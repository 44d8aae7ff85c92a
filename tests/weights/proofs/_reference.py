"""Independent models with random weights in all their tensors, and what they make of whole images."""

from __future__ import annotations

from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
import torch
from torch import Tensor, nn

SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 3}


def randomise(model: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """The model in float64 and eval mode, all its parameters drawn anew, gains and tables included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.double().eval()


def timm_model(name: str, image_size: int, **options: Any) -> nn.Module:
    """timm's architecture of that name in small, random throughout."""
    options = {**SIZES, **options}
    return randomise(timm.create_model(name, img_size=image_size, num_classes=0, **options))


@torch.no_grad()
def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """All tokens of timm's model through its final norm, [B, T, D]."""
    return model.forward_features(images)


def within(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with a prefix before its names."""
    return {prefix + name: value for name, value in state.items()}


def noise(*shape: int, seed: int = 7) -> Tensor:
    """Weights that a conversion must not use."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()

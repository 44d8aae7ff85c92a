"""Backbones that tests go through."""

from __future__ import annotations

from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import pytest
import torch

from method_zoo.backbones import build

from .backbone_kinds import KINDS, in_double


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest) -> Any:
    """In float64 and eval mode, frozen as in an encoder, every parameter away from its initial value."""
    torch.manual_seed(0)
    made: Any = KINDS[request.param]()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.startswith("tokenizer"):
                parameter += 0.1 * torch.randn_like(parameter)
    return in_double(made).eval().requires_grad_(False)


@pytest.fixture
def pixels() -> Any:
    return build("pixels", 20, patch_size=4)

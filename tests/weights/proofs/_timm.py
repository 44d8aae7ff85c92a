"""What proofs of files that become models of timm have in common: timm's own model, with names given back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
import torch
from torch import Tensor, nn

from tests.weights.proof import Proof, images_of, small


def drawn(model: nn.Module) -> nn.Module:
    """The model in float64 with numbers that float32 holds, no two tensors alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and "index" not in name and "mask" not in name:
                tensor += torch.randn(tensor.shape, generator=generator) * 0.2
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model.double().eval()


def of_timm(name: str, size: int, sized: bool = True, **args: Any) -> nn.Module:
    options = {"img_size": size} if sized else {}
    return drawn(timm.create_model(name, num_classes=0, **args, **options))


def officially(
    state: dict[str, Tensor], rules: Sequence[tuple[str, str]], prefix: str = ""
) -> dict[str, Tensor]:
    """timm's state dict under the names of other code; what no rule names keeps its name."""
    found = {}
    for name, value in state.items():
        for pattern, theirs in rules:
            if match := re.fullmatch(pattern, name):
                name = match.expand(theirs)
                break
        found[prefix + name] = value
    return found


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def proof(
    entry: str,
    content: Any,
    model: nn.Module,
    size: int,
    args: dict[str, Any],
    form: str = "NLC",
    **changes: Any,
) -> Proof:
    """That ``content`` gives the tokens of ``model``, [B, D, H, W], [B, H, W, D] or [B, T, D]."""
    images = images_of(size)
    tokens = model.forward_features(images)  # type: ignore[operator]
    if form == "NCHW":
        tokens = tokens.flatten(2).transpose(1, 2)
    elif form == "NHWC":
        tokens = tokens.flatten(1, 2)
    described = small(entry, image_size=size, options={"model_args": args}, **changes)
    return Proof(described, content, images, None, tokens, f"timm's {type(model).__name__}")

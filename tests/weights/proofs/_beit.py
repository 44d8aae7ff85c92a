"""What proofs of BEiT's relatives have in common: timm's BEiT, which was written apart from our ViT."""

from __future__ import annotations

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from typing import Any

import torch
from timm.models.beit import Beit, gen_relative_position_index
from torch import Tensor, nn

from tests.weights.proof import Proof, images_of, small

SIZES: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0}
IMAGE_SIZE = 64


def sizes(config: dict) -> dict:
    """Those of an official run, as options of a backbone."""
    return {name: config[name] for name in SIZES}


def randomised(model: nn.Module) -> nn.Module:
    """The model with random numbers of some size everywhere, so that no two tensors pass for each other."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.double().eval()


def beit(image_size: int = IMAGE_SIZE, *, fine_tuned: bool = False, **options: Any) -> nn.Module:
    """timm's BEiT of small size, without what is behind its final norm.

    Fine-tuned it has none, as there is one behind the mean of the tokens then.
    """
    settings = {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": not fine_tuned, "init_values": 0.1}
    settings |= {"use_rel_pos_bias": fine_tuned, "num_classes": 5 if fine_tuned else 0, **SIZES, **options}
    pool = "avg" if fine_tuned else "token"
    return randomised(Beit(img_size=image_size, patch_size=16, global_pool=pool, **settings))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def index(image_size: int = IMAGE_SIZE) -> Tensor:
    """The buffer that official code saves beside each table and timm does not."""
    return gen_relative_position_index((image_size // 16, image_size // 16))


@torch.no_grad()
def whole_images(entry: str, model: nn.Module, content: Any, **options: Any) -> Proof:
    """A proof that what became of ``content`` gives the tokens of ``model``."""
    images = images_of(IMAGE_SIZE)
    tokens = model.forward_features(images)  # type: ignore[operator]
    return Proof(
        small(entry, image_size=IMAGE_SIZE, options={**SIZES, **options}),
        content,
        images,
        tokens[:, 0],
        tokens[:, 1:],
        f"timm's {type(model).__name__}",
    )

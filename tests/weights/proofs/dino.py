"""DINO's layout: against timm, out of a backbone's file and out of full checkpoints of DINO and iBOT."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.weights.proof import Proof, images_of, small

from ._reference import SIZES, noise, timm_model, tokens, within

NAME = "vit_small_patch16_224.dino"
HEAD = {
    "head.mlp.0.weight": noise(40, 48),
    "head.mlp.0.bias": noise(40),
    "head.mlp.4.weight": noise(16, 40),
    "head.last_layer.weight_g": noise(20, 1),
    "head.last_layer.weight_v": noise(20, 16),
}
IBOT = {"head.last_layer2.weight_g": noise(20, 1), "head.last_layer2.weight_v": noise(20, 16)}


def _proof(name: str, wrap: Any, size: int = 64, timm_name: str = NAME) -> Proof:
    model, images = timm_model(timm_name, size), images_of(size)
    out = tokens(model, images)
    entry = small(name, image_size=size, options=SIZES)
    return Proof(entry, wrap(model.state_dict()), images, out[:, 0], out[:, 1:], "timm's VisionTransformer")


def _checkpoint(teacher: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Any]:
    """Both networks as the codes save them; the student is another, with the mask token of iBOT."""
    student = {name: value + 1 for name, value in teacher.items()} | {"masked_embed": noise(1, 48)}
    return {
        "student": within("module.backbone.", student) | within("module.", head),
        "teacher": within("backbone.", teacher) | head,
        "epoch": 800,
    }


PROOFS = {
    "dino's backbone": lambda: _proof("dino@vit_small", dict),
    "dino's full checkpoint": lambda: _proof("dino@vit_base", lambda state: _checkpoint(state, HEAD)),
    "patches of 8": lambda: _proof("dino@vit_small_patch8", dict, 40, "vit_small_patch8_224.dino"),
    "ibot's backbone": lambda: _proof(
        "ibot@vit_base", lambda state: {"state_dict": state | {"masked_embed": noise(1, 48)}}
    ),
    "ibot's full checkpoint": lambda: _proof("ibot@vit_small", lambda state: _checkpoint(state, HEAD | IBOT)),
    "ibot's student": lambda: _proof(
        "ibot@vit_large-pt22k", lambda state: {"state_dict": state | {"masked_embed": noise(1, 48)}}
    ),
    "attmask's full checkpoint": lambda: _proof(
        "attmask@vit_small", lambda state: _checkpoint(state, HEAD | IBOT)
    ),
}

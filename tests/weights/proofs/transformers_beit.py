"""transformers' BEiT: against a plain re-implementation that reads its names.

When it was written, BeitForMaskedImageModeling of transformers 5.23 loaded these names without one missing or
unexpected and gave the same tokens to 1e-15; the library is too large a dependency for this one proof.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.weights.proof import Proof, images_of, small

from ._beit import IMAGE_SIZE, SIZES, index

EPSILON = 1e-6  # the official code's; transformers' configuration of these files says 1e-12
DEPTH, HEADS, WIDTH = SIZES["depth"], SIZES["num_heads"], SIZES["embed_dim"]
TABLE = "beit.encoder.relative_position_bias.relative_position_bias_table"


def names() -> dict[str, tuple[int, ...]]:
    """Shapes of BeitForMaskedImageModeling's parameters."""
    side, hidden = IMAGE_SIZE // 16, int(WIDTH * SIZES["mlp_ratio"])
    found = {
        "beit.embeddings.cls_token": (1, 1, WIDTH),
        "beit.embeddings.mask_token": (1, 1, WIDTH),
        "beit.embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 16, 16),
        "beit.embeddings.patch_embeddings.projection.bias": (WIDTH,),
        TABLE: ((2 * side - 1) ** 2 + 3, HEADS),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
        "lm_head.weight": (7, WIDTH),
        "lm_head.bias": (7,),
    }
    for i in range(DEPTH):
        layer = f"beit.encoder.layer.{i}"
        found |= {f"{layer}.lambda_{n}": (WIDTH,) for n in (1, 2)}
        linear = {f"attention.attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (WIDTH, WIDTH)}
        linear |= {"intermediate.dense": (hidden, WIDTH), "output.dense": (WIDTH, hidden)}
        for part, shape in linear.items():
            found[f"{layer}.{part}.weight"] = shape
            if not part.endswith("key"):
                found[f"{layer}.{part}.bias"] = shape[:1]
        for norm in ("layernorm_before", "layernorm_after"):
            found |= {f"{layer}.{norm}.weight": (WIDTH,), f"{layer}.{norm}.bias": (WIDTH,)}
    return found


def tokens(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """[B, 1 + N, D], class token first."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], EPSILON)

    start = "beit.embeddings.patch_embeddings.projection"
    x = F.conv2d(images, state[f"{start}.weight"], state[f"{start}.bias"], stride=16).flatten(2).mT
    x = torch.cat([state["beit.embeddings.cls_token"].expand(len(x), -1, -1), x], dim=1)
    bias = state[TABLE][index()].permute(2, 0, 1)
    for i in range(DEPTH):
        layer = f"beit.encoder.layer.{i}"
        y = norm(f"{layer}.layernorm_before", x)
        q, k, v = (
            linear(f"{layer}.attention.attention.{part}", y).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attention = (q @ k.mT / (WIDTH // HEADS) ** 0.5 + bias).softmax(-1)
        y = linear(f"{layer}.attention.output.dense", (attention @ v).transpose(1, 2).flatten(2))
        x = x + state[f"{layer}.lambda_1"] * y
        y = F.gelu(linear(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", x)))
        x = x + state[f"{layer}.lambda_2"] * linear(f"{layer}.output.dense", y)
    return norm("layernorm", x)


def whole() -> Proof:
    torch.manual_seed(0)
    state = {name: 0.2 * torch.randn(shape).double() for name, shape in names().items()}
    images = images_of(IMAGE_SIZE)
    seen = tokens(state, images)
    entry = small("beit@vit_base", origin="transformers_beit", image_size=IMAGE_SIZE, options=SIZES)
    content = state | {"beit.encoder.relative_position_bias.relative_position_index": index()}
    return Proof(entry, content, images, seen[:, 0], seen[:, 1:], "a plain re-implementation")


PROOFS = {"whole images": whole}

"""CAE's layout: against timm's BEiT on whole images, given CAE's fixed positions.

``test_official_predictions`` compares with the official code, whose table these proofs' is compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.weights.proof import Proof

from ._beit import SIZES, beit, noise, whole_images

WIDTH = SIZES["embed_dim"]


def table(side: int, width: int = WIDTH) -> Tensor:
    """CAE's and BootMAE's positions, float32 [1, 1 + side², width]: a quarter each of sines and cosines of
    the row, then of the column, for each place; a row of zeros for the class token."""
    rows = []
    for i in range(side * side):
        places = (i // side, i % side)
        frequencies = 10000.0 ** -(torch.arange(width // 4).double() / (width // 4))
        waves = [wave(place * frequencies) for place in places for wave in (torch.sin, torch.cos)]
        rows.append(torch.cat(waves))
    return F.pad(torch.stack(rows), (0, 0, 1, 0))[None].float()


def with_fixed_positions(init_values: float | None) -> nn.Module:
    model = beit(use_abs_pos_emb=True, use_shared_rel_pos_bias=False, init_values=init_values)
    side = round((model.pos_embed.shape[1] - 1) ** 0.5)
    with torch.no_grad():
        model.pos_embed.copy_(table(side))
    return model


def whole() -> Proof:
    model = with_fixed_positions(0.1)
    state = model.state_dict()
    content = {f"{part}.{name}": value for part in ("encoder", "teacher") for name, value in state.items()}
    content |= {"mask_token": noise(1, 1, WIDTH), "rd_pos_embed": noise(1, 17, WIDTH)}
    content |= {"encoder_to_regresser.weight": noise(36, WIDTH), "encoder_to_regresser_norm.bias": noise(36)}
    content |= {"regresser.norm.weight": noise(WIDTH), "decoder.head.weight": noise(7, WIDTH)}
    content |= {
        name.replace("teacher.", "alignment_encoder."): value + 1
        for name, value in content.items()
        if name.startswith("teacher.")
    }
    return whole_images("cae@vit_base", model, {"model": content})


PROOFS = {"whole images": whole}

"""BootMAE's layout: against timm's BEiT on whole images, given BootMAE's fixed positions.

``test_official_predictions`` compares with the official code.
"""

from __future__ import annotations

from tests.weights.proof import Proof

from ._beit import SIZES, noise, whole_images
from .cae import with_fixed_positions

WIDTH = SIZES["embed_dim"]


def whole() -> Proof:
    model = with_fixed_positions(None)
    content = model.state_dict()
    block = {name: v for name, v in content.items() if name.startswith("blocks.0.")}
    for end in ("", "_1"):
        content |= {name.replace("blocks", f"decode_blocks{end}"): v + 1 for name, v in block.items()}
        content |= {f"mask_token{end}": noise(1, 1, WIDTH), f"decode_norm{end}.weight": noise(WIDTH)}
        content |= {f"down{end}.weight": noise(36, WIDTH), f"down{end}.bias": noise(36)}
    content |= {"de_pos_embed": noise(1, 17, 36)}
    content |= {"lm_head.proj.weight": noise(768, 36), "lm_head_1.bias": noise(WIDTH)}
    return whole_images("bootmae@vit_base", model, {"model": content, "model_ema": noise(3)})


PROOFS = {"whole images": whole}

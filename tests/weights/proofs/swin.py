"""SimMIM's Swin, against timm's on whole images, in windows that are shifted."""

from __future__ import annotations

import torch

from tests.weights.proof import Proof

from ._timm import noise, of_timm, officially, proof

ARGS = {"embed_dim": 16, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}


def simmim() -> Proof:
    model = of_timm("swin_base_patch4_window7_224", 64, **ARGS)
    # Swin's code has what makes patches fewer at the end of a stage, timm at the beginning of the next.
    later = [(rf"layers\.{i + 1}\.downsample\.(.*)", rf"layers.{i}.downsample.\1") for i in range(3)]
    state = officially(model.state_dict(), later, "encoder.")
    for i, depth in enumerate(ARGS["depths"]):  # type: ignore[arg-type]
        for j in range(depth):
            block = f"encoder.layers.{i}.blocks.{j}"
            state[f"{block}.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
            if j % 2 and i < 3:
                state[f"{block}.attn_mask"] = noise(4, 4, 4)
    state |= {"encoder.mask_token": noise(1, 1, 16)}
    state |= {"decoder.0.weight": noise(3072, 128, 1, 1), "decoder.0.bias": noise(3072)}
    return proof("simmim@swin_base", {"model": state}, model, 64, ARGS, "NHWC")


PROOFS = {"SimMIM": simmim}

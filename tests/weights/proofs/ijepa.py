"""I-JEPA's layout: against the official context encoder under a mask, and against timm on whole images."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.weights.proof import Proof, images_of, part, record, small

from ._reference import SIZES, noise, timm_model, tokens, within


def official(case: str) -> Proof:
    """The context encoder, whose output on the context's patches the record holds (the first context)."""
    run = record("ijepa", case)
    config = run.config["encoder"]
    sizes = {name: config[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    entry = small(
        "ijepa@vit_huge_patch14",
        backbone=f"vit_huge_patch{config['patch_size']}",
        image_size=config["img_size"][0],
        container=("encoder",),
        options=sizes,
    )
    index, images = run.inputs["masks_enc"][0], run.inputs["img"]
    hidden = torch.ones(len(images), (entry.image_size // config["patch_size"]) ** 2, dtype=torch.bool)
    hidden.scatter_(1, index, False)
    seen = run.outputs["context"][: len(images)].double()
    assert torch.equal(index, index.sort(dim=1).values), "the context is in raster order"
    content = {name: within("module.", part(run, name)) for name in ("encoder", "predictor")}
    return Proof(
        entry,
        content,
        images,
        None,
        seen,
        "VisionTransformer.forward of the official code",
        mask=hidden,
    )


def sincos(dim: int, side: int) -> Tensor:
    """The paper's fixed table by its definition, patch by patch: x's sines and cosines, then y's."""
    frequencies = [10000 ** (-4 * k / dim) for k in range(dim // 4)]
    rows = []
    for y in range(side):
        for x in range(side):
            angles = [torch.tensor([place * f for f in frequencies], dtype=torch.float64) for place in (x, y)]
            rows.append(torch.cat([part for a in angles for part in (a.sin(), a.cos())]))
    return torch.stack(rows).unsqueeze(0)


def whole_images(name: str, size: int, patch: int) -> Proof:
    # Without fc_norm timm's model normalises all tokens, as the official one does, and pools afterwards.
    model = timm_model("vit_huge_patch14_gap_224", size, patch_size=patch, fc_norm=False)
    with torch.no_grad():
        model.pos_embed.copy_(sincos(model.embed_dim, size // patch))
    images, target = images_of(size), model.state_dict()
    content = {
        "target_encoder": within("module.", target),
        "encoder": within("module.", {k: v + 1 for k, v in target.items()}),
        "predictor": {"module.mask_token": noise(1, 1, 36)},
        "epoch": 300,
    }
    entry = small(name, image_size=size, options=SIZES | {"mlp_ratio": 4.0})
    return Proof(entry, content, images, None, tokens(model, images), "timm's VisionTransformer")


PROOFS = {
    "one context": lambda: official("nenc1"),
    "two contexts": lambda: official("nenc2"),
    "whole images": lambda: whole_images("ijepa@vit_huge_patch14", 70, 14),
    "patches of 16": lambda: whole_images("ijepa@vit_huge-448px", 48, 16),
}

"""MAE's layout: against the official latent under a mask, and against timm on whole images."""

from __future__ import annotations

import timm
import torch
from torch import Tensor

from tests.weights.proof import Proof, images_of, part, record, small


def _sizes(config: dict) -> dict:
    return {name: config[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}


def official(case: str) -> Proof:
    run = record("mae", case)
    entry = small(
        "mae@vit_base",
        backbone=f"vit_base_patch{run.config['patch_size']}",
        image_size=run.config["img_size"],
        options=_sizes(run.config),
    )
    latent = run.outputs["latent"].double()
    return Proof(
        entry,
        {"model": part(run, "model")},
        run.inputs["img"],
        latent[:, 0],
        _in_raster_order(latent[:, 1:], run),
        "MaskedAutoencoderViT.forward_encoder",
        mask=run.outputs["mask"].bool(),
    )


def _in_raster_order(visible: Tensor, run) -> Tensor:
    """The official code leaves visible patches in the order in which they were drawn."""
    places = torch.argsort(run.outputs["ids_restore"], dim=1)[:, : visible.shape[1]]
    return visible.gather(1, places.argsort(1).unsqueeze(-1).expand_as(visible))


def whole_images() -> Proof:
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224.mae", img_size=64, num_classes=0, **sizes).double().eval()
    entry = small("mae@vit_base", image_size=64, options={**sizes, "positions": "learned"})
    images = images_of(64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        tokens = model.forward_features(images)
    return Proof(
        entry, {"model": model.state_dict()}, images, tokens[:, 0], tokens[:, 1:], "timm's VisionTransformer"
    )


PROOFS = {
    "normpix": lambda: official("normpix"),
    "rawpix": lambda: official("rawpix"),
    "whole images": whole_images,
}

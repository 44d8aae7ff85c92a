"""A2MIM."""

from __future__ import annotations

from typing import Any

import torch

from method_zoo.a2mim import A2MIM
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official


def _build(config: Config) -> A2MIM:
    options = config["backbone"]
    arch = options["arch"]
    sizes: dict[str, Any] = {
        "img_size": options["img_size"],
        "patch_size": options["patch_size"],
        "embed_dim": arch["embed_dims"],
        "depth": arch["num_layers"],
        "num_heads": arch["num_heads"],
        "mlp_ratio": arch["feedforward_channels"] / arch["embed_dims"],
    }
    backbone = vit(sizes, **{**A2MIM.card.backbone, "layer_scale": options["init_values"]})
    return A2MIM(backbone, mask_layer=options["mask_layer"], frequency_weight=config["head"]["fft_weight"])


def _losses(method: A2MIM, run: Official) -> Losses:
    images, mask = run.inputs["img"], run.inputs["mask"].bool().flatten(1)
    seen = method.filled(images, mask)
    if "img_masked" in run.inputs:  # held in half precision, and shown so
        torch.testing.assert_close(seen, run.inputs["img_masked"], rtol=1e-3, atol=1e-3)
        seen = run.inputs["img_masked"]
    return method.losses(images, seen, mask)


def _rules(config: Config) -> Rules:
    block, official = r"encoder\.blocks\.(\d+)\.", r"model/backbone.layers.\1."
    return [
        (r"encoder\.rel_pos\.(\d+)\.", rf"{official}attn."),
        (rf"{block}ls(\d)\.gamma", rf"{official}gamma_\2"),
        (rf"{block}attn\.qkv\.([qv])_bias", rf"{official}attn.\2_bias"),
        (rf"{block}norm(\d)\.", rf"{official}ln\2."),
        (rf"{block}mlp\.fc1\.", rf"{official}ffn.layers.0.0."),
        (rf"{block}mlp\.fc2\.", rf"{official}ffn.layers.1."),
        (block, official),
        (r"encoder\.norm\.", "model/backbone.ln1."),
        (r"encoder\.patch_embed\.proj\.", "model/backbone.patch_embed.projection."),
        (r"encoder\.", "model/backbone."),
        # A 1 x 1 convolution: the same numbers in the same order.
        (r"head\.", "model/neck.decoder_pred.0."),
    ]


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, unused=r"relative_position_index$")

"""SimMIM."""

from __future__ import annotations

import torch

from method_zoo.simmim import SimMIM
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official
from ._shared import beit_encoder_rules, beit_options


def _build(config: Config) -> SimMIM:
    unit = config["mask_patch_size"] // config["patch_size"]
    backbone = vit(config, **{**SimMIM.card.backbone, **beit_options(config)})
    return SimMIM(backbone, mask_ratio=config["mask_ratio"], mask_unit=unit)


def _losses(method: SimMIM, run: Official) -> Losses:
    mask = run.inputs["mask"].bool().flatten(1)
    ours = method.masking(torch.arange(len(mask)), method.encoder.grid)
    assert torch.equal(ours.sum(1), mask.sum(1))
    return method.losses(run.inputs["img"], mask)


def _rules(config: Config) -> Rules:
    # The official head is a 1 x 1 convolution: the same numbers in the same order.
    return [*beit_encoder_rules(config, "model/encoder."), (r"head\.", "model/decoder.0.")]


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"relative_position_index$",
    unsupported=lambda config: "the zoo has no Swin backbone yet" if "depths" in config else None,
)

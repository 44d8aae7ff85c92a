"""MFM."""

from __future__ import annotations

import torch

from method_zoo.mfm import MFM
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import beit_encoder_rules


def _build(config: Config) -> MFM:
    assert config["use_abs_pos_emb"]
    backbone = vit(config, **{**MFM.card.backbone, "layer_scale": config["init_values"]})
    loss_on = {"masked": "masked", "normal": "all"}[config["recover_target"]]
    return MFM(backbone, radius=config["radius1"] / config["img_size"], loss_on=loss_on)


def _passed(run: Official) -> torch.Tensor:
    return torch.fft.ifftshift(run.inputs["mask"].bool(), dim=(-2, -1))


def _losses(method: MFM, run: Official) -> Losses:
    return method.losses(method.denormalise.inverse(run.inputs["img01"]), _passed(run))


def _rules(config: Config) -> Rules:
    # The official head is a 1 x 1 convolution: the same numbers in the same order.
    return [*beit_encoder_rules(config, "model/encoder."), (r"head\.", "model/decoder.0.")]


def _check(method: MFM, run: Official) -> None:
    """The filtered images are the official ones; we draw the official filter, which is low-pass, and its
    complement."""
    images, passed = method.denormalise.inverse(run.inputs["img01"]), _passed(run)
    assert_same_output(method.corrupted(images, passed), run.outputs["x_corrupted"], run.tolerance)
    drawn = method.passed(torch.arange(64))
    is_low = (drawn == passed[0]).flatten(1).all(1)
    assert torch.equal(drawn[~is_low], ~passed[:1].expand_as(drawn[~is_low]))
    assert 0 < is_low.sum() < 64


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, check=_check)

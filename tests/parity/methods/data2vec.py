"""data2vec."""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.data2vec import Data2Vec
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import beit_encoder_rules, beit_options


def _build(config: Config) -> Data2Vec:
    layers = config["target_layers"]
    assert layers == list(range(config["depth"] - len(layers), config["depth"]))
    instance = config.get("target_instance_norm", False)
    assert not (instance and config["target_layer_norm_last"])
    return Data2Vec(
        vit(config, **{**Data2Vec.card.backbone, **beit_options(config)}),
        average_blocks=len(layers),
        feature={"end": "block", "fc": "mlp"}[config["layer_results"]],
        block_norm="instance" if instance else "layer" if config["target_layer_norm_last"] else "none",
        norm_average=config["post_target_layer_norm"],
        loss="l2" if config["l2_loss"] else "smooth_l1",
        beta=config["l1_beta"],
    )


def _mask(run: Official) -> Tensor:
    return run.inputs["mask"].bool().flatten(1)


def _losses(method: Data2Vec, run: Official) -> Losses:
    images = run.inputs["img"]
    return method.losses(images, _mask(run), method.target(images))


def _rules(config: Config) -> Rules:
    student = beit_encoder_rules(config, "model/")
    teacher = [
        (rf"teacher\.networks\.{pattern}", name.replace("model/", "ema/", 1)) for pattern, name in student
    ]
    return [*teacher, *student, (r"head\.", "model/lm_head.")]


def _check_target(method: Data2Vec, run: Official) -> None:
    assert_same_output(method.target(run.inputs["img"])[_mask(run)], run.outputs["target"])
    with torch.no_grad():
        encoded = method.encoder.encode(run.inputs["img"], _mask(run), fill="token")
        assert_same_output(method.head(encoded.patches[_mask(run)]), run.outputs["pred"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"relative_position_index$|^ema/lm_head\.",  # the average of a head that nothing reads
    check=_check_target,
)

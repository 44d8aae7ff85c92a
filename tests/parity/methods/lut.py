"""LUT."""

from __future__ import annotations

import torch

from method_zoo.lut import LUT
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import mae_rules, mae_settings

NORMS = {None: "none", "BatchNorm1d": "batch"}


def _build(config: Config) -> LUT:
    return LUT(
        vit(config, **LUT.card.backbone),
        context_weight=config["w_bc"],
        head_depth=config["depth_head"],
        predictor_depth=config["depth_pred"],
        head_hidden=config["head_mlp_dim"],
        head_norm=NORMS[config["head_norm"]],
        head_activation=config["head_act"].lower(),
        **mae_settings(config),
    )


def _losses(method: LUT, run: Official) -> Losses:
    averages = dict(method.teacher["projector"].named_buffers())
    for name in [name for name in averages if "running" in name]:
        averages[name].copy_(run.state[f"ema/head.{name}"])
    (noise,) = run.draws
    return method.losses(run.inputs["img1"], run.inputs["img2"], method.masks(noise))


def _rules(config: Config) -> Rules:
    rules = []
    for ours, module in (("", "model"), (r"teacher\.networks\.", "ema")):
        rules += mae_rules(ours, module)
        rules += [(rf"{ours}projector\.", f"{module}/head."), (rf"{ours}predictor\.", f"{module}/predictor.")]
    return rules


def _check_teacher(method: LUT, run: Official) -> None:
    ours = torch.cat([method.targets(run.inputs[view]) for view in ("img1", "img2")])
    assert_same_output(ours, run.outputs["teacher"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; averages over batches, which are no parameters; parts of the average that nothing reads.
    unused=r"pos_embed$|\.running_(mean|var)$|\.num_batches_tracked$|^ema/(mask_token|decoder|predictor)",
    parts={"reconstruction": "mae_loss"},
    check=_check_teacher,
)

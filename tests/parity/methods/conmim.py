"""ConMIM."""

from __future__ import annotations

from method_zoo.conmim import ConMIM
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import beit_encoder_rules


def _build(config: Config) -> ConMIM:
    options = {**ConMIM.card.backbone, "layer_scale": config["init_values"]}
    return ConMIM(
        vit(config, **options),
        mask_ratio=config["mask_ratio"],
        mask_unit=config["mask_unit"],
        temperature=config["temp"],
        head_hidden=config["mlp_dim"],
        head_dim=config["dim"],
    )


def _losses(method: ConMIM, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.inputs["img_aug"], run.inputs["mask"].bool())


def _rules(config: Config) -> Rules:
    encoder = beit_encoder_rules({"use_rel_pos_bias": False}, "")
    rules = [(ours, f"model/{theirs}") for ours, theirs in encoder]
    rules += [(rf"teacher\.networks\.{ours}", f"ema/{theirs}") for ours, theirs in encoder]
    return [*rules, (r"head\.", "model/projectors."), (r"teacher\.networks\.head\.", "ema/projectors.")]


def _check_teacher(method: ConMIM, run: Official) -> None:
    assert_same_output(method.targets(run.inputs["img_aug"]), run.outputs["teacher"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Averages over batches, which no loss reads; BEiT's head, which this code has and does not use.
    unused=r"relative_position_index$|\.running_(mean|var)$|\.num_batches_tracked$|/lm_head\.",
    check=_check_teacher,
)

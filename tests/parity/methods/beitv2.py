"""BEiT v2."""

from __future__ import annotations

from method_zoo.beitv2 import BEiTv2
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official
from ._shared import Vocabulary, beit_encoder_rules, beit_options


def _build(config: Config) -> BEiTv2:
    backbone = vit(config, **{**BEiTv2.card.backbone, **beit_options(config)})
    return BEiTv2(
        backbone,
        tokenizer=Vocabulary(config["vocab_size"]),
        early_layer=config["early_layers"],
        head_layers=config["head_layers"],
        shared_head=config["shared_lm_head"],
    )


def _losses(method: BEiTv2, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.inputs["mask"].bool(), run.inputs["token_ids"])


def _rules(config: Config) -> Rules:
    return [
        (r"aggregation\.(\d+)\.ls(\d)\.gamma", r"model/cls_pt_layers.\1.gamma_\2"),
        (r"aggregation\.(\d+\.attn)\.qkv\.([qv])_bias", r"model/cls_pt_layers.\1.\2_bias"),
        (r"aggregation\.", "model/cls_pt_layers."),
        (r"own_head\.0\.", "model/cls_pt_norm."),
        (r"own_head\.1\.", "model/cls_pt_lm_head."),
        (r"head\.", "model/lm_head."),
        *beit_encoder_rules(config, "model/"),
    ]


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"relative_position_index$",
    parts={"tokens": "loss_1", "aggregated": "loss_2"},
)

"""BEiT."""

from __future__ import annotations

from method_zoo.beit import BEiT
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official
from ._shared import Vocabulary, beit_encoder_rules, beit_options


def _build(config: Config) -> BEiT:
    backbone = vit(config, **{**BEiT.card.backbone, **beit_options(config)})
    return BEiT(backbone, tokenizer=Vocabulary(config["vocab_size"]))


def _losses(method: BEiT, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.inputs["mask"].bool(), run.inputs["token_ids"])


def _rules(config: Config) -> Rules:
    return [*beit_encoder_rules(config, "model/"), (r"head\.", "model/lm_head.")]


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, unused=r"relative_position_index$")

"""DeepMIM, the variant with a teacher's features as target."""

from __future__ import annotations

import torch
from torch import nn

from method_zoo.deepmim import DeepMIM
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official


class _Features(nn.Module):
    """Where a teacher would be: an official run's features are given."""

    def __init__(self, dim: int):
        super().__init__()
        self.embed_dim = dim


def _build(config: Config) -> DeepMIM:
    method = DeepMIM(
        vit(config, **DeepMIM.card.backbone),
        teacher=_Features(config["target_dim"]),
        mask_ratio=config["mask_ratio"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )
    assert [layer + config["depth"] + 1 for layer in method.layers] == config["taps_after_block"]
    return method


def _losses(method: DeepMIM, run: Official) -> Losses:
    (noise,) = run.draws
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    return method.losses(run.inputs["img"], mask, run.inputs["teacher_out"][:, 1:])


def _check_levels(method: DeepMIM, run: Official) -> None:
    assert_same_output(torch.stack(list(_losses(method, run).values())), run.outputs["losses"])


def _rules(config: Config) -> Rules:
    rules: Rules = [(r"encoder\.", "model/")]
    for i, name in enumerate("1234"):
        rules += [
            (rf"mask_tokens\.{i}\.embed\.", f"model/decoder_embed{name}."),
            (rf"mask_tokens\.{i}\.mask_token", f"model/mask_token{name}"),
            (rf"decoders\.{i}\.head\.", f"model/decoder_pred{name}."),
            (rf"decoders\.{i}\.(blocks|norm)\.", rf"model/decoder_\g<1>{name}."),
        ]
    return rules


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"pos_embed$",  # fixed tables
    check=_check_levels,
)

"""dBOT."""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.dbot import DBOT
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import mae_rules


def _build(config: Config) -> DBOT:
    return DBOT(
        vit(config, **DBOT.card.backbone),
        mask_ratio=config["mask_ratio"],
        teacher_norm=bool(config["tlayernorm"]),
        norm_features=config["norm_feature_loss"],
        beta=config["smooth_l1_beta"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _losses(method: DBOT, run: Official) -> Losses:
    (noise,) = run.draws  # the official code keeps the patches of the smallest noise
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    held = run.outputs["mask"]  # the class token first, which counts as hidden
    assert isinstance(held, Tensor)
    assert held[:, 0].all()
    assert torch.equal(mask, held[:, 1:].bool())
    images = run.inputs["img"]
    return method.losses(images, mask, *method.features(images))


def _rules(config: Config) -> Rules:
    return [
        (r"decoder\.head\.", "model/decoder_predp."),
        (r"previous\.networks\.encoder\.", "teacher/"),
        *mae_rules(),
    ]


def _check_teacher(method: DBOT, run: Official) -> None:
    patches, cls = method.features(run.inputs["img"])
    assert_same_output(torch.cat([cls.unsqueeze(1), patches], dim=1), run.outputs["target"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; the decoder of the network that is the teacher, which nothing reads.
    unused=r"pos_embed$|^teacher/(mask_token|decoder_)",
    check=_check_teacher,
)

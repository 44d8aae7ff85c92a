"""MAE."""

from __future__ import annotations

from torch import Tensor

from method_zoo.mae import MAE
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, vit
from ..records import Official
from ._shared import mae_rules, mae_settings


def _build(config: Config) -> MAE:
    return MAE(vit(config, **MAE.card.backbone), **mae_settings(config))


def _losses(method: MAE, run: Official) -> Losses:
    (noise,) = run.draws  # the official code keeps the patches of the smallest noise
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    if isinstance(held := run.outputs.get("mask"), Tensor):
        assert (mask == held.bool()).all()
    return method.losses(run.inputs["img"], mask)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=lambda config: mae_rules(),
    unused=r"pos_embed$",  # fixed tables
)

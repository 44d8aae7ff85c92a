"""U-MAE."""

from __future__ import annotations

import pytest

from method_zoo.parts.masking import mask_from_scores
from method_zoo.umae import UMAE
from mimbench.method import Losses

from ..adapter import Adapter, Config, vit
from ..records import Official
from ._shared import mae_rules, mae_settings


def _build(config: Config) -> UMAE:
    return UMAE(
        vit(config, **UMAE.card.backbone),
        uniformity_weight=config["lamb"],
        pool="mean" if config["global_pool"] else "cls",
        **mae_settings(config),
    )


def _losses(method: UMAE, run: Official) -> Losses:
    (noise,) = run.draws
    return method.losses(
        run.inputs["img"], mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    )


def _check_uniformity(method: UMAE, run: Official) -> None:
    """The term before its weight."""
    ours = _losses(method, run)["uniformity"].item() / run.config["lamb"]
    assert ours == pytest.approx(run.loss_parts["loss_reg"], rel=0, abs=run.tolerance)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=lambda config: [(r"pool_norm\.", "model/fc_norm."), *mae_rules()],
    unused=r"pos_embed$|/fc\.",  # fixed tables; the online probe
    parts={"reconstruction": "loss_mae"},
    check=_check_uniformity,
)

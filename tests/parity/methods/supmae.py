"""SupMAE."""

from __future__ import annotations

import pytest

from method_zoo.parts.masking import mask_from_scores
from method_zoo.supmae import SupMAE
from mimbench.method import Losses

from ..adapter import Adapter, Config, vit
from ..records import Official
from ._shared import mae_rules, mae_settings


def _build(config: Config) -> SupMAE:
    return SupMAE(
        vit(config, **SupMAE.card.backbone),
        num_classes=config["nb_classes"],
        class_weight=config["cls_weight"],
        temperature=1.0,  # the record was made without
        pool="mean" if config["global_pool"] else "cls",
        head_dim=config["cls_hidden_mlp"],
        **mae_settings(config),
    )


def _losses(method: SupMAE, run: Official) -> Losses:
    (noise,) = run.draws
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    return method.losses(run.inputs["img"], mask, run.inputs["label"])


def _check_labels(method: SupMAE, run: Official) -> None:
    """The classification loss before its weight."""
    ours = _losses(method, run)["labels"].item() / run.config["cls_weight"]
    assert ours == pytest.approx(run.loss_parts["loss_cls"], rel=0, abs=run.tolerance)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=lambda config: [(r"classifier\.", "model/cls_head."), *mae_rules()],
    unused=r"pos_embed$|running_(mean|var)$|num_batches_tracked$",
    parts={"reconstruction": "loss_rec"},
    check=_check_labels,
)

"""HPM."""

from __future__ import annotations

import torch

from method_zoo.hpm import HPM
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import mae_rules, mae_settings


def _build(config: Config) -> HPM:
    return HPM(vit(config, **HPM.card.backbone), relative=config["relative"], **mae_settings(config))


def _losses(method: HPM, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.outputs["mask"].bool())


def _rules(config: Config) -> Rules:
    rules = []
    for ours, module in (("", "model"), (r"teacher\.networks\.", "ema")):
        rules += mae_rules(ours, module)
        rules += [
            (rf"{ours}loss_predictor\.head\.", f"{module}/decoder_pred_losspred."),
            (rf"{ours}loss_predictor\.blocks\.", f"{module}/decoder_blocks_losspred."),
            (rf"{ours}loss_predictor\.norm\.", f"{module}/decoder_norm_losspred."),
        ]
    return rules


def _check_teacher(method: HPM, run: Official) -> None:
    """The teacher expects the official losses, and the official mask hides what it finds hardest."""
    difficulty = method.predicted_difficulty(run.inputs["img"])
    assert_same_output(difficulty, run.outputs["teacher_loss_pred"])
    progress = (run.config["epoch"] + 1) / run.config["total_epoch"]
    ours = method.mask(difficulty, torch.arange(len(difficulty)), progress)
    theirs = run.outputs["mask"].bool()
    assert torch.equal(ours.sum(1), theirs.sum(1))
    hardest = mask_from_scores(difficulty, int(int(ours[0].sum()) * 0.5 * progress))
    assert ours[hardest].all()
    assert theirs[hardest].all()


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; the average of the pixel decoder, which nothing reads.
    unused=r"pos_embed$|^ema/decoder_(blocks|norm|pred)\.",
    parts={"reconstruction": "loss_rec", "difficulty": "loss_learn"},
    check=_check_teacher,
)

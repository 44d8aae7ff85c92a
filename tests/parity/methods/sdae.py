"""SdAE."""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.parts.masking import mask_from_scores
from method_zoo.parts.patches import take
from method_zoo.sdae import SdAE
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import mae_rules


def _build(config: Config) -> SdAE:
    shown, folds = config["shrink_num"], config["ncrop_loss"]
    return SdAE(
        vit(config, **SdAE.card.backbone),
        mask_ratio=config["mask_ratio"],
        folds=0 if shown is None else folds or 1,
        # The official cosine runs over the dimension after the first.
        cosine_over="channels" if shown is None else "patches",
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _mask_and_hidden(method: SdAE, run: Official) -> tuple[Tensor, Tensor]:
    (noise,) = run.draws
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    assert torch.equal(mask, run.outputs["mask"].bool())
    n = int(mask[0].sum())
    hidden = noise.argsort(dim=1)[:, -n:]
    assert torch.equal(hidden, run.outputs["ids_unkeep"].long())
    assert run.config["shrink_num"] in (None, n)
    return mask, hidden


def _losses(method: SdAE, run: Official) -> Losses:
    # The official teacher has positions of its own.
    method.teacher["encoder"].pos_embed.copy_(run.state["teacher/pos_embed"])
    return method.losses(run.inputs["img"], *_mask_and_hidden(method, run))


def _rules(config: Config) -> Rules:
    return [(r"teacher\.networks\.encoder\.", "teacher/"), *mae_rules()]


def _check_target(method: SdAE, run: Official) -> None:
    mask, hidden = _mask_and_hidden(method, run)
    if method.folds:
        folds = hidden.unflatten(1, (method.folds, -1))
        target = take(method.features(run.inputs["img"], folds), hidden).unflatten(1, folds.shape[1:])
        assert_same_output(target.flatten(0, 1), run.outputs["target"])
    else:
        assert_same_output(method.features(run.inputs["img"], None)[mask], run.outputs["target"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"pos_embed$",  # fixed tables
    check=_check_target,
)

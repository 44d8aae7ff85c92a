"""MILAN."""

from __future__ import annotations

from torch import Tensor

from method_zoo.milan import MILAN
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official
from ._shared import GivenTeacher, kept_first, mae_rules


def _build(config: Config) -> MILAN:
    pixels = "normalised_pixels" if config.get("norm_pix_loss") else "pixels"
    return MILAN(
        vit(config, **MILAN.card.backbone),
        teacher=GivenTeacher(512),
        mask_ratio=config["mask_ratio"],
        masking="attention" if config.get("attn_mask") else "random",
        target="features" if config["use_clip"] else pixels,
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _losses(method: MILAN, run: Official) -> Losses:
    (drawn,) = run.draws
    n_hidden = method.masking.hidden_cells(method.encoder.grid)
    if method.attentive is None:  # noise, of which the smallest is kept
        mask = mask_from_scores(drawn, n_hidden)
    else:  # an order in which patches were drawn
        mask = kept_first(drawn, drawn.shape[1] - n_hidden)
    if isinstance(held := run.outputs["mask"], Tensor):
        assert (mask == held.bool()).all()
    if method.target != "features":
        return method.losses(run.inputs["img"], mask)
    seen = run.inputs["clip_teacher"]
    return method.losses(run.inputs["img"], mask, seen[:, 1:], seen[:, 0])


def _rules(config: Config) -> Rules:
    return [
        (r"decoder\.blocks\.(\d+)\.norm_query\.", r"model/decoder_blocks.\1.norm1."),
        (r"decoder\.blocks\.(\d+)\.norm_mlp\.", r"model/decoder_blocks.\1.norm2."),
        (r"decoder\.blocks\.(\d+)\.cross\.", r"model/decoder_blocks.\1.attn."),
        *mae_rules(),
    ]


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, unused=r"pos_embed$")

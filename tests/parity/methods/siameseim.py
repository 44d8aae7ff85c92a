"""SiameseIM."""

from __future__ import annotations

from method_zoo.parts.relative_positions import Placement
from method_zoo.siameseim import SiameseIM
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official

NORMS = {True: "layer", False: "batch"}


def _build(config: Config) -> SiameseIM:
    return SiameseIM(
        vit(config, **SiameseIM.card.backbone),
        mask_ratio=config["mask_ratio"],
        negative_weight=config["neg_weight"],
        train_patch_embed=config["train_patch_embed"],
        normalise_prediction=config["online_ln"],
        projector_norm=NORMS[config["use_proj_ln"]],
        predictor_norm=NORMS[config["use_pred_ln"]],
        projector_depth=config["projector_depth"],
        predictor_depth=config["predictor_depth"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_heads=config["decoder_num_heads"],
    )


def _losses(method: SiameseIM, run: Official) -> Losses:
    mask = run.inputs["mask"].bool().flatten(1)
    return method.losses(run.inputs["x1"], run.inputs["x2"], Placement(*run.inputs["rel"]), mask)


def _rules(config: Config) -> Rules:
    rules = []
    for ours, prefix in (("", ""), (r"teacher\.networks\.", "mm_")):
        norm = r"\g<1>" if config["use_proj_ln"] else r"\g<1>bn."
        rules += [
            (rf"{ours}projector\.(\d+\.norm\d\.)", f"model/{prefix}projector_decoder_blocks.{norm}"),
            (rf"{ours}projector\.", f"model/{prefix}projector_decoder_blocks."),
            (rf"{ours}embed\.", f"model/{prefix}decoder_embed."),
            (rf"{ours}encoder\.", f"model/{prefix}"),
        ]
    norm = r"\g<1>" if config["use_pred_ln"] else r"\g<1>bn."
    return [
        *rules,
        (r"predictor\.(\d+\.norm\d\.)", f"model/predictor_decoder_blocks.{norm}"),
        (r"predictor\.", "model/predictor_decoder_blocks."),
        (r"mask_token", "model/mask_token"),
        (r"embed_place\.", "model/decoder_pos_mlp."),
        (r"head\.", "model/decoder_pred."),
        (r"student_norm\.", "model/student_norm."),
    ]


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; averages over batches, which no loss reads; an average of a token that nothing reads.
    unused=r"pos_embed$|\.running_(mean|var)$|\.num_batches_tracked$|/mm_mask_token$",
)

"""CrossMAE."""

from __future__ import annotations

from method_zoo.crossmae import CrossMAE
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official
from ._shared import mae_settings


def _build(config: Config) -> CrossMAE:
    return CrossMAE(
        vit(config, **CrossMAE.card.backbone),
        **mae_settings(config),
        predicted_ratio=config["kept_mask_ratio"],
        layers=tuple(i - config["depth"] for i in config["use_fm"]),
        see_input=config["use_input"],
        decoder_self_attention=config["self_attn"],
    )


def _losses(method: CrossMAE, run: Official) -> Losses:
    (noise,) = run.draws  # the official code keeps the patches of the smallest noise
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    predicted = mask_from_scores(noise, method.n_predicted)
    assert (predicted == run.outputs["mask"].bool()).all()
    return method.losses(run.inputs["img"], mask, predicted)


def _rules(config: Config) -> Rules:
    block = r"decoder\.(blocks\.\d+)\."
    return [
        (r"encoder\.", "model/"),
        (r"mixed\.", "model/wfm."),
        (r"mask_tokens\.", "model/"),
        (r"decoder\.blocks\.(\d+)\.norm_key\.", r"model/dec_norms.\1."),
        (rf"{block}norm_self\.", r"model/decoder_\1.norm0."),
        (rf"{block}attn\.", r"model/decoder_\1.self_attn."),
        (rf"{block}norm_query\.", r"model/decoder_\1.norm1."),
        (rf"{block}cross\.", r"model/decoder_\1.cross_attn."),
        (rf"{block}norm_mlp\.", r"model/decoder_\1.norm2."),
        (rf"{block}mlp\.", r"model/decoder_\1.mlp."),
        (r"decoder\.norm\.", "model/decoder_norm."),
        (r"decoder\.head\.", "model/decoder_pred."),
    ]


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"pos_embed$",  # fixed tables
    tables={"encoder.pos_embed": "model/pos_embed", "mask_tokens.positions": "model/decoder_pos_embed"},
)

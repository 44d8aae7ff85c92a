"""CAE."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from method_zoo.cae import CAE
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, rename, vit
from ..records import Official
from ._shared import Vocabulary


def _build(config: Config) -> CAE:
    backbone = vit(config, **{**CAE.card.backbone, "layer_scale": config["init_values"]})
    return CAE(
        backbone,
        tokenizer=Vocabulary(config["decoder_num_classes"]),
        align_weight=config["align_loss_weight"],
        regressor_depth=config["regressor_depth"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _encoder_rules(module: str) -> Rules:
    return [
        (r"encoder\.(blocks\.\d+)\.ls(\d)\.gamma", rf"model/{module}.\1.gamma_\2"),
        (r"encoder\.(blocks\.\d+\.attn)\.qkv\.([qv])_bias", rf"model/{module}.\1.\2_bias"),
        (r"encoder\.", f"model/{module}."),
    ]


@torch.no_grad()
def _latents(method: CAE, run: Official) -> Tensor:
    """The targets: before the first step of training the official code's second encoder has other weights."""
    second, rules = deepcopy(method.encoder), _encoder_rules("alignment_encoder")
    for name, parameter in second.named_parameters():
        parameter.copy_(run.state[rename(f"encoder.{name}", rules)].reshape(parameter.shape))
    images, mask = run.inputs["img"], run.inputs["mask"].bool()
    return second.encode(images, ~mask, fill="drop").patches


def _losses(method: CAE, run: Official) -> Losses:
    mask, ids = run.inputs["mask"].bool(), run.inputs["token_ids"]
    return method.losses(run.inputs["img"], mask, ids, _latents(method, run))


def _rules(config: Config) -> Rules:
    block, official = r"regressor\.(\d+)\.", r"model/regresser.regressor_blocks.\1."
    decoder = r"model/decoder.decoder_blocks.\1."
    return [
        *_encoder_rules("encoder"),
        (r"mask_token", "model/mask_token"),
        (r"project\.0\.", "model/encoder_to_regresser."),
        (r"project\.1\.", "model/encoder_to_regresser_norm."),
        (rf"{block}norm_query\.", f"{official}norm1_q."),
        (rf"{block}norm_key\.", f"{official}norm1_k."),
        (rf"{block}norm_value\.", f"{official}norm1_v."),
        (rf"{block}norm_mlp\.", f"{official}norm2_cross."),
        (rf"{block}cross\.([qv])\.bias", rf"{official}cross_attn.\2_bias"),
        (rf"{block}cross\.", f"{official}cross_attn."),
        (rf"{block}mlp\.", f"{official}mlp_cross."),
        (rf"{block}ls_cross\.gamma", f"{official}gamma_1_cross"),
        (rf"{block}ls_mlp\.gamma", f"{official}gamma_2_cross"),
        (r"regressor_norm\.", "model/regresser.norm."),
        (r"decoder\.(\d+)\.ls(\d)\.gamma", rf"{decoder}gamma_\2"),
        (r"decoder\.(\d+)\.attn\.qkv\.([qv])_bias", rf"{decoder}attn.\2_bias"),
        (r"decoder\.(\d+)\.", decoder),
        (r"decoder_norm\.", "model/decoder.norm."),
        (r"head\.", "model/decoder.head."),
    ]


def _check_target(method: CAE, run: Official) -> None:
    target = method.project(_latents(method, run))
    assert_same_output(target, run.outputs["latent_target"], 10 * run.tolerance_rest)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; the second encoder, which only the targets are made with.
    unused=r"pos_embed$|^model/alignment_encoder\.",
    tables={"encoder.pos_embed": "model/encoder.pos_embed", "positions": "model/rd_pos_embed"},
    parts={"tokens": "loss_main", "alignment": "loss_align"},
    check=_check_target,
)

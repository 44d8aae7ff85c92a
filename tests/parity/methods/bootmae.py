"""BootMAE."""

from __future__ import annotations

import torch

from method_zoo.bootmae import BootMAE
from method_zoo.parts.patches import where
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official


def _build(config: Config) -> BootMAE:
    low, high = (i - config["depth"] for i in config["fea_list"])
    return BootMAE(
        vit(config, **BootMAE.card.backbone),
        weigh_neighbours=config["weight_mask"],
        feature_weight=config["feature_weight"],
        low_layer=low,
        high_layer=high,
        decoder_dim=config["decode_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["num_heads"],
    )


def _losses(method: BootMAE, run: Official) -> Losses:
    order = run.inputs["idx_shuffle"].long()  # visible patches first
    mask = torch.ones_like(order, dtype=torch.bool)
    mask.scatter_(1, order[:, : -run.config["mask_len"]], False)
    assert where(mask).shape[1] == method.n_hidden
    images = run.inputs["img"]
    return method.losses(images, mask, method.features(images), method.feature_weight)


def _rules(config: Config) -> Rules:
    rules = [(r"teacher\.networks\.encoder\.(blocks\.\d+\.attn)\.qkv\.([qv])_bias", r"ema/\1.\2_bias")]
    rules += [(r"encoder\.(blocks\.\d+\.attn)\.qkv\.([qv])_bias", r"model/\1.\2_bias")]
    rules += [(r"teacher\.networks\.encoder\.", "ema/"), (r"encoder\.", "model/")]
    for ours, suffix in (("pixel", ""), ("feature", "_1")):
        block, official = rf"{ours}_decoder\.blocks\.(\d+)\.", rf"model/decode_blocks{suffix}.\1."
        rules += [
            (rf"{ours}_tokens\.embed\.", f"model/down{suffix}."),
            (rf"{ours}_tokens\.mask_token", f"model/mask_token{suffix}"),
            (rf"{block}norm_self\.", f"{official}norm1."),
            (rf"{block}norm_mlp\.", f"{official}norm2."),
            (rf"{block}norm_query\.", f"{official}norm3."),
            (rf"{block}norm_key\.", f"{official}norm4."),
            (rf"{block}attn\.qkv\.([qv])_bias", rf"{official}attn.\2_bias"),
            (rf"{block}cross\.q\.bias", f"{official}c_attn.q_bias"),
            (rf"{block}cross\.kv\.v_bias", f"{official}c_attn.v_bias"),
            (rf"{block}cross\.", f"{official}c_attn."),
            (block, official),
            (rf"{ours}_decoder\.norm\.", f"model/decode_norm{suffix}."),
        ]
    return [
        *rules,
        (r"pixel_decoder\.head\.", "model/lm_head.proj."),
        (r"feature_decoder\.head\.", "model/lm_head_1."),
    ]


def _check_target(method: BootMAE, run: Official) -> None:
    features = method.features(run.inputs["img"])
    assert_same_output(features, run.outputs["feat_target"], 10 * run.tolerance_rest)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; the average of the decoders, which nothing reads.
    unused=r"pos_embed$|^ema/(mask_token|down|decode_|lm_head)",
    tables={
        "encoder.pos_embed": "model/pos_embed",
        "teacher.networks.encoder.pos_embed": "ema/pos_embed",
        "pixel_tokens.positions": "model/de_pos_embed",
        "feature_tokens.positions": "model/pos_embed",
    },
    parts={"pixels": "Rloss", "features": "Ploss"},
    check=_check_target,
)

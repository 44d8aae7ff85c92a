"""How our parameter names become official ones, a small function a method.

Rules are tried in order; the first whose pattern matches the start of a name rewrites that start. They
are a function of the official configuration, because some layouts depend on it.
"""

from __future__ import annotations

import re
from typing import Any

Rules = list[tuple[str, str]]  # (regular expression at the start of our name, replacement)


def rename(name: str, rules: Rules) -> str:
    """The official name of our parameter ``name``."""
    for pattern, replacement in rules:
        renamed, hits = re.subn(f"^{pattern}", replacement, name)
        if hits:
            return renamed
    raise LookupError(f"no rule for our parameter {name}")


def mae(config: dict[str, Any], ours: str = "", module: str = "model") -> Rules:
    return [
        (rf"{ours}encoder\.", f"{module}/"),
        (rf"{ours}mask_tokens\.embed\.", f"{module}/decoder_embed."),
        (rf"{ours}mask_tokens\.mask_token", f"{module}/mask_token"),
        (rf"{ours}decoder\.head\.", f"{module}/decoder_pred."),
        (rf"{ours}decoder\.(blocks|norm)\.", rf"{module}/decoder_\1."),
    ]


def hpm(config: dict[str, Any]) -> Rules:
    rules = []
    for ours, module in (("", "model"), (r"teacher\.networks\.", "ema")):
        rules += mae(config, ours, module)
        rules += [
            (rf"{ours}loss_predictor\.head\.", f"{module}/decoder_pred_losspred."),
            (rf"{ours}loss_predictor\.blocks\.", f"{module}/decoder_blocks_losspred."),
            (rf"{ours}loss_predictor\.norm\.", f"{module}/decoder_norm_losspred."),
        ]
    return rules


def beit_encoder(config: dict[str, Any], module: str) -> Rules:
    """BEiT's and SimMIM's encoder."""
    rules = [(r"encoder\.rel_pos\.0\.", f"{module}rel_pos_bias.")]
    if config["use_rel_pos_bias"]:
        rules = [(r"encoder\.rel_pos\.(\d+)\.", rf"{module}blocks.\1.attn.")]
    return [
        *rules,
        (r"encoder\.(blocks\.\d+)\.ls(\d)\.gamma", rf"{module}\1.gamma_\2"),
        (r"encoder\.(blocks\.\d+\.attn)\.qkv\.([qv])_bias", rf"{module}\1.\2_bias"),
        (r"encoder\.", module),
    ]


def beit(config: dict[str, Any]) -> Rules:
    return [*beit_encoder(config, "model/"), (r"head\.", "model/lm_head.")]


def simmim(config: dict[str, Any]) -> Rules:
    # The official head is a 1 x 1 convolution: the same numbers in the same order.
    return [*beit_encoder(config, "model/encoder."), (r"head\.", "model/decoder.0.")]

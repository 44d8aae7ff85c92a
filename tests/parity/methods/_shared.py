"""Key maps and configurations that several methods' official code has in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Config, Rules


def mae_rules(ours: str = "", module: str = "model") -> Rules:
    """Encoder, mask tokens and decoder of MAE and what is built on its code."""
    return [
        (rf"{ours}encoder\.", f"{module}/"),
        (rf"{ours}mask_tokens\.embed\.", f"{module}/decoder_embed."),
        (rf"{ours}mask_tokens\.mask_token", f"{module}/mask_token"),
        (rf"{ours}decoder\.head\.", f"{module}/decoder_pred."),
        (rf"{ours}decoder\.(blocks|norm)\.", rf"{module}/decoder_\1."),
    ]


def mae_settings(config: Config) -> dict[str, Any]:
    """MAE's settings in an official configuration."""
    return {
        "mask_ratio": config["mask_ratio"],
        "norm_pix": config["norm_pix_loss"],
        "decoder_dim": config["decoder_embed_dim"],
        "decoder_depth": config["decoder_depth"],
        "decoder_heads": config["decoder_num_heads"],
    }


def beit_encoder_rules(config: Config, module: str) -> Rules:
    """The encoder of BEiT and what is built on its code. module: official prefix."""
    rules = [(r"encoder\.rel_pos\.0\.", f"{module}rel_pos_bias.")]
    if config["use_rel_pos_bias"]:
        rules = [(r"encoder\.rel_pos\.(\d+)\.", rf"{module}blocks.\1.attn.")]
    return [
        *rules,
        (r"encoder\.(blocks\.\d+)\.ls(\d)\.gamma", rf"{module}\1.gamma_\2"),
        (r"encoder\.(blocks\.\d+\.attn)\.qkv\.([qv])_bias", rf"{module}\1.\2_bias"),
        (r"encoder\.", module),
    ]


def beit_options(config: Config) -> dict[str, Any]:
    """Backbone options of BEiT's code in an official configuration."""
    return {
        "positions": "learned" if config["use_abs_pos_emb"] else "none",
        "rel_pos": "per_block" if config["use_rel_pos_bias"] else "shared",
        "layer_scale": config["init_values"],
    }


class Vocabulary(nn.Module):
    """Where a tokenizer would be: an official run's tokens are given."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary = vocabulary


class GivenTeacher(nn.Module):
    """Where a teacher would be: what it makes of an official run's images is given."""

    def __init__(self, embed_dim: int, depth: int = 12):
        super().__init__()
        self.embed_dim, self.depth = embed_dim, depth


def kept_first(order: Tensor, n_visible: int) -> Tensor:
    """The mask, bool [B, N], that leaves the first ``n_visible`` of each row's drawn order visible."""
    return torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :n_visible].long(), False)

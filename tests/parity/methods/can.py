"""CAN: there is no official code; the records are of a re-implementation."""

from __future__ import annotations

import re

from method_zoo.backbones import build
from method_zoo.can import CAN, NoisyView
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules
from ..records import Official


def _build(config: Config) -> CAN:
    width, depth, patch_size, mlp_ratio = map(int, re.findall(r"\d+", config["encoder"]))
    backbone = build(
        f"vit_base_patch{patch_size}",
        config["img_size"],
        **CAN.card.backbone,
        embed_dim=width,
        depth=depth,
        num_heads=3,
        mlp_ratio=mlp_ratio,
    )
    return CAN(
        backbone,
        mask_ratio=config["mask_ratio"],
        noise_max=config["noise_std_max"],
        temperature=config["temperature"],
        contrast_weight=config["weight_contrast"],
        reconstruction_weight=config["weight_recon"],
        denoising_weight=config["weight_denoise"],
        norm_pix=config["norm_pixel_loss"],
        norm_noise=config["norm_pixel_loss"],
        embed_mask_token=config["decoder_embed_unmasked_tokens"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
        head_hidden=config["projector_hidden_dim"],
        head_dim=config["projector_out_dim"],
        level_dim=config["noise_embed_in_dim"],
    )


def _losses(method: CAN, run: Official) -> Losses:
    hidden = method.masking.hidden_cells(method.encoder.grid)
    views = []
    for name, (share, noise), order in zip(
        ("x1", "x2"), (run.draws[0:2], run.draws[2:4]), run.draws[4:], strict=True
    ):
        level = method.noise_max * share
        noise = noise * level.view(-1, 1, 1, 1)
        views.append(NoisyView(run.inputs[name], level, noise, mask_from_scores(order, hidden)))
    return method.losses(views)


def _rules(config: Config) -> Rules:
    return [
        (r"tokens\.level\.", "model/noise_embed."),
        (r"tokens\.", "model/decoder."),
        (r"", "model/"),
    ]


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; averages over batches, which no loss reads.
    unused=r"pos_embed$|\.running_(mean|var)$|\.num_batches_tracked$",
)

"""Latent MIM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from method_zoo.latentmim import LatentMIM, mean_similarity
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official

SIMILARITY = 0.75  # the official forward's default, which the runs did not set


def _build(config: Config) -> LatentMIM:
    n, gap = config["grid_size"] ** 2, config["patch_gap"] / config["patch_size"]
    options = {**LatentMIM.card.backbone}
    if not config["freeze_pe"]:
        options["positions"] = "learned"
    backbone = vit({**config, "img_size": config["grid_size"] * config["patch_size"]}, **options)
    return LatentMIM(
        backbone,
        mask_ratio=1 - config["num_vis"] / n,
        gap=gap,
        target_sees="hidden" if config["mask_target"] else "all",
        loss={"norm_l2": "l2", "infonce_patches": "infonce"}[config.get("loss", "infonce_patches")],
        temperature=config["tau"],
        similarity_weight=config["avg_sim_coeff"],
        projector_dim=config["proj_mlp_dim"],
        projector_depth=config["proj_mlp_depth"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _images_and_mask(method: LatentMIM, run: Official) -> tuple[Tensor, Tensor]:
    *shifts, noise = run.draws
    images = run.inputs["img"]
    if method.gap:
        images = method.with_gaps(images, torch.cat([s.long().flatten(1) for s in shifts], dim=1))
    # The official code keeps the patches of the smallest noise.
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    held = torch.zeros_like(mask).scatter_(1, run.outputs["mask_idx"].long(), True)
    assert torch.equal(mask, held)
    return images, mask


def _losses(method: LatentMIM, run: Official) -> Losses:
    return method.losses(*_images_and_mask(method, run), SIMILARITY)


def _rules(config: Config) -> Rules:
    rules = []
    for ours, theirs in (("", "encoder"), (r"teacher\.networks\.", "target_encoder")):
        rules += [
            (rf"{ours}encoder\.patch_embed\.", f"model/{theirs}.embed."),
            (rf"{ours}encoder\.pos_embed", f"model/{theirs}.pos_embed.pos_embeds"),
            (rf"{ours}encoder\.", f"model/{theirs}."),
        ]
        for i in range(config["proj_mlp_depth"]):
            rules += [
                (rf"{ours}projector\.{3 * i}\.", f"model/{theirs}.head.linear{i}."),
                (rf"{ours}projector\.{3 * i + 1}\.", f"model/{theirs}.head.norm{i}."),
            ]
    block = r"decoder\.blocks\.(\d+)\."
    return [
        *rules,
        (r"tokens\.positions", "model/decoder.pos_embed.pos_embeds"),
        (r"tokens\.", "model/decoder."),
        (rf"{block}norm_self\.", r"model/decoder.blocks.\1.norm1."),
        (rf"{block}attn\.", r"model/decoder.blocks.\1.self_attn."),
        (rf"{block}norm_query\.", r"model/decoder.blocks.\1.norm2q."),
        (rf"{block}norm_key\.", r"model/decoder.blocks.\1.norm2kv."),
        (rf"{block}cross\.(q|kv)\.", r"model/decoder.blocks.\1.cross_attn.\2_proj."),
        (rf"{block}cross\.proj\.", r"model/decoder.blocks.\1.cross_attn.proj."),
        (rf"{block}norm_mlp\.", r"model/decoder.blocks.\1.norm3."),
        (r"decoder\.", "model/decoder."),
    ]


def _check_similarities(method: LatentMIM, run: Official) -> None:
    """How alike features are, which figures hold as parts of the loss and full records as metrics."""
    held = run.loss_parts or run.outputs["metrics"]
    held = {name.rpartition("/")[2]: value for name, value in held.items()}
    images, mask = _images_and_mask(method, run)
    with torch.no_grad():
        visible = method.projector(method.encoder.encode(images, mask, fill="drop").patches)
    found = {"avg_sim_vis": visible, "avg_sim_trg": method.targets(images, mask)}
    for name, features in found.items():
        assert abs(mean_similarity(features).item() - held[name]) < run.tolerance


def _layout(name: str, official: Tensor) -> Tensor:
    """The official patch embedding reads a patch's numbers in the order row, column, channel."""
    if not name.endswith("embed.proj.weight"):
        return official
    side = math.isqrt(official.shape[1] // 3)
    return official.view(-1, side, side, 3).permute(0, 3, 1, 2)


def _unused(config: Config) -> str:
    return r"pos_embeds$" if config["freeze_pe"] else r"(?!)"  # fixed tables


ADAPTER = Adapter(
    build=_build, losses=_losses, rules=_rules, unused=_unused, layout=_layout, check=_check_similarities
)

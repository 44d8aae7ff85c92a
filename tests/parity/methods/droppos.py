"""DropPos."""

from __future__ import annotations

import torch

from method_zoo.droppos import DropPos
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official


def _build(config: Config) -> DropPos:
    return DropPos(
        vit(config, **DropPos.card.backbone),
        mask_ratio=config["mask_ratio"],
        position_mask_ratio=config["pos_mask_ratio"],
        sigma=config["sigma"],
        sigma_decay=False,
        attentive=config["attn_guide"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _losses(method: DropPos, run: Official) -> Losses:
    patches, positions = run.draws  # the official code keeps the smallest of each
    mask = mask_from_scores(patches, method.masking.hidden_cells(method.encoder.grid))
    # The official visible tokens lie in the order of their draws, ours in raster order.
    order = patches.argsort(1)[:, : positions.shape[1]]
    dropped = mask_from_scores(positions, method.n_dropped).gather(1, order.argsort(1))
    return method.losses(run.inputs["img"], mask, dropped, run.inputs["smooth"])


def _rules(config: Config) -> Rules:
    return [
        (r"position_token", "model/mask_pos_token"),
        (r"embed\.", "model/decoder_embed."),
        (r"decoder\.head\.", "model/decoder_pred."),
        (r"decoder\.(blocks|norm)\.", r"model/decoder_\1."),
        (r"encoder\.", "model/"),
    ]


def _check(method: DropPos, run: Official) -> None:
    """Our soft targets are the official ones."""
    theirs = run.inputs["smooth"]
    ours = method.targets(0.5, theirs)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-6)  # held in half precision


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, unused=r"pos_embed$", check=_check)

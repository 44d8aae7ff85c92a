"""DMJD."""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.dmjd import DMJD
from method_zoo.parts.masking import patches_of_cells
from method_zoo.parts.patches import take, where
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules
from ..convit import RULES, ConViT, sizes
from ..records import Official


def _build(config: Config) -> DMJD:
    assert config["decoder_pred_dim"] == 108
    assert config["mim_loss"] == "l2"
    assert config["vis_loss"] == "smooth_l1(beta=2)"
    backbone = ConViT(name="convmae_base_patch16", patch_size=16, **sizes(config))
    return DMJD(
        backbone,
        mask_ratio=config["mask_ratio"],
        mask_unit={"rand": 1, "block": 2}[config["mask_type"]],
        covered=config["pred_ratio"],
        visible_weight=config["theta"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _masks(run: Official) -> tuple[Tensor, Tensor]:
    first, second = run.outputs["mask"].bool().chunk(2)
    return first, second


def _shown(run: Official) -> Tensor:
    """Raster indices of the visible patches in the official order, [2·B, n].

    The code sorts cells by the first draw and shows the smallest. A permutation each of the shown and the
    hidden ones says which of them come first, to be hidden and to be shown under the second mask.
    """
    noise, orders = run.draws[0], [order.long() for order in run.draws[1:]]
    cells = noise.argsort(1)
    n_shown = len(orders[0])
    shown, hidden = cells[:, :n_shown], cells[:, n_shown:]
    n_fresh, n_again = _counts(run.config, noise.shape[1], n_shown)
    second = torch.cat([shown[:, orders[0][n_fresh:]], hidden[:, orders[1][n_again:]]], dim=1)
    both = torch.cat([shown, second])
    if run.config["mask_type"] == "rand":
        return both
    side = 14
    corners = both // (side // 2) * 2 * side + both % (side // 2) * 2
    return torch.cat([corners + offset for offset in (0, 1, side, side + 1)], dim=1)


def _counts(config: Config, n_cells: int, n_shown: int) -> tuple[int, int]:
    """How many of the shown cells the second mask hides, and how many of the hidden ones again."""
    fresh = int(min(config["pred_ratio"] - config["mask_ratio"], config["mask_ratio"]) * n_cells)
    return fresh, n_cells - n_shown - fresh


def _losses(method: DMJD, run: Official) -> Losses:
    """On targets exchanged as the code exchanges them: it takes those of the visible patches in raster order
    for its tokens, which lie in the order of their draws."""
    masks, shown = _masks(run), _shown(run)
    assert torch.equal(shown.sort(1).values, where(~torch.cat(masks)))
    targets = run.inputs["target"].repeat(2, 1, 1)
    raster = take(targets, shown.sort(1).values)
    exchanged = targets.scatter(1, shown.unsqueeze(-1).expand_as(raster), raster)
    return method.losses(run.inputs["img"], masks, exchanged)


def _rules(config: Config) -> Rules:
    return [
        (r"mask_tokens\.embed\.", "model/decoder_embed."),
        (r"mask_tokens\.mask_token", "model/mask_token"),
        (r"decoder\.head\.", "model/decoder_pred."),
        (r"decoder\.(blocks|norm)\.", r"model/decoder_\1."),
        (r"visible_head\.8\.", "model/predictor.0."),
        (r"visible_head\.", "model/proj_embed."),
        *RULES,
    ]


def _check(method: DMJD, run: Official) -> None:
    """On the official draws ours are the official masks."""
    noise, *orders = run.draws
    cells, n_shown = noise.argsort(1), len(orders[0])
    second = torch.empty_like(noise)
    for order, group in zip(orders, (cells[:, :n_shown], cells[:, n_shown:]), strict=True):
        ranks = torch.arange(len(order), 0, -1, dtype=noise.dtype)
        second.scatter_(1, group[:, order.long()], ranks.expand(len(noise), -1))
    sampler, grid = method.masking, method.encoder.grid
    masks = sampler.from_scores(noise, second, sampler.hidden_cells(grid))
    for ours, theirs in zip(masks, _masks(run), strict=True):
        assert torch.equal(patches_of_cells(ours, grid, sampler.unit), theirs)


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, unused=r"pos_embed$", check=_check)

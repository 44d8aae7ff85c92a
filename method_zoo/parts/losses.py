"""Distances between predictions and targets. They see no model.

Predictions may come in a lower precision than targets; a loss is computed in the target's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from method_zoo.parts.patches import patchify, take, unpatchify
from method_zoo.parts.targets import EPS, normalised
from mimbench.watching import note_pixels


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch, [B, n]. predicted, target: [B, n, D]."""
    return (predicted.to(target.dtype) - target).square().mean(-1)


def pixel_error(predicted: Tensor, images: Tensor, index: Tensor, patch_size: int, norm: bool) -> Tensor:
    """Mean squared error of each predicted patch's pixels, [B, n]: MAE's loss (arXiv:2111.06377).

    predicted: [B, n, p·p·3], the patches at ``index`` [B, n] of images [B, 3, H, W]. norm: it predicts
    pixels normalised by the mean and variance of their patch (see ``targets.normalised``).
    """
    true = take(patchify(images, patch_size), index)

    def pixels() -> Tensor:
        patches = predicted.to(images.dtype)
        if norm:
            patches = patches * (true.var(-1, keepdim=True) + EPS).sqrt() + true.mean(-1, keepdim=True)
        return pasted(patches, images, index, patch_size)

    note_pixels(pixels, true_statistics=norm)
    return squared_error(predicted, normalised(true) if norm else true)


def pixel_distance(predicted: Tensor, images: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """Mean absolute error of the hidden patches' pixels, a scalar: SimMIM's loss (arXiv:2111.09886).

    predicted: [n, 3·p·p], the patches of images [B, 3, H, W] that ``mask`` [B, N] hides, in raster order.
    """
    true = patchify(images, patch_size, order="channel")[mask]
    predicted = predicted.to(true.dtype)

    def pixels() -> Tensor:
        everywhere = patchify(torch.full_like(images, torch.nan), patch_size, order="channel")
        everywhere[mask] = predicted
        grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
        return unpatchify(everywhere, grid, order="channel")

    note_pixels(pixels)
    return F.l1_loss(predicted, true)


def pasted(
    patches: Tensor,
    images: Tensor,
    index: Tensor,
    patch_size: int,
    order: Literal["pixel", "channel"] = "pixel",
) -> Tensor:
    """Images like ``images`` of nothing but ``patches`` [B, n, 3·p·p] at ``index`` [B, n]; NaN elsewhere."""
    everywhere = patchify(torch.full_like(images, torch.nan), patch_size, order)
    everywhere.scatter_(1, index.unsqueeze(-1).expand_as(patches), patches)
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    return unpatchify(everywhere, grid, order)


def ranking(scores: Tensor, values: Tensor, eps: float = 1e-6) -> Tensor:
    """Binary cross-entropy of which of two patches has the larger value, over all pairs of a row.

    scores, values: [B, n]; equal values make no pair. HPM's relative loss (arXiv:2304.05919, eq. 8),
    with ``eps`` inside the logarithm as in its code, which sums each pair in both orders.
    """
    scores = scores.to(values.dtype)
    larger = values.unsqueeze(1) > values.unsqueeze(2)  # [b, i, j]: is j's value larger than i's
    margin = scores.unsqueeze(1) - scores.unsqueeze(2)
    loss = torch.where(larger, (margin.sigmoid() + eps).log(), 0.0)
    return -loss.sum() / larger.sum().clamp(min=1)


def uniformity(features: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of rows, each with itself included. features: [B, D].

    The spectral form of uniformity (HaoChen et al. 2021, arXiv:2106.04156) that U-MAE (arXiv:2210.08344)
    adds. The mean over pairs is the squared norm of the rows' second moment, which is smaller to compute
    where rows are many.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = F.normalize(features, dim=1)
        product = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        return product.square().sum() / len(rows) ** 2

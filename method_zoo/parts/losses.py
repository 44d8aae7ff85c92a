"""Distances between predictions and targets. They see no model.

Predictions may come in a lower precision than targets; a loss is computed in the target's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch, [B, n]. predicted, target: [B, n, D]."""
    return (predicted.to(target.dtype) - target).square().mean(-1)


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

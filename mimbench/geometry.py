"""What the geometry of features says without any label: how many directions they fill, how alike two are."""

from __future__ import annotations

import torch
from torch import Tensor

RANKME_EPS = 1e-7  # of RankMe's formula, for float32 features


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment in [0, 1] of features [N, D] and [N, E] (arXiv:1905.00414, eq. 3-4).

    1 where one is the other turned, moved and scaled; 0 where either never changes. float64.
    """
    x, y = (features.double() - features.double().mean(0) for features in (x, y))
    # ||Yᵀ X||² of features equals the inner product of the N x N kernels; the smaller one is computed.
    if len(x) < max(x.shape[1], y.shape[1]):
        kernels = [features @ features.T for features in (x, y)]
        shared, own = (kernels[0] * kernels[1]).sum(), [(k * k).sum() for k in kernels]
    else:
        shared = (y.T @ x).square().sum()
        own = [(features.T @ features).square().sum() for features in (x, y)]
    scale = float((own[0] * own[1]).sqrt())
    return float(shared) / scale if scale > 0 else 0.0


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv:2210.02885, eq. 2-3) of features [N, D], between 1 and min(N, D).

    exp of the entropy of the singular values as shares of their sum. 1 for features that never change.
    """
    count, width = features.shape
    x = features.double()
    # Singular values by the smaller of the two Gram matrices.
    gram = x.T @ x if width <= count else x @ x.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-300) + RANKME_EPS
    return float(torch.exp(-(shares * shares.log()).sum()))

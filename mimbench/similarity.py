"""How alike two sets of features of the same images are."""

from __future__ import annotations

from torch import Tensor


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

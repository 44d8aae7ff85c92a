"""What a method predicts, computed from the unmasked image."""

from __future__ import annotations

from torch import Tensor


def normalised(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Patches [..., D], each with mean 0 and variance 1 over its D numbers.

    MAE's target (arXiv:2111.06377): unbiased variance, ``eps`` added to it.
    """
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + eps).sqrt()

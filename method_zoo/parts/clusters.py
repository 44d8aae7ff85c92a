"""Two clusters of an image's patches, and how much each patch belongs to the one that stands out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ITERATIONS = 64  # of the power method; each is two products with the features


def normalised_cut(features: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Relaxed normalised cut (Shi & Malik 2000, doi:10.1109/34.868688) of each image's patches.

    features: [B, N, D]. Returns [B, N] of length 1: the generalised eigenvector of the second smallest
    eigenvalue, whose sign tells the two sides. Edges of the graph are (1 + cosine) / 2, so that its matrix
    is a Gram matrix of rank D + 1, is never formed, and after normalisation has no negative eigenvalue
    the power method could run into. It starts at the patch least like the others.
    """
    unit = F.normalize(features, dim=-1)
    degree = (features.shape[1] + (unit @ unit.sum(1).unsqueeze(-1)).squeeze(-1)) / 2  # [B, N]
    root = degree.clamp_min(torch.finfo(degree.dtype).tiny).sqrt()
    first = F.normalize(root, dim=1)  # the eigenvector of no cut at all

    def without_first(v: Tensor) -> Tensor:
        return F.normalize(v - (v * first).sum(1, keepdim=True) * first, dim=1)

    v = without_first(F.one_hot(degree.argmin(1), degree.shape[1]).to(degree.dtype))
    for _ in range(iterations):
        w = v / root
        edges = w.sum(1, keepdim=True) + (unit @ (unit.transpose(1, 2) @ w.unsqueeze(-1))).squeeze(-1)
        v = without_first(edges / root)
    return F.normalize(v / root, dim=1)


@torch.no_grad()
def object_scores(features: Tensor) -> Tensor:
    """How alike each patch is to the image's object: mean cosine with its patches, [B, N].

    features: [B, N, D]. The object is the side of the cut that holds the patch furthest from it
    (TokenCut, Wang et al. 2022, arXiv:2202.11539).
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        cut = normalised_cut(features)
        furthest = cut.gather(1, cut.abs().argmax(1, keepdim=True))
        inside = (cut * furthest > 0).to(features.dtype).unsqueeze(-1)
        unit = F.normalize(features, dim=-1)
        mean = (unit * inside).sum(1) / inside.sum(1).clamp_min(1)  # [B, D]
        return (unit @ mean.unsqueeze(-1)).squeeze(-1)

"""Two clusters of an image's patches, and how much each patch belongs to the one that stands out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DOUBLINGS = 8  # 256 steps of the power method


def normalised_cut(features: Tensor, doublings: int = DOUBLINGS) -> Tensor:
    """Relaxed normalised cut (Shi & Malik 2000, doi:10.1109/34.868688) of each image's patches.

    features: [B, N, D]. Returns [B, N] of length 1: the generalised eigenvector of the second smallest
    eigenvalue, whose sign tells the two sides. Edges of the graph are (1 + cosine) / 2: these make a Gram
    matrix, so that after normalisation no eigenvalue is negative and a high power of it, by repeated
    squaring, is all but the wanted vector times itself. Eigenvectors proper take far longer on a GPU.
    """
    unit = F.normalize(features, dim=-1)
    edges = (1 + unit @ unit.transpose(1, 2)) / 2
    root = edges.sum(2).sqrt()  # [B, N]; a patch's edge to itself keeps it from zero
    first = F.normalize(root, dim=1)  # the eigenvector of no cut at all
    power = edges / (root.unsqueeze(1) * root.unsqueeze(2)) - first.unsqueeze(1) * first.unsqueeze(2)
    for _ in range(doublings):
        power = F.normalize(power.flatten(1), dim=1).view_as(power)
        power = power @ power
    largest = power.diagonal(dim1=1, dim2=2).argmax(1)
    return F.normalize(power[torch.arange(len(power), device=power.device), largest] / root, dim=1)


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

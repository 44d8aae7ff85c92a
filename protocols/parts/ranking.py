"""How well each image finds the others of its class, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**23  # similarities ranked at once: 32 MB, and ten times that while they are


class Ranked(NamedTuple):
    """What became of each query."""

    average_precision: Tensor  # float64 [Q]; 0 where there is nothing to find
    found: Tensor  # bool [ks, Q], whether the k nearest hold one of the class
    findable: Tensor  # bool [Q], whether another image of the class is there


def rank(features: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int]) -> Ranked:
    """Each query ranks all other images by cosine similarity; those of its class are relevant.

    features: [N, D] of unit rows. labels: int64 [N]. queries: int64 [Q], which of the N ask. ks: below N.

    Average precision is Σ (R_i - R_(i-1)) P_i over the distinct similarities, as scikit-learn's
    ``average_precision_score``: equally similar images count as retrieved together, so that their order
    decides nothing. Within the k nearest, equally similar ones stand in the order of the split.
    """
    count = len(features)
    height = max(1, BLOCK // count)
    places = torch.arange(count, device=features.device)
    precisions, founds, findable = [], [], []
    for asking in queries.split(height):
        similarity = features[asking] @ features.T
        similarity.scatter_(1, asking[:, None], -torch.inf)  # the query itself comes last
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        match = labels[order] == labels[asking, None]
        match[:, -1] = False
        retrieved = match.cumsum(1, dtype=torch.int32)
        relevant = retrieved[:, -1]
        is_last = torch.ones_like(match)
        is_last[:, :-1] = similarity[:, 1:] != similarity[:, :-1]
        ends = torch.where(is_last, places, count).flip(1).cummin(1).values.flip(1)
        precision = retrieved.gather(1, ends).double() / (ends + 1)
        precisions.append((precision * match).sum(1) / relevant.clamp(min=1))
        founds.append(torch.stack([retrieved[:, k - 1] > 0 for k in ks]))
        findable.append(relevant > 0)
    return Ranked(torch.cat(precisions), torch.cat(founds, 1), torch.cat(findable))

"""Grouping alike tokens: bipartite soft matching (ToMe, arXiv:2210.09461), a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def merged_groups(features: Tensor, per_round: Tensor, rounds: Tensor, max_rounds: int) -> Tensor:
    """Which tokens end up as one, int64 [B, N]: tokens of a row with equal numbers are a group.

    In a round, the tokens at even places look for the most similar one (cosine) at odd places, and the
    ``per_round`` pairs that are most alike become their mean, weighted by how many tokens each stands for.
    What is left lines up anew: even places first, then odd ones. At most half of a row's tokens go in a
    round, and the first one, where a class token would be, looks for none.

    features: [B, N, D]. per_round, rounds: int64 [B], of each row; rounds are at most ``max_rounds``.
    """
    batch, n, _ = features.shape
    device = features.device
    x, size = features, features.new_ones(batch, n)
    count = torch.full((batch, 1), n, device=device)  # tokens left; what stands after them has size 0
    group = torch.arange(n, device=device).expand(batch, -1)
    even, odd = torch.arange(0, n, 2, device=device), torch.arange(1, n, 2, device=device)
    with torch.autocast(features.device.type, enabled=False):
        for turn in range(max_rounds):
            gone = torch.minimum(per_round.unsqueeze(1), (count - 1) // 2)
            gone = gone.masked_fill((turn >= rounds).unsqueeze(1), 0)
            unit = F.normalize(x, dim=-1)
            likeness = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
            likeness = likeness.masked_fill((odd >= count).unsqueeze(1), -torch.inf)
            best, partner = likeness.max(-1)
            best = best.masked_fill((even >= count) | (even == 0), -torch.inf)
            rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            merges = rank < gone

            stays = (even < count) & ~merges
            place_even = stays.cumsum(1) - 1
            place_odd = stays.sum(1, keepdim=True) + torch.arange(len(odd), device=device)
            place_even = torch.where(merges, place_odd.gather(1, partner), place_even)
            place = torch.empty_like(group)
            place[:, ::2], place[:, 1::2] = place_even, place_odd

            weighted = x * size.unsqueeze(-1)
            size = torch.zeros_like(size).scatter_add_(1, place, size)
            x = torch.zeros_like(x).scatter_add_(1, place.unsqueeze(-1).expand_as(x), weighted)
            x = x / size.clamp(min=1).unsqueeze(-1)
            group = place.gather(1, group)
            count = count - gone
    return group


def group_means(tokens: Tensor, groups: Tensor) -> Tensor:
    """Each token [B, N, D] replaced by the mean of its group; groups: int64 [B, N], numbers below N.

    1e-6 is added to what a sum is divided by, as in DTM's code (arXiv:2401.00254).
    """
    index = groups.unsqueeze(-1).expand_as(tokens)
    sums = torch.zeros_like(tokens).scatter_add(1, index, tokens)
    sizes = torch.zeros_like(tokens[..., 0]).scatter_add(1, groups, torch.ones_like(tokens[..., 0]))
    return (sums / (sizes.unsqueeze(-1) + 1e-6)).gather(1, index)

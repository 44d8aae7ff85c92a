"""Merging of alike tokens, against a plain loop over one image's tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from method_zoo.parts.merging import group_means, merged_groups
from mimbench import rng

from .build import build


def merged_one_by_one(features: np.ndarray, per_round: int, rounds: int) -> set[frozenset[int]]:
    """Bipartite soft matching as arXiv:2210.09461, section 3, tells it, with lists: groups of places."""
    tokens = [(frozenset([i]), feature) for i, feature in enumerate(features)]
    for _ in range(rounds):
        a, b = tokens[0::2], list(tokens[1::2])
        edges = []
        for i, (_, x) in enumerate(a):
            likeness = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for _, y in b]
            if i > 0:
                j = int(np.argmax(likeness))
                edges.append((likeness[j], i, j))
        chosen = sorted(edges, reverse=True)[: min(per_round, (len(tokens) - 1) // 2)]
        for j in {j for _, _, j in chosen}:
            members = [b[j], *(a[i] for _, i, to in chosen if to == j)]
            places = frozenset().union(*(places for places, _ in members))
            b[j] = (places, features[list(places)].mean(0))
        gone = {i for _, i, _ in chosen}
        tokens = [token for i, token in enumerate(a) if i not in gone] + b
    return {places for places, _ in tokens}


def as_sets(group: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset((group == g).nonzero().flatten().tolist()) for g in group.unique()}


@pytest.mark.parametrize("n", [2, 9, 16, 25])
def test_a_batch_of_schedules_merges_as_each_image_alone(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    batch, max_rounds = 40, 6
    features = torch.randn(batch, n, 5, dtype=torch.float64, generator=generator)
    per_round = torch.randint(0, n, (batch,), generator=generator)
    rounds = torch.randint(1, max_rounds + 1, (batch,), generator=generator)
    groups = merged_groups(features, per_round, rounds, max_rounds)
    assert int(groups.min()) >= 0
    assert int(groups.max()) < n
    for row, feature, r, k in zip(groups, features, per_round.tolist(), rounds.tolist(), strict=True):
        assert as_sets(row) == merged_one_by_one(feature.numpy(), r, k)


def test_tokens_that_are_copies_become_one_and_others_do_not() -> None:
    kinds = torch.tensor([0, 1, 1, 0, 2, 2, 0, 2])
    features = torch.eye(4)[kinds][None] + 0.01 * torch.arange(8).view(1, -1, 1)
    groups = merged_groups(features, torch.tensor([3]), torch.tensor([1]), 1)
    # The first looks for none; two at odd places do not look for each other.
    expected = [{0}, {1, 2}, {3, 6}, {4, 5}, {7}]
    assert as_sets(groups[0]) == {frozenset(places) for places in expected}


def test_tokens_become_the_mean_of_their_group() -> None:
    tokens = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([[0, 3, 0, 3, 0], [4, 1, 2, 0, 3]])
    means = group_means(tokens, groups)
    for b in range(2):
        for n in range(5):
            members = tokens[b][groups[b] == groups[b, n]]
            expected = members.sum(0) / (len(members) + 1e-6)
            torch.testing.assert_close(means[b, n], expected, rtol=1e-12, atol=1e-12)
    means[0, 0].sum().backward()
    assert (tokens.grad[0][groups[0] == 0] > 0).all()
    assert not tokens.grad[0][groups[0] == 3].any()


def test_a_schedule_is_drawn_evenly_for_each_image_and_level() -> None:
    method = build("dtm", max_rounds=4, max_merged=0.5)
    keys = torch.from_numpy(rng.sample_keys(0, 0, np.arange(9000)))
    merged, rounds = method.schedule(keys)
    assert merged.shape == rounds.shape == (9000, 2)
    for drawn, lowest, highest in ((merged, 0, 8), (rounds, 1, 4)):
        counts = drawn.flatten().bincount(minlength=highest + 1)
        assert counts[:lowest].sum() == 0
        assert len(counts) == highest + 1
        expected = drawn.numel() / (highest - lowest + 1)
        assert (counts[lowest:] - expected).abs().max() < 5 * math.sqrt(expected)
    both = torch.stack([merged[:, 0], merged[:, 1], rounds[:, 0], rounds[:, 1]]).double()
    assert (torch.corrcoef(both) - torch.eye(4)).abs().max() < 0.05


def test_a_schedule_never_merges_more_than_allowed() -> None:
    """naver-ai/dtm's rule: rounded up, unless the rounds would then merge more than allowed in all."""
    method = build("dtm", max_rounds=14)
    merged, rounds = torch.meshgrid(torch.arange(17), torch.arange(1, 15), indexing="ij")
    merged, rounds = merged.flatten()[:, None], rounds.flatten()[:, None]
    features = torch.randn(len(merged), 16, 8, generator=torch.Generator().manual_seed(0))
    method.levels = 1
    (groups,) = method.groups(features, merged, rounds)
    for group, m, k in zip(groups, merged[:, 0].tolist(), rounds[:, 0].tolist(), strict=True):
        up = math.ceil(m / k)
        r = up if up * k <= 16 else math.floor(m / k)
        left = 16
        for _ in range(k):
            left -= min(r, (left - 1) // 2)
        assert len(group.unique()) == left

"""What methods with a frozen teacher share, against brute force and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from method_zoo.parts.masking import weighted_order
from method_zoo.parts.targets import normalised_features
from mimbench import rng


def sample_keys(n: int) -> torch.Tensor:
    return torch.from_numpy(rng.sample_keys(3, 0, np.arange(n)))


def test_patches_are_drawn_in_proportion_to_their_weights() -> None:
    """Drawing without replacement one by one, in closed form: each order has a known probability."""
    weights = torch.tensor([0.5, 0.1, 0.3, 0.1])
    n = 40_000
    order = weighted_order(sample_keys(n), weights.expand(n, -1)).argsort(1)
    for first, second in itertools.permutations(range(4), 2):
        expected = float(weights[first] * weights[second] / (1 - weights[first]))
        found = ((order[:, 0] == first) & (order[:, 1] == second)).float().mean().item()
        assert found == pytest.approx(expected, abs=4 * (expected / n) ** 0.5)


def test_a_patch_without_weight_comes_last() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 1e-6, 2.0]).expand(200, -1)
    scores = weighted_order(sample_keys(200), weights)
    assert not scores.isnan().any()
    assert {frozenset(row) for row in scores.argsort(1)[:, :3].tolist()} == {frozenset({1, 3, 4})}


def test_a_weighted_draw_does_not_depend_on_the_batch_it_was_drawn_in() -> None:
    weights = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    whole = weighted_order(sample_keys(6), weights)
    assert torch.equal(whole[2:4], weighted_order(sample_keys(6)[2:4], weights[2:4]))
    assert not torch.equal(whole, weighted_order(sample_keys(6), weights, "another purpose"))


def test_teacher_features_are_normalised_one_by_one() -> None:
    features = torch.randn(2, 3, 5, dtype=torch.float64) * 4 + 1
    features[1, 2] = 0
    whitened, unit = (normalised_features(features, how) for how in ("whiten", "l2"))
    assert torch.equal(normalised_features(features, "none"), features)
    for b, n in itertools.product(range(2), range(3)):
        x = features[b, n].numpy()
        expected = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        np.testing.assert_allclose(whitened[b, n].numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(unit[b, n].numpy(), x / max(np.linalg.norm(x), 1e-12), rtol=1e-12)

"""Clusters of patches and the masks made of them, against dense eigenvectors and every possible cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from torch import Tensor

from method_zoo.parts.clusters import normalised_cut, object_scores
from method_zoo.selfguided_mae import SelfGuidedMAE
from mimbench.method import Step

from .build import batch, build


def clustered(n_object: int, n_rest: int, dim: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Patches around two directions, shuffled, [n, dim], and which of them are the object's."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, dim, generator=draw, dtype=torch.float64)
    which = torch.tensor([True] * n_object + [False] * n_rest)[
        torch.randperm(n_object + n_rest, generator=draw)
    ]
    patches = torch.where(which.unsqueeze(1), centres[0], centres[1])
    return patches + noise * torch.randn(len(which), dim, generator=draw, dtype=torch.float64), which


def graph(features: Tensor) -> np.ndarray:
    unit = features / features.norm(dim=1, keepdim=True)
    return ((1 + unit @ unit.T) / 2).numpy()


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_is_the_second_generalised_eigenvector(seed: int) -> None:
    features, _ = clustered(14, 35, 24, 0.8, seed)
    edges = graph(features)
    degree = np.diag(edges.sum(1))
    _, vectors = eigh(degree - edges, degree)
    expected = vectors[:, 1] / np.linalg.norm(vectors[:, 1])
    ours = normalised_cut(features[None], doublings=12)[0].numpy()
    assert abs(ours @ expected) == pytest.approx(1, abs=1e-9)
    quick = normalised_cut(features[None])[0].numpy()
    assert abs(quick @ expected) > 0.999


@pytest.mark.parametrize("seed", range(4))
def test_no_other_split_cuts_less(seed: int) -> None:
    """Of ten patches in two clear clusters, all 511 splits are tried."""
    features, _ = clustered(4, 6, 8, 0.3, seed)
    edges = graph(features)

    def ncut(side: np.ndarray) -> float:
        between = edges[side][:, ~side].sum()
        return between / edges[side].sum() + between / edges[~side].sum()

    splits = (np.array((True, *rest)) for rest in itertools.product((True, False), repeat=9))
    best = min((split for split in splits if not split.all()), key=ncut)
    ours = normalised_cut(features[None])[0].numpy() > 0
    assert (ours == best).all() or (ours == ~best).all()


def test_the_smaller_cluster_is_the_object_and_its_patches_score_highest() -> None:
    sets = [clustered(12, 37, 24, 0.4, seed) for seed in range(8)]
    scores = object_scores(torch.stack([features for features, _ in sets]))
    for row, (features, which) in zip(scores, sets, strict=True):
        assert set(row.argsort(descending=True)[:12].tolist()) == set(which.nonzero()[:, 0].tolist())
        unit = features / features.norm(dim=1, keepdim=True)
        expected = (unit @ unit[which].T).mean(1)
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


def test_the_score_of_an_image_does_not_depend_on_its_batch() -> None:
    features = torch.stack([clustered(12, 37, 24, 0.4, seed)[0] for seed in range(4)])
    whole = object_scores(features)
    torch.testing.assert_close(whole[1:2], object_scores(features[1:2]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("features", [torch.zeros(2, 9, 4), torch.ones(2, 9, 4)])
def test_patches_that_are_all_alike_still_give_numbers(features: Tensor) -> None:
    assert torch.isfinite(object_scores(features)).all()


@pytest.mark.parametrize("hint", [0.0, 0.1, 0.25])
def test_the_object_is_hidden_but_for_hints(hint: float) -> None:
    method = build("selfguided_mae", hint=hint, mask_ratio=0.5)
    assert isinstance(method, SelfGuidedMAE)
    scores = torch.rand(200, 16, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(200)
    mask = method.guided(scores, keys)
    assert (mask.sum(1) == 8).all()
    n_hints = round(hint * 8)
    shown = torch.zeros(8)
    for row, hidden in zip(scores, mask, strict=True):
        order = row.argsort(descending=True)
        assert int((~hidden[order[:8]]).sum()) == n_hints
        assert hidden[order[8 : 8 + n_hints]].all(), "the next in rank are hidden for them"
        shown += ~hidden[order[:8]]
    if n_hints:  # each of the eight is as often a hint
        assert (shown / 200 - n_hints / 8).abs().max() < 0.12


def test_masks_are_random_at_first_and_guided_later(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("selfguided_mae", hint=0.0)
    images, step = batch(method)
    seen: list[Tensor] = []
    monkeypatch.setattr(method, "losses", lambda images, mask, keys: seen.append(mask))
    for progress in (0.12, 0.13):
        method(images, Step(progress, step.keys))
    assert torch.equal(seen[0], method.masking(step.keys, (4, 4)))
    tokens = method.encoder.encode(images, layers=(-1,)).layers[0][1]
    top = object_scores(tokens).topk(12, dim=1).indices
    assert seen[1].gather(1, top).all()

"""Prototypes, centring and schedules against torch's own layers and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from method_zoo.backbones import build
from method_zoo.parts.prototypes import Centre, ProjectionHead, Prototypes, cross_entropy, sinkhorn, warmed_up
from method_zoo.parts.views import crop_size, view_keys
from mimbench import rng


@pytest.mark.parametrize("gain", [False, True])
def test_prototypes_are_a_weight_normalised_layer(gain: bool) -> None:
    ours = Prototypes(6, 9, gain=gain)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False))
    theirs.parametrizations.weight.original1.data = ours.weight.data.clone()
    theirs.parametrizations.weight.original0.data.fill_(1)
    x = F.normalize(torch.randn(5, 6), dim=-1)
    torch.testing.assert_close(ours(x), theirs(x))
    assert {name for name, _ in ours.named_parameters()} == ({"weight", "gain"} if gain else {"weight"})


def test_prototypes_held_still_get_no_gradient_but_pass_one_on() -> None:
    prototypes = Prototypes(6, 9)
    x = torch.randn(5, 6, requires_grad=True)
    prototypes(x, learn=False).square().sum().backward()
    assert not prototypes.weight.grad.any()  # zero, not None: processes wait for every gradient
    assert x.grad.any()
    torch.testing.assert_close(prototypes(x, learn=False), prototypes(x))


def test_a_projection_ends_on_the_sphere() -> None:
    head = ProjectionHead(6, 10, 4)
    torch.testing.assert_close(head(torch.randn(7, 3, 6)).norm(dim=-1), torch.ones(7, 3))
    assert [type(part).__name__ for part in head] == ["Linear", "GELU", "Linear", "GELU", "Linear"]


def test_a_centre_moves_once_a_step_by_all_that_was_seen() -> None:
    centre = Centre(3, momentum=0.9).train()
    first, second = torch.randn(8, 3), torch.randn(8, 3)
    centre.observe(first.mean(0))
    centre.observe(second.mean(0))
    assert not centre.value.any(), "a batch is not judged by its own mean"
    centre.update()
    expected = 0.1 * torch.cat([first, second]).mean(0)
    torch.testing.assert_close(centre.value, expected)
    centre.update()
    torch.testing.assert_close(centre.value, expected)
    torch.testing.assert_close(centre(first), first - expected)
    centre.eval().observe(first.mean(0))
    centre.update()
    torch.testing.assert_close(centre.value, expected)


def test_a_warm_up_ends_where_it_should() -> None:
    assert [warmed_up(0.04, 0.08, p, 0.5) for p in (0.0, 0.25, 0.5, 0.9)] == [0.04, 0.06, 0.08, 0.08]
    assert warmed_up(0.04, 0.08, 0.0, 0.0) == 0.08


def test_cross_entropy_is_torchs() -> None:
    logits, targets = torch.randn(4, 5), torch.rand(4, 5).softmax(-1)
    torch.testing.assert_close(cross_entropy(logits, targets).mean(), F.cross_entropy(logits, targets))


def test_balanced_assignments_are_a_transport_plan() -> None:
    """Many rounds reach the one scaling of rows and columns whose sums are even (Sinkhorn 1967)."""
    scores = torch.rand(12, 5, dtype=torch.float64) ** 3 + 1e-3
    plan = sinkhorn(scores, iterations=200)
    torch.testing.assert_close(plan.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64))
    ratio = (plan / scores).log()  # of a scaling of rows and columns: r_i + c_j
    torch.testing.assert_close(ratio - ratio[:1] - ratio[:, :1] + ratio[0, 0], torch.zeros_like(ratio))


def test_each_position_is_balanced_on_its_own() -> None:
    scores = torch.rand(3, 12, 5) + 0.1
    together = sinkhorn(scores, iterations=3)
    torch.testing.assert_close(together, torch.stack([sinkhorn(s, iterations=3) for s in scores]))


def test_a_prototype_far_from_everything_does_not_divide_by_zero() -> None:
    scores = torch.rand(6, 4)
    scores[:, 2] = 0
    assert sinkhorn(scores, iterations=3).isfinite().all()


@pytest.mark.parametrize(("size", "patch", "expected"), [(224, 16, 96), (128, 16, 48), (16, 4, 8), (8, 4, 4)])
def test_local_crops_are_whole_patches_of_the_published_share(size: int, patch: int, expected: int) -> None:
    backbone = build(f"vit_micro_patch{patch}", size)
    assert crop_size(backbone, 96 / 224) == expected
    assert crop_size(backbone, 1.0) == size


def test_each_view_of_each_image_draws_on_its_own() -> None:
    keys = torch.arange(5)
    both = view_keys(keys, (0, 3))
    assert len(set(both.tolist())) == 10
    assert torch.equal(both[5:], rng.branch(keys, "view 3"))

"""What CrossMAE, CAE, BootMAE, CroCo and DiffMAE promise beyond what every method must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from method_zoo.parts.masking import mask_from_scores
from mimbench.data.transforms import crop_box
from mimbench.errors import UserError

from .build import batch, build


def random_mask(n: int, hidden: int, seed: int = 0) -> Tensor:
    return mask_from_scores(torch.rand(n, 16, generator=torch.Generator().manual_seed(seed)), hidden)


def test_crossmae_predicts_a_patch_whatever_else_it_predicts() -> None:
    """Mask tokens do not see each other, so a loss over patches is the mean of losses over parts."""
    method = build("crossmae")
    images, _ = batch(method, n=4)
    mask = random_mask(4, 12)
    first = mask_from_scores(torch.rand(4, 16) + mask, 6)
    both = method.losses(images, mask, mask).total
    parts = [method.losses(images, mask, part).total for part in (first, mask & ~first)]
    torch.testing.assert_close(sum(parts) / 2, both)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mask_ratio": 0.5, "predicted_ratio": 0.6}, "more than is hidden"),
        ({"layers": [-1, -5]}, "2 blocks"),
    ],
)
def test_a_crossmae_that_cannot_be_is_refused_in_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("crossmae", **given)


def test_crossmae_predicts_only_what_is_hidden() -> None:
    method = build("crossmae", predicted_ratio=0.25)
    seen: list[tuple[Tensor, Tensor]] = []
    losses = method.losses
    method.losses = lambda images, mask, predicted, keys: (  # type: ignore[method-assign]
        seen.append((mask, predicted)) or losses(images, mask, predicted, keys)
    )
    method(*batch(method))
    mask, predicted = seen[0]
    assert (mask.sum(1) == 12).all()
    assert (predicted.sum(1) == 4).all()
    assert not (predicted & ~mask).any()


def test_the_views_of_croco_always_overlap() -> None:
    method = build("croco")
    views = (method.card.recipe.augmentation, method.views[0].augmentation)
    draw = np.random.default_rng(0)
    for _ in range(3000):
        boxes = [crop_box(256, 256, view.crop_scale, view.crop_ratio, draw) for view in views]
        (top, left, height, width), (other_top, other_left, other_height, other_width) = boxes
        assert top < other_top + other_height
        assert other_top < top + height
        assert left < other_left + other_width
        assert other_left < left + width


def test_croco_completes_with_the_help_of_its_reference() -> None:
    method = build("croco")
    images, step = batch(method, n=4)
    reference, mask = step.views[1].images, random_mask(4, 14)
    alike = method.losses(images, reference, mask).total
    assert alike != method.losses(images, reference.flip(0), mask).total

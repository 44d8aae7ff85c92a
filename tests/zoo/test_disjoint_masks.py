"""Disjoint masks: how much two of them hide together, and what they depend on."""

from __future__ import annotations

import pytest
import torch

from method_zoo.parts.disjoint_masks import DisjointMask
from mimbench.errors import UserError

KEYS = torch.arange(1000) * 7919
GRID = (14, 14)


@pytest.mark.parametrize(("ratio", "unit", "hidden"), [(0.6, 2, 4 * 30), (0.75, 1, 147), (0.5, 1, 98)])
def test_no_patch_is_shown_twice(ratio: float, unit: int, hidden: int) -> None:
    first, second = DisjointMask(ratio, unit)(KEYS, GRID)
    assert torch.equal(first.sum(1), torch.full((1000,), hidden))
    assert torch.equal(second.sum(1), torch.full((1000,), hidden))
    assert (first | second).all()


def test_small_ratios_hide_nothing_twice() -> None:
    first, second = DisjointMask(0.25)(KEYS, GRID)
    assert not (first & second).any()


def test_less_cover_hides_fewer_fresh_patches() -> None:
    first, second = DisjointMask(0.6, covered=0.8)(KEYS, GRID)
    assert torch.equal((second & ~first).sum(1), torch.full((1000,), int(0.2 * 196)))
    assert torch.equal(second.sum(1), first.sum(1))


def test_what_is_hidden_again_hangs_on_no_draw_of_the_first_mask() -> None:
    """Every hidden patch is as likely to be hidden again, however surely the first mask hid it."""
    sampler = DisjointMask(0.75)
    first, second = sampler(KEYS, GRID)
    shares = (first & second).float().sum(0) / first.float().sum(0)
    expected = (147 - 49) / 147
    assert (shares - expected).abs().max() < 5 * (expected * (1 - expected) / 750) ** 0.5


def test_cells_are_hidden_as_a_whole() -> None:
    for mask in DisjointMask(0.6, 2)(KEYS, GRID):
        cells = mask.view(-1, 7, 2, 7, 2)
        assert torch.equal(cells.amin((2, 4)), cells.amax((2, 4)))


def test_a_cover_below_the_ratio_is_refused() -> None:
    with pytest.raises(UserError, match="each cover that much or more"):
        DisjointMask(0.6, covered=0.5)

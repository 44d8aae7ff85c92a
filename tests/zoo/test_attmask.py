"""AttMask's masks against the official ones, on the same attention and draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from method_zoo.attmask import AttMask
from method_zoo.parts.varying_masks import most_attended, reveal_hints
from mimbench import registry
from tests.parity.formula import tensor

from .build import batch, build

FIGURES = Path(__file__).parents[1] / "parity" / "figures"
FIGURE = json.loads((FIGURES / "attmask" / "masks.json").read_text())
ATTENTION = tensor(FIGURE["inputs"]["attention"]).float()


def ours(case: dict[str, Any]) -> Tensor:
    """Our mask on a case's draws."""
    masked = tensor(case["rng"][0]) <= case["masking_prob"]
    share = case["masking_ratio"] * masked.double()
    mask = most_attended(-ATTENTION if case["mode"] == "attmask_low" else ATTENTION, share)
    if case["mode"] != "attmask_hint":
        return mask
    scores = torch.zeros_like(ATTENTION).scatter_(1, tensor(case["rng"][-1]), 1.0)  # what was drawn first
    shown = torch.full((len(ATTENTION),), case["show_ratio"], dtype=torch.float64)
    return reveal_hints(mask, ATTENTION, case["show_max"], shown, scores)


@pytest.mark.parametrize("case", FIGURE["cases"], ids=lambda c: f"{c['mode']}-{c['masking_prob']}")
def test_masks_are_the_official_ones(case: dict[str, Any]) -> None:
    official = tensor(case["mask"]).bool()
    mask = ours(case)
    for a, found, expected in zip(ATTENTION, mask, official, strict=True):
        # Equal attention may be sorted either way; all else agrees patch by patch.
        assert torch.equal(a[found].sort().values, a[expected].sort().values)
        unique = torch.isin(a, a[found != expected], invert=True)
        assert torch.equal(found[unique], expected[unique])
        assert int((~unique).sum()) <= 4


def test_hints_are_shown_of_the_most_attended_patches_only() -> None:
    share = torch.full((6,), 0.5, dtype=torch.float64)
    high = most_attended(ATTENTION, share)
    mask = reveal_hints(high, ATTENTION, 0.1, share / 10, torch.rand(6, 196))
    shown = high & ~mask
    assert torch.equal(shown.sum(1), torch.full((6,), 9))  # int(196 * 0.05)
    for a, row in zip(ATTENTION, shown, strict=True):
        assert a[row].min() >= a.sort(descending=True).values[18]  # the top int(196 * 0.1)


@pytest.mark.parametrize("mode", ["high", "low"])
def test_the_student_is_hidden_what_the_teacher_attends_to(mode: str) -> None:
    method = build("attmask", mode=mode, unmasked=0.0, mask_ratio=0.4, mask_spread=0.0)
    _, step = batch(method)
    crops = [view.images for view in step.views]
    whole = method.seen_whole(crops)
    mask = method.masks(whole, torch.arange(16))
    attention = whole.attention[:, :, 0, 1:].mean(1)
    assert torch.equal(mask.sum(1), torch.full((16,), 6))
    hidden, visible = attention.masked_fill(~mask, torch.nan), attention.masked_fill(mask, torch.nan)
    if mode == "low":
        hidden, visible = visible, hidden
    assert (hidden.nan_to_num(torch.inf).amin(1) >= visible.nan_to_num(-torch.inf).amax(1)).all()


def test_the_loss_is_the_one_that_is_verified() -> None:
    assert AttMask.losses is registry.find_method("ibot").losses

"""Histograms of gradients against the official operators and gradients whose histogram is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from method_zoo.parts.hog import HOG, cell_side
from mimbench.errors import UserError
from tests.parity.formula import fill, tensor


def figures(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "figures" / f"{name}.json").read_text())


def assert_near(ours: Tensor, statistics: dict[str, Any], verbatim: Tensor, atol: float) -> None:
    """Compare with an official output, of which statistics are held and the first image's first colour."""
    torch.testing.assert_close(ours[0, 0].double(), verbatim, rtol=0, atol=atol)
    found = [ours.mean(), ours.std(correction=0), ours.norm(), *ours.flatten()[:4]]
    expected = [statistics[name] for name in ("mean", "std", "l2")] + statistics["first"]
    assert torch.stack(found).tolist() == pytest.approx(expected, rel=1e-5, abs=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_histograms_are_maskfeat_s(dtype: torch.dtype) -> None:
    record = figures("hog_maskfeat")
    images = tensor(record["inputs"]["img"]).to(dtype)
    for name, window in (("hog", 0), ("hog_gauss16", 16)):
        verbatim = tensor(record["outputs_verbatim"][f"{name}_first_image_first_channel"])
        assert_near(HOG(cell=8, window=window)(images), record["outputs"][name], verbatim, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_histograms_are_dmjd_s(dtype: torch.dtype) -> None:
    record = figures("hog_dmjd")
    entry = record["inputs"]["img"]
    images = (fill(entry["fill"], tuple(entry["shape"])) * 127.5 + 127.5).round().to(dtype)
    verbatim = tensor(record["outputs_verbatim"]["hog_first_image_first_channel"])
    ours = HOG(cell=8, sobel=False, normalise=False)(images).permute(0, 1, 3, 4, 2)
    assert_near(ours, record["outputs"]["hog"], verbatim, 1e-4)


@pytest.mark.parametrize("sobel", [True, False])
@pytest.mark.parametrize("degrees", range(5, 180, 10))
def test_a_slope_falls_into_the_bin_of_its_direction(degrees: int, sobel: bool) -> None:
    """A plane that rises towards ``degrees`` from the horizontal, away from the mirrored border."""
    angle = math.radians(degrees)
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    plane = (math.cos(angle) * x + math.sin(angle) * y)[None, None]
    inner = HOG(cell=8, sobel=sobel)(plane)[0, 0, :, 1, 1]
    from_axis = (90 - degrees) % 180 if sobel else degrees
    assert inner.argmax() == from_axis // 20
    assert inner.max() == pytest.approx(1)
    assert torch.equal(inner.count_nonzero(), torch.tensor(1))


def test_unnormalised_histograms_hold_mean_gradient_lengths() -> None:
    ramp = 3.0 * torch.arange(16.0).expand(1, 2, 16, 16)
    histogram = HOG(cell=4, sobel=False, normalise=False)(ramp)
    assert histogram.shape == (1, 2, 9, 4, 4)
    assert torch.equal(histogram[:, :, 0, :, 1:-1], torch.full((1, 2, 4, 2), 6.0))
    assert histogram[:, :, 1:].count_nonzero() == 0


def test_a_flat_image_has_no_gradients_and_no_nan() -> None:
    assert HOG(cell=4)(torch.ones(1, 3, 8, 8)).count_nonzero() == 0


def test_half_precision_around_the_target_changes_nothing() -> None:
    images = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = HOG(cell=4)(images)
    assert torch.equal(rounded, HOG(cell=4)(images))


def test_cells_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="do not tile an image of 20x20"):
        HOG(cell=8)(torch.zeros(1, 3, 20, 20))
    with pytest.raises(UserError, match="windows of 16 pixels"):
        HOG(cell=8, window=16)(torch.zeros(1, 3, 24, 24))
    with pytest.raises(UserError, match="a multiple of 4"):
        cell_side(14, 4)

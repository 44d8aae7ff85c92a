"""Masks out of filtered noise: the official cut, the filters' correlations in closed form, exact counts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import correlate2d
from torch import Tensor

from method_zoo.parts.masking import RandomMask
from method_zoo.parts.noise import NoiseMask, _blurred, weakest
from mimbench import rng
from mimbench.errors import UserError
from tests.parity.formula import tensor

COLORS = ("red", "blue", "green", "purple")
RECORD = Path(__file__).parents[1] / "parity" / "figures" / "colormae" / "masks.json"


def keys(n: int) -> Tensor:
    return torch.from_numpy(rng.sample_keys(5, 0, np.arange(n)))


def windows(patterns: Tensor, case: dict, side: int) -> Tensor:
    """What the official code cuts out of its patterns: all of them at one random place, flipped alike."""
    draws = [drawn["values"][0] for drawn in case["rng"]]
    cuts = []
    for top, left, mirror, turn in np.reshape(draws, (-1, 4)):
        top, left = int(top), int(left)
        cut = patterns[:, top : top + side, left : left + side]
        cut = cut.flip(2) if mirror < 0.5 else cut
        cuts.append(cut.flip(1) if turn < 0.5 else cut)
    return torch.cat(cuts)[: case["B"]]


@pytest.mark.parametrize("number", [0, 1])
def test_noise_becomes_the_official_mask(number: int) -> None:
    record = json.loads(RECORD.read_text())
    case, config = record["cases"][number], record["config"]
    noise = windows(tensor(record["inputs"]["patterns"]), case, config["window"])
    noise = noise / noise.amax((1, 2), keepdim=True)
    assert noise.mean().item() == pytest.approx(case["window"]["mean"], abs=1e-6)
    mask = weakest(noise, NoiseMask(config["mask_ratio"]).n_hidden((config["window"],) * 2))
    assert torch.equal(mask, tensor(case["mask"]).bool())


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.75), ((4, 4), 0.75), ((8, 8), 0.6), ((5, 9), 0.3)])
def test_every_image_hides_exactly_as_many(color: str, grid: tuple[int, int], ratio: float) -> None:
    mask = NoiseMask(ratio, color)(keys(64), grid)
    n = grid[0] * grid[1]
    assert (mask.sum(1) == n - int(n * (1 - ratio))).all()
    assert torch.equal(mask.sum(1), RandomMask(ratio)(keys(64), grid).sum(1))


def kernel(color: str, narrow: float, wide: float) -> np.ndarray:
    """The filter as scipy draws it: what it makes of a single point."""
    point = np.zeros((61, 61))
    point[30, 30] = 1

    def blur(sigma: float) -> np.ndarray:
        return gaussian_filter(point, sigma, radius=int(np.ceil(4 * wide)))

    band = blur(narrow) - blur(wide)
    return {"red": blur(wide), "blue": point - blur(narrow), "green": band, "purple": point - band}[color]


@pytest.mark.parametrize("color", COLORS)
def test_the_noise_has_the_colour_its_filter_gives(color: str) -> None:
    """Its correlation at every lag is the filter's own, which determines the spectrum (Wiener-Khinchin)."""
    narrow, wide, side, n, lags = 0.6, 1.7, 24, 3000, 5
    expected = correlate2d(kernel(color, narrow, wide), kernel(color, narrow, wide), "same")[30:, 30:]
    noise = NoiseMask(0.75, color, narrow, wide).noise(keys(n), (side, side)).numpy()
    assert abs(noise.mean()) < 0.01
    scale = expected[0, 0]
    for dy, dx in itertools.product(range(lags), repeat=2):
        product = noise[:, dy:, dx:] * noise[:, : side - dy, : side - dx]
        per_image = product.mean((1, 2))
        error = per_image.std() / np.sqrt(n)
        assert abs(per_image.mean() - expected[dy, dx]) < 5 * error + 1e-3 * scale, (dy, dx)


def test_another_colour_would_be_noticed() -> None:
    side, n = 24, 500
    found = {color: NoiseMask(0.75, color).noise(keys(n), (side, side)).numpy() for color in COLORS}
    neighbour = {c: (x[:, 1:] * x[:, :-1]).mean() / (x * x).mean() for c, x in found.items()}
    assert neighbour["red"] > 0.9
    assert 0.6 < neighbour["green"] < 0.7
    assert neighbour["blue"] < -0.1
    parts = sum(found[color] for color in ("red", "green", "blue"))
    assert abs((parts[:, 1:] * parts[:, :-1]).mean()) < 0.01, "together they are the white noise"


def test_a_gaussian_is_the_one_it_is_called() -> None:
    noise = torch.randn(3, 40, 44, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = _blurred(noise, 1.3, 6)
    for image, blurred in zip(noise.numpy(), ours.numpy(), strict=True):
        np.testing.assert_allclose(blurred, gaussian_filter(image, 1.3, radius=6)[6:-6, 6:-6], atol=1e-12)


def test_clusters_are_as_large_as_the_colour_says() -> None:
    """Hidden patches have most hidden neighbours under red noise, fewer under green, least under blue."""

    def neighbours(mask: Tensor) -> float:
        grid = mask.view(-1, 14, 14).float()
        pairs = (grid[:, 1:] * grid[:, :-1]).sum() + (grid[:, :, 1:] * grid[:, :, :-1]).sum()
        return float(2 * pairs / grid.sum())

    found = {color: neighbours(NoiseMask(0.75, color)(keys(1000), (14, 14))) for color in COLORS}
    white = neighbours(RandomMask(0.75)(keys(1000), (14, 14)))
    assert found["red"] > found["green"] > white > found["blue"]


def test_a_mask_depends_on_its_key_alone() -> None:
    masking = NoiseMask(0.75)
    whole = masking(keys(8), (14, 14))
    assert torch.equal(whole[3:5], masking(keys(8)[3:5], (14, 14)))
    assert len({tuple(row.tolist()) for row in whole}) == 8


def test_noise_that_cannot_be_filtered_is_refused() -> None:
    with pytest.raises(UserError, match="narrow must lie between"):
        NoiseMask(0.75, "green", narrow=2.0, wide=2.0)
    with pytest.raises(UserError, match="red, blue, green or purple"):
        NoiseMask(0.75, "pink")
    with pytest.raises(UserError, match="hides no patch"):
        NoiseMask(1e-17)(keys(1), (2, 2))

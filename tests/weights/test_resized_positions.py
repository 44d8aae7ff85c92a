"""A released encoder brought to images of another size: as timm and BEiT's own code bring it there."""

from __future__ import annotations

from pathlib import Path

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from timm.models.beit import checkpoint_filter_fn
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones import build
from method_zoo.backbones.positions import sincos_positions
from method_zoo.backbones.relative import RelativePositions
from mimbench.checkpoint import load_encoder
from mimbench.encoder import Encoder
from mimbench.weights.convert import convert

from .proof import images_of, small
from .proofs._beit import IMAGE_SIZE, SIZES, beit

LARGER = 96
OPTIONS = {
    "beit@vit_base": {},
    "beit@vit_base-ft22k": {"fine_tuned": True},
    "beit@vit_base-pt1k": {
        "use_abs_pos_emb": True,
        "use_shared_rel_pos_bias": False,
        "init_values": None,
    },
}


def _resized(name: str, state: dict[str, Tensor], size: int, folder: Path) -> Encoder:
    torch.save({"model": state}, folder / "official.pth")
    entry = small(name, image_size=IMAGE_SIZE, options=SIZES)
    converted = convert(folder / "official.pth", entry, folder / "encoder.safetensors")
    return load_encoder(converted.path).resized(size)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # within timm
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("size", [32, LARGER])
def test_tokens_at_another_size_are_those_of_timm_s_interpolation(
    name: str, size: int, tmp_path: Path
) -> None:
    state = beit(**OPTIONS[name]).state_dict()
    model = beit(size, **OPTIONS[name])
    model.load_state_dict(checkpoint_filter_fn(state, model))
    images = images_of(size)
    ours = _resized(name, state, size, tmp_path).backbone.double()
    with torch.no_grad():
        expected, found = model.forward_features(images), ours.encode(images)
    # timm interpolates in float32, which the blocks enlarge somewhat.
    torch.testing.assert_close(found.patches, expected[:, 1:], rtol=0, atol=2e-5)
    torch.testing.assert_close(found.cls, expected[:, 0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("new", [12, 24, 32])  # images of 192, 384 and 512 pixels
def test_absolute_positions_at_another_size_are_near_beit_s_own(new: int) -> None:
    """BEiT's and MAE's code takes torch's plain bicubic weights, timm those with smoothing, also for larger
    images. On a table as smooth as sin-cos positions are, they part by about 1 % (root mean square)."""
    old = 14
    backbone = build("vit_micro_patch16", 224, positions="learned", cls_token=False)
    table = sincos_positions(64, (old, old))[None]
    with torch.no_grad():
        backbone.pos_embed.copy_(table)
    found = backbone.rebuilt(image_size=16 * new).pos_embed
    square = table.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    expected = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    expected = expected.flatten(2).transpose(1, 2)
    apart = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0.005 < apart < 0.02


def _geometric(source: int, target: int) -> list[float]:
    """Where the offsets of a table of side ``source`` lie on one of side ``target``, as BEiT's code has it:
    the step from each to the next, counted from the middle, grows by a factor that makes the ends meet."""
    half, low, high = source // 2, 1.01, 1.5
    while high - low > 1e-6:
        factor = (low + high) / 2
        reach = (1 - factor**half) / (1 - factor)
        low, high = (low, factor) if reach > target // 2 else (factor, high)
    places = np.cumsum([factor**i for i in range(half)])
    return [*(-places[::-1]), 0.0, *places]


def _spline(table: Tensor, old: int, new: int) -> Tensor:
    """BEiT's interpolation of a table [(2·old - 1)² + 3, heads]: a cubic spline through those places."""
    source, target = 2 * old - 1, 2 * new - 1
    places, wanted = _geometric(source, target), np.arange(target) - target // 2
    heads = [
        RectBivariateSpline(places, places, head.view(source, source).numpy(), kx=3, ky=3)(wanted, wanted)
        for head in table[:-3].T
    ]
    return torch.cat([torch.from_numpy(np.stack(heads)).flatten(1).T, table[-3:]])


@pytest.mark.parametrize("new", [12, 24, 32])  # images of 192, 384 and 512 pixels
def test_relative_positions_at_another_size_are_near_beit_s_own_spline(new: int) -> None:
    """timm's interpolation, ours, is linear between the same places. On tables as smooth as trained ones it
    is within 1 % of their range, on average within 0.1 %."""
    old = 14
    side = torch.arange(2 * old - 1).double() - old + 1
    y, x = torch.meshgrid(side, side, indexing="ij")
    near = [torch.exp(-(x**2 + y**2).sqrt() / 3), torch.exp(-x.abs() / 2 - y.abs() / 8), torch.cos(x / 6)]
    table = torch.stack([2 * head.flatten() for head in near], dim=1)
    table = torch.cat([table, torch.tensor([[0.5, -1.0, 2.0]]).T.expand(3, 3).double()])
    ours, theirs = (RelativePositions((n, n), 3, 1).double() for n in (old, new))
    with torch.no_grad():
        ours.relative_position_bias_table.copy_(table)
        theirs.relative_position_bias_table.copy_(_spline(table, old, new))
        found, expected = ours.bias((new, new), True), theirs.get_bias()
    apart, extent = (found - expected).abs(), expected.max() - expected.min()
    assert apart.max() < 0.01 * extent
    assert apart.mean() < 0.001 * extent
    torch.testing.assert_close(found[..., 0, :2], expected[..., 0, :2])  # class tokens have rows of their own

"""What MaskFeat, LocalMIM, DMJD, MFM, ROPIM, A2MIM and DropPos do that no official record shows, naively."""

from __future__ import annotations

import math

import pytest
import torch

from method_zoo.localmim import tap_layers
from method_zoo.mfm import MFM
from mimbench import registry
from mimbench.errors import UserError

from .build import batch, build

# Targets ----------------------------------------------------------------------------------------------


def test_maskfeat_s_targets_are_the_histograms_of_the_patch() -> None:
    method = build("maskfeat", patch_size=8)
    images = torch.randn(2, 3, 16, 16)
    histograms, targets = method.hog(images), method.targets(images)
    for row in range(2):
        for column in range(2):
            cells = histograms[:, :, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(targets[:, 2 * row + column], cells.flatten(1))


def test_a_gaussian_window_weighs_a_patch_s_centre() -> None:
    plain, weighted = (build("maskfeat", patch_size=8, gaussian=on) for on in (False, True))
    images = torch.zeros(1, 3, 16, 16)
    images[..., 3, :] = torch.linspace(0, 1, 16)  # near the centre of the upper patches
    images[..., 0, :] = torch.linspace(0, 1, 16)  # at their border
    images[..., 1, :] = -torch.linspace(0, 1, 16).square()
    assert not torch.allclose(plain.targets(images), weighted.targets(images), atol=0.01)


def test_dmjd_whitens_each_histogram_by_itself() -> None:
    method = build("dmjd", patch_size=8, mask_unit=1)
    images = 0.3 * torch.randn(2, 3, 16, 16)
    histograms = method.hog(255 * method.denormalise(images))  # [B, colour, bin, y, x]
    targets = method.targets(images)
    for row in range(2):
        for column in range(2):
            expected = []
            for y in range(2):
                for x in range(2):
                    cell = histograms[:, :, :, 2 * row + y, 2 * column + x]
                    variance = cell.var(-1, correction=0, keepdim=True)
                    whitened = (cell - cell.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
                    expected += [whitened[:, colour, bin] for bin in range(9) for colour in range(3)]
            found = targets[:, 2 * row + column]
            torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows_sum_to_one", [False, True])
@pytest.mark.parametrize(("decays", "progress", "sigma"), [(True, 0.5, 1.0), (False, 0.5, 2.0)])
def test_droppos_smooths_positions_by_their_distance(
    rows_sum_to_one: bool, decays: bool, progress: float, sigma: float
) -> None:
    method = build("droppos", sigma=2.0, sigma_decay=decays, row_targets=rows_sum_to_one)
    right = torch.zeros(16, 16, dtype=torch.float64)
    for i in range(16):
        for j in range(16):
            squared = (i // 4 - j // 4) ** 2 + (i % 4 - j % 4) ** 2
            right[i, j] = math.exp(-squared / sigma**2)
    expected = right / (right.sum(1, keepdim=True) if rows_sum_to_one else right.sum(0, keepdim=True))
    torch.testing.assert_close(method.targets(progress, right), expected)


def test_droppos_without_smoothing_has_one_right_position() -> None:
    assert torch.equal(build("droppos", sigma=0).targets(0.3, torch.zeros(())), torch.eye(16))


# Losses -----------------------------------------------------------------------------------------------


def test_droppos_weighs_patches_over_the_whole_batch() -> None:
    method = build("droppos", attentive=False)
    images, step = batch(method, n=2)
    mask = method.masking(step.keys, (4, 4))
    dropped = torch.tensor([[True, True, False, False], [False, True, True, True]])
    targets, weights = method.targets(0.3, images), torch.rand(2, 16)

    weighted, total = torch.tensor(0.0), torch.tensor(0.0)
    for image, rows in enumerate((slice(0, 1), slice(1, 2))):
        visible = (~mask[image]).nonzero().flatten()
        for patch in visible[dropped[image]]:
            alone = torch.zeros(1, 16)
            alone[0, patch] = 1.0
            error = method.losses(images[rows], mask[rows], dropped[rows], targets, alone).total
            share = weights[image, patch] / weights[image, visible].sum()
            weighted, total = weighted + share * error, total + share
    found = method.losses(images, mask, dropped, targets, weights).total
    torch.testing.assert_close(found, weighted / total)


def test_mfm_weighs_images_by_their_missing_frequencies() -> None:
    method = build("mfm")
    images, _ = batch(method, n=2)
    passed = torch.stack([method.low, ~method.low])
    each = [method.losses(images[[i]], passed[[i]]).total for i in range(2)]
    missing = (~passed).flatten(1).sum(1)
    expected = (missing[0] * each[0] + missing[1] * each[1]) / missing.sum()
    torch.testing.assert_close(method.losses(images, passed).total, expected)


def test_mfm_s_low_frequencies_are_the_published_ones() -> None:
    """16 of 224: the circle itself is high."""
    options = {**MFM.card.backbone, "embed_dim": 32, "depth": 1, "num_heads": 2}
    low = MFM(registry.build_backbone("vit_micro_patch16", 224, **options)).low
    y, x = torch.meshgrid(torch.arange(224) - 112, torch.arange(224) - 112, indexing="ij")
    assert torch.equal(torch.fft.fftshift(low), x**2 + y**2 < 16**2)


@pytest.mark.parametrize(("fill", "share"), [("mixed", 0.5), ("prediction", 1.0), ("image", 0.0)])
def test_a2mim_shows_the_fourier_loss_what_it_says_where_nothing_is_hidden(fill: str, share: float) -> None:
    method = build("a2mim", visible_fill=fill)
    images, step = batch(method, n=2)
    mask = method.masking(step.keys, (4, 4))
    hidden = mask.view(2, 1, 4, 1, 4, 1).expand(-1, -1, -1, 4, -1, 4).reshape(2, 1, 16, 16)
    seen = torch.where(hidden, images.mean((2, 3), keepdim=True), images)
    assert torch.equal(method.filled(images, mask), seen)
    token = method.encoder.mask_token * mask.unsqueeze(-1)
    encoded = method.encoder.encode(seen, edits={0: lambda patches: patches + token})
    patches = method.head(encoded.patches).view(2, 4, 4, 3, 4, 4)
    predicted = patches.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 16, 16)
    shown = torch.where(hidden, predicted, share * predicted + (1 - share) * images)
    spectrum = torch.fft.fft2((shown - images).mean(0), norm="ortho").abs()
    weight = (1 + spectrum).log()
    expected = (weight / weight.max() * spectrum.square()).mean()
    losses = method.losses(images, seen, mask)
    torch.testing.assert_close(losses["frequencies"], 0.1 * expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        losses["reconstruction"], (predicted - images).abs()[hidden.expand(-1, 3, -1, -1)].mean()
    )


@pytest.mark.parametrize("ratio", [0.14, 0.3, 0.5])
def test_ropim_s_sketches_give_each_bin_a_patch_in_turn(ratio: float) -> None:
    """As the code's: of every ``bins`` patches in raster order no two share a bin, all others may."""
    method = build("ropim", sketch_ratio=ratio)
    projections = (method.projection(torch.arange(2000) * 31) / ratio).round()
    bins, n = math.ceil(16 * ratio), 16
    assert method.bins == bins
    shares = projections.abs().mean(0)
    for i in range(n):
        for j in range(n):
            expected = float(i == j) if i // bins == j // bins else 1 / bins
            assert abs(shares[i, j] - expected) <= 5 * (expected * (1 - expected) / 2000) ** 0.5
    # With as many positive as negative signs, equal ones are a little rarer than others.
    different = ~torch.eye(n, dtype=torch.bool) & (shares > 0)
    agreement = projections.sum(0)[different].sum() / projections.abs().sum(0)[different].sum()
    assert abs(agreement + 1 / (n - 1)) < 0.02


# Limits -----------------------------------------------------------------------------------------------


def test_localmim_s_decoders_stand_where_published() -> None:
    for depth in (8, 12, 24):
        assert [layer + depth for layer in tap_layers(depth)] == [1, 3, depth - 3, depth - 1]
    for depth in range(1, 30):
        layers = tap_layers(depth)
        assert layers == sorted(layers)
        assert layers[-1] == -1
        assert layers[0] >= -depth


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("localmim", {"patch_size": 16}, "even number of patches"),
        ("localmim", {"patch_size": 2}, "4 HOG cells do not fit"),
        ("maskfeat", {"cells_per_patch": 3}, "3 HOG cells do not fit"),
        ("a2mim", {"mask_layer": 3}, "from 0 to 2"),
        ("ropim", {"sketch_ratio": 0.99}, "hides nothing"),
        ("mfm", {"radius": 0.05}, "choose a radius above 0.0625"),
        ("dmjd", {"covered": 0.5}, "each cover that much or more"),
    ],
)
def test_what_the_images_do_not_allow_is_said_before_training(key: str, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(key, **given)

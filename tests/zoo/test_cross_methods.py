"""What CrossMAE, CAE, BootMAE, CroCo and DiffMAE promise beyond what every method must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from method_zoo.backbones import build as build_backbone
from method_zoo.bootmae import BootMAE, normalised_by_channel
from method_zoo.parts.masking import mask_from_scores
from method_zoo.parts.patches import patchify, where
from mimbench import rng
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


def test_bootmae_spares_a_few_patches_of_its_blocks_as_the_official_code() -> None:
    """A naive rendering of the official shuffle: visible patches first, the order rolled by 0 to 3."""
    backbone = build_backbone("vit_micro_patch16", 224, depth=1, positions="sincos_y_first")
    method = BootMAE(backbone)
    keys = torch.from_numpy(rng.sample_keys(0, 0, np.arange(2000)))
    masks, blocks = method.mask(keys), method.blocks(keys, (14, 14))
    assert (masks.sum(1) == 147).all()
    assert (blocks.sum(1) == 120).all()

    draw = torch.Generator().manual_seed(0)
    theirs = torch.zeros_like(masks)
    for row, block in zip(theirs, blocks, strict=True):
        order = (block.float() - torch.rand(196, generator=draw)).argsort()
        row[order.roll(int(torch.randint(0, 4, (), generator=draw)))[49:]] = True
    for some in (masks, theirs):  # how many patches of the blocks are visible: 0, 1, 2 or 3, alike often
        counts = (blocks & ~some).sum(1).bincount(minlength=5)
        assert counts[4:].sum() == 0
        assert all(abs(int(count) - 500) < 5 * math.sqrt(375) for count in counts[:4])
    # The others are hidden at random: 27 to 30 of 76.
    share = (masks & ~blocks).sum() / (~blocks).sum()
    torch.testing.assert_close(share, (theirs & ~blocks).sum() / (~blocks).sum(), rtol=0.01, atol=0)


def test_bootmae_weighs_patches_by_hidden_neighbours() -> None:
    method, mask = build("bootmae"), random_mask(3, 12)
    importance = method._importance(mask, where(mask), torch.float64)
    for row, found in zip(mask.view(3, 4, 4), importance, strict=True):
        padded = torch.zeros(6, 6, dtype=torch.float64)
        padded[1:5, 1:5] = row.double()
        expected = [1 + padded[y : y + 3, x : x + 3].mean() for y in range(4) for x in range(4) if row[y, x]]
        torch.testing.assert_close(found, torch.stack(expected))
    assert importance.std() > 0
    plain = build("bootmae", weigh_neighbours=False)._importance(mask, where(mask), torch.float64)
    assert torch.equal(plain, torch.ones_like(importance))


def test_bootmae_norms_each_colour_of_a_patch_by_itself() -> None:
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1, 1)
    found = normalised_by_channel(images, 4)
    for n in range(16):
        y, x = n // 4 * 4, n % 4 * 4
        for channel in range(3):
            square = images[:, channel, y : y + 4, x : x + 4].flatten(1)
            mean, variance = square.mean(1, keepdim=True), square.var(1, correction=0, keepdim=True)
            expected = (square - mean) / (variance + 1e-5).sqrt()
            torch.testing.assert_close(found[:, n].view(2, 3, 16)[:, channel], expected)


@pytest.mark.parametrize(
    ("epoch", "momentum"),
    [(0, 0.999), (50, 0.99945), (100, 0.9999), (250, 0.999945), (400, 0.99999), (799, 0.99999)],
)
def test_bootmae_has_the_official_momentum_at_the_official_length(epoch: int, momentum: float) -> None:
    method = build("bootmae")
    before = method.teacher["encoder"].patch_embed.proj.weight.clone()
    with torch.no_grad():
        method.encoder.patch_embed.proj.weight.add_(1.0)
    _, step = batch(method, n=2, progress=epoch / 800)
    method.after_step(step)
    moved = (method.teacher["encoder"].patch_embed.proj.weight - before).double().mean().item()
    assert moved == pytest.approx(1 - momentum, rel=0.02)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"block_ratio": 0.9}, "part of what is hidden"),
        ({"low_layer": -3}, "2 blocks"),
        ({"min_block": 0.6, "max_block": 0.3}, "min_block <= max_block"),
    ],
)
def test_a_bootmae_that_cannot_be_is_refused_in_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("bootmae", **given)


def test_cae_aligns_with_what_the_encoder_sees_of_the_hidden_patches_alone() -> None:
    method = build("cae")
    images, step = batch(method, n=3)
    mask = method.masking(step.keys, (4, 4))
    latents = method.latents(images, ~mask)
    assert latents.shape == (3, 8, 32)
    pixels = patchify(images, 4, order="channel").clone()
    pixels[~mask] = 5.0  # the visible patches do not matter
    rows = pixels.view(3, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5)
    assert torch.equal(latents, method.latents(rows.reshape(images.shape), ~mask))
    assert not latents.requires_grad
    ids = torch.zeros(3, 16, dtype=torch.int64)
    off = method.losses(images, mask, ids, latents + 1.0)["alignment"]
    assert off > method.losses(images, mask, ids, latents)["alignment"]


def test_cae_decodes_from_what_the_regressor_predicts_and_nothing_else() -> None:
    """Tokens of hidden patches get their gradient through the predicted latents."""
    method = build("cae")
    images, step = batch(method, n=3)
    mask = method.masking(step.keys, (4, 4))
    method.regressor_norm.weight.data.zero_()  # now the decoder sees positions only
    ids = torch.zeros(3, 16, dtype=torch.int64)
    method.losses(images, mask, ids, method.latents(images, ~mask))["tokens"].backward()
    assert method.head.weight.grad.any()
    assert not any(p.grad.any() for p in method.encoder.parameters() if p.grad is not None)

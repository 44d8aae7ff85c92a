"""What is special to pixel methods without a record, against naive references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from method_zoo.mff import MFF, fused_layers
from method_zoo.pixmim import PixMIM, low_passed
from mimbench.errors import UserError

from .build import batch, build

DOUBLE = torch.float64


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


# PixMIM -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "radius"), [(16, 16, 3.0), (15, 15, 4.2), (12, 17, 2.5)])
def test_the_low_pass_keeps_the_published_circle(height: int, width: int, radius: float) -> None:
    """The circle as published: drawn around the middle of the spectrum's array after the shift."""
    passed = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            passed[i, j] = (i - (height - 1) / 2) ** 2 + (j - (width - 1) / 2) ** 2 <= radius**2
    x = images(2, 3, height, width)
    shifted = np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(-2, -1))
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(shifted * passed, axes=(-2, -1))))
    np.testing.assert_allclose(low_passed(x, radius).numpy(), expected, atol=1e-12)


def test_the_target_is_smooth_and_keeps_what_is_smooth() -> None:
    method = build("pixmim")
    assert isinstance(method, PixMIM)
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(method.smoothed(flat), flat, rtol=1e-4, atol=1e-5)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8).expand(1, 3, -1, -1)
    assert method.smoothed(board).std((2, 3)).max() < 1e-4


# MFF --------------------------------------------------------------------------------------------------


def test_the_published_blocks_are_fused() -> None:
    assert [12 + layer for layer in fused_layers(12)] == [0, 2, 4, 6, 8, 11]  # mmpretrain, 800 epochs
    assert fused_layers(12, 12) == tuple(range(-12, 0))
    assert fused_layers(2) == (-2, -1)
    assert fused_layers(12, 1) == (-1,)
    with pytest.raises(UserError, match="more blocks"):
        fused_layers(4, 5)


def test_the_decoder_gets_the_weighted_sum_of_projected_blocks() -> None:
    method = build("mff").double()
    assert isinstance(method, MFF)
    with torch.no_grad():
        method.fusion.scores.copy_(torch.tensor([0.3, -0.9], dtype=DOUBLE))
        method.encoder.norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    x, _ = batch(method, n=2)
    x = x.double()
    encoded = method.encoder.encode(x, layers=method.layers)
    fused = method.fused(encoded)

    tokens = method.encoder.patch_embed(x)
    tokens = torch.cat([method.encoder.cls_token.expand(2, -1, -1), tokens], 1) + method.encoder.pos_embed
    first = method.encoder.blocks[0](tokens)
    last = method.encoder.blocks[1](first)
    a, b = np.exp([0.3, -0.9]) / np.exp([0.3, -0.9]).sum()
    projection = method.fusion.projections[0]
    expected = a * (first @ projection.weight.T + projection.bias) + b * last
    norm = method.encoder.norm
    expected = F.layer_norm(expected, expected.shape[-1:], norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(fused.cls, expected[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.patches, expected[:, 1:], rtol=1e-9, atol=1e-9)


def test_one_level_is_a_plain_masked_autoencoder() -> None:
    method = build("mff", levels=1)
    x, _ = batch(method, n=2)
    encoded = method.encoder.encode(x, layers=method.layers)
    fused = method.fused(encoded)
    torch.testing.assert_close(fused.patches, encoded.patches)
    assert not list(method.fusion.parameters())

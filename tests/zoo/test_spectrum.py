"""Spectral filters and distances against loops, waves and the definition of the focal frequency loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from method_zoo.parts.spectrum import distance, filtered, focal_frequency, radii, spectrum


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (6, 9)])
def test_radii_count_waves_per_image_side(size: tuple[int, int]) -> None:
    """As the published masks do: in a shifted spectrum the frequency 0 lies at half of the size."""
    shifted = torch.fft.fftshift(radii(size))
    for y in range(size[0]):
        for x in range(size[1]):
            assert shifted[y, x] == pytest.approx(np.hypot(y - size[0] // 2, x - size[1] // 2))


def test_a_filter_passes_the_waves_it_should() -> None:
    x = torch.arange(16, dtype=torch.float64) / 16
    slow, fast = torch.cos(2 * torch.pi * 2 * x), torch.sin(2 * torch.pi * 5 * x)
    images = (1 + slow + fast).expand(2, 3, 16, 16)
    low = radii((16, 16)) < 4
    passed = filtered(images, torch.stack([low, ~low]))
    torch.testing.assert_close(passed[0], (1 + slow).expand(3, 16, 16))
    torch.testing.assert_close(passed[1], fast.expand(3, 16, 16))


def test_distances_are_moduli_and_equal_spectra_have_a_gradient() -> None:
    a, b = torch.randn(2, 1, 1, 4, 4, dtype=torch.complex128)
    assert torch.allclose(distance(a, b), (a - b).abs())
    equal = torch.zeros(1, 1, 4, 4, requires_grad=True)
    distance(spectrum(equal), spectrum(equal.detach()), eps=1e-12).sum().backward()
    assert torch.isfinite(equal.grad).all()


def test_the_focal_loss_is_its_definition() -> None:
    """Equations 9 to 11 of arXiv:2012.12821 with the spectrum averaged over the batch, in numpy."""
    predicted, target = torch.randn(2, 4, 3, 6, 6, dtype=torch.float64)
    spectra = [np.fft.fft2(images.numpy(), norm="ortho").mean(0) for images in (predicted, target)]
    squared = np.abs(spectra[0] - spectra[1]) ** 2
    weight = np.log(np.sqrt(squared) + 1)
    expected = (weight / weight.max() * squared).mean()
    assert focal_frequency(predicted, target).item() == pytest.approx(expected, rel=1e-12)


def test_the_focal_weights_take_no_part_in_the_gradient() -> None:
    predicted, target = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    predicted.requires_grad_()
    focal_frequency(predicted, target).backward()
    # With constant weights the loss is a quadratic form, whose gradient times the difference is twice it.
    twice = (predicted.grad * (predicted.detach() - target)).sum()
    assert twice.item() == pytest.approx(2 * focal_frequency(predicted.detach(), target).item(), rel=1e-10)


def test_equal_images_have_no_focal_loss_and_no_nan() -> None:
    images = torch.randn(2, 3, 4, 4)
    assert focal_frequency(images, images.clone()) == 0

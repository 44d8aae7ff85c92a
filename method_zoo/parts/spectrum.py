"""Images as spectra of spatial frequencies: filters and distances.

Spectra are orthonormal two-dimensional Fourier transforms in the order of ``torch.fft``, the frequency 0
first. They and all that follows are computed in the images' precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.parts.collective import averaged


def spectrum(images: Tensor) -> Tensor:
    """Complex [B, C, H, W] of images [B, C, H, W]."""
    return torch.fft.fft2(images, norm="ortho")


def radii(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Distance of each frequency to 0, [H, W], in waves per image side."""
    y, x = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64, device=device) for n in size)
    return torch.hypot(y[:, None], x)


def filtered(images: Tensor, passed: Tensor) -> Tensor:
    """Images [B, C, H, W] of which only the frequencies that are True in ``passed`` [B, H, W] are left."""
    return torch.fft.ifft2(spectrum(images) * passed.unsqueeze(1), norm="ortho").real


def distance(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """How far apart two spectra lie at each frequency: |a - b|, real, of the same shape.

    ``eps`` is added to its square, which gives equal values a gradient.
    """
    difference = a - b
    return (difference.real.square() + difference.imag.square() + eps).sqrt()


def focal_frequency(predicted: Tensor, target: Tensor) -> Tensor:
    """Focal frequency loss (Jiang et al., 2021, arXiv:2012.12821) of images [B, C, H, W], a scalar.

    The squared distance of the batch's mean spectra, weighted by log(1 + distance) relative to its largest
    value, through which no gradient goes: what is furthest off counts most. These are the options that
    A2MIM (arXiv:2205.13943) takes: mean spectrum, logarithmic weights, one largest value for all colours.
    The batch is that of all processes.
    """
    difference = spectrum(averaged((predicted - target).mean(0)))
    squared = difference.real.square() + difference.imag.square()
    with torch.no_grad():
        weight = (squared.sqrt() + 1).log()
        weight = weight / weight.max().clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight * squared).mean()

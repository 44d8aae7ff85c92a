"""What an image goes through before a batch: uint8 in, uint8 out, on the CPU.

Resizing is torch's antialiased uint8 interpolation, which works in integers: the result does not depend on
threads or processes. It takes a third of Pillow's time and differs from it by rounding: by two grey levels
at most, for most pixels by none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn.functional import interpolate

from mimbench import rng
from mimbench.spec import Augmentation

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def resize(pixels: np.ndarray, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Antialiased resize of uint8 [H, W, 3] to uint8 [3, height, width]."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if image.shape[1:] == (height, width):
        return image
    return interpolate(image[None], (height, width), mode=mode, antialias=True)[0]


@dataclass(frozen=True)
class EvalTransform:
    """Short side to ``image_size / crop_pct``, then the central square of ``image_size`` pixels.

    The habit of evaluation on ImageNet since Krizhevsky et al. 2012; 224 / 0.875 = 256.
    """

    image_size: int
    crop_pct: float = 0.875

    def __post_init__(self) -> None:
        if self.image_size < 1 or not 0 < self.crop_pct <= 1:
            raise ValueError(f"image_size {self.image_size} or crop_pct {self.crop_pct} is out of range")

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> uint8 [3, S, S]."""
        size, short = self.image_size, round(self.image_size / self.crop_pct)
        height, width = pixels.shape[:2]
        if height <= width:
            to_height, to_width = short, max(short, int(short * width / height))
        else:
            to_height, to_width = max(short, int(short * height / width)), short
        image = resize(pixels, to_height, to_width)
        top, left = round((to_height - size) / 2), round((to_width - size) / 2)
        return image[:, top : top + size, left : left + size]


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draw: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop whose area is a share in ``scale`` of the image's.

    Inception's crop (Szegedy et al. 2015, arXiv:1409.4842) as torchvision's ``RandomResizedCrop`` defines
    it: area uniform, aspect ratio log-uniform, ten tries, then the largest central crop of a fair ratio.
    """
    area, log_ratio = height * width, (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        share, aspect = draw.uniform(*scale), math.exp(draw.uniform(*log_ratio))
        w, h = round(math.sqrt(area * share * aspect)), round(math.sqrt(area * share / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def color_jitter(pixels: np.ndarray, strength: float, draw: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation by factors in [1 - strength, 1 + strength], in random order.

    uint8 [H, W, 3] -> the same. torchvision's ``ColorJitter`` without hue, by the same Pillow enhancers.
    """
    factors = draw.uniform(max(0.0, 1 - strength), 1 + strength, size=3)
    image = Image.fromarray(pixels)
    for kind in draw.permutation(3):
        image = _ENHANCERS[kind](image).enhance(factors[kind])
    return np.array(image)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flip and colour jitter, all drawn from a sample's key alone."""

    augmentation: Augmentation
    image_size: int

    def __call__(self, pixels: np.ndarray, key: int) -> Tensor:
        """uint8 [H, W, 3] and the key of (seed, epoch, sample) -> uint8 [3, S, S]."""
        how, draw = self.augmentation, rng.numpy_generator(key, "augment")
        box = crop_box(pixels.shape[0], pixels.shape[1], how.crop_scale, how.crop_ratio, draw)
        top, left, height, width = box
        flip = how.flip and draw.random() < 0.5
        crop = pixels[top : top + height, left : left + width]
        image = resize(crop, self.image_size, self.image_size, how.interpolation)
        if how.color_jitter > 0:
            jittered = color_jitter(image.permute(1, 2, 0).numpy(), how.color_jitter, draw)
            image = torch.from_numpy(jittered).permute(2, 0, 1)
        return image.flip(2) if flip else image

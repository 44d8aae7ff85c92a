"""What an image goes through before a batch: uint8 in, uint8 out, on the CPU.

Resizing is torch's antialiased uint8 interpolation, which works in integers: the result does not depend on
threads or processes. It takes a third of Pillow's time and differs from it by rounding: by two grey levels
at most, for most pixels by none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from mimbench import rng
from mimbench.seeding import seeded_python
from mimbench.spec import Augmentation, View

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


def square_box(height: int, width: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest square, at a random place along the longer side.

    What is left of an image whose short side is resized to the crop's: the simple crop of DeiT III
    (arXiv:2204.07118) and PixMIM (arXiv:2303.02416).
    """
    side = min(height, width)
    return int(draw.integers(height - side + 1)), int(draw.integers(width - side + 1)), side, side


def color_jitter(
    pixels: np.ndarray,
    strength: float,
    draw: np.random.Generator,
    saturation: float | None = None,
    hue: float = 0.0,
) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed by random amounts, in random order.

    uint8 [H, W, 3] -> the same. torchvision's ``ColorJitter``: factors in [1 - strength, 1 + strength]
    by Pillow's enhancers, the hue turned by up to ``hue`` of the colour wheel.
    """
    strengths = np.array([strength, strength, strength if saturation is None else saturation])
    factors = draw.uniform(np.maximum(0.0, 1 - strengths), 1 + strengths)
    turn = round(255 * draw.uniform(-hue, hue)) if hue > 0 else 0
    image = Image.fromarray(pixels)
    for kind in draw.permutation(4 if hue > 0 else 3):
        image = _ENHANCERS[kind](image).enhance(factors[kind]) if kind < 3 else _turn_hue(image, turn)
    return np.array(image)


def _turn_hue(image: Image.Image, turn: int) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.array(hue) + np.uint8(turn % 256))  # the wheel has 256 steps: wraps around
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _colours(pixels: np.ndarray, how: Augmentation, draw: np.random.Generator) -> np.ndarray:
    """What an augmentation does to the colours and the sharpness of a crop, uint8 [S, S, 3]."""
    jitters = how.color_jitter > 0 or how.hue > 0 or bool(how.saturation)
    if jitters and (how.jitter_probability == 1 or draw.random() < how.jitter_probability):
        pixels = color_jitter(pixels, how.color_jitter, draw, how.saturation, how.hue)
    if how.grayscale > 0 and draw.random() < how.grayscale:
        pixels = np.array(Image.fromarray(pixels).convert("L").convert("RGB"))
    if how.blur > 0 and draw.random() < how.blur:
        sigma = draw.uniform(0.1, 2.0) * pixels.shape[0] / 224
        pixels = np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))
    if how.solarize > 0 and draw.random() < how.solarize:
        pixels = np.array(ImageOps.solarize(Image.fromarray(pixels)))
    return pixels


@cache
def _rand_augment(
    notation: str, size: int, interpolation: str, fill: tuple[int, int, int] | None
) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment as its ``create_transform`` sets it up for images of ``size`` pixels."""
    import mimbench.torchvision_compat  # noqa: F401  isort: skip
    from timm.data import str_to_pil_interp
    from timm.data.auto_augment import rand_augment_transform

    parameters = {
        "translate_const": int(size * 0.45),
        "img_mean": fill or (128, 128, 128),
        "interpolation": str_to_pil_interp(interpolation),
    }
    transform = rand_augment_transform(notation, parameters)
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest ``bits`` of each channel. timm asks for none now and then, which gives black; so did
    Pillow's own before version 12, which refuses."""
    return image.point([value & ~(2 ** (8 - min(bits, 8)) - 1) for value in range(256)] * 3)


class Cut(NamedTuple):
    """A crop and where it comes from."""

    image: Tensor  # uint8 [3, S, S]
    box: tuple[int, int, int, int]  # top, left, height, width in pixels
    flipped: bool


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flip and colours, all drawn from a sample's key alone.

    views: further crops of the same image, see ``cuts``.
    """

    augmentation: Augmentation
    image_size: int
    views: tuple[View, ...] = ()

    def __call__(self, pixels: np.ndarray, key: int) -> Tensor:
        """uint8 [H, W, 3] and the key of (seed, epoch, sample) -> uint8 [3, S, S]."""
        return self._first(pixels, key).image

    def cuts(self, pixels: np.ndarray, key: int) -> list[Cut]:
        """The crop of ``__call__`` and one for each view. pixels: uint8 [H, W, 3]."""
        first = self._first(pixels, key)
        return [first, *(self._view(pixels, key, i, first) for i in range(len(self.views)))]

    def _first(self, pixels: np.ndarray, key: int) -> Cut:
        draw = rng.numpy_generator(key, "augment")
        box, flip = _place(pixels, self.augmentation, draw)
        return _cut(pixels, box, flip, self.augmentation, self.image_size, draw)

    def _view(self, pixels: np.ndarray, key: int, number: int, first: Cut) -> Cut:
        view, draw = self.views[number], rng.numpy_generator(key, f"augment/view {number}")
        if view.crop == "own":
            box, flip = _place(pixels, view.augmentation, draw)
        else:
            box, flip = first.box, first.flipped
        if view.crop == "shifted":
            (top, left), (h, w) = box[:2], box[2:]
            down, right = draw.uniform(-view.shift, view.shift, size=2) * (h, w)
            top = min(max(top + round(down), 0), pixels.shape[0] - h)
            left = min(max(left + round(right), 0), pixels.shape[1] - w)
            box = (top, left, h, w)
        return _cut(pixels, box, flip, view.augmentation, view.image_size, draw)


def _place(
    pixels: np.ndarray, how: Augmentation, draw: np.random.Generator
) -> tuple[tuple[int, int, int, int], bool]:
    height, width = pixels.shape[:2]
    if how.crop == "square":
        box = square_box(height, width, draw)
    else:
        box = crop_box(height, width, how.crop_scale, how.crop_ratio, draw)
    return box, how.flip and draw.random() < 0.5


def _cut(
    pixels: np.ndarray,
    box: tuple[int, int, int, int],
    flip: bool,
    how: Augmentation,
    size: int,
    draw: np.random.Generator,
) -> Cut:
    top, left, height, width = box
    image = resize(pixels[top : top + height, left : left + width], size, size, how.interpolation)
    if how.recolours:
        coloured = _colours(image.permute(1, 2, 0).numpy(), how, draw)
        image = torch.from_numpy(coloured).permute(2, 0, 1)
    image = image.flip(2) if flip else image
    if how.rand_augment:
        change = _rand_augment(how.rand_augment, size, how.interpolation, how.fill)
        with seeded_python(int(draw.integers(2**63))):
            changed = change(Image.fromarray(image.permute(1, 2, 0).numpy()))
        image = torch.from_numpy(np.array(changed)).permute(2, 0, 1)
    return Cut(image, box, flip)

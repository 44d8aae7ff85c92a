"""Encoded bytes to pixels, by Pillow. Imports no torch."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

# What Pillow's decoders raise on bytes that are no sound image.
_FAILURES = (
    OSError,
    SyntaxError,  # broken PNG
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BrokenImageError(Exception):
    """The bytes of one sample are no readable image; the message is the reason in a few words."""


class UnreachableImageError(BrokenImageError):
    """Its bytes could not be had at all. Mending that, such as a missing right, may not show in the file."""


def _open(content: bytes) -> Image.Image:
    if not content:
        raise BrokenImageError("empty")
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise BrokenImageError("not an image") from None
    except _FAILURES as error:
        raise BrokenImageError(str(error) or type(error).__name__) from error


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except _FAILURES as error:
        raise BrokenImageError(str(error) or type(error).__name__) from error
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        # Their range is anybody's guess, and Pillow would clip them to white.
        raise BrokenImageError("32-bit grey levels; save it with 8 or 16 bits")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB warns where the palette has transparency
    return image.convert("RGB")


def inspect(content: bytes) -> tuple[int, int]:
    """Height and width of an encoded image, after reading all of it; raises BrokenImageError.

    A JPEG is decoded at an eighth of its size, which reads every coefficient and costs a fraction.
    """
    image = _open(content)
    width, height = image.size
    image.draft(None, (1, 1))
    _load(image)
    return height, width


def decode(content: bytes) -> np.ndarray:
    """Pixels uint8 [H, W, 3]; raises BrokenImageError.

    Transparency is dropped, the first frame of several is taken and EXIF orientation is not applied,
    as in torchvision's loader.
    """
    image = _open(content)
    _load(image)
    return np.array(_rgb(image))


def decode_numbers(content: bytes) -> np.ndarray:
    """The numbers uint8 or uint16 [H, W] that a PNG of one channel holds; raises BrokenImageError.

    Of a palette they are the indices, not the colours.
    """
    image = _open(content)
    _load(image)
    if image.format != "PNG":
        raise BrokenImageError(f"a {image.format} file; label maps are PNG")
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise BrokenImageError("colours; a label map has one number a pixel, as grey levels or a palette")
    numbers = np.array(image)
    if image.mode == "1":
        return numbers.astype(np.uint8)
    depth, kind = content[24], content[25]  # in IHDR, which is always the first chunk
    if kind == 0 and depth in (2, 4):  # few grey levels, which Pillow spreads over 0 to 255
        return numbers // (255 // (2**depth - 1))
    return numbers if numbers.dtype == np.uint8 else numbers.astype(np.uint16)


def shrunk_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width after bringing the short side down to ``short_side``; never up. None: as they are.

    The long side is cut to whole pixels, as torchvision's ``Resize`` does.
    """
    if short_side is None or min(height, width) <= short_side:
        return height, width
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def shrink(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """Pixels uint8 [H, W, 3] with a short side of at most ``short_side``, by antialiased bicubic.

    None: as they are.
    """
    height, width = shrunk_size(pixels.shape[0], pixels.shape[1], short_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

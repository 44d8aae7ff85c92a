"""Common corruptions of test images: which image gets which, and the images themselves."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mimbench import rng
from mimbench.data import EvalTransform
from mimbench.seeding import seeded_python
from mimbench.spec import content_hash

if TYPE_CHECKING:
    from mimbench.data import Split

# In the order of Hendrycks and Dietterich, arXiv:1903.12261: the 15 of ImageNet-C, then its four others.
Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
]
COMMON: tuple[Corruption, ...] = get_args(Corruption)[:15]
SEVERITIES = (1, 2, 3, 4, 5)
SEEDED = ("glass_blur", "impulse_noise")  # by an argument; the others draw from numpy's global generator
SMALLEST = 32  # side in pixels that the library takes

Pair = tuple[str, int]  # corruption, severity


@dataclass(frozen=True)
class Corruptions:
    """Which versions each image gets: ``per_image`` different (corruption, severity) pairs, or all there are.

    They are dealt out from shuffled tables of all pairs, so that over a test split every pair is used as
    often as any other (plus or minus one), and an image gets every corruption before it gets one again.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...]
    per_image: int

    @property
    def pairs(self) -> int:
        """How many different ones there are."""
        return len(self.names) * len(self.severities)

    @property
    def each(self) -> int:
        """How many versions an image gets."""
        return min(self.per_image, self.pairs)

    def of(self, index: int) -> list[Pair]:
        """The versions of the image ``index`` of the test split."""
        images = self.pairs // math.gcd(self.pairs, self.each)  # after so many a table is used up
        block, place = divmod(index, images)
        table = _table(self, block)
        return [table[(place * self.each + k) % self.pairs] for k in range(self.each)]


@lru_cache(maxsize=4)
def _table(corruptions: Corruptions, block: int) -> list[Pair]:
    """All pairs: rounds of all corruptions in one random order, each at a severity it has not had yet."""
    key = int(rng.sample_keys(0, 0, np.array([block]))[0])
    draw = rng.numpy_generator(key, "corruptions of a block of images")
    order = draw.permutation(len(corruptions.names))
    levels = [draw.permutation(len(corruptions.severities)) for _ in corruptions.names]
    return [
        (corruptions.names[i], corruptions.severities[levels[i][turn]])
        for turn in range(len(corruptions.severities))
        for i in order
    ]


def library_version() -> str:
    """The library that corrupts, and its version."""
    return f"imagecorruptions-imaug {version('imagecorruptions-imaug')}"


@cache
def _library() -> Any:
    import cv2
    import imagecorruptions

    # Its threads do not survive the fork of a worker process, which then waits for them for ever.
    cv2.setNumThreads(0)
    return imagecorruptions


def corrupted(image: np.ndarray, name: str, severity: int, key: int) -> np.ndarray:
    """An image uint8 [H, W, 3] corrupted at a severity from 1 to 5, its random draws decided by ``key``.

    Images of less than 32 pixels a side are enlarged by a whole factor, each pixel to a square, and brought
    back by the mean over each square.
    """
    height, width, _ = image.shape
    factor = -(-SMALLEST // min(height, width))
    large = image.repeat(factor, 0).repeat(factor, 1) if factor > 1 else image
    seed = {"seed": key % 2**32} if name in SEEDED else {}
    with seeded_python(key):
        found = _library().corrupt(
            np.ascontiguousarray(large), severity=severity, corruption_name=name, **seed
        )
    if factor == 1:
        return found
    squares = found.reshape(height, factor, width, factor, 3)
    return np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)


class Corrupted:
    """The clean test images, followed by the versions of the first, of the second and so on.

    A version is made of the square of ``image_size`` pixels that the evaluation transform cuts out, as
    ImageNet-C was. Around it comes a border that the transform cuts off again, of the outermost pixels.
    """

    name = "corrupted test"

    def __init__(self, clean: Split, corruptions: Corruptions, image_size: int, crop_pct: float):
        self._clean, self._corruptions = clean, corruptions
        self._transform = EvalTransform(image_size, crop_pct)
        self._last: tuple[int, np.ndarray] | None = None
        count, each = len(clean), corruptions.each
        assert clean.labels is not None
        self.labels = np.concatenate([clean.labels, clean.labels.repeat(each)])
        self.fingerprint = content_hash(
            {
                "clean": clean.fingerprint,
                "corruptions": asdict(corruptions),
                "image_size": image_size,
                "crop_pct": crop_pct,
                "library": library_version(),
            },
            length=64,
        )
        self._count, self._each = count, each

    def __len__(self) -> int:
        return self._count * (1 + self._each)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}

    def image(self, index: int) -> np.ndarray:
        """Pixels uint8 [H, W, 3]. Do not write into them."""
        if index < self._count:
            return self._clean.image(index)
        of, (name, severity) = self._version(index)
        key = int(rng.sample_keys(rng.salt(f"{name} {severity}"), 0, np.array([of]))[0]) % 2**63
        return self._bordered(corrupted(self._crop(of), name, severity, key))

    def sample_id(self, index: int) -> str:
        """A sample's name for people."""
        if index < self._count:
            return self._clean.sample_id(index)
        of, (name, severity) = self._version(index)
        return f"{self._clean.sample_id(of)} {name} {severity}"

    def _version(self, index: int) -> tuple[int, Pair]:
        of, which = divmod(index - self._count, self._each)
        return of, self._corruptions.of(of)[which]

    def _crop(self, index: int) -> np.ndarray:
        """What the evaluation transform makes of a clean image, [S, S, 3]; the last one is remembered."""
        if self._last is None or self._last[0] != index:
            image = self._transform(self._clean.image(index)).permute(1, 2, 0).numpy()
            self._last = index, np.ascontiguousarray(image)
        return self._last[1]

    def _bordered(self, image: np.ndarray) -> np.ndarray:
        size, short = self._transform.image_size, round(self._transform.image_size / self._transform.crop_pct)
        before = round((short - size) / 2)
        after = short - size - before
        return np.pad(image, ((before, after), (before, after), (0, 0)), mode="edge")

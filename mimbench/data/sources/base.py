"""What a source of images is: a listing of official parts, each of which reads encoded samples in order."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mimbench.data import images
from mimbench.errors import UserError
from mimbench.protocol import Task
from mimbench.spec import Augmentation, View


@dataclass(frozen=True)
class DataDefaults:
    """What suits a dataset where nothing else is asked for."""

    image_size: int = 224
    backbone: str = "vit_small_patch16"
    crop_pct: float = 0.875  # share of the resized short side that evaluation crops
    flip: bool = True  # False where a mirrored image means something else, such as a digit
    crop_min: float = 0.0  # least share of the area a training crop keeps, whatever the recipe says
    epochs: float = 100  # of pre-training

    def suit(self, augmentation: Augmentation) -> Augmentation:
        """A recipe's augmentation, made for photographs, as these images bear it."""
        low, high = augmentation.crop_scale
        bounds = (max(low, self.crop_min), max(high, self.crop_min))
        return augmentation.model_copy(update={"flip": augmentation.flip and self.flip, "crop_scale": bounds})

    def suit_views(self, views: tuple[View, ...]) -> tuple[View, ...]:
        """Views whose augmentations suit these images."""
        return tuple(v.model_copy(update={"augmentation": self.suit(v.augmentation)}) for v in views)


class Units:
    """Files, for recognising that what they hold has not changed since it was last read.

    names: bytes [n] (fixed width: a million paths must not be a million objects, which worker processes
    would copy one by one). numbers: int64 [n, 3]: size in bytes, modification time in ns, samples inside.
    """

    def __init__(self, names: np.ndarray, numbers: np.ndarray):
        self.names = names
        self.numbers = numbers

    @classmethod
    def of(cls, files: list[tuple[str, os.stat_result | None, int]]) -> Units:
        """Of (name, status, samples); the status is None where the file is unreachable."""
        names = np.array([os.fsencode(name) for name, _, _ in files] or [b""])[: len(files)]
        facts = [(s.st_size, s.st_mtime_ns, n) if s else (-1, -1, n) for _, s, n in files]
        return cls(names, np.array(facts, np.int64).reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Units):
            return NotImplemented
        return np.array_equal(self.names, other.names) and np.array_equal(self.numbers, other.numbers)

    __hash__ = None  # type: ignore[assignment]

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def forget(self, samples: list[int]) -> Units:
        """The same without what is known of the files of these samples, so that they are read again."""
        ends = np.cumsum(self.numbers[:, 2])
        numbers = self.numbers.copy()
        numbers[np.searchsorted(ends, samples, side="right"), :2] = -2
        return Units(self.names, numbers)

    def starts(self) -> dict[tuple[bytes, int, int, int], int]:
        """The index of each file's first sample, by the file's facts."""
        first = np.concatenate([[0], np.cumsum(self.numbers[:, 2])]).tolist()
        rows = zip(self.names.tolist(), self.numbers.tolist(), strict=True)
        return {(name, *numbers): start for (name, numbers), start in zip(rows, first, strict=False)}


class Samples(ABC):
    """Encoded samples in a fixed order, each of which has a height and a width.

    identity: tells samples of different sources apart in the cache, e.g. an absolute path.
    units: the files they are made of, in order; None: never remembered, read anew each time.
    seekable: whether ``encoded`` is fast for one sample anywhere.
    """

    identity: str
    units: Units | None = None
    seekable: bool = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """A sample's name for people, such as its path below the root."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The stored bytes of one sample. Raises OSError."""

    @abstractmethod
    def inspect(self, content: bytes) -> tuple[int, int]:
        """Height and width, after making sure that decoding will work. Raises BrokenImageError."""

    def digest(self, content: bytes) -> bytes:
        """SHA-256 of what a sample says."""
        return hashlib.sha256(content).digest()

    def pieces(self) -> list[range]:
        """Ranges of samples that together cover them all, each read in one go by ``read``."""
        return [range(start, min(start + 64, len(self))) for start in range(0, len(self), 64)]

    def read(self, piece: range) -> Iterator[bytes | images.BrokenImageError]:
        """The stored bytes of a piece's samples in order; for one that cannot be read, the reason."""
        for index in piece:
            try:
                yield self.encoded(index)
            except OSError as error:
                yield images.UnreachableImageError(error.strerror or str(error))


class Part(Samples):
    """The images of one official part of a source: its train, validation or test.

    labels: int64 [N], or None.
    """

    labels: np.ndarray | None

    def inspect(self, content: bytes) -> tuple[int, int]:
        """Height and width, after making sure that ``decode`` will work. Raises BrokenImageError."""
        return images.inspect(content)

    def decode(self, content: bytes) -> np.ndarray:
        """Pixels uint8 [H, W, 3]. Raises BrokenImageError."""
        return images.decode(content)


class Annotations(Samples):
    """What is known of each image of a part: its label map, or the boxes in it. Same order as the images.

    They go to worker processes, so they should be small.

    decode: turns a sample's bytes into the target.
    meaning: what the bytes alone do not say and targets depend on; a part of the fingerprint.
    """

    decode: Decoder
    meaning: str

    def inspect(self, content: bytes) -> tuple[int, int]:
        """Height and width of the image it is meant for. Raises BrokenImageError."""
        return self.decode.size(content)


class Decoder(Protocol):
    """Encoded annotations of one image to what they say."""

    def __call__(self, content: bytes) -> Any:
        """The target, see ``Split.target``. Raises BrokenImageError."""

    def size(self, content: bytes) -> tuple[int, int]:
        """Height and width, after making sure that a call will work. Raises BrokenImageError."""


@dataclass(frozen=True)
class Listing:
    """What a source holds, before mimbench divides and prepares it.

    name: for people, without the directories above the last.
    parts: by "train", "validation", "test"; train is always there.
    classes: names in the order of the labels, or None where there are no labels.
    held_out: shares of train that become (validation, test) where the source has one part only.
    notes: facts for the record, such as a part that was left out.
    divided_by: what decided which part an image belongs to, where it is not its folder or file.
    task: what the annotations are for. For segmentation and detection:
    annotations: of every part. category_ids: of the classes in the source's own files, for detection.
    has_masks: whether every object has an outline.
    """

    name: str
    parts: dict[str, Part]
    classes: tuple[str, ...] | None
    defaults: DataDefaults = DataDefaults()
    held_out: tuple[float, float] = (0.1, 0.1)
    notes: tuple[str, ...] = field(default=())
    divided_by: str = ""
    task: Task = "classification"
    annotations: Mapping[str, Annotations] = field(default_factory=dict)
    category_ids: tuple[int, ...] = ()
    has_masks: bool = False


def existing(kind: str, argument: str) -> Path:
    """The path of ``kind:argument``; raises UserError if nothing is there."""
    if not argument:
        raise UserError(f"the dataset {kind!r} needs a path, as in {kind}:PATH")
    path = Path(argument).expanduser().absolute()
    if not path.exists():
        raise UserError(f"there is nothing at {argument}, which {kind}:{argument} names; check the path")
    return path


def local_name(kind: str, path: Path) -> str:
    """``kind:folder``: a dataset's name without the directories above the last."""
    return f"{kind}:{path.resolve().name}"

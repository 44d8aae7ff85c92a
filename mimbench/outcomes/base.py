"""What all kinds of outcomes have in common, and how their arrays are packed into a record."""

from __future__ import annotations

import base64
import binascii
import zlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np


class Outcomes(ABC):
    """What came out for each test image, in the order of the test split."""

    kind: ClassVar[str]  # in a record

    @property
    @abstractmethod
    def n(self) -> int:
        """How many images."""

    def __len__(self) -> int:
        return self.n

    @abstractmethod
    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The metric, float64 [K], when image j counts ``weights[k, j]`` times; [1] when each counts once.

        weights: [K, N], not negative. NaN where the images that count leave the metric undefined.
        """

    @property
    def score(self) -> float:
        """The metric when each image counts once."""
        return float(self.value()[0])

    @abstractmethod
    def pack(self) -> dict[str, Any]:
        """As JSON data, from which ``mimbench.outcomes.unpack`` makes the same outcomes."""

    @classmethod
    @abstractmethod
    def unpacked(cls, packed: dict[str, Any]) -> Outcomes:
        """The outcomes of this kind in ``packed``; raises ValueError when it is damaged."""

    def _weights(self, weights: np.ndarray | None) -> np.ndarray:
        """Weights as numbers [K, N]; raises ValueError for another shape."""
        if weights is None:
            return np.ones((1, self.n), np.int32)
        weights = np.asarray(weights)
        if weights.ndim != 2 or weights.shape[1] != self.n:
            raise ValueError(f"weights must be [K, {self.n}], got {list(weights.shape)}")
        return weights


def pack_array(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON data, lossless: shape, type and base64 of its compressed bytes.

    Equal bytes of all numbers lie together (a "byte shuffle"), because that is what compresses.
    """
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    shuffled = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.str,
        "zlib": base64.b64encode(zlib.compress(np.ascontiguousarray(shuffled).tobytes(), 9)).decode("ascii"),
    }


def unpack_array(packed: dict[str, Any], name: str, kinds: str) -> np.ndarray:
    """The array ``packed[name]``, its type one of the ``kinds`` of numpy. Raises ValueError when damaged."""
    try:
        stored = packed[name]
        shape, dtype = tuple(map(int, stored["shape"])), np.dtype(stored["dtype"])
        content = zlib.decompress(base64.b64decode(stored["zlib"], validate=True))
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"per-image outcomes are damaged: {name}: {error}") from error
    count = int(np.prod(shape, dtype=np.int64))
    if dtype.kind not in kinds or min(shape, default=0) < 0 or len(content) != count * dtype.itemsize:
        raise ValueError(f"per-image outcomes are damaged: {name} is not what its description says")
    shuffled = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, count)
    return np.ascontiguousarray(shuffled.T).reshape(-1).view(dtype).reshape(shape)


def smallest_integer(array: np.ndarray) -> np.ndarray:
    """Integers that are not negative, in the smallest unsigned type that holds them all."""
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


def smallest_float(array: np.ndarray) -> np.ndarray:
    """float64 as float32 where that loses nothing."""
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    return single if np.array_equal(single.astype(np.float64), array) else array

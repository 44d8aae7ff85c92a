"""Outcomes whose metric is a mean over images: right or wrong, or a number an image."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimbench.outcomes.base import Outcomes, pack_array, smallest_float, unpack_array


@dataclass(frozen=True, eq=False)
class Hits(Outcomes):
    """Whether each test image came out right, bool [N]; the metric is their share."""

    hits: np.ndarray

    kind = "hits"

    def __post_init__(self) -> None:
        hits = np.asarray(self.hits)
        if hits.ndim != 1 or hits.dtype != np.bool_:
            raise ValueError(f"hits must be bool [N], got {hits.dtype} {list(hits.shape)}")
        object.__setattr__(self, "hits", hits)

    @property
    def n(self) -> int:
        return len(self.hits)

    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        return _weighted_mean(self.hits, self._weights(weights))

    def pack(self) -> dict[str, Any]:
        bits = base64.b64encode(np.packbits(self.hits).tobytes()).decode("ascii")
        return {"kind": self.kind, "n": self.n, "bits": bits}

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Hits:
        try:
            n, bits = int(packed["n"]), base64.b64decode(packed["bits"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ValueError(f"per-image outcomes are damaged: {error}") from error
        if n < 0 or len(bits) != -(-n // 8):
            raise ValueError(f"per-image outcomes are damaged: {len(bits)} bytes for {n} images")
        return cls(np.unpackbits(np.frombuffer(bits, np.uint8), count=n).astype(bool))


@dataclass(frozen=True, eq=False)
class Values(Outcomes):
    """A finite number for each test image, float64 [N]; the metric is their mean."""

    values: np.ndarray

    kind = "values"

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim != 1 or values.dtype.kind not in "fiu":
            raise ValueError(f"values must be numbers [N], got {values.dtype} {list(values.shape)}")
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite")
        object.__setattr__(self, "values", values)

    @property
    def n(self) -> int:
        return len(self.values)

    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        return _weighted_mean(self.values, self._weights(weights))

    def pack(self) -> dict[str, Any]:
        return {"kind": self.kind, "values": pack_array(smallest_float(self.values))}

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Values:
        return cls(unpack_array(packed, "values", "f"))


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # no image counts: NaN
        return weights.astype(np.float64) @ values / weights.sum(axis=1)

"""What became of each test image, and the metric as a function of how often each image counts.

Intervals and paired tests need no more than that: other draws of test images are other counts. Imports no
torch.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np


class Outcomes(ABC):
    """Per-image results of one evaluation."""

    kind: ClassVar[str]
    n: int  # images

    @abstractmethod
    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The metric, float64 [K], when image j counts weights[k, j] times; [1], each once, by default."""

    @abstractmethod
    def pack(self) -> dict[str, Any]:
        """JSON data; ``unpack`` gives it back. Has a "kind", except for the oldest, ``Hits``."""


class Hits(Outcomes):
    """Whether each image came out right; the metric is the share that did. hits: bool [N]."""

    kind = "hits"

    def __init__(self, hits: np.ndarray):
        self.hits = np.asarray(hits)
        if self.hits.ndim != 1 or self.hits.dtype != np.bool_:
            raise ValueError(f"hits must be bool [N], got {self.hits.dtype} {list(self.hits.shape)}")
        self.n = len(self.hits)

    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        if weights is None:
            return np.array([self.hits.mean()])
        return weights @ self.hits / weights.sum(1)

    def pack(self) -> dict[str, Any]:
        """{"n": N, "bits": base64 of the packed bits}."""
        return {"n": self.n, "bits": base64.b64encode(np.packbits(self.hits).tobytes()).decode("ascii")}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> Hits:
        """What ``pack`` packed; raises ValueError when it is damaged."""
        try:
            n, bits = int(packed["n"]), base64.b64decode(packed["bits"], validate=True)
        except (KeyError, TypeError, binascii.Error) as error:
            raise ValueError(f"per-sample outcomes are damaged: {error}") from error
        if n < 0 or len(bits) != -(-n // 8):
            raise ValueError(f"per-sample outcomes are damaged: {len(bits)} bytes for {n} samples")
        return cls(np.unpackbits(np.frombuffer(bits, np.uint8), count=n).astype(bool))

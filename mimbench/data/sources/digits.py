"""``digits``: scikit-learn's handwritten digits, shipped with it; the default that needs no network.

1,797 scans of 8 x 8 pixels, 17 grey levels: the test part of Alpaydin & Kaynak, "Optical Recognition of
Handwritten Digits", UCI 1998, doi:10.24432/C50P49.
"""

from __future__ import annotations

import numpy as np

from mimbench.data.sources.base import DataDefaults, Listing, Part
from mimbench.errors import UserError


class _Scans(Part):
    identity = "digits"

    def __init__(self, scans: np.ndarray, labels: np.ndarray):
        self._scans = scans  # uint8 [N, 8, 8], 0..16
        self.labels = labels

    def __len__(self) -> int:
        return len(self._scans)

    def name(self, index: int) -> str:
        return f"digit {index}"

    def encoded(self, index: int) -> bytes:
        return self._scans[index].tobytes()

    def inspect(self, content: bytes) -> tuple[int, int]:
        return 8, 8

    def decode(self, content: bytes) -> np.ndarray:
        grey = np.rint(np.frombuffer(content, np.uint8).reshape(8, 8) * (255 / 16)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)


def digits(argument: str = "") -> Listing:
    """Handwritten digits, 8 x 8, shipped with scikit-learn."""
    if argument:
        raise UserError(f"the dataset 'digits' takes no argument, got {argument!r}; write just digits")
    from sklearn.datasets import load_digits

    data = load_digits()
    part = _Scans(data.images.astype(np.uint8), data.target.astype(np.int64))
    return Listing(
        name="digits",
        parts={"train": part},
        classes=tuple("0123456789"),
        # A fifth of a digit, which recipes for photographs crop to, is a stroke of no digit in particular.
        defaults=DataDefaults(
            image_size=16, backbone="vit_micro_patch4", crop_pct=1.0, flip=False, crop_min=0.7, epochs=60
        ),
        held_out=(0.1, 0.2),  # a tenth for test would leave 180 digits and an interval of 8 points
    )

"""Segmentation: how far prediction and annotation overlap, image by image and class by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimbench.outcomes.base import Outcomes, pack_array, smallest_integer, unpack_array


@dataclass(frozen=True, eq=False)
class Overlaps(Outcomes):
    """Pixels of intersection and of union of prediction and annotation; the metric is the mean IoU.

    intersections, unions: integers [N, C]; pixels without an annotation count nowhere.

    Mean IoU as in mmsegmentation's ``IoUMetric`` (1.2): areas are summed over all images first, then each
    class is divided, and the mean is over the classes whose union is not empty. So a class that is nowhere
    annotated counts as 0 when it is predicted anywhere, and is left out otherwise.
    """

    intersections: np.ndarray
    unions: np.ndarray

    kind = "overlaps"

    def __post_init__(self) -> None:
        inner, outer = np.asarray(self.intersections), np.asarray(self.unions)
        if inner.ndim != 2 or inner.shape != outer.shape or inner.dtype.kind + outer.dtype.kind not in _INTS:
            raise ValueError(
                "intersections and unions must be integers [N, C], got "
                f"{inner.dtype} {list(inner.shape)} and {outer.dtype} {list(outer.shape)}"
            )
        inner, outer = inner.astype(np.int64), outer.astype(np.int64)
        if (inner < 0).any() or (inner > outer).any():
            raise ValueError("an intersection must lie between 0 and its union")
        object.__setattr__(self, "intersections", inner)
        object.__setattr__(self, "unions", outer)

    @classmethod
    def of_maps(cls, pairs: Iterable[tuple[np.ndarray, np.ndarray]], classes: int, ignore: int) -> Overlaps:
        """Out of (prediction, annotation) of each test image, class numbers [H, W] of the same size.

        ignore: the number of pixels without an annotation. Raises ValueError for other numbers outside of
        0 .. classes - 1, in predictions too.
        """
        inner, outer = [], []
        for predicted, annotated in pairs:
            if predicted.shape != annotated.shape:
                raise ValueError(f"a prediction {predicted.shape} of an annotation {annotated.shape}")
            counts = annotated != ignore
            said, true = predicted[counts].astype(np.int64), annotated[counts].astype(np.int64)
            for numbers in (said, true):
                if numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
                    raise ValueError(f"classes {numbers.min()} to {numbers.max()} in a map of {classes}")
            inner.append(np.bincount(true[said == true], minlength=classes))
            outer.append(
                np.bincount(said, minlength=classes) + np.bincount(true, minlength=classes) - inner[-1]
            )
        empty = np.zeros((0, classes), np.int64)
        return cls(np.stack(inner) if inner else empty, np.stack(outer) if outer else empty)

    @property
    def n(self) -> int:
        return len(self.unions)

    def per_class(self, weights: np.ndarray | None = None) -> np.ndarray:
        """IoU of each class, float64 [K, C]; NaN where its union is empty. weights: see ``value``."""
        counted = self._weights(weights).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return (counted @ self.intersections.astype(np.float64)) / (
                counted @ self.unions.astype(np.float64)
            )

    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        ious = self.per_class(weights)
        there = ~np.isnan(ious)
        with np.errstate(invalid="ignore"):  # no class at all: NaN
            return np.where(there, ious, 0).sum(axis=1) / there.sum(axis=1)

    def pack(self) -> dict[str, Any]:
        """Of each image only the classes that it has: most of a benchmark's images have few."""
        images, classes = np.nonzero(self.unions)
        return {
            "kind": self.kind,
            "shape": list(self.unions.shape),
            "classes_an_image": pack_array(smallest_integer(np.bincount(images, minlength=self.n))),
            "classes": pack_array(smallest_integer(classes)),
            "intersections": pack_array(smallest_integer(self.intersections[images, classes])),
            "unions": pack_array(smallest_integer(self.unions[images, classes])),
        }

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Overlaps:
        names = ("classes_an_image", "classes", "intersections", "unions")
        each, classes, inner, outer = (unpack_array(packed, name, "u") for name in names)
        try:
            n, c = map(int, packed["shape"])
            dense = np.zeros((2, n, c), np.int64)
            where = np.repeat(np.arange(n), each), classes
            dense[0][where], dense[1][where] = inner, outer
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"per-image outcomes are damaged: {error}") from error
        return cls(*dense)


_INTS = {a + b for a in "iu" for b in "iu"}

"""Detection: what was found at each IoU threshold, the most certain first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mimbench.outcomes.base import Outcomes, pack_array, smallest_integer, unpack_array

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

RECALLS = np.linspace(0.0, 1.0, 101)  # where COCO reads precision
ELEMENTS = 1_000_000  # of the largest arrays at work: several of up to 8 MB


@dataclass(frozen=True, eq=False)
class Detections(Outcomes):
    """Detections that were matched to ground truth; the metric is COCO's average precision.

    It is ``stats[0]`` of pycocotools' ``COCOeval``: objects of all areas, the mean over IoU thresholds and
    over the classes that have ground truth, precision read at 101 recalls. An image that counts twice
    counts like two images with the same detections and the same ground truth.

    images, classes: int [M], of each detection, class by class and in each the most certain first; images
    are places in the test split.
    matched, ignored: bool [M, T], at each IoU threshold: a detection has found an object of its own, or
    counts neither for nor against (it lies in a crowd).
    truths: int [N, C], objects to be found, crowds left out.
    """

    images: np.ndarray
    classes: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray

    kind = "detections"

    def __post_init__(self) -> None:
        count, (n, c) = len(self.images), self.truths.shape
        fields = (self.classes, self.matched, self.ignored)
        if (
            any(len(field) != count for field in fields)
            or self.matched.shape != self.ignored.shape
            or not _within(self.images, n)
            or not _within(self.classes, c)
        ):
            raise ValueError(f"detections do not fit each other, {n} images and {c} classes")
        if (np.diff(self.classes) < 0).any():
            raise ValueError("detections must come class by class")

    @classmethod
    def of_coco(cls, evaluator: COCOeval, image_ids: Sequence[int]) -> Detections:
        """Out of pycocotools' evaluator after its ``evaluate()``.

        image_ids: of the test split, in its order. Raises ValueError unless they are the images that were
        evaluated, class by class (``useCats``). Equal scores keep the evaluator's order: by image id.
        """
        params = evaluator._paramsEval
        ids, categories = list(params.imgIds), list(params.catIds)
        if not params.useCats or sorted(image_ids) != sorted(ids):
            raise ValueError(f"{len(image_ids)} test images, but {len(ids)} evaluated, or not by class")
        place = {image: i for i, image in enumerate(image_ids)}
        area = params.areaRngLbl.index("all")
        steps = len(params.areaRng), len(ids)
        truths = np.zeros((len(ids), len(categories)), np.int64)
        parts: list[tuple[np.ndarray, ...]] = [_none(len(params.iouThrs))]
        for k in range(len(categories)):
            start = (k * steps[0] + area) * steps[1]
            for i, found in enumerate(evaluator.evalImgs[start : start + steps[1]]):
                if found is None:
                    continue
                image, count = place[ids[i]], len(found["dtScores"])
                truths[image, k] = np.count_nonzero(np.asarray(found["gtIgnore"]) == 0)
                parts.append(
                    (
                        np.full(count, image),
                        np.full(count, k),
                        np.asarray(found["dtScores"], np.float64),
                        np.asarray(found["dtMatches"]).T != 0,
                        np.asarray(found["dtIgnore"]).T.astype(bool),
                    )
                )
        images, classes, scores, matched, ignored = map(np.concatenate, zip(*parts, strict=True))
        if not np.isfinite(scores).all():
            raise ValueError("a detection's score is not finite")
        best = np.lexsort((-scores, classes))  # stable
        return cls(images[best], classes[best], matched[best], ignored[best], truths)

    @property
    def n(self) -> int:
        return len(self.truths)

    def value(self, weights: np.ndarray | None = None) -> np.ndarray:
        weights = self._weights(weights)
        if weights.dtype.kind in "biu":  # sums of whole numbers are exact, and three times as fast
            largest = int(weights.max(initial=0)) * len(self.images)
            weights = weights.astype(np.int32 if largest < 2**31 else np.int64)
        there = np.zeros(len(weights))
        total = np.zeros(len(weights))
        truths = weights.astype(np.float64) @ self.truths.astype(np.float64)  # [K, C]
        bounds = np.searchsorted(self.classes, np.arange(self.truths.shape[1] + 1))
        for c, (start, end) in enumerate(pairwise(bounds)):
            block = max(1, ELEMENTS // max(end - start, 1))
            for first in range(0, len(weights), block):
                rows = slice(first, first + block)
                wanted = truths[rows, c]
                precision = self._precision(weights[rows], slice(start, end), np.where(wanted > 0, wanted, 1))
                total[rows] += np.where(wanted > 0, precision, 0)
                there[rows] += wanted > 0
        with np.errstate(invalid="ignore"):  # nothing to be found: NaN
            return total / there

    def _precision(self, weights: np.ndarray, of: slice, truths: np.ndarray) -> np.ndarray:
        """Average precision of one class, the mean over thresholds, [K]. truths: [K].

        Only where something is found can precision reach a new height and recall advance, so all else
        enters as a count of what came before, and what comes after the last does not matter.
        """
        found_at_all = np.flatnonzero(self.matched[of].any(axis=1))
        of = slice(of.start, of.start + (found_at_all[-1] + 1 if len(found_at_all) else 0))
        matched, ignored = self.matched[of], self.ignored[of]
        counted = weights[:, self.images[of]]  # [K, M]
        before = np.cumsum(counted, axis=1, dtype=weights.dtype)
        total = np.zeros(len(weights))
        for hit, out in zip((matched & ~ignored).T, ignored.T, strict=True):
            places = np.flatnonzero(hit)
            if not len(places):
                continue
            all_seen = before[:, places]
            outs = np.flatnonzero(out)
            if len(outs):
                left_out = np.cumsum(counted[:, outs], axis=1, dtype=weights.dtype)
                last = np.searchsorted(outs, places) - 1  # the ignored one before each place
                all_seen -= np.where(last >= 0, left_out[:, last], 0)
            found = np.cumsum(counted[:, places], axis=1, dtype=weights.dtype)
            # np.spacing(1) keeps 0 / 0 out, as in pycocotools.
            precision = found / (all_seen + np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            total += (best * _recalls_passed(found / truths[:, None])).sum(axis=1)
        return total / (len(RECALLS) * matched.shape[1])

    def pack(self) -> dict[str, Any]:
        thresholds = self.matched.shape[1]
        return {
            "kind": self.kind,
            "thresholds": thresholds,
            "detections_a_class": pack_array(
                smallest_integer(np.bincount(self.classes, minlength=self.truths.shape[1]))
            ),
            "images": pack_array(smallest_integer(self.images)),
            "matched": pack_array(np.packbits(self.matched.T, axis=1)),
            "ignored": pack_array(np.packbits(self.ignored.T, axis=1)),
            "truths": pack_array(smallest_integer(self.truths)),
        }

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Detections:
        names = ("detections_a_class", "images", "matched", "ignored", "truths")
        each, images, matched, ignored, truths = (unpack_array(packed, name, "u") for name in names)
        count = len(images)
        if any(bits.ndim != 2 or bits.shape[1] != -(-count // 8) for bits in (matched, ignored)):
            raise ValueError(f"per-image outcomes are damaged: no bit for each of {count} detections")
        try:
            found, lost = (
                np.unpackbits(bits, axis=1, count=count).T.astype(bool) for bits in (matched, ignored)
            )
            classes = np.repeat(np.arange(truths.shape[1]), each)
            return cls(images.astype(np.int64), classes, found, lost, truths.astype(np.int64))
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"per-image outcomes are damaged: {error}") from error


def _within(numbers: np.ndarray, count: int) -> bool:
    return not len(numbers) or bool(0 <= numbers.min() <= numbers.max() < count)


def _none(thresholds: int) -> tuple[np.ndarray, ...]:
    """No detections, so that images without any can be put together."""
    whole, bits = np.zeros(0, np.int64), np.zeros((0, thresholds), bool)
    return whole, whole, np.zeros(0), bits, bits


def _recalls_passed(recall: np.ndarray) -> np.ndarray:
    """How many of ``RECALLS`` each step reaches first. recall: [K, M], rising along M."""
    reached = np.minimum((recall * 100).astype(np.int64) + 1, len(RECALLS))
    # The product may round to either side of a whole number; what counts is the comparison itself.
    reached -= RECALLS[reached - 1] > recall
    reached += np.append(RECALLS, np.inf)[reached] <= recall
    return np.diff(reached, axis=1, prepend=0)

"""COCO's average precision of boxes and masks, by pycocotools itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from protocols.parts.objects import objects

if TYPE_CHECKING:
    from mimbench.data import Split
    from protocols.parts.marked import Found

# The first six of COCOeval's twelve figures, in its order. Objects of all areas, but for the last three:
# below 32², 32² to 96², above 96² pixels.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class Judge:
    """What is to be found in a split, ready to judge what was.

    category_ids: of the classes in the set's own files; equal scores of two images are decided by the
    images' ids and not by their order, as COCO's are.
    """

    def __init__(self, split: Split, category_ids: Sequence[int]):
        self.category_ids = list(category_ids)
        targets = [objects(split, i) for i in range(len(split))]
        self.image_ids = [target.image_id for target in targets]
        self.images = [
            {"id": target.image_id, "height": target.height, "width": target.width} for target in targets
        ]
        self.truth = self._coco([one for target in targets for one in target.content(self.category_ids)])

    def _coco(self, annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        categories = [{"id": number} for number in self.category_ids]
        coco.dataset = {"images": self.images, "categories": categories, "annotations": annotations}
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco

    def evaluate(self, found: Sequence[Found], what: Literal["bbox", "segm"]) -> COCOeval:
        """COCO's evaluator, accumulated. found: of each image, in the order of the split."""
        if len(found) != len(self.image_ids):
            raise ValueError(f"detections of {len(found)} images for {len(self.image_ids)}")
        results = []
        for image_id, one in zip(self.image_ids, found, strict=True):
            for i, (score, label) in enumerate(zip(one.scores.tolist(), one.labels.tolist(), strict=True)):
                result = {"image_id": image_id, "category_id": self.category_ids[label], "score": score}
                # Only one of the two: pycocotools takes a detection's area from the box where there is one.
                if what == "bbox":
                    result["bbox"] = one.boxes[i].tolist()
                else:
                    assert one.masks is not None
                    result["segmentation"] = one.masks[i]
                results.append(result)
        with contextlib.redirect_stdout(io.StringIO()):
            detected = self.truth.loadRes(results) if results else self._coco([])
            evaluator = COCOeval(self.truth, detected, what)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return evaluator


def figures(evaluator: COCOeval, prefix: str) -> dict[str, float]:
    """COCO's figures by name; without those of areas that no object has."""
    pairs = zip(NAMES, evaluator.stats[: len(NAMES)].tolist(), strict=True)
    return {f"{prefix}_{name}": value for name, value in pairs if value >= 0}

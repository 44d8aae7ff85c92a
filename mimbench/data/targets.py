"""What a split's images are annotated with: label maps and boxes, out of their encoded form. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mimbench.data.images import BrokenImageError, decode_numbers


@dataclass(frozen=True)
class LabelDecoder:
    """PNGs of label numbers to classes 0..C-1. The one place where label zero is dealt with.

    classes: their number C. first: the label of the first class in the file, 1 where 0 means "no class"
    (``reduce_zero_label`` elsewhere), 0 where it is a class. ignored: labels that mean "no class"; so does
    255 unless a class has it.
    """

    classes: int
    first: int = 1
    ignored: tuple[int, ...] = ()

    @property
    def ignore(self) -> int:
        """The value of pixels without a class: 255, or 65535 where more than 254 classes need 16 bits."""
        return 255 if self.classes <= 254 else 65535

    @cached_property
    def _known(self) -> np.ndarray:
        """bool [65536]: whether a label may occur."""
        known = np.zeros(1 << 16, bool)
        known[[255, *self.ignored, *([0] if self.first else [])]] = True
        known[self.first : self.first + self.classes] = True
        return known

    @cached_property
    def _meant(self) -> np.ndarray:
        """uint8 or uint16 [65536]: the class of a label."""
        kind = np.uint8 if self.ignore == 255 else np.uint16
        meant = np.full(1 << 16, self.ignore, kind)
        meant[self.first : self.first + self.classes] = np.arange(self.classes, dtype=kind)
        meant[list(self.ignored)] = self.ignore
        return meant

    def __getstate__(self) -> dict[str, Any]:
        return {"classes": self.classes, "first": self.first, "ignored": self.ignored}

    def _labels(self, content: bytes) -> np.ndarray:
        labels = decode_numbers(content)
        known = self._known[labels]
        if not known.all():
            wrong = int(labels[~known].max())
            last = self.first + self.classes - 1
            raise BrokenImageError(
                f"it has the label {wrong}, but its {self.classes} classes are {self.first} to {last}"
            )
        return labels

    def size(self, content: bytes) -> tuple[int, int]:
        """Height and width; raises BrokenImageError for a label that is neither a class nor ignored."""
        height, width = self._labels(content).shape
        return height, width

    def __call__(self, content: bytes) -> np.ndarray:
        """Classes [H, W], uint8 (uint16 beyond 254 classes): 0..C-1, and ``ignore``."""
        return self._meant[self._labels(content)]


@dataclass(frozen=True, eq=False)
class Boxes:
    """The objects of one image, in COCO's terms and in the order of its file.

    boxes: float64 [n, 4]: left, top, width, height in pixels, as annotated: unclipped, and in the precision
    of the file, which COCO's metric depends on at its thresholds.
    labels: int64 [n], 0..C-1. areas: float64 [n] in pixels, of the outline where there is one. crowd: bool
    [n], whether it stands for many. ids: int64 [n], of the annotations. image_id: in the file.
    masks: for each object polygons ([[x, y, x, y, …], …]) or an RLE ({"size": [h, w], "counts": …}), which
    pycocotools' ``frPyObjects`` takes; None where the set has no masks.
    height, width: of the image.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray
    masks: tuple[Any, ...] | None
    image_id: int
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Boxes of image {self.image_id}: {len(self)} objects in {self.width} x {self.height} pixels>"

    @property
    def degenerate(self) -> np.ndarray:
        """bool [n]: no area inside the image. True to the file and to the metric, useless for training."""
        left, top, width, height = self.boxes.T
        right, bottom = np.minimum(left + width, self.width), np.minimum(top + height, self.height)
        return (right <= np.maximum(left, 0)) | (bottom <= np.maximum(top, 0))

    def content(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The objects as COCO's JSON has them. category_ids: ``Dataset.category_ids``."""
        return [
            {
                "id": int(self.ids[i]),
                "image_id": self.image_id,
                "category_id": category_ids[self.labels[i]],
                "bbox": self.boxes[i].tolist(),
                "area": float(self.areas[i]),
                "iscrowd": int(self.crowd[i]),
                "segmentation": [] if self.masks is None else self.masks[i],
            }
            for i in range(len(self))
        ]


def encode_boxes(
    image_id: int, height: int, width: int, objects: Sequence[tuple[int, int, list[float], float, int, Any]]
) -> bytes:
    """One image's objects (id, label, box, area, crowd, mask or None) as ``BoxDecoder`` reads them.

    Two lines of JSON: names first, then content.
    """
    ids, *columns = zip(*objects, strict=True) if objects else ((),) * 6
    lines = [[image_id, ids], [height, width, *columns]]
    return "\n".join(json.dumps(line, separators=(",", ":")) for line in lines).encode()


@dataclass(frozen=True)
class BoxDecoder:
    """What ``encode_boxes`` wrote to ``Boxes``. has_masks: whether every object of the set has one."""

    has_masks: bool

    def size(self, content: bytes) -> tuple[int, int]:
        """Height and width of the image the objects were marked in."""
        height, width, *_ = json.loads(content.partition(b"\n")[2])
        return height, width

    def __call__(self, content: bytes) -> Boxes:
        """The objects of one image."""
        (image_id, ids), (height, width, labels, boxes, areas, crowd, masks) = map(
            json.loads, content.split(b"\n")
        )
        return Boxes(
            boxes=np.array(boxes, np.float64).reshape(-1, 4),
            labels=np.array(labels, np.int64),
            areas=np.array(areas, np.float64),
            crowd=np.array(crowd, bool),
            ids=np.array(ids, np.int64),
            masks=tuple(masks) if self.has_masks else None,
            image_id=image_id,
            height=height,
            width=width,
        )


Target = np.ndarray | Boxes

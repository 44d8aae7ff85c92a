"""Photographs with marked objects, as mmdet's transforms and detectors take them. No file is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from mimbench.openmm import prepare
from mimbench.openmm.samples import Samples
from protocols.parts.objects import objects, useful

prepare()

from mmcv.transforms import RandomResize  # noqa: E402
from mmdet.datasets.transforms import (  # noqa: E402
    FilterAnnotations,
    PackDetInputs,
    RandomCrop,
    RandomFlip,
    Resize,
)
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402

if TYPE_CHECKING:
    from mimbench.data import Split

PACKED = ("img_id", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")


class Found(NamedTuple):
    """What was found in an image, best first or not."""

    boxes: np.ndarray  # float64 [n, 4]: left, top, width, height in pixels of the image as it is
    scores: np.ndarray  # float64 [n]
    labels: np.ndarray  # int64 [n]
    masks: list[dict[str, Any]] | None  # RLE; None of a detector without masks


class TrainingPictures:
    """A split's images with something to find, by position among them; picklable, for workers."""

    def __init__(self, splits: Sequence[Split], masks: bool):
        self.masks = masks
        self.places = [
            (split, i) for split in splits for i in range(len(split)) if useful(objects(split, i)).any()
        ]

    def __call__(self, index: int) -> dict[str, Any]:
        split, place = self.places[index]
        target = objects(split, place)
        keep = np.flatnonzero(useful(target))
        found = picture(split, place, index)
        left, top, width, height = target.boxes[keep].T
        corners = np.stack([left, top, left + width, top + height], axis=1).astype(np.float32)
        found["gt_bboxes"] = HorizontalBoxes(corners)
        found["gt_bboxes_labels"] = target.labels[keep]
        found["gt_ignore_flags"] = np.zeros(len(keep), bool)  # mmdet wants to be told
        if self.masks:
            assert target.masks is not None
            bitmaps = [bitmap(target.masks[i], target.height, target.width) for i in keep]
            found["gt_masks"] = BitmapMasks(bitmaps, target.height, target.width)
        return found


class TestPictures:
    """A split's images alone."""

    __test__ = False  # no test of pytest's

    def __init__(self, split: Split):
        self.split = split

    def __call__(self, index: int) -> dict[str, Any]:
        return picture(self.split, index, index)


def picture(split: Split, place: int, number: int) -> dict[str, Any]:
    """An image as mmcv's LoadImageFromFile would give it, in RGB."""
    image = split.image(place)
    return {"img": image, "img_id": number, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


def bitmap(mask: Any, height: int, width: int) -> np.ndarray:
    """A mask of COCO's (polygons or an RLE) as uint8 [height, width]."""
    if isinstance(mask, dict) and not isinstance(mask["counts"], list):
        return rle.decode(mask)
    encoded = rle.frPyObjects(mask, height, width)
    return rle.decode(rle.merge(encoded) if isinstance(encoded, list) else encoded)


def training_samples(
    splits: Sequence[Split], *, image_size: int, scale: tuple[float, float], masks: bool
) -> Samples:
    """Flipped, scaled by ``scale`` times what fits into a square of ``image_size``, cropped to it.

    Large-scale jitter (Ghiasi et al. 2021, arXiv:2012.07177). Images without objects are left out; a crop
    without any is not.
    """
    load = TrainingPictures(splits, masks)
    side = (image_size, image_size)
    transforms = [
        RandomFlip(prob=0.5),
        RandomResize(scale=side, ratio_range=scale, keep_ratio=True, resize_type=Resize),
        RandomCrop(side, crop_type="absolute", recompute_bbox=masks, allow_negative_crop=True),
        FilterAnnotations(min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
        PackDetInputs(meta_keys=PACKED),
    ]
    return Samples(len(load.places), load, transforms, {})


def test_samples(split: Split, *, image_size: int) -> Samples:
    """Scaled so that the longer side is ``image_size``."""
    transforms = [
        Resize(scale=(image_size, image_size), keep_ratio=True),
        PackDetInputs(meta_keys=PACKED),
    ]
    return Samples(len(split), TestPictures(split), transforms, {})


test_samples.__test__ = False  # type: ignore[attr-defined]


def detections(prediction: Any) -> Found:
    """What mmdet's detector predicts of an image, on the CPU and in COCO's terms."""
    instances = prediction.pred_instances.cpu()
    corners = instances.bboxes.double().numpy()
    masks = None
    if "masks" in instances:
        # Fortran order is how COCO counts pixels; one at a time, as they may be of many pixels each.
        masks = [rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in instances.masks]
    return Found(
        np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        instances.scores.double().numpy(),
        instances.labels.numpy().astype(np.int64),
        masks,
    )

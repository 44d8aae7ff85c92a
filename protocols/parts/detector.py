"""Mask R-CNN (arXiv:1703.06870) and Faster R-CNN on a plain backbone, as ViTDet configures them, by mmdet.

Facts are those of detectron2's ``projects/ViTDet/configs/common/models/mask_rcnn_vitdet.py``. Sizes there are
of patches of 16 pixels; here all of them scale with the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mimbench.openmm import prepare, scoped
from protocols.parts.pyramid import NORM

prepare()

import mmdet.models  # noqa: E402, F401, registers them
from mmdet.registry import MODELS  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402

from mimbench.openmm.backbone import MapsBackbone  # noqa: E402, F401, registers it

FINEST = 56 / 16  # side, in patches, of the smallest objects that the second-finest map is for
MOST = 100  # detections an image, as COCO's metric takes


def build_detector(
    body: Any,
    *,
    width: int,
    classes: int,
    masks: bool,
    mean: Sequence[float],
    std: Sequence[float],
    window: int | None,
    global_blocks: Sequence[int],
    channels: int,
    roi_samples: int,
) -> nn.Module:
    """The detector, all but ``body`` freshly initialised out of torch's generator.

    body: a backbone built for the image size. width: channels of its maps. mean, std: of images in [0, 1].
    window, global_blocks: see ``mimbench.encoder.Backbone.maps``. channels: of pyramid and heads, 256 in
    ViTDet. roi_samples: regions an image that the heads learn from, 512 in ViTDet.
    """
    config = ConfigDict(
        type="MaskRCNN" if masks else "FasterRCNN",
        data_preprocessor={
            "type": "DetDataPreprocessor",
            "mean": [255 * value for value in mean],
            "std": [255 * value for value in std],
            # Images are no larger than this, so all become squares of it, with the mean at the lower right.
            "pad_size_divisor": body.config["image_size"],
            "pad_mask": masks,
        },
        neck={"type": "MimbenchSimplePyramid", "in_channels": width, "out_channels": channels},
        rpn_head=_proposals(body.patch_size, channels),
        roi_head=_heads(body.patch_size, channels, classes, masks),
        train_cfg=_training(roi_samples),
        test_cfg=_testing(),
    )
    # Not a part of the configuration, which mmengine copies with all that is in it.
    config["backbone"] = {
        "type": "MimbenchBackbone",
        "body": body,
        "window": window,
        "global_blocks": tuple(global_blocks),
    }
    with scoped("mmdet"):
        detector = MODELS.build(config)
        detector.init_weights()
    return detector


def _strides(patch: int) -> list[float]:
    return [patch / 4, patch / 2, patch, 2 * patch, 4 * patch]


def _proposals(patch: int, channels: int) -> dict[str, Any]:
    return {
        "type": "RPNHead",
        "in_channels": channels,
        "feat_channels": channels,
        "num_convs": 2,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [8],
            "ratios": [0.5, 1.0, 2.0],
            "strides": _strides(patch),
        },
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0, 0.0, 0.0, 0.0],
            "target_stds": [1.0, 1.0, 1.0, 1.0],
        },
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _regions(patch: int, channels: int, side: int) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": side, "sampling_ratio": 0},
        "out_channels": channels,
        "featmap_strides": _strides(patch)[:4],
        "finest_scale": FINEST * patch,
    }


def _heads(patch: int, channels: int, classes: int, masks: bool) -> dict[str, Any]:
    boxes = {
        "type": "Shared4Conv1FCBBoxHead",
        "in_channels": channels,
        "conv_out_channels": channels,
        "fc_out_channels": 4 * channels,
        "norm_cfg": NORM,
        "roi_feat_size": 7,
        "num_classes": classes,
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0, 0.0, 0.0, 0.0],
            "target_stds": [0.1, 0.1, 0.2, 0.2],
        },
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }
    heads = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _regions(patch, channels, 7),
        "bbox_head": boxes,
    }
    if masks:
        heads["mask_roi_extractor"] = _regions(patch, channels, 14)
        heads["mask_head"] = {
            "type": "FCNMaskHead",
            "num_convs": 4,
            "in_channels": channels,
            "conv_out_channels": channels,
            "norm_cfg": NORM,
            "num_classes": classes,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        }
    return heads


def _assigner(positive: float, negative: float, low: float, low_quality: bool) -> dict[str, Any]:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": low,
        "match_low_quality": low_quality,
        "ignore_iof_thr": -1,
    }


def _sampler(number: int, positive: float, with_truth: bool) -> dict[str, Any]:
    return {
        "type": "RandomSampler",
        "num": number,
        "pos_fraction": positive,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": with_truth,
    }


def _training(roi_samples: int) -> dict[str, Any]:
    common = {"pos_weight": -1, "debug": False}
    return {
        "rpn": {
            "assigner": _assigner(0.7, 0.3, 0.3, True),
            "sampler": _sampler(256, 0.5, False),
            "allowed_border": -1,
            **common,
        },
        "rpn_proposal": _kept_proposals(2000),
        "rcnn": {
            "assigner": _assigner(0.5, 0.5, 0.5, False),
            "sampler": _sampler(roi_samples, 0.25, True),
            "mask_size": 28,
            **common,
        },
    }


def _kept_proposals(before: int) -> dict[str, Any]:
    return {
        "nms_pre": before,
        "max_per_img": 1000,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }


def _testing() -> dict[str, Any]:
    return {
        "rpn": _kept_proposals(1000),
        "rcnn": {
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": MOST,
            "mask_thr_binary": 0.5,
        },
    }

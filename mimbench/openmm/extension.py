"""Stands in for mmcv's compiled operators where mmcv came without them, as the wheel mmcv-lite does.

``import mmcv.ops``, which mmdet and mmsegmentation begin with, asks ``mmcv._ext`` for its compiled
operators. What their detectors and segmenters run of it is non-maximum suppression and RoIAlign, and
torchvision has the same two, compiled, for CPU and GPU. Compared with mmcv 2.1.0 built from source, results
and gradients are the same numbers (``roi_align``) and the same boxes (``nms``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torchvision  # noqa: F401, loads its operators

NAME = "mmcv._ext"
AVERAGE = 1  # mmcv's number for averaging the samples of a bin, its other way being their maximum


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes kept by greedy suppression, by falling score, int64 [K].

    boxes: [N, 4] as (x1, y1, x2, y2); scores: [N]. offset: 1 for boxes that include their last pixel, as
    before mmdet 2.
    """
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torch.ops.torchvision.nms(_wide(boxes), _wide(scores), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write RoIAlign of ``input`` [B, C, H, W] into ``output`` [K, C, h, w]; rois: [K, 5].

    ``argmax_y`` and ``argmax_x`` belong to pooling by maximum, which torchvision does not have.
    """
    _averages(pool_mode)
    wide = _wide(input)
    found = torch.ops.torchvision.roi_align(
        wide, rois.to(wide.dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(found)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of ``roi_align_forward`` by its input into ``grad_input``."""
    _averages(pool_mode)
    wide = _wide(grad_output)
    found = torch.ops.torchvision._roi_align_backward(
        wide,
        rois.to(wide.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(found)


def _wide(tensor: Tensor) -> Tensor:
    """In a type that all of torchvision's kernels have."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _averages(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        _absent("roi_align with pool_mode='max'")


def _absent(operator: str) -> NoReturn:
    raise NotImplementedError(
        f"mmcv's compiled operator {operator} is not here: mmcv was installed without its operators and "
        "mimbench stands in for nms and roi_align only. To get all of them, build mmcv from source: "
        "pip uninstall mmcv-lite, then MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv==2.1.0"
    )


class _Extension(ModuleType):
    """A module that has every operator by name; those that are not here say so when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

        def operator(*args: Any, **kwargs: Any) -> NoReturn:
            _absent(name)

        operator.__name__ = name
        return operator


def install() -> None:
    """Make ``import mmcv._ext`` find the stand-in. To be called once, where there is no real one."""
    import mmcv

    module: Any = _Extension(NAME, __doc__)
    module.__spec__ = ModuleSpec(NAME, loader=None, origin=__file__)
    module.nms = nms
    module.roi_align_forward = roi_align_forward
    module.roi_align_backward = roi_align_backward
    sys.modules[NAME] = module
    mmcv._ext = module

"""Makes torchvision importable under a CPU-only torch whose torchvision was built for CUDA.

PyPI's torchvision wheel is a CUDA build. Beside a CPU build of torch its library ``_C`` does not load,
and ``import torchvision`` (so ``import timm`` and ``import torchmetrics``) fails with "operator
torchvision::nms does not exist". Import this module for its effect before any of them::

    import mimbench.torchvision_compat  # noqa: F401  isort: skip
    import timm

On a pair that matches, which is every ordinary install, it does nothing. Where ``_C`` does not load it
declares ``nms``, ``qnms``, ``roi_align`` and the latter's gradient, in plain torch on the CPU, and lets
``torchvision.ops`` use them. Every other compiled operator goes on to raise torchvision's own error.

``active`` says whether it had to step in, ``reason`` why.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BLOCK = 512  # boxes whose overlaps nms holds at a time
_ELEMENTS = 1 << 24  # numbers roi_align holds at a time, about (64 MiB in float32)


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression; indices of the kept boxes by falling score, int64 [K].

    dets: [N, 4] as (x1, y1, x2, y2); scores: [N]. A box goes when its IoU with a kept box of higher
    score is strictly above ``iou_threshold``; among equal scores the first one given wins.
    """
    if dets.ndim != 2 or dets.shape[1] != 4 or scores.shape != dets.shape[:1]:
        raise RuntimeError(
            f"nms takes boxes [N, 4] and scores [N], got {list(dets.shape)} and {list(scores.shape)}"
        )
    if dets.dtype not in (torch.float32, torch.float64):
        dets = dets.float()
    order = scores.sort(descending=True, stable=True).indices
    kept = []
    while len(order):
        block, order = order[:_BLOCK], order[_BLOCK:]
        above = _overlap_above(dets[block], dets[block], iou_threshold).numpy()
        alive = torch.ones(len(block), dtype=torch.bool).numpy()
        for row in range(len(block)):
            if alive[row]:
                alive[row + 1 :] &= ~above[row, row + 1 :]
        kept.append(block[torch.from_numpy(alive)])
        order = order[~_overlap_above(dets[kept[-1]], dets[order], iou_threshold).any(0)]
    return torch.cat(kept) if kept else order


def _overlap_above(boxes: Tensor, others: Tensor, iou_threshold: float) -> Tensor:
    """Whether the IoU of each of ``boxes`` [N, 4] with each of ``others`` [M, 4] is above it, bool [N, M]."""
    left, top, right, bottom = (column[:, None] for column in boxes.unbind(1))
    others_left, others_top, others_right, others_bottom = (column[None] for column in others.unbind(1))
    width = torch.minimum(right, others_right).sub_(torch.maximum(left, others_left)).clamp_(min=0)
    height = torch.minimum(bottom, others_bottom).sub_(torch.maximum(top, others_top)).clamp_(min=0)
    common = width.mul_(height)
    area = (right - left) * (bottom - top)
    others_area = (others_right - others_left) * (others_bottom - others_top)
    overlap = common / (area + others_area).sub_(common)
    # In double as in torchvision's kernel: a float32 IoU of 0.1 lies above the number 0.1. A float32 is above
    # it where it is above the float32 below or at it.
    limit = torch.tensor(iou_threshold, dtype=torch.float64)
    if overlap.dtype == torch.float64:
        return overlap > limit
    single = limit.float()
    if single.double() > limit:
        single = torch.nextafter(single, torch.tensor(-torch.inf))
    return overlap > single


def _axis_weights(start: Tensor, length: Tensor, bins: int, size: int, sampling_ratio: int) -> Tensor:
    """How much each of ``size`` positions counts in each bin's average, [K, bins, size].

    start, length: [K], the regions' extent along one axis in feature-map units. Samples lie evenly in
    a bin and are interpolated linearly; more than one unit outside they count as zero.
    """
    bin_size = length / bins
    fixed = sampling_ratio > 0
    samples = torch.full_like(length, sampling_ratio) if fixed else bin_size.ceil().clamp(min=0)
    most = int(samples.max())
    step = torch.arange(most, dtype=start.dtype)
    inside = step < samples[:, None]  # [K, most]
    centre = (step + 0.5) * bin_size[:, None] / samples[:, None].clamp(min=1)
    edge = start[:, None] + torch.arange(bins, dtype=start.dtype) * bin_size[:, None]
    position = edge[:, :, None] + centre[:, None, :]  # [K, bins, most]
    counts = inside[:, None, :] & (position >= -1) & (position <= size)
    position = position.clamp(min=0, max=size - 1)
    low = position.floor()
    share = position - low
    unit = counts / samples[:, None, None].clamp(min=1)
    weights = start.new_zeros(len(start), bins, size)
    weights.scatter_add_(2, low.long(), (1 - share) * unit)
    weights.scatter_add_(2, (low.long() + 1).clamp(max=size - 1), share * unit)
    return weights


def _by_image(
    rois: Tensor,
    shape: tuple[int, int, int, int],
    scale: float,
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    """Yields (image index, indices of some of its regions, weights in y, weights in x)."""
    batch, channels, height, width = shape
    offset = 0.5 if aligned else 0.0
    corners = rois[:, 1:] * scale - offset
    start, length = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        length = length.clamp(min=1)
    image_of = rois[:, 0].long()
    if ((image_of < 0) | (image_of >= batch)).any():
        raise RuntimeError(f"roi_align got a region of an image outside the batch of {batch}")
    for image in image_of.unique().tolist():
        which = (image_of == image).nonzero().squeeze(1)
        samples = sampling_ratio if sampling_ratio > 0 else max(1.0, float(length[which].max()))
        per_region = max(channels * bins[0] * width, int(max(bins) * samples))
        for part in which.split(max(1, _ELEMENTS // per_region)):
            in_y = _axis_weights(start[part, 1], length[part, 1], bins[0], height, sampling_ratio)
            in_x = _axis_weights(start[part, 0], length[part, 0], bins[1], width, sampling_ratio)
            yield image, part, in_y, in_x


def _at_least_float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average of bilinear samples in each bin of each region (He et al. 2017, arXiv:1703.06870).

    input: [B, C, H, W]; rois: [K, 5] as (image, x1, y1, x2, y2). Returns [K, C, pooled_height,
    pooled_width]. Bilinear weights and the grid of samples are products of one factor an axis, so
    averaging first over y and then over x is the same sum as over all samples.
    """
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise RuntimeError(f"roi_align takes regions [K, 5], got {list(rois.shape)}")
    features = _at_least_float(input)
    rois = rois.to(features.dtype)
    out = features.new_zeros(len(rois), input.shape[1], pooled_height, pooled_width)
    shape = (input.shape[0], input.shape[1], input.shape[2], input.shape[3])
    with torch.autocast("cpu", enabled=False):
        parts = _by_image(rois, shape, spatial_scale, (pooled_height, pooled_width), sampling_ratio, aligned)
        for image, part, in_y, in_x in parts:
            rows = torch.einsum("kph,chw->kcpw", in_y, features[image])
            out[part] = torch.einsum("kcpw,kqw->kcpq", rows, in_x)
    return out.to(input.dtype)


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The gradient of ``roi_align`` by its input, [B, C, H, W]. grad: [K, C, PH, PW]."""
    flow = _at_least_float(grad)
    rois = rois.to(flow.dtype)
    shape = (batch_size, channels, height, width)
    out = flow.new_zeros(shape)
    with torch.autocast("cpu", enabled=False):
        parts = _by_image(rois, shape, spatial_scale, (pooled_height, pooled_width), sampling_ratio, aligned)
        for image, part, in_y, in_x in parts:
            rows = torch.einsum("kcpq,kqw->kcpw", flow[part], in_x)
            out[image] += torch.einsum("kph,kcpw->chw", in_y, rows)
    return out.to(grad.dtype)


def _quantised_nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    # IoU does not change with the scale, so the stored integers can be compared as they are.
    return nms(dets.double(), scores, iou_threshold)


_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_ROIS = "Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SCHEMAS = {
    "nms" + _BOXES: nms,
    "qnms" + _BOXES: _quantised_nms,
    f"roi_align(Tensor input, {_ROIS}, int sampling_ratio, bool aligned) -> Tensor": roi_align,
    f"_roi_align_backward(Tensor grad, {_ROIS}, SymInt batch_size, SymInt channels, SymInt height, "
    "SymInt width, int sampling_ratio, bool aligned) -> Tensor": roi_align_backward,
}


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, rois, *ctx.how = inputs
    ctx.save_for_backward(rois)
    ctx.shape = image.shape


def declare(library: torch.library.Library) -> None:
    """Define the four operators in ``library``, with CPU kernels, shapes for tracing and a gradient."""
    for schema, kernel in _SCHEMAS.items():
        library.define(schema)
        library.impl(schema.partition("(")[0], kernel, "CPU")
    operators = getattr(torch.ops, library.ns)

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, rows, columns, sampling_ratio, aligned = ctx.how
        (rois,) = ctx.saved_tensors
        back = operators._roi_align_backward(
            grad, rois, scale, rows, columns, *ctx.shape, sampling_ratio, aligned
        )
        return back, None, None, None, None, None, None

    torch.library.register_autograd(f"{library.ns}::roi_align", gradient, setup_context=_save, lib=library)
    torch.library.register_fake(
        f"{library.ns}::roi_align",
        lambda image, rois, scale, rows, columns, *how: image.new_empty(
            (rois.shape[0], image.shape[1], rows, columns)
        ),
        lib=library,
    )
    torch.library.register_fake(
        f"{library.ns}::_roi_align_backward",
        lambda grad, rois, scale, rows, columns, batch, channels, height, width, *how: grad.new_empty(
            (batch, channels, height, width)
        ),
        lib=library,
    )


def mismatch() -> str | None:
    """Why torchvision's compiled operators cannot load under this torch; None where they can."""
    if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        return None  # a broken GPU pair is to be reinstalled, not to be run on slow stand-ins
    found = importlib.util.find_spec("torchvision")  # finds, does not import
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    library = next((path for end in EXTENSION_SUFFIXES if (path := folder / f"_C{end}").exists()), None)
    if library is None:
        return "torchvision was built without its compiled operators"
    try:
        torch.ops.load_library(library)  # what torchvision does first; a second load is free
    except OSError as error:
        why = error.__cause__ or error
        return f"torchvision's compiled operators do not load under torch {torch.__version__}: {why}"
    return None


def _ready() -> None:  # functions, not lambdas: TorchScript compiles what detection models call
    return


def _has_ops() -> bool:
    return True


def _use_in_torchvision() -> None:
    """Let torchvision's Python functions call the declared operators.

    They ask whether the whole compiled library is there; its ``roi_align`` otherwise falls back on a
    version that goes through torch.compile, a minute on a CPU.
    """
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    align: Any = importlib.import_module("torchvision.ops.roi_align")
    boxes._assert_has_ops = align._assert_has_ops = _ready
    align._has_ops = _has_ops


reason = mismatch()
active = reason is not None
if active:
    _library = torch.library.Library("torchvision", "DEF")  # lives as long as the process
    declare(_library)
    _use_in_torchvision()

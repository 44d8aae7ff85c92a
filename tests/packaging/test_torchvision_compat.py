"""The stand-ins for torchvision's compiled operators, against loops over their definitions."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from mimbench import torchvision_compat as compat


@pytest.fixture(scope="module")
def ops():
    """The operators under a namespace of their own, so that they are tested on a matching pair as well."""
    library = torch.library.Library("mimbench_compat_test", "DEF")
    compat.declare(library)
    yield torch.ops.mimbench_compat_test
    library._destroy()


def iou(a, b, real):
    """Of whole-numbered boxes, where the division alone rounds; it is done in the type ``real``."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return float(real(common) / real(union)) if union else math.nan


def greedy(boxes, scores, threshold, real):
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])  # sorted() is stable
    kept: list[int] = []
    for i in order:
        if not any(iou(boxes[j], boxes[i], real) > threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("n", [0, 1, 7, 60, 700])  # 700 spans two blocks
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_nms_keeps_what_the_greedy_definition_keeps(ops, n, threshold):
    generator = torch.Generator().manual_seed(n)
    # whole coordinates and few score levels: many ties, and IoUs that meet the threshold exactly
    corner = torch.randint(0, 30, (n, 2), generator=generator).double()
    boxes = torch.cat([corner, corner + torch.randint(0, 12, (n, 2), generator=generator)], 1)
    scores = torch.randint(0, 9, (n,), generator=generator) / 8
    for dtype, real in ((torch.float64, np.float64), (torch.float32, np.float32)):
        expected = greedy(boxes.tolist(), scores.tolist(), threshold, real)
        assert ops.nms(boxes.to(dtype), scores.to(dtype), threshold).tolist() == expected


def test_nms_of_equal_scores_keeps_the_first_given(ops):
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 10, 10]])
    assert ops.nms(boxes, torch.tensor([0.5, 0.5, 0.5]), 0.5).tolist() == [0, 2]


def test_nms_at_the_threshold_keeps_both(ops):
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]])  # IoU 1/3
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 1 / 2).tolist() == [0, 1]
    halves = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])  # IoU exactly 1/2
    assert ops.nms(halves, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert ops.nms(halves, torch.tensor([0.9, 0.8]), 0.499).tolist() == [0]


def test_quantised_nms_equals_nms_of_the_integers(ops):
    boxes = torch.tensor([[0, 0, 200, 200], [10, 10, 210, 210], [220, 0, 255, 40]], dtype=torch.uint8)
    scores = torch.tensor([3, 250, 7], dtype=torch.uint8)
    assert ops.qnms(boxes, scores, 0.5).tolist() == [1, 2]


def test_nms_refuses_boxes_without_their_scores(ops):
    with pytest.raises(RuntimeError, match="scores"):
        ops.nms(torch.zeros(3, 4), torch.zeros(2), 0.5)


def interpolate(plane, y, x):
    """One bilinear sample of a [H, W] plane by the operator's definition."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    if top >= height - 1:
        top = bottom = height - 1
        y = float(top)
    else:
        bottom = top + 1
    if left >= width - 1:
        left = right = width - 1
        x = float(left)
    else:
        right = left + 1
    down, across = y - top, x - left
    return (
        plane[top, left] * (1 - down) * (1 - across)
        + plane[top, right] * (1 - down) * across
        + plane[bottom, left] * down * (1 - across)
        + plane[bottom, right] * down * across
    )


def align_by_loops(features, rois, scale, rows, columns, sampling_ratio, aligned):
    out = features.new_zeros(len(rois), features.shape[1], rows, columns)
    shift = 0.5 if aligned else 0.0
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        left, top = x1 * scale - shift, y1 * scale - shift
        width, height = x2 * scale - shift - left, y2 * scale - shift - top
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / rows, width / columns
        grid_h = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
        grid_w = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
        count = max(grid_h * grid_w, 1)
        for c in range(features.shape[1]):
            plane = features[int(image), c]
            for p in range(rows):
                for q in range(columns):
                    for i in range(grid_h):
                        for j in range(grid_w):
                            y = top + p * bin_h + (i + 0.5) * bin_h / grid_h
                            x = left + q * bin_w + (j + 0.5) * bin_w / grid_w
                            out[k, c, p, q] += interpolate(plane, y, x) / count
    return out


ROIS = [
    [0, 1.0, 2.0, 9.0, 7.0],
    [1, 0.0, 0.0, 15.0, 11.0],
    [0, -6.0, -5.0, 4.0, 5.0],  # partly outside
    [1, 12.0, 8.0, 25.0, 30.0],  # partly beyond the far edge
    [0, 60.0, 60.0, 70.0, 70.0],  # wholly outside
    [1, 5.0, 5.0, 5.0, 5.0],  # empty
    [0, 7.0, 7.0, 3.0, 2.0],  # turned inside out
]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2])
def test_roi_align_equals_the_sum_over_its_samples(ops, sampling_ratio, aligned, monkeypatch):
    monkeypatch.setattr(compat, "_ELEMENTS", 100)  # small enough that regions are worked in several parts
    features = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    got = ops.roi_align(features, rois, 0.5, 3, 2, sampling_ratio, aligned)
    expected = align_by_loops(features, rois, 0.5, 3, 2, sampling_ratio, aligned)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_of_roi_align_is_that_of_its_output(ops, sampling_ratio, aligned):
    features = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, 0.5, 3, 2, sampling_ratio, aligned), features.requires_grad_()
    )


def test_roi_align_stays_in_single_precision_under_bf16_autocast(ops):
    features = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    rois = torch.tensor([[0, 0.3, 0.7, 6.1, 7.2]])
    expected = ops.roi_align(features, rois, 1.0, 2, 2, 2, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.roi_align(features, rois, 1.0, 2, 2, 2, True), expected)
        half = ops.roi_align(features.bfloat16(), rois, 1.0, 2, 2, 2, True)
    assert half.dtype == torch.bfloat16


def test_roi_align_without_regions_is_empty_and_has_a_gradient(ops):
    features = torch.randn(1, 2, 4, 4, requires_grad=True)
    out = ops.roi_align(features, torch.zeros(0, 5), 1.0, 3, 3, 0, True)
    assert out.shape == (0, 2, 3, 3)
    out.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_roi_align_refuses_a_region_of_a_missing_image(ops):
    with pytest.raises(RuntimeError, match="outside the batch of 1"):
        ops.roi_align(torch.zeros(1, 1, 4, 4), torch.tensor([[1.0, 0, 0, 2, 2]]), 1.0, 1, 1, 1, False)


def test_declared_shapes_gradient_and_schema_agree_with_the_kernels(ops):
    features = torch.randn(2, 2, 5, 5, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 4, 4]])
    torch.library.opcheck(
        ops.roi_align.default,
        (features, rois, 1.0, 2, 2, 2, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_torchvision_and_timm_import_and_their_detection_operators_work():
    """In a fresh process, through torchvision's own functions, without waking torch.compile."""
    script = """
import mimbench.torchvision_compat, sys
import timm, torch, torchvision
boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9]])
assert torchvision.ops.nms(boxes, torch.tensor([.1, .9, .5]), 0.5).tolist() == [1, 2]
image = torch.arange(16.).view(1, 1, 4, 4).requires_grad_()
out = torchvision.ops.roi_align(image, [torch.tensor([[0., 0, 4, 4]])], 2, aligned=True)
assert torch.allclose(out.flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5])), out
out.sum().backward()
assert torch.allclose(image.grad.sum(), torch.tensor(4.)), image.grad
assert "torch._inductor.compile_fx" not in sys.modules
torch.jit.script(torchvision.ops.nms)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_matching_pair_is_left_alone(monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)  # the library loads
    assert compat.mismatch() is None
    assert len(loaded) == 1
    monkeypatch.setattr(torch.version, "cuda", "13.0")  # a GPU build: not even looked at
    assert compat.mismatch() is None
    assert len(loaded) == 1


def test_a_library_that_does_not_load_is_a_mismatch(monkeypatch):
    def fail(path):
        raise OSError("libc10_cuda.so: cannot open shared object file")

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.ops, "load_library", fail)
    assert "libc10_cuda.so" in compat.mismatch()

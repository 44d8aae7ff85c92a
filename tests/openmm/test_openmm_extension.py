"""The stand-in for mmcv's compiled operators, against definitions written as loops."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmcv", reason="the extra 'dense' is not installed")

from mimbench.openmm import extension, operators, prepare


def test_preparing_twice_leaves_one_extension_that_can_be_found():
    prepare()
    import mmcv

    before = mmcv._ext
    prepare()
    assert sys.modules["mmcv._ext"] is mmcv._ext is before
    assert importlib.util.find_spec("mmcv._ext").name == "mmcv._ext"


def test_an_operator_that_is_not_here_says_how_to_get_it():
    if operators() == "compiled":
        pytest.skip("mmcv has its operators here")
    prepare()
    from mmcv.ops import DeformConv2d, RoIAlign

    with pytest.raises(NotImplementedError, match=r"deform_conv_forward is not here.*MMCV_WITH_OPS=1"):
        DeformConv2d(2, 2, 3)(torch.rand(1, 2, 5, 5), torch.rand(1, 18, 3, 3))
    with pytest.raises(NotImplementedError, match="max"):
        RoIAlign(2, pool_mode="max")(torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]))


def test_a_real_extension_is_left_alone(tmp_path):
    """In a process of its own: modules of this one are already loaded."""
    script = f"""
import importlib.machinery, importlib.util, sys
import mimbench.torchvision_compat, mmcv
from pathlib import Path
path = Path({str(tmp_path)!r}) / "_ext.py"
path.write_text("real = True")
mmcv.__path__.append({str(tmp_path)!r})
from mimbench.openmm import operators, prepare
assert operators() == "compiled"
prepare()
import mmcv._ext
assert mmcv._ext.real
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def sampled(image, y, x):
    """Bilinear value of image [H, W] at (y, x), zero more than one unit outside."""
    height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.sum() * 0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, h = y - top, x - left
    upper = image[top, left] * (1 - h) + image[top, right] * h
    lower = image[below, left] * (1 - h) + image[below, right] * h
    return upper * (1 - v) + lower * v


def looped(images, rois, size, scale, samples, aligned):
    """RoIAlign as in its paper, one sample at a time."""
    found = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0.0) for value in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        rows = samples or max(1, -int(-height // size))
        columns = samples or max(1, -int(-width // size))
        for channel in images[int(image)]:
            for py in range(size):
                for px in range(size):
                    values = [
                        sampled(
                            channel,
                            y1 + (py + (iy + 0.5) / rows) * height / size,
                            x1 + (px + (ix + 0.5) / columns) * width / size,
                        )
                        for iy in range(rows)
                        for ix in range(columns)
                    ]
                    found.append(sum(values) / len(values))
    return torch.stack(found).view(len(rois), images.shape[1], size, size)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [0, 2])
def test_mmcvs_roi_align_and_its_gradient_are_the_papers(aligned, samples):
    prepare()
    from mmcv.ops import RoIAlign

    images = torch.rand(2, 2, 7, 9, dtype=torch.float64)
    rois = torch.tensor(
        [[0, 1.3, 2.0, 15.2, 11.7], [1, 0, 0, 17.9, 13.9], [1, 4.0, 3.5, 6.1, 4.2], [0, -3, -2, 5, 30]],
        dtype=torch.float64,
    )
    weights = torch.rand(4, 2, 3, 3, dtype=torch.float64)
    layer = RoIAlign(3, spatial_scale=0.5, sampling_ratio=samples, aligned=aligned)
    results = []
    for function in (layer, lambda x, r: looped(x, r, 3, 0.5, samples, aligned)):
        leaf = images.clone().requires_grad_()
        out = function(leaf, rois)
        (out * weights).sum().backward()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_roi_align_of_half_precision_maps_rounds_once():
    """bf16 has 8 digits: places in images of hundreds of pixels must not pass through it."""
    prepare()
    from mmcv.ops import RoIAlign

    images = torch.rand(1, 3, 40, 40)
    rois = torch.tensor([[0, 101.3, 33.7, 150.2, 140.9]])
    layer = RoIAlign(7, spatial_scale=0.25, sampling_ratio=0)
    rounded = images.bfloat16()
    torch.testing.assert_close(layer(rounded, rois), layer(rounded.float(), rois).bfloat16(), rtol=0, atol=0)


def test_mmcvs_nms_is_greedy_also_with_the_legacy_offset():
    prepare()
    from mmcv.ops import nms

    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 40, (80, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 20, (80, 2), generator=generator)], 1)
    scores = torch.rand(80, generator=generator)
    for offset in (0, 1):
        kept: list[int] = []
        for i in scores.argsort(descending=True).tolist():
            areas = []
            for j in kept:
                low, high = (
                    torch.maximum(boxes[i, :2], boxes[j, :2]),
                    torch.minimum(boxes[i, 2:], boxes[j, 2:]),
                )
                common = (high - low + offset).clamp(min=0).prod()
                union = sum((boxes[k, 2:] - boxes[k, :2] + offset).prod() for k in (i, j)) - common
                areas.append(common / union)
            if all(area <= 0.5 for area in areas):
                kept.append(i)
        found, indices = nms(boxes, scores, 0.5, offset=offset)
        assert indices.tolist() == kept
        torch.testing.assert_close(found[:, :4], boxes[kept])


def test_the_two_ways_through_the_extension_agree_with_torchvision():
    """What mmcv calls, without mmcv around it: the stand-in is torchvision's own operator."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5], [20, 20, 24, 24]])
    scores = torch.tensor([0.5, 0.9, 0.1], dtype=torch.float32)
    assert extension.nms(boxes, scores, 0.3).tolist() == [1, 2]
    assert extension.nms(boxes.bfloat16(), scores, 0.3).tolist() == [1, 2]

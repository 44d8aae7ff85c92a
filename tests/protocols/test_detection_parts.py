"""What the detector is made of and what it is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("mmdet", reason="the extra 'dense' is not installed")

from mimbench.data import open_dataset
from mimbench.openmm.fit import Training  # noqa: F401, prepares the packages
from mimbench.openmm.layer_decay import parameter_groups
from mimbench.registry import build_backbone
from protocols.parts.detecting import global_blocks
from protocols.parts.detector import build_detector
from protocols.parts.marked import test_samples as shown_in_test
from protocols.parts.marked import training_samples
from protocols.parts.pyramid import SimplePyramid
from tests.dense_data import write_coco


def detector(masks: bool = True, patch: int = 16, size: int = 64, **options):
    body = build_backbone(f"vit_micro_patch{patch}", size).rebuilt(image_size=size, drop_path=0.1)
    return build_detector(
        body,
        **{
            "width": 64,
            "classes": 3,
            "masks": masks,
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.25),
            "window": 2,
            "global_blocks": (1, 3),
            "channels": 32,
            "roi_samples": 16,
            **options,
        },
    )


def test_the_pyramid_is_detectron2s():
    """Its ``SimpleFeaturePyramid`` written out, with the same weights."""
    torch.manual_seed(0)
    pyramid = SimplePyramid(16, 8)
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 16, 6, 6)

    def norm(y, layer):
        centred = y - y.mean(1, keepdim=True)
        scaled = centred / (y.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    def two_convolutions(y, level):
        for block, padding in ((level[-2], 0), (level[-1], 1)):
            assert block.conv.bias is None
            y = norm(F.conv2d(y, block.conv.weight, padding=padding), block.norm)
        return y

    def up(y, layer):
        return F.conv_transpose2d(y, layer.weight, layer.bias, stride=2)

    four, two, one, half = pyramid.levels
    expected = [
        two_convolutions(up(F.gelu(norm(up(x, four[0]), four[1])), four[3]), four),
        two_convolutions(up(x, two[0]), two),
        two_convolutions(x, one),
        two_convolutions(F.max_pool2d(x, 2), half),
    ]
    expected.append(expected[-1][:, :, ::2, ::2])
    found = pyramid((x,))
    assert [level.shape[-1] for level in found] == [24, 12, 6, 3, 2]
    for one_found, one_expected in zip(found, expected, strict=True):
        torch.testing.assert_close(one_found, one_expected, rtol=1e-4, atol=1e-5)


def test_places_do_not_pass_through_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        found = SimplePyramid(16, 8)((torch.randn(1, 16, 4, 4),))
    assert {level.dtype for level in found} == {torch.float32}


def test_sizes_follow_the_patch():
    for patch in (16, 8):
        built = detector(patch=patch)
        anchors = built.rpn_head.prior_generator
        sides = [float((a[:, 2] - a[:, 0])[1]) for a in anchors.base_anchors]  # ratio 1
        assert sides == [patch * 2.0 * 2**i for i in range(5)]
        assert anchors.strides == [(patch / 4 * 2**i,) * 2 for i in range(5)]
        assert built.roi_head.bbox_roi_extractor.finest_scale == 56 * patch / 16


def test_the_heads_are_those_of_vitdet():
    built = detector(channels=256, roi_samples=512)
    assert len(built.rpn_head.rpn_conv) == 2
    box, mask = built.roi_head.bbox_head, built.roi_head.mask_head
    assert [type(c.norm).__name__ for c in box.shared_convs] == ["LayerNorm2d"] * 4
    assert [layer.out_features for layer in box.shared_fcs] == [1024]
    assert [type(c.norm).__name__ for c in mask.convs] == ["LayerNorm2d"] * 4
    assert all(c.conv.bias is None for c in [*box.shared_convs, *mask.convs])
    assert (box.fc_cls.out_features, box.fc_reg.out_features) == (4, 12)
    assert built.train_cfg.rcnn.sampler.num == 512
    without = detector(masks=False)
    assert not without.roi_head.with_mask


def test_global_blocks_are_evenly_spaced():
    assert global_blocks(12) == (2, 5, 8, 11)
    assert global_blocks(24) == (5, 11, 17, 23)
    assert global_blocks(32) == (7, 15, 23, 31)
    assert global_blocks(6) == (2, 5)
    assert [global_blocks(depth)[-1] for depth in range(1, 10)] == list(range(9))


def test_the_weights_are_the_encoders_and_learn_by_layer():
    source = build_backbone("vit_micro_patch16", 64)
    built = build_detector(
        source.rebuilt(image_size=64), width=64, classes=2, masks=True, mean=(0, 0, 0), std=(1, 1, 1),
        window=None, global_blocks=(), channels=16, roi_samples=8,
    )  # fmt: skip
    for name, value in source.state_dict().items():
        assert torch.equal(built.backbone.body.state_dict()[name], value), name
    groups = parameter_groups(built, lr=1.0, weight_decay=0.1, layer_decay=0.7)
    assert len({group["lr"] for group in groups}) == source.depth + 2
    assert max(group["lr"] for group in groups) == 1.0
    assert min(group["lr"] for group in groups) == pytest.approx(0.7 ** (source.depth + 1))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    # PNG keeps colours exact; class k is the k-th of three hues
    root = write_coco(folder / "set", train=24, validation=6, crowd=True, size=(96, 128), suffix=".png")
    return open_dataset(f"coco:{root}", cache=folder / "cache")


HUES = ((230, 23, 23), (23, 230, 23), (23, 23, 230))


def coloured(image: torch.Tensor, label: int) -> np.ndarray:
    """Where an image [3, H, W] has the colour of a class."""
    distance = (image.float() - torch.tensor(HUES[label])[:, None, None].float()).abs().amax(0)
    return (distance < 60).numpy()


def test_boxes_and_masks_go_where_the_pixels_go(shapes):
    samples = training_samples([shapes.train], image_size=80, scale=(0.5, 1.5), masks=True)
    looked = 0
    for index in range(len(samples)):
        for key in range(3):
            one = samples.at(index, key)
            marked = one["data_samples"].gt_instances
            assert max(one["inputs"].shape[1:]) <= 80
            for box, label, mask in zip(marked.bboxes.tensor, marked.labels, marked.masks.masks, strict=True):
                there = coloured(one["inputs"], int(label))
                inside = mask.astype(bool)
                if inside.sum() < 60 or marked.labels.tolist().count(int(label)) > 1:
                    continue  # too small to compare, or hidden by another of its colour
                rows, columns = np.nonzero(inside)
                corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_allclose(box.numpy(), corners, atol=1)
                # another shape may lie on top, and edges are blurred by scaling
                if len(marked) == 1:
                    assert (there & inside).sum() / (there | inside).sum() > 0.6
                    looked += 1
    assert looked > 8


def test_the_same_key_shows_the_same(shapes):
    samples = training_samples([shapes.train], image_size=80, scale=(0.5, 1.5), masks=True)
    first, again, other = (samples.at(0, key) for key in (1, 1, 2))
    assert torch.equal(first["inputs"], again["inputs"])
    assert first["inputs"].shape != other["inputs"].shape or not torch.equal(first["inputs"], other["inputs"])


def test_crowds_and_images_without_objects_are_not_learnt_from(shapes):
    samples = training_samples([shapes.train], image_size=80, scale=(1.0, 1.0), masks=True)
    targets = [shapes.train.target(i) for i in range(len(shapes.train))]
    with_some = [target for target in targets if (~target.crowd).any()]
    assert any(target.crowd.any() for target in targets)
    assert len(samples) == len(with_some) < len(targets)
    for index, target in enumerate(with_some):
        found = samples.load(index)
        assert found["gt_bboxes_labels"].tolist() == target.labels[~target.crowd].tolist()
        assert found["gt_masks"].masks.shape == (int((~target.crowd).sum()), target.height, target.width)
        expected = target.boxes[~target.crowd]
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_allclose(found["gt_bboxes"].tensor.numpy(), expected, rtol=1e-6)


def test_test_images_fill_a_square_whose_rest_is_the_mean(shapes):
    samples = shown_in_test(shapes.validation, image_size=64)
    built = detector()
    for index in range(len(samples)):
        one = samples.at(index, 0)
        height, width = one["inputs"].shape[1:]
        assert max(height, width) == 64 > min(height, width)
        batch = built.data_preprocessor({name: [value] for name, value in one.items()}, training=False)
        pixels = batch["inputs"][0]
        assert pixels.shape == (3, 64, 64)
        rest = pixels.clone()
        rest[:, :height, :width] = 0
        assert not rest.any()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
        torch.testing.assert_close(
            pixels[:, :height, :width], (one["inputs"] / 255 - mean) / std, rtol=1e-4, atol=1e-5
        )

"""Fine-tuning with UPerNet: mmsegmentation gets what it should and gives what it says."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_tiny import PATCH, TINY, around, check_samples, encoder, pixels, shapes
from torch import nn

from mimbench.data import open_dataset
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.progress import Progress
from mimbench.protocol import Surroundings
from protocols.ade20k import ADE20K
from tests.zoo.backbone_kinds import KINDS

pytest.importorskip("mmseg", reason="the extra dense is not installed")

from mimbench.openmm.layer_decay import parameter_groups
from mimbench.openmm.predict import predict
from mimbench.precision import make_fabric
from protocols.parts.segmentor import (
    Overlap,
    Shape,
    at_once,
    build_segmentor,
    evaluation_samples,
    joined,
    training_samples,
)

QUICK: dict[str, Any] = {"lr": (1e-3,), "steps": 2, "batch_size": 2, "crop": 16}


def quick(**more: Any) -> ADE20K:
    return ADE20K(**{**QUICK, **more})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("shapes"), train=10, validation=3, size=(24, 32))


def segmentor(of: Encoder, shape: Shape, **more: Any) -> nn.Module:
    body = of.backbone.rebuilt(image_size=shape.crop, drop_path=0.0)
    torch.manual_seed(0)
    options = {"head": "upernet", "frozen": False, "final_norm": False, "sync": False, **more}
    layers = options.pop("layers", [-3, -3, -2, -1])
    return build_segmentor(body, of, layers, shape, **options)


def test_label_zero_is_reduced_once_and_only_once(tmp_path):
    """Four pixels on their way through the whole pipeline: a second time would make classes of 254 and 0."""
    for part in ("training", "validation"):
        for number in range(4):
            for below, array in (
                ("images", np.full((2, 2, 3), 40 * number, np.uint8)),
                ("annotations", np.array([[0, 1], [2, 3]], np.uint8)),
            ):
                path = tmp_path / below / part / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (tmp_path / "classes.txt").write_text("sky\nsea\nsand\n")
    tiny = open_dataset(f"ade20k:{tmp_path}")
    shape = Shape(2, 3, 255)
    tested = evaluation_samples(tiny.train, tiny.classes, shape).at(0, 0)["data_samples"]
    assert tested.gt_sem_seg.data.tolist() == [[[255, 0], [1, 2]]]
    trained = [
        training_samples([tiny.train], tiny.classes, shape, flip=False).at(0, key)["data_samples"]
        for key in range(20)
    ]
    seen = {label for sample in trained for label in sample.gt_sem_seg.data.unique().tolist()}
    assert seen == {255, 0, 1, 2}
    # and through the model: mmseg's loss takes these numbers
    model = segmentor(encoder(size=8), Shape(8, 3, 255))
    batch = [training_samples([tiny.train], tiny.classes, Shape(8, 3, 255), True).at(0, k) for k in range(2)]
    batch = {name: [one[name] for one in batch] for name in batch[0]}
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    assert all(value.isfinite() for value in losses.values())


def test_miou_is_that_of_mmsegmentation_on_the_same_predictions(data):
    from mmseg.evaluation import IoUMetric

    shape, fabric = Shape(16, len(data.classes), 255), make_fabric("fp32")
    model = segmentor(encoder(), shape)
    metric = IoUMetric(iou_metrics=["mIoU"], prefix=None)
    metric.dataset_meta = {"classes": data.classes}
    theirs, sizes = [], []
    ours = Overlap(shape, {})

    def keep(sample):
        metric.process({}, [sample.to_dict()])
        theirs.append(metric.results[-1])
        sizes.append(tuple(sample.pred_sem_seg.data.shape[1:]))
        return ours(sample)[0]

    split = data.train
    found = joined(predict(model, evaluation_samples(split, data.classes, shape), keep, fabric=fabric))
    np.testing.assert_array_equal(found.intersections, torch.stack([r[0] for r in theirs]).numpy())
    np.testing.assert_array_equal(found.unions, torch.stack([r[1] for r in theirs]).numpy())
    areas = [sum(column) for column in zip(*theirs, strict=True)]
    ious = metric.total_area_to_metrics(*areas, metrics=["mIoU"])["IoU"]
    assert found.score == pytest.approx(np.nanmean(ious), abs=1e-6)
    assert sizes == [split.target(i).shape for i in range(len(split))]  # the annotation's own resolution
    assert set(sizes) == {(24, 32), (32, 24)}


def test_layers_are_those_of_beit_and_learn_at_depth_plus_two_rates():
    of = encoder(depth=12)
    model = segmentor(of, Shape(16, 3, 255), layers=[-9, -7, -5, -1])
    groups = parameter_groups(model, 1e-3, 0.05, 0.65)
    rates = {group["lr"] for group in groups}
    assert len(rates) == 12 + 2
    assert max(rates) == pytest.approx(1e-3)
    assert min(rates) == pytest.approx(1e-3 * 0.65**13)
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert [ADE20K().layers[i] * depth for depth in (12, 24) for i in range(4)] == pytest.approx(
        [4, 6, 8, 12, 8, 12, 16, 24]  # blocks 3, 5, 7, 11 and 7, 11, 15, 23
    )
    images = torch.randn(2, 3, 16, 16)
    model.eval()
    levels = model.extract_feat(images)
    grid = 16 // PATCH
    assert [level.shape[-1] for level in levels] == [4 * grid, 2 * grid, grid, grid // 2]
    maps = model.backbone.body.maps(images, [-9, -7, -5, -1])
    assert torch.equal(levels[2], maps[2])


def test_an_image_that_is_narrower_than_a_window_is_padded_and_cut_back(tmp_path):
    long = shapes(tmp_path, train=4, validation=1, size=(10, 90))
    shape = Shape(16, 3, 255)
    found = predict(
        segmentor(encoder(), shape),
        evaluation_samples(long.train, long.classes, shape),
        Overlap(shape, {}),
        fabric=make_fabric("fp32"),
    )
    annotated = [(long.train.target(i) != 255).sum() for i in range(len(long.train))]
    assert [(o.intersections.sum() + o.unions.sum()) / 2 for o, _ in found] == annotated


def test_the_contract_is_kept_and_the_encoder_left_alone(data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of, opened = encoder(), data.test_openings
    before = {name: tensor.clone() for name, tensor in of.backbone.state_dict().items()}
    found = quick().evaluate(of, data, around(tmp_path))
    again = quick().evaluate(of, data, around(tmp_path))
    assert data.test_openings - opened == 2
    assert found.metrics["miou"] == found.outcomes.score
    assert found.outcomes.n == data.test_size
    check_samples(found, data)
    assert (found.outcomes.pack(), found.metrics) == (again.outcomes.pack(), again.metrics)
    assert tuple(capfd.readouterr()) == ("", "")
    assert not list(tmp_path.iterdir())
    json.dumps([found.metrics, found.selection, found.facts, found.curve], allow_nan=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in of.backbone.state_dict().items())
    assert not any(parameter.requires_grad for parameter in of.backbone.parameters())


class _Stopped:
    """Sends one Ctrl-C in the middle of the training."""

    def __init__(self) -> None:
        self.sent = False

    def __call__(self, progress: Progress) -> None:
        if not self.sent and progress.stage.startswith("training") and progress.done >= 0.5:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stopped_evaluation_goes_on_to_the_same_result(data, tmp_path):
    def given(folder: Path, report) -> Surroundings:
        folder.mkdir()
        return Surroundings(around(tmp_path).features, 0, report, folder=folder)

    protocol = quick(steps=4)
    whole = protocol.evaluate(encoder(), data, given(tmp_path / "whole", lambda progress: None))
    stopped = given(tmp_path / "stopped", _Stopped())
    with pytest.raises(KeyboardInterrupt):
        protocol.evaluate(encoder(), data, stopped)
    assert list((tmp_path / "stopped").rglob("*.pt"))
    resumed = protocol.evaluate(encoder(), data, stopped)
    assert resumed.outcomes.pack() == whole.outcomes.pack()
    assert resumed.metrics == whole.metrics


def test_of_several_learning_rates_the_best_trial_is_trained_in_full(data, tmp_path):
    stages: list[str] = []
    given = Surroundings(around(tmp_path).features, 0, lambda progress: stages.append(progress.stage))
    found = quick(lr=(1e-7, 1e-3), steps=4, trial=0.5).evaluate(encoder(), data, given)
    chosen = found.selection["candidates"][found.selection["chosen"]]["lr"]
    trained = [stage for stage in dict.fromkeys(stages) if stage.startswith("training")]
    assert trained == [
        "training, lr 1e-07, 0.5 of the steps",
        "training, lr 0.001, 0.5 of the steps",
        f"training, lr {chosen:g}",
    ]
    assert {"miou", "pixel_accuracy", "validation_miou"} == set(found.metrics)


def test_a_frozen_encoder_trains_a_linear_head_alone(data, tmp_path):
    fields = {**ADE20K.presets["dinov3-linear"].fields, **QUICK}
    found = ADE20K(**fields).evaluate(encoder(drop_path=0.5), data, around(tmp_path))
    assert found.facts["trained_encoder_parameters"] == 0
    assert "flags" not in found.facts
    assert "validation_miou" not in found.metrics  # it was trained on
    shape = Shape(16, 3, 255)
    model = segmentor(encoder(drop_path=0.5), shape, head="linear", frozen=True, final_norm=True, layers=[-1])
    model.train()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(name.startswith("decode_head.") for name in names)
    images = torch.randn(2, 3, 16, 16)
    first, second = (model.backbone(images)[0] for _ in range(2))
    assert torch.equal(first, second)  # no path is dropped
    assert not first.requires_grad
    tokens = model.backbone.body.encode(images).patches.transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(first, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "pixels"])
def test_every_backbone_of_the_zoo_is_trained(kind, data, tmp_path):
    of = pixels() if kind == "pixels" else Encoder(KINDS[kind](), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = quick(steps=1, crop=2 * of.backbone.patch_size).evaluate(of, data, around(tmp_path))
    assert found.outcomes.n == data.test_size
    assert (found.facts["trained_encoder_parameters"] == 0) == (kind == "pixels")
    assert ("flags" in found.facts) == (kind == "pixels")


OTHER: dict[str, Any] = {
    "head": "linear",
    "frozen": True,
    "layers": (0.25, 0.5, 0.75, 0.75),
    "final_norm": True,
    "lr": (3e-3,),
    "trial": 0.25,
    "epochs": 8,
    "steps": 3,
    "batch_size": 3,
    "crop": 8,
    "layer_decay": 0.1,
    "drop_path": 0.9,
    "weight_decay": 5.0,
    "schedule": "cosine",
    "warmup": 0.0,
    "with_validation": True,
}


@pytest.mark.slow
def test_every_knob_moves_something(data, tmp_path):
    base = {**QUICK, "steps": 6, "warmup": 0.5, "lr": (1e-2,)}

    def curve(**more: Any) -> Any:
        found = ADE20K(**{**base, **more}).evaluate(encoder(), data, around(tmp_path))
        return [point["loss"] for point in found.curve], found.selection["candidates"]

    plain = curve()
    for field in fields(ADE20K):
        changed, start = {field.name: OTHER[field.name]}, plain
        if field.name == "epochs":
            changed["steps"] = None
            start = curve(steps=None, epochs=2)
        if field.name == "trial":
            changed["lr"] = (1e-2, 1e-3)
            start = curve(lr=(1e-2, 1e-3), trial=0.5)
        assert curve(**changed) != start, field.name


@pytest.mark.slow
def test_what_is_trained_segments_shapes(tmp_path):
    data = shapes(tmp_path / "shapes", train=24, validation=6, size=(24, 32))
    few = ADE20K(lr=(3e-3,), steps=60, batch_size=4, crop=24, warmup=0.1)
    none = ADE20K(lr=(1e-9,), steps=1, batch_size=4, crop=24)
    trained, untrained = (p.evaluate(encoder(**TINY), data, around(tmp_path)) for p in (few, none))
    assert trained.metrics["miou"] > untrained.metrics["miou"] + 0.2
    assert trained.curve[-1]["loss"] < 0.75 * trained.curve[0]["loss"]


@pytest.mark.parametrize(
    ("share", "wanted", "found"), [(16, None, 16), (16, 4, 4), (16, 1, 2), (12, 5, 4), (7, 3, 7), (9, 64, 9)]
)
def test_batch_norm_never_sees_a_single_image(share, wanted, found):
    assert at_once(share, wanted) == found


def test_settings_that_do_not_go_together_are_told(data, tmp_path):
    with pytest.raises(UserError, match="four shares of the depth"):
        quick(layers=(1.0,)).check(data)
    with pytest.raises(UserError, match="cannot choose between 2 learning rates"):
        quick(lr=(1e-3, 1e-4), with_validation=True).check(data)
    with pytest.raises(UserError, match="batch norm needs"):
        quick(batch_size=1).evaluate(encoder(), data, around(tmp_path))
    with pytest.raises(UserError, match="2 x 2 patches"):
        quick(crop=PATCH).evaluate(encoder(), data, around(tmp_path))
    with pytest.raises(UserError, match="do not divide"):
        quick(crop=18).evaluate(encoder(), data, around(tmp_path))


def test_recipes_are_settings_of_the_protocol(data):
    assert {"beit", "beitv2", "mae", "ibot"} <= set(ADE20K.presets)
    for preset in ADE20K.presets.values():
        protocol = ADE20K(**preset.fields)
        protocol.check(data)
        assert asdict(protocol) != asdict(ADE20K())

"""Detection as a protocol: what it owes the harness, and that its detectors find something."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="the extra 'dense' is not installed")
pytest.importorskip("pycocotools", reason="the extra 'dense' is not installed")

from mimbench import settings
from mimbench.data import open_dataset
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.features import FeatureStore
from mimbench.outcomes import unpack
from mimbench.precision import make_fabric, native_precisions
from mimbench.protocol import Surroundings, sampled
from mimbench.registry import build_backbone, find_protocol
from protocols.coco import CocoDetection
from tests.dense_data import write_coco

QUICK: dict[str, Any] = {
    "steps": 3,
    "batch_size": 2,
    "lr": (1e-3,),
    "channels": 16,
    "roi_samples": 8,
    "image_size": 32,
    "warmup": 0,
}
OTHER: dict[str, Any] = {
    "image_size": 48,
    "epochs": 0.5,
    "min_steps": 2,
    "steps": 4,
    "batch_size": 3,
    "lr": (3e-3,),
    "weight_decay": 3.0,
    "layer_decay": 0.3,
    "drop_path": 0.8,
    "warmup": 1,
    "milestones": (0.3,),
    "scale": (0.5, 0.6),
    "window": 1,
    "channels": 24,
    "roi_samples": 16,
    "train_on": "train+validation",
}
BESIDE: dict[str, dict[str, Any]] = {
    "epochs": {"steps": None, "min_steps": 1, "epochs": 1.0},
    "min_steps": {"steps": None, "epochs": 0.01, "min_steps": 3},
    "warmup": {"steps": 10},
}


def encoder(name: str = "vit_micro_patch8", size: int = 32, **options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(build_backbone(name, size, **options), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def around(place: Path, precision="fp32", report=lambda progress: None, seed=0, **options) -> Surroundings:
    fabric = make_fabric(precision, "cpu")
    return Surroundings(FeatureStore(place / "features"), seed, report, fabric=fabric, **options)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    root = write_coco(folder / "set", train=12, validation=5, classes=2, size=(48, 64))
    return open_dataset(f"coco:{root}", cache=folder / "cache")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    root = write_coco(folder / "set", train=12, validation=5, classes=2, size=(48, 64), masks=False)
    return open_dataset(f"coco:{root}", cache=folder / "cache")


@pytest.fixture(scope="module")
def quickly(tmp_path_factory, boxes):
    """What is found with some fields, each once."""
    done: dict[str, Any] = {}

    def evaluate(**fields: Any):
        name = repr(sorted(fields.items()))
        if name not in done:
            protocol = CocoDetection(**{**QUICK, **fields})
            done[name] = protocol.evaluate(encoder(), boxes, around(tmp_path_factory.mktemp("run")))
        return done[name]

    return evaluate


@pytest.mark.slow
def test_a_short_training_finds_what_an_untrained_detector_does_not(tmp_path):
    root = write_coco(tmp_path / "set", train=30, validation=8, classes=2, size=(48, 64))
    data = open_dataset(f"coco:{root}", cache=tmp_path / "cache")
    larger = {"image_size": 96, "channels": 32, "roi_samples": 32, "batch_size": 4, "scale": (0.8, 1.2)}
    ways = {"untrained": {"lr": (1e-12,), "steps": 1}, "trained": {"steps": 90, "lr": (1e-3,)}}
    found = {
        name: CocoDetection(**{**QUICK, **larger, **way, "layer_decay": 0.9}).evaluate(
            encoder(), data, around(tmp_path / name)
        )
        for name, way in ways.items()
    }
    assert found["untrained"].metrics["box_ap"] < 0.02
    trained = found["trained"]
    assert trained.metrics["box_ap"] > 0.1
    assert trained.metrics["mask_ap"] > 0.1
    assert trained.curve[-1]["loss"] < 0.7 * trained.curve[0]["loss"]
    assert "loss/loss_mask" in trained.curve[0]


def test_the_outcome_is_complete_and_plain(quickly, boxes):
    opened = boxes.test_openings
    found = CocoDetection(**QUICK).evaluate(encoder(), boxes, around(Path("unused")))
    assert boxes.test_openings == opened + 1
    assert found.outcomes.n == boxes.test_size
    assert found.metrics["box_ap"] == pytest.approx(found.outcomes.score, abs=1e-9)
    assert {"box_ap", "box_ap50", "box_ap75", "validation_box_ap"} <= set(found.metrics)
    assert not any(name.startswith("mask") for name in found.metrics)
    assert found.facts["detector"] == "Faster R-CNN"
    text = json.dumps([found.metrics, found.selection, found.facts, found.curve], allow_nan=False)
    assert "chosen" in text
    assert unpack(json.loads(json.dumps(found.outcomes.pack()))).score == found.outcomes.score
    for place in sampled(boxes.test_size):
        kept = found.samples[f"boxes {place}"]
        assert kept.shape == (len(found.samples[f"classes {place}"]), 5)
        assert (np.diff(kept[:, 4]) <= 0).all()
    again = quickly()
    assert (again.curve, again.metrics) == (found.curve, found.metrics), "the same twice"


@pytest.mark.slow
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CocoDetection)])
def test_every_knob_moves_the_training(quickly, field):
    beside = BESIDE.get(field, {})
    before, after = quickly(**beside), quickly(**{**beside, field: OTHER[field]})
    losses = [[round(point["loss"], 9) for point in found.curve] for found in (before, after)]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_the_seed_decides(quickly, boxes, tmp_path):
    other = CocoDetection(**QUICK).evaluate(encoder(), boxes, around(tmp_path, seed=1))
    assert other.curve != quickly().curve


@pytest.mark.slow
def test_validation_chooses_among_learning_rates(boxes, tmp_path):
    found = CocoDetection(**{**QUICK, "lr": (1e-4, 1e20)}).evaluate(encoder(), boxes, around(tmp_path))
    assert [one["lr"] for one in found.selection["candidates"]] == [1e-4, 1e20]
    assert found.selection["candidates"][1]["validation_box_ap"] is None
    assert found.selection["chosen"] == 0
    assert "became" in found.selection["notes"][0]


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on_where_it_was(quickly, boxes, tmp_path):
    fields = {"lr": (1e-3, 2e-3), "steps": 4}
    whole = quickly(**fields)
    protocol = CocoDetection(**{**QUICK, **fields})

    def stop(progress):
        if progress.stage == "training detector 2 of 2" and progress.done >= 0.5:
            raise KeyboardInterrupt

    seen = []
    options = {"folder": tmp_path / "scratch"}
    with pytest.raises(KeyboardInterrupt):
        protocol.evaluate(encoder(), boxes, around(tmp_path, report=stop, **options))
    resumed = protocol.evaluate(encoder(), boxes, around(tmp_path, report=seen.append, **options))
    first = [p.done for p in seen if p.stage == "training detector 1 of 2"]
    assert first == [1.0], "the first candidate was done"
    assert resumed.curve == whole.curve
    assert resumed.metrics == whole.metrics
    assert resumed.outcomes.pack() == whole.outcomes.pack()


def test_nothing_is_printed_and_nothing_is_left(boxes, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    CocoDetection(**QUICK).evaluate(encoder(), boxes, around(tmp_path / "run"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    CocoDetection(**QUICK).evaluate(encoder(), boxes, around(tmp_path / "run", folder=tmp_path / "scratch"))
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"training.pt"}
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_micro_patch8", {"cls_token": False, "depth": 1}),
        ("vit_micro_patch8", {"rel_pos": "shared", "positions": "none"}),
        ("vit_micro_patch8", {"rel_pos": "per_block", "layer_scale": 0.1}),
        ("vit_micro_patch8", {"positions": "rope", "registers": 4}),
        ("pixels", {"patch_size": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_every_backbone_is_trained_and_left_as_it_was(boxes, tmp_path, name, options):
    given = encoder(name, **options)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    found = CocoDetection(**QUICK).evaluate(given, boxes, around(tmp_path))
    assert found.outcomes.n == boxes.test_size
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert not any(parameter.requires_grad for parameter in given.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("precision", [p for p in native_precisions("cpu") if p != "fp32"])
def test_masks_train_in_the_precision_of_the_run(shapes, tmp_path, precision, quickly):
    found = CocoDetection(**QUICK).evaluate(encoder(), shapes, around(tmp_path, precision))
    assert found.facts["detector"] == "Mask R-CNN"
    assert all(np.isfinite(point["loss"]) for point in found.curve)


def test_what_cannot_work_is_said_before_the_work(boxes, tmp_path):
    with pytest.raises(UserError, match="leaves no images to choose among 2"):
        CocoDetection(lr=(1e-4, 1e-3), train_on="train+validation").check(boxes)
    with pytest.raises(UserError, match="least and the most"):
        CocoDetection(scale=(2.0, 1.0)).check(boxes)
    with pytest.raises(UserError, match="patches of 8 pixels"):
        CocoDetection(**{**QUICK, "image_size": 37}).evaluate(encoder(), boxes, around(tmp_path))


def test_settings_out_of_range_are_refused():
    ranges = [{"steps": 0}, {"lr": []}, {"lr": [0]}, {"milestones": [1.0]}, {"drop_path": 1}]
    for wrong in [*ranges, {"train_on": "test"}]:
        with pytest.raises(UserError, match=f"coco.{next(iter(wrong))}"):
            settings.parse_settings("coco", CocoDetection, wrong)


def test_sizes_follow_encoder_and_photographs(boxes):
    """Photographs of 64 x 48 pixels are shown as large as photographs of 640 to ViTDet: 1.6 times."""
    assert CocoDetection()._side(encoder(), boxes) == 96  # 102 in steps of two patches
    assert CocoDetection()._side(encoder(size=16), boxes) == 80  # 73
    assert CocoDetection(image_size=40)._side(encoder(), boxes) == 40


def test_the_official_recipe_is_detectron2s():
    cls = find_protocol("coco")
    for name, (steps, decay, path) in {
        "vitdet": (184375, 0.7, 0.1), "vitdet-large": (184375, 0.8, 0.4), "vitdet-huge": (138281, 0.9, 0.5),
    }.items():  # fmt: skip
        fields = settings.parse_settings("coco", cls, cls.presets[name].fields)
        recipe = cls(**settings.arguments(cls, fields))
        assert (recipe.steps, recipe.layer_decay, recipe.drop_path) == (steps, decay, path)
        assert (recipe.image_size, recipe.batch_size, recipe.lr) == (1024, 64, (1e-4,))
        assert (recipe.weight_decay, recipe.window, recipe.scale) == (0.1, 14, (0.1, 2.0))
    warmup, falls = cls(**cls.presets["vitdet"].fields).schedule(184375)
    assert (warmup["end"], warmup["start_factor"]) == (250, 0.001)
    assert (falls["milestones"], falls["gamma"]) == ([163889, 177546], 0.1)


PROGRAM = """
    import os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from mimbench.data import open_dataset
    from mimbench.evaluate import _checked
    from protocols.coco import CocoDetection
    from test_detection import QUICK, around, encoder

    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    data = open_dataset(f"coco:{folder / 'set'}", cache=folder / "cache")
    protocol = CocoDetection(**QUICK)
    assert protocol.collective
    place = around(folder, folder=folder / "scratch")
    assert place.fabric.world_size == 2
    found = _checked(protocol, encoder(), data, place)
    torch.save([found.metrics, found.curve, found.outcomes.pack()], folder / f"{rank}.pt")
    place.fabric.barrier()
"""


@pytest.mark.slow
def test_two_processes_evaluate_together(tmp_path):
    root = write_coco(tmp_path / "set", train=12, validation=5, classes=2, size=(48, 64), masks=True)
    open_dataset(f"coco:{root}", cache=tmp_path / "cache")
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, tmp_path / "program.py", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert first[2]["kind"] == "detections"
    assert [point["images"] for point in first[1]] == [2, 4, 6]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "masks"), [("bccd", False), ("coco-mini", True)])
def test_real_sets_are_read_trained_on_and_judged(tmp_path, name, masks):
    root = os.environ.get("MIMBENCH_DATA")
    if not root or not Path(root, name).is_dir():
        pytest.skip("set MIMBENCH_DATA to a folder that holds bccd and coco-mini")
    data = open_dataset(f"coco:{Path(root, name)}")
    assert data.has_masks is masks
    found = CocoDetection(**{**QUICK, "image_size": 64}).evaluate(encoder(), data, around(tmp_path))
    assert found.outcomes.n == data.test_size
    assert ("mask_ap" in found.metrics) == masks
    assert {"box_ap_small", "box_ap_medium", "box_ap_large"} & set(found.metrics)

"""Probes on augmented images: as a plain loop trains them, stopped and gone on, on one process or two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from protocol_toys import ToyDataset, around, toy_encoder
from torch import nn
from torch.nn import functional as F

from mimbench import torchvision_compat  # noqa: F401, before timm
from mimbench.data import evaluation_batches, training_batches
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.protocol import Protocol
from mimbench.registry import build_backbone
from mimbench.spec import Augmentation, Readout
from protocols.attentive import AttentiveProbe
from protocols.linprobe import LinearProbe
from protocols.parts.attentive_heads import AttentiveHeads
from protocols.parts.fitted import Head
from protocols.parts.linear import LinearHeads

CLS = Readout(token="cls")
MAE = {**LinearProbe.presets["mae"].fields, "batch_size": 32, "epochs": 10, "min_steps": 1, "checkpoints": 4}
PROBES: dict[str, Protocol] = {
    "mae": LinearProbe(**{**MAE, "lr": (0.1, 160.0)}),
    "at hand": LinearProbe(min_steps=60, epochs=1, checkpoints=3),
    "attentive": AttentiveProbe(
        min_steps=30,
        epochs=1,
        batch_size=32,
        lr=(0.01,),
        pooling=("capi", "cae", "aim"),
        optimizer="sgd",
        checkpoints=3,
        augment="crop",
    ),
    "attentive at hand": AttentiveProbe(min_steps=30, epochs=1, lr=(0.01,), checkpoints=2),
}


def scores(found) -> list[float]:
    return [c.get("test_top1", c.get("validation_top1")) for c in found.selection["candidates"]]


def test_maes_recipe_is_maes_loop(tmp_path):
    """main_linprobe.py and engine_finetune.py on the same crops in the same order."""
    from timm.optim import Lars

    encoder, data, blr, batch, steps = toy_encoder(), ToyDataset(), 160.0, 32, 38
    probe = replace(PROBES["mae"], lr=(blr,))
    found = probe.evaluate(encoder, data, around(tmp_path))
    assert data.test_openings == 1

    head = nn.Sequential(nn.BatchNorm1d(12, affine=False, eps=1e-6), nn.Linear(12, 6))
    begun = LinearHeads([Head((CLS,), 1.0, True)], {CLS: 12}, 6, init_std=0.01).fitted(0)
    head[1].weight.data.copy_(begun.weights[CLS])
    head[1].bias.data.zero_()
    groups = [
        {"params": [head[1].weight], "weight_decay": 0.0, "always_adapt": True},
        {"params": [head[1].bias], "weight_decay": 0.0},
    ]
    optimizer = Lars(groups, lr=1.0, momentum=0.9, trust_coeff=0.001, eps=0.0)
    stream = training_batches(
        data.train,
        augmentation=Augmentation(crop_scale=(0.08, 1.0), flip=False),  # the toy images do not bear flips
        image_size=8,
        seed=0,
        batch_size=batch,
        stop=steps,
    )
    accuracies = []
    for step, (images,) in enumerate(stream):
        epoch = 90 * step / steps
        share = epoch / 10 if epoch < 10 else 0.5 * (1 + np.cos(np.pi * (epoch - 10) / 80))
        for group in optimizer.param_groups:
            group["lr"] = share * blr * batch / 256
        loss = F.cross_entropy(head(encoder.readouts(images.images, [CLS])[CLS]), images.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in (10, 19, 28, 38):
            head.eval()
            ((_, tested),) = evaluation_batches(data.test, image_size=8, crop_pct=1.0, batch_size=99)
            right = head(encoder.readouts(tested, [CLS])[CLS]).argmax(1) == torch.from_numpy(data.test.labels)
            accuracies.append(right.double().mean().item())
            head.train()
    assert scores(found) == accuracies
    assert found.metrics["top1"] == max(accuracies)
    assert found.selection["rule"] == "highest test top1"
    assert len(set(accuracies)) > 1


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_that_was_stopped_goes_on_to_the_same_result(name, tmp_path, monkeypatch):
    probe = PROBES[name]
    heads = AttentiveHeads if "attentive" in name else LinearHeads
    real, steps = heads.learn, []

    def learn(self, *arguments):
        steps.append(1)
        if len(steps) == 17:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, *arguments)

    def evaluate(folder: str):
        here = replace(around(tmp_path / "features"), folder=tmp_path / folder)
        return probe.evaluate(toy_encoder(), ToyDataset(), here)

    whole = evaluate("whole")
    monkeypatch.setattr(heads, "learn", learn)
    with pytest.raises(SystemExit):
        evaluate("parts")
    assert len(steps) == 17
    resumed = evaluate("parts")
    again = len(steps) - 17
    assert resumed.selection == whole.selection
    assert resumed.metrics == whole.metrics
    assert resumed.outcomes.pack() == whole.outcomes.pack()
    evaluate("other")
    assert len(steps) == 17 + again + 17 + again  # nothing was done twice


def test_what_another_probe_left_behind_is_not_gone_on_from(tmp_path, monkeypatch):
    here = replace(around(tmp_path / "features"), folder=tmp_path / "folder")
    monkeypatch.setattr("protocols.parts.course.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("protocols.parts.course.LOOK_SECONDS", 0.0)
    PROBES["at hand"].evaluate(toy_encoder(), ToyDataset(), here)
    with pytest.raises(UserError, match="belongs to a run with other settings"):
        replace(PROBES["at hand"], momentum=0.5).evaluate(toy_encoder(), ToyDataset(), here)


def test_how_many_images_go_through_at_once_is_no_matter(tmp_path):
    for name in ("mae", "attentive"):
        expected = PROBES[name].evaluate(toy_encoder(), ToyDataset(), around(tmp_path))
        pieces = replace(around(tmp_path), micro_batch=7)
        found = PROBES[name].evaluate(toy_encoder(), ToyDataset(), pieces)
        np.testing.assert_allclose(scores(found), scores(expected), atol=0.03)


PROGRAM = """
    import json, os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from mimbench.features import FeatureStore
    from mimbench.precision import make_fabric
    from mimbench.progress import silent
    from mimbench.protocol import Surroundings
    from protocol_toys import ToyDataset, toy_encoder
    from protocols.parts.attentive_heads import AttentiveHeads
    from test_probe_training import PROBES, scores

    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    fabric = make_fabric("fp32", "cpu")

    def evaluate(name, folder):
        store = FeatureStore(out / "features", fabric)
        here = Surroundings(store, 0, silent, fabric=fabric, folder=out / folder)
        assert PROBES[name].collective
        found = PROBES[name].evaluate(toy_encoder(), ToyDataset(), here)
        return {"scores": scores(found), "outcomes": found.outcomes.pack(), "metrics": found.metrics}

    facts = {name: evaluate(name, name) for name in ("mae", "attentive", "attentive at hand")}
    real, steps = AttentiveHeads.learn, []

    def learn(self, *arguments):
        steps.append(1)
        if len(steps) == 9 and rank == 1:  # the signal reaches one process only
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, *arguments)

    AttentiveHeads.learn = learn
    try:
        evaluate("attentive", "parts")
    except SystemExit:
        facts["stopped after"] = len(steps)
    facts["resumed"] = evaluate("attentive", "parts")
    facts["steps"] = len(steps)
    (out / f"facts{rank}.json").write_text(json.dumps(facts))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_and_test_as_one_and_stop_and_go_on_together(tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "program.py"), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"facts{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for name in ("mae", "attentive", "attentive at hand"):
        alone = PROBES[name].evaluate(toy_encoder(), ToyDataset(), around(tmp_path / "alone"))
        np.testing.assert_allclose(first[name]["scores"], scores(alone), atol=0.03)
        assert first[name]["metrics"]["top1"] == pytest.approx(alone.metrics["top1"], abs=0.03)
        assert len(set(first[name]["scores"])) > 1
    assert 9 <= first["stopped after"] < 30
    assert first["resumed"] == first["attentive"]
    assert first["steps"] == 30


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_micro_patch4", {"depth": 2}),
        ("vit_micro_patch4", {"depth": 2, "rel_pos": "shared", "cls_token": False}),
        ("vit_micro_patch4", {"depth": 2, "positions": "rope"}),
        ("pixels", {"patch_size": 4}),
    ],
    ids=["vit", "relative positions, no class token", "rope", "pixels"],
)
def test_every_kind_of_backbone_is_probed(name, options, tmp_path):
    """Token by token and on augmented images: widths, grids and class tokens are the backbone's own."""
    torch.manual_seed(0)
    encoder = Encoder(build_backbone(name, 8, **options), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    linear = {**MAE, "epochs": 2, "readouts": ("mean", "mean@every/raw"), "checkpoints": 1}
    attentive = {"min_steps": 3, "epochs": 1, "lr": (0.01,), "tokens": "all"}
    for probe in (
        LinearProbe(**linear),
        AttentiveProbe(**attentive, pooling=("capi", "vjepa", "cae", "aim", "ep")),
        AttentiveProbe(**attentive, augment="crop", batch_size=16),
    ):
        found = probe.evaluate(encoder, ToyDataset(), around(tmp_path))
        assert found.outcomes.n == 80
        assert all(np.isfinite(scores(found)))

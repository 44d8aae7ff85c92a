"""Training with mmengine's Runner: what a run owes whoever stops it, splits it or looks at its folder."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine", reason="the extra 'dense' is not installed")

from openmm_tiny import DEPTH, model, samples

from mimbench.errors import UserError
from mimbench.monitor import TrainingStopped
from mimbench.openmm.fit import Training, fit
from mimbench.openmm.layer_decay import parameter_groups
from mimbench.openmm.predict import predict
from mimbench.openmm.samples import Stream
from mimbench.precision import make_fabric, native_precisions

STEADY = Training(
    steps=12,
    batch_size=4,
    lr=0.01,
    layer_decay=0.7,
    clip_grad=1.0,
    schedule=(
        {"type": "LinearLR", "start_factor": 0.1, "end": 3},
        {"type": "MultiStepLR", "milestones": [8], "gamma": 0.1},
    ),
)


def run(folder: Path, training: Training = STEADY, precision="fp32", identity=(), **options):
    trained = model()
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # whatever was drawn before
    fitted = fit(
        trained,
        samples(),
        training,
        seed=3,
        fabric=make_fabric(precision, "cpu"),
        folder=folder,
        identity=dict(identity),
        scope="mmdet",
        **options,
    )
    return trained, fitted


def weights(trained) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trained.state_dict().values()])


@pytest.mark.parametrize("precision", [p for p in native_precisions("cpu") if p != "fp16"])
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, precision, number, raised):
    whole, fitted = run(tmp_path / "whole", precision=precision)
    sent = []

    def stop(progress):
        if progress.done >= 0.4 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    with pytest.raises(raised):
        run(tmp_path / "stopped", precision=precision, report=stop)
    resumed, again = run(tmp_path / "stopped", precision=precision)
    assert 0 < len(resumed.seen) < len(whole.seen)
    assert torch.equal(weights(resumed), weights(whole))
    assert again.curve == fitted.curve


def test_a_training_that_is_done_is_not_done_again(tmp_path):
    first, fitted = run(tmp_path)
    second, again = run(tmp_path)
    assert second.seen == []
    assert torch.equal(weights(first), weights(second))
    assert again.curve == fitted.curve


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="other settings or data"):
        run(tmp_path, identity={"image_size": 64})


def test_the_loss_falls_and_the_learning_rate_follows_its_schedule(tmp_path):
    _, fitted = run(tmp_path, STEADY.model_copy(update={"steps": 60}))
    assert fitted.curve[-1]["loss"] < fitted.curve[0]["loss"] / 2
    assert set(fitted.curve[0]) == {"progress", "images", "lr", "loss", "loss/loss_colour"}
    rates = [point["lr"] for point in fitted.curve]
    np.testing.assert_allclose(rates[:4], [0.001, 0.0055, 0.01, 0.01])
    np.testing.assert_allclose([rates[7], rates[8], rates[-1]], [0.01, 0.001, 0.001])


def test_micro_batches_and_workers_change_nothing(tmp_path):
    """But for dropout, whose draws lie in another order when fewer images go through at once."""
    kept = {}
    for name, options in {"whole": {}, "parts": {"micro_batch": 3}, "workers": {"workers": 2}}.items():
        stream = Stream(
            samples(), seed=5, batch_size=6, workers=options.get("workers", 0),
            micro_batch=options.get("micro_batch"),
        )  # fmt: skip
        batches = list(stream.batches(2, 5))
        kept[name] = torch.cat([torch.stack(batch["inputs"]) for batch in batches])
    assert len(kept["whole"]) == 18
    assert torch.equal(kept["parts"], kept["whole"])
    assert torch.equal(kept["workers"], kept["whole"])


def test_each_epoch_shows_each_image_once_and_starts_anywhere():
    stream = Stream(samples(11), seed=5, batch_size=4)
    seen = [number for batch in stream.batches(0, 11) for number in batch["number"]]
    for epoch in range(4):
        assert sorted(seen[11 * epoch : 11 * epoch + 11]) == list(range(11))
    assert seen[:11] != seen[11:22]
    assert [n for batch in stream.batches(7, 11) for n in batch["number"]] == seen[28:]


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(tmp_path):
    """In eval mode of the dropout: without it both trainings see the same."""
    without = []
    for micro_batch in (None, 1):
        trained = model()
        trained.backbone.body.eval()
        trained.train = lambda mode=True, self=trained: self
        fit(
            trained, samples(), STEADY, seed=0, fabric=make_fabric("fp32", "cpu"), identity={},
            folder=tmp_path / str(micro_batch), scope="mmdet", micro_batch=micro_batch,
        )  # fmt: skip
        without.append(weights(trained))
    torch.testing.assert_close(without[0], without[1], rtol=0, atol=2e-4)


def test_layers_near_the_images_learn_more_slowly():
    trained = model()
    groups = parameter_groups(trained, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == len(list(trained.parameters()))
    assert len({lr for lr, _ in found.values()}) == DEPTH + 2  # the norm learns as fast as the head
    assert found["backbone.body.patch_embed.weight"] == (0.5 ** (DEPTH + 1), 0.1)
    assert found["backbone.body.pos_embed"] == (0.5 ** (DEPTH + 1), 0.0)
    assert found["backbone.body.blocks.0.weight"] == (0.5**DEPTH, 0.1)
    assert found[f"backbone.body.blocks.{DEPTH - 1}.bias"] == (0.5, 0.0)
    assert found["head.weight"] == (1.0, 0.1)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(TrainingStopped, match="loss_colour"):
        run(tmp_path, STEADY.model_copy(update={"lr": 1e30, "clip_grad": None, "schedule": ()}))


def test_nothing_is_printed_and_nothing_but_the_checkpoint_is_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    run(tmp_path / "scratch")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["scratch/training.pt"]
    assert tuple(capfd.readouterr()) == ("", "")


def test_predictions_come_in_the_order_of_the_samples():
    trained = model()
    whole, parts = (
        predict(trained, samples(), lambda found: (found["number"], found["colour"]), batch_size=size,
                fabric=make_fabric("fp32", "cpu"))
        for size in (4, 1)
    )  # fmt: skip
    assert [number for number, _ in whole] == list(range(11))
    torch.testing.assert_close([c for _, c in whole], [c for _, c in parts])
    assert trained.training


PROGRAM = """
    import os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from openmm_tiny import model, samples
    from mimbench.openmm.predict import predict
    from mimbench.precision import make_fabric
    from test_openmm_fit import STEADY, weights
    from mimbench.openmm.fit import fit

    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    fabric = make_fabric("fp32", "cpu")
    trained = model()
    trained.backbone.body.eval()
    trained.train = lambda mode=True: trained
    fit(trained, samples(), STEADY, seed=0, fabric=fabric, folder=folder, identity={}, scope="mmdet")
    trained.train = type(trained).train.__get__(trained)
    found = predict(trained, samples(), lambda one: (one["number"], one["colour"]), fabric=fabric)
    torch.save({"weights": weights(trained), "seen": trained.seen, "found": found}, folder / f"{rank}.pt")
    fabric.barrier()
"""


@pytest.mark.slow
def test_two_processes_train_and_predict_what_one_does(tmp_path):
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
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert torch.equal(first["weights"], second["weights"])

    alone = model()
    alone.backbone.body.eval()
    alone.train = lambda mode=True: alone
    fabric = make_fabric("fp32", "cpu")
    fit(alone, samples(), STEADY, seed=0, fabric=fabric, folder=tmp_path / "one", identity={}, scope="mmdet")
    torch.testing.assert_close(first["weights"], weights(alone), rtol=0, atol=2e-4)
    together = [sorted(a + b) for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert together == [sorted(numbers) for numbers in alone.seen]
    alone.train = type(alone).train.__get__(alone)
    expected = predict(alone, samples(), lambda one: (one["number"], one["colour"]), fabric=fabric)
    for found in (first["found"], second["found"]):
        assert [number for number, _ in found] == [number for number, _ in expected]
        torch.testing.assert_close([c for _, c in found], [c for _, c in expected], rtol=0, atol=1e-3)

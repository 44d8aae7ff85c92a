"""What is no pre-training method and yet trained by the loop: rates of its own, visits, partners."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_tiny import RECIPE, SIZE, dataset

from mimbench import rng, train_loop
from mimbench.course import Course
from mimbench.data import training_batches
from mimbench.errors import UserError
from mimbench.monitor import Health, TrainingStopped
from mimbench.precision import make_fabric
from mimbench.progress import Progress
from mimbench.schedule import learning_rate
from mimbench.spec import Augmentation, Budget
from mimbench.train import fit
from mimbench.train_step import TrainStep
from mimbench.trainee import Losses, Step, Trainee

STEPS = 10


class Mixer(Trainee):
    """Classifies images that are mixed with their partners, by a bias that learns faster than its weights."""

    partnered, labelled, normalisation = True, True, ((0.0,) * 3, (1.0,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3 * SIZE * SIZE, 3)
        self.steps: list[Step] = []

    def forward(self, images, step):
        self.steps.append(step)
        mixed = 0.7 * images + 0.3 * step.partners.images
        logits = self.encoder(mixed.flatten(1))
        losses = [F.cross_entropy(logits, labels) for labels in (step.labels, step.partners.labels)]
        return Losses(labels=0.7 * losses[0] + 0.3 * losses[1])

    def parameter_groups(self, weight_decay):
        return [
            {"params": [self.encoder.weight], "weight_decay": weight_decay, "lr_scale": 0.1},
            {"params": [self.encoder.bias], "weight_decay": 0.0},
        ]


class Looks:
    """Notes at which share it looked, and what it saw."""

    shares = (0.3, 0.65, 1.0)

    def __init__(self, trainee: Mixer):
        self.trainee, self.seen = trainee, []

    def __call__(self, share: float) -> None:
        self.trainee.eval()
        self.seen.append([share, self.trainee.encoder.bias.sum().item()])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def mixer() -> Mixer:
    torch.manual_seed(0)
    return Mixer()


def course(data=None) -> Course:
    data = data or dataset()
    data.train.fingerprint = "train"
    budget = Budget(unit="images", amount=STEPS * 8)
    return Course(data.train, RECIPE, Augmentation(flip=False), SIZE, 8, budget, seed=3)


def run(path: Path, trainee: Mixer | None = None, **options):
    trainee = trainee or mixer()
    looks = Looks(trainee)
    found = fit(
        trainee,
        options.pop("course", course()),
        identity={"it": 1},
        path=path / "checkpoint.pt",
        fabric=make_fabric("fp32", "cpu"),
        stage="fine-tuning",
        visits=looks,
        **options,
    )
    return trainee, looks, found


def batches(micro_batch: int | None = None):
    options = {"augmentation": Augmentation(flip=False), "image_size": SIZE, "seed": 0, "batch_size": 8}
    return list(training_batches(dataset().train, stop=2, micro_batch=micro_batch, **options))


def test_a_group_learns_at_its_own_share_of_the_rate() -> None:
    trainee, recipe = mixer(), RECIPE.model_copy(update={"clip_grad": None, "weight_decay": 0.0})
    step = TrainStep(trainee, recipe, 8, make_fabric("fp32", "cpu"))
    before = [p.detach().clone() for p in trainee.encoder.parameters()]
    step(batches()[0], 0.5)
    lr = learning_rate(recipe, 8, 0.5)
    assert step.lr == lr
    for parameter, old, scale in zip(trainee.encoder.parameters(), before, (0.1, 1.0), strict=True):
        # Adam's first step is the rate, whatever the gradient.
        torch.testing.assert_close((parameter - old).abs().max().item(), lr * scale, rtol=1e-3, atol=0)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_partner_is_the_sample_at_the_other_end_of_the_step(micro_batch: int | None) -> None:
    trainee = mixer()
    step = TrainStep(trainee, RECIPE, 8, make_fabric("fp32", "cpu"))
    (whole,) = batches()[0]
    step(batches(micro_batch)[0], 0.5, key=7)
    assert {seen.key for seen in trainee.steps} == {7}
    partners = [seen.partners for seen in trainee.steps]
    assert torch.equal(torch.cat([p.keys for p in partners]), whole.keys.flip(0))
    assert torch.equal(torch.cat([p.labels for p in partners]), whole.labels.flip(0))
    torch.testing.assert_close(torch.cat([p.images for p in partners]), whole.images.flip(0) / 255)


def test_visits_come_at_their_shares_and_training_goes_on_in_train_mode(tmp_path: Path) -> None:
    trainee, looks, (cost, curve) = run(tmp_path)
    assert [share for share, _ in looks.seen] == [0.3, 0.65, 1.0]
    assert looks.seen[-1][1] == trainee.encoder.bias.sum().item()
    assert len({bias for _, bias in looks.seen}) == 3
    assert trainee.training
    assert (cost.images, len(curve)) == (STEPS * 8, STEPS)
    keys = [seen.key for seen in trainee.steps]
    assert len(set(keys)) == STEPS
    expected = rng.sample_keys(3, 0, rng.permutation(3, 0, 20)[:8]).tolist()
    assert trainee.steps[0].keys.tolist() == expected


def interrupt_at(share: float):
    sent = []

    def report(progress: Progress) -> None:
        assert progress.stage == "fine-tuning"
        if share <= progress.done < 1 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))

    return report


def test_an_interrupted_run_visits_and_ends_as_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train_loop, "LOOK_SECONDS", 0.0)
    whole, looks, (_, curve) = run(tmp_path / "whole")
    for share in (0.2, 0.6):  # it stops a step later, the first time right at a visit
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", report=interrupt_at(share))
        assert (tmp_path / "parts" / "checkpoint.pt").exists()
    parts, again, (_, curve_again) = run(tmp_path / "parts")
    assert again.seen == looks.seen
    assert curve_again == curve
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])


def test_a_checkpoint_of_another_course_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train_loop, "LOOK_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=interrupt_at(0.2))
    other = course()
    other = Course(**{**vars(other), "seed": 4})
    with pytest.raises(UserError, match="belongs to a run with other settings"):
        run(tmp_path, course=other)


def test_labels_that_are_learnt_by_heart_are_no_collapse() -> None:
    fitted, constant = Health(zero_is_fitted=True), Health(zero_is_fitted=True)
    for step in range(2 * Health.CONSTANT_STEPS):
        fitted.check(step, {"labels": 0.0})
    for step in range(Health.CONSTANT_STEPS - 1):
        constant.check(step, {"labels": 0.3})
    with pytest.raises(TrainingStopped, match=r"exactly 0\.3"):
        constant.check(Health.CONSTANT_STEPS, {"labels": 0.3})

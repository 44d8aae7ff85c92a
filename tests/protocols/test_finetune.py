"""Fine-tuning against formulas written out from MAE's code, plain loops and timm's own pieces."""

from __future__ import annotations

import copy
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from protocol_toys import ToyDataset, around, toy_encoder
from torch import nn
from torch.nn import functional as F

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3

from method_zoo.backbones import build
from mimbench import train_loop
from mimbench.data import training_batches
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.precision import make_fabric
from mimbench.protocol import EvaluationFailed
from mimbench.registry import build_backbone
from mimbench.schedule import learning_rate
from mimbench.seeding import seeded_python
from mimbench.spec import Augmentation, Readout, Recipe
from mimbench.train_step import TrainStep
from mimbench.trainee import Partners, Step
from protocols.finetune import FineTune
from protocols.parts.classifier import Classifier, Viewing
from protocols.parts.finetuning import FineTuning, Regularisation
from tests.zoo.backbone_kinds import KINDS

RECIPE = Recipe(base_lr=1e-2, batch_size=8, lr_rule="absolute", betas=(0.9, 0.999), eps=1e-3, source="test")
PLAIN = Regularisation(0.0, 0.0, 1.0, 0.5, 0.0, 0.0)
MIXED = replace(PLAIN, mixup=0.8, cutmix=1.0, smoothing=0.1)


def backbone(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("vit_micro_patch2", 8, **{"depth": 2, "embed_dim": 16, "num_heads": 2, **options})


def classifier(token: str = "mean", decoded: nn.Module | None = None, head_std: float = 0.02) -> Classifier:
    torch.manual_seed(1)
    options = {"token": token, "head_std": head_std, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
    return Classifier((decoded or backbone()).rebuilt(drop_path=0.0), 6, **options)


def trainee(how: Regularisation = PLAIN, average: float | None = None, **options: Any) -> FineTuning:
    return FineTuning(classifier(**options), how, layer_decay=0.65, average=average)


def batches(steps: int = 1, micro_batch: int | None = None):
    data, augmentation = ToyDataset(), Augmentation(flip=False)
    options = {"augmentation": augmentation, "image_size": 8, "seed": 0, "batch_size": 8}
    return list(training_batches(data.train, stop=steps, micro_batch=micro_batch, **options))


# -- learning rates ------------------------------------------------------------------------------------


def mae_layer(name: str, depth: int) -> int:
    """``get_layer_id_for_vit`` of facebookresearch/mae util/lr_decay.py."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


@pytest.mark.parametrize("token", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("options", [{}, {"positions": "learned"}, {"cls_token": True, "depth": 1}])
def test_rates_and_decay_of_every_parameter_are_those_of_maes_code(token: str, options: dict) -> None:
    network = classifier(token, backbone(**options))
    depth, decay = network.backbone.depth, 0.65
    groups = network.parameter_groups(0.05, decay)
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len({g["lr_scale"] for g in groups}) == depth + 2
    for full_name, parameter in network.named_parameters():
        name = full_name.removeprefix("backbone.")
        scale, weight_decay = found.pop(id(parameter))
        assert scale == pytest.approx(decay ** (depth + 1 - mae_layer(name, depth))), name
        exempt = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
        assert weight_decay == (0 if exempt else 0.05), name
    assert not found


def test_a_backbone_without_a_final_norm_still_has_depth_plus_two_rates() -> None:
    groups = classifier("mean", backbone(final_norm=False)).parameter_groups(0.05, 0.5)
    assert sorted({g["lr_scale"] for g in groups}) == [0.125, 0.25, 0.5, 1.0]


# -- the head ------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("token", ["cls", "mean", "cls+mean"])
def test_the_head_is_a_linear_layer_on_the_token_of_the_card(token: str) -> None:
    network = classifier(token).eval()
    x = torch.randn(3, 3, 8, 8)
    out = network.backbone.encode(x, layers=(-1,))
    features = {"cls": out.cls, "mean": F.layer_norm(out.layers[0][1].mean(1), (16,), eps=1e-6)}
    joined = torch.cat([features[part] for part in token.split("+")], 1)
    head = nn.Linear(joined.shape[1], 6)
    head.load_state_dict(network.head.state_dict())
    torch.testing.assert_close(network(x), head(joined))
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
    torch.testing.assert_close(network.look(pixels), network((pixels / 255 - mean) / std))


def test_the_head_starts_as_small_as_asked_and_without_a_say() -> None:
    head = classifier(decoded=backbone(embed_dim=512), head_std=2e-5).head
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert not head.bias.any()


def test_logits_are_whole_numbers_apart_in_bf16_too() -> None:
    network = classifier()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(2, 3, 8, 8)).dtype == torch.float32


# -- one step ------------------------------------------------------------------------------------------


def erased(images: torch.Tensor, keys: torch.Tensor, probability: float) -> torch.Tensor:
    """timm's erasing of each image, its generators seeded by the image's key."""
    import random

    erase, found = RandomErasing(probability, mode="pixel", device="cpu"), []
    for image, key in zip(images, keys.tolist(), strict=True):
        random.seed(key & (2**63 - 1))
        torch.manual_seed(key & (2**63 - 1))
        found.append(erase(image.clone()))
    return torch.stack(found)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_steps_equal_a_plain_loop_with_timms_pieces(micro_batch: int | None) -> None:
    how, decay = replace(MIXED, erasing=0.5), 0.65
    ours, theirs = trainee(how, average=0.9), copy.deepcopy(classifier())
    step = TrainStep(ours, RECIPE, 8, make_fabric("fp32", "cpu"))

    mixing = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=6)
    average = ModelEmaV3(theirs, 0.9, use_warmup=True)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in theirs.named_parameters():
        layer = mae_layer(name.removeprefix("backbone."), 2)
        kept = parameter.ndim == 1 or name.endswith(("cls_token", "pos_embed"))
        groups.setdefault((decay ** (3 - layer), 0.0 if kept else 0.05), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "scale": s, "weight_decay": w} for (s, w), p in groups.items()], eps=1e-3
    )
    whole = batches(4)
    for number, micro_batches in enumerate(batches(4, micro_batch)):
        key, progress = 1000 + number, 0.1 + number / 10
        losses = step(micro_batches, progress, key)
        (batch,) = whole[number]
        x = erased((batch.images / 255 - theirs.mean) / theirs.std, batch.keys, 0.5)
        with seeded_python(key):
            x, targets = mixing(x, batch.labels)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(RECIPE, 8, progress) * group["scale"]
        loss = SoftTargetCrossEntropy()(theirs(x), targets)
        assert losses["labels"].item() == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(theirs, step=number + 1)
    for one, other in ((ours.classifier, theirs), (ours.evaluated, average.module)):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.equal(ours.evaluated.head.weight, ours.classifier.head.weight)
    assert not torch.equal(ours.classifier.head.weight, classifier().head.weight)


def test_mixed_images_and_targets_are_timms_bit_for_bit_whatever_the_process_holds() -> None:
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 6
    kinds = set()
    for key in range(20):
        with seeded_python(key):
            x, targets = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=6)(images.clone(), labels)
        for rows in (slice(0, 8), slice(0, 8, 2), slice(1, 8, 2), slice(2, 5)):
            others = Partners(images.flip(0)[rows], labels[rows], labels.flip(0)[rows])
            mixed = trainee(MIXED)._mixed(images[rows], labels[rows], others, key)
            assert torch.equal(mixed[0], x[rows])
            assert torch.equal(mixed[1], targets[rows])
        kinds.add(bool((x == images).flatten(1).any(1).any()))  # cutmix leaves pixels as they are
    assert kinds == {True, False}


def test_erasing_depends_on_the_image_alone_and_leaves_generators_alone() -> None:
    import random

    network, x = trainee(replace(PLAIN, erasing=0.5)), torch.randn(6, 3, 8, 8)
    keys = torch.arange(6) * 7 - 9
    before = random.getstate(), torch.get_rng_state()
    whole = network._erased(x, keys)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(whole[2:5], network._erased(x[2:5], keys[2:5]))
    assert torch.equal(whole, erased(x, keys, 0.5))
    assert 0 < sum(not torch.equal(a, b) for a, b in zip(whole, x, strict=True)) < 6


@pytest.mark.parametrize(
    ("how", "loss"),
    [(PLAIN, nn.CrossEntropyLoss()), (replace(PLAIN, smoothing=0.2), LabelSmoothingCrossEntropy(0.2))],
)
def test_without_mixing_the_loss_is_cross_entropy_with_smoothed_labels(how, loss) -> None:
    network, x = trainee(how), torch.randn(4, 3, 8, 8)
    step = Step(0.5, torch.arange(4), torch.arange(4) % 6)
    assert not network.partnered
    torch.testing.assert_close(network(x, step).total, loss(network.classifier(x), step.labels))


# -- the whole -----------------------------------------------------------------------------------------

QUICK = FineTune(
    epochs=1, min_steps=12, batch_size=8, lr=(0.1, 0.3), rand_augment="", mix_probability=0.5, ema=0.9
)


def vit_encoder(**options: Any) -> Encoder:
    return Encoder(backbone(**options), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def evaluated(protocol: FineTune, folder: Path, encoder: Encoder | None = None, **surroundings: Any):
    where = replace(around(folder), folder=folder / "scratch", **surroundings)
    return protocol.evaluate(encoder or vit_encoder(), ToyDataset(), where)


def test_a_search_that_was_stopped_and_resumed_gives_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train_loop, "LOOK_SECONDS", 0.0)
    protocol = replace(QUICK, epochs=2, epoch="best")
    whole = evaluated(protocol, tmp_path / "whole")
    for stage in ("fine-tuning 1 of 2", "fine-tuning 2 of 2"):
        sent: list[None] = []

        def report(progress, stage: str = stage, sent: list = sent) -> None:
            if progress.stage == stage and progress.done >= 0.4 and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGINT))

        with pytest.raises(KeyboardInterrupt):
            evaluated(protocol, tmp_path / "parts", report=report)
    left = {path.name for path in (tmp_path / "parts" / "scratch").iterdir()}
    assert left == {"search.pt", "candidate-1.pt"}
    parts = evaluated(protocol, tmp_path / "parts")
    assert parts.selection == whole.selection
    assert parts.curve == whole.curve
    assert parts.outcomes.pack() == whole.outcomes.pack()
    assert len(whole.selection["candidates"]) == 2 * 2


def test_the_chosen_weights_are_those_that_are_tested(tmp_path: Path) -> None:
    """The score that was chosen comes out again when the kept weights are scored anew."""
    data, where = ToyDataset(), replace(around(tmp_path), folder=tmp_path)
    protocol = replace(QUICK, epochs=3, epoch="best")
    search = protocol.search(vit_encoder(), data, where, tmp_path)
    scores = search.scores(data.validation)
    assert len(scores.accuracy) == len(search.candidates) == 6
    assert [c["epoch"] for c in search.candidates] == [1.0, 2.0, 3.0] * 2
    ranks, loss = search.viewing.judge(search.classifier(), data.validation)
    best = max(zip(scores.accuracy, [-loss for loss in scores.loss], strict=True))
    assert (float((ranks < 1).mean()), -loss) == best
    logits = search.viewing.logits(search.classifier(), data.validation)
    assert logits.shape == (60, 6)
    labels = torch.from_numpy(data.validation.labels)
    assert np.array_equal((logits.argmax(1) == labels).numpy(), ranks < 1)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(loss)


def test_ranks_count_who_is_ahead_and_a_broken_logit_is_last() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [math.nan, 0.0, 0.0]])
    viewing = Viewing(make_fabric("fp32", "cpu"), 1.0)
    split = SimpleNamespace(labels=np.array([2, 0, 1, 0]))
    blocks = [logits[:3], logits[3:]]
    Viewing.blocks, kept = (lambda *_: iter(blocks)), Viewing.blocks  # type: ignore[method-assign]
    try:
        ranks, loss = viewing.judge(classifier(), split)
    finally:
        Viewing.blocks = kept  # type: ignore[method-assign]
    assert ranks.tolist() == [1, 0, 1, 3]
    assert math.isnan(loss)


def test_a_rate_that_diverges_is_passed_over_and_only_that(tmp_path: Path) -> None:
    found = evaluated(replace(QUICK, lr=(1e38, 0.1), clip_grad=None), tmp_path)
    first, second = found.selection["candidates"]
    assert first["validation_top1"] is None
    assert found.selection["chosen"] == 1
    assert found.metrics["validation_top1"] == second["validation_top1"]
    assert "became nan" in found.facts["training"]["stopped"][0]
    with pytest.raises(EvaluationFailed, match="none of the 1 candidates could be fitted"):
        evaluated(replace(QUICK, lr=(1e38,)), tmp_path / "none")


@pytest.mark.parametrize(
    ("token", "has_cls", "head"), [("cls", True, 16), ("mean", False, 16), ("cls", False, 16)]
)
def test_the_head_reads_what_the_card_says(tmp_path: Path, token: str, has_cls: bool, head: int) -> None:
    protocol, data = replace(QUICK, lr=(0.1,)), ToyDataset()
    where = replace(around(tmp_path), readout=Readout(token=token))
    search = protocol.search(vit_encoder(cls_token=has_cls), data, where, tmp_path)
    network = search.build({"layer_decay": 1.0}).classifier
    assert network.tokens == ["cls" if token == "cls" and has_cls else "mean"]
    assert bool(search.plan.notes) == (token == "cls" and not has_cls)
    assert network.head.in_features == head


def test_a_class_token_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune\.token=cls asks for the class token"):
        evaluated(replace(QUICK, token="cls"), tmp_path, vit_encoder(cls_token=False))


def test_small_sets_get_smaller_batches_before_more_epochs() -> None:
    def plan(protocol: FineTune, count: int):
        return protocol._plan(SimpleNamespace(train=range(count)), [])

    imagenet = plan(FineTune(**FineTune.presets["mae"].fields), 1_281_167)
    assert (imagenet.steps, imagenet.batch_size) == (125114, 1024)
    assert len(imagenet.shares) == 100
    assert imagenet.shares[-1] == 1
    digits = plan(FineTune(), 1437)
    assert (digits.steps, digits.batch_size, digits.shares) == (1000, 128, (1.0,))
    assert plan(FineTune(), 60).steps == 1000
    assert plan(FineTune(batch_size=100), 60).batch_size == 100


def test_official_recipes_scale_as_published() -> None:
    """The rate at the published batch, and what became of it at half of that."""
    for name, batch, lr in (
        ("mae", 1024, 2e-3),
        ("mae-large", 1024, 4e-3),
        ("beit", 1024, 4e-3),
        ("simmim", 2048, 5e-3),
        ("maskfeat", 512, 4e-3),
        ("hpm", 384, 7.5e-4),
    ):
        protocol = FineTune(**FineTune.presets[name].fields)
        recipe = protocol._recipe(Augmentation(), {"lr": protocol.lr[0], "layer_decay": 0.65})
        assert recipe.batch_size == batch
        assert recipe.lr(batch) == pytest.approx(lr)
        assert recipe.lr(batch // 2) == pytest.approx(lr / 2)
        assert recipe.warmup * protocol.epochs == pytest.approx(
            20 if lr >= 4e-3 and name != "mae-large" else 5
        )
        assert (protocol.choose_on, protocol.epoch) == ("test", "best")


def test_fine_tuning_leaves_the_frozen_encoder_as_it_was(tmp_path: Path) -> None:
    encoder = toy_encoder()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    evaluated(replace(QUICK, lr=(0.3,)), tmp_path, encoder)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("kind", [*KINDS, "pixels"])
def test_every_kind_of_backbone_is_fine_tuned(kind: str, tmp_path: Path, capfd) -> None:
    torch.manual_seed(0)
    made: Any = build("pixels", 20, patch_size=4) if kind == "pixels" else KINDS[kind]().float()
    protocol = replace(QUICK, min_steps=2, epochs=0.1, lr=(0.1,))
    found = evaluated(protocol, tmp_path, Encoder(made, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
    assert found.outcomes.n == 80
    assert found.facts["training"]["stopped"] == []
    assert tuple(capfd.readouterr()) == ("", "")


def test_what_it_cost_is_on_record(tmp_path: Path) -> None:
    facts = evaluated(QUICK, tmp_path).facts["training"]
    assert facts["images"] == 2 * 15 * 8
    assert facts["flops"] > 0
    assert facts["wall_seconds"] > 0
    assert (facts["steps"], facts["trained"], facts["stopped"]) == (15, 2, [])

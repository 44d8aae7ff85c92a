"""One optimiser step: accumulation, weighting, decay, clipping, what a method is shown."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from train_tiny import RECIPE, Labelled, Tiny, TinyBackbone, dataset, stateful

from mimbench.data import training_batches
from mimbench.method import Step
from mimbench.precision import make_fabric, native_precisions
from mimbench.schedule import learning_rate
from mimbench.spec import Augmentation, Recipe
from mimbench.train_step import TrainStep
from mimbench.trainee import parameter_groups


def batches(steps: int, batch_size: int = 8, micro_batch: int | None = None, **options):
    return list(
        training_batches(
            dataset(**options).train,
            augmentation=Augmentation(flip=False),
            image_size=4,
            seed=0,
            batch_size=batch_size,
            stop=steps,
            micro_batch=micro_batch,
        )
    )


def tiny(kind: type[Tiny] = Tiny) -> Tiny:
    torch.manual_seed(0)
    return kind(TinyBackbone())


def trained(method: Tiny, data, recipe: Recipe = RECIPE, precision: str = "fp32") -> list[dict[str, float]]:
    step = TrainStep(method, recipe, 8, make_fabric(precision, "cpu"))
    terms = [step(micro, 0.1 + i / (2 * len(data))) for i, micro in enumerate(data)]
    return [{name: loss.item() for name, loss in t.items()} for t in terms]


@pytest.mark.parametrize("decay_end", [None, 5.0])
def test_the_step_equals_a_loop_written_by_hand(decay_end: float | None) -> None:
    """clip_grad 0.05 so that clipping moves every step; a large eps, or Adam would magnify rounding."""
    changes = {"clip_grad": 0.05, "weight_decay": 0.3, "weight_decay_end": decay_end, "eps": 1e-3}
    recipe = RECIPE.model_copy(update=changes)
    ours, theirs, data = tiny(), tiny(), batches(5)
    losses = trained(ours, data, recipe)

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (theirs.card.mean, theirs.card.std))
    decayed = [m.weight for m in (theirs.encoder.blocks[0], theirs.decoder)] + [theirs.unused]
    plain = [m.bias for m in (theirs.encoder.blocks[0], theirs.decoder)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0}],
        betas=(0.9, 0.95),
        eps=1e-3,
    )
    for i, (batch,) in enumerate(data):
        progress = 0.1 + i / 10
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, 8, progress)
        if decay_end is not None:
            optimizer.param_groups[0]["weight_decay"] = 0.3 + 4.7 * (1 - math.cos(math.pi * progress)) / 2
        loss = theirs((batch.images / 255 - mean) / std, Step(progress, batch.keys)).total
        assert math.isclose(sum(losses[i].values()), loss.item(), rel_tol=1e-5)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*decayed, *plain], 0.05)
        optimizer.step()
        theirs.after_step(Step(progress, batch.keys))
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(ours.decoder.weight, tiny().decoder.weight)


@pytest.mark.parametrize("micro_batch", [3, 4])
def test_accumulated_micro_batches_equal_the_whole_batch(micro_batch: int) -> None:
    """Three do not divide eight: an image must weigh the same in a smaller micro-batch."""
    whole, parts = tiny(), tiny()
    recipe = RECIPE.model_copy(update={"eps": 1e-3})  # or Adam would magnify rounding
    at_once = trained(whole, batches(4), recipe)
    accumulated = trained(parts, batches(4, micro_batch=micro_batch), recipe)
    for a, b in zip(at_once, accumulated, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert parts.steps == 4  # after_step once an optimiser step
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)


def test_after_step_sees_the_keys_of_the_whole_step() -> None:
    method, given = tiny(), []
    method.after_step = given.append
    (micro,) = batches(1, micro_batch=3)
    trained(method, [micro])
    assert torch.equal(given[0].keys, torch.cat([b.keys for b in micro]))


def test_matrices_decay_and_nothing_else() -> None:
    class Some(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.norm = nn.LayerNorm(2)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
            self.mask_token = nn.Parameter(torch.zeros(1, 1, 2))
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 3, 2))
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.mask_token_projection = nn.Linear(2, 2, bias=False)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    some = Some()
    decayed, plain = parameter_groups(some, 0.1)
    names = {id(p): n for n, p in some.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["linear.weight", "mask_token_projection.weight"]
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert len(plain["params"]) == 7


def test_labels_reach_only_a_method_that_declares_them() -> None:
    data = batches(1)
    assert data[0][0].labels is not None
    for kind, expected in ((Tiny, False), (Labelled, True)):
        method = tiny(kind)
        method.log = True
        trained(method, data)
        assert (method.seen[0].labels is not None) is expected


@pytest.mark.parametrize("precision", native_precisions("cpu"))
def test_targets_are_not_made_of_rounded_pixels(precision: str) -> None:
    method = tiny()
    method.log = True
    trained(method, batches(1), precision=precision)
    images = method.images[0]
    assert images.dtype == torch.float32
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (method.card.mean, method.card.std))
    expected = (batches(1)[0][0].images / 255 - mean) / std
    torch.testing.assert_close(images, expected, rtol=1e-6, atol=1e-6)
    assert method.decoder.weight.dtype == torch.float32


def test_a_loaded_state_goes_on_as_if_nothing_had_happened() -> None:
    data = batches(6)
    whole, parts = stateful(), stateful()
    step = TrainStep(whole, RECIPE, 8, make_fabric("fp32", "cpu"))
    other = TrainStep(parts, RECIPE, 8, make_fabric("fp32", "cpu"))
    for i, micro in enumerate(data):
        if i == 3:
            other.load_state_dict(copy.deepcopy(step.state_dict()))
        torch.manual_seed(i)
        step(micro, i / 6)
        if i >= 3:
            torch.manual_seed(i)
            other(micro, i / 6)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name

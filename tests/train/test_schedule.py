"""Learning rates against closed forms and torch's own schedulers."""

from __future__ import annotations

import warnings

import pytest
import torch

from mimbench.recipes import SHARED_RECIPE, recipe_for
from mimbench.schedule import learning_rate, weight_decay
from mimbench.spec import Card, Recipe


def recipe(**changes) -> Recipe:
    return Recipe(**{"base_lr": 1e-3, "batch_size": 1024, "source": "test", **changes})


def test_cosine_equals_torchs_schedulers_step_by_step() -> None:
    steps, warm = 200, 40
    r = recipe(warmup=0.2, min_lr=1e-5, warmup_start_lr=1e-6)
    peak = r.lr(1024)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-6 / peak, 1.0, total_iters=warm)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warm, eta_min=1e-5)
    reference = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [warm])
    for step in range(steps):
        assert learning_rate(r, 1024, step / steps) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
            reference.step()


def test_weight_decay_grows_along_half_a_cosine() -> None:
    r = recipe(weight_decay=0.04, weight_decay_end=0.4)
    assert [weight_decay(r, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay(r, 0.25) == pytest.approx(0.04 + 0.36 * (1 - 0.5**0.5) / 2)
    assert {weight_decay(recipe(weight_decay=0.3), p) for p in (0.0, 0.7)} == {0.3}


def test_multistep_falls_tenfold_at_each_milestone() -> None:
    r = recipe(schedule="multistep", milestones=(0.5, 0.8), warmup=0.1, min_lr=1e-8)
    peak = r.lr(1024)
    for progress, factor in (
        (0.05, 0.5),
        (0.1, 1),
        (0.49, 1),
        (0.5, 0.1),
        (0.79, 0.1),
        (0.8, 0.01),
        (1.0, 0.01),
    ):
        assert learning_rate(r, 1024, progress) == pytest.approx(peak * factor)


def test_the_lowest_rate_scales_with_the_batch_like_the_peak() -> None:
    r = recipe(min_lr=1e-5)
    assert learning_rate(r, 1024, 1.0) == pytest.approx(1e-5)
    assert learning_rate(r, 256, 1.0) == pytest.approx(1e-5 / 4)
    assert learning_rate(r, 256, 0.05) / learning_rate(r, 1024, 0.05) == pytest.approx(1 / 4)


def test_without_warm_up_the_run_starts_at_the_peak() -> None:
    assert learning_rate(recipe(warmup=0), 256, 0.0) == pytest.approx(1e-3)


def test_a_tokenizer_and_an_untrained_method_keep_their_own_recipe() -> None:
    facts = {
        "key": "x",
        "name": "x",
        "paper": "x",
        "scheme": "none",
        "masking": "x",
        "target": "x",
        "architecture": "x",
        "objective": "x",
        "parity": "baseline",
    }
    own = recipe()
    assert recipe_for(Card(**facts, role="ceiling", recipe=own), "shared") is SHARED_RECIPE
    assert recipe_for(Card(**facts, role="ceiling", recipe=own), "paper") == own
    assert recipe_for(Card(**facts, role="tokenizer", recipe=own), "shared") == own
    assert recipe_for(Card(**facts, role="floor", recipe=None), "shared") is None

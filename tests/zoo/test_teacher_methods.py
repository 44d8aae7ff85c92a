"""What methods with a frozen teacher share, against brute force and closed forms."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from method_zoo.dbot import DBOT
from method_zoo.maskalign import MaskAlign
from method_zoo.parts.attention_masks import AttentionMask, weighted_order
from method_zoo.parts.targets import normalised_features
from method_zoo.parts.teachers import FrozenTeacher
from mimbench import registry, rng
from mimbench.checkpoint import load_weights, save_weights
from mimbench.encoder import Encoded
from mimbench.errors import UserError
from mimbench.method import Step
from mimbench.seeding import seeded_init
from mimbench.trainee import parameter_groups

from .build import TINY, batch, build, optimiser, train


def sample_keys(n: int) -> torch.Tensor:
    return torch.from_numpy(rng.sample_keys(3, 0, np.arange(n)))


def test_patches_are_drawn_in_proportion_to_their_weights() -> None:
    """Drawing without replacement one by one, in closed form: each order has a known probability."""
    weights = torch.tensor([0.5, 0.1, 0.3, 0.1])
    n = 40_000
    order = weighted_order(sample_keys(n), weights.expand(n, -1)).argsort(1)
    for first, second in itertools.permutations(range(4), 2):
        expected = float(weights[first] * weights[second] / (1 - weights[first]))
        found = ((order[:, 0] == first) & (order[:, 1] == second)).float().mean().item()
        assert found == pytest.approx(expected, abs=4 * (expected / n) ** 0.5)


def test_a_patch_without_weight_comes_last() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 1e-6, 2.0]).expand(200, -1)
    scores = weighted_order(sample_keys(200), weights)
    assert not scores.isnan().any()
    assert {frozenset(row) for row in scores.argsort(1)[:, :3].tolist()} == {frozenset({1, 3, 4})}


def test_a_weighted_draw_does_not_depend_on_the_batch_it_was_drawn_in() -> None:
    weights = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    whole = weighted_order(sample_keys(6), weights)
    assert torch.equal(whole[2:4], weighted_order(sample_keys(6)[2:4], weights[2:4]))
    assert not torch.equal(whole, weighted_order(sample_keys(6), weights, "another purpose"))


def test_teacher_features_are_normalised_one_by_one() -> None:
    features = torch.randn(2, 3, 5, dtype=torch.float64) * 4 + 1
    features[1, 2] = 0
    whitened, unit = (normalised_features(features, how) for how in ("whiten", "l2"))
    assert torch.equal(normalised_features(features, "none"), features)
    for b, n in itertools.product(range(2), range(3)):
        x = features[b, n].numpy()
        expected = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        np.testing.assert_allclose(whitened[b, n].numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(unit[b, n].numpy(), x / max(np.linalg.norm(x), 1e-12), rtol=1e-12)


def looked_at(attention: Tensor, cls: bool = True) -> Encoded:
    """What a teacher gives whose attention is ``attention`` [B, heads, 1 + N, 1 + N]."""
    batch, n = attention.shape[0], attention.shape[-1] - 1
    return Encoded(torch.zeros(batch, 8) if cls else None, torch.zeros(batch, n, 8), None, (), attention)


def test_patches_that_the_class_token_looks_at_stay_visible() -> None:
    """Not those that other tokens look at, nor by one head alone."""
    n, batch = 16, 500
    attention = torch.full((batch, 2, n + 1, n + 1), 1e-4)
    attention[:, 0, 0, 1 + 3] = attention[:, 1, 0, 1 + 9] = 1.0
    attention[:, :, 5, 1 + 7] = 1.0
    mask = AttentionMask(0.75)(sample_keys(batch), looked_at(attention))
    assert (mask.sum(1) == 12).all()
    hidden = mask.float().mean(0)
    assert hidden[3] < 0.02
    assert hidden[9] < 0.02
    assert hidden[[i for i in range(n) if i not in (3, 9)]].min() > 0.8


def test_attention_without_a_class_token_is_a_sentence() -> None:
    with pytest.raises(UserError, match="class token"):
        AttentionMask(0.5)(sample_keys(2), looked_at(torch.rand(2, 2, 5, 5), cls=False))


# Methods without official code, against their papers' formulas ----------------------------------------


def test_maskdistill_is_its_formula() -> None:
    """arXiv:2210.10615, eq. 1: smooth L1 to layer-normalised teacher features at masked positions alone."""
    method = build("maskdistill").double()
    images, step = batch(method, n=3)
    images = images.double()
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    features = torch.randn(3, 16, 32, dtype=torch.float64)
    predicted = method.head(method.encoder.encode(images, mask, fill="token").patches)
    total, count = 0.0, 0
    for b, n in mask.nonzero().tolist():
        x = features[b, n].numpy()
        target = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        for difference in np.abs(predicted[b, n].detach().numpy() - target):
            total += 0.5 * difference**2 if difference < 1 else difference - 0.5
            count += 1
    losses = method.losses(images, mask, features, step.keys)
    assert losses.total.item() == pytest.approx(total / count, rel=1e-12)


def test_uta_is_its_formula() -> None:
    """arXiv:2405.19009, eq. 3: cosine of visible tokens, the class token included, and the teacher's."""
    method = build("uta").double()
    images, step = batch(method, n=3)
    images, mask = images.double(), method.mask(step.keys)
    features, cls = torch.randn(3, 16, 32).double(), torch.randn(3, 32).double()
    encoded = method.encoder.encode(images, mask, fill="drop")
    cosines = []
    for b in range(3):
        pairs = [(encoded.cls[b], cls[b])]
        pairs += zip(encoded.patches[b], features[b][~mask[b]], strict=True)
        for token, target in pairs:
            p = method.head(token).detach()
            cosines.append(float(p @ target / (p.norm() * target.norm())))
    assert len(cosines) == 3 * (1 + 8)
    losses = method.losses(images, mask, features, cls, step.keys)
    assert losses.total.item() == pytest.approx(-np.mean(cosines), rel=1e-12)


def test_uta_shows_blocks_and_hides_what_is_left() -> None:
    """Visible patches lie together, more than random ones do; their count is exact."""
    keys, touching = sample_keys(300), {}
    for masking in ("inverse_block", "random"):
        visible = ~build("uta", masking=masking).mask(keys).view(-1, 4, 4)
        assert (visible.sum((1, 2)) == 8).all()
        pairs = (visible[:, 1:] & visible[:, :-1]).sum() + (visible[:, :, 1:] & visible[:, :, :-1]).sum()
        touching[masking] = pairs.item() / 300
    assert touching["random"] == pytest.approx(24 * (8 / 16) * (7 / 15), abs=0.3)
    assert touching["inverse_block"] > touching["random"] + 1


# dBOT's stages ----------------------------------------------------------------------------------------


def stage_weights(method: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.state_dict().items()}


def run(method: DBOT, steps: range, total: int, optimizer: torch.optim.Optimizer) -> None:
    images, step = batch(method)
    for i in steps:
        train(method, optimizer, images, Step(i / total, step.keys))


def test_the_student_becomes_the_teacher_and_starts_again() -> None:
    method = build("dbot")
    optimizer = optimiser(method)
    first = stage_weights(method)
    for name, value in method.encoder.named_parameters():
        assert torch.equal(value, first[f"previous.networks.encoder.{name}"])
    run(method, range(5), 10, optimizer)
    before = stage_weights(method)
    assert all(torch.equal(before[k], first[k]) for k in before if k.startswith("previous"))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}

    images, step = batch(method)
    losses = method(images, Step(0.5, step.keys))
    optimizer.zero_grad()
    losses.total.backward()
    optimizer.step()
    student = stage_weights(method)
    method.after_step(Step(0.5, step.keys))
    after = stage_weights(method)
    for name in dict(method.encoder.named_parameters()):
        assert torch.equal(after[f"previous.networks.encoder.{name}"], student[f"encoder.{name}"])
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert id(parameter) in held, "the optimiser lost a parameter"
            if parameter.ndim > 1:
                assert not torch.equal(after[name], student[name])
                assert not torch.equal(after[name], first[name]), "a new draw, not the first one again"
                if parameter.numel() > 500:
                    assert after[name].std().item() == pytest.approx(first[name].std().item(), rel=0.1)
            else:
                assert torch.equal(after[name], first[name])
    assert int(method.stage) == 1


def test_a_run_killed_at_any_stage_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = build("dbot", stages=3)
    optimizer = optimiser(whole)
    for i in range(9):
        save_weights(tmp_path / f"{i}.safetensors", whole, {})
        torch.save(optimizer.state_dict(), tmp_path / f"{i}.pt")
        run(whole, range(i, i + 1), 9, optimizer)
    assert int(whole.stage) == 2
    for i in (2, 3, 4, 8):
        resumed = build("dbot", stages=3)
        with torch.no_grad():
            resumed.seed.add_(1)  # as if another run's
        load_weights(resumed, tmp_path / f"{i}.safetensors")
        optimizer = optimiser(resumed)
        optimizer.load_state_dict(torch.load(tmp_path / f"{i}.pt"))
        run(resumed, range(i, 9), 9, optimizer)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_two_runs_of_other_seeds_start_their_stages_apart() -> None:
    methods = [build("dbot", seed=seed) for seed in (0, 0, 1)]
    for method in methods:
        method.after_step(Step(0.5, torch.zeros(1, dtype=torch.int64)))
    same, again, other = (m.encoder.blocks[0].attn.qkv.weight for m in methods)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def given_teacher(width: int) -> FrozenTeacher:
    with seeded_init(5):
        backbone = registry.build_backbone("vit_micro_patch4", 16, **{**TINY, "embed_dim": width})
    return FrozenTeacher(backbone, (0.5,) * 3, (0.5,) * 3, backbone.grid)


def student() -> nn.Module:
    with seeded_init(6):
        return registry.build_backbone("vit_micro_patch4", 16, **TINY)


def test_a_given_teacher_stays_unless_stages_are_asked_for() -> None:
    method = DBOT(student(), teacher=given_teacher(48))
    images, step = batch(method)
    seen = method.teacher.encode(method.plain(images), layers=(-1,)).layers[0]
    for progress in (0.0, 0.99):
        method.after_step(Step(progress, step.keys))
        patches, cls = method.features(images)
        assert torch.equal(patches, seen[1])
        assert torch.equal(cls, seen[0])
    assert math.isfinite(method(images, step).total.item())

    staged = DBOT(student(), teacher=given_teacher(32), stages=2)
    before = staged.features(images)[0]
    taken_over = staged.encoder.encode(images, layers=(-1,)).layers[0][1]
    staged.after_step(Step(0.5, step.keys))
    assert not torch.allclose(staged.features(images)[0], before)
    torch.testing.assert_close(staged.features(images)[0], taken_over)
    with pytest.raises(UserError, match="stages=1"):
        DBOT(student(), teacher=given_teacher(48), stages=2)


# MaskAlign's layers -----------------------------------------------------------------------------------


def test_a_deeper_teacher_s_blocks_are_matched_in_proportion() -> None:
    method = build("maskalign", fusion="simple")
    assert method.layer_weights.tolist() == [[1, 0], [0, 1]]
    teacher = given_teacher(32)
    teacher.depth = 5
    matched = MaskAlign(student(), teacher=teacher, fusion="simple").layer_weights.argmax(1)
    assert matched.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="5 blocks"):
        MaskAlign(student(), teacher=teacher, top_layers=6)


def test_only_the_last_blocks_are_aligned() -> None:
    """The loss of the last block alone, by hand, with the other block's target left out."""
    method = build("maskalign", top_layers=1, normalise="none", loss="l2").double()
    images, step = batch(method, n=2)
    images = images.double()
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)).argsort(1) < 11
    cls, patches = torch.randn(2, 32).double(), torch.randn(2, 16, 32).double()
    layers = method.encoder.encode(images, mask, layers=(-2, -1)).layers
    mixed = sum(
        w * torch.cat([c[:, None], x], 1) for w, (c, x) in zip(method.layer_weights[-1], layers, strict=True)
    )
    target = torch.cat([cls[:, None], patches[~mask].view(2, 5, 32)], 1)
    expected = (method.adaptors[0](mixed) - target).square().mean()
    found = method.losses(images, mask, [(cls, patches)], step.keys).total
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_decay_does_not_pull_a_mix_of_layers_to_zero() -> None:
    method = build("maskalign")
    _, undecayed = parameter_groups(method, 0.05)
    assert any(p is method.layer_weights for p in undecayed["params"])
    assert undecayed["weight_decay"] == 0

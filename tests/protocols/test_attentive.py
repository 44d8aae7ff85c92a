"""Attentive probes that are trained at once against each paper's module trained by itself."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from plain_pooling import MODULES, load, optimizer_of
from protocol_toys import Reports, ToyDataset, around, toy_encoder
from torch.nn import functional as F

from mimbench.errors import UserError
from mimbench.protocol import EvaluationFailed
from protocols.attentive import AttentiveProbe
from protocols.parts import tokens as tokens_module
from protocols.parts.attentive_heads import AttentiveHeads, Candidate, Group
from protocols.parts.course import Course
from protocols.parts.pooling import heads_of
from protocols.parts.processes import Team

WIDTH, CLASSES, BATCH, STEPS = 128, 5, 24, 12
LAYERS = (-1, -2)
COURSE = Course(STEPS, BATCH, (STEPS,), warmup=0.2)
TEAM = Team(None, toy_encoder(), together=False)


def batches(seed: int = 1, count: int = STEPS):
    """Tokens of two layers at different scales, and labels."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(CLASSES, (BATCH,), generator=draw)
        base = torch.randn(BATCH, 9, WIDTH, generator=draw) + labels[:, None, None] * 0.2
        yield {-1: base, -2: 3 * base.flip(2) + 1}, labels


def make(candidates, **options) -> AttentiveHeads:
    options = {"seed": 0, "optimizer": "adamw", "momentum": 0.9, "beta2": 0.95, "clip": 0.0} | options
    return AttentiveHeads(candidates, WIDTH, CLASSES, TEAM, **options)


def train(heads: AttentiveHeads) -> AttentiveHeads:
    for step, batch in enumerate(batches()):
        heads.learn([batch], BATCH, COURSE.factor(step))
    return heads


def all_kinds(lrs=(0.003, 0.02), decay=0.1) -> list[Candidate]:
    return [Candidate(p, layer, lr, decay) for p, layer, lr in product(MODULES, LAYERS, lrs)]


def fitted(heads: AttentiveHeads, i: int) -> Group:
    return Group.unpacked(heads.keep(i), TEAM.device)


def test_heads_are_those_of_the_papers_where_the_width_allows():
    assert [heads_of("capi", d) for d in (12, 96, 192, 768, 1024)] == [1, 1, 3, 12, 16]
    assert [heads_of("aim", d) for d in (768, 1024, 10)] == [12, 8, 10]
    assert [heads_of("ep", d) for d in (768, 192, 12)] == [32, 32, 12]


@pytest.mark.parametrize("pooling", MODULES)
def test_folded_attention_is_attention(pooling):
    """Logits of random parameters, none of them at its first value."""
    heads = make([Candidate(pooling, -1, 0.1, 0.0)])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for leaf in heads.groups[0].parameters.values():
            leaf.normal_(0.3, 0.3, generator=generator)
    ((tokens, _),) = batches(count=1)
    packed = heads.keep(0)
    module = load(pooling, packed["parameters"], heads_of(pooling, WIDTH)).eval()
    with torch.no_grad():
        ours, theirs = fitted(heads, 0).logits(tokens[-1])[0], module(tokens[-1])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert theirs.std() > 0.1


@pytest.mark.parametrize(
    ("optimizer", "clip"), [("adamw", 0.0), ("adamw", 0.05), ("sgd", 0.0), ("sgd", 0.05)]
)
def test_all_at_once_equals_each_papers_module_alone(optimizer, clip):
    # What CAE adds before its batch norm cancels there: Adam would make steps of the rounding.
    candidates = [c for c in all_kinds() if c.pooling != "cae" or optimizer == "sgd"]
    heads = make(candidates, optimizer=optimizer, clip=clip)
    starts = [heads.keep(i)["parameters"] for i in range(len(candidates))]
    train(heads)
    held_out = list(batches(seed=9, count=2))
    accuracy, loss = heads.score(held_out, 2 * BATCH)
    seen = set()
    for i, candidate in enumerate(candidates):
        module = load(candidate.pooling, starts[i], heads_of(candidate.pooling, WIDTH))
        made = optimizer_of(optimizer, module, candidate.lr, candidate.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(made, COURSE.factor)
        for tokens, labels in batches():
            made.zero_grad()
            F.cross_entropy(module(tokens[candidate.layer]), labels).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            made.step()
            schedule.step()
        module.eval()
        with torch.no_grad():
            theirs = torch.cat([module(tokens[candidate.layer]) for tokens, _ in held_out])
            ours = torch.cat([fitted(heads, i).logits(t[candidate.layer])[0] for t, _ in held_out])
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale, msg=str(candidate))
        labels = torch.cat([labels for _, labels in held_out])
        assert loss[i] == pytest.approx(F.cross_entropy(ours, labels).item(), rel=1e-4)
        assert accuracy[i] == (ours.argmax(1) == labels).double().mean().item()
        seen.add(round(loss[i], 4))
    assert len(seen) > 0.8 * len(candidates)  # they do differ


def test_candidates_do_not_touch_each_other_even_when_one_diverges():
    sound = all_kinds(lrs=(0.003,))
    wild = [dataclasses.replace(c, lr=1e30) for c in sound]
    together, alone = train(make([*wild, *sound])), train(make(sound))
    held_out = list(batches(seed=9, count=2))
    losses, expected = together.score(held_out, 2 * BATCH)[1], alone.score(held_out, 2 * BATCH)[1]
    np.testing.assert_allclose(losses[len(wild) :], expected, rtol=1e-3)
    assert not np.isfinite(losses[: len(wild)]).any()
    assert np.isnan(together.score(held_out, 2 * BATCH)[0][: len(wild)]).all()


def test_pieces_of_a_batch_add_up_to_it():
    candidates = [c for c in all_kinds() if c.pooling not in ("aim", "cae")]  # those see a batch as a whole
    whole, pieces = train(make(candidates)), make(candidates)
    for step, (tokens, labels) in enumerate(batches()):
        cut = [
            ({layer: x[rows] for layer, x in tokens.items()}, labels[rows])
            for rows in (slice(0, 10), slice(10, 17), slice(17, 24))
        ]
        pieces.learn(cut, BATCH, COURSE.factor(step))
    torch.testing.assert_close(pieces.weights, whole.weights, rtol=1e-3, atol=1e-4)
    assert make(all_kinds()).normed
    assert not whole.normed


QUICK = {"min_steps": 30, "epochs": 1, "lr": (0.01,), "pooling": ("capi",)}


def test_tokens_that_do_not_fit_into_memory_are_read_again(tmp_path, monkeypatch):
    def evaluate(**options):
        return AttentiveProbe(**{**QUICK, "checkpoints": 2, **options}).evaluate(
            toy_encoder(), ToyDataset(), around(tmp_path)
        )

    kept = evaluate()
    monkeypatch.setattr(tokens_module, "MEMORY", 0)
    monkeypatch.setattr(tokens_module, "IMAGES", 50)
    again = evaluate()
    np.testing.assert_allclose(
        [c["validation_top1"] for c in again.selection["candidates"]],
        [c["validation_top1"] for c in kept.selection["candidates"]],
        atol=0.04,
    )
    assert again.metrics["top1"] == pytest.approx(kept.metrics["top1"], abs=0.04)


def test_the_class_token_is_attended_to_only_where_asked_for_and_there(tmp_path):
    def evaluate(tokens, **options):
        probe = AttentiveProbe(**QUICK, tokens=tokens)
        found = probe.evaluate(toy_encoder(**options), ToyDataset(), around(tmp_path))
        return [c["validation_top1"] for c in found.selection["candidates"]]

    assert evaluate("patches") != evaluate("all")
    assert evaluate("patches", cls_token=False) == evaluate("all", cls_token=False)


def test_layers_that_are_the_same_fall_away_and_it_is_said(tmp_path):
    found = AttentiveProbe(**QUICK).evaluate(toy_encoder(depth=1), ToyDataset(), around(tmp_path))
    assert {c["layer"] for c in found.selection["candidates"]} == {1.0}
    assert found.selection["notes"] == ["layer 0.75 left out: at a depth of 1 another one equals it"]


def test_a_handful_of_images_is_enough_to_run(tmp_path):
    data = ToyDataset(sizes=(3, 2, 2), classes=2)
    found = AttentiveProbe(min_steps=3, pooling=tuple(MODULES)).evaluate(
        toy_encoder(), data, around(tmp_path)
    )
    assert found.outcomes.n == 2
    assert "top5" not in found.metrics


def test_if_everything_diverges_it_is_a_failure_and_not_a_number(tmp_path):
    with pytest.raises(EvaluationFailed, match="could be fitted"):
        AttentiveProbe(**{**QUICK, "lr": (1e38,)}).evaluate(toy_encoder(), ToyDataset(), around(tmp_path))


def test_an_unknown_pooling_is_refused():
    from mimbench import settings

    with pytest.raises(UserError, match=r"attentive\.pooling="):
        settings.parse_settings("attentive", AttentiveProbe, {"pooling": ["mean"]})


def test_progress_reaches_the_end(tmp_path):
    reports = Reports()
    AttentiveProbe(**QUICK).evaluate(toy_encoder(), ToyDataset(), around(tmp_path, report=reports))
    shares = [p.done for p in reports if p.stage == "training the probe"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

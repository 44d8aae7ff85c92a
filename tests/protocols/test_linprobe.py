"""The probe that trains all heads at once against one that trains each by itself."""

from __future__ import annotations

import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
from protocol_toys import Reports, ToyDataset, around, toy_encoder
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench import rng
from mimbench.errors import UserError
from mimbench.protocol import EvaluationFailed
from mimbench.selection import Scores, select
from mimbench.spec import Readout
from protocols.linprobe import LinearProbe
from protocols.parts.linear import BN_EPS, Head, LinearHeads, stream
from protocols.parts.readouts import readout_of

CLS, MEAN, BOTH = (Readout(token=t) for t in ("cls", "mean", "cls+mean"))
MIDDLE = Readout(token="mean", layer=-2)
READOUTS = (CLS, MEAN, BOTH, MIDDLE)
LRS = (0.005, 0.03, 0.2)  # beyond, momentum swings and magnifies any rounding
CLASSES, STEPS, BATCH = 5, 120, 32


def blobs(count: int, seed: int) -> tuple[dict[Readout, Tensor], Tensor]:
    """Features of different widths, means and scales, and labels they tell something of."""
    centres = np.random.default_rng(0)
    draw = np.random.default_rng(seed)
    labels = draw.integers(CLASSES, size=count)
    parts = {}
    for part, dim, scale, shift in ((CLS, 6, 0.3, 2.0), (MEAN, 9, 1.0, 0.0), (MIDDLE, 9, 2.0, -1.0)):
        middle = centres.normal(size=(CLASSES, dim))
        x = shift + scale * (middle[labels] + 1.3 * draw.normal(size=(count, dim)))
        parts[part] = torch.tensor(x, dtype=torch.float32)
    return parts, torch.tensor(labels)


class Naive(nn.Module):
    """One head, as everybody would write it: batch norm, linear layer, autograd, SGD, scheduler."""

    def __init__(self, head: Head, train: dict[Readout, Tensor]):
        super().__init__()
        self.parts = head.readout.parts
        x = self.joined(train)
        self.norm = nn.BatchNorm1d(x.shape[1], eps=BN_EPS, affine=False) if head.batch_norm else nn.Identity()
        if head.batch_norm:
            self.norm.running_mean.copy_(x.mean(0))
            self.norm.running_var.copy_(x.var(0, correction=0))
        self.linear = nn.Linear(x.shape[1], CLASSES)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.eval()  # batch norm by the statistics of train

    def joined(self, parts: dict[Readout, Tensor]) -> Tensor:
        return torch.cat([parts[part] for part in self.parts], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def fit_naively(head: Head, train: dict[Readout, Tensor], labels: Tensor, seed: int) -> Naive:
    model = Naive(head, train)
    x = model.joined(train)
    optimizer = torch.optim.SGD(model.parameters(), lr=head.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / STEPS))
    )
    order = np.concatenate([rng.permutation(seed, epoch, len(x)) for epoch in range(100)])
    for step in range(STEPS):
        batch = torch.from_numpy(order[step * BATCH : (step + 1) * BATCH])
        loss = F.cross_entropy(model(x[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def fit(heads: list[Head], train, labels, seed=3) -> LinearHeads:
    probe = LinearHeads(heads, train, labels, CLASSES)
    probe.fit(steps=STEPS, batch_size=BATCH, momentum=0.9, seed=seed)
    return probe


def test_all_at_once_equals_one_at_a_time():
    train, labels = blobs(150, seed=1)
    validation, validation_labels = blobs(200, seed=2)
    test, test_labels = blobs(200, seed=4)
    heads = [Head(*chosen) for chosen in product(READOUTS, LRS, (False, True))]
    probe = fit(heads, train, labels)
    scores, losses, hits = [], [], []
    for i, head in enumerate(heads):
        model = fit_naively(head, train, labels, seed=3)
        weight = torch.cat(list(probe.weights(i).values()), 1)
        torch.testing.assert_close(weight, model.linear.weight.detach(), rtol=2e-3, atol=2e-4, msg=str(head))
        torch.testing.assert_close(probe.bias(i), model.linear.bias.detach(), rtol=2e-3, atol=2e-4)
        with torch.no_grad():
            on_validation = model(model.joined(validation))
            scores.append((on_validation.argmax(1) == validation_labels).double().mean().item())
            losses.append(F.cross_entropy(on_validation, validation_labels).item())
            hits.append(model(model.joined(test)).argmax(1) == test_labels)
    ours = probe.score(validation, validation_labels)
    assert ours.accuracy == scores
    np.testing.assert_allclose(ours.loss, losses, rtol=1e-3)
    chosen = select(Scores(*ours))
    assert chosen == select(Scores(scores, losses))
    np.testing.assert_array_equal(probe.logits(chosen, test).argmax(1) == test_labels, hits[chosen])
    assert len({tuple(h.tolist()) for h in hits}) > 10  # the heads do differ


def test_heads_do_not_touch_each_other_even_when_one_diverges():
    train, labels = blobs(150, seed=1)
    sound = [Head(readout, 0.1, bn) for readout, bn in product(READOUTS, (False, True))]
    wild = [Head(readout, 1e38, bn) for readout, bn in product(READOUTS, (False, True))]
    together, alone = fit(sound + wild, train, labels), fit(sound, train, labels)
    for i in range(len(sound)):
        for a, b in zip(together.weights(i).values(), alone.weights(i).values(), strict=True):
            torch.testing.assert_close(a, b)  # another matrix shape may round otherwise
    accuracy = together.score(train, labels).accuracy
    assert not any(map(math.isnan, accuracy[: len(sound)]))
    assert all(map(math.isnan, accuracy[len(sound) :]))


def test_order_of_the_heads_does_not_matter():
    train, labels = blobs(150, seed=1)
    heads = [Head(*chosen) for chosen in product(READOUTS, LRS, (False, True))]
    shuffled = [heads[i] for i in np.random.default_rng(0).permutation(len(heads))]
    scores = dict(zip(heads, fit(heads, train, labels).score(train, labels).loss, strict=True))
    again = dict(zip(shuffled, fit(shuffled, train, labels).score(train, labels).loss, strict=True))
    assert again == pytest.approx(scores, rel=1e-4)


def test_every_epoch_visits_every_sample_once():
    seen = torch.cat(list(stream(seed=5, count=13, batch_size=4, steps=13))).view(4, 13)
    assert all(sorted(epoch.tolist()) == list(range(13)) for epoch in seen)
    assert len({tuple(epoch.tolist()) for epoch in seen}) == 4
    (batch,) = stream(seed=5, count=3, batch_size=10, steps=1)  # fewer samples than a batch
    assert np.bincount(batch).tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])


def test_probe_of_digits_comes_near_logistic_regression():
    x, y = load_digits(return_X_y=True)
    x, train = x.astype(np.float32), np.arange(len(x)) % 3 > 0
    peer = LogisticRegression(max_iter=2000).fit(StandardScaler().fit(x[train]).transform(x[train]), y[train])
    expected = peer.score(StandardScaler().fit(x[train]).transform(x[~train]), y[~train])
    labels = torch.from_numpy(y)
    probe = LinearHeads([Head(MEAN, 0.1, True)], {MEAN: torch.from_numpy(x[train])}, labels[train], 10)
    probe.fit(steps=1000, batch_size=256, momentum=0.9, seed=0)
    score = probe.score({MEAN: torch.from_numpy(x[~train])}, labels[~train])
    assert score.accuracy[0] == pytest.approx(expected, abs=0.01)


def test_scores_are_those_of_the_logits_in_any_block_size():
    train, labels = blobs(150, seed=1)
    probe = fit([Head(r, 0.5, bn) for r, bn in product(READOUTS, (False, True))], train, labels)
    score = probe.score(train, labels, block=64)
    for i in range(len(probe.heads)):
        logits = probe.logits(i, train)
        assert score.accuracy[i] == (logits.argmax(1) == labels).double().mean().item()
        np.testing.assert_array_equal(
            probe.ranks(i, train, labels, block=70),
            (logits.argsort(dim=1, descending=True, stable=True) == labels[:, None]).int().argmax(1),
        )
        assert score.loss[i] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "depth", "layer", "token"),
    [
        ("mean@0.75", 12, -4, "mean"),
        ("cls", 12, -1, "cls"),
        ("cls+mean@.5", 24, -13, "cls+mean"),
        ("mean@0.75", 1, -1, "mean"),
    ],
)
def test_depths_are_blocks_counted_from_the_end(text, depth, layer, token):
    assert readout_of(text, depth, "linprobe") == Readout(layer=layer, token=token)


@pytest.mark.parametrize("text", ["max", "mean@", "mean@0", "mean@2", "mean@-1", "cls+", "mean+cls", ""])
def test_a_misspelt_readout_is_refused_before_any_work(text):
    with pytest.raises(UserError, match="is not a readout"):
        LinearProbe(readouts=(text,)).check(ToyDataset())


def test_what_a_backbone_lacks_falls_away_and_it_is_said(tmp_path):
    found = LinearProbe(min_steps=5, epochs=0.1).evaluate(
        toy_encoder(cls_token=False, depth=1), ToyDataset(), around(tmp_path)
    )
    assert {c["readout"] for c in found.selection["candidates"]} == {"mean"}
    assert len(found.selection["notes"]) == 3
    with pytest.raises(UserError, match="class token"):
        LinearProbe(readouts=("cls",)).evaluate(toy_encoder(cls_token=False), ToyDataset(), around(tmp_path))


def test_if_everything_diverges_it_is_a_failure_and_not_a_number(tmp_path):
    with pytest.raises(EvaluationFailed, match="could be fitted"):
        LinearProbe(lr=(1e38,), min_steps=200).evaluate(toy_encoder(), ToyDataset(), around(tmp_path))


@pytest.mark.parametrize(("classes", "has"), [(5, False), (6, True)])
def test_top5_is_given_where_it_says_something(tmp_path, classes, has):
    data = ToyDataset(classes=classes)
    found = LinearProbe(min_steps=20, epochs=1).evaluate(toy_encoder(), data, around(tmp_path))
    assert ("top5" in found.metrics) == has
    assert found.metrics["top1"] == found.outcomes.hits.mean()
    assert found.metrics.get("top5", 1) >= found.metrics["top1"]


def test_a_handful_of_images_is_enough_to_run(tmp_path):
    data = ToyDataset(sizes=(3, 2, 2), classes=2)
    found = LinearProbe(min_steps=20).evaluate(toy_encoder(), data, around(tmp_path))
    assert found.outcomes.n == 2


def test_progress_reaches_the_end(tmp_path):
    reports = Reports()
    probe = LinearProbe(min_steps=100, epochs=0.1)
    probe.evaluate(toy_encoder(), ToyDataset(), around(tmp_path, report=reports))
    shares = [p.done for p in reports if p.stage == "training the probe"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_metrics_are_those_of_the_chosen_head(tmp_path):
    encoder, data = toy_encoder(), ToyDataset(noise=60)
    found = LinearProbe(min_steps=300, epochs=1).evaluate(encoder, data, around(tmp_path))
    chosen = found.selection["candidates"][found.selection["chosen"]]
    assert found.metrics["validation_top1"] == chosen["validation_top1"]
    assert chosen["validation_top1"] == max(c["validation_top1"] for c in found.selection["candidates"])
    alone = LinearProbe(
        min_steps=300,
        epochs=1,
        lr=(chosen["lr"],),
        readouts=(chosen["readout"],),
        batch_norm=(chosen["batch_norm"],),
    ).evaluate(encoder, copy.copy(data), around(tmp_path))
    np.testing.assert_array_equal(alone.outcomes.hits, found.outcomes.hits)
    assert alone.metrics == pytest.approx(found.metrics)

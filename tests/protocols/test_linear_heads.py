"""The probe that trains all heads at once against one that trains each by itself."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench import rng, torchvision_compat  # noqa: F401, before timm
from mimbench.selection import Scores, select
from mimbench.spec import Readout
from protocols.parts.batches import at_hand, stream
from protocols.parts.course import Course, lay_out
from protocols.parts.fitted import BN_EPS, Head, exact_standards
from protocols.parts.linear import LinearHeads

CLS, MEAN, MIDDLE = Readout(token="cls"), Readout(token="mean"), Readout(token="mean", layer=-2)
READOUTS = ((CLS,), (MEAN,), (CLS, MEAN), (MIDDLE,), (CLS, MIDDLE))
LRS = (0.005, 0.03, 0.2)  # beyond, momentum swings and magnifies any rounding
CLASSES, STEPS, BATCH = 5, 120, 32
COURSE = Course(STEPS, BATCH, (STEPS,), warmup=0.1)


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
    """One head, as everybody would write it: batch norm, linear layer, autograd, optimiser, scheduler."""

    def __init__(self, head: Head, train: dict[Readout, Tensor], running: bool = False):
        super().__init__()
        self.parts = head.parts
        x = self.joined(train)
        self.norm = nn.BatchNorm1d(x.shape[1], eps=BN_EPS, affine=False) if head.batch_norm else nn.Identity()
        self.linear = nn.Linear(x.shape[1], CLASSES)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if head.batch_norm and not running:
            self.norm.running_mean.copy_(x.mean(0))
            self.norm.running_var.copy_(x.var(0, correction=0))
            self.norm.eval()  # by the statistics of train

    def joined(self, parts: dict[Readout, Tensor]) -> Tensor:
        return torch.cat([parts[part] for part in self.parts], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def optimizer_of(name: str, model: nn.Module, head: Head) -> torch.optim.Optimizer:
    weight, bias = model.linear.weight, model.linear.bias
    groups = [
        {"params": [weight], "weight_decay": head.weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=head.lr, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=head.lr, betas=(0.9, 0.95))
    from timm.optim import Lars

    groups[0]["always_adapt"] = True  # timm adapts only what decays; MoCo v3 whatever is no bias
    return Lars(groups, lr=head.lr, momentum=0.9, trust_coeff=0.001, eps=0.0)


def fit_naively(
    head: Head, train: dict[Readout, Tensor], labels: Tensor, seed: int, *, optimizer="sgd", start=None
) -> Naive:
    model = Naive(head, train, running=start is not None)
    if start is not None:
        model.linear.weight.data.copy_(start)
    x = model.joined(train)
    made = optimizer_of(optimizer, model, head)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, COURSE.factor)
    order = np.concatenate([rng.permutation(seed, epoch, len(x)) for epoch in range(100)])
    for step in range(STEPS):
        batch = torch.from_numpy(order[step * BATCH : (step + 1) * BATCH])
        loss = F.cross_entropy(model(x[batch]), labels[batch])
        made.zero_grad()
        loss.backward()
        made.step()
        schedule.step()
    return model.eval()


def fit(heads: list[Head], train, labels, seed=3, **options) -> LinearHeads:
    widths = {part: x.shape[1] for part, x in train.items()}
    options.setdefault("standards", exact_standards(heads, train))
    probe = LinearHeads(heads, widths, CLASSES, **options)
    for step, batch in enumerate(at_hand(train, labels, seed, COURSE)(0, STEPS)):
        probe.learn(*batch, BATCH, COURSE.factor(step))
    return probe


def same_head(probe: LinearHeads, i: int, model: Naive, **tolerance) -> None:
    tolerance = tolerance or {"rtol": 2e-3, "atol": 2e-4}
    fitted = probe.fitted(i)
    weight = torch.cat(list(fitted.weights.values()), 1)
    torch.testing.assert_close(weight, model.linear.weight.detach(), **tolerance)
    torch.testing.assert_close(fitted.bias, model.linear.bias.detach(), **tolerance)


def test_all_at_once_equals_one_at_a_time():
    train, labels = blobs(150, seed=1)
    validation, validation_labels = blobs(200, seed=2)
    test, test_labels = blobs(200, seed=4)
    heads = [Head(*chosen) for chosen in product(READOUTS, LRS, (False, True))]
    probe = fit(heads, train, labels)
    scores, losses, hits = [], [], []
    for i, head in enumerate(heads):
        model = fit_naively(head, train, labels, seed=3)
        same_head(probe, i, model)
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
    fitted = probe.fitted(chosen)
    np.testing.assert_array_equal(fitted.logits(test).argmax(1) == test_labels, hits[chosen])
    np.testing.assert_array_equal(fitted.ranks(test, test_labels) == 0, hits[chosen])
    assert len({tuple(h.tolist()) for h in hits}) > 10  # the heads do differ


@pytest.mark.parametrize(
    ("optimizer", "lr", "decay"),
    [("sgd", 0.05, 0.01), ("adamw", 0.003, 0.05), ("lars", 5.0, 0.0)],
)
def test_optimisers_and_running_batch_norm_are_those_of_torch_and_timm(optimizer, lr, decay):
    train, labels = blobs(150, seed=1)
    validation, validation_labels = blobs(200, seed=2)
    heads = [Head(parts, lr, norm, decay) for parts, norm in product(READOUTS, (False, True))]
    options = {"optimizer": optimizer, "beta2": 0.95, "init_std": 0.1, "standards": None}
    begun = LinearHeads(heads, {p: x.shape[1] for p, x in train.items()}, CLASSES, **options)
    starts = [torch.cat(list(begun.fitted(i).weights.values()), 1) for i in range(len(heads))]
    assert all(start.std() > 0.05 for start in starts)
    probe = fit(heads, train, labels, **options)
    scores = probe.score(validation, validation_labels)
    for i, head in enumerate(heads):
        model = fit_naively(head, train, labels, seed=3, optimizer=optimizer, start=starts[i])
        same_head(probe, i, model, rtol=5e-3, atol=5e-4)
        with torch.no_grad():
            loss = F.cross_entropy(model(model.joined(validation)), validation_labels).item()
        assert scores.loss[i] == pytest.approx(loss, rel=2e-3)


def test_lars_with_weight_decay_is_moco_v3s():
    """mu = 0.9 mu + q (g + decay w), q = 0.001 |w| / |g + decay w| for matrices, 1 for biases; w -= lr mu."""
    train, labels = blobs(150, seed=1)
    head = Head((CLS, MEAN), 5.0, False, 0.1)
    options = {"optimizer": "lars", "init_std": 0.1}
    begun = LinearHeads([head], {p: x.shape[1] for p, x in train.items()}, CLASSES, **options).fitted(0)
    w, b = torch.cat(list(begun.weights.values()), 1), begun.bias
    mu_w, mu_b = torch.zeros_like(w), torch.zeros_like(b)
    for step, (batch, label) in enumerate(at_hand(train, labels, 3, COURSE)(0, STEPS)):
        x = torch.cat([batch[CLS], batch[MEAN]], 1)
        error = (torch.softmax(x @ w.T + b, 1) - F.one_hot(label, CLASSES)) / BATCH
        update = error.T @ x + 0.1 * w
        mu_w = 0.9 * mu_w + update * 0.001 * w.norm() / update.norm()
        mu_b = 0.9 * mu_b + error.sum(0)
        w, b = w - 5.0 * COURSE.factor(step) * mu_w, b - 5.0 * COURSE.factor(step) * mu_b
    fitted = fit([head, Head((CLS,), 1.0, False)], train, labels, **options).fitted(0)
    torch.testing.assert_close(torch.cat(list(fitted.weights.values()), 1), w, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fitted.bias, b, rtol=1e-3, atol=1e-4)


def test_pieces_of_a_batch_add_up_to_it(monkeypatch):
    train, labels = blobs(150, seed=1)
    heads = [Head(parts, 0.1, norm) for parts, norm in product(READOUTS, (False, True))]
    whole = fit(heads, train, labels, standards=None)
    monkeypatch.setattr("protocols.parts.linear.LOGITS", 7 * CLASSES * len(heads))
    pieces = fit(heads, train, labels, standards=None)
    assert len(pieces._buffers) == 2  # of 7 and of the 4 that are left
    for i in range(len(heads)):
        for a, b in zip(whole.fitted(i).weights.values(), pieces.fitted(i).weights.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_heads_do_not_touch_each_other_even_when_one_diverges():
    train, labels = blobs(150, seed=1)
    sound = [Head(readout, 0.1, bn) for readout, bn in product(READOUTS, (False, True))]
    wild = [Head(readout, 1e38, bn) for readout, bn in product(READOUTS, (False, True))]
    together, alone = fit(sound + wild, train, labels), fit(sound, train, labels)
    for i in range(len(sound)):
        for a, b in zip(together.fitted(i).weights.values(), alone.fitted(i).weights.values(), strict=True):
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
    late = list(stream(seed=5, count=13, batch_size=4, steps=13, start=9))
    assert torch.equal(torch.cat(late), seen.flatten()[36:])  # going on where it was stopped
    (batch,) = stream(seed=5, count=3, batch_size=10, steps=1)  # fewer samples than a batch
    assert np.bincount(batch).tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])


def test_probe_of_digits_comes_near_logistic_regression():
    x, y = load_digits(return_X_y=True)
    x, train = x.astype(np.float32), np.arange(len(x)) % 3 > 0
    peer = LogisticRegression(max_iter=2000).fit(StandardScaler().fit(x[train]).transform(x[train]), y[train])
    expected = peer.score(StandardScaler().fit(x[train]).transform(x[~train]), y[~train])
    labels = torch.from_numpy(y)
    features, heads = {MEAN: torch.from_numpy(x[train])}, [Head((MEAN,), 0.1, True)]
    probe = LinearHeads(heads, {MEAN: 64}, 10, standards=exact_standards(heads, features))
    course = lay_out(len(x[train]), epochs=1, min_steps=1000, batch_size=256)
    for step, batch in enumerate(at_hand(features, labels[train], 0, course)(0, course.steps)):
        probe.learn(*batch, 256, course.factor(step))
    score = probe.score({MEAN: torch.from_numpy(x[~train])}, labels[~train])
    assert score.accuracy[0] == pytest.approx(expected, abs=0.01)


def test_scores_are_those_of_the_logits_in_any_block_size():
    train, labels = blobs(150, seed=1)
    probe = fit([Head(r, 0.5, bn) for r, bn in product(READOUTS, (False, True))], train, labels)
    score = probe.score(train, labels, block=64)
    for i in range(len(probe.heads)):
        logits = probe.fitted(i).logits(train)
        assert score.accuracy[i] == (logits.argmax(1) == labels).double().mean().item()
        np.testing.assert_array_equal(
            probe.fitted(i).ranks(train, labels, block=70),
            (logits.argsort(dim=1, descending=True, stable=True) == labels[:, None]).int().argmax(1),
        )
        assert score.loss[i] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)

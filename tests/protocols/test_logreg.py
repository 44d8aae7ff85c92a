"""Logistic regression against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from protocol_toys import Reports, ToyDataset, around, toy_encoder
from sklearn.linear_model import LogisticRegression as Peer
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from mimbench.errors import UserError
from mimbench.spec import Readout
from protocols.logreg import LogisticRegression
from protocols.parts import logistic
from protocols.parts.frozen import standard
from protocols.parts.logistic import Fit, Regression, Samples, judge, ranks


def blobs(count: int, classes: int, seed: int = 0, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes; features of scales from 0.05 to 20, far from zero, one of them constant."""
    fixed, draw = np.random.default_rng(9), np.random.default_rng(seed)
    centres, scale, shift = fixed.normal(size=(classes, dim)), fixed.normal(size=dim), fixed.normal(size=dim)
    labels = draw.integers(classes, size=count)
    x = (0.4 * centres[labels] + draw.normal(size=(count, dim))) * np.exp(1.3 * scale) + 5 * shift
    x[:, 3] = 2.0
    return x.astype(np.float32), labels


def samples(x: np.ndarray, y: np.ndarray, *cuts: int) -> Samples:
    parts = torch.from_numpy(x).split([*cuts, x.shape[1] - sum(cuts)], 1) if cuts else (torch.from_numpy(x),)
    return Samples(tuple(part.contiguous() for part in parts), torch.from_numpy(y))


def regression(given: Samples, classes: int, scaled: bool = True) -> Regression:
    return Regression([given], classes, [standard(part) for part in given.parts], scaled)


def fit(model: Regression, C: float, start: Fit | None = None, tolerance: float = 1e-5) -> Fit:
    return model.fit(C, start, tolerance=tolerance, max_iterations=2000)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("C", [1e-4, 0.03, 10.0])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_coefficients_are_scikit_learns(monkeypatch, classes, C, scaled, exact):
    """The same objective and the same C, binary problems included, or a published C means something else."""
    monkeypatch.setattr(logistic, "EXACT", logistic.EXACT if exact else 0)
    x, y = blobs(300, classes)
    model = regression(samples(x, y), classes, scaled)
    found = fit(model, C)
    weight = found.weight if scaled else model.coefficients(found)[0]
    # scikit-learn's own L-BFGS stops far from the optimum where features differ in scale
    peer = Peer(C=C, tol=1e-10, max_iter=500, solver="lbfgs" if scaled else "newton-cholesky")
    peer.fit(StandardScaler().fit_transform(x.astype(float)) if scaled else x.astype(float), y)
    weight = weight[1:] - weight[:1] if classes == 2 else weight
    assert np.abs(weight - peer.coef_).max() < 2e-4 * np.abs(peer.coef_).max()
    held, held_y = blobs(100, classes, seed=1)
    logits = torch.cat(list(model.logits(found, samples(held, held_y).parts))).softmax(1).log()
    scaler = StandardScaler().fit(x.astype(float))
    expected = peer.predict_log_proba(scaler.transform(held) if scaled else held.astype(float))
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3)


def test_accuracy_and_loss_are_scikit_learns():
    (x, y), (held, held_y) = blobs(300, 5), blobs(150, 5, seed=1)
    given, held_out = samples(x, y), samples(held, held_y)
    model = regression(given, 5)
    found = fit(model, 0.1)
    scaler = StandardScaler().fit(x)
    peer = Peer(C=0.1, tol=1e-8, max_iter=1000).fit(scaler.transform(x), y)
    proba = peer.predict_proba(scaler.transform(held))
    judged = judge(model, found, held_out)
    assert judged.accuracy == peer.score(scaler.transform(held), held_y)
    assert judged.loss == pytest.approx(log_loss(held_y, proba), rel=1e-4)
    order = (-proba).argsort(1, kind="stable")
    np.testing.assert_array_equal(ranks(model, found, held_out), (order == held_y[:, None]).argmax(1))


def test_neither_blocks_nor_parts_nor_splits_change_the_optimum(monkeypatch):
    x, y = blobs(300, 4)
    whole = regression(samples(x, y), 4)
    expected = whole.coefficients(fit(whole, 1.0))
    monkeypatch.setattr(logistic, "BLOCK", 12 * 37)  # the last block is a short one
    monkeypatch.setattr(logistic, "KEPT", 0)
    first, second = samples(x[:110], y[:110], 5), samples(x[110:], y[110:], 5)
    standards = [standard(part) for part in samples(x, y, 5).parts]
    model = Regression([first, second], 4, standards, True)
    for ours, theirs in zip(model.coefficients(fit(model, 1.0)), expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_a_warm_start_finds_the_same_optimum_sooner():
    x, y = blobs(300, 4)
    model = regression(samples(x, y), 4)
    cold = fit(model, 1.0, tolerance=1e-3)
    warm = fit(model, 1.0, start=fit(model, 0.7), tolerance=1e-3)
    assert warm.converged
    assert warm.iterations < cold.iterations
    assert np.abs(warm.weight - cold.weight).max() < 2e-2 * np.abs(cold.weight).max()


def test_labels_that_features_say_nothing_of_are_an_optimum_at_once():
    x, y = np.tile(blobs(30, 2)[0], (2, 1)), np.repeat([0, 1], 30)
    found = fit(regression(samples(x, y), 2), 1.0, tolerance=1e-3)
    assert np.abs(found.weight).max() < 1e-5
    assert judge(regression(samples(x, y), 2), found, samples(x, y)).accuracy == 0.5


def features(split, token: str) -> np.ndarray:
    readout = Readout(token=token)
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    return toy_encoder().readouts(images, [readout])[readout].double().numpy()


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_whole_protocol_is_what_scikit_learn_makes_of_it(tmp_path, classes, scaled):
    """Chosen by validation, then fitted to train and validation together with that C."""
    data = ToyDataset(classes=classes, noise=90)
    protocol = LogisticRegression(
        C=(1e-3, 10), grid=5, readouts=("mean",), standardised=(scaled,), tolerance=1e-5
    )
    found = protocol.evaluate(toy_encoder(), data, around(tmp_path))
    train, validation, test = (features(s, "mean") for s in (data.train, data.validation, data.test))
    if scaled:
        scaler = StandardScaler().fit(train)
        train, validation, test = map(scaler.transform, (train, validation, test))
    scores = []
    for C in np.geomspace(1e-3, 10, 5):
        peer = Peer(C=C, tol=1e-9, max_iter=5000).fit(train, data.train.labels)
        scores.append(peer.score(validation, data.validation.labels))
    assert [c["validation_top1"] for c in found.selection["candidates"]] == pytest.approx(scores)
    C = found.selection["candidates"][found.selection["chosen"]]["C"]
    both = np.concatenate([train, validation]), np.concatenate([data.train.labels, data.validation.labels])
    peer = Peer(C=C, tol=1e-9, max_iter=5000).fit(*both)
    np.testing.assert_array_equal(found.outcomes.hits, peer.predict(test) == data.test.labels)


def test_fits_that_stop_short_are_said_to(tmp_path):
    protocol = LogisticRegression(C=(0.1, 10), grid=3, readouts=("cls", "mean"), max_iterations=1)
    notes = protocol.evaluate(toy_encoder(), ToyDataset(), around(tmp_path)).selection["notes"]
    assert [note.partition(":")[0] for note in notes[:2]] == ["readout cls", "readout mean"]
    assert "3 of 3 optima, from C = 0.1 to 10," in notes[0]
    assert notes[2].startswith("the fit that was tested stopped after 1 iterations")


@pytest.mark.parametrize("wrong", [{"C": (1.0, 0.1)}, {"C": (1.0, 1.0)}, {"grid": 1}, {"readouts": ("max",)}])
def test_what_cannot_be_fitted_is_refused_before_any_work(wrong):
    with pytest.raises(UserError, match=r"logreg\.(C|readouts)"):
        LogisticRegression(**wrong).check(ToyDataset())


def test_a_single_penalty_is_one_candidate(tmp_path):
    reports = Reports()
    protocol = LogisticRegression(C=(1.0, 1.0), grid=1, readouts=("output",))
    found = protocol.evaluate(toy_encoder(cls_token=False), ToyDataset(), around(tmp_path, report=reports))
    assert [c["C"] for c in found.selection["candidates"]] == [1.0]
    assert any(progress.stage == "fitting regressions" for progress in reports)

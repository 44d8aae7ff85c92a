"""Retrieval against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from protocol_toys import ToyDataset, around, toy_encoder
from sklearn.metrics import average_precision_score

from mimbench.errors import UserError
from mimbench.protocol import EvaluationFailed
from mimbench.spec import Readout
from protocols import retrieval
from protocols.parts import ranking
from protocols.parts.neighbours import unit
from protocols.parts.ranking import rank
from protocols.retrieval import Retrieval


def blobs(
    count: int = 120, classes: int = 7, dim: int = 6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(classes, size=count)
    x = draw.normal(size=(classes, dim))[labels] + draw.normal(size=(count, dim))
    return unit(torch.tensor(x, dtype=torch.float32)), torch.tensor(labels)


def brute_force(features: torch.Tensor, labels: torch.Tensor, ks=(1, 5, 10)) -> tuple[np.ndarray, np.ndarray]:
    """Query by query: scikit-learn's average precision, and whether the first k hold one of the class."""
    similarity, labels = (features @ features.T).numpy(), labels.numpy()
    precision, found = [], []
    for i in range(len(labels)):
        others = np.arange(len(labels)) != i
        relevant, score = labels[others] == labels[i], similarity[i][others]
        precision.append(average_precision_score(relevant, score) if relevant.any() else 0.0)
        order = np.argsort(-score, kind="stable")
        found.append([relevant[order[:k]].any() for k in ks])
    return np.array(precision), np.array(found).T


def test_every_query_scores_as_in_scikit_learn():
    features, labels = blobs()
    found = rank(features, labels, torch.arange(120), (1, 5, 10))
    precision, hits = brute_force(features, labels)
    np.testing.assert_allclose(found.average_precision, precision, rtol=1e-12)
    np.testing.assert_array_equal(found.found, hits)


def test_equally_similar_images_are_retrieved_together_whatever_their_order():
    """A collapsed encoder must not gain from the order of the files: its precision is the class's share."""
    directions = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 0, 1, 2, 2, 0, 1, 0])]
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1])
    precision, hits = brute_force(directions, labels)
    found = rank(directions, labels, torch.arange(12), (1, 5, 10))
    np.testing.assert_allclose(found.average_precision, precision, rtol=1e-12)
    np.testing.assert_array_equal(found.found, hits)
    same = rank(torch.ones(12, 1), labels, torch.arange(12), (1,))
    np.testing.assert_allclose(same.average_precision, np.full(12, 5 / 11))


def test_blocks_change_nothing(monkeypatch):
    features, labels = blobs(seed=1)
    whole = rank(features, labels, torch.arange(120), (1, 5))
    monkeypatch.setattr(ranking, "BLOCK", 120 * 7)
    for ours, theirs in zip(rank(features, labels, torch.arange(120), (1, 5)), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_image_alone_in_its_class_finds_nothing_and_is_counted(tmp_path):
    data = ToyDataset(sizes=(120, 60, 81))
    data.test.labels = np.where(np.arange(81) == 80, 5, np.arange(81) % 5)
    found = Retrieval().evaluate(toy_encoder(), data, around(tmp_path))
    assert found.outcomes.values[80] == 0
    assert (found.outcomes.values[:80] > 0).all()
    assert found.facts == {"alone_in_class": 1}


@pytest.mark.parametrize("normalisation", ["standardised", "raw", "final"])
@pytest.mark.parametrize("token", ["cls", "mean"])
def test_variants_are_what_they_are_called(tmp_path, normalisation, token):
    encoder, data = toy_encoder(), ToyDataset()
    found = Retrieval(normalisations=(normalisation,), tokens=(token,)).evaluate(
        encoder, data, around(tmp_path)
    )
    readout = Readout(token=token, norm="final" if normalisation == "final" else "raw")
    train, test = (
        encoder.readouts(torch.from_numpy(split.images).permute(0, 3, 1, 2), [readout])[readout].double()
        for split in (data.train, data.test)
    )
    if normalisation == "standardised":
        test = (test - train.mean(0)) / train.std(0, correction=0)
    precision, hits = brute_force(unit(test), torch.from_numpy(data.test.labels))
    np.testing.assert_allclose(found.outcomes.values, precision, atol=1e-4)
    assert found.metrics["mAP"] == pytest.approx(precision.mean(), abs=1e-5)
    assert [found.metrics[f"recall{k}"] for k in (1, 5, 10)] == pytest.approx(hits.mean(1), abs=0.02)


def test_choosing_asks_a_part_of_a_large_validation_split(tmp_path, monkeypatch):
    everything = Retrieval().evaluate(toy_encoder(), ToyDataset(), around(tmp_path)).selection
    monkeypatch.setattr(retrieval, "QUERIES", 7)
    part = Retrieval().evaluate(toy_encoder(), ToyDataset(), around(tmp_path)).selection
    assert part["candidates"] != everything["candidates"]


def test_single_images_of_each_class_are_refused(tmp_path):
    with pytest.raises(UserError, match="two validation images"):
        Retrieval().check(ToyDataset(sizes=(60, 6, 60)))
    with pytest.raises(EvaluationFailed, match="no two test images"):
        Retrieval().evaluate(toy_encoder(), ToyDataset(sizes=(60, 12, 6)), around(tmp_path))

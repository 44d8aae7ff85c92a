"""k-NN against brute force and scikit-learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from protocol_toys import ToyDataset, around, toy_encoder
from sklearn.neighbors import KNeighborsClassifier

from mimbench.errors import UserError
from mimbench.spec import Readout
from protocols.knn import KNN
from protocols.parts import neighbours
from protocols.parts.frozen import standard
from protocols.parts.neighbours import nearest, unit, vote

KS, T = (1, 5, 20, 50), 0.07


def features(seed: int = 0, sizes: tuple[int, int] = (400, 90), dim: int = 16, classes: int = 7):
    """Bank, its labels, queries, their labels: a blob per class, overlapping."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(classes, dim))
    labels = [draw.integers(classes, size=n) for n in sizes]
    bank, queries = (centres[y] + 1.2 * draw.normal(size=(len(y), dim)) for y in labels)
    return (
        torch.tensor(a) for a in (bank.astype(np.float32), labels[0], queries.astype(np.float32), labels[1])
    )


def predictions(bank, bank_labels, queries, labels, classes=7, ks=KS, t=T) -> np.ndarray:
    said = [
        vote(found, bank_labels, labels[rows], classes, ks, t).prediction
        for rows, found in nearest(unit(queries), unit(bank), ks[-1])
    ]
    return torch.cat(said, 1).numpy()


def brute_force(bank, bank_labels, queries, k: int, t: float, classes: int) -> np.ndarray:
    bank, queries = (x.double().numpy() for x in (bank, queries))
    out = []
    for query in queries:
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        order = np.argsort(-cosine, kind="stable")[:k]
        votes = np.zeros(classes)
        for i in order:
            votes[bank_labels[i]] += np.exp(cosine[i] / t)
        out.append(votes.argmax())
    return np.array(out)


def test_votes_equal_brute_force():
    bank, bank_labels, queries, labels = features()
    found = predictions(bank, bank_labels, queries, labels)
    for row, k in zip(found, KS, strict=True):
        np.testing.assert_array_equal(row, brute_force(bank, bank_labels, queries, k, T, 7))


def test_votes_equal_scikit_learn():
    bank, bank_labels, queries, labels = features(seed=3)
    found = predictions(bank, bank_labels, queries, labels)
    for row, k in zip(found, KS, strict=True):
        peer = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / T))
        np.testing.assert_array_equal(
            row, peer.fit(bank.numpy(), bank_labels.numpy()).predict(queries.numpy())
        )


def test_blocks_change_nothing(monkeypatch):
    bank, bank_labels, queries, labels = features(seed=1)
    whole = predictions(bank, bank_labels, queries, labels)
    ((_, all_at_once),) = nearest(unit(queries), unit(bank), 50)
    monkeypatch.setattr(neighbours, "BANK_BLOCK", 64)  # the last block of 400 has 16, fewer than k
    monkeypatch.setattr(neighbours, "BLOCK", 64 * 17)
    blocks = list(nearest(unit(queries), unit(bank), 50))
    assert [rows.stop - rows.start for rows, _ in blocks] == [17] * 5 + [5]
    torch.testing.assert_close(torch.cat([b.similarity for _, b in blocks]), all_at_once.similarity)
    np.testing.assert_array_equal(torch.cat([b.index for _, b in blocks]), all_at_once.index)
    np.testing.assert_array_equal(predictions(bank, bank_labels, queries, labels), whole)


@pytest.mark.parametrize("bank_block", [2**16, 8])
def test_equally_near_neighbours_come_in_the_order_of_train(monkeypatch, bank_block):
    monkeypatch.setattr(neighbours, "BANK_BLOCK", bank_block)
    direction = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    bank = direction[torch.tensor([1, 2, 0, 2, 0, 2, 2, 0, 1, 2, 0, 0, 2, 1])]
    query = torch.tensor([[1.0, 0.0]])
    for k in range(1, len(bank) + 1):
        ((_, found),) = nearest(query, bank, k)
        expected = np.argsort(-(bank @ query[0]).numpy(), kind="stable")[:k]
        np.testing.assert_array_equal(found.index[0], expected)


def test_equal_votes_go_to_the_lower_class():
    bank, query = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert predictions(bank, torch.tensor([4, 2]), query, torch.tensor([0]), ks=(2,)).item() == 2


def test_a_collapsed_encoder_gets_no_favourable_neighbours():
    """All similarities equal: every query must get the first k of train, whatever its label."""
    bank, queries = torch.ones(300, 4), torch.ones(10, 4)
    for _, found in nearest(unit(queries), unit(bank), 20):
        np.testing.assert_array_equal(found.index, np.tile(np.arange(20), (10, 1)))


def test_a_feature_that_never_changes_in_train_cannot_outweigh_the_others():
    train = torch.randn(50, 3)
    train[:, 1] = 0.1
    scaled = standard(train)(torch.tensor([[0.0, 5.0, 0.0]]))
    assert scaled.abs().max() < 5
    assert scaled[0, 1] == 0
    torch.testing.assert_close(standard(train)(train).std(0, correction=0)[[0, 2]], torch.ones(2))


@pytest.mark.parametrize("normalisation", ["standardised", "raw", "final"])
@pytest.mark.parametrize("token", ["cls", "mean"])
def test_normalisations_are_what_they_are_called(tmp_path, normalisation, token):
    encoder, data = toy_encoder(), ToyDataset()
    protocol = KNN(k=5, normalisations=(normalisation,), tokens=(token,))
    found = protocol.evaluate(encoder, data, around(tmp_path))
    readout = Readout(token=token, norm="final" if normalisation == "final" else "raw")
    bank, queries = (
        encoder.readouts(torch.from_numpy(split.images).permute(0, 3, 1, 2), [readout])[readout]
        for split in (data.train, data.test)
    )
    if normalisation == "standardised":
        mean, std = bank.mean(0), bank.std(0, correction=0)
        bank, queries = (bank - mean) / std, (queries - mean) / std
    expected = brute_force(bank, data.train.labels, queries, 5, 0.07, 6) == data.test.labels
    np.testing.assert_array_equal(found.outcomes.hits, expected)


@pytest.mark.parametrize(
    ("preset", "k", "norm"),
    [("dino", 20, "final"), ("mae-ct", 10, "standardised"), ("lightly", 200, "final")],
)
@pytest.mark.parametrize("has_cls", [True, False])
def test_official_recipes_read_what_the_encoder_gives_out(tmp_path, preset, k, norm, has_cls):
    """DINO's k-NN of a backbone without class token reads the mean; it must not fail on half of the zoo."""
    data, encoder = ToyDataset(sizes=(240, 30, 50)), toy_encoder(cls_token=has_cls)
    found = KNN(**KNN.presets[preset].fields).evaluate(encoder, data, around(tmp_path))
    plain = KNN(k=k, temperature=0.07, normalisations=(norm,), tokens=("cls" if has_cls else "mean",))
    expected = plain.evaluate(encoder, data, around(tmp_path))
    np.testing.assert_array_equal(found.outcomes.hits, expected.outcomes.hits)
    (only,) = found.selection["candidates"]
    assert (only["k"], only["normalisation"]) == (k, norm)


def test_more_neighbours_than_train_fall_away_and_it_is_said(tmp_path):
    data = ToyDataset(sizes=(30, 30, 30))
    found = KNN().evaluate(toy_encoder(), data, around(tmp_path))
    assert {c["k"] for c in found.selection["candidates"]} == {1, 5, 10, 20}
    assert found.selection["notes"] == ["k = 50, 100, 200 left out: there are 30 training images"]


@pytest.mark.parametrize("k", [31, (40, 50)])
def test_a_fixed_k_beyond_train_is_refused_before_any_work(tmp_path, k):
    data = ToyDataset(sizes=(30, 30, 30))
    with pytest.raises(UserError, match=r"knn\.k=\d+ asks for more neighbours than the 30 training images"):
        KNN(k=k).check(data)


def test_a_backbone_without_class_token_has_no_cls_candidates(tmp_path):
    encoder = toy_encoder(cls_token=False)
    found = KNN().evaluate(encoder, ToyDataset(), around(tmp_path))
    assert {c["token"] for c in found.selection["candidates"]} == {"mean"}
    assert "token cls left out" in found.selection["notes"][0]
    with pytest.raises(UserError, match="does not have"):
        dataclasses.replace(KNN(), tokens=("cls",)).evaluate(encoder, ToyDataset(), around(tmp_path))


def test_temperature_of_dino_does_not_overflow():
    bank, bank_labels, queries, labels = features(seed=5)
    found = predictions(bank, bank_labels, queries, labels, t=1e-3)  # exp(1 / 0.001) is infinite in float64
    np.testing.assert_array_equal(found[-1], brute_force(bank, bank_labels, queries, 1, 1.0, 7))

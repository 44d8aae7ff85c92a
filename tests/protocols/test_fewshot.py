"""Few shots: honest draws, the same for everybody, and scikit-learn's regression on each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from protocol_toys import ToyDataset, around, toy_encoder
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mimbench.errors import UserError
from mimbench.spec import Readout
from protocols.fewshot import FewShot
from protocols.parts.shots import Size, sizes

QUICK = {"shares": (), "draws": 3, "C": (0.01, 1.0), "readouts": ("mean",)}
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), (40, 30, 20, 3)))


def of(counts, draws: int = 3) -> Size:
    return Size("some", np.array(counts), draws)


def features(split, token: str = "mean") -> np.ndarray:
    readout = Readout(token=token)
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    return toy_encoder().readouts(images, [readout])[readout].double().numpy()


def test_every_class_gives_its_number_of_different_images():
    for images in of([5, 5, 5, 3]).indices("train", LABELS, seed=1):
        assert np.bincount(LABELS[images]).tolist() == [5, 5, 5, 3]
        assert len(set(images)) == 18


def test_draws_differ_among_themselves_and_between_seeds_but_not_between_runs():
    drawn = [tuple(i) for seed in (0, 1) for i in of([5, 5, 5, 3]).indices("train", LABELS, seed)]
    assert len(set(drawn)) == 6
    again = [tuple(i) for seed in (0, 1) for i in of([5, 5, 5, 3]).indices("train", LABELS, seed)]
    assert again == drawn


def test_fewer_shots_lie_within_more():
    few, more = (of([k] * 4).indices("train", LABELS, seed=0) for k in (1, 5))
    assert all(set(a) < set(b) for a, b in zip(few, more, strict=True))


def test_each_image_is_as_likely_as_another_of_its_class():
    counts = np.zeros(len(LABELS))
    for seed in range(150):
        for images in of([10, 10, 10, 1], draws=2).indices("train", LABELS, seed):
            counts[images] += 1
    for label, shots in enumerate((10, 10, 10, 1)):
        of_class = counts[label == LABELS]
        expected = 300 * shots / len(of_class)
        assert np.abs(of_class - expected).max() < 6 * np.sqrt(expected)


def test_classes_with_fewer_images_than_shots_give_all_and_it_is_said():
    found, notes = sizes((1, 5, 25), (0.01, 0.5), kept=5, draws=3, labels=LABELS, classes=4)
    assert {s.label: s.counts.tolist() for s in found} == {
        "5shot": [5, 5, 5, 3],
        "1shot": [1, 1, 1, 1],
        "25shot": [25, 25, 20, 3],
        "50pct": [20, 15, 10, 2],
    }
    assert found[0].label == "5shot"  # what the table ranks by
    assert notes == [
        "5shot: 1 of 4 classes have fewer images and give them all",
        "25shot: 2 of 4 classes have fewer images and give them all",
        "1pct left out: it is 1shot",
    ]


def test_more_shots_than_there_are_images_are_no_draws():
    labels = np.repeat(np.arange(3), 4)
    found, notes = sizes((1, 5, 10), (), kept=5, draws=3, labels=labels, classes=3)
    assert [(s.label, s.draws) for s in found] == [("5shot", 1), ("1shot", 3)]
    assert notes == ["5shot is the whole of train: there is one draw", "10shot left out: it is 5shot"]


def test_a_low_shot_result_rests_on_no_more_validation_images_than_shots(tmp_path):
    data = ToyDataset(sizes=(120, 60, 80))
    found = FewShot(**QUICK).evaluate(toy_encoder(), data, around(tmp_path))
    for label, expected in {"1shot": 6, "5shot": 30, "10shot": 60}.items():
        said = found.selection["sizes"][label]
        assert (said["train_images"], said["validation_images"]) == (expected, expected)


@pytest.mark.parametrize("preset", [False, True])
def test_each_draw_is_what_scikit_learn_makes_of_it(tmp_path, preset):
    data = ToyDataset(noise=100)
    fields = {**FewShot.presets["msn"].fields, "readouts": ("mean",)} if preset else {**QUICK, "C": (0.1,)}
    found = FewShot(**fields).evaluate(toy_encoder(), data, around(tmp_path))
    train, test = features(data.train), features(data.test)
    if preset:  # as cyanure's preprocess(normalize=True, columns=False, centering=True)
        train, test = (x - x.mean(1, keepdims=True) for x in (train, test))
        train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    else:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
    hits = []
    for images in of([5] * 6).indices("train", data.train.labels, seed=0):
        peer = LogisticRegression(C=400 if preset else 0.1, tol=1e-8, max_iter=3000)
        peer.fit(train[images], data.train.labels[images])
        hits.append(peer.predict(test) == data.test.labels)
    # an image between two classes may fall either way
    assert np.abs(found.outcomes.values - np.mean(hits, 0)).sum() < 0.7
    assert found.metrics["top1_5shot"] == pytest.approx(found.outcomes.score)
    spread = np.std(np.mean(hits, 1), ddof=1)
    assert found.metrics["top1_5shot_spread"] == pytest.approx(spread, abs=0.01)


def test_every_size_has_its_own_choice_by_its_own_draws_of_validation(tmp_path):
    data = ToyDataset(noise=100)
    found = FewShot(**{**QUICK, "C": (1e-4, 0.1, 10.0)}).evaluate(toy_encoder(), data, around(tmp_path))
    train, validation = features(data.train), features(data.validation)
    scaler = StandardScaler().fit(train)
    train, validation = scaler.transform(train), scaler.transform(validation)
    size = of([1] * 6)
    scores = []
    for C in (1e-4, 0.1, 10.0):
        draws = zip(
            size.indices("train", data.train.labels, 0),
            size.indices("validation", data.validation.labels, 0),
            strict=True,
        )
        scores.append(
            np.mean(
                [
                    LogisticRegression(C=C, tol=1e-8, max_iter=3000)
                    .fit(train[images], data.train.labels[images])
                    .score(validation[asked], data.validation.labels[asked])
                    for images, asked in draws
                ]
            )
        )
    assert found.selection["sizes"]["1shot"]["validation_top1"] == pytest.approx(max(scores), abs=0.06)


def test_a_size_that_is_not_drawn_cannot_rank():
    with pytest.raises(UserError, match=r"ranked_by=5 is none of fewshot\.shots=\[1, 2\]"):
        FewShot(shots=(1, 2)).check(ToyDataset())


def test_ten_images_a_class_are_enough_to_run(tmp_path):
    data = ToyDataset(sizes=(18, 6, 6))
    found = FewShot().evaluate(toy_encoder(), data, around(tmp_path))
    assert found.outcomes.n == 6
    assert found.selection["sizes"]["5shot"]["draws"] == 1

"""Robustness against direct calls of the library, brute force and the order in which things happen."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from protocol_toys import SIZE, ToyDataset, ToySplit, around, toy_encoder

pytest.importorskip("imagecorruptions")

import imagecorruptions

from mimbench import registry, rng
from mimbench.data import EvalTransform, evaluation_batches
from mimbench.errors import UserError
from mimbench.evaluate import _checked
from mimbench.features import FeatureStore
from mimbench.spec import Readout
from protocols.parts.corruptions import COMMON, SEVERITIES, Corrupted, Corruptions, corrupted
from protocols.parts.wrapped import wrapped
from protocols.robustness import ALEXNET, Robustness, mean_corruption_error

SIDE = 40
QUICK = {"classifier": "knn", "corruptions": ("brightness", "gaussian_noise", "fog")}


def photographs(count: int = 4) -> ToySplit:
    """Smooth images that are higher than wide."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.uniform(0, 255, (count, 3, 7, 5)))
    fine = torch.nn.functional.interpolate(coarse, (70, 50), mode="bicubic").clip(0, 255)
    images = fine.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    return ToySplit("test", images, np.arange(count, dtype=np.int64))


def key_of(index: int, name: str, severity: int) -> int:
    return int(rng.sample_keys(rng.salt(f"{name} {severity}"), 0, np.array([index]))[0]) % 2**63


@pytest.mark.parametrize("name", imagecorruptions.get_corruption_names("all"))
@pytest.mark.parametrize("severity", [1, 5])
def test_a_corruption_is_the_librarys_own_under_the_same_seed(name, severity):
    image = np.ascontiguousarray(photographs(1).image(0)[:SIDE, :SIDE])
    key = key_of(3, name, severity)
    np.random.seed(key % 2**32)
    seed = {"seed": key % 2**32} if name in ("glass_blur", "impulse_noise") else {}
    expected = imagecorruptions.corrupt(image, severity=severity, corruption_name=name, **seed)
    assert np.array_equal(corrupted(image, name, severity, key), expected)
    assert not np.array_equal(expected, image)


def test_small_images_are_corrupted_as_squares_and_brought_back_by_their_mean():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    large = np.kron(image, np.ones((3, 3, 1), np.uint8))  # 36 pixels a side, the first multiple above 32
    np.random.seed(7)
    whole = imagecorruptions.corrupt(large, severity=2, corruption_name="gaussian_noise").astype(float)
    expected = [
        [whole[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].mean((0, 1)) for j in range(12)] for i in range(12)
    ]
    found = corrupted(image, "gaussian_noise", 2, 7)
    assert found.dtype == np.uint8
    assert np.abs(found - np.array(expected)).max() <= 0.5


def test_corrupting_leaves_the_global_generators_as_they_were():
    before = np.random.get_state()[1].copy()
    corrupted(photographs(1).image(0)[:SIDE, :SIDE], "shot_noise", 1, 1)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("per_image", [1, 4, 7, 15, 20, 75, 200])
def test_every_pair_is_used_as_often_and_no_image_gets_one_twice(per_image):
    versions = Corruptions(COMMON, SEVERITIES, per_image)
    dealt = [versions.of(i) for i in range(53)]
    assert all(len(set(pairs)) == len(pairs) == min(per_image, 75) for pairs in dealt)
    used = Counter(pair for pairs in dealt for pair in pairs)
    counts = [used[name, severity] for name in COMMON for severity in SEVERITIES]
    assert max(counts) - min(counts) <= 1
    for pairs in dealt:  # an image gets every corruption before it gets one again
        of_names = Counter(name for name, _ in pairs)
        assert max(of_names.values()) - min(of_names[name] for name in COMMON) <= 1
    if per_image == 15:
        assert len({tuple(sorted(pairs)) for pairs in dealt}) > 30  # drawn, not one table for all


def test_what_is_corrupted_is_what_the_evaluation_cuts_out():
    """Corrupting more and cutting afterwards would be cheaper to write and another benchmark."""
    clean = photographs()
    cut = EvalTransform(SIDE, 0.875)
    split = Corrupted(clean, Corruptions(("pixelate", "zoom_blur"), (3,), 2), SIDE, 0.875)
    assert len(split) == 12
    assert split.labels.tolist() == [0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3]
    for i in range(4):
        assert split.image(i) is clean.image(i) or np.array_equal(split.image(i), clean.image(i))
        crop = cut(clean.image(i)).permute(1, 2, 0).numpy()
        for j in (0, 1):
            _, name, severity = split.sample_id(4 + 2 * i + j).split(" ")
            expected = corrupted(crop, name, int(severity), key_of(i, name, int(severity)))
            found = cut(split.image(4 + 2 * i + j)).permute(1, 2, 0).numpy()
            assert np.array_equal(found, expected)


def test_all_processes_and_workers_see_the_same_corrupted_images():
    clean, versions = photographs(), Corruptions(COMMON, (4,), 5)

    def seen(split, rank, world, workers):
        batches = evaluation_batches(
            split, image_size=SIDE, crop_pct=0.875, batch_size=3, rank=rank, world=world, workers=workers
        )
        return {
            int(i): image for indices, images in batches for i, image in zip(indices, images, strict=True)
        }

    alone = seen(Corrupted(clean, versions, SIDE, 0.875), 0, 1, workers=0)
    assert len(alone) == 24
    split = pickle.loads(pickle.dumps(Corrupted(clean, versions, SIDE, 0.875)))
    np.random.seed(99)  # nobody else's draws have a say
    shared = seen(split, 1, 2, workers=2) | seen(split, 0, 2, workers=0)
    assert shared.keys() == alone.keys()
    assert all(torch.equal(shared[i], alone[i]) for i in alone)


def test_features_of_corrupted_images_do_not_depend_on_workers(tmp_path):
    split = Corrupted(ToyDataset((6, 6, 12)).test, Corruptions(COMMON, (2,), 3), SIZE, 1.0)
    readout = Readout(token="mean")
    one, two = (
        FeatureStore(tmp_path / str(workers), workers=workers).get(
            toy_encoder(), split, [readout], crop_pct=1.0, batch_size=5
        )[readout]
        for workers in (0, 2)
    )
    assert one.shape[0] == len(split) == 48
    assert np.array_equal(one, two)


def test_another_recipe_or_image_has_another_fingerprint():
    clean, other = photographs(), photographs(3)
    names = [("fog",), ("snow",)]
    prints = {
        Corrupted(of, Corruptions(n, levels, 1), size, 0.875).fingerprint
        for of in (clean, other)
        for n in names
        for levels in ((1,), (2,))
        for size in (32, 40)
    }
    assert len(prints) == 16
    assert clean.fingerprint not in prints


def test_outcomes_are_shares_of_versions_and_all_metrics_add_up(tmp_path):
    """Against a loop over images that asks the inner protocol's classifier one by one."""
    data = ToyDataset()
    protocol = Robustness(**QUICK, severities=(1, 5), per_image=4)
    found = protocol.evaluate(toy_encoder(), data, around(tmp_path))
    assert data.test_openings == 1

    versions = Corruptions(QUICK["corruptions"], (1, 5), 4)
    right: dict[tuple[str, int], list[bool]] = {}
    shares, clean = [], []
    whole = Corrupted(data.test, versions, SIZE, 1.0)
    images = np.stack([whole.image(i) for i in range(len(whole))])
    replaced = ToyDataset()
    replaced.test = ToySplit("test", images, whole.labels)
    replaced.test_size = len(images)
    inner = registry.find_protocol("knn")().evaluate(toy_encoder(), replaced, around(tmp_path / "again"))
    hits = inner.outcomes.hits
    for i in range(80):
        clean.append(hits[i])
        own = hits[80 + 4 * i : 84 + 4 * i]
        shares.append(own.mean())
        for pair, hit in zip(versions.of(i), own, strict=True):
            right.setdefault(pair, []).append(bool(hit))
    assert found.outcomes.values.tolist() == shares
    assert found.selection == inner.selection
    metrics = found.metrics
    assert metrics["clean_top1"] == pytest.approx(np.mean(clean))
    assert metrics["corrupted_top1"] == pytest.approx(np.mean(shares))
    assert metrics["relative"] == pytest.approx(np.mean(shares) / np.mean(clean))
    for name in QUICK["corruptions"]:
        expected = [hit for (n, _), of in right.items() if n == name for hit in of]
        assert metrics[f"top1_{name}"] == pytest.approx(np.mean(expected))
    for severity in (1, 5):
        expected = [hit for (_, s), of in right.items() if s == severity for hit in of]
        assert metrics[f"top1_severity{severity}"] == pytest.approx(np.mean(expected))


def test_the_clean_figure_is_that_of_the_protocol_itself(tmp_path):
    for classifier in ("logreg[grid=3,C=[0.001,1]]", "linprobe[min_steps=60,epochs=1]", "fewshot[draws=2]"):
        inner = wrapped(classifier, "robustness").protocol
        alone = inner.evaluate(toy_encoder(), ToyDataset(), around(tmp_path))
        protocol = Robustness(classifier, ("brightness",), (1,), 1)
        found = _checked(protocol, toy_encoder(), ToyDataset(), around(tmp_path))
        assert found.metrics["clean_top1"] == pytest.approx(alone.metrics["top1"])
        assert found.metrics["validation_top1"] == alone.metrics["validation_top1"]
        assert inner.key in found.facts["classifier"]["protocol"]


def test_a_published_recipe_that_chooses_on_test_chooses_on_validation_here():
    recipe = wrapped("linprobe:mae[epochs=1]", "robustness")
    assert registry.find_protocol("linprobe").presets["mae"].fields["choose_on"] == "test"
    assert (recipe.protocol.choose_on, recipe.protocol.epochs) == ("validation", 1)
    assert recipe.notes
    assert Robustness("linprobe:mae").collective == recipe.protocol.collective
    assert not Robustness("knn").collective


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        ("retrieval", "does not classify images"),
        ("robustness", "does not classify images"),
        ("shift", "does not classify images"),
        ("diagnostics", "does not classify images"),
        ("linprob", "did you mean linprobe"),
        ("linprobe:may", "official recipe of linprobe"),
        ("fewshot:", "official recipe of fewshot"),
        ("knn[q=1]", "setting of knn"),
        ("knn[k=0]", "knn.k=0"),
        ("knn,logreg", "one protocol"),
    ],
)
def test_what_is_no_classifier_is_refused_before_any_work(classifier, message):
    with pytest.raises(UserError, match=message):
        Robustness(classifier).check(ToyDataset())


def test_the_classifiers_own_objections_are_heard():
    with pytest.raises(UserError, match="more neighbours"):
        Robustness("knn[k=5000]").check(ToyDataset())


def test_a_job_knows_the_version_of_what_it_wraps():
    built = [Robustness(name).built_on(ToyDataset()) for name in ("knn", "knn[k=3]", "logreg")]
    assert len({of["classifier"] for of in built}) == 3
    assert "version 1" in built[0]["classifier"]
    assert "imagecorruptions-imaug" in built[0]["corrupted_by"]


def test_mce_is_the_mean_of_errors_over_alexnets_and_for_imagenet_alone():
    classes = ["n01440764", *(f"n{i:08}" for i in range(999))]
    versions = Corruptions(COMMON, SEVERITIES, 75)
    alexnet = {f"top1_{name}": 1 - error for name, error in zip(COMMON, ALEXNET, strict=True)}
    assert mean_corruption_error(versions, classes, alexnet) == pytest.approx(1)
    half = {name: 1 - (1 - top1) / 2 for name, top1 in alexnet.items()}
    assert mean_corruption_error(versions, classes, half) == pytest.approx(0.5)
    assert mean_corruption_error(versions, classes[:999], alexnet) is None
    assert mean_corruption_error(versions, ["cat", *classes[1:]], alexnet) is None
    assert mean_corruption_error(Corruptions(COMMON[1:], SEVERITIES, 75), classes, alexnet) is None
    assert mean_corruption_error(Corruptions(COMMON, (1, 2), 75), classes, alexnet) is None


def test_the_library_prints_nothing_at_any_size(capfd):
    """It prints where it has to put up with a size; all squares it is given here are fine with it."""
    for side in range(32, 64):
        image = np.full((side, side, 3), 128, np.uint8)
        for name in ("snow", "zoom_blur"):
            assert corrupted(image, name, 3, side).shape == image.shape
    assert tuple(capfd.readouterr()) == ("", "")

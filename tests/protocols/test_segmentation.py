"""Segmentation of frozen encoders: segknn and seglinear against naive references."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segmentation_tiny import PATCH, SIZE, around, blind, check_samples, encoder, evaluate, pixels, shapes
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, jaccard_score
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from mimbench import registry
from mimbench.data.transforms import resize
from mimbench.errors import UserError
from mimbench.outcomes import unpack
from protocols.parts import patches
from protocols.parts.patch_bank import bank_of, majority
from protocols.parts.patches import canvas_of, figures, label_patches, laid_out, pixel_maps, predicted, see
from protocols.segknn import SegKNN
from protocols.seglinear import SegLinear

BOTH = [SegKNN, SegLinear]
QUICK: dict[type, dict[str, Any]] = {SegKNN: {}, SegLinear: {"min_steps": 100, "epochs": 1}}
OTHER: dict[type, dict[str, Any]] = {
    SegKNN: {
        "k": 2,
        "distances": ("l2",),
        "layers": (0.5,),
        "fit": "slide",
        "image_size": 16,
        "max_patches": 90,
    },
    SegLinear: {
        "epochs": 300,
        "min_steps": 30,
        "batch_size": 64,
        "lr": (0.03,),
        "momentum": 0.0,
        "layers": (0.5,),
        "batch_norm": (False,),
        "C": (0.01, 1.0),
        "upsampling": "nearest",
        "fit": "slide",
        "image_size": 16,
        "max_patches": 90,
    },
}


def quick(cls: type, **more: Any):
    return cls(**{**QUICK[cls], **more})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Images of the encoder's own size, which nothing resizes."""
    return shapes(tmp_path_factory.mktemp("squares"), size=(SIZE, SIZE))


def naive(of, split, layer=-1):
    """Tokens [images, patches, D] and label patches [images, patches, P·P], image by image."""
    tokens, labels = [], []
    for i in range(len(split)):
        image = torch.from_numpy(split.image(i)).permute(2, 0, 1)[None]
        tokens.append(of.tokens(image, [layer])[0].patches[0].flatten(0, 1).double().numpy())
        target = split.target(i).astype(int)
        cut = [
            target[y : y + PATCH, x : x + PATCH].ravel()
            for y in range(0, SIZE, PATCH)
            for x in range(0, SIZE, PATCH)
        ]
        labels.append(np.array(cut))
    return np.stack(tokens), np.stack(labels)


@pytest.mark.parametrize(("distance", "k"), [("cosine", 1), ("l2", 3), ("cosine", 10)])
def test_segknn_is_what_nearest_neighbours_of_patches_say_pixel_by_pixel(squares, tmp_path, distance, k):
    of = encoder()
    found = evaluate(SegKNN(k=k, distances=(distance,), layers=(1.0,)), squares, tmp_path, of)

    keys, values = naive(of, squares.train)
    keys, values = keys.reshape(-1, keys.shape[-1]), values.reshape(-1, PATCH * PATCH)
    common = np.array([np.bincount(value, minlength=256).argmax() for value in values])
    keys, values = keys[common != 255], values[common != 255]
    mean, std = keys.mean(0), keys.std(0)
    metric = {"cosine": "cosine", "l2": "euclidean"}[distance]
    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit((keys - mean) / std)
    test = squares.open_test()
    queries, _ = naive(of, test)
    said, true = [], []
    for i in range(len(test)):
        index = search.kneighbors((queries[i] - mean) / std, return_distance=False)
        prediction = np.empty((SIZE, SIZE), int)
        for patch, neighbours in enumerate(index):
            y, x = divmod(patch, SIZE // PATCH)
            votes = values[neighbours]  # [k, P·P]
            everywhere = np.bincount(votes.ravel(), minlength=256)[:255].argmax()
            pixels = [
                np.bincount(here, minlength=256)[:255].argmax() if (here != 255).any() else everywhere
                for here in votes.T
            ]
            rows, columns = slice(PATCH * y, PATCH * y + PATCH), slice(PATCH * x, PATCH * x + PATCH)
            prediction[rows, columns] = np.reshape(pixels, (PATCH, PATCH))
        target = test.target(i)
        said.append(prediction[target != 255])
        true.append(target[target != 255])
    said, true = np.concatenate(said), np.concatenate(true)
    assert found.metrics["miou"] == pytest.approx(jaccard_score(true, said, average="macro"), abs=1e-12)
    assert found.metrics["pixel_accuracy"] == pytest.approx(accuracy_score(true, said), abs=1e-12)


def test_seglinear_learns_the_most_frequent_class_of_a_patch(squares):
    of = encoder()
    bank = bank_of(of, squares.train, [-1], "squash", around(Path("unused")), classes=3, limit=None)
    tokens, labels = naive(of, squares.train)
    common = np.array([Counter(sorted(v)).most_common(1)[0][0] for v in labels.reshape(-1, PATCH * PATCH)])
    kept = common != 255
    assert 0 < (~kept).sum() < 200  # patches of the frame, which is of no class
    np.testing.assert_array_equal(bank.majority.numpy(), common[kept])
    np.testing.assert_allclose(
        bank.tokens[-1].numpy(), tokens.reshape(-1, tokens.shape[-1])[kept], rtol=1e-4, atol=1e-5
    )


def test_the_optima_are_those_of_scikit_learn_refitted_to_train_and_validation(squares, tmp_path):
    of = encoder()
    protocol = SegLinear(C=(0.01, 1.0), layers=(1.0,), upsampling="nearest")
    found = evaluate(protocol, squares, tmp_path, of)
    C = found.selection["candidates"][found.selection["chosen"]]["C"]

    def learnt_from(split):
        tokens, labels = naive(of, split)
        tokens, labels = tokens.reshape(-1, tokens.shape[-1]), labels.reshape(-1, PATCH * PATCH)
        common = np.array([np.bincount(value, minlength=256).argmax() for value in labels])
        return tokens[common != 255], common[common != 255]

    (train, train_labels), (held_out, held_out_labels) = map(learnt_from, (squares.train, squares.validation))
    mean, std = train.mean(0), train.std(0)
    both = (np.concatenate([train, held_out]) - mean) / std
    reference = LogisticRegression(C=C, max_iter=5000, tol=1e-6)
    reference.fit(both, np.concatenate([train_labels, held_out_labels]))
    said, true = [], []
    test = squares.open_test()
    tokens, _ = naive(of, test)
    for i in range(len(test)):
        patches_said = reference.predict((tokens[i] - mean) / std).reshape(SIZE // PATCH, SIZE // PATCH)
        prediction = patches_said.repeat(PATCH, 0).repeat(PATCH, 1)
        target = test.target(i)
        said.append(prediction[target != 255])
        true.append(target[target != 255])
    expected = jaccard_score(np.concatenate(true), np.concatenate(said), average="macro")
    assert found.metrics["miou"] == pytest.approx(expected, abs=5e-3)


def test_a_patch_of_equally_many_pixels_is_of_the_lower_class():
    labels = torch.tensor([[1, 1, 0, 0], [2, 255, 255, 255], [2, 2, 255, 255]], dtype=torch.uint8)
    assert majority(labels, 3, 255).tolist() == [0, 3, 2]


def test_patches_and_pixels_stand_at_the_same_place():
    labels = torch.arange(2 * 12 * 12).view(2, 12, 12)
    cut = label_patches(labels, (3, 3))
    assert cut[1, 5].tolist() == labels[1, 4:8, 8:12].flatten().tolist()
    back = pixel_maps(cut[:, :, None].expand(-1, -1, 2, -1).contiguous(), (3, 3), 12)
    assert torch.equal(back[:, 0], labels)
    assert torch.equal(back[:, 1], labels)


def test_masks_are_scored_at_their_own_size_and_not_at_the_features(monkeypatch):
    """And memory stays bounded: the same when one class at a time is brought to it."""
    scores = torch.randn(1, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    canvas = canvas_of(30, 50, 6, "squash")
    expected = F.interpolate(scores, (30, 50), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    np.testing.assert_array_equal(predicted(scores, canvas, (30, 50)), expected)
    monkeypatch.setattr(patches, "NUMBERS", 1)
    np.testing.assert_array_equal(predicted(scores, canvas, (30, 50)), expected)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 100), (100, 20), (5, 300)])
def test_squares_cover_every_pixel_of_any_shape(height, width):
    canvas = canvas_of(height, width, 32, "slide")
    covered = np.zeros((canvas.height, canvas.width), int)
    for top, left in canvas.corners:
        assert 0 <= top <= canvas.height - 32
        assert 0 <= left <= canvas.width - 32
        covered[top : top + 32, left : left + 32] += 1
    assert covered.min() >= 1
    assert min(canvas.height, canvas.width) == 32
    assert canvas.width / canvas.height == pytest.approx(width / height, rel=0.04)
    assert canvas_of(height, width, 32, "squash") == patches.Canvas(32, 32, ((0, 0),))


def test_labels_are_laid_out_where_their_pixels_are(data):
    """Nearest labels follow the image: a colour stays under its class."""
    index = next(i for i in range(len(data.train)) if len(np.unique(data.train.target(i))) > 2)
    pixels, target = data.train.image(index), data.train.target(index)
    canvas = canvas_of(*target.shape, 64, "squash")
    labels, image = laid_out(target, canvas), resize(pixels, 64, 64).numpy().astype(float)
    colourful = image.max(0) - image.min(0) > 60  # the background is grey
    shape = (labels > 0) & (labels < 255)
    agreed = (colourful == shape)[labels < 255].mean()
    assert agreed > 0.95
    for axis in (0, 1):  # not so a few pixels beside
        assert (colourful == np.roll(shape, 4, axis))[labels < 255].mean() < agreed - 0.01


@pytest.mark.parametrize("cls", BOTH)
def test_squares_of_a_sliding_window_meet_without_seams(data, cls):
    """Tokens that know a class give the same map through one window as through many."""
    seen = list(see(pixels(), data.validation, [-1], "slide", around(Path("unused")), stage=""))
    assert [image.number for image in seen] == list(range(len(data.validation)))
    for image in seen:
        assert len(image.labels) == len(image.canvas.corners) > 1
        maps = F.one_hot(image.labels.clamp(max=3), 4).permute(0, 3, 1, 2).float()
        said = predicted(maps, image.canvas, image.target.shape)
        same = said == image.target.clip(max=3)
        assert same.mean() > 0.97  # but for edges


@pytest.mark.parametrize("cls", BOTH)
def test_an_encoder_that_knows_the_colours_is_above_one_that_is_blind(cls, data, tmp_path):
    fields = {"layers": (1.0,)}
    seeing = evaluate(quick(cls, **fields), data, tmp_path, pixels())
    not_seeing = evaluate(quick(cls, **fields), data, tmp_path, blind())
    assert seeing.metrics["miou"] > not_seeing.metrics["miou"] + 0.2
    assert seeing.metrics["miou"] > 0.5


@pytest.mark.parametrize("cls", BOTH)
def test_the_contract_is_kept(cls, data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = data.test_openings
    found = evaluate(quick(cls), data, tmp_path)
    again = evaluate(quick(cls), data, tmp_path)
    assert data.test_openings - opened == 2
    assert found.outcomes.n == data.test_size
    check_samples(found, data)
    assert found.metrics["miou"] == found.outcomes.score
    assert (found.outcomes.pack(), found.selection) == (again.outcomes.pack(), again.selection)
    assert tuple(capfd.readouterr()) == ("", "")
    assert not list(tmp_path.iterdir())
    json.dumps([found.metrics, found.selection, found.facts], allow_nan=False)
    best = max(c["validation_miou"] for c in found.selection["candidates"])
    assert best == found.metrics["validation_miou"]


@pytest.mark.parametrize(
    ("cls", "field"), [(cls, f.name) for cls in BOTH for f in dataclasses.fields(cls)], ids=str
)
def test_every_knob_moves_something(cls, field, data, tmp_path):
    given = {"fit": "squash"} if field != "fit" else {}
    before = evaluate(quick(cls, **given), data, tmp_path)
    after = evaluate(quick(cls, **{**given, field: OTHER[cls][field]}), data, tmp_path)
    scores = [{c["validation_miou"] for c in found.selection["candidates"]} for found in (before, after)]
    assert scores[0] != scores[1]


def test_a_limit_draws_from_every_image_and_by_the_seed(data):
    def bank(limit, seed=0):
        return bank_of(
            encoder(), data.train, [-1], "squash", around(Path("unused"), seed), classes=3, limit=limit
        )

    whole, some, other = bank(None), bank(5 * len(data.train) + 3), bank(5 * len(data.train), seed=1)
    assert len(some.labels) == 5 * len(data.train)
    assert some.total == len(whole.labels)
    assert not torch.equal(some.tokens[-1], other.tokens[-1])
    rows = {row.numpy().tobytes() for row in whole.tokens[-1]}
    drawn = [row.numpy().tobytes() for row in some.tokens[-1]]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= rows


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("options", [{"cls_token": False}, {"depth": 1}, {"rel_pos": "shared"}], ids=str)
def test_any_vision_transformer_is_evaluated_at_another_size(cls, options, data, tmp_path):
    found = evaluate(quick(cls, image_size=24), data, tmp_path, encoder(**options))
    assert found.outcomes.n == data.test_size
    check_samples(found, data)


@pytest.mark.parametrize("cls", BOTH)
def test_a_set_without_usable_labels_is_told(cls, data, tmp_path, monkeypatch):
    empty = np.full((32, 40), 255, np.uint8)
    monkeypatch.setattr(type(data.train), "target", lambda self, index: empty)
    with pytest.raises(UserError, match="look at the label maps"):
        evaluate(quick(cls), data, tmp_path)


def test_pixel_accuracy_is_the_share_of_annotated_pixels(data, tmp_path):
    found = evaluate(SegKNN(k=1), data, tmp_path).outcomes
    test = data.open_test()
    annotated = sum((test.target(i) != 255).sum() for i in range(len(test)))
    assert figures(found)["pixel_accuracy"] == pytest.approx(found.intersections.sum() / annotated)


@pytest.mark.parametrize("cls", BOTH)
def test_presets_and_keys_are_found(cls):
    assert registry.find_protocol(cls.key) is cls
    for preset in cls.presets.values():
        cls(**preset.fields)


PROGRAM = """
    import json, os, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from mimbench.data import open_dataset
    from mimbench.features import FeatureStore
    from mimbench.precision import make_fabric
    from mimbench.progress import silent
    from mimbench.protocol import Surroundings
    from mimbench.registry import find_protocol
    from segmentation_tiny import encoder

    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    data, fabric = open_dataset(sys.argv[2]), make_fabric("fp32", "cpu")
    around = Surroundings(FeatureStore(folder, fabric), 0, silent, fabric=fabric)
    found = {}
    for key, fields in json.loads(sys.argv[3]).items():
        result = find_protocol(key)(**fields).evaluate(encoder(), data, around)
        found[key] = [result.outcomes.pack(), result.metrics, result.selection]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    fabric.barrier()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    pytest.importorskip("mmseg", reason="the extra dense is not installed")
    data = shapes(tmp_path / "shapes")  # 5 test images and 2 of validation: shares are not equal
    given = {
        "segknn": {"max_patches": 400},
        "seglinear": {"min_steps": 100, "epochs": 1},
        "ade20k": {"lr": [1e-3], "steps": 2, "batch_size": 4, "crop": 16},
    }
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, tmp_path / "program.py", tmp_path, data.spec, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for key, fields in given.items():
        alone = evaluate(registry.find_protocol(key)(**fields), data, tmp_path)
        assert unpack(first[key][0]).n == data.test_size
        # Batch norm on CPUs is each process's own. Elsewhere a batch of another size rounds otherwise.
        tolerance = 0.01 if key != "ade20k" else 1.0
        assert first[key][1] == pytest.approx(alone.metrics, abs=tolerance)

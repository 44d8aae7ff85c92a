"""Test sets of other origin: whose classes are whose, and among which a classifier chooses."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from protocol_toys import SIZE, ToyDataset, around, tiny_clip, toy_encoder, toy_set

from mimbench import registry
from mimbench.data import open_dataset
from mimbench.errors import UserError
from mimbench.evaluate import _checked
from mimbench.features import FeatureStore
from mimbench.progress import silent
from mimbench.protocol import EvaluationFailed
from mimbench.spec import Readout
from protocols.parts.answers import Answers, admitted
from protocols.parts.fitted import ranks_of
from protocols.parts.shifted import Shifted, read_set
from protocols.parts.synsets import ClassNames, wordnet_id, wordnet_ids
from protocols.robustness import Robustness
from protocols.shift import Shift

NETTE = ("tench", "English springer", "cassette player", "chain saw", "church")
WNIDS = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079")
QUICK = {
    "linprobe": "linprobe[min_steps=60,epochs=1,readouts=[mean],batch_norm=[false],lr=[0.1]]",
    "logreg": "logreg[grid=2,C=[0.01,1],readouts=[mean]]",
    "knn": "knn[k=20,tokens=[mean],normalisations=[final]]",
    "attentive": "attentive[min_steps=20,epochs=1,lr=[0.01],pooling=[capi],layers=[1]]",
    "finetune": "finetune[min_steps=60,epochs=1,batch_size=24,lr=[0.1],mixup=0,cutmix=0,rand_augment='']",
    "fewshot": "fewshot[draws=1,shots=[5],shares=[],readouts=[mean],C=[0.1]]",
}


def folders(root: Path, names, each: int = 2, side: int = 12) -> str:
    """A folder of class folders, each with ``each`` different images."""
    draw = np.random.default_rng(len(str(root)))
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = draw.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return str(root)


def read(path: str, classes=WNIDS):
    return read_set(path, "shift", "toy", classes)


def test_wordnet_ids_and_names_of_imagenet_mean_the_same_class():
    assert [wordnet_id(name) for name in NETTE] == list(WNIDS)
    assert wordnet_id("tench, Tinca tinca") == wordnet_id("Tinca_tinca") == "n01440764"
    assert wordnet_id("crane") is None  # a bird or a machine
    assert wordnet_id("maillot") != wordnet_id("maillot, tank suit")
    assert len(wordnet_ids()) == 1000
    found = ClassNames(NETTE)
    assert [found.find(name) for name in (*WNIDS, "n02123045", "church", "dome")] == [
        0,
        1,
        2,
        3,
        4,
        None,
        4,
        None,
    ]


def test_sets_of_wordnet_ids_suit_data_of_names_and_the_other_way(tmp_path):
    for classes, names in ((NETTE, WNIDS), (WNIDS, NETTE), (NETTE, NETTE)):
        of = read(folders(tmp_path / f"{classes[0]}-{names[0]}", [names[4], names[1]]), classes)
        assert of.classes == [1, 4]
        assert of.folders.tolist() == [0, 0, 1, 1]
        assert list(of.right.values()) == ([(4,), (1,)] if names[4] < names[1] else [(1,), (4,)])


def test_class_folders_that_are_no_class_of_the_data_are_left_out_and_counted(tmp_path):
    of = read(folders(tmp_path / "set", [*WNIDS[:3], "n02123045", "n07742313"]))
    assert (len(of.folders), of.ignored, of.classes) == (6, 2, [0, 1, 2])
    assert of.content()["ignored_folders"] == 2


def test_numbered_folders_are_imagenets_classes_unless_they_are_the_datas(tmp_path):
    """ImageNet-V2 has the folders 0 to 999, whose order as text is another one."""
    numbers = [str(wordnet_ids().index(name)) for name in WNIDS]
    path = folders(tmp_path / "v2", [*numbers, "999"])
    of = read(path)
    assert of.ignored == 1
    for number, name in zip(numbers, WNIDS, strict=True):
        assert of.right[number] == (WNIDS.index(name),)
    digits = read(folders(tmp_path / "digits", ["0", "7"]), [str(i) for i in range(10)])
    assert digits.right == {"0": (0,), "7": (7,)}


def test_a_file_beside_the_set_says_which_classes_a_folder_is(tmp_path):
    path = folders(tmp_path / "objects", ["building", "dog", "thing"])
    (tmp_path / "objects.json").write_text(
        json.dumps({"building": "church", "dog": ["English springer", "tench"], "thing": []})
    )
    of = read(path, NETTE)
    assert of.right == {"building": (4,), "dog": (0, 1)}
    (tmp_path / "objects.json").write_text("[1]")
    with pytest.raises(UserError, match=r"objects\.json should say"):
        read(path, NETTE)
    (tmp_path / "objects.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read(path, NETTE)


def test_objectnet_is_read_as_it_is_shipped_without_the_border_of_its_images(tmp_path):
    root = tmp_path / "objectnet-1.0"
    folders(root / "images", ["bike", "clock", "spoon"], each=3, side=16)
    for path in (root / "images").rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[[0, 1, -1, -2]] = pixels[:, [0, 1, -1, -2]] = (255, 0, 0)
        Image.fromarray(pixels).save(path)
    (root / "mappings").mkdir()
    (root / "mappings" / "folder_to_objectnet_label.json").write_text(
        json.dumps({"bike": "Bicycle", "clock": "Alarm clock", "spoon": "Spoon"})
    )
    (root / "mappings" / "objectnet_to_imagenet_1k.json").write_text(
        json.dumps(
            {
                "Bicycle": "mountain bike, all-terrain bike, off-roader; "
                "bicycle-built-for-two, tandem bicycle, tandem",
                "Alarm clock": "analog clock; digital clock",
            }
        )
    )
    classes = wordnet_ids()
    whole = open_dataset(f"imagefolder:{root / 'images'}", image_size=16).train  # prepared with the border
    of = read(str(root), classes)
    assert whole.image(0).shape == (16, 16, 3)
    assert of.ignored == 1
    assert {name: [classes[i] for i in numbers] for name, numbers in of.right.items()} == {
        "bike": ["n02835271", "n03792782"],
        "clock": ["n02708093", "n03196217"],
    }
    split = Shifted([of], 1000, 16, silent)
    for i in range(len(split)):
        assert split.image(i).shape == (12, 12, 3)
        assert not (split.image(i) == (255, 0, 0)).all(-1).any()


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "no image"), (["n07742313"], "0 are classes of toy"), (WNIDS[:1], "1 is a class of toy")],
)
def test_sets_without_classes_to_choose_among_are_refused(tmp_path, names, message):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=message):
        read(folders(tmp_path / "set", names))


def test_mistakes_in_paths_and_files_are_told(tmp_path):
    data = ToyDataset()
    with pytest.raises(UserError, match="shift needs test sets"):
        Shift().check(data)
    with pytest.raises(UserError, match="which is no folder"):
        Shift(sets=(str(tmp_path / "nothing"),)).check(data)
    path = toy_set(tmp_path / "a" / "set", [0, 1])
    with pytest.raises(UserError, match="2 folders called set"):
        Shift(sets=(path, toy_set(tmp_path / "b" / "set", [0, 1]))).check(data)
    with pytest.raises(UserError, match="does not classify"):
        Shift("retrieval", (path,)).check(data)
    (Path(path) / "class 0" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 images of .* cannot be read, such as class 0/0.png"):
        Shift(sets=(path,)).check(data)


def test_content_and_not_the_path_is_what_a_set_is(tmp_path):
    first = toy_set(tmp_path / "a" / "set", [0, 1])
    built = Shift("knn", (first,)).built_on(ToyDataset())
    moved = toy_set(tmp_path / "b" / "set", [0, 1])
    assert Shift("knn", (moved,)).built_on(ToyDataset()) == built
    (Path(moved) / "class 1" / "0.png").unlink()
    assert Shift("knn", (moved,)).built_on(ToyDataset()) != built
    assert Shift("logreg", (first,)).built_on(ToyDataset()) != built


def test_logits_of_what_is_not_allowed_come_last_and_any_right_class_counts():
    draw = np.random.default_rng(0)
    logits = torch.from_numpy(draw.normal(size=(200, 7)))
    allowed = draw.random((5, 7)) < 0.6
    right = np.zeros((5, 7), bool)
    for kind in range(5):
        allowed[kind, [kind, kind + 1]] = True
        right[kind, [kind, kind + 1] if kind % 2 else [kind]] = True
    answers = Answers(draw.integers(0, 5, 200), allowed, right)
    labels = torch.from_numpy(right.argmax(1)[answers.kinds])
    found = ranks_of(*admitted(answers, logits, labels, slice(0, 200)))
    for i, kind in enumerate(answers.kinds):
        order = [c for c in logits[i].argsort(descending=True).tolist() if allowed[kind, c]]
        assert found[i] == min(order.index(c) for c in np.flatnonzero(right[kind]))
    some = np.array([150, 3, 77])
    assert ranks_of(*admitted(answers, logits[some], labels[some], some)).tolist() == found[some].tolist()
    assert admitted(None, logits, labels, slice(0, 200))[0] is logits


@pytest.fixture
def classifier(request, tmp_path) -> str:
    if request.param == "zeroshot":
        pytest.importorskip("open_clip")
        return f"zeroshot[clip={tiny_clip(tmp_path / 'clip')},templates=simple]"
    return QUICK[request.param]


@pytest.mark.parametrize("classifier", [*sorted(QUICK), "zeroshot"], indirect=True)
def test_a_classifier_chooses_among_the_classes_of_the_set(classifier, tmp_path):
    data = ToyDataset()
    few = toy_set(tmp_path / "few", [0, 1], each=12)
    every = toy_set(tmp_path / "every", range(6), each=12)
    found = _checked(Shift(classifier, (few, every)), toy_encoder(), data, around(tmp_path / "f"))
    assert data.test_openings == 1
    assert found.outcomes.n == 24 + 72
    sizes = [24, 72]
    metrics = found.metrics
    assert metrics["top1"] == pytest.approx(
        (metrics["top1_few"] * sizes[0] + metrics["top1_every"] * sizes[1]) / 96
    )
    assert [of["classes"] for of in found.facts["sets"].values()] == [2, 6]

    # the same images of classes 0 and 1, among all six: fewer can be right
    among_all = _checked(Shift(classifier, (every,)), toy_encoder(), ToyDataset(), around(tmp_path / "g"))
    score = found.outcomes.hits if hasattr(found.outcomes, "hits") else found.outcomes.values
    wide = among_all.outcomes.hits if hasattr(among_all.outcomes, "hits") else among_all.outcomes.values
    assert (score[24:] == wide).all()  # a set's classes are its own business
    assert score[:24].sum() > wide[:24].sum()
    assert (score[:24] >= wide[:24]).all()

    # where each folder may be any class of the set, nothing is wrong
    (tmp_path / "few.json").write_text(json.dumps({"class 0": ["class 0", "class 1"], "class 1": "class 1"}))
    loose = _checked(Shift(classifier, (few,)), toy_encoder(), ToyDataset(), around(tmp_path / "h"))
    right = loose.outcomes.hits if hasattr(loose.outcomes, "hits") else loose.outcomes.values
    assert right[:12].all()
    assert (right[12:] == score[12:24]).all()


def test_every_protocol_that_heeds_answers_is_tested_for_it():
    heeding = {key for key, cls in registry.protocols().items() if cls.takes_answers}
    assert heeding - set(QUICK) <= {"zeroshot"}  # which is given a CLIP model above


def test_votes_against_brute_force(tmp_path):
    """k-NN: the votes of neighbours of other classes do not count."""
    data, encoder = ToyDataset(), toy_encoder()
    few = toy_set(tmp_path / "few", [1, 4], each=12)
    found = Shift(QUICK["knn"], (few,)).evaluate(encoder, data, around(tmp_path / "f"))
    split = Shifted([read_set(few, "shift", "toy", data.classes)], 6, SIZE, silent)
    readout = Readout(token="mean")
    store = FeatureStore(tmp_path / "own")
    bank, asked = (
        torch.nn.functional.normalize(
            torch.from_numpy(np.array(store.get(encoder, of, [readout], crop_pct=1.0)[readout])), dim=1
        )
        for of in (data.train, split)
    )
    for i, query in enumerate(asked):
        similarity = bank @ query
        votes = {1: 0.0, 4: 0.0}
        for neighbour in similarity.argsort(descending=True)[:20].tolist():
            if (label := int(data.train.labels[neighbour])) in votes:
                votes[label] += math.exp(float(similarity[neighbour]) / 0.07)
        assert found.outcomes.hits[i] == (max(votes, key=votes.get) == split.labels[i])


def test_the_sets_follow_one_another_and_travel_to_other_processes(tmp_path):
    sets = [
        read_set(toy_set(tmp_path / name, classes, seed=len(name)), "shift", "toy", ToyDataset().classes)
        for name, classes in (("one", [0, 3]), ("three", [1, 2, 5]))
    ]
    split = Shifted(sets, 6, SIZE, silent)
    twin = pickle.loads(pickle.dumps(split))
    assert len(split) == len(twin) == 8 * 5
    assert split.labels.tolist() == [c for c in (0, 3, 1, 2, 5) for _ in range(8)]
    assert split.sample_id(16) == "three/class 1/0.png"
    for i in (0, 15, 16, 39):
        path = tmp_path / split.sample_id(i)
        assert np.array_equal(twin.image(i), np.array(Image.open(path)))
    assert split.fingerprint == twin.fingerprint != Shifted(sets[:1], 6, SIZE, silent).fingerprint
    assert twin.answers.allowed[twin.answers.kinds[20]].nonzero()[0].tolist() == [1, 2, 5]


def test_other_protocols_still_owe_an_outcome_for_each_test_image(tmp_path, monkeypatch):
    path = toy_set(tmp_path / "set", [0, 1])
    monkeypatch.setattr(Shift, "own_test", False)
    with pytest.raises(EvaluationFailed, match="outcomes for 16 of 80 test images"):
        _checked(Shift("knn", (path,)), toy_encoder(), ToyDataset(), around(tmp_path / "f"))


def test_robustness_and_shift_do_not_wrap_each_other():
    for protocol in (Robustness("shift"), Shift("robustness", ("somewhere",))):
        with pytest.raises(UserError, match="does not classify images"):
            protocol.check(ToyDataset())

"""What every protocol owes the harness; a new one is a test case without anybody writing a test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from protocol_toys import ToyDataset, around, tiny_clip, toy_encoder, toy_set

from mimbench import registry, settings
from mimbench.errors import UserError
from mimbench.protocol import Evaluation, Protocol


def installed(cls: type[Protocol]) -> bool:
    return cls.requires is None or all(map(find_spec, cls.requires[0]))


ALL = sorted(
    (key, cls) for key, cls in registry.protocols().items() if cls.task == "classification" and installed(cls)
)
QUICK: dict[str, dict[str, Any]] = {
    "attentive": {"min_steps": 50, "epochs": 1, "lr": (0.01, 0.03), "pooling": ("capi",)},
    "finetune": {
        "epochs": 1,
        "min_steps": 40,
        "batch_size": 24,
        "lr": (0.3,),
        "mix_probability": 0.5,
        "rand_augment": "",
    },
    "linprobe": {"min_steps": 150, "epochs": 1},
    "fewshot": {"shots": (1, 5), "shares": (0.1,), "draws": 2, "C": (0.01, 1.0), "readouts": ("cls", "mean")},
    "logreg": {"grid": 4, "C": (1e-3, 10.0), "readouts": ("cls", "mean")},
    "robustness": {
        "classifier": "knn",
        "corruptions": ("brightness", "gaussian_noise"),
        "severities": (1, 3),
        "per_image": 2,
    },
}
# another value for each knob; what is not here fails below, so that no new knob goes untested
OTHER: dict[str, dict[str, Any]] = {
    "attentive": {
        "epochs": 200,
        "min_steps": 20,
        "batch_size": 16,
        "pooling": ("aim",),
        "layers": (0.5,),
        "lr": (0.1,),
        "weight_decay": (2.0,),
        "tokens": "all",
        "optimizer": "sgd",
        "momentum": 0.0,
        "beta2": 0.5,
        "warmup": 0.9,
        "clip_grad": 0.001,
        "augment": "crop",
        "checkpoints": 3,
        "choose_on": "test",
    },
    "diagnostics": {"images": 8, "crop_min": 0.9},
    "finetune": {
        "epochs": 20,
        "min_steps": 3,
        "batch_size": 8,
        "lr": (0.003,),
        "lr_rule": "absolute",
        "layer_decay": (0.1,),
        "weight_decay": 50.0,
        "warmup": 0.9,
        "min_lr": 0.05,
        "clip_grad": 1e-9,
        "drop_path": 0.9,
        "token": "cls+mean",
        "head_std": 0.5,
        "rand_augment": "rand-m9-inc1",
        "erasing": 1.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mix_probability": 1.0,
        "switch": 1.0,
        "smoothing": 0.9,
        "ema": 0.99,
        "epoch": "best",
        "choose_on": "test",
    },
    "linprobe": {
        "epochs": 1000,
        "min_steps": 20,
        "batch_size": 16,
        "lr": (0.03,),
        "momentum": 0.0,
        "readouts": ("mean@0.5",),
        "batch_norm": (True,),
        "statistics": "running",
        "optimizer": "lars",
        "beta2": 0.9,
        "weight_decay": (0.1,),
        "warmup": 0.5,
        "milestones": (0.2,),
        "init_std": 0.3,
        "augment": "crop",
        "checkpoints": 3,
        "choose_on": "test",
    },
    "logreg": {
        "C": (0.01, 0.1),
        "grid": 3,
        "readouts": ("mean@0.5",),
        "standardised": (False,),
        "max_iterations": 1,
        "tolerance": 0.9,
    },
    "knn": {"k": 3, "temperature": 3.0, "normalisations": ("final",), "tokens": ("cls",)},
    "fewshot": {
        "shots": (1, 5, 7),
        "shares": (0.3,),
        "ranked_by": 1,
        "draws": 3,
        "C": (1e-3,),
        "readouts": ("mean@0.5",),
        "normalisations": ("unit",),
    },
    "retrieval": {"normalisations": ("final",), "tokens": ("cls",)},
    "robustness": {
        "classifier": "knn[k=3]",
        "corruptions": ("contrast", "fog"),
        "severities": (5,),
        "per_image": 1,
    },
    "shift": {"classifier": "knn[k=3]"},
    "zeroshot": {"templates": "name", "token": "mean", "projection": "none"},
}
# what a knob needs beside it to have an effect
BESIDE: dict[str, dict[str, dict[str, Any]]] = {
    "finetune": {"switch": {"mix_probability": 1.0}, "smoothing": {"mix_probability": 1.0}},
    "linprobe": {
        "beta2": {"optimizer": "adamw"},
        "statistics": {"batch_norm": (True,), "batch_size": 16},
    },
}


def quick(cls: type[Protocol], **more: Any) -> Protocol:
    return cls(**{**QUICK.get(cls.key, {}), **more})


@pytest.fixture(scope="module", autouse=True)
def files_of_protocols(tmp_path_factory) -> None:
    """What zeroshot and shift cannot do without."""
    sets = tmp_path_factory.mktemp("sets")
    first, second = (
        toy_set(sets / name, classes) for name, classes in (("few", [0, 2, 3]), ("all", range(6)))
    )
    QUICK["shift"] = {"classifier": "knn", "sets": (first, second)}
    OTHER["shift"]["sets"] = (first,)
    if find_spec("open_clip"):
        folder = tmp_path_factory.mktemp("clip")
        QUICK["zeroshot"] = {"clip": tiny_clip(folder / "one"), "templates": "simple"}
        OTHER["zeroshot"]["clip"] = tiny_clip(folder / "other", fitted=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Callable[..., tuple[Evaluation, ToyDataset]]:
    """Evaluations that share one store of features."""
    folder = tmp_path_factory.mktemp("features")

    def evaluate(protocol: Protocol, data: ToyDataset | None = None, seed: int = 0):
        data = data or ToyDataset()
        return protocol.evaluate(toy_encoder(), data, around(folder, seed)), data

    return evaluate


@pytest.mark.parametrize(("key", "cls"), ALL)
def test_a_protocol_says_what_it_is(key, cls):
    assert cls.key == key
    assert isinstance(cls.version, int)
    assert len(cls.summary) > 20
    assert cls(**settings.arguments(cls, json.loads(json.dumps(settings.defaults(cls))))) == cls()


@pytest.mark.parametrize(
    ("cls", "preset"), [(cls, name) for _, cls in ALL for name in cls.presets], ids=lambda value: str(value)
)
def test_an_official_recipe_says_where_it_stands_and_can_be_typed(cls, preset):
    recipe = cls.presets[preset]
    assert len(recipe.source) > 20
    parsed = settings.parse_settings(cls.key, cls, recipe.fields)
    assert parsed != settings.defaults(cls)
    assert cls(**settings.arguments(cls, parsed)) == cls(**recipe.fields)


@pytest.mark.parametrize(("key", "cls"), ALL)
def test_test_is_opened_once_and_every_image_has_an_outcome(key, cls, evaluated):
    found, data = evaluated(quick(cls))
    assert data.test_openings == 1
    assert cls.own_test or found.outcomes.n == len(data.test)
    assert found.metrics[cls.metric] == pytest.approx(found.outcomes.score)
    if cls.ranked:
        assert found.metrics[cls.metric] > 1.5 / len(data.classes)  # it has learnt something
    json.dumps([found.metrics, found.selection], allow_nan=False)


@pytest.mark.parametrize(("key", "cls"), ALL)
def test_what_is_chosen_does_not_depend_on_the_test_labels(key, cls, evaluated):
    found, _ = evaluated(quick(cls))
    blind = ToyDataset()
    blind.test.labels = np.random.default_rng(0).permutation(blind.test.labels)
    again, _ = evaluated(quick(cls), blind)
    assert again.selection == found.selection
    needs_them = cls.ranked and not cls.own_test
    assert (again.outcomes.pack() != found.outcomes.pack()) == needs_them


@pytest.mark.parametrize(("key", "cls"), ALL)
def test_the_same_twice_and_silent(key, cls, evaluated, capfd):
    first, _ = evaluated(quick(cls))
    second, _ = evaluated(quick(cls))
    assert first.outcomes.pack() == second.outcomes.pack()
    assert (first.metrics, first.selection) == (second.metrics, second.selection)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(("key", "cls"), ALL)
def test_only_frozen_features_are_kept_and_nothing_else_is_written(key, cls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick(cls).evaluate(toy_encoder(), ToyDataset(), around(tmp_path / "features"))
    assert {path.name for path in tmp_path.iterdir()} <= {"features"}


@pytest.mark.parametrize(("key", "cls"), ALL)
def test_unlabelled_data_is_refused(key, cls):
    data = ToyDataset()
    data.classes = data.train.labels = None
    with pytest.raises(UserError, match="needs labels"):
        cls().check(data)


@pytest.mark.parametrize(("key", "cls"), ALL)
def test_backbones_without_class_token_or_depth_are_evaluated(key, cls, tmp_path):
    for options in ({"cls_token": False}, {"depth": 1}):
        found = quick(cls).evaluate(toy_encoder(**options), ToyDataset(), around(tmp_path))
        assert cls.own_test or found.outcomes.n == 80


@pytest.mark.parametrize(
    ("cls", "field"),
    [(cls, f.name) for _, cls in ALL for f in dataclasses.fields(cls)],
    ids=lambda value: value if isinstance(value, str) else value.key,
)
def test_every_knob_moves_something(cls, field, evaluated):
    """A score on validation, that is; a change of the candidates alone would prove little."""
    beside = BESIDE.get(cls.key, {}).get(field, {})
    before, _ = evaluated(quick(cls, **beside))
    after, _ = evaluated(quick(cls, **beside, **{field: OTHER[cls.key][field]}))
    if not before.selection or cls.key in ("robustness", "shift"):  # chooses nothing, or as another does
        assert before.metrics != after.metrics
        return
    names = [f"{chosen_on}_{cls.metric}" for chosen_on in ("validation", "test")]
    scores = [set(values_in(found.selection, names)) for found in (before, after)]
    assert scores[0] != scores[1]


def values_in(content: Any, names: list[str]) -> Iterator[float]:
    """All values that go by one of ``names``, wherever they stand."""
    if isinstance(content, dict):
        yield from (value for name, value in content.items() if name in names)
    if isinstance(content, dict | list):
        for inner in content.values() if isinstance(content, dict) else content:
            yield from values_in(inner, names)


def test_the_seed_orders_the_data_of_the_probe(evaluated):
    probe = quick(registry.find_protocol("linprobe"))
    first, second = (evaluated(probe, seed=seed)[0].selection for seed in (0, 1))
    assert first["candidates"] != second["candidates"]


def test_settings_out_of_range_are_refused():
    for key, given in {
        "linprobe": [
            {"epochs": 0},
            {"lr": []},
            {"lr": [-1]},
            {"momentum": 1},
            {"batch_norm": []},
            {"augment": "flip"},
            {"milestones": [1]},
        ],
        "finetune": [
            {"lr": [0]},
            {"layer_decay": [1.1]},
            {"drop_path": 1},
            {"rand_augment": "rand-x3"},
            {"rand_augment": "augmix-m3"},
            {"smoothing": 1},
            {"ema": 1},
        ],
        "logreg": [{"C": [0, 1]}, {"C": [1]}, {"grid": 0}, {"readouts": []}, {"tolerance": 1}],
        "fewshot": [{"shots": []}, {"shots": [0]}, {"shares": [1]}, {"draws": 0}, {"C": [0]}],
        "robustness": [{"corruptions": []}, {"corruptions": ["rain"]}, {"severities": [6]}, {"per_image": 0}],
        "retrieval": [{"normalisations": ["l2"]}, {"tokens": []}],
        "zeroshot": [{"clip": "ViT-B-16"}, {"clip": "ViT-B-16@no/such.pt"}, {"templates": "best"}],
        "knn": [{"k": 0}, {"k": []}, {"temperature": 0}, {"normalisations": ["l2"]}, {"tokens": []}],
    }.items():
        for wrong in given:
            with pytest.raises(UserError, match=f"{key}.{next(iter(wrong))}="):
                settings.parse_settings(key, registry.find_protocol(key), wrong)

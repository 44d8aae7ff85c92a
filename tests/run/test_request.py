"""One request behind command line, YAML and Python: the three must never drift apart."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import mimbench
from mimbench import cli, request
from mimbench.errors import UserError
from mimbench.request import Request, make_request

FIELDS = set(Request.model_fields) - {"about"}  # which experiment files alone may hold
# A value other than the default for each option: as typed, as in YAML, as in Python.
OTHER = {
    "methods": ("mae[depth=2],beit", "mae[depth=2],beit", ["mae[depth=2]", "beit"]),
    "protocol": ("knn,linprobe", ["knn", "linprobe"], ("knn", "linprobe")),
    "data": ("imagefolder:x", "imagefolder:x", "imagefolder:x"),
    "backbone": ("vit_tiny_patch4", "vit_tiny_patch4", "vit_tiny_patch4"),
    "image_size": ("32", 32, 32),
    "epochs": ("3", 3, 3.0),
    "images": ("1e3", 1000, 1000),
    "flops": ("1e12", "1e12", 1e12),
    "hours": ("0.5", 0.5, 0.5),
    "recipe": ("paper", "paper", "paper"),
    "batch_size": ("64", 64, 64),
    "micro_batch": ("16", 16, 16),
    "precision": ("fp32", "fp32", "fp32"),
    "seeds": ("0,2", [0, 2], (0, 2)),
    "set": ("mae.mask_ratio=0.9", {"mae": {"mask_ratio": 0.9}}, {"mae.mask_ratio": 0.9}),
    "tokenizer": ("file:dvae.pt", "file:dvae.pt", "file:dvae.pt"),
    "teacher": ("method:mae", "method:mae", "method:mae"),
    "baselines": (None, False, False),
    "skip_broken": (None, True, True),
    "workers": ("2", 2, 2),
    "out": ("elsewhere", "elsewhere", Path("elsewhere")),
    "dry_run": (None, True, True),
}
FLAGS = {"baselines": "--no-baselines", "skip_broken": "--skip-broken", "dry_run": "--dry-run"}


@pytest.fixture
def asked(monkeypatch):
    """Requests that reach the work, from whichever side."""
    caught: list[Request] = []

    class Nothing:
        first, ok = False, True

    def catch(wanted, watch, executor=None):
        caught.append(wanted)
        return Nothing()

    monkeypatch.setattr("mimbench.api.run_request", catch)
    return caught


def command(*arguments: str) -> None:
    assert get_command(cli.app).main(["run", *arguments], standalone_mode=False) == 0


def test_the_three_know_the_same_options():
    assert set(inspect.signature(mimbench.run).parameters) - {"watch"} == FIELDS
    (run,) = (c for c in cli.app.registered_commands if c.callback is cli.run)
    assert set(inspect.signature(run.callback).parameters) - {"context", "file"} == FIELDS
    assert set(OTHER) == FIELDS


def test_the_three_have_the_same_defaults(asked, tmp_path):
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("methods: mae")
    mimbench.run("mae")
    command("--methods", "mae")
    command(str(experiment))
    assert asked == [make_request({"methods": "mae"})] * 3


def test_the_command_lines_help_shows_the_true_defaults():
    for name, parameter in inspect.signature(cli.run).parameters.items():
        if name in FIELDS - {"methods"}:
            value = parameter.default
            assert make_request({"methods": "mae", name: value}) == make_request({"methods": "mae"}), name


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_each_option_means_the_same_in_all_three(asked, tmp_path, name):
    typed, written, given = OTHER[name]
    base = {} if name == "methods" else {"methods": "mae"}
    mimbench.run(**{**base, name: given})
    more = [] if name == "methods" else ["--methods", "mae"]
    command(*more, *([FLAGS[name]] if typed is None else ["--" + name.replace("_", "-"), typed]))
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump({**base, name: written}))
    command(str(experiment))
    assert asked[0] == asked[1] == asked[2]
    assert getattr(asked[0], name) != getattr(make_request({"methods": "mae"}), name)


def test_options_override_the_file(asked, tmp_path):
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        "methods: mae\nepochs: 5\nseeds: 0,1\nset: {mae.depth: 2, knn.k: 3}\nbaselines: false"
    )
    command(str(experiment), "--images", "100", "--set", "mae.depth=4", "--baselines")
    assert asked[0] == make_request(
        {"methods": "mae", "images": 100, "seeds": [0, 1], "set": {"mae.depth": 4, "knn.k": 3}}
    )


def test_an_option_given_at_its_default_overrides_the_file_too(asked, tmp_path):
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("methods: mae\nprotocol: knn")
    command(str(experiment), "--protocol", "linprobe")
    assert asked[0].protocol == ("linprobe",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sedes": 1}, "no option of a run is called 'sedes'; did you mean seeds"),
        ({"methods": None}, "methods are missing"),
        ({"methods": ""}, "methods is empty"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": "first"}, "seeds=first: must be a valid integer"),
        ({"seeds": [-1]}, "must not be negative"),
        ({"epochs": 0}, "epochs=0: must be greater than 0"),
        ({"epochs": float("nan")}, "epochs=nan: must be a finite number"),
        ({"epochs": float("inf")}, "epochs=inf: must be a finite number"),
        ({"epochs": 1, "hours": 1}, "epochs and hours are each a budget"),
        ({"batch_size": 0}, "batch_size=0: must be greater than 0"),
        ({"batch_size": 8, "micro_batch": 16}, "micro_batch 16 is larger than batch_size 8"),
        ({"image_size": -16}, "image_size=-16"),
        ({"workers": -1}, "workers=-1"),
        ({"recipe": "secret"}, "recipe=secret: must be 'shared' or 'paper'"),
        ({"precision": "fp8"}, "precision=fp8: must be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ({"set": ["mask_ratio=0.9"]}, "does not say whose setting"),
        ({"set": ["mae.mask_ratio"]}, "write NAME=VALUE"),
        ({"set": 7}, "set=7"),
        ({"baselines": "perhaps"}, "baselines=perhaps"),
    ],
)
def test_a_wrong_option_is_one_clear_sentence(given, says):
    with pytest.raises(UserError) as caught:
        make_request({"methods": "mae", **given})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"methods: [mae", "is not valid YAML in line 1"),
        (b"- mae", "holds no options"),
        (b"", "holds no options"),
        (b"\xff\xfe\x00", "is not valid YAML"),
    ],
)
def test_a_wrong_experiment_file_is_named(tmp_path, content, says):
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        request.read_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_experiment_file_is_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        request.read_file(tmp_path / "nowhere.yaml")

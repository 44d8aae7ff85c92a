"""The shipped experiments: every file is a request that runs, on equal terms, and says what it asks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimbench import experiments, registry, request
from mimbench.api import run_request
from mimbench.cli import app
from mimbench.data import open_dataset
from mimbench.errors import UserError
from mimbench.executors import Watch
from mimbench.plan import make_plan

NAMES = experiments.names()
ASKED = {"decoder_depth", "mask_ratio", "masking", "targets"}  # by the survey


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def rows(name: str, digits) -> dict[str, dict]:
    """Settings of the methods of an experiment by variant, floors aside."""
    asked, _ = experiments.read(name)
    plan = make_plan(asked, [digits], "fp32")
    content = [job.content for job in plan if job.kind == "evaluate" and job.content["role"] == "method"]
    return {one["variant"]: one["settings"] for one in content}


def test_the_surveys_questions_are_shipped():
    assert set(NAMES) >= ASKED


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_what_it_asks_and_how_to_read_the_answer(name):
    _, about = experiments.read(name)
    assert about.question.endswith("?")
    for text in (about.title, about.reading, about.axis_label):
        assert text
    assert about.found
    assert about.confounds
    cited = {number for text in about.found for number in re.findall(r"\d{4}\.\d{4,5}", text)}
    assert cited, "what was found has no source"
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}", source) for source in about.sources)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_fair(name):
    """Three seeds, one budget of computation for all rows, and a floor beside them."""
    asked, _ = experiments.read(name)
    assert len(set(asked.seeds)) == 3
    assert asked.budget is not None
    assert asked.budget.unit == "flops"
    assert asked.recipe == "shared"
    assert "random" in asked.methods
    assert len(asked.protocol) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_all_rows_have_a_place_in_the_figure(name, digits):
    _, about = experiments.read(name)
    found = rows(name, digits)
    assert len(found) >= 3
    if about.arms:
        floors = set(experiments.read(name)[0].methods) - set(found)
        assert {arm.row for arm in about.arms} - floors == set(found)
        assert all(arm.value for arm in about.arms)
        places = [(arm.group, arm.value) for arm in about.arms]
        assert len(set(places)) == len(places)
    else:
        values = [settings[about.axis] for settings in found.values()]
        assert all(isinstance(value, (int, float)) for value in values)
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", ["decoder_depth", "mask_ratio"])
def test_rows_along_an_axis_differ_in_nothing_else(name, digits):
    _, about = experiments.read(name)
    others = [{k: v for k, v in s.items() if k != about.axis} for s in rows(name, digits).values()]
    assert all(settings == others[0] for settings in others)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_would_run(name, digits, here):
    """A dry run builds every method once, and measures a step of each."""
    asked = request.make_request(
        {**request.read_file(experiments.find(name)), "dry_run": True, "out": here / "r"}
    )
    result = run_request(asked, Watch())
    assert len(result.summary.not_run) == len(result.plan) > 60
    assert not (here / "r").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_line_for_your_own_images_is_a_request(name):
    """As the file's comment has it: other data, other protocols, a budget of epochs."""
    text = experiments.find(name).read_text(encoding="utf-8").replace("\\\n#", "")
    (line,) = re.findall(rf"mimbench run {name} (--data .*)", text)
    words = line.split()
    given = {
        key.lstrip("-").replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)
    }
    asked = request.make_request(request.merge(request.read_file(experiments.find(name)), given))
    assert asked.set == {}  # of fine-tuning, which is not in that run
    assert asked.flops is None
    assert asked.epochs == 100
    assert asked.data == ("parquet:PHOTOS", "ade20k:SCENES", "coco:OBJECTS")
    assert set(asked.protocol) <= set(registry.protocols())


def test_a_name_is_found_and_options_override_its_file(here):
    done = command("run", "decoder_depth", "--dry-run", "--seeds", "0", "--epochs", "1", "--protocol", "knn")
    assert done.exit_code == 0, done.output
    assert "12 jobs" in done.output
    assert "fewshot" not in done.output


def test_a_file_of_that_name_wins(here):
    (here / "mask_ratio").write_text("methods: simmim\nprotocol: knn\nbaselines: false\nepochs: 1\n")
    done = command("run", "mask_ratio", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "simmim" in done.output
    assert "mae" not in done.output


def test_a_folder_of_that_name_does_not_hide_it(here):
    (here / "mask_ratio").mkdir()
    assert experiments.find("mask_ratio").parent == experiments.FOLDER


@pytest.mark.parametrize("given", ["mask_rato", "nonsense"])
def test_an_unknown_name_lists_the_shipped_ones(here, given):
    with pytest.raises(UserError) as error:
        experiments.find(given)
    assert given in str(error.value)
    assert all(name in str(error.value) for name in NAMES)


def test_what_looks_like_a_path_is_told_as_a_file(here):
    with pytest.raises(UserError, match=r"cannot read mask_ratio\.yaml"):
        request.read_file(experiments.find("mask_ratio.yaml"))


def test_the_list_names_all_with_their_questions_and_jobs(here, digits):
    done = command("experiments")
    assert done.exit_code == 0
    for name in NAMES:
        asked, about = experiments.read(name)
        assert name in done.output
        assert about.title in done.output
        assert re.search(rf"\b{len(make_plan(asked, [digits], 'fp32'))}\b", done.output)


def test_a_printed_file_is_the_file(here):
    done = command("experiments", "show", "targets")
    assert done.exit_code == 0
    (here / "mine.yaml").write_text(done.stdout, encoding="utf-8")
    assert request.make_request(request.read_file(here / "mine.yaml")) == experiments.read("targets")[0]
    assert command("experiments", "show", "target").exit_code == 2


def test_settings_go_with_the_methods_and_protocols_they_are_for():
    file = {"methods": "mae,beit", "protocol": "knn,linprobe:mae", "set": {"knn.k": 5, "mae.mask_ratio": 0.5}}
    assert request.merge(file, {"protocol": "linprobe"})["set"] == {"mae.mask_ratio": 0.5}
    assert request.merge(file, {"methods": "beit"})["set"] == {"knn.k": 5}
    assert request.merge(file, {"methods": "mae[norm_pix=false]"})["set"] == file["set"]
    assert request.merge(file, {"protocol": "all"})["set"] == file["set"]
    both = request.merge(file, {"protocol": "finetune", "set": ["finetune.epochs=3"]})["set"]
    assert both == {"mae.mask_ratio": 0.5, "finetune.epochs": 3}


def test_a_run_tells_the_question_and_its_answer(here):
    (here / "mine.yaml").write_text(
        "methods: ['mae[mask_ratio=0.5]', mae]\nprotocol: knn\nbaselines: false\nimages: 256\n"
        "about: {title: Ratio, question: 'How much?', axis: mask_ratio}\n"
    )
    done = command("run", "mine.yaml", "--out", "r")
    assert done.exit_code == 0, done.output
    assert "How much?" in done.output
    assert "knn@1 (top1) is highest at 0." in done.output
    (noted,) = (here / "r" / "requests").iterdir()
    assert json.loads(noted.read_text())["about"]["axis"] == "mask_ratio"

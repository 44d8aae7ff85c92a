"""The Python API does what the command line does, and hands out what it made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mimbench
from mimbench import UserError, records
from mimbench.executors import Watch
from mimbench.outcomes import Hits
from mimbench.registry import find_method

TINY = {"images": 64, "batch_size": 32, "image_size": 8, "precision": "fp32", "baselines": False}


class Heard(Watch):
    def __init__(self):
        self.jobs, self.stages = [], set()

    def start(self, job, number, total):
        self.jobs.append((number, total, job.kind))

    def progress(self, progress):
        self.stages.add(progress.stage)


@pytest.fixture(scope="module")
def made(tmp_path_factory, cache):
    """A results folder with two rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(cache))
        out = tmp_path_factory.mktemp("made")
        heard = Heard()
        return mimbench.run("mae,random", protocol="knn", out=out, watch=heard, **TINY), heard


def test_a_run_gives_the_table_and_says_what_was_done(made):
    result, heard = made
    assert result.ok
    assert len(result.summary.done) == len(result.plan) == 4
    assert list(result.table["variant"].sort_values()) == ["mae", "random"]
    assert result.table["value"].between(0.1, 1).all()
    assert len(result.frame) == 4
    assert [path.name for path in result.files] == ["leaderboard.csv", "leaderboard.html"]
    assert heard.jobs == [(i, 4, kind) for i, kind in enumerate(["pretrain", "evaluate"] * 2, start=1)]
    assert {"pre-training", "extracting features"} <= heard.stages


def test_each_pre_training_keeps_its_methods_card(made):
    """Pages are drawn where no method is installed; what was never trained has a card too."""
    result, _ = made
    kept = {r.content["method"]: r.facts["card"] for r in records.read_folder(result.folder) if not r.needs}
    for key in ("mae", "random"):
        assert kept[key] == json.loads(json.dumps(find_method(key).card.facts()))
    page = (result.folder / "leaderboard.html").read_text(encoding="utf-8")
    assert find_method("mae").card.paper in page


def test_records_hold_all_that_a_result_hangs_on(made):
    result, _ = made
    by_kind = {r.kind: r for r in records.read_folder(result.folder) if r.content["method"] == "mae"}
    pretrain, evaluate = by_kind["pretrain"], by_kind["evaluate"]
    assert evaluate.needs == {pretrain.id: pretrain.product["encoder.safetensors"]}
    assert len(Hits.unpacked(evaluate.outcomes).hits) == evaluate.data["sizes"]["test"]
    assert Hits.unpacked(evaluate.outcomes).hits.mean() == evaluate.metrics["top1"]
    assert evaluate.cost["wall_seconds"] == pretrain.cost["wall_seconds"] > 0
    assert pretrain.curve[-1]["images"] == 64
    assert pretrain.content["recipe"]["base_lr"] > 0
    assert evaluate.content["fields"]["temperature"] == 0.07
    assert evaluate.selection
    for record in (pretrain, evaluate):
        assert record.content["settings"]["mask_ratio"] == 0.75
        assert record.content["setting"]["precision"] == "fp32"
        assert record.content["setting"]["fingerprint"] == record.data["fingerprint"]
        assert record.environment["versions"]["torch"]
        assert record.started < record.finished


def test_an_encoder_is_found_by_row_by_id_and_by_path(made):
    result, _ = made
    (job,) = (j for j in result.plan if j.name.startswith("mae · pre"))
    folder = result.folder / "weights" / job.id
    images = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    tokens = [
        mimbench.load_encoder(source, out=result.folder)(images).patches
        for source in ("mae", job.id, folder, folder / "encoder.safetensors", str(folder))
    ]
    assert all(torch.equal(tokens[0], other) for other in tokens[1:])
    assert not torch.equal(tokens[0], mimbench.load_encoder("random", out=result.folder)(images).patches)


def test_an_encoder_that_was_not_trained_is_named(made):
    result, _ = made
    with pytest.raises(
        UserError, match=r"no encoder trained with seed 0 in .* is called 'mea'; did you mean mae"
    ):
        mimbench.load_encoder("mea", out=result.folder)
    with pytest.raises(UserError, match="no encoder trained with seed 1"):
        mimbench.load_encoder("mae", out=result.folder, seed=1)
    with pytest.raises(UserError, match="no results folder at nowhere"):
        mimbench.load_encoder("mae", out="nowhere")


def test_an_encoder_trained_under_several_settings_is_not_guessed(made, tmp_path):
    result, _ = made
    for record in records.read_folder(result.folder):
        (tmp_path / "records").mkdir(exist_ok=True)
        records.write(tmp_path, record)
        setting = {**record.content["setting"], "batch_size": 64}
        other = record.model_copy(
            update={"id": record.id[::-1], "content": {**record.content, "setting": setting}}
        )
        records.write(tmp_path, other)
    with pytest.raises(UserError, match=r"several settings.*batch (32|64).*batch (32|64)"):
        mimbench.load_encoder("mae", out=tmp_path)


def test_an_encoder_whose_weights_were_deleted_is_named(made, tmp_path):
    result, _ = made
    (tmp_path / "records").mkdir()
    for record in records.read_folder(result.folder):
        records.write(tmp_path, record)
    with pytest.raises(UserError, match="no weights file at"):
        mimbench.load_encoder("mae", out=tmp_path)


def test_what_a_teacher_cost_stands_with_its_pupil(made, tmp_path):
    """Trained here it is a job whose cost counts, through a tokenizer too; given, it costs nothing."""
    result, _ = made
    (given,) = (r.id for r in records.read_folder(result.folder) if r.name.startswith("mae · pre-training"))
    weights = result.folder / "weights" / given
    methods = f"tinymim,beitv2[vqkd.teacher=method:mae],tinymim[teacher=file:{weights}]"
    run = mimbench.run(methods, protocol="none", out=tmp_path, **TINY)
    assert run.ok
    trained = {r.content["variant"]: r for r in records.read_folder(tmp_path) if r.status == "done"}
    teacher = trained["mae"]
    pupil = trained["tinymim"]
    assert pupil.needs == {teacher.id: teacher.product["encoder.safetensors"]}
    assert pupil.cost["external"]["teacher"]["wall_seconds"] == teacher.cost["wall_seconds"] > 0
    (tokenizer,) = (r for r in trained.values() if r.kind == "tokenizer")
    (beit,) = (r for name, r in trained.items() if name.startswith("beitv2"))
    nested = beit.cost["external"]["tokenizer"]
    assert nested["wall_seconds"] == tokenizer.cost["wall_seconds"]
    assert nested["external"]["teacher"]["wall_seconds"] == teacher.cost["wall_seconds"]
    (other,) = (r for name, r in trained.items() if name.startswith("tinymim[teacher=sha256:"))
    assert not other.needs
    assert not other.cost["external"]


def test_a_leaderboard_is_a_frame_and_files(made):
    result, _ = made
    page = result.folder / "leaderboard.html"
    page.unlink()
    frame = mimbench.leaderboard(result.folder, format=["html"])
    assert list(frame["variant"].sort_values()) == ["mae", "random"]
    assert page.exists()
    page.unlink()
    mimbench.leaderboard(result.folder, format="")
    assert not page.exists()
    with pytest.raises(UserError, match="no format is called 'pdf'"):
        mimbench.leaderboard(result.folder, format="csv,pdf")


def test_the_leaderboard_command_needs_no_torch(made):
    result, _ = made
    code = (
        "import sys; sys.argv = ['mimbench', 'leaderboard', sys.argv[1]]; from mimbench import cli\n"
        "try: cli.main()\nexcept SystemExit as end: sys.exit(9 if 'torch' in sys.modules else end.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(result.folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mae" in done.stdout


def test_a_mistake_is_raised_to_the_caller(tmp_path):
    with pytest.raises(UserError, match="no method is called 'maee'"):
        mimbench.run("maee", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_setting_that_does_not_go_with_the_images_names_its_method(tmp_path):
    with pytest.raises(UserError, match=r"^simmim: a mask of ratio 0.6 in cells of 2x2 patches hides every"):
        mimbench.run("mae,simmim", data="digits", out=tmp_path, **TINY)
    assert not list(tmp_path.rglob("*.json"))


def test_a_folder_that_cannot_be_used_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder; name another folder with --out"):
        mimbench.run("mae", out=tmp_path / "file" / "results")


def test_what_the_package_offers_is_there():
    assert {"run", "load_encoder", "leaderboard", "UserError", "Result"} <= set(dir(mimbench))
    assert all(hasattr(mimbench, name) for name in mimbench.__all__)
    assert not hasattr(mimbench, "sedes")
    assert Path(mimbench.__file__).name == "__init__.py"

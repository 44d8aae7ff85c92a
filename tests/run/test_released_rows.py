"""Rows of weights that were trained elsewhere: what is asked, planned, recorded and shown of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import mimbench
from mimbench import board, checkpoint, records, registry
from mimbench.errors import UserError
from mimbench.plan import Plan, make_plan
from mimbench.request import make_request
from mimbench.spec import Job, Readout, Record, Setting
from mimbench.weights.convert import convert
from mimbench.weights.given import of_file, resolve
from tests.weights.released import converted, entry

SIZE = 32  # pixels; the files are of 64, so that positions are interpolated
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two converted files, the second with other weights."""
    folder = tmp_path_factory.mktemp("files")
    converted(folder)
    converted(folder / "other", cls_token=torch.ones(1, 1, 48))
    return folder


@pytest.fixture(scope="module")
def both(files) -> str:
    return (
        f"mae@vit_base=file:{files}/mae@vit_base.safetensors,mine=file:{files}/other/mae@vit_base.safetensors"
    )


@pytest.fixture(scope="module")
def out(both, cache, tmp_path_factory) -> Path:
    """A results folder with both rows and their floors under two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(cache))
        folder = tmp_path_factory.mktemp("released")
        assert mimbench.run(
            both, protocol="knn", image_size=SIZE, seeds=(0, 1), precision="fp32", out=folder
        ).ok
        return folder


@pytest.fixture
def plan(digits):
    def make(methods: str, **options) -> Plan:
        return make_plan(make_request({"methods": methods, "protocol": "knn", **options}), [digits], "fp32")

    return make


def labels(plan: Plan) -> list[str]:
    return [job.content["variant"] for job in plan if job.kind == "pretrain"]


def of(folder: Path, variant: str, kind: str = "pretrain", seed: int = 0) -> Record:
    (found,) = (
        r
        for r in records.read_folder(folder)
        if (r.kind, r.content["variant"], r.content["seed"]) == (kind, variant, seed)
    )
    return found


def rows(folder: Path) -> dict[str, board.Row]:
    (table,) = board.tables(board.load(folder))
    return {row.variant: row for row in table.rows}


def test_each_row_is_read_as_its_entry_says_and_another_readout_is_another_row(
    files, cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("MIMBENCH_CACHE", str(cache))
    source = files / "official.pth"
    named = []
    for token in ("cls", "mean"):
        target = tmp_path / f"{token}.safetensors"
        convert(source, entry().model_copy(update={"readout": Readout(token=token)}), target)
        named.append(f"{token}=file:{target}")
    made = mimbench.run(
        ",".join(named),
        "diagnostics",
        image_size=SIZE,
        precision="fp32",
        baselines=False,
        out=tmp_path / "out",
    )
    assert made.ok
    read = {token: of(tmp_path / "out", token, "evaluate") for token in ("cls", "mean")}
    assert {token: record.facts["readout"] for token, record in read.items()} == {
        "cls": "cls@-1",
        "mean": "mean@-1",
    }
    assert read["cls"].content["released"]["key"] != read["mean"].content["released"]["key"]


# What is asked ----------------------------------------------------------------------------------------


def test_ids_of_what_is_trained_here_stay_as_they_were():
    folder = RESULTS / "digits-60epochs"
    for path in sorted((folder / "records").iterdir())[:40]:
        record = records.read(path)
        setting = Setting.model_validate(record.content["setting"])
        assert setting.content() == record.content["setting"]
        needs = tuple(record.needs)
        assert Job(kind=record.kind, name="", content=record.content, needs=needs).id == record.id


def test_a_setting_is_of_what_is_trained_or_of_what_was_released_and_nothing_between():
    known = {"data": "d", "fingerprint": "f", "image_size": 32, "backbone": "b", "precision": "fp32"}
    released = Setting.of_released(**known)
    assert released.released
    assert "released weights" in released.label
    assert "None" not in released.label
    with pytest.raises(ValueError, match="together"):
        Setting(**known, budget=None, recipe="shared", batch_size=None)
    with pytest.raises(ValueError, match="not trained here"):
        _ = released.training


def test_floors_stand_before_the_rows_one_for_each_architecture(plan, both):
    assert labels(plan(both)) == ["pixels", "random[like=mae@vit_base]", "mae@vit_base", "mine"]
    assert labels(plan(both, baselines=False)) == ["mae@vit_base", "mine"]
    assert labels(plan(f"{both},random[like=mine]")) == [
        "pixels",
        "random[like=mine]",
        "mae@vit_base",
        "mine",
    ]
    alone = plan("pixels[like=vit_base_patch16]", baselines=False, image_size=SIZE)
    beside = plan(both, image_size=SIZE)
    assert {job.id for job in alone} <= {job.id for job in beside}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"epochs": 3}, "--epochs"),
        ({"backbone": "vit_tiny_patch16"}, "--backbone"),
        ({"recipe": "paper"}, "--recipe"),
        ({"batch_size": 64}, "--batch-size"),
    ],
)
def test_an_option_of_pre_training_is_refused_and_not_ignored(plan, both, more, said):
    with pytest.raises(UserError, match=f"{said} says how to pre-train"):
        plan(both, **more)


@pytest.mark.parametrize(
    ("with_", "said"),
    [
        ("mae", "would be trained here"),
        ("supervised", "would be trained here"),
        ("random", "say like which"),
        ("random[like=nope@vit_base]", "no method with released weights"),
        ("mae@vit_base[mask_ratio=0.5]", "takes no settings"),
    ],
)
def test_what_cannot_stand_beside_released_weights_is_said(plan, both, with_, said):
    with pytest.raises(UserError, match=said):
        plan(f"{both},{with_}")


def test_no_file_goes_by_the_name_of_other_weights(files, plan):
    path = files / "mae@vit_base.safetensors"
    for name in ("beit@vit_base", "timm:vit_base", "x@y"):
        with pytest.raises(UserError, match="a name of other weights"):
            resolve(f"{name}=file:{path}")
    assert resolve(f"mae@vit_base=file:{path}").label == "mae@vit_base"
    with pytest.raises(UserError, match="two files are called a"):
        plan(f"a=file:{path},a=file:{files}/other/mae@vit_base.safetensors")


def test_what_is_told_of_a_release_decides_no_result(plan, files, tmp_path):
    """Else a corrected sentence of the catalogue would have everything evaluated again."""
    path = shutil.copy(files / "mae@vit_base.safetensors", tmp_path)
    _, metadata = checkpoint.read_weights(Path(path))
    release = {**metadata["release"], "name": "", "epochs": 1, "licence": "another", "labels": True}
    backbone = checkpoint.load_encoder(path).backbone
    checkpoint.save_weights(Path(path), backbone, {**metadata, "release": release})
    again = of_file(Path(path), "mine")
    assert again.key == of_file(files / "mae@vit_base.safetensors", "mine").key
    assert again.release["licence"] == "another"


def test_a_size_that_an_encoder_cannot_be_shown_is_said_before_any_work(files, tmp_path):
    asked = f"a=file:{files}/mae@vit_base.safetensors"
    with pytest.raises(UserError, match=r"^a: .*\b24\b"):
        mimbench.run(asked, protocol="knn", image_size=24, baselines=False, out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("records/*"))


# What is recorded -------------------------------------------------------------------------------------


def test_what_pre_training_cost_is_not_known_and_never_nothing(out):
    found = rows(out)
    for unknown in ("hours", "pflops", "images_per_second", "memory_gib", "tokens_m"):
        assert math.isnan(found["mae@vit_base"].cost[unknown]), unknown
    assert found["random[like=mae@vit_base]"].cost["hours"] == 0  # nothing was trained: that is a figure
    encoder = checkpoint.load_encoder(out / "weights" / of(out, "mae@vit_base").id)
    count = sum(p.numel() for p in encoder.backbone.parameters())
    assert found["mae@vit_base"].cost["parameters_m"] == pytest.approx(count / 1e6)
    # patches and class token through linear layers and attention, a multiply-add is two
    n, d = (SIZE // 16) ** 2 + 1, 48
    flops = 2 * (n - 1) * 3 * 16 * 16 * d + 3 * (2 * n * 12 * d * d + 4 * n * n * d)
    assert found["mae@vit_base"].cost["encoder_gflops"] == pytest.approx(flops / 1e9, rel=0.01)


def test_the_record_names_the_file_and_all_that_is_known_of_it(out, files):
    facts = of(out, "mine").facts
    release = facts["release"]
    assert release["file_sha256"] == checkpoint.sha256(files / "other" / "official.pth")
    assert (release["data"], release["epochs"], release["licence"]) == ("ImageNet-1K", 1600, "CC-BY-NC-4.0")
    assert release["origin"] == "mae"
    assert all(release["dropped"].values())
    assert facts["card"]["key"] == "mae"
    assert facts["audit"]["own"]["token_rank"] > 0
    assert of(out, "mine", "evaluate").facts["release"] == release
    assert "release" not in of(out, "random[like=mae@vit_base]").facts


def test_random_weights_do_not_pass_for_the_release_whose_architecture_they_have(out):
    given = of_file(out / "weights" / of(out, "random[like=mae@vit_base]").id, "x")
    assert given.method == "random"
    assert not given.release.get("data")


def test_seeds_vary_the_evaluation_of_released_weights_and_random_ones_themselves(out):
    def hashes(variant: str) -> set[str]:
        return {of(out, variant, seed=seed).product[checkpoint.ENCODER_FILE] for seed in (0, 1)}

    assert len(hashes("mae@vit_base")) == 1
    assert len(hashes("random[like=mae@vit_base]")) == 2
    assert "seeds of the evaluation" in _console(out)


def test_a_file_of_the_right_size_is_not_kept_twice(files, cache, tmp_path):
    path = files / "mae@vit_base.safetensors"
    run = mimbench.run(f"a=file:{path}", protocol="none", image_size=64, baselines=False, out=tmp_path)
    assert run.ok
    (job,) = run.plan
    placed = tmp_path / "weights" / job.id / checkpoint.ENCODER_FILE
    assert checkpoint.sha256(placed) == checkpoint.sha256(path)
    assert placed.samefile(path)
    placed.unlink()  # a deleted folder takes nothing from elsewhere along
    assert path.is_file()
    assert mimbench.run(f"a=file:{path}", protocol="knn", image_size=64, baselines=False, out=tmp_path).ok


def test_weights_trained_here_bring_along_what_they_were_told(cache, tmp_path):
    trained = tmp_path / "trained"
    tiny = {"images": 32, "batch_size": 32, "image_size": 16, "backbone": "vit_micro_patch8"}
    assert mimbench.run("supervised", protocol="none", baselines=False, out=trained, **tiny).ok
    folder = next((trained / "weights").iterdir())
    assert mimbench.run(f"told=file:{folder}", protocol="none", image_size=16, out=tmp_path / "again").ok
    row = rows(tmp_path / "again")["told"]
    assert row.external == "labels"
    assert row.release.data == "digits"
    loose = shutil.copy(folder / checkpoint.ENCODER_FILE, tmp_path / "loose.safetensors")
    assert of_file(Path(loose), "x").release["labels"]  # its card says so where no record is left


# What is shown ----------------------------------------------------------------------------------------


def _console(folder: Path, width: int = 160) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in board.console_tables(board.tables(board.load(folder)), width):
        console.print(table)
    return console.export_text()


def test_tables_say_what_the_weights_are_and_nothing_clumsy(out):
    text = " ".join(_console(out).split())
    assert f"digits · {SIZE} px · vit_base_patch16 · released weights · fp32" in text
    assert "mae@vit_base (ImageNet-1K, 1600 epochs)" in text
    assert "what that cost is not known here" in text
    for clumsy in ("None", "as released recipe", "batch as released", "released released"):
        assert clumsy not in text
    page = (out / "leaderboard.html").read_text(encoding="utf-8")
    assert "trained elsewhere" in page
    assert "Released weights have no seed" in page
    assert "Cost of pre-training" not in page
    assert of(out, "mine").facts["release"]["file_sha256"] in page
    assert "CC-BY-NC-4.0" in page
    assert "None" not in page


def test_the_csv_has_data_epochs_and_file_of_every_row(out):
    frame = board.summary(board.tables(board.load(out))).set_index("variant")
    row = frame.loc["mine"]
    assert (row["weights"], row["pretrain_data"], row["pretrain_epochs"]) == ("released", "ImageNet-1K", 1600)
    assert row["weights_file_sha256"] == of(out, "mine").facts["release"]["file_sha256"]
    assert (row["budget"], row["batch_size"]) == ("as released", "as released")
    assert frame.loc["pixels", "weights"] == ""


def test_a_dry_run_plans_without_an_estimate(both, digits, tmp_path):
    found = mimbench.run(both, protocol="knn", image_size=SIZE, out=tmp_path / "dry", dry_run=True)
    assert not found.estimates
    assert not (tmp_path / "dry").exists()


def test_the_entries_of_a_method_are_told_where_the_method_is():
    from rich.console import Console

    from mimbench.catalogue import method_card

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(method_card("mae"))
    text = console.export_text()
    assert "mae@vit_base" in text
    assert "1600 epochs" in text
    assert "weights" not in registry.find_method("mae").card.facts()  # told once, in the catalogue


def test_cards_of_earlier_records_are_still_read():
    from mimbench.report.cards import MethodCard

    kept = json.loads('{"key": "mae", "name": "MAE", "weights": ["https://example.org/mae.pth"]}')
    assert MethodCard.model_validate(kept).name == "MAE"

"""``mimbench weights``: what people read, and what it leaves on the disk."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import mimbench
from mimbench import checkpoint
from mimbench.cli import app
from mimbench.errors import UserError
from mimbench.executors import Watch
from mimbench.progress import Progress
from mimbench.published import Figure
from mimbench.registry import find_origin, origins
from mimbench.weights import entries as catalogue
from mimbench.weights.checking import faults_of_foreign
from mimbench.weights.entries import converted_path, entries, find_entry
from mimbench.weights.entry import Entry, Mirror
from mimbench.weights.taking import take
from mimbench.weights.tell import figures_of

from ..web import Web, serving
from .proofs import transformers_mae
from .released import entry, official

OTHER = "mae@vit_base-again"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[Web]:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as web:
        yield web


@pytest.fixture
def small(web, monkeypatch) -> dict[str, Entry]:
    """The catalogue with two small files in place of large ones."""
    found = {**entries()}
    found["mae@vit_base"] = entry(web.put("/mae.pth", official()))
    found[OTHER] = entry(web.put("/again.pth", official()), name=OTHER)
    monkeypatch.setattr(catalogue, "entries", lambda: found)
    for module in ("tell", "taking", "checking"):
        monkeypatch.setattr(f"mimbench.weights.{module}.entries", lambda: found)
    return found


@pytest.fixture
def run(web) -> Run:
    def run(*arguments: str, columns: int = 200) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["weights", *arguments], env={"COLUMNS": str(columns)})
        return result.exit_code, result.stdout, result.stderr

    return run


def test_the_list_names_every_entry_once_and_fits_any_terminal(run):
    for columns in (80, 200):
        status, out, _ = run("list", columns=columns)
        assert status == 0
        assert max(map(len, out.splitlines())) <= columns
        told = [line.split()[0] for line in out.splitlines() if "@" in line]
        assert len(told) == len(entries())  # a long name goes on in a second line
        assert all(name.startswith(start) for start, name in zip(told, entries(), strict=True))
        assert all(name in told for name in entries() if len(name) <= 31 or columns == 200)
        assert out.count(" CC-BY-N") > 5


def test_data_sets_can_be_told_apart_on_a_narrow_terminal(run):
    _, out, _ = run("list", "--method", "ibot", columns=80)
    lines = {line.split()[0]: line for line in out.splitlines() if "@" in line}
    assert "IN-1K " in lines["ibot@vit_base"]
    assert "IN-22K" in lines["ibot@vit_base-pt22k"]


def test_the_list_as_csv_says_all_of_the_entry(run):
    _, out, _ = run("list", "--method", "mae,beit", "--backbone", "LARGE", "--format", "csv")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(out.removeprefix("\ufeff")))}
    assert {"mae@vit_large", "beit@vit_large", "beit@vit_large-ft22k"} <= rows.keys()
    assert all(name.split("@")[0] in ("mae", "beit") and "large" in name for name in rows)
    assert rows["beit@vit_large-ft22k"]["labels"] == "True"
    assert float(rows["mae@vit_large"]["epochs"]) == 1600
    assert rows["mae@vit_large"]["at_hand"] == "to fetch"
    frame = mimbench.released_weights("mae,beit", "LARGE")
    assert list(frame["name"]) == list(rows)


def test_the_list_as_markdown_is_one_table(run):
    _, out, _ = run("list", "--method", "mae", "--format", "markdown")
    head, rule, *rows = out.splitlines()
    assert head.count("|") == rule.count("|") == 8
    assert all(row.count("|") == 8 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--method", "mea"), "did you mean mae"),
        (("list", "--backbone", "nothing_such"), "no released weights have 'nothing_such'"),
        (("list", "--format", "pdf"), "no format is called 'pdf'"),
        (("show", "mae@vit_bsae"), "did you mean mae@vit_base"),
        (("get", "mae@vit_base,mae@vit_bsae"), "did you mean mae@vit_base"),
        (("check", "mae@vit_bsae"), "did you mean mae@vit_base"),
        (("get", " , "), "no released weights are named"),
        (("convert", "x.pth", "--as", "mae@vit_base"), "no weights file at x.pth"),
        (("convert", "x.pth", "--as", "mae@vit_base", "--method", "mine"), "add --own TITLE"),
    ],
)
def test_a_mistake_is_a_sentence(run, arguments, said):
    status, _, err = run(*arguments)
    assert status == 2
    assert said in err


def test_an_entry_is_shown_with_its_mirrors_and_figures(run):
    status, out, _ = run("show", "ibot@vit_base")
    assert status == 0
    shown = find_entry("ibot@vit_base")
    words = [mirror.url for mirror in shown.mirrors] + [
        "no; mimbench weights get ibot@vit_base",
        shown.licence,
    ]
    flat = "".join(out.split())
    for word in words:
        assert "".join(word.split()) in flat
    assert all(f"{figure.value:g}" in out for figure in figures_of(shown))


def test_every_entry_can_be_shown():
    from rich.console import Console

    from mimbench.weights.tell import card

    console = Console(file=io.StringIO(), width=100)
    for name in list(entries()):
        console.print(card(find_entry(name)))


def test_figures_of_other_backbones_data_or_lengths_are_not_shown_as_an_entry_s():
    shown = find_entry("beitv2@vit_base")
    found = figures_of(shown)
    assert found
    for figure in found:
        assert (figure.key, figure.backbone_key) == ("beitv2", "vit_base_patch16")
        assert figure.epochs in (None, 1600)
        assert figure.pretrain_data in ("", "ImageNet-1K")
    blocks, drawn = (figures_of(find_entry(f"ibot@vit_base{which}")) for which in ("", "-rand"))
    assert blocks
    assert drawn
    assert not {id(figure) for figure in blocks} & {id(figure) for figure in drawn}


def test_what_an_entry_asks_of_its_figures_is_a_field_of_theirs():
    for shown in entries().values():
        assert shown.figures.keys() <= Figure.model_fields.keys(), shown.name


def test_get_fetches_converts_and_says_what_became_of_it(run, small, web):
    status, out, err = run("get", f"mae@vit_base,{OTHER}")
    assert (status, err) == (0, "")
    used = len(checkpoint.read_metadata(converted_path(small[OTHER]))["release"]["used"])
    assert out.splitlines() == [
        f"{name}: {used} tensors used; none dropped; none fresh; {converted_path(small[name])}"
        for name in ("mae@vit_base", OTHER)
    ]
    assert web.paths == ["/mae.pth", "/again.pth"]
    assert mimbench.load_encoder("mae@vit_base").image_size == 64
    assert [row["at_hand"] for _, row in mimbench.released_weights("mae").iterrows()].count("converted") == 2
    assert "converted: " in run("show", OTHER)[1]


def test_get_goes_on_after_a_failure_and_names_it(run, small, web):
    del web.files["/mae.pth"]
    status, out, err = run("get", f"mae@vit_base,{OTHER}")
    assert status == 1
    assert out.startswith(f"{OTHER}: ")
    assert "failed: mae@vit_base: " in err
    assert "404 (Not Found)" in err
    assert err.splitlines()[-1] == "not fetched: mae@vit_base"


def test_get_that_is_stopped_says_how_to_go_on(run, small, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mimbench.weights.cached.convert", stop)
    status, _, err = run("get", "mae@vit_base")
    assert status == 130
    assert err == "stopped; run the same command again to go on\n"


def test_check_takes_conversions_of_other_places_too(run, small):
    run("get", "mae@vit_base")
    other = converted_path(small["mae@vit_base"]).with_name("timm-some_vit-12345678.safetensors")
    converted_path(small["mae@vit_base"]).rename(other)
    assert run("check") == (0, f"{other.stem}: ok\n", "")


def test_get_keeps_and_copies_where_that_is_asked_for(run, small, web, tmp_path):
    run("get", "mae@vit_base")
    status, out, _ = run("get", "mae@vit_base", "--keep", "--out", "here")
    assert status == 0
    assert (
        Path("here/mae@vit_base.safetensors").read_bytes()
        == converted_path(small["mae@vit_base"]).read_bytes()
    )
    assert out.rstrip().endswith("here/mae@vit_base.safetensors")
    assert [path.read_bytes() for path in (tmp_path / "cache" / "weights").rglob("mae.pth")] == [official()]
    converted_path(small["mae@vit_base"]).unlink()
    assert mimbench.released_weights("mae")["at_hand"].iloc[0] == "fetched"


def test_check_says_what_is_wrong_with_converted_files(run, small, monkeypatch):
    assert run("check")[1].startswith("no converted files")
    run("get", f"mae@vit_base,{OTHER}")
    assert run("check") == (0, f"{OTHER}: ok\nmae@vit_base: ok\n", "")

    path = converted_path(small[OTHER])
    lazy, metadata = checkpoint.read_weights(path)
    state = dict(lazy)
    state["norm.weight"][0] = torch.nan
    save_file(state, path, {"mimbench": json.dumps(metadata)})
    status, out, _ = run("check")
    assert status == 1
    assert out.splitlines()[0] == f"{OTHER}: norm.weight holds NaN or infinity"

    path.write_bytes(path.read_bytes()[:50])
    assert "not a readable safetensors file" in run("check", OTHER)[1]

    monkeypatch.setitem(origins(), "mae", replace(find_origin("mae"), version=9))
    status, out, _ = run("check", "mae@vit_base")
    assert status == 1
    assert "version 1 of what reads mae files made it, and today's is 9" in out


def test_check_compares_with_the_known_sum_and_says_what_is_not_there(run, small):
    run("get", "mae@vit_base")
    mirror = small["mae@vit_base"].mirrors[0].model_copy(update={"sha256": "0" * 64})
    small["mae@vit_base"] = small["mae@vit_base"].model_copy(update={"mirrors": (mirror,)})
    status, out, _ = run("check", f"mae@vit_base,{OTHER}")
    assert status == 1
    digest = hashlib.sha256(official()).hexdigest()
    assert f"mae@vit_base: it was made of a file with the sha256 {digest}, and the catalogue knows 000" in out
    assert f"{OTHER}: it is not converted yet" in out


def test_check_lists_all_that_a_foreign_file_has_wrong_and_writes_nothing(run, small, tmp_path):
    Path("fine.pth").write_bytes(official())
    assert run("check", "mae@vit_base", "fine.pth") == (0, "fine.pth: ok\n", "")
    wrong = {"cls_token": None, "norm.bias": None, "stray": torch.zeros(1), "another": torch.zeros(1)}
    wrong |= {"norm.weight": torch.full((48,), torch.inf), "patch_embed.proj.bias": torch.zeros(5)}
    Path("wrong.pth").write_bytes(official(**wrong))
    status, out, _ = run("check", "mae@vit_base", "wrong.pth")
    assert status == 1
    assert [line.removeprefix("wrong.pth: ") for line in out.splitlines()] == [
        "it has the unexpected another",
        "it has the unexpected stray",
        "it has nothing for the encoder's cls_token",
        "it has nothing for the encoder's norm.bias",
        "patch_embed.proj.bias of wrong.pth gives the shape [5] for the encoder's patch_embed.proj.bias, "
        "expected [48]; name the entry of that architecture",
        "tensor 'norm.weight' of wrong.pth holds NaN or infinity; it is not usable",
    ]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    Path("noise.pth").write_bytes(b"noise")
    assert run("check", "mae@vit_base", "noise.pth")[0] == 2


def test_check_tells_the_released_file_from_another_of_its_layout(run, small):
    Path("mine.pth").write_bytes(official())
    known = small["mae@vit_base"].mirrors[0].model_copy(update={"sha256": "0" * 64})
    small["mae@vit_base"] = small["mae@vit_base"].model_copy(update={"mirrors": (known,)})
    status, out, _ = run("check", "mae@vit_base", "mine.pth")
    assert status == 1
    assert (
        f"its sha256 is {hashlib.sha256(official()).hexdigest()}, and that of the released file is 0000"
        in out
    )


def test_a_file_fetched_by_hand_takes_the_place_of_its_entry(run, small, web):
    Path("mine.pth").write_bytes(official())
    status, out, _ = run("convert", "mine.pth", "--as", "mae@vit_base")
    assert status == 0
    assert str(converted_path(small["mae@vit_base"])) in out
    mimbench.load_encoder("mae@vit_base")
    assert web.asked == []


def test_a_file_that_is_not_the_released_one_does_not_take_its_place(run, small):
    Path("mine.pth").write_bytes(official())
    mirror = small["mae@vit_base"].mirrors[0].model_copy(update={"sha256": "0" * 64})
    small["mae@vit_base"] = small["mae@vit_base"].model_copy(update={"mirrors": (mirror,)})
    status, _, err = run("convert", "mine.pth", "--as", "mae@vit_base")
    assert status == 2
    assert "mine.pth is not the released mae@vit_base" in err
    assert not converted_path(small["mae@vit_base"]).exists()


def test_own_weights_claim_nothing_of_the_entry_whose_layout_they_have(run, small):
    Path("mine.pth").write_bytes(official())
    status, out, err = run(
        "convert", "mine.pth", "--as", "mae@vit_base", "--own", "my-run", "--method", "hpm"
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "mimbench run --methods my-run=file:my-run.safetensors evaluates it"
    metadata = checkpoint.read_metadata(Path("my-run.safetensors"))
    release = metadata["release"]
    assert (metadata["method"], release["name"]) == ("hpm", "hpm@my-run")
    assert [release[name] for name in ("data", "epochs", "licence")] == ["", None, ""]
    assert release["file_sha256"] == hashlib.sha256(official()).hexdigest()
    assert not converted_path(small["mae@vit_base"]).exists()
    encoder = mimbench.load_encoder("mine=file:my-run.safetensors")
    assert encoder(torch.rand(1, 3, 64, 64)).patches.shape == (1, 4, 4, 48)


def test_own_weights_may_be_of_another_size(run, small):
    Path("mine.pth").write_bytes(official(pos_embed=torch.randn(1, 5, 48)))
    arguments = ("convert", "mine.pth", "--as", "mae@vit_base", "--own", "small-images")
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--image-size", "32", "--out", "folder.d/x.safetensors")[0] == 0
    assert mimbench.load_encoder("folder.d/x.safetensors").image_size == 32
    status, _, err = run(*arguments, "--image-size", "32", "--set", "depth=2")
    assert status == 2
    assert "more than the encoder takes: blocks.2." in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--own", "My Run"), "'My Run' cannot be a title"),
        (("--own", "../x"), "cannot be a title"),
        (("--own", "vit_large"), "mae@vit_large is a released file"),
        (("--own", "x", "--method", "A!"), "no key of a method"),
        (("--own", "x", "--set", "depth"), "OPTION=VALUE"),
        (("--own", "x", "--set", "dpeth=3"), "cannot be built with dpeth"),
        (("--own", "x", "--backbone", "vit_bsae_patch16"), "did you mean vit_base_patch16"),
        (("--own", "x", "--out", "x.pth"), "name it x.pth.safetensors"),
    ],
)
def test_own_weights_without_a_proper_name_are_refused(run, small, arguments, said):
    Path("mine.pth").write_bytes(official())
    status, _, err = run("convert", "mine.pth", "--as", "mae@vit_base", *arguments)
    assert status == 2
    assert said in err


def test_weights_that_are_not_there_are_a_sentence(small):
    with pytest.raises(UserError, match="did you mean"):
        mimbench.load_encoder("mae@vit_bsae")


def test_a_run_tells_how_far_a_file_is_that_it_fetches(small, tmp_path):
    told = []

    class Heard(Watch):
        def progress(self, progress: Progress) -> None:
            told.append(progress.stage)

    mimbench.run("mae@vit_base", "none", image_size=64, baselines=False, out=tmp_path / "out", watch=Heard())
    assert any(stage.startswith("fetching mae.pth, ") for stage in told)
    assert "converting mae@vit_base" in told
    assert (tmp_path / "out" / "records").is_dir()


def test_a_file_by_hand_may_be_of_a_mirror_s_layout_too(tmp_path):
    proof = transformers_mae.whole_images()
    mirror = Mirror(url="https://example.org/model.safetensors", origin="transformers_mae")
    source = tmp_path / "hub.pth"
    torch.save(proof.content, source)
    known = proof.entry.model_copy(update={"origin": "mae", "mirrors": (mirror,)})
    assert faults_of_foreign(source, known) == []
    path = take(source, known, tmp_path / "encoder.safetensors")
    assert checkpoint.read_metadata(path)["release"]["origin"] == "transformers_mae"
    alone = known.model_copy(update={"mirrors": ()})
    assert faults_of_foreign(source, alone) != []
    with pytest.raises(UserError, match="read as mae@vit_base-visualize \\(mae layout\\)"):
        take(source, alone, tmp_path / "encoder.safetensors")

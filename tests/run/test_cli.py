"""The command line: a mistake is one clear sentence on stderr, never a traceback, and loses nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mimbench import cli, records, registry
from mimbench.spec import FORMAT, Record

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path) -> Run:
    """The command line in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mimbench", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """The sentence with which a command refuses."""

    def refused(*arguments: str) -> str:
        status, _, err = run(*arguments)
        assert status == 2
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return refused


def photo(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def places(tmp_path) -> Path:
    """Datasets with something wrong with each."""
    (tmp_path / "empty").mkdir()
    for i in range(8):
        photo(tmp_path / "one" / "train" / "cat" / f"{i}.png", i)
        photo(tmp_path / "broken" / "train" / "cat" / f"{i}.png", i)
        photo(tmp_path / "broken" / "train" / "dog" / f"{i}.png", 100 + i)
    (tmp_path / "broken" / "train" / "dog" / "3.png").write_bytes(b"no image")
    (tmp_path / "tables").mkdir()
    column = [{"bytes": _png(i), "path": None} for i in range(8)]
    table = pa.table({"image": column, "label": pa.array([i % 2 for i in range(8)])})
    whole = tmp_path / "tables" / "train-00000-of-00001.parquet"
    pq.write_table(table, whole)
    whole.write_bytes(whole.read_bytes()[:-100])
    return tmp_path


def _png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(file, "png")
    return file.getvalue()


BAD_DATA = [
    ("digitz", "no dataset is called 'digitz'; did you mean digits"),
    ("digits:here", "takes no argument"),
    ("imagefolder:", "imagefolder"),
    ("imagefolder:nowhere", "nowhere"),
    ("imagefolder:empty", "empty"),
    ("imagenet:nowhere", "nowhere"),
    ("cifar10:nowhere", "nowhere"),
    ("parquet:nowhere", "nowhere"),
    ("parquet:empty", "empty"),
    ("parquet:tables", "tables"),
    ("empty", "write imagefolder:empty"),
]


@pytest.mark.parametrize(("spec", "says"), BAD_DATA)
@pytest.mark.parametrize("command", [("data", "check"), ("run", "--methods=mae", "--data")])
def test_wrong_data_are_refused(refused, places, command, spec, says):
    assert says in refused(*command, spec)
    assert not (places / "mimbench-results").exists()


def test_data_a_run_would_refuse_fail_their_check(run, refused, places):
    for spec, says in (("imagefolder:one", "one class only"), ("imagefolder:broken", "3.png")):
        status, out, _ = run("data", "check", spec)
        assert status == 1
        assert "problem:" in out
        assert says in refused("run", "--methods=mae", "--data", spec)


def test_broken_images_can_be_left_out(run, places):
    status, out, err = run(
        "run", "--methods=mae", "--data=imagefolder:broken", "--skip-broken", "--image-size=16",
        "--backbone=vit_micro_patch4", "--no-baselines", "--dry-run",
    )  # fmt: skip
    assert status == 0, err
    assert "imagefolder:broken" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods=maee"], "no method is called 'maee'; did you mean mae"),
        (
            ["--methods=mae[mask_rato=0.5]"],
            "no setting of mae is called 'mask_rato'; did you mean mask_ratio",
        ),
        (["--methods=mae[mask_ratio=1.5]"], "mae.mask_ratio=1.5: must be less than 1"),
        (["--methods=mae[mask_ratio=0.5"], "brackets do not match"),
        (["--set=mae.mask_ratio=1.5"], "mae.mask_ratio=1.5: must be less than 1 (default 0.75)"),
        (["--set=beit.mask_ratio=0.5"], "no method or protocol of this run is called 'beit'"),
        (["--protocol=kn"], "no protocol is called 'kn'; did you mean knn"),
        (["--protocol=knn", "--set=knn.k=5000"], "knn.k=5000 asks for more neighbours than the"),
        (
            ["--backbone=vit_mikro_patch2"],
            "no backbone is called 'vit_mikro_patch2'; did you mean vit_micro_patch2",
        ),
        (["--backbone=vit_micro_patch3"], "patches of 3 pixels, which do not divide an image size of 16"),
        (["--image-size=15"], "do not divide an image size of 15"),
        (["--epochs=0"], "epochs=0: must be greater than 0"),
        (["--epochs=1", "--hours=1"], "epochs and hours are each a budget"),
        (["--tokenizer=file:nowhere.pt", "--methods=beit"], "cannot read the tokenizer nowhere.pt"),
        (["--tokenizer=file:notes.txt", "--methods=beit"], "notes.txt"),
        (["--out=notes.txt"], "notes.txt"),
        (["--out=/proc/mimbench"], "/proc/mimbench"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["notes.txt"], "notes.txt"),
        (["sedes.yaml"], "no option of a run is called 'sedes'; did you mean seeds"),
    ],
)
def test_a_wrong_run_is_refused_before_any_work(refused, tmp_path, options, says):
    (tmp_path / "notes.txt").write_text("these are notes")
    (tmp_path / "sedes.yaml").write_text("sedes: 0,1")
    before = sorted(tmp_path.rglob("*"))
    methods = [] if any(o.startswith("--methods") for o in options) else ["--methods=mae"]
    assert says in refused("run", *methods, *options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_methods_says_what_to_give(refused):
    assert "methods are missing; name some, as in --methods mae,beit" in refused("run")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--sedes=1"),
        ("run", "--epochs=many"),
        ("runn",),
        ("data", "chek", "digits"),
        ("methods", "show"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(run, arguments):
    status, _, err = run(*arguments)
    assert status == 2
    assert "Traceback" not in err
    assert err.strip()


@pytest.mark.parametrize("command", [("leaderboard",), ("run", "--methods=mae", "--out")])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            json.dumps({"format": FORMAT + 1}),
            f"newer mimbench (format {FORMAT + 1}, this one reads up to {FORMAT})",
        ),
        ('{"format": 1,', "is damaged"),
    ],
)
def test_damaged_and_newer_records_are_named_and_kept(refused, tmp_path, command, content, says):
    folder = tmp_path / "results"
    path = records.path_of(folder, "0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    extra = ("--images=64", "--no-baselines") if command[0] == "run" else ()
    error = refused(*command, str(folder), *extra)
    assert says in error
    assert str(path) in error
    assert path.read_text() == content


def test_the_leaderboard_of_no_folder_is_refused(refused):
    assert "no results folder at nowhere" in refused("leaderboard", "nowhere")


def test_an_unknown_format_gets_a_suggestion(refused, tmp_path):
    (tmp_path / "mimbench-results" / "records").mkdir(parents=True)
    assert "no format is called 'htm'; did you mean html" in refused("leaderboard", "--format=htm")


def test_a_leaderboard_of_nothing_says_so(refused, tmp_path):
    (tmp_path / "mimbench-results" / "records").mkdir(parents=True)
    assert "mimbench-results" in refused("leaderboard")


def test_methods_are_listed_and_shown(run, refused):
    status, out, _ = run("methods")
    assert status == 0
    for key in registry.methods():
        assert key in out
        status, card, _ = run("methods", "show", key)
        assert status == 0
        assert key in card
    shown = " ".join(run("methods", "show", "mae")[1].split())
    assert "mae.mask_ratio 0.75 number > 0, < 1" in shown
    assert "2111.06377" in shown
    assert "no method is called 'mea'; did you mean mae" in refused("methods", "show", "mea")


def test_protocols_are_listed_with_their_settings(run):
    status, out, _ = run("protocols")
    assert status == 0
    for key, cls in registry.protocols().items():
        assert f"{key}@{cls.version}" in out
    assert "knn.temperature" in out


def test_a_dataset_is_described(run):
    status, out, _ = run("data", "check", "digits")
    assert status == 0
    assert "train 1,797" in out
    assert "ready to run" in out


def test_the_installation_is_examined(run):
    status, out, _ = run("doctor")
    assert status == 0
    assert "torch" in out
    assert "all that runs need is there" in out


def test_a_dry_run_lists_jobs_and_leaves_nothing(run, tmp_path):
    options = ("--methods=beit", "--images=6400", "--batch-size=8", "--image-size=8", "--protocol=knn")
    status, out, err = run("run", *options, "--dry-run")
    assert status == 0, err
    assert "vqvae · tokenizer · seed 0" in out
    assert "beit · knn · seed 0" in out
    assert "9 jobs, 0 done, 9 to do" in out
    assert "estimate:" in out
    assert list(tmp_path.iterdir()) == []


def test_help_and_version_load_no_torch():
    code = (
        "import sys; sys.argv = ['mimbench', sys.argv[1]]; from mimbench import cli\n"
        "try: cli.main()\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    for argument in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "mimbench" in done.stdout


def test_the_installed_command_refuses_in_one_line(tmp_path):
    command = Path(sys.executable).with_name("mimbench")
    done = subprocess.run(
        [command, "leaderboard", "nowhere"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr == "error: no results folder at nowhere; name the one given to mimbench run with --out\n"
    )


def test_names_are_shown_as_they_are_and_not_as_markup(run, tmp_path):
    path = tmp_path / "mimbench-results"
    (path / "records").mkdir(parents=True)
    record = Record(
        id="0" * 16, kind="evaluate", name="[red]mae[/red] · knn", status="failed", error="[bold]no[/bold]",
        content={}, started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    from rich.console import Console

    from mimbench.console import Lines

    file = io.StringIO()
    lines = Lines(Console(file=file, width=200))
    lines.job = record.name
    lines.finish(None, record)
    assert "[red]mae[/red] · knn" in file.getvalue()
    assert "[bold]no[/bold]" in file.getvalue()

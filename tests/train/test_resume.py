"""A run that was interrupted or killed ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from train_tiny import RECIPE, dataset, setting, stateful, weights

from mimbench import checkpoint, files, train_loop
from mimbench.errors import UserError
from mimbench.precision import resolve_precision
from mimbench.progress import Progress
from mimbench.train import Trained, pretrain

AUTO = resolve_precision("auto", "cpu")


@pytest.fixture(autouse=True)
def every_step_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_loop, "LOOK_SECONDS", 0.0)


def run(folder: Path, report=lambda progress: None, precision: str = "fp32", **options) -> Trained:
    """Initial weights depend on the seed alone; the outer generator is left elsewhere each time."""
    method = stateful()
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    return pretrain(
        method,
        dataset(),
        recipe=RECIPE,
        setting=setting(precision=precision),
        seed=3,
        folder=folder,
        report=report,
        **options,
    )


def interrupt_at(share: float, number: int):
    sent = []

    def report(progress: Progress) -> None:
        if share <= progress.done < 1 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    return report


@pytest.mark.parametrize("precision", sorted({"fp32", AUTO}))
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path, precision: str, number: int, raised: type[BaseException]
) -> None:
    whole = run(tmp_path / "whole", precision=precision)
    for share in (0.2, 0.7):
        with pytest.raises(raised):
            run(tmp_path / "parts", interrupt_at(share, number), precision=precision)
        assert (tmp_path / "parts" / "checkpoint.pt").exists()
        assert not (tmp_path / "parts" / "encoder.safetensors").exists()
    parts = run(tmp_path / "parts", precision=precision)
    assert parts.product == whole.product
    assert parts.curve == whole.curve
    for fact in ("images", "flops", "tokens_seen", "parameters_total"):
        assert parts.cost[fact] == whole.cost[fact] > 0
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [
        "encoder.safetensors",
        "method.safetensors",
    ]


def test_the_stateful_method_trains_at_all(tmp_path: Path) -> None:
    """Else the tests around would compare initial weights."""
    trained = run(tmp_path)
    state, initial = weights(tmp_path), stateful().state_dict()
    assert state["steps"] == 10
    for name in ("encoder.blocks.0.weight", "teacher.blocks.0.weight", "encoder.norm.running_mean"):
        assert not torch.equal(state[name], initial[name])
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from mimbench import train_loop
    from test_resume import run

    train_loop.LOOK_SECONDS = 0.0
    train_loop.CHECKPOINT_SHARE = 1.0
    real_replace = os.replace

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def while_training(folder):
        def report(progress):
            if progress.done >= 0.5 and (folder / "checkpoint.pt").exists():
                die()
        run(folder, report, checkpoint_every=0)

    def while_writing(folder):
        writes = []
        def replace(source, target):
            writes.append(target)
            if len(writes) == 2:
                die()
            real_replace(source, target)
        os.replace = replace
        run(folder, checkpoint_every=0)

    for work, folder in ((while_training, sys.argv[1]), (while_writing, sys.argv[2])):
        child = os.fork()  # importing torch again would take seconds
        if child == 0:
            work(Path(folder))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    folders = [tmp_path / "training", tmp_path / "writing"]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, folders)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        check=True,
    )
    assert list(folders[1].glob(".*.tmp"))
    for folder in folders:
        saved = checkpoint.load_checkpoint(folder / "checkpoint.pt", identity_of(folder))
        assert 0 < saved["step"] < 10
        assert run(folder).product == whole.product
        assert not list(folder.glob(".*.tmp"))


def identity_of(folder: Path) -> str:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["identity"]


def test_a_resumed_run_does_not_start_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt_at(0.5, signal.SIGINT))
    reports: list[Progress] = []
    run(tmp_path, reports.append)
    assert 0.5 <= reports[0].done < 1


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt_at(0.5, signal.SIGINT))
    with pytest.raises(UserError, match="other settings or data; delete it"):
        pretrain(stateful(), dataset(), recipe=RECIPE, setting=setting(), seed=4, folder=tmp_path)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    from test_checkpoint import DiskFull

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "full", interrupt_at(0.3, signal.SIGINT))
    before = (tmp_path / "full" / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(files, "open", DiskFull(1000), raising=False)
    with pytest.raises(UserError, match=r"checkpoint\.pt: the disk is full; free some space"):
        run(tmp_path / "full", checkpoint_every=0)
    monkeypatch.undo()
    assert (tmp_path / "full" / "checkpoint.pt").read_bytes() == before
    assert run(tmp_path / "full").product == whole.product


def test_a_second_interrupt_does_not_wait() -> None:
    from mimbench.interrupts import Interrupts

    before = signal.getsignal(signal.SIGINT)  # a job in the background may be told to ignore it
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        interrupts.requested = None
    assert signal.getsignal(signal.SIGINT) is before

"""Runs as users start them: side by side, interrupted, killed, repeated. Nothing is lost or done twice."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from mimbench import records

from .interrupted import mimbench

TINY = (
    "--images=512",
    "--batch-size=64",
    "--backbone=vit_micro_patch2",
    "--image-size=8",
    "--precision=fp32",
    "--no-baselines",
)
RUN = ("run", "--methods=mae,simmim", "--protocol=knn", *TINY)

pytestmark = pytest.mark.slow


class Command:
    """A process at work, forked from a server that has loaded everything."""

    server = multiprocessing.get_context("forkserver")

    def __init__(self, folder: Path, number: int, arguments: Sequence[str], environment: dict[str, str]):
        self.out, self.err = folder / f"out{number}", folder / f"err{number}"
        given = (str(folder), list(arguments), environment, str(self.out), str(self.err))
        self.process = self.server.Process(target=mimbench, args=given)
        self.process.start()

    def end(self) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)"""
        self.process.join(timeout=300)
        err = self.err.read_text()
        assert self.process.exitcode is not None, err
        assert "Traceback" not in err, err
        return self.process.exitcode, self.out.read_text(), err


class Folder:
    """A folder to run in, and the trainings that were started there."""

    def __init__(self, path: Path, cache: Path):
        self.path, self.starts, self.commands = path, path / "starts", 0
        self.environment = {"MIMBENCH_CACHE": str(cache), "STARTS": str(self.starts), "COLUMNS": "200"}

    def start(self, *arguments: str, **environment: str) -> Command:
        self.commands += 1
        return Command(self.path, self.commands, arguments, {**self.environment, **environment})

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)"""
        return self.start(*arguments, **environment).end()

    def launch(self, *arguments: str, processes: int, **environment: str) -> list[tuple[int, str, str]]:
        """What ``run`` gives, for each process of a torchrun launch."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        started = []
        for rank in map(str, range(processes)):
            world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "RANK": rank}
            address = {"LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            started.append(self.start(*arguments, **world, **address, **environment))
        return [command.end() for command in started]

    def trainings(self) -> Counter:
        return Counter(self.starts.read_text().split()) if self.starts.exists() else Counter()

    def records(self, kind: str) -> dict[str, records.Record]:
        found = records.read_folder(self.path / "mimbench-results")
        return {r.content["variant"]: r for r in found if r.kind == kind}


@pytest.fixture
def folder(tmp_path, cache) -> Folder:
    return Folder(tmp_path, cache)


@pytest.fixture(scope="module", autouse=True)
def _server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        Command.server.set_forkserver_preload(["run.interrupted", "mimbench.board", "lightning_fabric"])
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache) -> Folder:
    """A run that nothing happened to."""
    folder = Folder(tmp_path_factory.mktemp("undisturbed"), cache)
    status, out, err = folder.run(*RUN)
    assert status == 0, err
    assert "leaderboard.html" in out
    assert "[4/4]" in err
    return folder


def products(folder: Folder) -> dict[str, dict[str, str]]:
    return {variant: record.product for variant, record in folder.records("pretrain").items()}


def hits(folder: Folder) -> dict[str, dict]:
    return {variant: record.outcomes for variant, record in folder.records("evaluate").items()}


def test_a_run_ends_with_a_table_and_says_where_things_lie(undisturbed):
    status, out, _ = undisturbed.run(*RUN)
    assert status == 0
    assert re.search(r"mae .*\[\d+\.\d, \d+\.\d\]", out)
    results = undisturbed.path / "mimbench-results"
    for name in ("leaderboard.csv", "leaderboard.html", "records"):
        assert f"mimbench-results/{name}" in out
        assert (results / name).exists()
    assert "mae" in (results / "leaderboard.csv").read_text()


def test_a_second_run_trains_and_decodes_nothing(undisturbed):
    before = undisturbed.trainings()
    times = {p: p.stat().st_mtime_ns for p in (undisturbed.path / "mimbench-results" / "records").iterdir()}
    status, _, err = undisturbed.run(*RUN)
    assert status == 0
    assert undisturbed.trainings() == before == Counter(mae=1, simmim=1)
    assert "[1/" not in err
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_two_processes_do_no_job_twice(folder, undisturbed):
    both = [folder.start(*RUN) for _ in range(2)]
    for status, out, err in [process.end() for process in both]:
        assert status == 0, err
        assert re.search(r"mae .*\[\d+\.\d, \d+\.\d\]", out)
    assert folder.trainings() == Counter(mae=1, simmim=1)
    assert products(folder) == products(undisturbed)
    assert hits(folder) == hits(undisturbed)


@pytest.mark.parametrize(
    ("accident", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -signal.SIGKILL)]
)
def test_a_run_that_was_stopped_goes_on_where_it_was(folder, undisturbed, accident, status):
    stopped, _, err = folder.run(*RUN, ACCIDENT=accident)
    assert stopped == status
    if accident != "SIGKILL":
        assert err.splitlines()[-1] == "stopped; run the same command again to go on"
    assert folder.records("pretrain") == {}  # not a failure
    (checkpoint,) = (folder.path / "mimbench-results" / "weights").glob("*/checkpoint.pt")
    assert folder.run(*RUN)[0] == 0
    assert folder.trainings() == Counter(mae=2, simmim=1)
    assert not checkpoint.exists()
    assert products(folder) == products(undisturbed)
    assert hits(folder) == hits(undisturbed)


def test_a_full_disk_is_said_and_costs_only_what_did_not_fit(folder, undisturbed):
    status, _, err = folder.run(*RUN, FILE_LIMIT="20000")
    assert status == 2
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert "the disk is full" in err
    assert folder.records("pretrain") == {}
    assert folder.run(*RUN)[0] == 0
    assert products(folder) == products(undisturbed)


def test_one_failed_job_leaves_its_neighbours_and_is_told(folder):
    status, _, err = folder.run(*RUN, "--methods=mae,random")
    assert status == 0, err
    results = folder.path / "mimbench-results"
    weights = results / "weights" / folder.records("pretrain")["mae"].id / "encoder.safetensors"
    weights.write_bytes(b"not weights any more")
    again = (*RUN, "--methods=mae,random", "--set=knn.k=5")
    status, out, err = folder.run(*again)
    assert status == 1
    assert "is not what mae · pre-training · seed 0 wrote" in out
    by_status = Counter(r.status for r in records.read_folder(results) if r.kind == "evaluate")
    assert by_status == {"done": 3, "failed": 1}
    weights.unlink()  # as the message says
    assert folder.run(*again)[0] == 0
    assert folder.trainings() == Counter(mae=2, random=1)
    assert {r.status for r in records.read_folder(results)} == {"done"}


def test_processes_launched_together_do_each_job_together(folder):
    run = (*RUN, "--methods=mae,random")
    first, second = folder.launch(*run, processes=2)
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert folder.trainings() == Counter(mae=2, random=2)  # once in each process
    assert re.search(r"mae .*\[\d+\.\d, \d+\.\d\]", first[1])
    assert second[1] == ""  # one tells for all
    assert "[1/4]" not in second[2]
    together = hits(folder)
    results = folder.path / "mimbench-results"
    for record in folder.records("evaluate").values():
        records.path_of(results, record.id).unlink()
    shutil.rmtree(results / "features")
    assert folder.run(*run)[0] == 0
    assert hits(folder) == together  # each image was counted once, in its place


def test_a_failure_does_not_leave_processes_waiting_for_each_other(folder):
    ended = folder.launch(*RUN, "--methods=random", processes=2, ACCIDENT="verdict")
    assert [status for status, _, _ in ended] == [1, 1]
    (failed,) = folder.records("evaluate").values()
    assert (failed.status, failed.error) == ("failed", "the verdict got lost")
    assert folder.run(*RUN, "--methods=random")[0] == 0


def test_processes_that_cannot_share_a_batch_are_told_once(folder):
    ended = folder.launch(*RUN, "--batch-size=63", processes=2)
    assert [status for status, _, _ in ended] == [2, 2]
    told = [line for _, _, err in ended for line in err.splitlines() if line.startswith("error: ")]
    assert told == [
        "error: a batch of 63 cannot be shared evenly by 2 processes; "
        "take a multiple of their number as --batch-size"
    ]

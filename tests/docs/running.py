"""Runs the blocks of a page as its reader would: in order, in one folder, one Python, one environment.

``mimbench`` runs in this process (importing torch for each command would take most of the time), launches of
several processes and pytest in their own. What pip would install is built and put on the path.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

import method_zoo
import protocols
from mimbench import registry
from mimbench.cli import app
from mimbench.request import make_request
from mimbench.weights.entry import Entry

from .folders import KINDS
from .pages import ROOT, Block, Page, commands, pattern, quickened, squeezed

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")

# Commands that are printed and not run, each with its reason. A test holds that every one is still in use.
NOT_RUN = {
    "python3 -m venv .venv": "makes the environment that the tests run in already",
    ". .venv/bin/activate": "enters it",
}
COPYING = ("cp", "mkdir", "ls")

# Stand-ins for SLURM's commands, on a make-believe node: srun starts its command here, and what torchrun is
# given comes back as JSON, to be parsed as torchrun does and then run by one process.
SLURM = {
    "srun": 'while [[ ${1-} == --* ]]; do shift; done\nexec "$@"',
    "scontrol": '[[ "$1 $2" == "show hostnames" ]] && echo localhost',
    "torchrun": f'{shlex.quote(sys.executable)} -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"',
}
SLURM_VARIABLES = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_GPUS_ON_NODE": "2",
}


class Runner:
    """The folder of one page and what its blocks have left behind so far."""

    def __init__(self, page: Page, folder: Path, patch: pytest.MonkeyPatch):
        self.page, self.folder, self.patch = page, folder, patch
        self.names: dict[str, object] = {"__name__": "__page__"}
        self.said = ""  # by the last block that was run
        self.refused: set[str] = set()  # commands of NOT_RUN that were met
        self.installed: list[Path] = []
        for name, kind in page.tested.items():
            KINDS[kind](folder / name)
        patch.chdir(folder)
        patch.setenv("COLUMNS", "100")
        if (folder / "method_zoo").is_dir():  # a checkout: its files are found beside the real ones
            for package in (method_zoo, protocols):
                inner = folder / package.__name__
                patch.setattr(package, "__path__", [*package.__path__, str(inner)])

    def close(self) -> None:
        """Forget what the page has registered."""
        for path in self.installed:
            sys.path.remove(str(path))
        for name, module in list(sys.modules.items()):
            if str(self.folder) in str(getattr(module, "__file__", None)):
                del sys.modules[name]
                parent, _, child = name.rpartition(".")
                if parent and hasattr(sys.modules[parent], child):
                    delattr(sys.modules[parent], child)
        forget()

    def run(self, block: Block) -> None:
        """Run or check one block; AssertionError or what it raises where something is wrong with it."""
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        action = LANGUAGES.get(block.language)
        assert action is not None, (
            f"{block.place}: nobody runs {block.language or 'a block without language'!r}; "
            f"use {', '.join(LANGUAGES)}"
        )
        action(self, block)

    # Languages ----------------------------------------------------------------------------------------

    def python(self, block: Block) -> None:
        code = compile(block.text, f"{self.page.path}:{block.line}", "exec")
        if block.title:
            forget()  # a file of a checkout may have a method in it
            return
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, self.names)
        self.said = printed.getvalue()

    def bash(self, block: Block) -> None:
        if block.title:
            done = subprocess.run(["bash", "-n", block.title], capture_output=True, text=True)
            assert done.returncode == 0, f"{block.place}: {done.stderr}"
            return
        self.said = ""
        for command in commands(block.text):
            self.said += self.command(command, block)

    def yaml(self, block: Block) -> None:
        content = yaml.safe_load(block.text)
        if isinstance(content, list):  # of the catalogue; all else is an experiment
            for item in content:
                Entry.model_validate(item)
        else:
            make_request(content)

    def toml(self, block: Block) -> None:
        tomllib.loads(block.text)

    def text(self, block: Block) -> None:
        """What the block above it prints, but for its numbers."""
        printed = [squeezed(line) for line in self.said.splitlines()]
        for line in filter(squeezed, block.text.splitlines()):
            expected = pattern(line)
            assert any(expected.fullmatch(one) for one in printed), (
                f"{block.place}: the commands above do not print\n{line}\nbut\n{self.said}"
            )

    # Commands -----------------------------------------------------------------------------------------

    def command(self, command: str, block: Block) -> str:
        """Run one command; what it printed."""
        if command in NOT_RUN:
            self.refused.add(command)
            return ""
        _, _, comment = command.partition("  # exit status ")
        expected = int(comment or 0)
        words = shlex.split(command, comments=True)
        added = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            added[name] = value
        if words[:3] == ["python", "-m", "pip"]:
            words = words[2:]
        with self.patch.context() as patch:
            for name, value in added.items():
                patch.setenv(name, value)
            if words[0] == "mimbench":
                quick = self.page.quick if words[1] == "run" else {}
                status, said = in_process(quickened(words[1:], quick))
            elif words[0] == "sbatch":
                status, said = self.sbatch(words[-1])
            elif words[0] == "pip":
                status, said = self.pip(words[1:])
            else:
                status, said = self.outside(words, block)
        assert status == expected, f"{block.place}: {command} ended with {status}\n{said}"
        return said

    def outside(self, words: list[str], block: Block) -> tuple[int, str]:
        program = words[0]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*self.installed, ROOT)))}
        if program == "torchrun":
            quick = quickened(words[1:], self.page.quick)
            words = [sys.executable, "-m", "torch.distributed.run", *quick]
        elif words[:3] == ["python", "-m", "pytest"]:
            environment["PYTHONPATH"] = str(self.folder)
            words = [sys.executable, *words[1:], "-p", "no:cacheprovider"]
        else:
            assert program in COPYING, f"{block.place}: nobody runs {program!r}"
        done = subprocess.run(words, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def sbatch(self, name: str) -> tuple[int, str]:
        """What a job script starts, run as far as it can be without a cluster."""
        text = (self.folder / name).read_text(encoding="utf-8")
        assert re.search(r"^#SBATCH --[a-z]", text, re.MULTILINE), f"{name} asks SLURM for nothing"
        programs = self.folder / ".slurm"
        programs.mkdir(exist_ok=True)
        for program, script in SLURM.items():
            (programs / program).write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
            (programs / program).chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **SLURM_VARIABLES, "PATH": path}
        done = subprocess.run(["bash", name], env=environment, capture_output=True, text=True)
        if done.returncode:
            return done.returncode, done.stdout + done.stderr
        launch = get_args_parser().parse_args(json.loads(done.stdout))
        assert (launch.nnodes, launch.nproc_per_node) == ("1", "2")
        assert launch.module
        assert launch.training_script == "mimbench"
        return in_process(quickened(launch.training_script_args, self.page.quick))

    def pip(self, words: list[str]) -> tuple[int, str]:
        """Extras must be ours; a package of the page's own is built and put on the path, as by pip."""
        verb, target = words[0], words[-1]
        if verb == "uninstall":
            (found,) = [path for path in self.installed if list(path.glob(f"{target}-*.dist-info"))]
            self.installed.remove(found)
            sys.path.remove(str(found))
            forget()
            return 0, ""
        assert verb == "install", words
        if match := re.fullmatch(r"(?:mimbench|\.)\[([a-z,]+)\]", target):
            assert set(match[1].split(",")) <= set(metadata("mimbench").get_all("Provides-Extra")), target
            return 0, ""
        if target == ".":
            return 0, ""
        assert (self.folder / target / "pyproject.toml").is_file(), f"pip install {target}: not of this page"
        place = self.folder / ".installed" / target
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        command += ["--no-build-isolation", "--disable-pip-version-check", "--target", place]
        copy = shutil.copytree(self.folder / target, self.folder / ".sources" / target)
        done = subprocess.run([*command, copy], stdout=-1, stderr=subprocess.STDOUT, text=True)
        self.installed.append(place)
        sys.path.append(str(place))
        forget()
        return done.returncode, done.stdout


def in_process(words: list[str]) -> tuple[int, str]:
    """Exit status and output of the command line."""
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def forget() -> None:
    """Let the registry look anew for methods, protocols and plug-ins."""
    importlib.invalidate_caches()
    for look in (registry.methods, registry.protocols, registry.datasets):
        look.cache_clear()


LANGUAGES: dict[str, Callable[[Runner, Block], None]] = {
    "bash": Runner.bash,
    "python": Runner.python,
    "text": Runner.text,
    "toml": Runner.toml,
    "yaml": Runner.yaml,
}

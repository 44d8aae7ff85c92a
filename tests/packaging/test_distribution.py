"""What is built and what it needs: an editable install hides both kinds of hole."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mimbench import published

ROOT = Path(__file__).parents[2]
PACKAGES = ("mimbench", "method_zoo", "protocols")


tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()
}

OWNERS = packages_distributions()  # import name -> distributions


def sources() -> list[Path]:
    """All files of the import packages, from the root."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    return [path.relative_to(ROOT) for path in files if "__pycache__" not in path.parts]


def copied(folder: Path) -> Path:
    """What is built, in a copy: building writes beside the source."""
    copy = folder / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    copy = copied(folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", folder, copy]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    missing = {path.as_posix() for path in sources()} - set(wheel.namelist())
    assert missing == set()


def test_the_wheel_carries_licence_command_and_types(wheel):
    names = set(wheel.namelist())
    assert any(name.endswith("LICENSE") for name in names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "mimbench = mimbench.cli:main" in wheel.read(entry).decode()


def test_published_figures_are_found_where_the_wheel_is_installed(wheel, tmp_path):
    """From a checkout the file is always there."""
    wheel.extractall(tmp_path)
    script = "import mimbench.published as p; print(p.__file__, len(p.load()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    place, count = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path)
    assert int(count) == len(published.load())


def test_the_source_distribution_holds_every_file_of_the_packages(tmp_path):
    script = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=copied(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.as_posix() for path in sources()} - held == set()


def imported() -> dict[str, set[str]]:
    """Top-level names that are imported, with the files that do."""
    found: dict[str, set[str]] = {}
    for path in sources():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(path.as_posix())
    return {
        name: files
        for name, files in found.items()
        if name not in sys.stdlib_module_names and name not in PACKAGES
    }


def test_every_imported_package_is_declared():
    """A transitive dependency goes away without a warning."""
    declared = {
        canonicalize_name(r.name)
        for r in [
            *NEEDED,
            *(r for name in ("clip", "cluster", "dense", "hub", "robustness") for r in EXTRAS[name]),
        ]
    }
    undeclared = {
        name: sorted(files)
        for name, files in imported().items()
        if not {canonicalize_name(owner) for owner in OWNERS.get(name, [name])} & declared
    }
    assert undeclared == {}


def test_every_declared_dependency_is_imported():
    used = {canonicalize_name(owner) for name in imported() for owner in OWNERS.get(name, [])}
    unused = {canonicalize_name(r.name) for r in NEEDED} - used
    assert unused - {"torchvision"} == set()  # timm needs it; its range must match torch's


def test_constraints_lie_within_the_declared_ranges():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", text, re.MULTILINE))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in [*NEEDED, *(r for extra in EXTRAS.values() for r in extra)]:
        if requirement.name != "mimbench":
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} has no exact version in constraints.txt"
            assert requirement.specifier.contains(version, prereleases=True), requirement

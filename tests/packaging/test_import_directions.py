"""Who may import whom. A wrong edge here is how a harness comes to know its methods by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What works on a laptop from a folder of JSON, and what every command line start pays for.
WITHOUT_TORCH = [
    "mimbench",
    "mimbench.spec",
    "mimbench.errors",
    "mimbench.settings",
    "mimbench.records",
    "mimbench.stats",
    "mimbench.board",
    "mimbench.published",
    "mimbench.published.beside",
    "mimbench.published.tell",
    "mimbench.report",
    "mimbench.request",
    "mimbench.registry",
    "mimbench.doctor",
    "mimbench.commands.repro",
    "mimbench.repro.compare",
    "mimbench.taxonomy",
    "mimbench.survey.output",
    "mimbench.download",
    "mimbench.weights.tell",
]
LOWER_FLOOR = {
    "checkpoint",
    "cost",
    "course",
    "data",
    "encoder",
    "errors",
    "features",
    "files",
    "interrupts",
    "method",
    "monitor",
    "openmm",
    "outcomes",
    "precision",
    "processes",
    "progress",
    "protocol",
    "recipes",
    "registry",  # a weights file names its method and encoder, which are looked up by that name
    "rng",
    "seeding",
    "settings",  # of a protocol that another one wraps
    "selection",
    "geometry",
    "spec",
    "torchvision_compat",
    "train",
    "train_loop",
    "train_step",
    "trainee",
    "watching",
    "schedule",
    "weights",  # of which the entry, the origin and the reader of foreign files
}
MODULES = sorted(
    path for part in ("mimbench", "method_zoo", "protocols") for path in (ROOT / part).rglob("*.py")
)


def imports(path: Path) -> set[str]:
    """Full names of all a file imports, in functions and for type checkers too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def edges(part: str) -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), name)
        for path in MODULES
        if path.relative_to(ROOT).parts[0] == part
        for name in sorted(imports(path))
    ]


def test_this_sees_the_modules_and_their_imports():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == {"mimbench", "method_zoo", "protocols"}
    assert ("mimbench/registry.py", "method_zoo.backbones.build") in edges("mimbench")


def test_methods_and_protocols_never_import_each_other():
    assert not [edge for edge in edges("method_zoo") if edge[1].split(".")[0] == "protocols"]
    assert not [edge for edge in edges("protocols") if edge[1].split(".")[0] == "method_zoo"]


def test_the_harness_finds_methods_and_protocols_through_the_registry_alone():
    wrong = [edge for edge in edges("mimbench") if edge[1].split(".")[0] in ("method_zoo", "protocols")]
    assert [edge for edge in wrong if edge[0] != "mimbench/registry.py"] == []


@pytest.mark.parametrize("part", ["method_zoo", "protocols"])
def test_methods_and_protocols_stand_on_the_lower_floor_alone(part):
    own = [(file, name.split(".")[1]) for file, name in edges(part) if name.split(".")[0] == "mimbench"]
    assert own
    assert [edge for edge in own if edge[1] not in LOWER_FLOOR] == []
    of_weights = [edge for edge in edges(part) if edge[1].startswith("mimbench.weights.")]
    assert {edge[1].split(".")[2] for edge in of_weights} <= {"entry", "foreign", "origin"}


def test_nothing_imports_torchvision_timm_or_torchmetrics_before_the_compatibility_module():
    """Each module that needs one of them imports ``mimbench.torchvision_compat`` further up itself."""
    needy = {"torchvision", "timm", "torchmetrics", "open_clip"}
    wrong = []
    for path in MODULES:
        if path.name == "torchvision_compat.py":
            continue
        compat, first = None, None
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                continue
            if "mimbench.torchvision_compat" in names:
                compat = min(compat or node.lineno, node.lineno)
            if {name.split(".")[0] for name in names} & needy:
                first = min(first or node.lineno, node.lineno)
        if first is not None and (compat is None or compat > first):
            wrong.append(f"{path.relative_to(ROOT)}:{first}")
    assert wrong == []


def test_what_reads_records_never_loads_torch():
    imported = "\n".join(f"import {name}" for name in WITHOUT_TORCH)
    script = f"{imported}\nimport sys\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_mimbench_loads_none_of_the_heavy_packages():
    heavy = ("torch", "timm", "pandas", "pyarrow", "sklearn", "matplotlib", "lightning_fabric")
    script = f"import mimbench, sys\nassert not set(sys.modules) & {set(heavy)}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["leaderboard", "--help"]])
def test_help_does_not_wait_for_torch(arguments):
    script = (
        f"import sys; sys.argv = ['mimbench', *{arguments}]\n"
        "import atexit, os\n"
        "atexit.register(lambda: os._exit(97) if 'torch' in sys.modules else None)\n"
        "from mimbench.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode} (97: torch was loaded) {done.stderr}"

"""Really installed third-party packages: theirs appear by entry point, and clashes and breakage are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, Path]:
    """Each package of ``plugins/``, built and installed by pip into a folder of its own."""
    root = tmp_path_factory.mktemp("installed")
    running = {}
    for source in sorted(PLUGINS.iterdir()):
        copy = root / "source" / source.name  # building writes beside the source
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        command += [
            "--no-build-isolation",
            "--disable-pip-version-check",
            "--target",
            root / source.name,
            copy,
        ]
        running[source.name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for name, process in running.items():
        said, _ = process.communicate()
        assert process.returncode == 0, f"{name}: {said.decode()}"
    return {name: root / name for name in running}


def in_python(folder: Path, script: str, cwd: Path) -> list:
    """What ``script`` prints as JSON lines in a process that sees the package installed in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "MIMBENCH_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


WHAT_EACH_SAYS = """
import json
from mimbench import registry
from mimbench.errors import UserError

def attempt(look):
    try:
        print(json.dumps(look()))
    except UserError as error:
        print(json.dumps(str(error)))

attempt(lambda: list(registry.methods()))
attempt(lambda: list(registry.protocols()))
attempt(lambda: list(registry.datasets()))
attempt(lambda: type(registry.build_backbone("vit_tiny_patch16", 32)).__name__)
"""


RUN_THEM_TOGETHER = """
import mimbench
from mimbench.records import read_folder
result = mimbench.run(
    "meancolour,meancolour[weight=2]", protocol="nearestmean", data="stripes:120", epochs=1,
    batch_size=32, baselines=False, precision="fp32",
)
print(json.dumps([record.error for record in read_folder(result.folder)]))
rows = sorted(result.table["variant"])
print(json.dumps(rows))
print(json.dumps([type(mimbench.load_encoder(row).backbone).__name__ for row in rows]))
"""


def test_a_third_partys_method_protocol_dataset_and_backbone_are_listed_and_run(installed, tmp_path):
    """Through the Python API, none of mimbench's own but the harness."""
    said = in_python(installed["good"], WHAT_EACH_SAYS + RUN_THEM_TOGETHER, tmp_path)
    methods, protocols, datasets, backbone, errors, rows, backbones = said
    assert {"mae", "meancolour"} <= set(methods)
    assert {"knn", "nearestmean"} <= set(protocols)
    assert {"digits", "stripes"} <= set(datasets)
    assert backbone == "ViT"
    assert errors == [None] * 4  # two pre-trained, two evaluated
    assert rows == ["meancolour", "meancolour[weight=2]"]
    assert backbones == ["_Patchwise"] * 2


def test_a_name_with_two_owners_names_both(installed, tmp_path):
    method, protocol, dataset, backbone = in_python(installed["twin"], WHAT_EACH_SAYS, tmp_path)
    assert "'mae'" in method
    assert "method_zoo.mae.MAE" in method
    assert "twin_plugin.Other" in method
    assert "'linprobe'" in protocol
    assert "protocols.linprobe.LinearProbe" in protocol
    assert "twin_plugin.OtherProtocol" in protocol
    assert "'digits'" in dataset
    assert "twin_plugin.digits" in dataset
    assert "'vit_tiny_patch16'" in backbone
    assert "twin_plugin.backbone" in backbone


def test_a_broken_plug_in_is_named_and_not_called_unknown(installed, tmp_path):
    method, protocol, dataset, backbone = in_python(installed["broken"], WHAT_EACH_SAYS, tmp_path)
    assert "'unloadable'" in method
    assert "broken_plugin:DoesNotExist" in method
    assert "'function'" in protocol
    assert "subclass of mimbench.protocol.Protocol" in protocol
    assert "'number'" in dataset
    assert "vit_(" in backbone
    for sentence in (method, protocol, dataset, backbone):
        assert "uninstall" in sentence


def test_doctor_names_the_package_of_a_broken_plug_in(installed, tmp_path):
    script = """
import json
from mimbench import doctor
for check in doctor._plugins():
    print(json.dumps([check.name, check.status, check.found]))
"""
    found = {name: (status, text) for name, status, text in in_python(installed["broken"], script, tmp_path)}
    status, text = found["method unloadable"]
    assert status == "missing"
    assert "broken 1.0" in text

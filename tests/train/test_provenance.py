"""A record says what computed it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimbench import provenance
from mimbench.spec import canonical

ROOT = Path(provenance.__file__).parent.parent


def test_the_environment_is_json_and_names_what_is_installed() -> None:
    facts = provenance.environment()
    assert json.loads(canonical(facts)) == facts
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["torch_threads"] == torch.get_num_threads()
    assert "no-such-package" not in facts["versions"]
    assert facts["cpu"]


def test_provenance_needs_no_torch_and_is_not_fooled_by_the_folder_it_runs_in(tmp_path: Path) -> None:
    """Run inside another repository, the commit is still that of mimbench's own checkout, or none."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    program = (
        "import json, sys; from mimbench.provenance import environment; facts = environment(); "
        "assert 'torch' not in sys.modules; print(json.dumps(facts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    other = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    source = json.loads(done.stdout)["source"]
    assert source.get("commit") != other
    if (ROOT / ".git").exists():
        assert len(source["commit"]) == 40


def test_an_installed_copy_claims_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """site-packages inside some project's repository must not carry that project's commit."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib" / "mimbench" / "provenance.py"))
    provenance.source.cache_clear()
    assert provenance.source() == {}
    monkeypatch.undo()
    provenance.source.cache_clear()

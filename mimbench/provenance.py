"""What a result was computed with: versions, machine, source commit. Needs no torch, and imports none."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

# What can change a number. Names of distributions; those that are not installed are left out.
DISTRIBUTIONS = (
    "mimbench",
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "numpy",
    "pandas",
    "scikit-learn",
    "pillow",
    "pyarrow",
    "safetensors",
    "torchmetrics",
    "datasets",
    "mmsegmentation",
    "mmdet",
    "mmengine",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment() -> dict[str, Any]:
    """Facts for a record, JSON data: versions, platform, processor, devices, threads, source commit."""
    return {
        "python": platform.python_version(),
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "source": dict(source()),
        **_torch_facts(),
    }


@cache
def versions() -> dict[str, str]:
    """Version by distribution name, of those of ``DISTRIBUTIONS`` that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def cpu_model() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        answer = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if answer:
            return answer
    return platform.processor() or platform.machine()


@cache
def source() -> dict[str, Any]:
    """Commit of the checkout mimbench is imported from, and whether it was changed; empty if installed."""
    root = Path(__file__).resolve().parent.parent
    # Installed into some other project's folder, git would answer for that project.
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return {}
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return {}
    packages = ("mimbench", "method_zoo", "protocols")
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--", *packages)
    return {"commit": commit, "changed": bool(changed)}


def _output(*command: str) -> str:
    """What a command prints; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _torch_facts() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    facts: dict[str, Any] = {"torch_threads": torch.get_num_threads(), "gpus": []}
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["cuda"] = torch.version.cuda
        facts["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return facts

"""What is installed, which device and precision, what is missing and how to get it.

``examine`` looks and returns data; the command ``mimbench doctor`` prints it. Nothing is changed, but for
the cache folder, which is created. Imports torch only once everything needed is known to be there.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from mimbench.errors import UserError
from mimbench.registry import GROUPS

Status = Literal["ok", "absent", "warn", "missing"]

DENSE = 'pip install -c constraints.txt "mimbench[dense]"'
# What holds the same modules as a package of the extra "dense": the fork that is still maintained, and mmcv
# with its operators.
FORK = {
    "mmcv-lite": ("onedl-mmcv",),
    "mmdet": ("onedl-mmdetection",),
    "mmengine": ("onedl-mmengine",),
    "mmsegmentation": ("onedl-mmsegmentation",),
}
INSTEAD = {**FORK, "mmcv-lite": ("mmcv", "onedl-mmcv")}
GIB = 1 << 30
SMALL_DISK = 5 * GIB  # one ViT-B checkpoint with its optimiser is 1.3 GiB, a prepared set often more
SMALL_SHARED_MEMORY = GIB // 4  # Docker's default of 64 MiB kills data-loading workers


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    status: "ok"; "absent", an option that is not installed; "warn", works but see ``advice``; "missing",
    something needed is not there or broken, and runs will fail.
    """

    group: str  # "packages", "extras", "plug-ins", "device", "storage"
    name: str
    status: Status
    found: str
    advice: str = ""  # what to do, empty when nothing


def examine(results: Path = Path("mimbench-results")) -> list[Check]:
    """Look at everything; ``results`` is the folder that runs would write to."""
    checks = [_python()]
    try:
        needed, extras = _requirements()
    except PackageNotFoundError:
        return [
            *checks,
            Check("packages", "mimbench", "missing", "not installed", "pip install -e . in its folder"),
        ]
    checks += [Check("packages", "mimbench", "ok", version("mimbench")), *map(_package, needed)]
    if healthy(checks):
        checks += _imports()
    checks += [_extra(name, wanted) for name, wanted in extras.items()]
    if healthy(checks) and any(check.name == "dense" and check.status != "absent" for check in checks):
        checks += _dense()
    if healthy(checks):
        checks += [*_plugins(), *_device(), *_storage(results)]
    return checks


def healthy(checks: list[Check]) -> bool:
    """Whether nothing needed is missing; the exit status of ``mimbench doctor``."""
    return all(check.status != "missing" for check in checks)


def _python() -> Check:
    system = f"{platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}"
    return Check("packages", "Python", "ok", system)


def _installed(*names: str) -> Iterator[tuple[str, str]]:
    """Names and versions of those that are installed."""
    for name in names:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _package(requirement: Requirement) -> Check:
    wanted = str(requirement.specifier) or "any version"
    pip = f'pip install "{requirement.name}{requirement.specifier}"'
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        for other, there in _installed(*INSTEAD.get(requirement.name, ())):
            return Check("packages", requirement.name, "ok", f"{there} of {other}")
        return Check("packages", requirement.name, "missing", f"not installed, wanted {wanted}", pip)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check("packages", requirement.name, "warn", f"{found}, tested with {wanted}", pip)
    return Check("packages", requirement.name, "ok", f"{found} ({wanted})")


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What mimbench always needs, and what each extra adds."""
    needed: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, requires("mimbench") or []):
        if requirement.name == "mimbench":
            continue  # extras that hold others, which have their own lines
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed.append(requirement)
        elif found := re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker)):
            extras.setdefault(found[1], []).append(requirement)
    return needed, extras


def _extra(extra: str, wanted: list[Requirement]) -> Check:
    checks = [_package(requirement) for requirement in wanted]
    pip = f'pip install "mimbench[{extra}]"'
    absent = [check.name for check in checks if check.status == "missing"]
    if absent:
        return Check("extras", extra, "absent", f"without {', '.join(absent)}", pip)
    odd = [f"{check.name} {check.found}" for check in checks if check.status == "warn"]
    if odd:
        return Check("extras", extra, "warn", "; ".join(odd), pip)
    there = ", ".join(f"{check.name} {check.found.partition(' (')[0]}" for check in checks)
    return Check("extras", extra, "ok", there)


def _dense() -> Iterator[Check]:
    """Segmentation and detection: whether their packages load together, and where their operators are."""
    twice = [f"{name} and {dict(_installed(*others)).popitem()[0]}" for name, others in FORK.items()
             if dict(_installed(name)) and dict(_installed(*others))]  # fmt: skip
    if twice:
        found = f"{', '.join(twice)} hold the same modules"
        yield Check("extras", "dense packages", "warn", found, "uninstall both and install one of the two")
    try:
        from mimbench.openmm import operators, prepare

        prepare()
        for name in ("mmcv.ops", "mmdet", "mmseg"):
            importlib.import_module(name)
    except (ImportError, OSError, AssertionError, RuntimeError) as error:
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        # OpenCV's wheel wants two libraries that slim systems lack; mmdet and mmseg refuse a newer mmcv.
        advice = "apt-get install libgl1 libglib2.0-0" if "lib" in why and ".so" in why else DENSE
        yield Check("extras", "import mmdet, mmseg", "warn", why, advice)
        return
    where = {
        "compiled": "mmcv's own, compiled",
        "stand-in": "torchvision's nms and roi_align stand in for mmcv's, which is what is needed",
    }
    yield Check("extras", "mmcv's operators", "ok", where[operators()])


def _imports() -> Iterator[Check]:
    """Packages with compiled parts can be installed and yet not load."""
    from mimbench import torchvision_compat

    for name in ("torchvision", "timm"):
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError, OSError) as error:
            yield Check(
                "packages",
                f"import {name}",
                "missing",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                "install a torchvision built for this torch: https://pytorch.org/get-started/locally",
            )
            return
    if torchvision_compat.active:
        found = f"stand-ins for its compiled operators, in plain torch ({torchvision_compat.reason})"
    else:
        found = "matches torch"
    yield Check("packages", "torchvision's operators", "ok", found)


def _plugins() -> Iterator[Check]:
    for kind, group in GROUPS.items():
        for point in entry_points(group=group):
            owner = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown package"
            try:
                point.load()
            except Exception as error:  # other people's code: whatever it raises, it is named here
                yield Check(
                    "plug-ins",
                    f"{kind} {point.name}",
                    "missing",
                    f"{point.value} of {owner} cannot be imported: {error}",
                    "fix or uninstall that package",
                )
            else:
                yield Check("plug-ins", f"{kind} {point.name}", "ok", f"{point.value} of {owner}")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _device() -> Iterator[Check]:
    import torch

    from mimbench import precision

    device = precision.device_type()
    if device == "cuda":
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Check("device", f"GPU {index}", "ok", f"{facts.name}, {_gib(facts.total_memory)}")
    elif device == "mps":
        yield Check("device", "GPU", "ok", "Apple MPS")
    elif shutil.which("nvidia-smi"):
        yield Check(
            "device",
            "GPU",
            "warn",
            f"this machine has NVIDIA's driver, but torch {torch.__version__} sees no GPU",
            "install torch with CUDA: https://pytorch.org/get-started/locally",
        )
    else:
        yield Check("device", "GPU", "ok", "none; runs use the CPU")
    native = precision.native_precisions()
    chosen = precision.resolve_precision("auto")
    why = "computed natively" if chosen == "bf16" else "no native bf16 here"
    yield Check("device", "precision", "ok", f"auto is {chosen} ({why}); {device} has {', '.join(native)}")
    yield _cores(torch.get_num_threads())
    if (memory := _memory()) is not None:
        yield Check("device", "memory", "ok", _gib(memory))


def _cores(threads: int) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{cores} usable, torch computes with {threads} thread{'s' if threads > 1 else ''}"
    if threads > cores:
        return Check("device", "CPU cores", "warn", found, f"set OMP_NUM_THREADS={cores}")
    if threads == 1 < cores and "OMP_NUM_THREADS" in os.environ:
        advice = "unset OMP_NUM_THREADS to use all of them"
        return Check("device", "CPU cores", "warn", found, advice)
    return Check("device", "CPU cores", "ok", found)


def _memory() -> int | None:
    """Bytes of memory this process may use; None where the system does not say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.is_file() else "max"
    return memory if text == "max" else min(memory, int(text))


def _storage(results: Path) -> Iterator[Check]:
    from mimbench.data.cache import cache_folder

    try:
        yield _disk("cache folder", cache_folder("data"), "set MIMBENCH_CACHE to a folder on a larger disk")
    except UserError as error:
        yield Check("storage", "cache folder", "missing", str(error), "set MIMBENCH_CACHE")
    yield _disk("results folder", results.absolute(), "name another with --out")
    shared = Path("/dev/shm")
    if sys.platform == "linux" and shared.is_dir():
        free = shutil.disk_usage(shared).free
        advice = "start the container with --shm-size=2g, or run with --workers 0"
        status: Status = "warn" if free < SMALL_SHARED_MEMORY else "ok"
        yield Check(
            "storage", "shared memory", status, f"{_gib(free)} free", advice if status != "ok" else ""
        )


def _disk(name: str, folder: Path, remedy: str) -> Check:
    there = next(path for path in (folder, *folder.parents) if path.exists())  # it may yet be created
    if not there.is_dir():
        return Check("storage", name, "missing", f"{there} is not a folder", remedy)
    if not os.access(there, os.W_OK | os.X_OK):
        return Check("storage", name, "missing", f"{folder} cannot be written", remedy)
    free = shutil.disk_usage(there).free
    found = f"{folder}, {_gib(free)} free"
    return Check("storage", name, *(("warn", found, remedy) if free < SMALL_DISK else ("ok", found)))

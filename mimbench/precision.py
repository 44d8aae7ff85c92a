"""Numeric precision and the lightning-fabric object that carries device, processes and precision."""

from __future__ import annotations

import atexit
import gc
import os
import platform
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mimbench.errors import UserError

if TYPE_CHECKING:
    # Imported where it is used: it takes longer to load than torch, and a run that finds everything done
    # needs to know its precision and nothing more.
    from lightning_fabric import Fabric

Precision = Literal["fp32", "bf16", "fp16"]

# Long, because one process may prepare data or write a checkpoint while the others wait.
PROCESS_GROUP_TIMEOUT = timedelta(hours=2)


def _cpu_computes_bf16() -> bool:
    """Whether this CPU has bf16 matrix instructions; emulated bf16 is slower than fp32."""
    if not torch.backends.mkldnn.is_available():  # oneDNN holds the kernels that use them
        return False
    names = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM
    if hasattr(torch.cpu, "get_capabilities"):  # newer torch
        return any(torch.cpu.get_capabilities().get(name) is True for name in names)
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    lines = (line for line in info.read_text().splitlines() if line.lower().startswith(("flags", "features")))
    return bool(names & set(next(lines, "").split()))


def device_type(accelerator: str = "auto") -> str:
    """``cpu``, ``cuda`` or ``mps``: what fabric's ``accelerator`` comes down to on this machine."""
    if accelerator == "gpu" or accelerator == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator


def native_precisions(accelerator: str = "auto") -> tuple[Precision, ...]:
    """The precisions the device computes natively, the one ``auto`` picks first."""
    device = device_type(accelerator)
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "fp32", "fp16") if bf16 else ("fp32", "fp16")
    if device == "cpu" and _cpu_computes_bf16():
        return ("bf16", "fp32")
    return ("fp32",)


def resolve_precision(asked: str = "auto", accelerator: str = "auto") -> Precision:
    """``auto`` becomes bf16 where the device computes it natively and fp32 elsewhere.

    Raises UserError for an unknown precision and for one the device does not have.
    """
    native = native_precisions(accelerator)
    if asked == "auto":
        return native[0]
    if asked not in ("fp32", "bf16", "fp16"):
        raise UserError(f"precision {asked!r} is unknown; use auto, fp32, bf16 or fp16")
    if asked not in native:
        raise UserError(
            f"precision {asked} is not native to this {device_type(accelerator)} device "
            f"({platform.machine()}), which computes {', '.join(native)}; use one of these or auto"
        )
    return asked  # type: ignore[return-value]


def make_fabric(precision: Precision, accelerator: str = "auto") -> Fabric:
    """A launched Fabric: one device in one process, or this process's part of a ``torchrun`` group.

    Raises UserError for a precision the device lacks and for more processes on a node than it has GPUs.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    resolve_precision(precision, accelerator)
    device = device_type(accelerator)
    plugins: list[Any] = []
    if precision != "fp32":
        plugins.append(_autocast("bf16-mixed" if precision == "bf16" else "16-mixed", device))
    options: dict[str, Any] = {"accelerator": device, "devices": 1}
    world = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if world > 1:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        if device == "cuda" and local > torch.cuda.device_count():
            raise UserError(
                f"torchrun started {local} processes on a node with {torch.cuda.device_count()} GPUs; "
                "start one process a GPU (--nproc-per-node)"
            )
        # Unused parameters are normal here: a mask token where tokens are dropped, a norm nobody reads.
        strategy = DDPStrategy(timeout=PROCESS_GROUP_TIMEOUT, find_unused_parameters=True)
        plugins.append(TorchElasticEnvironment())
        options |= {"devices": local, "num_nodes": world // local, "strategy": strategy}
    else:
        plugins.append(LightningEnvironment())  # not what a surrounding SLURM or MPI allocation suggests
    fabric = Fabric(plugins=plugins, **options)
    fabric.launch()
    if world > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Leave the process group while the interpreter still runs.

    A thread of gloo may still hold the tensor of the last collective; freeing it needs the interpreter's
    lock, and a thread that asks for that lock during the shutdown of Python aborts the process. What
    still refers to the group is collected first, so that destroying it joins those threads.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _autocast(precision: Literal["bf16-mixed", "16-mixed"], device: str) -> Any:
    """Mixed precision that leaves the inputs alone.

    Fabric's own rounds the images to bf16 before the model sees them, which would also round the
    pixels that reconstruction targets are made of; autocast casts what each operation needs.
    """
    from lightning_fabric.plugins import MixedPrecision

    class Autocast(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    return Autocast(precision, device)


def precision_of(fabric: Fabric) -> Precision:
    """The precision a Fabric trains in."""
    names: dict[str, Precision] = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
    return names.get(str(fabric.strategy.precision.precision), "fp32")

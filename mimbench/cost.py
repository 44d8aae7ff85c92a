"""What a result cost: time, computation, memory; measured, not estimated."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mimbench.provenance import cpu_model
from mimbench.spec import Spec


class Cost(Spec):
    """The cost of one pre-training job.

    ``external`` holds the cost of what had to be trained before it (a tokenizer, a teacher), by the keyword
    it is for. Its numbers are not in the fields above; ``total`` adds them up.
    """

    wall_seconds: float = 0.0  # training, data and checkpoints included
    images: int = 0  # seen, each as often as it was seen
    images_per_second: float = 0.0
    flops: float = 0.0  # forward and backward; a multiply-add is two
    tokens_seen: int | None = None  # by the encoder's first block; None where it has no blocks
    parameters_encoder: int = 0
    parameters_total: int = 0  # of the whole method, frozen parts included
    peak_memory_bytes: int = 0  # GPU: allocated tensors; CPU: resident size of the process
    device: str = ""
    processes: int = 1
    external: dict[str, Cost] = Field(default_factory=dict)

    def with_external(self, **external: Cost) -> Cost:
        """This cost with that of named earlier jobs beside it."""
        return self.model_copy(update={"external": {**self.external, **external}})

    @property
    def total(self) -> dict[str, float]:
        """Seconds, FLOPs and images of this job and all it needed, for a table's cost columns."""
        own = {"wall_seconds": self.wall_seconds, "flops": self.flops, "images": float(self.images)}
        for cost in self.external.values():
            own = {name: value + cost.total[name] for name, value in own.items()}
        return own


def parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in module.parameters())


# Attention backward is counted as its four matrix products on every device: fused kernels recompute a
# fifth, which is how they work and not what was asked for, and a budget in FLOPs must mean the same
# everywhere. torch has no formula at all for the fused CPU kernel.
def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward_flops(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    return 2 * _attention_flops(query, key, value)


_FUSED = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_FORMULAS = {
    packet: formula
    for name in _FUSED
    for suffix, formula in (("", _attention_flops), ("_backward", _attention_backward_flops))
    if (packet := getattr(torch.ops.aten, f"_scaled_dot_product_{name}{suffix}", None)) is not None
}


@dataclass
class Measured:
    """What one measured stretch of work did."""

    flops: float = 0.0
    tokens: int | None = None


@contextmanager
def counting_tokens(encoder: nn.Module) -> Iterator[Measured]:
    """Count the tokens that enter an encoder's blocks inside; None of an encoder without blocks."""
    measured = Measured()
    first: list[nn.Module] = []  # what its first block begins with

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not first:
            first.append(module)
        if module is first[0]:
            batch, tokens = inputs[0].shape[:2]
            measured.tokens = (measured.tokens or 0) + batch * tokens

    blocks = getattr(encoder, "blocks", None)
    handles = []
    if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks):
        # On the block and its parts: a backbone may call the parts itself.
        handles = [part.register_forward_pre_hook(count) for part in blocks[0].modules()]
    try:
        yield measured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def measuring(encoder: nn.Module) -> Iterator[Measured]:
    """Count the FLOPs (forward and backward) and the encoder's tokens of what runs inside."""
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with counting_tokens(encoder) as measured:
        try:
            with counter:
                yield measured
        finally:
            measured.flops = float(counter.get_total_flops())


def device_name(device: torch.device) -> str:
    """The name people know the device by."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak anew, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # elsewhere the peak stays that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak since ``reset_peak_memory``."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows keeps no such figure for a process to read
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024

"""Cost columns out of a record's ``cost`` (see ``mimbench.cost.Cost``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAN = float("nan")


@dataclass(frozen=True)
class Cost:
    """A cost column: its key, heading, unit and meaning."""

    key: str
    title: str
    unit: str
    note: str


COSTS = (
    Cost("images_per_second", "Speed", "images/s", "training throughput over all processes"),
    Cost("hours", "Time", "h", "pre-training on the wall clock, tokenizer included"),
    Cost("tokenizer_hours", "Tokenizer", "h", "the part of the time that trained the tokenizer"),
    Cost("pflops", "Compute", "PFLOP", "forward and backward, tokenizer included; a multiply-add is two"),
    Cost(
        "memory_gib",
        "Memory",
        "GiB",
        "peak: allocated tensors on a GPU, the process's resident size on a CPU",
    ),
    Cost("parameters_m", "Params", "M", "of everything pre-training held, frozen parts included"),
    Cost("tokens_m", "Tokens", "M", "that went through the encoder in pre-training"),
)


def amounts(cost: Mapping[str, Any]) -> dict[str, float]:
    """The number under each of ``COSTS``; NaN for what was not measured.

    A method that was never trained has cost no time and no computation, but has no speed and no peak.
    """
    if not cost:
        return {column.key: NAN for column in COSTS}
    needed = list(cost.get("external", {}).values())
    seconds, needed_seconds = _total(cost, "wall_seconds"), sum(_total(c, "wall_seconds") for c in needed)
    return {
        "images_per_second": cost.get("images_per_second") or NAN,
        "hours": seconds / 3600,
        "tokenizer_hours": needed_seconds / 3600,
        "pflops": _total(cost, "flops") / 1e15,
        "memory_gib": max(c.get("peak_memory_bytes", 0) for c in (cost, *needed)) / 2**30 or NAN,
        "parameters_m": cost.get("parameters_total", NAN) / 1e6,
        "tokens_m": NAN if cost.get("tokens_seen") is None else cost["tokens_seen"] / 1e6,
    }


def _total(cost: Mapping[str, Any], name: str) -> float:
    """A figure of a job and, recursively, of all that had to be trained before it."""
    return cost.get(name, NAN) + sum(_total(c, name) for c in cost.get("external", {}).values())


def device(cost: Mapping[str, Any]) -> str:
    """Where it was trained, "" where nothing was: times compare on one device only."""
    processes = cost.get("processes", 1)
    name = cost.get("device", "") if cost.get("images") else ""
    return f"{processes} × {name}" if name and processes > 1 else name

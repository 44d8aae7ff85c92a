"""Cost columns out of a record's ``cost`` (see ``mimbench.cost.Cost``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NAN = float("nan")


@dataclass(frozen=True)
class Cost:
    """A cost column: its key, heading, meaning and units, largest first, each with its factor."""

    key: str
    title: str
    note: str
    units: tuple[tuple[float, str], ...]

    def unit(self, values: Iterable[float]) -> tuple[float, str]:
        """(factor, unit) that suits all ``values``: the largest in which the greatest is at least 1."""
        greatest = max((value for value in values if not math.isnan(value)), default=0.0)
        return next(
            (pair for pair in self.units if greatest * pair[0] >= 1), self.units[-1 if greatest else 0]
        )


COSTS = (
    Cost("images_per_second", "Speed", "training throughput over all processes", ((1, "images/s"),)),
    Cost(
        "hours",
        "Time",
        "pre-training on the wall clock, tokenizer and teacher included",
        ((1, "h"), (60, "min"), (3600, "s")),
    ),
    Cost(
        "before_hours",
        "Before",
        "the part of the time that trained a tokenizer or a teacher",
        ((1, "h"), (60, "min"), (3600, "s")),
    ),
    Cost(
        "pflops",
        "Compute",
        "forward and backward, tokenizer and teacher included; a multiply-add is two",
        ((1, "PFLOP"), (1e3, "TFLOP"), (1e6, "GFLOP")),
    ),
    Cost(
        "memory_gib", "Memory", "peak: tensors on a GPU, on a CPU the process's resident size", ((1, "GiB"),)
    ),
    Cost(
        "parameters_m",
        "Params",
        "of everything pre-training held, frozen parts included; of released weights, of the encoder",
        ((1, "M"), (1e3, "k")),
    ),
    Cost(
        "encoder_gflops",
        "Encoder",
        "forward pass of one image through the encoder, where weights are used as released",
        ((1e-3, "TFLOP"), (1, "GFLOP"), (1e3, "MFLOP")),
    ),
    Cost(
        "tokens_m",
        "Tokens",
        "that went through the encoder in pre-training",
        ((1e-3, "G"), (1, "M"), (1e3, "k")),
    ),
)
SPENT = Cost("level_share", "Spent", "share of the cost at which the table compares its rows", ((100, "%"),))
BY_KEY = {cost.key: cost for cost in (SPENT, *COSTS)}


def amounts(cost: Mapping[str, Any]) -> dict[str, float]:
    """The number under each of ``COSTS``, in the unit that its key names; NaN for what was not measured.

    A method that was never trained has cost no time and no computation, but has no speed and no peak. What
    others trained has cost something that is not known.
    """
    if not cost:
        return {column.key: NAN for column in COSTS}
    needed = list(cost.get("external", {}).values())
    seconds, needed_seconds = _total(cost, "wall_seconds"), sum(_total(c, "wall_seconds") for c in needed)
    return {
        "images_per_second": cost.get("images_per_second") or NAN,
        "hours": seconds / 3600,
        "before_hours": needed_seconds / 3600,
        "pflops": _total(cost, "flops") / 1e15,
        "memory_gib": max(c.get("peak_memory_bytes", 0) for c in (cost, *needed)) / 2**30 or NAN,
        "parameters_m": cost.get("parameters_total", NAN) / 1e6,
        "encoder_gflops": cost.get("encoder_flops", NAN) / 1e9,
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


def devices(cost: Mapping[str, Any]) -> tuple[str, ...]:
    """Where it and all that had to be trained before it were trained."""
    before = (place for inner in cost.get("external", {}).values() for place in devices(inner))
    return tuple(dict.fromkeys(filter(None, (device(cost), *before))))

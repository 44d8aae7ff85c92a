"""What a model of mmdet's or mmseg's predicts for every sample, shared over processes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from mimbench.data.loading import in_order
from mimbench.openmm.prepare import quiet
from mimbench.openmm.samples import AtIndices, Samples
from mimbench.processes import gathered
from mimbench.progress import Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


@torch.no_grad()
def predict(
    model: nn.Module,
    samples: Samples,
    keep: Callable[[Any], T],
    *,
    fabric: Fabric,
    batch_size: int = 1,
    workers: int = 0,
    stage: str = "predicting",
    report: Callable[[Progress], None] = silent,
) -> list[T]:
    """``keep`` of the model's prediction for each sample, in their order, on all processes.

    Each process predicts every world-th sample. keep: what is wanted of a prediction, to be sent to the
    other processes. In fp32, as mmengine evaluates: a score is compared with others to its last digit.
    """
    indices = np.arange(fabric.global_rank, len(samples), fabric.world_size)
    wanted = (indices[first : first + batch_size] for first in range(0, len(indices), batch_size))
    kept: list[T] = []
    was_training, started = model.training, monotonic()
    model.eval()
    try:
        with quiet():
            for batch in in_order(AtIndices(samples), lambda: wanted, workers):
                kept += map(keep, model.test_step(batch))
                done = len(kept) / len(indices)
                if fabric.is_global_zero:
                    left = (monotonic() - started) * (1 - done) / done
                    report(Progress(stage, done, seconds_left=left))
    finally:
        model.train(was_training)
    found: list[Any] = [None] * len(samples)
    for rank, part in enumerate(gathered(fabric, kept)):
        found[rank :: fabric.world_size] = part
    return found

"""What a plan will cost, out of one measured step of each method. An estimate, and called so."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimbench.cost import measuring
from mimbench.data import training_batches
from mimbench.spec import Augmentation, Job, Setting
from mimbench.train_step import TrainStep
from mimbench.work import recipe_of

if TYPE_CHECKING:
    from mimbench.work import Workshop

PROBE_IMAGES = 32  # of the measured step
LEAST_STEPS, MOST_STEPS = 3, 10  # measured; the fastest counts, others may have shared the machine
PROBE_SECONDS = 2.0  # after which no more than the least are measured


@dataclass(frozen=True)
class Estimate:
    """Of one training job. seconds: computing alone, without reading data; images: to be seen."""

    seconds: float
    images: float
    flops: float


def estimate(jobs: Sequence[Job], stand_ins: Mapping[str, Job], workshop: Workshop) -> dict[str, Estimate]:
    """Estimates by job id, of those of ``jobs`` that train something.

    stand_ins: all jobs of the plan by id, for tokenizers and teachers that are yet to be trained.
    """
    measured: dict[str, tuple[float, float]] = {}
    estimates = {}
    for job in jobs:
        if job.kind == "evaluate" or recipe_of(job) is None:
            continue
        variant = job.content["variant"]
        if variant not in measured:
            measured[variant] = _measure(job, stand_ins, workshop)
        estimates[job.id] = _of_budget(*measured[variant], job, len(workshop.data.train))
    return estimates


def _measure(job: Job, stand_ins: Mapping[str, Job], workshop: Workshop) -> tuple[float, float]:
    """(seconds, FLOPs) an image of one method's training step."""
    setting = Setting.model_validate(job.content["setting"])
    recipe = recipe_of(job)
    assert recipe is not None
    method = workshop.method(job, stand_ins)
    _, batch_size = setting.training
    size = min(PROBE_IMAGES, batch_size, workshop.micro_batch or batch_size)
    (batch,) = training_batches(
        workshop.data.train,
        augmentation=Augmentation(),
        image_size=setting.image_size,
        seed=0,
        batch_size=size,
        stop=1,
        views=method.views,
    )
    step = TrainStep(method, recipe, size, workshop.fabric)
    with measuring(method.encoder) as counted:
        step(batch, 0.0)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < LEAST_STEPS or (
        len(times) < MOST_STEPS and time.perf_counter() - begun < PROBE_SECONDS
    ):
        start = time.perf_counter()
        for term in step(batch, 0.0).values():
            term.item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times) / size, counted.flops / size


def _of_budget(seconds: float, flops: float, job: Job, train_size: int) -> Estimate:
    budget, _ = Setting.model_validate(job.content["setting"]).training
    images = {
        "epochs": budget.amount * train_size,
        "images": budget.amount,
        "flops": budget.amount / max(flops, 1.0),
        "hours": budget.amount * 3600 / seconds,
    }[budget.unit]
    return Estimate(images * seconds, images, images * flops)

"""The only training loop. ``mimbench.train``'s ``pretrain`` and ``fit`` are the ways in.

All random numbers are keyed: data and masks by (seed, epoch, sample), whatever a module draws from
torch's global generator by (seed, step, process). So no generator has a state worth saving, and a run
that was killed and resumed gives the same weights as one that was not, bit for bit on one CPU device.

With several processes, whatever decides the course (losses, signals, the time for a checkpoint, the
clock of a budget in hours) goes through a collective, so that all of them take the same turns.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from signal import SIGINT, SIGTERM
from time import monotonic
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor

from mimbench import checkpoint, seeding
from mimbench.cost import Cost, device_name, measuring, peak_memory, reset_peak_memory
from mimbench.course import Course, Visits
from mimbench.errors import UserError
from mimbench.interrupts import Interrupts
from mimbench.monitor import Health, LearningCurve, Speed
from mimbench.processes import on_first
from mimbench.progress import Progress
from mimbench.spec import View
from mimbench.train_step import TrainStep
from mimbench.trainee import Trainee

if TYPE_CHECKING:
    from mimbench.data import Batch

# Losses stay on the device until somebody looks: often enough to draw progress, seldom enough not to wait.
LOOK_SECONDS = 0.25
LOOK_STEPS = 50
# Checkpoints take a twentieth of the time at most, whatever the interval asked for.
CHECKPOINT_SHARE = 1 / 20
ENDLESS = 1 << 40  # steps, where the budget is in hours


class Run:
    """One run of the loop: where it stands, and how it goes on from a checkpoint.

    identity: a hash of all that the run depends on. path: of its checkpoints. stage: what reports call it.
    views: the trainee's, as the images bear them. checkpoint_every: seconds.
    """

    def __init__(
        self,
        trainee: Trainee,
        course: Course,
        *,
        identity: str,
        path: Path,
        fabric: Fabric,
        report: Callable[[Progress], None],
        stage: str,
        checkpoint_every: float = 60.0,
        views: tuple[View, ...] = (),
        visits: Visits | None = None,
    ):
        self.course, self.identity, self.path = course, identity, path
        self.fabric, self.report, self.stage = fabric, report, stage
        self.checkpoint_every, self.views, self.visits = checkpoint_every, views, visits
        self.train_step = TrainStep(trainee, course.recipe, course.batch_size, fabric)
        self.curve, self.health = LearningCurve(), Health(zero_is_fitted=trainee.labelled)
        self.step = 0
        self.flops_per_image = 0.0
        self.tokens_per_image: float | None = None
        self.peak_memory = 0
        self.seconds = 0.0  # before this process, and at the end
        self.pending: list[tuple[float, float, dict[str, Tensor]]] = []  # progress, lr, terms of each step

    # -- where it stands ---------------------------------------------------------------------------

    @property
    def images(self) -> int:
        return self.step * self.course.batch_size

    @property
    def steps(self) -> int | None:
        """Of the whole run: the nearest to the budget, at least one. None where nobody can know (yet)."""
        budget = self.course.budget
        if budget.unit == "epochs":
            images = budget.amount * len(self.course.split)
        elif budget.unit == "images":
            images = budget.amount
        elif budget.unit == "flops" and self.flops_per_image:
            images = budget.amount / self.flops_per_image
        else:
            return None
        return max(1, round(images / self.course.batch_size))

    def _progress(self) -> float:
        """Share of the budget that is used up; the same on all processes, who must all ask."""
        if self.step == 0:
            return 0.0
        if self.course.budget.unit == "hours":
            return self.fabric.broadcast(self._elapsed()) / (3600 * self.course.budget.amount)
        return self.step / self.steps if self.steps else 0.0

    def _elapsed(self) -> float:
        return self.seconds + monotonic() - self.started

    # -- the loop ----------------------------------------------------------------------------------

    def train(self, micro_batch: int | None, workers: int) -> None:
        """Go to the end of the budget, from the checkpoint if there is one."""
        self._resume()
        reset_peak_memory(self.fabric.device)
        self.started = self.saved = self.looked = self.reported = monotonic()
        self.pause = self.checkpoint_every  # until the next checkpoint
        self.look_every = 1
        progress = self._progress()
        self.speed = Speed(self.stage, self.started, self.images, progress)
        if self.fabric.is_global_zero:
            self.report(Progress(self.stage, done=min(progress, 1.0)))
        try:
            with Interrupts() as interrupts:
                while progress < 1:  # once; twice where the first step tells how many there are
                    with closing(self._batches(micro_batch, workers)) as batches:
                        for micro_batches in batches:
                            progress = self._one_step(micro_batches, progress, interrupts)
                            if progress >= 1:
                                break
        except RuntimeError as error:
            # CUDA's has a class of its own, the CPU allocator's only a text.
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                at_once = micro_batch or self.course.batch_size // self.fabric.world_size
                raise UserError(
                    f"{device_name(self.fabric.device)} has too little memory for {at_once} images at once; "
                    f"take fewer, such as --micro-batch {max(1, at_once // 2)} (a step stays the same)"
                ) from error
            raise
        self.peak_memory = max(self.peak_memory, peak_memory(self.fabric.device))
        self.seconds = self._elapsed()

    def _batches(self, micro_batch: int | None, workers: int) -> Generator[list[Batch], None, None]:
        from mimbench.data import training_batches

        unknown = 1 if self.course.budget.unit == "flops" else ENDLESS
        yield from training_batches(
            self.course.split,
            augmentation=self.course.augmentation,
            image_size=self.course.image_size,
            seed=self.course.seed,
            batch_size=self.course.batch_size,
            start=self.step,
            stop=self.steps or unknown,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            micro_batch=micro_batch,
            workers=workers,
            views=self.views,
        )

    def _one_step(self, micro_batches: list[Batch], progress: float, interrupts: Interrupts) -> float:
        """Train one step at ``progress``; the progress after it."""
        seed = self.course.seed
        torch.manual_seed(seeding.key(seed, "step", self.step, self.fabric.global_rank))
        key = seeding.key(seed, "whole step", self.step)
        if self.step == 0:
            terms = self._first_step(micro_batches, key)
        else:
            terms = self.train_step(micro_batches, progress, key)
        self.step += 1
        self.pending.append((progress, self.train_step.lr, terms))
        after = self._progress()
        self._visit(progress, after)  # before a look, which may save
        if self._should_look(progress, after, interrupts):
            self._look(after, interrupts)
        return after

    def _first_step(self, micro_batches: list[Batch], key: int) -> dict[str, Tensor]:
        """The step all later ones cost as much as, measured while it is done."""
        with measuring(self.train_step.trainee.encoder) as measured:
            terms = self.train_step(micro_batches, 0.0, key)
        images = self.course.batch_size / self.fabric.world_size
        flops, tokens = self.fabric.broadcast((measured.flops, measured.tokens))
        self.flops_per_image = flops / images
        self.tokens_per_image = None if tokens is None else tokens / images
        return terms

    def _visit(self, before: float, after: float) -> None:
        """The visits that are due between two points of progress."""
        if self.visits is None:
            return
        shares = [share - 1e-9 for share in self.visits.shares]  # 0.58 * 50 is 28.999…
        for due in range(bisect(shares, before), bisect(shares, after)):
            self.visits(self.visits.shares[due])
            self.train_step.trainee.train()

    def _should_look(self, before: float, after: float, interrupts: Interrupts) -> bool:
        if self.fabric.world_size == 1 and interrupts.requested is not None:
            return True  # several processes must look at the same steps
        new_point = self.curve.share(before) != self.curve.share(after)
        return new_point or len(self.pending) >= self.look_every or after >= 1

    def _look(self, progress: float, interrupts: Interrupts) -> None:
        """Bring the losses of the last steps to the host, judge them, report, save, obey signals."""
        now, steps = monotonic(), len(self.pending)
        due = self.fabric.is_global_zero and now - self.saved >= self.pause
        requested = interrupts.requested
        here = [requested == SIGTERM, requested is not None, due, (now - self.looked) / steps]
        terminate, interrupt, save, seconds_a_step, loss = self._gather([float(x) for x in here])
        self.looked = now
        self.look_every = min(max(int(LOOK_SECONDS / max(seconds_a_step, 1e-9)), 1), LOOK_STEPS)
        if self.fabric.is_global_zero and (now - self.reported >= LOOK_SECONDS or progress >= 1):
            self.reported = now
            self.report(self.speed.mark(now, self.images, progress, loss))
        if interrupt or (save and progress < 1):
            self._save()
        if interrupt:
            interrupts.act(SIGTERM if terminate else SIGINT)

    def _gather(self, here: list[float]) -> list[float]:
        """Pending losses, averaged over processes, into curve and health; ``here`` averaged, mean loss."""
        losses = torch.stack([loss.float() for _, _, terms in self.pending for loss in terms.values()])
        numbers = torch.cat([losses, torch.tensor(here, device=losses.device)])
        if self.fabric.world_size > 1:
            self.fabric.all_reduce(numbers, reduce_op="mean")  # in place
        values = iter(numbers.tolist())
        total = 0.0
        for number, (at, lr, names) in enumerate(self.pending, self.step - len(self.pending) + 1):
            terms = {name: next(values) for name in names}
            self.health.check(number, terms)
            self.curve.add(at, number * self.course.batch_size, lr, terms)
            total += sum(terms.values())
        mean_loss = total / len(self.pending)
        self.pending.clear()
        return [*values, mean_loss]

    # -- checkpoints -------------------------------------------------------------------------------

    def _save(self) -> None:
        began = monotonic()

        def write() -> None:
            content = {
                "identity": self.identity,
                "step": self.step,
                "seconds": self._elapsed(),
                "flops_per_image": self.flops_per_image,
                "tokens_per_image": self.tokens_per_image,
                "peak_memory": max(self.peak_memory, peak_memory(self.fabric.device)),
                "curve": self.curve.state_dict(),
                "health": self.health.state_dict(),
                "train_step": self.train_step.state_dict(),
            }
            if self.visits is not None:
                content["visits"] = self.visits.state_dict()
            checkpoint.save_checkpoint(self.path, content)

        on_first(self.fabric, write)
        self.saved = monotonic()
        self.pause = max(self.checkpoint_every, (self.saved - began) / CHECKPOINT_SHARE)

    def _resume(self) -> None:
        content = on_first(self.fabric, lambda: checkpoint.load_checkpoint(self.path, self.identity))
        if content is None:
            return
        try:
            self.train_step.load_state_dict(content["train_step"])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the training checkpoint {self.path} does not fit this version of what is trained "
                f"({str(error).splitlines()[0]}); delete it to train from the start"
            ) from error
        self.step, self.seconds = content["step"], content["seconds"]
        self.flops_per_image, self.tokens_per_image = content["flops_per_image"], content["tokens_per_image"]
        self.peak_memory = content["peak_memory"]
        self.curve.load_state_dict(content["curve"])
        self.health.load_state_dict(content["health"])
        if self.visits is not None:
            self.visits.load_state_dict(content["visits"])

    def cost(self, fixed: Cost) -> Cost:
        """``fixed`` and what the whole run took, before a resume too: the first process's figures."""
        tokens = self.tokens_per_image
        measured = {
            "wall_seconds": self.seconds,
            "images": self.images,
            "images_per_second": self.images / self.seconds,
            "flops": self.flops_per_image * self.images,
            "tokens_seen": None if tokens is None else round(tokens * self.images),
            "peak_memory_bytes": self.peak_memory,
        }
        return fixed.model_copy(update=self.fabric.broadcast(measured))

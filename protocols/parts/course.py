"""The course of a probe's training: how long, at which rate, when its candidates are scored, and resuming.

``mimbench.train_loop`` trains one network by one loss. Here many candidates are trained at once, each
update takes microseconds where features are at hand, and what a run is after is not the last state but the
best of the scored ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT, SIGTERM
from time import monotonic
from typing import Any, Generic, TypeVar

import torch

from mimbench import checkpoint
from mimbench.files import make_folder
from mimbench.interrupts import Interrupts
from mimbench.progress import Progress
from mimbench.selection import Scores, select
from mimbench.train_loop import CHECKPOINT_SHARE
from protocols.parts.processes import Team

CHECKPOINT_SECONDS = 60.0
LOOK_SECONDS = 0.1
LOOK_STEPS = 4  # between two agreements of several processes on whether to save or to stop
SMALLEST_BATCH = 256  # small sets are given smaller batches down to this, then more epochs

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Course:
    """steps: updates. marks: after how many of them all candidates are scored; the last is the end.

    warmup, milestones: shares of the course. The rate rises linearly from 0 and falls along half a cosine
    to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983) or, with milestones, tenfold at each of them.
    """

    steps: int
    batch_size: int
    marks: tuple[int, ...]
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()

    def factor(self, step: int) -> float:
        """What multiplies every learning rate in update number ``step``, from 0."""
        done = step / self.steps
        if done < self.warmup:
            return done / self.warmup
        if self.milestones:
            return 0.1 ** sum(done >= milestone for milestone in self.milestones)
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


def lay_out(
    count: int,
    *,
    epochs: float,
    min_steps: int,
    batch_size: int,
    warmup: float = 0.0,
    milestones: Sequence[float] = (),
    checkpoints: int = 1,
) -> Course:
    """The course of ``epochs`` passes over ``count`` samples, with at least ``min_steps`` updates.

    What counts is the number of updates. Where ``batch_size`` leaves too few, as recipes for a million
    images do on thousands, the batch becomes a smaller power of two, down to 256; if that is not enough,
    there are more epochs. Learning rates are to stay those of ``batch_size``: there are fewer updates than
    the recipe had, and smaller ones (LARS's are a share of the weights) would lead nowhere.
    """
    if epochs * count / batch_size < min_steps and batch_size > SMALLEST_BATCH:
        wanted = max(epochs * count / min_steps, SMALLEST_BATCH)
        batch_size = min(batch_size, 2 ** int(math.log2(wanted)))
    steps = max(min_steps, round(epochs * count / batch_size), 1)
    marks = dict.fromkeys(max(1, round(steps * (i + 1) / checkpoints)) for i in range(checkpoints))
    return Course(steps, batch_size, tuple(marks), warmup, tuple(milestones))


@dataclass
class Trials(Generic[Batch]):
    """Trains candidates along a course and keeps the best of all that was scored.

    learn: one update, given a batch and the factor of the learning rates. score: of all candidates as they
    are. keep: a copy of one candidate as it is, as containers and tensors. state, restore: of the whole
    training, for a checkpoint. identity: a hash of all that decides the training. path: of the checkpoint;
    None: nowhere.

    A trial is a candidate at a mark; they are numbered mark by mark. The best is the one that
    ``mimbench.selection.select`` would choose of all, known without keeping the others.
    """

    course: Course
    learn: Callable[[Batch, float], None]
    score: Callable[[], Scores]
    keep: Callable[[int], Any]
    state: Callable[[], Mapping[str, Any]]
    restore: Callable[[Mapping[str, Any]], None]
    identity: str
    team: Team
    report: Callable[[Progress], None]
    path: Path | None = None
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    best: int | None = None  # number of the best trial
    kept: Any = None  # the candidate it is of
    step: int = 0

    def run(self, batches: Callable[[int, int], Generator[Batch, None, None]]) -> Scores:
        """Go to the end of the course; the scores of all trials.

        batches: from (first, last) to the batches of these updates.
        """
        self._resume()
        began = looked = saved = monotonic()
        first, pause = self.step, CHECKPOINT_SECONDS
        marks = set(self.course.marks)
        with Interrupts() as interrupts, closing(batches(self.step, self.course.steps)) as stream:
            for batch in stream:
                self.learn(batch, self.course.factor(self.step))
                self.step += 1
                if self.step in marks:
                    self._mark()
                now = monotonic()
                if not self._should_look(now - looked, interrupts.requested):
                    continue
                looked = now
                due = self.path is not None and now - saved >= pause
                save, stop, terminate = self._agree(due, interrupts.requested)
                if stop or (save and self.step < self.course.steps):
                    self._save()
                    saved = monotonic()
                    pause = max(CHECKPOINT_SECONDS, (saved - now) / CHECKPOINT_SHARE)
                if stop:
                    interrupts.act(SIGTERM if terminate else SIGINT)
                self._tell((now - began) / (self.step - first) * (self.course.steps - self.step))
        self._tell(0.0)
        return Scores(self.accuracy, self.loss)

    def _should_look(self, since: float, requested: int | None) -> bool:
        if self.team.alone:
            return since >= LOOK_SECONDS or requested is not None
        return self.step % LOOK_STEPS == 0  # several processes must look at the same steps

    def _tell(self, seconds_left: float) -> None:
        done = self.step / self.course.steps
        self.report(Progress(stage="training the probe", done=done, seconds_left=seconds_left))

    def _mark(self) -> None:
        """Score every candidate, and keep the best if it is better than all before."""
        found = self.score()
        assert found.loss is not None
        before = len(self.accuracy)
        self.accuracy += found.accuracy
        self.loss += found.loss
        if all(map(math.isnan, self.accuracy)):
            return
        best = select(Scores(self.accuracy, self.loss))
        if best >= before:
            self.best, self.kept = best, self.keep(best - before)

    def _agree(self, due: bool, requested: int | None) -> tuple[bool, bool, bool]:
        """What any of the processes wants: a checkpoint, an end, an end by SIGTERM."""
        wishes = (due, requested is not None, requested == SIGTERM)
        if self.team.alone:
            return wishes
        found = self.team.sum_(torch.tensor([float(wish) for wish in wishes], device=self.team.device))
        save, stop, terminate = (bool(wish) for wish in found.tolist())
        return save, stop, terminate

    # -- stopping and going on ---------------------------------------------------------------------

    def _save(self) -> None:
        path = self.path
        if path is None:
            return

        def write() -> None:
            make_folder(path.parent)
            content = {
                "identity": self.identity,
                "step": self.step,
                "accuracy": self.accuracy,
                "loss": self.loss,
                "best": self.best,
                "kept": self.kept,
                "state": dict(self.state()),
            }
            checkpoint.save_checkpoint(path, content)

        self.team.on_first(write)

    def _resume(self) -> None:
        path = self.path
        if path is None:
            return
        content = self.team.on_first(lambda: checkpoint.load_checkpoint(path, self.identity))
        if content is None:
            return
        self.restore(content["state"])
        self.step, self.best, self.kept = content["step"], content["best"], content["kept"]
        self.accuracy, self.loss = list(content["accuracy"]), list(content["loss"])

"""Trains a model of mmdet's or mmseg's with mmengine's Runner: resumes, on one process or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mimbench import checkpoint
from mimbench.cost import device_name
from mimbench.errors import UserError
from mimbench.interrupts import Interrupts
from mimbench.monitor import Health, LearningCurve, Speed
from mimbench.openmm import backbone as _backbone  # noqa: F401, registers it
from mimbench.openmm import layer_decay as _layer_decay  # noqa: F401, registers it
from mimbench.openmm.prepare import quiet
from mimbench.openmm.runner import make_runner
from mimbench.openmm.samples import Samples, Stream
from mimbench.precision import precision_of
from mimbench.progress import Progress, silent
from mimbench.seeding import seeded_init
from mimbench.spec import Spec, content_hash
from mimbench.train_loop import CHECKPOINT_SHARE, LOOK_STEPS, on_first

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT_FILE = "training.pt"


class Training(Spec):
    """How a model is trained with AdamW (arXiv:1711.05101).

    schedule: mmengine's parameter schedulers as configurations, counted in steps (``by_epoch`` False).
    layer_decay: see ``mimbench.openmm.layer_decay``.
    """

    steps: int
    batch_size: int  # over accumulation and processes
    lr: float
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    clip_grad: float | None = None  # norm of all gradients together
    schedule: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Fitted:
    """curve: as ``Record.curve``. seconds: what the training took, before a resume too."""

    curve: list[dict[str, float]]
    seconds: float


def fit(
    model: nn.Module,
    samples: Samples,
    training: Training,
    *,
    seed: int,
    fabric: Fabric,
    folder: Path,
    identity: dict[str, Any],
    scope: str,
    stage: str = "training",
    report: Callable[[Progress], None] = silent,
    workers: int = 0,
    micro_batch: int | None = None,
    checkpoint_every: float = 60.0,
) -> Fitted:
    """Train ``model`` (its weights initialised) in place and move it to fabric's device.

    All processes of a launch call this with the same arguments. folder: for the checkpoint, which a call
    with the same ``identity`` goes on from; a training that is done is not done again. identity: all that
    decides the outcome beside ``training`` and ``seed``, as JSON data. scope: "mmdet" or "mmseg".

    Raises TrainingStopped for a loss that is not finite or collapsed, UserError for too little memory, a
    foreign checkpoint or a batch that processes cannot share, KeyboardInterrupt after it has saved.
    """
    model.to(fabric.device)
    stream = Stream(
        samples,
        seed=seed,
        batch_size=training.batch_size,
        micro_batch=micro_batch,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=workers,
    )
    wanted = content_hash({**identity, "training": training.content(), "seed": seed, "scope": scope})
    run = _Run(training, stream, fabric, folder / CHECKPOINT_FILE, wanted, stage, report, checkpoint_every)
    optim_wrapper = {
        **_precision(fabric),
        "constructor": "MimbenchLayerDecay",
        "paramwise_cfg": {"layer_decay": training.layer_decay},
        "optimizer": {
            "type": "AdamW",
            "lr": training.lr,
            "betas": training.betas,
            "weight_decay": training.weight_decay,
        },
        "accumulative_counts": stream.parts,
        "clip_grad": None if training.clip_grad is None else {"max_norm": training.clip_grad},
    }
    with quiet(), seeded_init(seed, "train"), Interrupts() as run.interrupts:
        runner = make_runner(
            model,
            stream,
            folder,
            train={
                "max_iters": training.steps,
                "seed": seed,
                "begin": run.resume,
                "after": run.after,
            },
            optim_wrapper=optim_wrapper,
            schedulers=[{"by_epoch": False, **dict(one)} for one in training.schedule],
            hooks=[],
            scope=scope,
        )
        run.runner = runner
        try:
            runner.train()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise UserError(
                    f"{device_name(fabric.device)} has too little memory for {stream.micro_batch} images at "
                    f"once; take fewer, such as --micro-batch {max(1, stream.micro_batch // 2)}"
                ) from error
            raise
    return Fitted(run.curve.points, run.elapsed())


def _precision(fabric: Fabric) -> dict[str, Any]:
    """The optimiser wrapper that computes in fabric's precision."""
    precision = precision_of(fabric)
    if precision == "bf16":
        return {"type": "MimbenchAutocast", "device_type": fabric.device.type}
    if precision == "fp16":
        return {"type": "AmpOptimWrapper", "dtype": "float16"}
    return {"type": "OptimWrapper"}


class _Run:
    """What is watched and kept of one training."""

    runner: Any
    interrupts: Interrupts

    def __init__(
        self,
        training: Training,
        stream: Stream,
        fabric: Fabric,
        path: Path,
        identity: str,
        stage: str,
        report: Callable[[Progress], None],
        checkpoint_every: float,
    ):
        self.training, self.stream, self.fabric = training, stream, fabric
        self.path, self.identity = path, identity
        self.stage, self.report, self.checkpoint_every = stage, report, checkpoint_every
        self.curve, self.health = LearningCurve(), Health()
        self.pending: list[tuple[int, float, dict[str, torch.Tensor]]] = []
        self.look_every = max(1, min(training.steps // self.curve.size, LOOK_STEPS))
        self.seconds = 0.0
        self.lr = training.lr

    def elapsed(self) -> float:
        return self.seconds + monotonic() - self.started

    def resume(self) -> int:
        """Load the checkpoint, if there is one; the step to begin with."""
        self.started = self.saved = monotonic()
        self.pause = self.checkpoint_every
        content = on_first(self.fabric, lambda: checkpoint.load_checkpoint(self.path, self.identity))
        step = 0
        if content is not None:
            step, self.seconds = content["step"], content["seconds"]
            self._model.load_state_dict(content["model"])
            self.runner.optim_wrapper.load_state_dict(content["optimizer"])
            for scheduler, state in zip(self._schedulers, content["schedulers"], strict=True):
                scheduler.load_state_dict(state)
            self.curve.load_state_dict(content["curve"])
            self.health.load_state_dict(content["health"])
        done = step / self.training.steps
        self.speed = Speed(self.stage, self.started, step * self.training.batch_size, done)
        self._tell(Progress(self.stage, done))
        self.lr = self._lr()
        return step

    def after(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Look at the losses of a step that is done; save, or stop at a signal, when it is time."""
        self.pending.append((step, self.lr, losses))
        self.lr = self._lr()
        last = step == self.training.steps
        alone = self.fabric.world_size == 1
        if not (last or len(self.pending) >= self.look_every or (alone and self.interrupts.requested)):
            return
        now = monotonic()
        due = self.fabric.is_global_zero and now - self.saved >= self.pause
        requested = self.interrupts.requested
        terminate, interrupt, save = self._gather(
            [float(requested == SIGTERM), float(requested is not None), float(due)]
        )
        done = step / self.training.steps
        loss = self.curve.points[-1]["loss"]
        self._tell(self.speed.mark(now, step * self.training.batch_size, done, loss))
        if interrupt or save or last:
            self._save(step)
        if interrupt:
            self.interrupts.act(SIGTERM if terminate else SIGINT)

    def _tell(self, progress: Progress) -> None:
        if self.fabric.is_global_zero:
            self.report(progress)

    def _gather(self, here: list[float]) -> list[float]:
        """Pending losses, averaged over processes, into curve and health; the averages of ``here``."""
        losses = torch.stack([value.float() for _, _, terms in self.pending for value in terms.values()])
        numbers = torch.cat([losses, torch.tensor(here, device=losses.device)])
        if self.fabric.world_size > 1:
            self.fabric.all_reduce(numbers, reduce_op="mean")  # in place
        values = iter(numbers.tolist())
        for step, lr, names in self.pending:
            terms = {name: next(values) for name in names}
            self.health.check(step, terms)
            progress = (step - 1) / self.training.steps
            self.curve.add(progress, step * self.training.batch_size, lr, terms)
        self.pending.clear()
        return list(values)

    def _lr(self) -> float:
        """The highest learning rate, that of the heads."""
        return max(group["lr"] for group in self.runner.optim_wrapper.param_groups)

    @property
    def _model(self) -> nn.Module:
        return getattr(self.runner.model, "module", self.runner.model)

    @property
    def _schedulers(self) -> list[Any]:
        return list(self.runner.param_schedulers or [])

    def _save(self, step: int) -> None:
        began = monotonic()

        def write() -> None:
            content = {
                "identity": self.identity,
                "step": step,
                "seconds": self.elapsed(),
                "model": self._model.state_dict(),
                "optimizer": self.runner.optim_wrapper.state_dict(),
                "schedulers": [scheduler.state_dict() for scheduler in self._schedulers],
                "curve": self.curve.state_dict(),
                "health": self.health.state_dict(),
            }
            checkpoint.save_checkpoint(self.path, content)

        on_first(self.fabric, write)
        self.saved = monotonic()
        self.pause = max(self.checkpoint_every, (self.saved - began) / CHECKPOINT_SHARE)

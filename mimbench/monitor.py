"""What is watched while a method trains: its learning curve, its health, its speed."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from mimbench.progress import Progress


class TrainingStopped(Exception):  # noqa: N818, it is a result and not a programming error
    """Training cannot lead anywhere; the message is one sentence with the reason. The job has failed."""


class LearningCurve:
    """At most ``points`` points; each is the mean over the steps of an equal share of the run."""

    def __init__(self, points: int = 200):
        self.size = points
        self.points: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._share = -1

    def share(self, progress: float) -> int:
        """Number of the point that a step at ``progress`` belongs to."""
        return min(int(progress * self.size + 1e-9), self.size - 1)  # 0.58 * 50 is 28.999…

    def add(self, progress: float, images: int, lr: float, terms: dict[str, float]) -> None:
        """Add one step. images: seen so far, this step's included; lr: of this step."""
        if self.share(progress) != self._share:
            self._share, self._sums, self._steps = self.share(progress), {}, 0
            self.points.append({})
        self._steps += 1
        for name, value in {
            "loss": sum(terms.values()),
            **{f"loss/{k}": v for k, v in terms.items()},
        }.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        means = {name: value / self._steps for name, value in self._sums.items()}
        self.points[-1] = {"progress": progress, "images": images, "lr": lr, **means}

    def state_dict(self) -> dict[str, Any]:
        """Plain data for the checkpoint."""
        return {"points": self.points, "sums": self._sums, "steps": self._steps, "share": self._share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.points, self._sums = list(state["points"]), dict(state["sums"])
        self._steps, self._share = state["steps"], state["share"]


def _on_bf16_grid(loss: float) -> bool:
    """Whether it has so few digits that a loss computed in bf16 would repeat it on a mere plateau."""
    return loss != 0 and (math.frexp(loss)[0] * 256).is_integer()


class Health:
    """Stops a run whose loss is not finite, or has stopped depending on the images.

    Every step sees other images under other masks, so a loss that repeats to 1e-12 says that the
    output is a constant. zero_is_fitted: where labels are learnt, a loss of exactly 0 is no collapse.
    """

    ZERO_STEPS = 20  # a loss of exactly 0 in so many consecutive steps is a collapse
    CONSTANT_STEPS = 100  # so is the very same loss in so many

    def __init__(self, zero_is_fitted: bool = False) -> None:
        self._zero_is_fitted = zero_is_fitted
        self._value = math.nan
        self._repeats = 0

    def check(self, step: int, terms: dict[str, float]) -> None:
        """Look at step number ``step``; raises TrainingStopped."""
        for name, value in terms.items():
            if not math.isfinite(value):
                raise TrainingStopped(
                    f"the loss {name!r} became {value} at step {step}; try a lower learning rate or fp32"
                )
        loss = sum(terms.values())
        repeats = abs(loss - self._value) <= 1e-12 * max(1.0, abs(loss)) and not _on_bf16_grid(loss)
        if loss == 0 and self._zero_is_fitted:
            repeats = False
        self._repeats = self._repeats + 1 if repeats else 1
        self._value = loss
        if self._repeats >= (self.ZERO_STEPS if loss == 0 else self.CONSTANT_STEPS):
            raise TrainingStopped(
                f"the loss collapsed: it was exactly {loss:g} for {self._repeats} steps up to step {step}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain data for the checkpoint."""
        return {"value": self._value, "repeats": self._repeats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._value, self._repeats = state["value"], state["repeats"]


class Speed:
    """Images per second and time left, over the last few seconds of this process."""

    def __init__(self, stage: str, now: float, images: int, progress: float, window: int = 20):
        self._stage = stage
        self._marks = deque([(now, images, progress)], maxlen=window)
        self._loss: float | None = None

    def mark(self, now: float, images: int, progress: float, loss: float) -> Progress:
        """A report at time ``now`` with a smoothed loss (a tenth of the way to the new one)."""
        self._loss = loss if self._loss is None else self._loss + 0.1 * (loss - self._loss)
        then, images_then, progress_then = self._marks[0]
        self._marks.append((now, images, progress))
        seconds, gained = now - then, progress - progress_then
        return Progress(
            stage=self._stage,
            done=min(progress, 1.0),
            rate=(images - images_then) / seconds if seconds > 0 else None,
            loss=self._loss,
            seconds_left=(1 - progress) * seconds / gained if gained > 0 else None,
        )

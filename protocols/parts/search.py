"""Fine-tunings one after the other, of which the best weights are kept; stopped and resumed at will."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mimbench import checkpoint
from mimbench.course import Course
from mimbench.monitor import TrainingStopped
from mimbench.processes import on_first
from mimbench.protocol import EvaluationFailed, Surroundings
from mimbench.seeding import seeded_init
from mimbench.selection import Scores
from mimbench.spec import Budget, Recipe, content_hash
from mimbench.train import fit
from protocols.parts.classifier import Classifier, Viewing
from protocols.parts.finetuning import FineTuning

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split

FILE = "search.pt"
Place = tuple[float, float]  # accuracy and minus the loss: what the highest of is best
NOWHERE: Place = (-math.inf, -math.inf)


@dataclass(frozen=True)
class Plan:
    """How long each candidate trains: steps of batches; at which shares of that it is looked at."""

    steps: int
    batch_size: int
    shares: tuple[float, ...]
    notes: tuple[str, ...] = ()


class Search:
    """Candidates that are fine-tuned in turn.

    build: a freshly initialised trainee for a combination of settings, JSON data; recipe: its recipe.
    identity: JSON data, all that the outcome depends on beside recipe, data and plan.
    A candidate is a combination at one of the plan's shares: ``candidates`` lists them in the order of their
    scores. Every process holds the same.
    """

    def __init__(
        self,
        build: Callable[[Mapping[str, Any]], FineTuning],
        combinations: Sequence[Mapping[str, Any]],
        recipe: Callable[[Mapping[str, Any]], Recipe],
        plan: Plan,
        *,
        data: Dataset,
        image_size: int,
        identity: Mapping[str, Any],
        viewing: Viewing,
        around: Surroundings,
        folder: Path,
    ):
        self.build, self.combinations, self.recipe, self.plan = build, combinations, recipe, plan
        self.data, self.image_size, self.identity = data, image_size, dict(identity)
        self.viewing, self.around, self.folder = viewing, around, folder
        self.done: list[dict[str, Any]] = []  # of each combination: scores, cost, curve, why it was stopped
        self.best: Place = NOWHERE
        self.weights: dict[str, Tensor] | None = None  # of the best

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """What there is to choose from, as JSON data."""
        epochs = self.plan.steps * self.plan.batch_size / len(self.data.train)
        if len(self.plan.shares) == 1:
            return [dict(combination) for combination in self.combinations]
        return [
            {**combination, "epoch": round(share * epochs, 2)}
            for combination in self.combinations
            for share in self.plan.shares
        ]

    def scores(self, split: Split) -> Scores:
        """Train what is not trained yet, and score every candidate on ``split``."""
        identity = content_hash({**self.identity, "split": split.fingerprint, "seed": self.around.seed})
        fabric, path = self.viewing.fabric, self.folder / FILE
        content = on_first(fabric, lambda: checkpoint.load_checkpoint(path, identity))
        if content is not None:
            self.done, self.best, self.weights = content["done"], tuple(content["best"]), content["weights"]
        for number in range(len(self.done), len(self.combinations)):
            left_off = self.folder / f"candidate-{number}.pt"
            self.done.append(self._train(number, left_off, split))
            content = {
                "identity": identity,
                "done": self.done,
                "best": list(self.best),
                "weights": self.weights,
            }

            def keep(content: dict[str, Any] = content, left_off: Path = left_off) -> None:
                checkpoint.save_checkpoint(path, content)
                left_off.unlink(missing_ok=True)

            on_first(fabric, keep)
        accuracy, loss = zip(*(score for trial in self.done for score in trial["scores"]), strict=True)
        return Scores(accuracy, loss)

    def _train(self, number: int, left_off: Path, split: Split) -> dict[str, Any]:
        combination, around = self.combinations[number], self.around
        recipe = self.recipe(combination)
        course = Course(
            self.data.train,
            recipe,
            self.data.defaults.suit(recipe.augmentation),
            self.image_size,
            self.plan.batch_size,
            Budget(unit="images", amount=self.plan.steps * self.plan.batch_size),
            around.seed,
        )
        with seeded_init(around.seed, "head"):
            trainee = self.build(combination)
        exams = Exams(trainee, split, self.viewing, self.plan.shares, self.best)
        of = f" {number + 1} of {len(self.combinations)}" if len(self.combinations) > 1 else ""
        try:
            cost, curve = fit(
                trainee,
                course,
                identity={**self.identity, **combination, "examined on": split.fingerprint},
                path=left_off,
                fabric=self.viewing.fabric,
                stage=f"fine-tuning{of}",
                report=around.report,
                micro_batch=around.micro_batch,
                workers=around.workers,
                visits=exams,
            )
        except TrainingStopped as stopped:
            return {"scores": [[math.nan, math.nan]] * len(self.plan.shares), "stopped": str(stopped)}
        if exams.weights is not None:
            self.best, self.weights = exams.best, exams.weights
        return {"scores": exams.scores, "cost": cost.content(), "curve": curve}

    def classifier(self) -> Classifier:
        """The best of what was trained, in eval mode, on the device. Raises EvaluationFailed for nothing."""
        if self.weights is None:
            raise EvaluationFailed("no candidate could be fine-tuned, their training diverged")
        with seeded_init(self.around.seed, "head"):
            classifier = self.build(self.combinations[0]).classifier
        classifier.load_state_dict(self.weights, strict=True)
        return classifier.to(self.viewing.fabric.device).eval()

    def curve(self, chosen: int) -> list[dict[str, float]]:
        """The learning curve of a candidate, to its end."""
        return self.done[chosen // len(self.plan.shares)]["curve"]

    def facts(self) -> dict[str, Any]:
        """What fine-tuning all candidates took, for the record. One that was stopped is not counted in."""
        costs = [trial["cost"] for trial in self.done if "cost" in trial]
        total = {name: sum(cost[name] for cost in costs) for name in ("wall_seconds", "flops", "images")}
        return {
            "training": {
                **total,
                "peak_memory_bytes": max((cost["peak_memory_bytes"] for cost in costs), default=0),
                "steps": self.plan.steps,
                "batch_size": self.plan.batch_size,
                "epochs": self.plan.steps * self.plan.batch_size / len(self.data.train),
                "trained": len(self.done),
                "stopped": [trial["stopped"] for trial in self.done if "stopped" in trial],
            }
        }


class Exams:
    """Scores a trainee at shares of its run, and keeps its weights where it beats ``best``.

    See ``mimbench.course.Visits``.
    """

    def __init__(
        self, trainee: FineTuning, split: Split, viewing: Viewing, shares: Sequence[float], best: Place
    ):
        self.trainee, self.split, self.viewing, self.shares = trainee, split, viewing, shares
        self.best = best
        self.scores: list[list[float]] = []  # accuracy and loss
        self.weights: dict[str, Tensor] | None = None

    def __call__(self, share: float) -> None:
        """Score it, with the average of its weights where there is one."""
        classifier = self.trainee.evaluated
        ranks, loss = self.viewing.judge(classifier, self.split)
        accuracy = float((ranks < 1).mean())
        self.scores.append([accuracy, loss])
        place = accuracy, -loss if math.isfinite(loss) else -math.inf  # as mimbench.selection.select
        if place > self.best:
            self.best = place
            state = classifier.state_dict().items()
            self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state}

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {"best": list(self.best), "scores": self.scores, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.best, self.scores, self.weights = tuple(state["best"]), state["scores"], state["weights"]

"""Linear probing: softmax regression on frozen features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from mimbench.features import weights_sha256
from mimbench.outcomes import Hits
from mimbench.protocol import ChooseOn, Evaluation, Protocol, Surroundings
from mimbench.selection import Scores, Selection, select_and_test
from mimbench.spec import content_hash
from protocols.parts.answers import answers_of
from protocols.parts.batches import Augment, Batches, Labelled, at_hand, augmented, widths_of
from protocols.parts.course import Course, Trials, lay_out
from protocols.parts.fitted import Features, Fitted, Head, exact_standards
from protocols.parts.frozen import labels_of, read
from protocols.parts.inputs import Parts, check_inputs, inputs_of, reads_last_only
from protocols.parts.linear import LinearHeads
from protocols.parts.linear_recipes import RECIPES, Statistics
from protocols.parts.optimisers import OptimizerName
from protocols.parts.processes import Team

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, lt=1)]

BEHIND = 0.05  # how far the last block may lie behind the best before a table says so


@dataclass(frozen=True)
class LinearProbe(Protocol):
    """Every combination of readout, batch norm, learning rate and weight decay is trained at once.

    By default on frozen features of the untouched images, extracted once, by SGD with momentum, no weight
    decay and half a cosine to zero, as in the probes of DINO, iBOT and DINOv2; validation chooses. Learning
    rates are per 256 samples of a batch, as theirs.

    Layers are candidates: methods that predict pixels or tokens are best before their last block (BEiT-B at
    block 9 of 12; its last block alone gives 20 % on ImageNet, microsoft/unilm issue 419).

    Batch norm before the head (without an affine map; MAE, arXiv:2111.06377, appendix A.1) is what lets one
    learning rate fit methods whose features differ in scale by orders of magnitude. By default it
    standardises by the exact statistics of train, to which running statistics of frozen features converge.

    The chosen head is tested as it was trained, without a second fit on train and validation together: its
    learning rate was chosen for this very run, and its validation accuracy stays a figure about the head
    that is reported.
    """

    key = "linprobe"
    version = 2
    summary = (
        "softmax regression on frozen features; learning rate, readout, layer and batch norm by validation"
    )
    presets = RECIPES
    takes_answers = True

    # Passes over train, between DINOv2's 10 and DINO's 100; what counts is the number of updates, so that
    # small sets get at least min_steps (by smaller batches down to 256, then by more passes).
    epochs: Annotated[float, Field(gt=0)] = 30
    min_steps: Annotated[int, Field(gt=0)] = 3000
    batch_size: Annotated[int, Field(gt=0)] = 256
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (0.001, 0.01, 0.1, 1.0, 10.0)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of SGD and LARS; AdamW's first beta
    # cls, mean or cls+mean, @SHARE of the depth, @block9, @last4 or @every; /raw: without the final norm.
    readouts: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "cls",
        "mean",
        "cls+mean",
        "mean@0.75",
        "cls+mean@0.75",
        "mean@0.5",
    )
    batch_norm: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True)
    statistics: Statistics = "train"  # of batch norm; "running": the batch's, and their running average
    optimizer: OptimizerName = "sgd"
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999  # AdamW's
    weight_decay: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.0,)
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the course with a rising rate
    milestones: tuple[_Share, ...] = ()  # shares of the course where the rate falls tenfold; (): a cosine
    init_std: Annotated[float, Field(ge=0)] = 0.0  # of the weights at first
    augment: Augment = "none"  # "crop": random resized crops and flips, anew in each epoch
    checkpoints: Annotated[int, Field(gt=0)] = 1  # states of each head that are candidates, evenly spaced
    choose_on: ChooseOn = "validation"

    @property
    def collective(self) -> bool:
        """With augmentation the encoder is run throughout, on all processes."""
        return self.augment != "none"

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels or a readout that cannot be read."""
        super().check(data)
        check_inputs(self.readouts, self.key)

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 (and top-5 above five classes) of the head that was chosen."""
        self.check(data)
        assert data.classes is not None
        inputs, notes = inputs_of(self.readouts, encoder, self.key)
        course = self._course(len(data.train))
        if course.batch_size < self.batch_size:
            notes.append(
                f"batches of {course.batch_size} instead of {self.batch_size}, which would leave fewer than "
                f"{self.min_steps} updates on {len(data.train)} training images; rates are as they were"
            )
        grid = list(product(inputs, self.batch_norm, self.weight_decay, self.lr))
        scale = self.batch_size / 256  # of the recipe's own batch, see lay_out
        heads = [Head(inputs[name], lr * scale, norm, decay) for name, norm, decay, lr in grid]
        training = _Training(self, encoder, data, around, course, heads)
        selection, ranks = select_and_test(
            data,
            [
                self._candidate(mark * course.batch_size / len(data.train), *candidate)
                for mark, candidate in product(course.marks, grid)
            ],
            training.scores_on,
            training.ranks_of,
            axes={"lr": (0, math.inf)},
            notes=notes,
            choose_on=self.choose_on,
        )
        hits = ranks < 1
        metrics = {"top1": float(hits.mean())}
        if len(data.classes) > 5:
            metrics["top5"] = float((ranks < 5).mean())
        if self.choose_on == "validation":
            metrics["validation_top1"] = selection.score
        if training.train is not None:
            train_ranks = training.fitted.ranks(training.train, labels_of(data.train, encoder))
            metrics["train_top1"] = float((train_ranks < 1).mean())
        images = len(data.validation) if self.choose_on == "validation" else data.test_size
        flags = _flags(selection, inputs, images)
        return Evaluation(metrics, Hits(hits), selection.content(), {"flags": flags} if flags else {})

    def _course(self, count: int) -> Course:
        return lay_out(
            count,
            epochs=self.epochs,
            min_steps=self.min_steps,
            batch_size=self.batch_size,
            warmup=self.warmup,
            milestones=self.milestones,
            checkpoints=self.checkpoints,
        )

    def _candidate(self, epochs: float, readout: str, norm: bool, decay: float, lr: float) -> dict[str, Any]:
        """A trial as JSON data; what is the same for all is left out."""
        found: dict[str, Any] = {"readout": readout, "batch_norm": norm, "lr": lr}
        if len(self.weight_decay) > 1:
            found["weight_decay"] = decay
        if self.checkpoints > 1:
            found["epochs"] = round(epochs, 2)
        return found


class _Training:
    """The heads of one evaluation, their data and what came of them.

    train: the features of the train split, where they are at hand.
    """

    def __init__(
        self,
        probe: LinearProbe,
        encoder: Encoder,
        data: Dataset,
        around: Surroundings,
        course: Course,
        heads: Sequence[Head],
    ):
        assert data.classes is not None
        self.probe, self.encoder, self.data, self.around, self.course = probe, encoder, data, around, course
        self.team = team = Team(around.fabric, encoder, probe.collective)
        self.parts = list(dict.fromkeys(part for head in heads for part in head.parts))
        self.train: Features | None = None
        exact = probe.statistics == "train" and True in probe.batch_norm
        given = self.features(data.train) if exact or probe.augment == "none" else {}
        if probe.augment == "none":
            self.train = given
            labels = labels_of(data.train, encoder)
            self.batches: Batches = at_hand(given, labels, around.seed, course)
        else:
            self.batches = augmented(probe.augment, encoder, self.parts, data, around, team, course)
        self.heads = LinearHeads(
            heads,
            widths_of(encoder, self.parts, team),
            len(data.classes),
            optimizer=probe.optimizer,
            momentum=probe.momentum,
            beta2=probe.beta2,
            init_std=probe.init_std,
            seed=around.seed,
            standards=exact_standards(heads, given) if probe.statistics == "train" else None,
            total=None if team.alone else team.sum_,
            device=team.computing,
        )

    def features(self, split: Split) -> Features:
        return read(self.encoder, self.data, self.around, self.parts, split)

    def scores_on(self, split: Split) -> Scores:
        """Train all heads; how each does on ``split`` at each mark."""
        features, labels = self.features(split), labels_of(split, self.encoder)
        share = (self.team.rank, self.team.world)
        folder = self.around.folder
        trials: Trials[Labelled] = Trials(
            self.course,
            learn=lambda batch, factor: self.heads.learn(*batch, self.course.batch_size, factor),
            score=lambda: Scores(*self.heads.score(features, labels, share=share)),
            keep=lambda head: self.heads.fitted(head).packed(),
            state=self.heads.state_dict,
            restore=self.heads.load_state_dict,
            identity=self._identity(split),
            team=self.team,
            report=self.around.report,
            path=folder / "linprobe.pt" if folder else None,
        )
        scores = trials.run(self.batches)
        self.best = trials.best
        if trials.best is not None:
            self.fitted = Fitted.unpacked(trials.kept, self.parts, self.heads.device)
        return scores

    def ranks_of(self, chosen: int, split: Split) -> np.ndarray:
        """The places of the true classes in the order of the chosen head, see ``Fitted.ranks``."""
        assert chosen == self.best, "what was kept is what was chosen"
        return self.fitted.ranks(self.features(split), labels_of(split, self.encoder), answers_of(split))

    def _identity(self, split: Split) -> str:
        return content_hash(
            {
                "protocol": [self.probe.key, self.probe.version],
                "fields": asdict(self.probe),
                "encoder": weights_sha256(self.encoder),
                "train": self.data.train.fingerprint,
                "scored": split.fingerprint,
                "seed": self.around.seed,
            }
        )


def _flags(selection: Selection, inputs: Mapping[str, Parts], images: int) -> list[str]:
    """A sentence where the last block is far behind: whoever reads it off alone, reads off little.

    images: that candidates were scored on; what chance may do to two of them is not spoken of.
    """
    fitted = [score for score in selection.scores if not math.isnan(score)]
    last = [
        score
        for score, candidate in zip(selection.scores, selection.candidates, strict=True)
        if reads_last_only(inputs[candidate["readout"]]) and not math.isnan(score)
    ]
    best = max(fitted)
    chance = 2 * math.sqrt(2 * best * (1 - best) / images)
    if not last or best - max(last) <= max(BEHIND, chance):
        return []
    readout = selection.candidates[selection.chosen]["readout"]
    return [
        f"the last block is {100 * (best - max(last)):.0f} points behind {readout} "
        f"on {selection.chosen_on} images"
    ]

"""Linear probing: softmax regression on frozen features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from mimbench.outcomes import Hits
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from protocols.parts.frozen import labels_of, read
from protocols.parts.linear import Head, LinearHeads
from protocols.parts.readouts import readout_of, usable

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class LinearProbe(Protocol):
    """Every combination of readout, batch norm and learning rate is trained at once; validation chooses.

    Frozen features of the untouched images (no augmentation: they are extracted once), SGD with momentum,
    no weight decay, half cosine to zero, as in the probes of DINO, iBOT and DINOv2. Learning rates are per
    256 samples of a batch, as theirs.

    Batch norm before the head (without an affine map; MAE, arXiv:2111.06377, appendix A.1) is what lets one
    learning rate fit methods whose features differ in scale by orders of magnitude. Here it standardises
    by the exact statistics of train, to which running statistics of frozen features converge.

    The chosen head is tested as it was trained, without a second fit on train and validation together: its
    learning rate was chosen for this very run, and its validation accuracy stays a figure about the head
    that is reported.
    """

    key = "linprobe"
    version = 1
    summary = "softmax regression on frozen features; learning rate, readout and batch norm by validation"

    # Passes over train, between DINOv2's 10 and DINO's 100; what counts is the number of updates, so that
    # small sets get at least min_steps.
    epochs: Annotated[float, Field(gt=0)] = 30
    min_steps: Annotated[int, Field(gt=0)] = 3000
    batch_size: Annotated[int, Field(gt=0)] = 256
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (0.001, 0.01, 0.1, 1.0, 10.0)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # TOKEN or TOKEN@SHARE of the depth. BEiT's features are best at 3/4 of it (microsoft/unilm, issue 419).
    readouts: Annotated[tuple[str, ...], Field(min_length=1)] = ("cls", "mean", "cls+mean", "mean@0.75")
    batch_norm: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True)

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels or a readout that cannot be read."""
        super().check(data)
        for text in self.readouts:
            readout_of(text, depth=1, owner=self.key)

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 (and top-5 above five classes) of the head that validation chose."""
        self.check(data)
        assert data.classes is not None
        readouts, notes = usable(self.readouts, encoder, self.key)
        grid = list(product(readouts, self.batch_norm, self.lr))
        heads = [Head(readouts[name], lr * self.batch_size / 256, norm) for name, norm, lr in grid]
        parts = list(dict.fromkeys(part for readout in readouts.values() for part in readout.parts))
        features = partial(read, encoder, data, around, parts)

        train, train_labels = features(data.train), labels_of(data.train, encoder)
        probe = LinearHeads(heads, train, train_labels, len(data.classes))
        probe.fit(
            steps=max(self.min_steps, round(self.epochs * len(train_labels) / self.batch_size)),
            batch_size=self.batch_size,
            momentum=self.momentum,
            seed=around.seed,
            report=_Reporter(around.report),
        )

        def validate(split: Split) -> Scores:
            return Scores(*probe.score(features(split), labels_of(split, encoder)))

        def test(chosen: int, split: Split) -> np.ndarray:
            return probe.ranks(chosen, features(split), labels_of(split, encoder))

        selection, ranks = select_and_test(
            data,
            [{"readout": name, "batch_norm": norm, "lr": lr} for name, norm, lr in grid],
            validate,
            test,
            axes={"lr": (0, math.inf)},
            notes=notes,
        )
        hits = ranks < 1
        metrics = {"top1": float(hits.mean())}
        if len(data.classes) > 5:
            metrics["top5"] = float((ranks < 5).mean())
        metrics["validation_top1"] = selection.score
        metrics["train_top1"] = float((probe.ranks(selection.chosen, train, train_labels) < 1).mean())
        return Evaluation(metrics, Hits(hits), selection.content())


class _Reporter:
    """Passes on how much is done, with the time left."""

    def __init__(self, report: Callable[[Progress], None]):
        self._report, self._started = report, time.monotonic()

    def __call__(self, done: float) -> None:
        left = (time.monotonic() - self._started) * (1 - done) / done if done else None
        self._report(Progress(stage="training the probe", done=done, seconds_left=left))

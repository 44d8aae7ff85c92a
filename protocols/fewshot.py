"""Low-shot classification: logistic regression on the frozen features of a few labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mimbench.errors import UserError
from mimbench.outcomes import Values
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Preset, Protocol, Surroundings
from mimbench.selection import Scores, select, select_and_test
from mimbench.spec import Readout
from protocols.parts.answers import answers_of
from protocols.parts.frozen import labels_of, read, standard
from protocols.parts.logistic import Fit, Judged, Regression, Samples, judge, ranks
from protocols.parts.neighbours import unit
from protocols.parts.readouts import readout_of, usable
from protocols.parts.shots import Size, sizes

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

Normalisation = Literal["standardised", "unit"]
_Positive = Annotated[float, Field(gt=0)]
Input = tuple[str, Normalisation]  # readout and how it is normalised
_Share = Annotated[float, Field(gt=0, lt=1)]

TOLERANCE, ITERATIONS = 1e-3, 1000  # of a fit, see protocols.parts.logistic


@dataclass(frozen=True)
class FewShot(Protocol):
    """Accuracy with 1, 5 and 10 labelled images a class and with 1 % and 10 % of train.

    The classifier is the L2-penalised logistic regression of the low-shot evaluations of MSN
    (arXiv:2204.07141), DINO and iBOT. The table shows one number of images a class, ``ranked_by``; the
    record has them all, each the mean over the draws, with their spread. A share of train is that share of
    each class, one image at least.

    Penalty and readout are chosen for each number of labels on its own, on no more validation images than
    there are training images: every draw of train comes with a draw of validation of as many of each class,
    and a candidate's score is its mean over the draws, so that in all the choice has seen as many labels as
    the draws of train together. A large validation split would be the labels that low-shot learning does
    without. What was chosen is not fitted again to both: the number of shots stays
    what it is called. Features are standardised by all of train, without its labels, as pre-training had it.
    """

    key = "fewshot"
    version = 1
    summary = "logistic regression on 1, 5 and 10 images a class, 1 % and 10 %; mean over draws"
    takes_answers = True
    presets = {
        "msn": Preset(
            {
                "shots": (1, 2, 5),
                "shares": (),
                "draws": 3,
                "C": (400.0,),
                "readouts": ("output",),
                "normalisations": ("unit",),
            },
            source=(
                "MSN, arXiv:2204.07141, and facebookresearch/msn logistic_eval.py: lambda 0.0025 on centred "
                "rows of length one, three draws; theirs are lists of files of ImageNet and their regression "
                "has no intercept"
            ),
        )
    }

    shots: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 5, 10)
    shares: tuple[_Share, ...] = (0.01, 0.1)
    ranked_by: Annotated[int, Field(gt=0)] = 5  # one of shots
    draws: Annotated[int, Field(gt=0)] = 5
    C: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)
    # TOKEN or TOKEN@SHARE of the depth
    readouts: Annotated[tuple[str, ...], Field(min_length=1)] = ("cls", "mean", "mean@0.75")
    # "standardised": each feature by its mean and deviation in train; "unit": each image's features centred
    # and scaled to length one
    normalisations: Annotated[tuple[Normalisation, ...], Field(min_length=1)] = ("standardised",)

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels, or settings that do not go together."""
        super().check(data)
        for text in self.readouts:
            readout_of(text, depth=1, owner=self.key)
        if self.ranked_by not in self.shots:
            raise UserError(
                f"fewshot.ranked_by={self.ranked_by} is none of fewshot.shots={list(self.shots)}; "
                "name one of them"
            )

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Mean top-1 over the draws, of the candidate that validation chose for each size."""
        self.check(data)
        assert data.classes is not None
        assert data.train.labels is not None
        readouts, notes = usable(self.readouts, encoder, self.key)
        needed = list(dict.fromkeys(part for readout in readouts.values() for part in readout.parts))
        features = partial(read, encoder, data, around, needed)
        shots = _Shots(readouts, features(data.train), labels_of(data.train, encoder), len(data.classes))
        tried, more = sizes(
            self.shots, self.shares, self.ranked_by, self.draws, data.train.labels, len(data.classes)
        )
        notes += more
        drawn = {size: size.indices("train", data.train.labels, around.seed) for size in tried}
        inputs: list[Input] = list(product(readouts, dict.fromkeys(self.normalisations)))
        grid = list(product(inputs, sorted(set(self.C))))
        candidates = [{"readout": name, "normalisation": how, "C": C} for (name, how), C in grid]
        chosen: dict[Size, int] = {}
        of_sizes: dict[str, Any] = {}

        def validate(split: Split) -> Scores:
            found, labels = features(split), labels_of(split, encoder)
            assert split.labels is not None
            all_scores, short, rounds = [], 0, sum(size.draws for size in tried)
            for size in tried:
                held_out = size.indices("validation", split.labels, around.seed)
                judged: list[list[Judged]] = []
                for images, asked in zip(drawn[size], held_out, strict=True):
                    done = (sum(s.draws for s in chosen) + len(judged)) / rounds
                    around.report(Progress(stage="fitting a few shots", done=done))
                    judged.append([])
                    for which in inputs:
                        regression = shots.regression(which, images)
                        samples = shots.samples(which, found, labels, asked)
                        fit: Fit | None = None
                        for C in sorted(set(self.C)):
                            fit = _fit(regression, C, fit)
                            judged[-1].append(judge(regression, fit, samples))
                            short += not fit.converged
                scores = Scores(*np.mean(judged, axis=0).T.tolist())
                chosen[size] = best = select(scores)
                all_scores.append(scores)
                of_sizes[size.label] = {
                    **candidates[best],
                    "validation_top1": scores.accuracy[best],
                    "train_images": len(drawn[size][0]),
                    "validation_images": len(held_out[0]),
                    "draws": size.draws,
                }
            if short:
                notes.append(f"{short} of {rounds * len(grid)} fits stopped short of their optimum")
            return all_scores[0]

        def test(_: int, split: Split) -> dict[Size, np.ndarray]:
            found, labels = features(split), labels_of(split, encoder)
            hits = {}
            for size in tried:
                which, C = grid[chosen[size]]
                samples = shots.samples(which, found, labels)
                models = [shots.regression(which, images) for images in drawn[size]]
                places = [ranks(model, _fit(model, C), samples, answers_of(split)) for model in models]
                hits[size] = np.stack(places) < 1
            return hits

        selection, hits = select_and_test(
            data, candidates, validate, test, axes={"C": (0, math.inf)}, notes=notes
        )
        ranked = hits[tried[0]].mean(0)  # of each image, the share of draws in which it came out right
        metrics = {"top1": float(ranked.mean())}
        for size, of_size in hits.items():
            metrics[f"top1_{size.label}"] = float(of_size.mean())
            if size.draws > 1:
                metrics[f"top1_{size.label}_spread"] = float(np.std(of_size.mean(1), ddof=1))
        metrics["validation_top1"] = selection.score
        return Evaluation(metrics, Values(ranked), {**selection.content(), "sizes": of_sizes})


class _Shots:
    """Regressions fitted to some images of train. train: features [N, D] of each part of ``readouts``."""

    def __init__(
        self, readouts: dict[str, Readout], train: dict[Readout, Tensor], labels: Tensor, classes: int
    ):
        self._readouts, self._train, self._labels, self._classes = readouts, train, labels, classes
        self._whole = {part: standard(features) for part, features in train.items()}

    def samples(
        self,
        which: Input,
        features: dict[Readout, Tensor],
        labels: Tensor,
        images: np.ndarray | slice = slice(None),
    ) -> Samples:
        """What a regression is fitted to or judged on; all images by default."""
        name, normalisation = which
        parts = tuple(features[part][images] for part in self._readouts[name].parts)
        if normalisation == "unit":
            joined = torch.cat(parts, 1)
            parts = (unit(joined - joined.mean(1, keepdim=True)),)
        return Samples(parts, labels[images])

    def regression(self, which: Input, images: np.ndarray) -> Regression:
        """A regression of these images of train."""
        given = self.samples(which, self._train, self._labels, images)
        if which[1] == "unit":  # the penalty is on the features as they are, so no other image has a say
            return Regression([given], self._classes, [standard(part) for part in given.parts], False)
        whole = [self._whole[part] for part in self._readouts[which[0]].parts]
        return Regression([given], self._classes, whole, True)


def _fit(regression: Regression, C: float, start: Fit | None = None) -> Fit:
    return regression.fit(C, start, tolerance=TOLERANCE, max_iterations=ITERATIONS)

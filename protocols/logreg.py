"""Logistic regression on frozen features, fitted to its optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from mimbench.errors import UserError
from mimbench.outcomes import Hits
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Preset, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from mimbench.spec import Readout
from protocols.parts.answers import answers_of
from protocols.parts.frozen import labels_of, read, standard
from protocols.parts.logistic import Fit, Judged, Regression, Samples, judge, ranks
from protocols.parts.readouts import readout_of, usable

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class LogisticRegression(Protocol):
    """For each readout a path of optima from the strongest penalty to the weakest; validation chooses.

    Each optimum is sought from the one before, and the chosen one is sought again on train and validation
    together, with the C that was chosen, as in DINOv2's evaluation and CLIP's (arXiv:2103.00020, appendix
    A.3). C is scikit-learn's: the cross-entropy summed over all images, times C, plus half the squared
    weights. There is no learning rate, no order of the data and no end of training to choose, so that
    nothing but the features and the penalty decides.
    """

    key = "logreg"
    version = 1
    summary = "logistic regression at its optimum; penalty and readout by validation, refit on both"
    takes_answers = True
    presets = {
        "dinov2": Preset(
            {"readouts": ("output",), "standardised": (False,)},
            source=(
                "facebookresearch/dinov2 dinov2/eval/log_regression.py: of 45 values of C one chosen on a "
                "held-out tenth of train, then fitted to both; it starts each fit from zero"
            ),
        ),
        "clip": Preset(
            {"C": (1e-6, 1e6), "grid": 96, "readouts": ("output",), "standardised": (False,)},
            source=(
                "CLIP, arXiv:2103.00020, appendix A.3: 96 values, at most 1000 iterations of L-BFGS; it "
                "searches the values by bisection, all are tried here"
            ),
        ),
    }

    C: tuple[_Positive, _Positive] = (1e-6, 1e5)  # lowest and highest, DINOv2's
    grid: Annotated[int, Field(gt=0)] = 45  # values from one to the other, evenly spaced in log C
    # TOKEN or TOKEN@SHARE of the depth. BEiT's features are best at 3/4 of it (microsoft/unilm, issue 419).
    readouts: Annotated[tuple[str, ...], Field(min_length=1)] = ("cls", "mean", "cls+mean", "mean@0.75")
    # Features of masked-image models differ in scale by orders of magnitude: under a penalty on the weights
    # of features as they are, the small ones have no say.
    standardised: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    max_iterations: Annotated[int, Field(gt=0)] = 1000
    # An optimum is found when the gradient has fallen to this share of that at zero weights. scikit-learn's
    # default, 1e-4 whatever the features, is about this share with ten classes.
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels, a readout that cannot be read or a range that is none."""
        super().check(data)
        for text in self.readouts:
            readout_of(text, depth=1, owner=self.key)
        if self.C[0] > self.C[1] or (self.grid == 1) != (self.C[0] == self.C[1]):
            raise UserError(
                f"logreg.C={list(self.C)} with logreg.grid={self.grid}: give the lowest and the highest "
                "value and how many to try from one to the other; a single one is written twice, with grid=1"
            )

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 (and top-5 above five classes) of the regression that validation chose."""
        self.check(data)
        assert data.classes is not None
        classes = len(data.classes)
        readouts, notes = usable(self.readouts, encoder, self.key)
        values = np.geomspace(*self.C, self.grid).tolist()
        inputs = list(product(readouts, dict.fromkeys(self.standardised)))
        needed = list(dict.fromkeys(part for readout in readouts.values() for part in readout.parts))
        features = partial(read, encoder, data, around, needed)
        train, train_labels = features(data.train), labels_of(data.train, encoder)
        standards = {part: standard(train[part]) for part in needed}

        def samples(name: str, found: dict[Readout, Tensor], labels: Tensor) -> Samples:
            return Samples(tuple(found[part] for part in readouts[name].parts), labels)

        def regression(name: str, scaled: bool, *sets: Samples) -> Regression:
            return Regression(sets, classes, [standards[part] for part in readouts[name].parts], scaled)

        solve = partial(Regression.fit, tolerance=self.tolerance, max_iterations=self.max_iterations)

        def validate(split: Split) -> Scores:
            found, labels = features(split), labels_of(split, encoder)
            scores: list[Judged] = []
            for name, scaled in inputs:
                model = regression(name, scaled, samples(name, train, train_labels))
                held_out = samples(name, found, labels)
                path: list[bool] = []
                fit: Fit | None = None
                for C in values:
                    around.report(Progress(stage="fitting regressions", done=len(scores) / len(candidates)))
                    fit = solve(model, C, fit)
                    scores.append(judge(model, fit, held_out))
                    path.append(fit.converged)
                if not all(path):
                    notes.append(_unfinished(name, values, path, self.max_iterations))
            return Scores([s.accuracy for s in scores], [s.loss for s in scores])

        def test(chosen: int, split: Split) -> tuple[np.ndarray, Fit]:
            name, scaled = inputs[chosen // len(values)]
            held_out = samples(name, features(data.validation), labels_of(data.validation, encoder))
            model = regression(name, scaled, samples(name, train, train_labels), held_out)
            fit = solve(model, values[chosen % len(values)])
            asked = samples(name, features(split), labels_of(split, encoder))
            return ranks(model, fit, asked, answers_of(split)), fit

        candidates = [
            {"readout": name, "standardised": scaled, "C": C} for (name, scaled), C in product(inputs, values)
        ]
        selection, (places, refit) = select_and_test(
            data, candidates, validate, test, axes={"C": (0, math.inf)}, notes=notes
        )
        hits = places < 1
        metrics = {"top1": float(hits.mean())}
        if classes > 5:
            metrics["top5"] = float((places < 5).mean())
        metrics["validation_top1"] = selection.score
        content = selection.content()
        if not refit.converged:
            content["notes"].append(
                f"the fit that was tested stopped after {refit.iterations} iterations, its gradient at "
                f"{refit.gradient:.1e} of that at the start"
            )
        return Evaluation(metrics, Hits(hits), content, facts={"iterations": refit.iterations})


def _unfinished(readout: str, values: list[float], converged: list[bool], most: int) -> str:
    short = [C for C, done in zip(values, converged, strict=True) if not done]
    return (
        f"readout {readout}: {len(short)} of {len(values)} optima, from C = {min(short):.2g} to "
        f"{max(short):.2g}, were not reached within {most} iterations"
    )

"""Choosing happens here and nowhere else: by validation, after which test is opened, once.

Published probes report the best of many heads, layers or epochs on the very images they are reported on
(MAE, BEiT, iBOT and DINOv2 by default). Here a protocol hands over its candidates and cannot do so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mimbench.protocol import ChooseOn, EvaluationFailed

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split

T = TypeVar("T")


class Scores(NamedTuple):
    """How well each candidate does on validation."""

    accuracy: Sequence[float]  # or another metric; NaN: it could not be fitted (its training diverged)
    loss: Sequence[float] | None = None  # decides between equal accuracies; lower is better


@dataclass(frozen=True)
class Selection:
    """What was chosen out of what, for people who doubt it."""

    candidates: tuple[dict[str, Any], ...]
    scores: tuple[float, ...]
    chosen: int
    edges: tuple[str, ...] = ()  # where the best is the first or last value tried: a wider grid may be better
    notes: tuple[str, ...] = ()
    metric: str = "top1"
    chosen_on: ChooseOn = "validation"

    @property
    def score(self) -> float:
        """The chosen candidate's score. Optimistic: it is the best of many."""
        return self.scores[self.chosen]

    def content(self) -> dict[str, Any]:
        """JSON data; the score of a candidate that could not be fitted is None."""
        return {
            "rule": f"highest {self.chosen_on} {self.metric}",
            "candidates": [
                {**candidate, f"{self.chosen_on}_{self.metric}": None if math.isnan(score) else score}
                for candidate, score in zip(self.candidates, self.scores, strict=True)
            ],
            "chosen": self.chosen,
            "edges": list(self.edges),
            "notes": list(self.notes),
        }


def select(scores: Scores) -> int:
    """The candidate of the highest accuracy; among equals of the lowest loss; then the first.

    Raises EvaluationFailed when none could be fitted.
    """
    losses = scores.loss if scores.loss is not None else [0.0] * len(scores.accuracy)
    fitted = [i for i, accuracy in enumerate(scores.accuracy) if not math.isnan(accuracy)]
    if not fitted:
        raise EvaluationFailed(
            f"none of the {len(scores.accuracy)} candidates could be fitted, their training diverged; "
            "look at the features or try lower learning rates"
        )

    def rank(i: int) -> tuple[float, float]:
        return scores.accuracy[i], -losses[i] if math.isfinite(losses[i]) else -math.inf

    return max(fitted, key=rank)  # the first of equals


def grid_edges(
    candidates: Sequence[Mapping[str, Any]], chosen: int, axes: Mapping[str, tuple[float, float]]
) -> tuple[str, ...]:
    """A sentence for each axis on which the chosen candidate has the lowest or highest value tried.

    axes: name of a number in the candidates -> the values below and above which none is possible.
    """
    found = []
    for axis, limits in axes.items():
        values = sorted({candidate[axis] for candidate in candidates})
        value = candidates[chosen][axis]
        for edge, name, limit in zip((values[0], values[-1]), ("lowest", "highest"), limits, strict=True):
            if len(values) > 1 and value == edge != limit:
                found.append(f"{axis} = {value:g} is the {name} of {', '.join(f'{v:g}' for v in values)}")
    return tuple(found)


def select_and_test(
    data: Dataset,
    candidates: Sequence[Mapping[str, Any]],
    validate: Callable[[Split], Scores],
    test: Callable[[int, Split], T],
    *,
    axes: Mapping[str, tuple[float, float]] | None = None,
    notes: Sequence[str] = (),
    metric: str = "top1",
    choose_on: ChooseOn = "validation",
) -> tuple[Selection, T]:
    """Score every fitted candidate on validation, open test once, and test the chosen one alone.

    candidates: what each is, as JSON data. validate: a split to the scores of all candidates, in their
    order. test: (chosen candidate, split) to whatever the protocol makes of it. axes: see ``grid_edges``.
    metric: the name of the scores. choose_on: "test" repeats the habit of a published recipe, for its own
    number to be understood; whoever asks for it must say so in a field of the same name.
    """
    opened = data.open_test() if choose_on == "test" else None
    scores = validate(data.validation if opened is None else opened)
    if len(scores.accuracy) != len(candidates):
        raise ValueError(f"{len(scores.accuracy)} scores for {len(candidates)} candidates")
    chosen = select(scores)
    selection = Selection(
        candidates=tuple(dict(candidate) for candidate in candidates),
        scores=tuple(float(accuracy) for accuracy in scores.accuracy),
        chosen=chosen,
        edges=grid_edges(candidates, chosen, axes or {}),
        notes=tuple(notes),
        metric=metric,
        chosen_on=choose_on,
    )
    return selection, test(chosen, data.open_test() if opened is None else opened)


def without_choice(
    data: Dataset, candidate: Mapping[str, Any], test: Callable[[Split], T], why: str
) -> tuple[dict[str, Any], T]:
    """Open test once for the one candidate there is, such as an official recipe that trains on validation
    too; what to say of the choice (as ``Selection.content``), and what came out. why: one sentence."""
    content = {
        "rule": "nothing to choose",
        "candidates": [dict(candidate)],
        "chosen": 0,
        "edges": [],
        "notes": [why],
    }
    return content, test(data.open_test())

"""What an evaluation protocol is to the harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mimbench.errors import UserError

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.encoder import Encoder
    from mimbench.features import FeatureStore
    from mimbench.progress import Progress


class EvaluationFailed(Exception):  # noqa: N818, it is a result and not a programming error
    """An evaluation cannot give a number; the message is one sentence with the reason. The job has failed."""


@dataclass(frozen=True)
class Evaluation:
    """What a protocol gives back; somebody else stores it.

    metrics: named numbers; the protocol's ``metric`` is the one a table shows.
    hits: bool [N], whether each test sample came out right, in the order of the test split.
    selection: candidates, their validation scores and the one chosen, as JSON data.
    """

    metrics: dict[str, float]
    hits: np.ndarray
    selection: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Surroundings:
    """What an evaluation may use: frozen features (cached, extracted over all processes), seed, progress."""

    features: FeatureStore
    seed: int
    report: Callable[[Progress], None]


@dataclass(frozen=True)
class Protocol:
    """An evaluation with a name and an integer version. Fields are its settings, all with defaults."""

    key: ClassVar[str]
    version: ClassVar[int]
    metric: ClassVar[str] = "top1"
    summary: ClassVar[str]  # one sentence for ``mimbench protocols``

    def check(self, data: Dataset) -> None:
        """Raise UserError for what cannot work on this data (labels, sizes), before any work starts."""
        if data.classes is None:
            raise UserError(
                f"{self.key} needs labels, {data.name} has none; give labelled data, "
                "or --protocol none to pre-train only"
            )
        if len(data.classes) < 2:
            raise UserError(f"{self.key} needs at least 2 classes, {data.name} has {len(data.classes)}")

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Choose on validation, open test once, return per-sample outcomes. Prints and writes nothing."""
        raise NotImplementedError

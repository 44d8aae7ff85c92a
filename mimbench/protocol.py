"""What an evaluation protocol is to the harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mimbench.errors import UserError
from mimbench.spec import Readout

if TYPE_CHECKING:
    import numpy as np
    from lightning_fabric import Fabric

    from mimbench.data import Dataset
    from mimbench.encoder import Encoder, Linear
    from mimbench.features import FeatureStore
    from mimbench.outcomes import Outcomes
    from mimbench.progress import Progress

Task = Literal["classification", "segmentation", "detection"]
ChooseOn = Literal["validation", "test"]  # "test": only for recipes that were published so


class EvaluationFailed(Exception):  # noqa: N818, it is a result and not a programming error
    """An evaluation cannot give a number; the message is one sentence with the reason. The job has failed."""


@dataclass(frozen=True)
class Preset:
    """An official recipe as fields of a protocol: ``--protocol linprobe:mae``.

    fields: those that differ from the protocol's defaults. source: where the recipe stands, and in what
    this reproduction of it differs, if in anything.
    """

    fields: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Evaluation:
    """What a protocol gives back; somebody else stores it.

    metrics: named numbers; the protocol's ``metric`` is the one a table shows.
    outcomes: what became of each test image, in the order of the test split; with all images counted once
    their ``value`` is that metric.
    selection: candidates, their validation scores and the one chosen, as JSON data.
    facts: anything else for the record, as JSON data. ``flags``: sentences that tables print beside the
    row, such as that the encoder has collapsed.
    curve: of what was trained, as ``Record.curve``.
    samples: predictions for the test images ``sampled``, for people to look at: "labels 12" of a label map
    [H, W]; "boxes 12" of x, y, width, height and score [n, 5], best first, and "classes 12" [n].
    """

    metrics: dict[str, float]
    outcomes: Outcomes
    selection: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)


def sampled(count: int, most: int = 8) -> list[int]:
    """``most`` of ``count`` places, evenly spread, the first included; all where there are fewer.

    By default the test images whose predictions are kept.
    """
    return [i * count // most for i in range(most)] if most < count else list(range(count))


@dataclass(frozen=True)
class Surroundings:
    """What an evaluation may use.

    features: frozen features (cached, extracted over all processes).
    readout: what the authors of the method read off their encoder, from its card.
    fabric: device, precision and processes; None: the encoder's own device, fp32, one process.
    folder: for what a stopped evaluation goes on from; emptied when it is done. None: nowhere.
    workers, micro_batch: see ``mimbench.train.pretrain``.
    alignment: gives what takes the encoder's tokens to its teacher's (``Method.alignment``), if anything.
    """

    features: FeatureStore
    seed: int
    report: Callable[[Progress], None]
    readout: Readout = field(default_factory=Readout)
    fabric: Fabric | None = None
    folder: Path | None = None
    workers: int = 0
    micro_batch: int | None = None
    alignment: Callable[[], Linear | None] = lambda: None


@dataclass(frozen=True)
class Protocol:
    """An evaluation with a name and an integer version. Fields are its settings, all with defaults.

    task: the kind of data it takes. metric: the number it is ranked by, a share in [0, 1] unless ``unit``
    says otherwise. ranked: False where more is not better. requires: modules that must be installed,
    and the extra of mimbench that brings them. presets: official recipes by name.
    takes_answers: whether it heeds ``Split.answers``, see ``protocols.parts.answers``.
    own_test: whether its outcomes are of test images of its own and not of the data's.
    """

    key: ClassVar[str]
    version: ClassVar[int]
    task: ClassVar[Task] = "classification"
    metric: ClassVar[str] = "top1"
    unit: ClassVar[Literal["share", "number"]] = "share"
    ranked: ClassVar[bool] = True
    summary: ClassVar[str]  # one sentence for ``mimbench protocols``
    requires: ClassVar[tuple[tuple[str, ...], str] | None] = None  # (("mmseg", "mmengine"), "dense")
    presets: ClassVar[Mapping[str, Preset]] = MappingProxyType({})
    takes_answers: ClassVar[bool] = False
    own_test: ClassVar[bool] = False

    @property
    def collective(self) -> bool:
        """Whether every process of a launch calls ``evaluate``, with the same arguments and outcome.

        Otherwise the first does alone, and the others help with the extraction of features.
        """
        return False

    def check(self, data: Dataset) -> None:
        """Raise UserError for what cannot work on this data (labels, sizes), before any work starts.

        Called only for data of the protocol's task.
        """
        if data.classes is None:
            raise UserError(
                f"{self.key} needs labels, {data.name} has none; give labelled data, "
                "or --protocol none to pre-train only"
            )
        if len(data.classes) < 2 and self.task == "classification":
            raise UserError(f"{self.key} needs at least 2 classes, {data.name} has {len(data.classes)}")

    def built_on(self, data: Dataset) -> dict[str, Any]:
        """What decides the outcome beside version, fields and data, as JSON data; a part of a job's identity.

        Such as the version of another protocol, or the content of files that a field names. Under the name
        of a field it stands for it in tables, where two results of equal content share a column.
        """
        return {}

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Choose on validation, open test once, return per-sample outcomes. Prints and writes nothing."""
        raise NotImplementedError

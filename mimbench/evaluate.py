"""One evaluation job: weights in, per-sample outcomes out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from mimbench import checkpoint, records, registry, settings
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.features import FeatureStore
from mimbench.ledger import FED_ON
from mimbench.protocol import Evaluation, EvaluationFailed, Protocol, Surroundings
from mimbench.spec import Job, Readout

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.work import Report, Workshop


def evaluate(job: Job, workshop: Workshop, report: Report) -> dict[str, Any]:
    """Fields of the record of an evaluate job. What goes wrong is raised."""
    content = job.content
    cls = registry.find_protocol(content["protocol"])
    protocol = cls(**settings.arguments(cls, content["fields"]))
    (need,) = job.needs
    weights = workshop.product(need)
    encoder = checkpoint.load_encoder(workshop.ledger.weights(need) / FED_ON["pretrain"])
    pretrained = workshop.ledger.record(need)
    assert pretrained is not None
    evaluation = _together(protocol, encoder, content["seed"], workshop, report)
    return {
        "needs": {need: weights},
        "metrics": {name: float(value) for name, value in evaluation.metrics.items()},
        "outcomes": records.pack_hits(evaluation.hits),
        "selection": evaluation.selection,
        "cost": pretrained.cost,
        "facts": {"metric": cls.metric, "summary": cls.summary},
    }


def _together(
    protocol: Protocol, encoder: Encoder, seed: int, workshop: Workshop, report: Report
) -> Evaluation:
    """Evaluate on the first process; the others lend a hand with extraction and get the same outcome."""
    folder, fabric = workshop.ledger.folder / "features", workshop.fabric
    if fabric.world_size == 1:
        store = FeatureStore(folder, fabric, workshop.workers)
        return _checked(protocol, encoder, workshop.data, Surroundings(store, seed, report))
    outcome: Evaluation | None = None
    mistake: Exception | None = None
    if fabric.is_global_zero:
        leading = _Leading(folder, fabric, workshop.workers)
        try:
            outcome = _checked(protocol, encoder, workshop.data, Surroundings(leading, seed, report))
        except (UserError, EvaluationFailed) as error:
            mistake = error
        fabric.broadcast(None)  # nothing more to extract
    else:
        _follow(FeatureStore(folder, fabric, workshop.workers), encoder, workshop.data)
    outcome, mistake = fabric.broadcast((outcome, mistake))
    if mistake is not None:
        raise mistake
    assert outcome is not None
    return outcome


class _Leading(FeatureStore):
    """Tells the other processes what is asked for, so that they take part in getting it."""

    def get(
        self, encoder: Encoder, split: Split, readouts: Sequence[Readout], **options: Any
    ) -> dict[Readout, np.ndarray]:
        assert self.fabric is not None
        shared = {name: value for name, value in options.items() if name != "report"}
        self.fabric.broadcast((split.name, tuple(readouts), shared))
        return super().get(encoder, split, readouts, **options)


def _follow(store: FeatureStore, encoder: Encoder, data: Dataset) -> None:
    """Take part in whatever the first process gets, until it is through."""
    assert store.fabric is not None
    while (asked := store.fabric.broadcast(None)) is not None:
        name, readouts, options = asked
        split = data.open_test() if name == "test" else getattr(data, name)
        with suppress(UserError, EvaluationFailed):  # raised in the first process too, which tells
            store.get(encoder, split, readouts, **options)


def _checked(protocol: Protocol, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
    """The evaluation, held to its contract."""
    opened = data.test_openings
    evaluation = protocol.evaluate(encoder, data, around)
    opened = data.test_openings - opened
    if opened != 1:
        raise EvaluationFailed(
            f"{protocol.key} opened the test split {opened} times; choose on validation and open it once"
        )
    if len(evaluation.hits) != data.test_size:
        raise EvaluationFailed(
            f"{protocol.key} gave outcomes for {len(evaluation.hits)} of {data.test_size} test images"
        )
    if protocol.metric not in evaluation.metrics:
        raise EvaluationFailed(f"{protocol.key} gave no {protocol.metric}, the metric it is ranked by")
    return evaluation

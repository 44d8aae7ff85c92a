"""One evaluation job: weights in, per-sample outcomes out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimbench import checkpoint, registry, settings
from mimbench.encoder import Encoder, Linear
from mimbench.errors import UserError
from mimbench.features import FeatureStore
from mimbench.files import make_folder, write_atomically
from mimbench.ledger import FED_ON
from mimbench.processes import on_first
from mimbench.protocol import Evaluation, EvaluationFailed, Protocol, Surroundings
from mimbench.spec import Job, Readout
from mimbench.train import METHOD_FILE

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.work import Report, Workshop

TOLERANCE = 1e-6  # between a protocol's metric and the value of its outcomes: sums in another order


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
    data = workshop.data_of(job)
    fabric, scratch = workshop.fabric, workshop.ledger.scratch(job.id)
    around = Surroundings(
        features=FeatureStore(workshop.ledger.folder / "features", fabric, workshop.workers),
        seed=content["seed"],
        report=report,
        readout=readout_of(content),
        fabric=fabric,
        folder=scratch,
        workers=workshop.workers,
        micro_batch=workshop.micro_batch,
        alignment=partial(_alignment, content, workshop.ledger.weights(need)),
    )
    together = protocol.collective or fabric.world_size == 1
    run = _checked if together else _led
    evaluation = run(protocol, encoder, data, around)
    on_first(fabric, lambda: _finish(evaluation, scratch, workshop.ledger.samples(job.id)))
    return {
        "needs": {need: weights},
        "metrics": {name: float(value) for name, value in evaluation.metrics.items()},
        "outcomes": evaluation.outcomes.pack(),
        "selection": evaluation.selection,
        "curve": evaluation.curve,
        "cost": pretrained.cost,
        "facts": {
            "metric": cls.metric,
            "unit": cls.unit,
            "ranked": cls.ranked,
            "summary": cls.summary,
            **({"release": told} if (told := pretrained.facts.get("release")) else {}),
            **evaluation.facts,
        },
    }


def readout_of(content: Mapping[str, Any]) -> Readout:
    """What the authors read off the encoder that a job is about."""
    if said := content.get("released", {}).get("readout"):
        return Readout.model_validate(said)
    return registry.find_method(content["method"]).card.readout


def _alignment(content: Mapping[str, Any], folder: Path) -> Linear | None:
    """The method's layer of that name, out of what its training wrote."""
    name = None if "released" in content else registry.find_method(content["method"]).alignment
    if name is None:
        return None
    state, _ = checkpoint.read_weights(folder / METHOD_FILE)
    return Linear(state[f"{name}.weight"], state.get(f"{name}.bias"))


def _finish(evaluation: Evaluation, scratch: Path, samples: Path) -> None:
    if evaluation.samples:
        make_folder(samples.parent)
        write_atomically(samples, lambda file: np.savez_compressed(file, **dict(evaluation.samples)))  # type: ignore[arg-type]
    shutil.rmtree(scratch, ignore_errors=True)


def _led(protocol: Protocol, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
    """Evaluate on the first process; the others lend a hand with extraction and get the same outcome."""
    fabric, store = around.fabric, around.features
    assert fabric is not None
    outcome: Evaluation | None = None
    mistake: Exception | None = None
    if fabric.is_global_zero:
        leading = _Leading(store, data)
        try:
            outcome = _checked(protocol, encoder, data, replace(around, features=leading))
        except (UserError, EvaluationFailed) as error:
            mistake = error
        fabric.broadcast(None)  # nothing more to extract
    else:
        _follow(store, encoder, data)
    outcome, mistake = fabric.broadcast((outcome, mistake))
    if mistake is not None:
        raise mistake
    assert outcome is not None
    return outcome


class _Leading(FeatureStore):
    """Tells the other processes what is asked for, so that they take part in getting it."""

    def __init__(self, store: FeatureStore, data: Dataset):
        super().__init__(store.folder, store.fabric, store.workers)
        self._data = data

    def get(
        self, encoder: Encoder, split: Split, readouts: Sequence[Readout], **options: Any
    ) -> dict[Readout, np.ndarray]:
        assert self.fabric is not None
        shared = {name: value for name, value in options.items() if name != "report"}
        # A split that the others have themselves goes by its name: it may list a million files.
        known = split in (self._data.train, self._data.validation) or split.name == "test"
        self.fabric.broadcast((split.name if known else split, tuple(readouts), shared))
        return super().get(encoder, split, readouts, **options)


def _follow(store: FeatureStore, encoder: Encoder, data: Dataset) -> None:
    """Take part in whatever the first process gets, until it is through."""
    assert store.fabric is not None
    while (asked := store.fabric.broadcast(None)) is not None:
        split, readouts, options = asked
        if isinstance(split, str):
            split = data.open_test() if split == "test" else getattr(data, split)
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
    if not protocol.own_test and evaluation.outcomes.n != data.test_size:
        raise EvaluationFailed(
            f"{protocol.key} gave outcomes for {evaluation.outcomes.n} of {data.test_size} test images"
        )
    if protocol.metric not in evaluation.metrics:
        raise EvaluationFailed(f"{protocol.key} gave no {protocol.metric}, the metric it is ranked by")
    if protocol.ranked:
        said, counted = evaluation.metrics[protocol.metric], float(evaluation.outcomes.value()[0])
        if not abs(said - counted) <= TOLERANCE:
            raise EvaluationFailed(
                f"{protocol.key} says {protocol.metric} {said:.6f}, its per-image outcomes {counted:.6f}"
            )
    return evaluation

"""Distribution shift: how a classifier does on test sets that were collected otherwise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mimbench.errors import UserError
from mimbench.protocol import Evaluation, Protocol, Surroundings
from protocols.parts.derived import Derived
from protocols.parts.shifted import Shifted, ShiftedSet, read_set
from protocols.parts.wrapped import Wrapped, correct, wrapped

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.encoder import Encoder


@dataclass(frozen=True)
class Shift(Protocol):
    """Another protocol's classifier, trained on the data's train split, on other people's test images.

    sets: folders in the layouts of ImageNet-A and -R (arXiv:1907.07174, 2006.16241), -Sketch
    (arXiv:1905.13549), -V2 (arXiv:1902.10811; folders 0 to 999) or ObjectNet (NeurIPS 2019; ``images`` and
    ``mappings``), or any folder with one folder of images a class. A class folder is called as the class is
    in the data, by its WordNet id or by a name that ImageNet has for it; ``<folder>.json`` beside a set says
    so otherwise, as {"class folder": "class" or ["class", "class"]}, and of several classes each is right.
    Class folders that are no class of the data are left out, and counted in the record.

    The classifier chooses among the classes of the set alone, as in the official scripts of ImageNet-A and
    -R (200 of 1000) and, for ObjectNet, among the 113 classes of ImageNet it shares: what it says of others
    could never be right. Hyper-parameters are chosen on the data's own validation split; its test split is
    not looked at.

    top1 is over all images of all sets; that of each set stands beside it. A set's content, not its path,
    decides what may share a table, but a folder that was moved is evaluated anew.
    """

    key = "shift"
    version = 1
    own_test = True
    summary = "the top-1 of another protocol's classifier on test sets of other origin, such as ImageNet-A"

    # A classification protocol, one of its recipes, or either with settings: linprobe:mae[epochs=10]
    classifier: str = "linprobe"
    sets: tuple[str, ...] = ()  # paths

    @property
    def collective(self) -> bool:
        """As the classifier's protocol."""
        return self._wrapped.protocol.collective

    @property
    def _wrapped(self) -> Wrapped:
        return wrapped(self.classifier, self.key, takes_answers=True)

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels, without sets, and for sets that do not suit the data."""
        super().check(data)
        if not self.sets:
            raise UserError(
                "shift needs test sets; give folders of images in class folders, as in "
                "--set shift.sets=[PATH,PATH]"
            )
        self._wrapped.check(data)
        self._read(data)

    def built_on(self, data: Dataset) -> dict[str, Any]:
        """The version of the classifier's protocol and the content of the sets."""
        return {
            "classifier": self._wrapped.identity,
            "sets": {of.name: of.fingerprint for of in self._read(data)},
        }

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 on all images of all sets, and on each set."""
        self.check(data)
        assert data.classes is not None
        inner, sets = self._wrapped, self._read(data)
        split = Shifted(sets, len(data.classes), encoder.image_size, around.report)
        derived = Derived(data, lambda test: split, len(split))
        found = inner.protocol.evaluate(encoder, cast("Dataset", derived), around)
        right = correct(found, inner.label)
        metrics, first = {"top1": float(right.mean())}, 0
        for of in sets:
            metrics[f"top1_{of.name}"] = float(right[first : first + len(of.folders)].mean())
            first += len(of.folders)
        if "validation_top1" in found.metrics:
            metrics["validation_top1"] = found.metrics["validation_top1"]
        facts = {**inner.facts(found), "sets": {of.name: of.content() for of in sets}}
        return Evaluation(metrics, found.outcomes, found.selection, facts, found.curve)

    def _read(self, data: Dataset) -> list[ShiftedSet]:
        assert data.classes is not None
        sets = [read_set(path, self.key, data.name, data.classes) for path in self.sets]
        name, times = Counter(of.name for of in sets).most_common(1)[0]
        if times > 1:
            raise UserError(f"shift.sets names {times} folders called {name}; rename all but one")
        return sets

"""What the rest of mimbench sees of a dataset. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from mimbench import registry
from mimbench.data.annotated import Targets, readings
from mimbench.data.cache import cache_folder
from mimbench.data.scan import Scan
from mimbench.data.sources.base import Listing, Part
from mimbench.data.splits import check_classes, divide, fingerprint, require_two_classes
from mimbench.data.store import Pixels, pixels, store_side
from mimbench.data.targets import Boxes, Target
from mimbench.errors import UserError, unknown
from mimbench.progress import Progress, silent
from mimbench.protocol import Task
from mimbench.spec import content_hash


class Split:
    """One of train, validation and test.

    labels: int64 [N], one an image; None for unlabelled images and for those annotated otherwise, see
    ``target``. fingerprint: SHA-256 hex over (encoded content, label or annotations) of every sample in
    order; paths have no part in it.
    """

    def __init__(
        self,
        name: str,
        labels: np.ndarray | None,
        fingerprint: str,
        pixels: Pixels,
        positions: np.ndarray,
        part: Part,
        indices: np.ndarray,
        targets: Targets | None = None,
    ):
        self.name = name
        self.labels = labels
        self.fingerprint = fingerprint
        self._pixels = pixels
        self._positions = positions  # of the samples, in ``pixels``
        self._part = part
        self._indices = indices  # of the samples, in ``part``
        self._targets = targets

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"<Split {self.name}: {len(self)} images, {self._pixels.kind}>"

    def image(self, index: int) -> np.ndarray:
        """Pixels uint8 [H, W, 3]. Do not write into them. Raises UserError if the file is gone meanwhile."""
        return self._pixels.image(int(self._positions[index]))

    def target(self, index: int) -> Target:
        """The annotations of an image of a segmentation or detection set.

        Segmentation: classes [H, W] at the image's own resolution, uint8 with 255 for pixels of no class
        (uint16 and 65535 where there are more than 254 classes). Detection: ``Boxes``.

        Raises UserError if their file is gone meanwhile, or if the dataset has none.
        """
        if self._targets is None:
            raise UserError("these images have no label maps and no boxes; give ade20k:PATH or coco:PATH")
        return self._targets.target(int(self._positions[index]))

    def sample_id(self, index: int) -> str:
        """A sample's name for people, such as its path below the dataset's root."""
        return self._part.name(int(self._indices[index]))

    @property
    def storage(self) -> str:
        """``prepared`` (decoded once, on disk) or ``streamed`` (decoded at each access)."""
        return self._pixels.kind


class Dataset:
    """A dataset that is divided, checked and ready to be read. ``open_dataset`` makes one.

    task: what its annotations are for; "classification" for unlabelled ones too.
    classes: names in the order of the labels; None: unlabelled, with train and validation only.
    category_ids: detection: of the classes, in the source's own files. has_masks: detection: whether every
    object has an outline.
    skipped: names of the broken images that were left out.
    test_openings: how often the test split was handed out; an evaluation opens it once.
    """

    def __init__(
        self,
        spec: str,
        listing: Listing,
        splits: dict[str, Split],
        skipped: tuple[str, ...],
        rule: str,
        store_side: int | None,
    ):
        self.spec = spec
        self.name = listing.name
        self.task: Task = listing.task
        self.classes = listing.classes
        self.category_ids = listing.category_ids
        self.has_masks = listing.has_masks
        self.defaults = listing.defaults
        self.train = splits["train"]
        self.validation = splits["validation"]
        self._test = splits.get("test")
        self.skipped = skipped
        self.test_openings = 0
        self._rule = rule
        self._store_side = store_side
        self._notes = listing.notes

    def __repr__(self) -> str:
        return f"<Dataset {self.name}: {self._sizes()}>"

    @property
    def test_fingerprint(self) -> str:
        """The test split's fingerprint; empty for an unlabelled dataset."""
        return self._test.fingerprint if self._test else ""

    @property
    def test_size(self) -> int:
        """The number of test images; 0 for an unlabelled dataset."""
        return len(self._test) if self._test else 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex over the splits' fingerprints."""
        return content_hash(self._fingerprints(), length=64)

    def open_test(self) -> Split:
        """The test split, for the one evaluation of what validation chose. Raises UserError if unlabelled."""
        if self._test is None:
            raise UserError(
                f"{self.name} has no labels and so no test split; an evaluation needs a labelled dataset "
                "(pre-training does not)"
            )
        self.test_openings += 1
        return self._test

    def coco(self, split: Split) -> dict[str, Any]:
        """A split of a detection set as the JSON that COCO's tools take: its images, objects, categories.

        Raises UserError for other sets.
        """
        if self.task != "detection" or self.classes is None:
            raise UserError(f"{self.name} is for {self.task} and has no boxes; give coco:PATH")
        found = [split.target(i) for i in range(len(split))]
        boxes = [target for target in found if isinstance(target, Boxes)]
        pictures = [
            {"id": of.image_id, "file_name": split.sample_id(i), "height": of.height, "width": of.width}
            for i, of in enumerate(boxes)
        ]
        named = zip(self.category_ids, self.classes, strict=True)
        return {
            "images": pictures,
            "annotations": [entry for of in boxes for entry in of.content(self.category_ids)],
            "categories": [{"id": number, "name": name} for number, name in named],
        }

    def describe(self) -> dict[str, Any]:
        """Facts for the record, as JSON data."""
        return {
            "name": self.name,
            "task": self.task,
            "fingerprint": self.fingerprint,
            "sizes": self._sizes(),
            "fingerprints": self._fingerprints(),
            "classes": list(self.classes) if self.classes is not None else None,
            "split_rule": self._rule,
            "store_side": self._store_side,
            "skipped": list(self.skipped),
            "notes": list(self._notes),
        }

    def _splits(self) -> list[Split]:
        return [split for split in (self.train, self.validation, self._test) if split is not None]

    def _sizes(self) -> dict[str, int]:
        return {split.name: len(split) for split in self._splits()}

    def _fingerprints(self) -> dict[str, str]:
        return {split.name: split.fingerprint for split in self._splits()}


def listing(spec: str, folder: Path) -> Listing:
    """What the source called ``spec`` holds; ``folder`` is the cache's, for sources that use one.

    Raises UserError for an unknown source or a wrong path.
    """
    kind, _, argument = spec.partition(":")
    sources = registry.datasets()
    if kind not in sources:
        if not argument and Path(spec).expanduser().exists():
            raise UserError(
                f"the dataset {spec!r} is a path without its kind; write imagefolder:{spec} or parquet:{spec}"
            )
        raise unknown("dataset", kind, sources, "such as digits or imagefolder:PATH")
    source = sources[kind]
    return source(argument, folder) if len(signature(source).parameters) > 1 else source(argument)


def broken_images(found: Listing, scans: dict[str, Scan]) -> dict[str, str]:
    """Reason by name of every image that cannot be read."""
    return {
        found.parts[part].name(index): reason
        for part, reading in scans.items()
        for index, reason in reading.broken.items()
    }


def open_dataset(
    spec: str,
    *,
    image_size: int | None = None,
    skip_broken: bool = False,
    cache: Path | None = None,
    report: Callable[[Progress], None] = silent,
) -> Dataset:
    """Open ``digits``, ``imagefolder:``, ``parquet:``, ``cifar10:`` or ``imagenet:PATH``, or ``hf:NAME``;
    for segmentation ``ade20k:PATH``, for detection ``coco:PATH``.

    Reads and checks every image once (remembered until a file changes) and decodes them into a prepared
    store where they fit. ``image_size`` (default: the dataset's own) decides how large images are kept, see
    ``mimbench.data.store.store_side``; with label maps or boxes they are kept whole.
    ``cache`` defaults to $MIMBENCH_CACHE or ~/.cache/mimbench.

    Splits: train, validation and test as the source gives them. Where it gives no test, its validation
    part is the test split, and validation is a fixed tenth of train. Where it gives train alone, test and
    validation are a fixed tenth each.

    Raises UserError for anything wrong with the data; broken images are all named, or with ``skip_broken``
    left out and listed in ``Dataset.skipped``.
    """
    folder = cache_folder("data", cache)
    found = listing(spec, folder)
    require_two_classes(found)
    scans = readings(found, folder, report)
    broken = broken_images(found, scans)
    if broken and not skip_broken:
        raise UserError(_complaint(found, broken))
    chosen, rule = divide(found, scans)
    check_classes(found, chosen)

    side = None if found.annotations else store_side(image_size or found.defaults.image_size)
    stores = {name: pixels(part, scans[name], side, folder, report) for name, part in found.parts.items()}
    marks = {name: Targets(of, scans[name]) for name, of in found.annotations.items()}
    splits = {}
    for name, (origin, indices) in chosen.items():
        part, reading = found.parts[origin], scans[origin]
        labels = part.labels[indices] if part.labels is not None else None
        position = np.cumsum(reading.sizes[:, 0] > 0) - 1  # in the store, which holds sound images only
        splits[name] = Split(
            name,
            labels,
            split_fingerprint(found, origin, reading, indices),
            stores[origin],
            position[indices],
            part,
            indices,
            marks.get(origin),
        )
    return Dataset(spec, found, splits, tuple(broken), rule, side)


def split_fingerprint(found: Listing, origin: str, reading: Scan, indices: np.ndarray) -> str:
    """Of the samples ``indices`` of the part ``origin``."""
    labels = found.parts[origin].labels
    return fingerprint(
        reading.digests[indices],
        None if labels is None else labels[indices],
        None if reading.targets is None else reading.targets[indices],
        found.annotations[origin].meaning if origin in found.annotations else "",
    )


def _complaint(found: Listing, broken: dict[str, str]) -> str:
    total = sum(map(len, found.parts.values()))
    named = ", ".join(f"{name} ({reason})" for name, reason in list(broken.items())[:10])
    more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
    verb = "used" if found.annotations else "read"
    return (
        f"{len(broken)} of the {total} images of {found.name} cannot be {verb}: {named}{more}; "
        "mend or remove them, or go on without them by --skip-broken"
    )

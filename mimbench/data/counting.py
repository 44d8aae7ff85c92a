"""Counts of what images are annotated with, for ``mimbench data check``: classes, pixels, objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mimbench.data.images import BrokenImageError
from mimbench.data.scan import with_progress
from mimbench.data.sources.base import Annotations, Listing
from mimbench.data.targets import Boxes
from mimbench.progress import Progress


@dataclass(frozen=True)
class Content:
    """What the images of one split show. Class counts are by name, in the order of the labels.

    bare: images in which nothing is marked. images: in which a class occurs. pixels: a class's share of the
    pixels that have one; ignored: share of pixels that have none (segmentation). objects: of a class, crowds
    included; crowds, degenerate: of all classes, see ``Boxes`` (detection).
    """

    bare: int
    images: dict[str, int]
    pixels: dict[str, float] = field(default_factory=dict)
    ignored: float = 0.0
    objects: dict[str, int] = field(default_factory=dict)
    crowds: int = 0
    degenerate: int = 0

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes that do not occur."""
        return tuple(name for name, count in self.images.items() if not count)


def contents(
    found: Listing, chosen: dict[str, tuple[str, np.ndarray]], report: Callable[[Progress], None]
) -> dict[str, Content]:
    """What each split shows, its annotations read once. chosen: see ``splits.divide``."""
    result = {}
    for origin, source in found.annotations.items():
        assert found.classes is not None
        table = _count(source, len(found.classes), report)
        for split, (part, samples) in chosen.items():
            if part == origin:
                result[split] = _content(table[samples], found.classes, found.task == "segmentation")
    return {split: result[split] for split in chosen if split in result}


def _count(annotations: Annotations, classes: int, report: Callable[[Progress], None]) -> np.ndarray:
    """int64 [N, C + 3]: of each sample its pixels or objects of each class, then the pixels of no class or
    the crowds, then the degenerate objects, last the pixels in all. Zeros where it is broken."""
    table = np.zeros((len(annotations), classes + 3), np.int64)

    def work(piece: range) -> int:
        for index, content in zip(piece, annotations.read(piece), strict=True):
            if isinstance(content, BrokenImageError):
                continue
            try:
                target = annotations.decode(content)
            except BrokenImageError:
                continue
            row = table[index]
            if isinstance(target, Boxes):
                row[:classes] = np.bincount(target.labels, minlength=classes)
                row[classes], row[classes + 1] = target.crowd.sum(), target.degenerate.sum()
            else:
                counts = np.bincount(target.ravel())
                row[: len(counts[:classes])] = counts[:classes]
                row[classes], row[classes + 2] = counts[classes:].sum(), target.size
        return len(piece)

    with_progress(work, annotations.pieces(), "counting annotations", report)
    return table


def _content(rows: np.ndarray, names: tuple[str, ...], in_pixels: bool) -> Content:
    by_class, (rest, degenerate, size) = rows[:, : len(names)], rows[:, len(names) :].sum(0).tolist()
    totals = by_class.sum(0)
    images = dict(zip(names, (by_class > 0).sum(0).tolist(), strict=True))
    bare = int((by_class.sum(1) == 0).sum())
    if in_pixels:
        shares = totals / max(int(totals.sum()), 1)
        return Content(
            bare,
            images,
            pixels=dict(zip(names, shares.tolist(), strict=True)),
            ignored=rest / max(size, 1),
        )
    return Content(
        bare,
        images,
        objects=dict(zip(names, totals.tolist(), strict=True)),
        crowds=rest,
        degenerate=degenerate,
    )


def remarks(contents: dict[str, Content]) -> list[str]:
    """Sentences on what a reader of results should know of the splits."""
    sentences = []
    for split, content in contents.items():
        if absent := content.absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            named = ", ".join(absent[:5]) + more
            effect = {
                "train": "nothing can be learned of them",
                "test": "means over classes leave them out",
            }.get(split, "they have no say in what is chosen")
            count = f"{len(absent)} of the {len(content.images)} classes"
            sentences.append(f"{split}: {count} do not occur ({named}); {effect}")
        if content.ignored > 0.5:
            sentences.append(f"{split}: {content.ignored:.0%} of the pixels have no class")
        if content.pixels and content.bare:
            sentences.append(f"{split}: {content.bare} images have not one pixel with a class")
    return sentences

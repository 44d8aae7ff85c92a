"""Images and their annotations together: checked against each other, and annotations read by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mimbench.data.images import BrokenImageError
from mimbench.data.scan import Scan, scan
from mimbench.data.sources.base import Annotations, Listing
from mimbench.data.store import changed
from mimbench.data.targets import Target
from mimbench.progress import Progress


def readings(found: Listing, folder: Path, report: Callable[[Progress], None]) -> dict[str, Scan]:
    """What is known of each sample, by part. One whose annotations cannot be used is broken."""
    scans = {name: scan(part, folder, report) for name, part in found.parts.items()}
    for name, source in found.annotations.items():
        marks = scan(source, folder, report, "checking annotations")
        scans[name] = _together(scans[name], marks, source)
    return scans


def _together(images: Scan, marks: Scan, annotations: Annotations) -> Scan:
    broken = {i: f"its annotation {annotations.name(i)}: {reason}" for i, reason in marks.broken.items()}
    for i in np.flatnonzero((images.sizes != marks.sizes).any(1)).tolist():
        if i not in images.broken and i not in broken:
            (high, wide), (height, width) = marks.sizes[i].tolist(), images.sizes[i].tolist()
            turned = (high, wide) == (width, height)
            broken[i] = (
                f"its annotation {annotations.name(i)} is of {wide} x {high} pixels, the image has "
                f"{width} x {height}" + " (EXIF orientation is not applied, save it upright)" * turned
            )
    broken |= images.broken
    sizes = images.sizes.copy()
    sizes[list(broken)] = 0
    return replace(images, sizes=sizes, broken=dict(sorted(broken.items())), targets=marks.digests)


class Targets:
    """The annotations of a part's sound samples, by position, decoded at each access: they are small in
    their encoded form and quickly read."""

    def __init__(self, annotations: Annotations, reading: Scan):
        self._annotations = annotations
        self._keep = np.flatnonzero(reading.sizes[:, 0] > 0)

    def target(self, position: int) -> Target:
        """Raises UserError if their file is gone or has changed meanwhile."""
        index = int(self._keep[position])
        try:
            return self._annotations.decode(self._annotations.encoded(index))
        except (OSError, BrokenImageError) as error:
            raise changed(self._annotations, index, error) from error

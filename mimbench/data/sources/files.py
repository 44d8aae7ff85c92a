"""Files as samples, and finding them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from mimbench.data.sources.base import Annotations, Part, Samples, Units
from mimbench.errors import UserError

SUFFIXES = {
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
}  # fmt: skip

Found = tuple[str, os.stat_result | None, int]  # name, status (None: unreachable), samples inside


class Files(Samples):
    """One sample a file, in the order given. ``files``: their names below ``root``."""

    def __init__(self, root: Path, files: list[Found], identity: str):
        self._root = root
        self.identity = identity
        self._files = self.units = Units.of(files)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files.name(index)

    def encoded(self, index: int) -> bytes:
        return (self._root / self._files.name(index)).read_bytes()


class Photographs(Files, Part):
    """Image files without labels of their own."""

    labels = None


class AnnotationFiles(Files, Annotations):
    """One file of annotations an image."""


def collect(
    folder: Path,
    suffixes: Collection[str],
    files: list[Found],
    prefix: str = "",
    above: tuple[tuple[int, int], ...] = (),
) -> list[str]:
    """Adds the files below ``folder`` that end so to ``files``; returns the names of its subfolders.

    Links are followed, but not in circles; what is hidden is passed over.
    """
    try:
        status = folder.stat()
        with os.scandir(folder) as scanned:
            entries = [e for e in scanned if not e.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror}); check its rights") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return []
    subfolders = []
    for entry in entries:
        if entry.is_dir():
            subfolders.append(entry.name)
            collect(Path(entry.path), suffixes, files, f"{prefix}{entry.name}/", (*above, here))
        elif os.path.splitext(entry.name)[1].lower() in suffixes:
            try:
                files.append((prefix + entry.name, entry.stat(), 1))
            except OSError:  # a link to nowhere is a broken image, which the scan will name
                files.append((prefix + entry.name, None, 1))
    return subfolders

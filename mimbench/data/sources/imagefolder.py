"""``imagefolder:PATH``: a folder of images, one subfolder a class.

PATH holds the class folders, or ``train``, ``val`` (``valid``, ``validation``) and ``test``, each with the
class folders. Images that lie in no class folder make an unlabelled dataset, for pre-training only.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mimbench.data.sources.base import Listing, Part, Units, existing, local_name
from mimbench.data.sources.files import SUFFIXES, collect
from mimbench.errors import UserError

PART_NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


class ImageFiles(Part):
    """Image files below a folder, in order of their relative paths."""

    def __init__(self, folder: Path, prefix: str = ""):
        """``prefix`` stands before the names, such as the part's folder."""
        self.folder = folder
        self.identity = f"imagefolder:{folder.resolve()}"
        self.labels = None
        self._prefix = prefix
        files: list[tuple[str, os.stat_result | None, int]] = []
        self.subfolders = tuple(sorted(collect(folder, SUFFIXES, files)))
        files.sort(key=lambda file: file[0])
        self._files = self.units = Units.of(files)
        self.loose = sum("/" not in name for name, _, _ in files)  # right inside, in no subfolder

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._prefix + self._files.name(index)

    def encoded(self, index: int) -> bytes:
        return (self.folder / self._files.name(index)).read_bytes()

    def label(self, classes: tuple[str, ...], source: str) -> None:
        """Takes labels from the class folders. Raises UserError for an empty or an unknown one."""
        numbers = {name: number for number, name in enumerate(classes)}
        if alien := [name for name in self.subfolders if name not in numbers]:
            raise UserError(
                f"{self.folder} has class folders that the training part of {source} has not "
                f"({', '.join(alien[:5])}); give them training images or take them away"
            )
        labels = [numbers[self._files.name(i).partition("/")[0]] for i in range(len(self))]
        self.labels = np.array(labels, np.int64)
        counts = np.bincount(self.labels, minlength=len(classes))
        if empty := [name for name in self.subfolders if not counts[numbers[name]]]:
            raise UserError(
                f"the class folder {self.folder / empty[0]} holds no image"
                + (f", nor do {len(empty) - 1} others" if len(empty) > 1 else "")
                + "; fill it or remove it"
            )


def part_folders(root: Path) -> dict[str, Path]:
    """The folders of the parts below ``root``; ``root`` itself is the training part where it has none."""
    found = {}
    for part, names in PART_NAMES.items():
        there = [root / name for name in names if (root / name).is_dir()]
        if len(there) > 1:
            raise UserError(
                f"{root} holds {' and '.join(p.name for p in there)}, which mean the same part; keep one"
            )
        if there:
            found[part] = there[0]
    if not found:
        return {"train": root}
    if "train" not in found:
        raise UserError(
            f"{root} holds {', '.join(p.name for p in found.values())} but no folder train; add it, "
            "or name the folder whose subfolders are the classes"
        )
    return found


def imagefolder(argument: str) -> Listing:
    """Folders of image files, one a class; images in no class folder are an unlabelled set."""
    root = existing("imagefolder", argument)
    if not root.is_dir():
        raise UserError(f"imagefolder:{argument} is a file; name the folder that holds the images")
    name = local_name("imagefolder", root)
    folders = part_folders(root)
    parts = {
        part: ImageFiles(folder, "" if folder == root else f"{folder.name}/")
        for part, folder in folders.items()
    }
    for part in parts.values():
        if not len(part):
            raise UserError(
                f"{part.folder} holds no image file; expected .jpg, .png or the like, or class folders"
            )
        if part.loose and part.loose < len(part):
            raise UserError(
                f"{part.folder} holds both images and folders of images ({', '.join(part.subfolders[:5])}); "
                "put every image into a class folder, or all into one folder for an unlabelled set"
            )
    train = parts["train"]
    if train.loose:
        for part in parts.values():
            if not part.loose:
                raise UserError(
                    f"{part.folder} has class folders but {train.folder} has none; sort both or neither"
                )
        notes = ("unlabelled: the test part was left out",) if "test" in parts else ()
        given = {key: part for key, part in parts.items() if key != "test"}
        return Listing(name=name, parts=dict(given), classes=None, notes=notes)
    for part in parts.values():
        if part.loose:
            raise UserError(
                f"{part.folder} has no class folders but {train.folder} has; sort its images into folders "
                "of the same names, or move it away"
            )
    for part in parts.values():
        part.label(train.subfolders, name)
    return Listing(name=name, parts=dict(parts), classes=train.subfolders)

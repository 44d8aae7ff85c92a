"""``coco:PATH``: images with boxes, and outlines if it has them, in the layout of COCO 2017.

    PATH/train2017/*.jpg    PATH/annotations/instances_train2017.json
    PATH/val2017/*.jpg      PATH/annotations/instances_val2017.json
    PATH/test2017/*.jpg     PATH/annotations/instances_test2017.json     (optional)

A part is called train, val (or valid, validation) or test, with or without a year; the prefix ``instances_``
may be missing. Its images lie in the folder of its name in PATH or PATH/images, or in PATH/images or PATH
itself, whichever holds the first image it names. Also read: PATH/train/_annotations.coco.json and the like,
beside the images.

The classes are the categories in order of their ids, which need not be without gaps. Images without objects
are kept. Lin et al. 2014, arXiv:1405.0312; the format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import re
from pathlib import Path

from mimbench.data.sources.base import Annotations, Listing, Part, existing, local_name
from mimbench.data.sources.coco_file import CocoAnnotations, CocoFile
from mimbench.data.sources.files import SUFFIXES, Found, Photographs, collect
from mimbench.errors import UserError

_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_FILE = re.compile(r"(?:instances_)?((train|validation|valid|val|test)(?:20\d\d)?)\.json")
_EXPORTED = "_annotations.coco.json"


def coco(argument: str, cache: Path) -> Listing:
    """Images with boxes and perhaps outlines, as COCO has them: train2017, annotations/instances_*.json."""
    root = existing("coco", argument)
    if not root.is_dir():
        raise UserError(f"coco:{argument} is a file; name the folder that holds the folder annotations")
    files = _annotation_files(root)
    if "train" not in files:
        there = ", ".join(path.relative_to(root).as_posix() for _, path in files.values()) or "none"
        raise UserError(
            f"{argument} has no annotations of a training part (found: {there}); expected "
            "annotations/instances_train2017.json, likewise val2017, and the images in folders of these names"
        )
    read = {part: CocoFile.open(path, cache) for part, (_, path) in files.items()}
    train = read["train"]
    for file in read.values():
        if file.categories != train.categories:
            raise UserError(
                f"{file.path} and {train.path} have different categories; give both the same ids and names"
            )
    has_masks = all(file.masked == file.count for file in read.values())
    notes = [note for file in read.values() for note in file.notes]
    if not has_masks and (masked := sum(file.masked for file in read.values())):
        total = sum(file.count for file in read.values())
        notes.append(f"only {masked} of the {total} objects have an outline; it counts as a set of boxes")
    parts: dict[str, Part] = {}
    annotations: dict[str, Annotations] = {}
    for part, file in read.items():
        photographs, unnamed = _photographs(root, files[part][0], file)
        if unnamed:
            notes.append(f"{unnamed} images are not named in {file.path.name} and were left out")
        parts[part] = photographs
        annotations[part] = CocoAnnotations(file, has_masks)
    notes += [
        f"the folder {folder.name} has no annotations and was left out"
        for folder in sorted(root.glob("test*"))
        if "test" not in read and folder.is_dir() and re.fullmatch(r"test(20\d\d)?", folder.name)
    ]
    return Listing(
        name=local_name("coco", root),
        parts=parts,
        classes=tuple(name for _, name in train.categories),
        notes=tuple(notes),
        task="detection",
        annotations=annotations,
        category_ids=tuple(number for number, _ in train.categories),
        has_masks=has_masks,
    )


def _annotation_files(root: Path) -> dict[str, tuple[str, Path]]:
    """The folder name and the annotation file of each part."""
    named: list[tuple[str, str, Path]] = []
    for path in sorted((root / "annotations").glob("*.json")):
        if matched := _FILE.fullmatch(path.name):
            named.append((_NAMES[matched[2]], matched[1], path))
    if not named:
        folders = [folder for folder in _NAMES if (root / folder / _EXPORTED).is_file()]
        named = [(_NAMES[folder], folder, root / folder / _EXPORTED) for folder in folders]
    found: dict[str, tuple[str, Path]] = {}
    for part, folder, path in named:
        if part in found:
            raise UserError(f"{found[part][1]} and {path.name} are of the same part, {part}; keep one")
        found[part] = (folder, path)
    return found


def _photographs(root: Path, folder: str, file: CocoFile) -> tuple[Photographs, int]:
    """The images that ``file`` names, in its order, and how many more there are in their folder."""
    first = file.pictures[0]
    places = [root / folder, root / "images" / folder, root / "images", root, file.path.parent]
    place = next((p for p in places if (p / first.name).is_file()), None) or _holding_any(places, file)
    own = place.name == folder  # a folder shared by several parts holds images of the others
    found: list[Found] = []
    collect(place, SUFFIXES, found)
    there = {name: (name, status, count) for name, status, count in found}
    unnamed = len(there.keys() - {picture.name for picture in file.pictures}) if own else 0
    files = [there.get(picture.name, (picture.name, None, 1)) for picture in file.pictures]
    prefix = "" if place == root else f"{place.relative_to(root).as_posix()}/"
    files = [(prefix + name, status, count) for name, status, count in files]
    return Photographs(root, files, f"coco:{root.resolve()} {folder}"), unnamed


def _holding_any(places: list[Path], file: CocoFile) -> Path:
    """The folder for a file whose first image is missing. Raises UserError where all are."""
    for picture in file.pictures:
        for place in places:
            if (place / picture.name).is_file():
                return place
    raise UserError(
        f"none of the {len(file.pictures)} images that {file.path} names is there; {file.pictures[0].name} "
        f"should be in {places[0]}"
    )

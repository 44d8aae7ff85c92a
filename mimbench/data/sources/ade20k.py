"""``ade20k:PATH``: images with a label map each, in the layout of ADE20K (ADEChallengeData2016).

    PATH/images/training/*.jpg       PATH/annotations/training/*.png      (or train)
    PATH/images/validation/*.jpg     PATH/annotations/validation/*.png    (or val)
    PATH/images/test/*.jpg           PATH/annotations/test/*.png          (optional; or testing)

A label map is a PNG of its image's name and size with one number a pixel. As in ADE20K 0 means "no class"
and is not evaluated, 1..C are the classes, and 255 is no class either.

Class names come from one of these files in PATH:
- ``classes.json``: a list of names, or an object with the list "classes" of names or of
  {"id": label, "name": name}. Its key "reduce_zero_label": false says that label 0 is the first class and
  C - 1 the last; "ignore_label": a label, or a list of them, that means "no class" besides.
- ``classes.txt``: one name a line.
- ``objectInfo150.txt``, which comes with ADE20K: 150 names.

Where PATH/splits holds ``train.txt``, and ``val.txt`` or ``test.txt`` or both, these lists of names (one a
line, with or without ending and folder) divide the images, whatever folder they lie in.

Zhou et al. 2017, "Scene Parsing through ADE20K Dataset".
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mimbench.data.sources.base import Annotations, Listing, Part, existing, local_name
from mimbench.data.sources.classes import read_classes
from mimbench.data.sources.files import SUFFIXES, AnnotationFiles, Found, Photographs, collect
from mimbench.data.targets import LabelDecoder
from mimbench.errors import UserError

FOLDERS = {
    "train": ("training", "train"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
LISTS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}

Pair = tuple[Found, Found]  # an image and its label map, which may not be there


class LabelMaps(AnnotationFiles):
    """PNGs with one label a pixel."""

    def __init__(self, root: Path, files: list[Found], identity: str, decode: LabelDecoder):
        self.decode = decode
        self.meaning = f"segmentation, {decode.classes} classes from {decode.first}, without {decode.ignored}"
        super().__init__(root, files, f"{identity} {self.meaning}")


def ade20k(argument: str) -> Listing:
    """Images with label maps, as ADE20K has them: images/training, annotations/training and so on."""
    path = existing("ade20k", argument)
    name = local_name("ade20k", path)
    packed = path / "ADEChallengeData2016"
    root = packed if packed.is_dir() and not (path / "images").is_dir() else path
    for folder in ("images", "annotations"):
        if not (root / folder).is_dir():
            raise UserError(
                f"ade20k:{argument} has no folder {folder}; expected images/training, annotations/training "
                "and likewise validation"
            )
    decode, classes = read_classes(root)
    given, notes = _pairs(root)
    if lists := _lists(root):
        given = _listed(root, given, lists, notes)
    divided_by = ", ".join(f"splits/{path.name}" for path in lists.values())
    parts: dict[str, Part] = {}
    annotations: dict[str, Annotations] = {}
    for part, pairs in given.items():
        if not pairs:
            raise UserError(f"{root} has no image in its {part} part; expected .jpg, .png or the like")
        if all(mark[1] is None for _, mark in pairs):
            if part == "test":
                notes.append("the test part has no annotations and was left out")
                continue
            raise UserError(
                f"none of the {len(pairs)} images of {root}'s {part} part has a label map; the one of "
                f"{pairs[0][0][0]} should be {pairs[0][1][0]}"
            )
        identity = f"ade20k:{root.resolve()} {part}"
        parts[part] = Photographs(root, [image for image, _ in pairs], identity)
        marks = [mark for _, mark in pairs]
        annotations[part] = LabelMaps(root, marks, f"{identity} annotations", decode)
    return Listing(
        name=name,
        parts=parts,
        classes=classes,
        notes=tuple(notes),
        divided_by=divided_by,
        task="segmentation",
        annotations=annotations,
    )


def _pairs(root: Path) -> tuple[dict[str, list[Pair]], list[str]]:
    """Images with their label maps by part, in order of their names; and what is odd about them."""
    folders = {below: _part_folders(root / below) for below in ("images", "annotations")}
    pairs: dict[str, list[Pair]] = {}
    notes: list[str] = []
    for part, folder in folders["images"].items():
        images = _by_stem(root, folder, SUFFIXES)
        marked = folders["annotations"].get(part)
        marks = _by_stem(root, marked, {".png"}) if marked is not None else {}
        beside = f"annotations/{folder.name}" if folder.name != "images" else "annotations"
        pairs[part] = [
            (image, marks.pop(stem, (f"{beside}/{stem}.png", None, 1))) for stem, image in images.items()
        ]
        if marks:
            first = next(iter(marks.values()))[0]
            notes.append(f"{len(marks)} label maps have no image ({first}) and were left out")
    if "train" not in pairs:
        there = ", ".join(folder.name for folder in folders["images"].values())
        raise UserError(f"{root / 'images'} holds {there} but no folder training; add it")
    return pairs, notes


def _part_folders(folder: Path) -> dict[str, Path]:
    found = {}
    for part, names in FOLDERS.items():
        there = [folder / name for name in names if (folder / name).is_dir()]
        if len(there) > 1:
            raise UserError(
                f"{folder} holds {' and '.join(p.name for p in there)}, which mean the same part; keep one"
            )
        if there:
            found[part] = there[0]
    return found or {"train": folder}


def _by_stem(root: Path, folder: Path, suffixes: Iterable[str]) -> dict[str, Found]:
    """Files below ``folder``, named from ``root``, by their name below ``folder`` without its ending."""
    files: list[Found] = []
    prefix = f"{folder.relative_to(root).as_posix()}/"
    collect(folder, set(suffixes), files, prefix)
    found: dict[str, Found] = {}
    for file in sorted(files, key=lambda file: file[0]):
        stem = os.path.splitext(file[0].removeprefix(prefix))[0]
        if (other := found.setdefault(stem, file)) is not file:
            raise UserError(
                f"{root} has both {other[0]} and {file[0]}, which would share a label map; keep one"
            )
    return found


def _lists(root: Path) -> dict[str, Path]:
    """Lists of names by the split they make; none where there is no list for train."""
    found = {}
    for part, names in LISTS.items():
        there = [file for name in names if (file := root / "splits" / f"{name}.txt").is_file()]
        if len(there) > 1:
            raise UserError(f"{there[0]} and {there[1].name} mean the same part; keep one")
        if there:
            found[part] = there[0]
    if found and "train" not in found:
        raise UserError(
            f"{root / 'splits'} holds {', '.join(p.name for p in found.values())} but no train.txt; add it, "
            "or take the folder away to go by the folders of the images"
        )
    return found


def _listed(
    root: Path, given: dict[str, list[Pair]], lists: dict[str, Path], notes: list[str]
) -> dict[str, list[Pair]]:
    """The pairs as the lists divide them, each in order of its images' names."""
    known: dict[str, list[Pair]] = {}
    for pair in (pair for pairs in given.values() for pair in pairs):
        whole = PurePosixPath(pair[0][0]).with_suffix("")
        for depth in range(len(whole.parts)):  # by any tail of its path: name, training/name, …
            known.setdefault("/".join(whole.parts[depth:]), []).append(pair)
    owner: dict[str, Path] = {}
    divided = {}
    for part, path in lists.items():
        pairs = []
        for line in _lines(path):
            matches = known.get(line) or known.get(os.path.splitext(line)[0]) or []
            if len(matches) != 1:
                problem = (
                    f"is the name of {len(matches)} images, such as {matches[0][0][0]}"
                    if matches
                    else "is no image"
                )
                raise UserError(f"{line!r} in {path} {problem}; correct the list")
            image = matches[0][0][0]
            if image in owner:
                raise UserError(f"{image} is listed twice, in {owner[image]} and {path}; correct the lists")
            owner[image] = path
            pairs.append(matches[0])
        divided[part] = sorted(pairs, key=lambda pair: pair[0][0])
    if left := sum(map(len, given.values())) - len(owner):
        notes.append(f"{left} images are in none of the lists and were left out")
    return divided


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); it should list names of images") from error
    return [line.strip() for line in lines if line.strip()]

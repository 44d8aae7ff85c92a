"""Files of class names beside label maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mimbench.data.targets import LabelDecoder
from mimbench.errors import UserError


def read_classes(root: Path) -> tuple[LabelDecoder, tuple[str, ...]]:
    """What labels mean and the names of the classes, as ``ade20k:PATH`` describes it.

    Raises UserError where no file says, or where it cannot be understood.
    """
    for name, read in (("classes.json", _from_json), ("classes.txt", _lines), ("objectInfo150.txt", _table)):
        path = root / name
        if not path.is_file():
            continue
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); it should name the classes") from error
        first, ignored, names = read(path, content)
        if not names:
            raise UserError(f"{path} names no class; a segmentation needs at least 2")
        if len(names) > 65534:
            raise UserError(f"{path} names {len(names)} classes, more than a PNG of 16 bits can tell apart")
        return LabelDecoder(len(names), first, ignored), names
    raise UserError(
        f"{root} does not say what its classes are; add a classes.json or a classes.txt with the names of "
        "labels 1, 2, … in order (0 is no class), or ADE20K's own objectInfo150.txt"
    )


Found = tuple[int, tuple[int, ...], tuple[str, ...]]  # label of the first class, ignored labels, names


def _lines(path: Path, content: str) -> Found:
    return 1, (), tuple(line.strip() for line in content.splitlines() if line.strip())


def _table(path: Path, content: str) -> Found:
    """ADE20K's table: numbers, shares and counts, and last the name."""
    rows = [line.split("\t") for line in content.splitlines()[1:] if line.strip()]
    if [row[0].strip() for row in rows] != [str(number + 1) for number in range(len(rows))]:
        raise UserError(f"{path} does not number its classes 1, 2, … as ADE20K's own does; fetch it again")
    return 1, (), tuple(row[-1].strip() for row in rows)


def _from_json(path: Path, content: str) -> Found:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it should list the class names") from error
    options: dict[str, Any] = found if isinstance(found, dict) else {}
    entries = options.get("classes") if isinstance(found, dict) else found
    reduced = options.get("reduce_zero_label", True)
    if not isinstance(reduced, bool):
        raise UserError(f'"reduce_zero_label" in {path} is {reduced!r}; write true or false')
    first = int(reduced)
    if not isinstance(entries, list):
        raise UserError(f'{path} should be a list of names or an object with a list "classes"')
    names = []
    for place, entry in enumerate(entries):
        name, label = entry, place + first
        if isinstance(entry, dict):
            name, label = entry.get("name"), entry.get("id", label)
        if not isinstance(name, str):
            raise UserError(f"class {place} in {path} is {entry!r}; expected a name")
        if label != place + first:
            raise UserError(
                f"class {name!r} in {path} has the id {label}, expected {place + first}: number the classes "
                f"from {first} without gaps ("
                + (
                    'label 0 is no class, unless "reduce_zero_label" is false)'
                    if reduced
                    else "label 0 is a class)"
                )
            )
        names.append(name)
    ignored = options.get("ignore_label", [])
    ignored = ignored if isinstance(ignored, list) else [ignored]
    for label in ignored:
        if type(label) is not int or not 0 <= label <= 65535 or first <= label < first + len(names):
            raise UserError(f'"ignore_label" in {path} is {label!r}; expected a label that is not a class')
    return first, tuple(sorted(ignored)), tuple(names)

"""COCO's annotation files, read and checked."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.data.targets import encode_boxes
from mimbench.errors import UserError


class Picture(NamedTuple):
    """An image as the file names it."""

    name: str
    id: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Parsed:
    """A checked annotation file.

    digest: SHA-256 of the file. categories: (id, name) in order of id. pictures: in order of their names;
    encoded: their objects, see ``encode_boxes``. count, masked: number of objects, and of those with an
    outline. notes: what is odd, in words.
    """

    digest: str
    categories: tuple[tuple[int, str], ...]
    pictures: tuple[Picture, ...]
    encoded: list[bytes]
    count: int
    masked: int
    notes: tuple[str, ...]


def parse(path: Path) -> Parsed:
    """Raises UserError for whatever is not as COCO's format has it."""
    return _Reader(path).read()


class _Reader:
    def __init__(self, path: Path):
        self.path = path
        self.degenerate: list[int] = []
        self.thin: list[int] = []
        self.masked = 0

    def wrong(self, problem: str, remedy: str = "correct the file") -> UserError:
        return UserError(f"{self.path}: {problem}; {remedy}")

    def read(self) -> Parsed:
        try:
            raw = self.path.read_bytes()
            content = json.loads(raw)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); check its rights") from error
        except ValueError as error:
            raise self.wrong(
                f"it is not JSON ({error})", "it may be cut short, fetch or write it again"
            ) from error
        digest = hashlib.sha256(raw).hexdigest()
        del raw
        categories = self._categories(self._entries(content, "categories"))
        pictures = self._pictures(self._entries(content, "images"))
        numbers = {number: label for label, (number, _) in enumerate(categories)}
        by_id = {picture.id: picture for picture in pictures}
        objects: dict[int, list[Any]] = {picture.id: [] for picture in pictures}
        seen: set[int] = set()
        for entry in self._entries(content, "annotations"):
            picture, item = self._object(entry, numbers, by_id)
            if item[0] in seen:
                raise self.wrong(f"two annotations have the id {item[0]}")
            seen.add(item[0])
            objects[picture].append(item)
        if not seen:
            raise self.wrong("it has no annotations", "a detection set needs objects")
        del content
        blobs = [encode_boxes(p.id, p.height, p.width, objects.pop(p.id)) for p in pictures]
        return Parsed(digest, categories, pictures, blobs, len(seen), self.masked, self._notes())

    def _entries(self, content: Any, key: str) -> list[dict[str, Any]]:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.wrong(f'it has no list of objects "{key}"', "COCO's format has it")
        if not entries and key != "annotations":
            raise self.wrong(f'its list "{key}" is empty')
        return entries

    def _field(self, entry: dict[str, Any], key: str, kind: str, good: Callable[[Any], bool]) -> Any:
        value = entry.get(key)
        if not good(value):
            shown = json.dumps(value) if key in entry else "missing"
            what = f"{kind} {entry['id']}" if _whole(entry.get("id")) else f"one {kind}"
            raise self.wrong(f'"{key}" of {what} is {shown[:60]}')
        return value

    def _categories(self, entries: list[dict[str, Any]]) -> tuple[tuple[int, str], ...]:
        found: dict[int, str] = {}
        for entry in entries:
            number = self._field(entry, "id", "category", _whole)
            if number in found:
                raise self.wrong(f"two categories have the id {number}")
            found[number] = self._field(entry, "name", "category", _text)
        return tuple(sorted(found.items()))

    def _pictures(self, entries: list[dict[str, Any]]) -> tuple[Picture, ...]:
        ids: set[int] = set()
        names: dict[str, Picture] = {}
        for entry in entries:
            number = self._field(entry, "id", "image", _whole)
            if number in ids:
                raise self.wrong(f"two images have the id {number}")
            ids.add(number)
            name = posixpath.normpath(self._field(entry, "file_name", "image", _text))
            if name.startswith(("/", "..")):
                raise self.wrong(f'"file_name" of image {number} is {name!r}, which leaves its folder')
            if name in names:
                raise self.wrong(f"the images {names[name].id} and {number} have the same file, {name}")
            sides = [self._field(entry, key, "image", _positive) for key in ("height", "width")]
            names[name] = Picture(name, number, *sides)
        return tuple(names[name] for name in sorted(names))

    def _object(
        self, entry: dict[str, Any], numbers: dict[int, int], pictures: dict[int, Picture]
    ) -> tuple[int, tuple[Any, ...]]:
        """The id of its image, and what ``encode_boxes`` takes."""
        number = self._field(entry, "id", "annotation", _whole)
        picture = pictures.get(self._field(entry, "image_id", "annotation", _whole))
        if picture is None:
            raise self.wrong(f"annotation {number} is of image {entry['image_id']}, which is not listed")
        label = numbers.get(self._field(entry, "category_id", "annotation", _whole))
        if label is None:
            raise self.wrong(
                f"annotation {number} is of category {entry['category_id']}, which is not listed"
            )
        left, top, width, height = box = self._field(entry, "bbox", "annotation", _four)
        area = width * height
        if "area" in entry:
            area = self._field(entry, "area", "annotation", _finite)
        crowd = 0
        if "iscrowd" in entry:
            crowd = int(self._field(entry, "iscrowd", "annotation", lambda value: value in (0, 1)))
        right, bottom = min(left + width, picture.width), min(top + height, picture.height)
        if right <= max(left, 0) or bottom <= max(top, 0):  # as ``Boxes.degenerate``
            self.degenerate.append(number)
        return picture.id, (number, label, box, area, crowd, self._mask(entry, number, picture))

    def _mask(self, entry: dict[str, Any], number: int, picture: Picture) -> Any:
        mask = entry.get("segmentation")
        if not mask:
            return None
        if isinstance(mask, dict):
            if mask.get("size") != [picture.height, picture.width]:
                raise self.wrong(
                    f"the mask of annotation {number} is of {mask.get('size')} pixels (height, width), its "
                    f"image of {[picture.height, picture.width]}"
                )
            if not isinstance(mask.get("counts"), (str, list)):
                raise self.wrong(f'the mask of annotation {number} is an RLE without "counts"')
        else:
            outlines = mask if isinstance(mask, list) else [None]
            if not all(isinstance(p, list) and p and len(p) % 2 == 0 for p in outlines):
                raise self.wrong(
                    f"the mask of annotation {number} is neither an RLE nor a list of [x, y, x, y, …]"
                )
            if min(map(len, outlines)) < 6:
                self.thin.append(number)
        self.masked += 1
        return mask

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if found := self.degenerate:
            what = "1 box has" if len(found) == 1 else f"{len(found)} boxes have"
            notes.append(
                f"{self.path.name}: {what} no area inside the image ({_shown(found)}); evaluation counts "
                "what no detection can find, as COCO's own does, training leaves it out"
            )
        if found := self.thin:
            what = "1 object has" if len(found) == 1 else f"{len(found)} objects have"
            notes.append(f"{self.path.name}: {what} an outline of fewer than 3 corners ({_shown(found)})")
        return tuple(notes)


def _shown(numbers: list[int]) -> str:
    more = ", …" if len(numbers) > 5 else ""
    return f"annotation{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}{more}"


def _whole(value: Any) -> bool:
    return type(value) is int


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _four(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_finite, value))

"""COCO's annotation files in a form that is quick to open: parsed once, then remembered in the cache.

All of COCO's is half a gigabyte of JSON, which takes Python half a minute and several gigabytes of memory,
in every process. What is kept is a small index and, in a memory-mapped file, the objects of each image.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mimbench.data.cache import writing
from mimbench.data.sources.base import Annotations, Units
from mimbench.data.sources.coco_json import Picture, parse
from mimbench.data.targets import BoxDecoder
from mimbench.errors import UserError

FORMAT = 1  # of the index and of what ``encode_boxes`` writes; raised when they would be read otherwise


class CocoAnnotations(Annotations):
    """The objects of each image that a file names, in order of the images' names."""

    def __init__(self, file: CocoFile, has_masks: bool):
        self.identity = f"coco annotations {FORMAT}: {file.path.resolve()}"
        self.units = Units.of([(file.path.name, file.status, len(file.pictures))])
        self.decode = BoxDecoder(has_masks)
        self.meaning = f"detection, {len(file.categories)} classes"
        self._shown, self._objects, self._offsets = file.path.name, file.objects, file.offsets
        self._mapped: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # mapped anew in another process

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def name(self, index: int) -> str:
        return f"in {self._shown}"

    def encoded(self, index: int) -> bytes:
        if self._mapped is None:
            self._mapped = np.memmap(self._objects, np.uint8, mode="r")
        return self._mapped[self._offsets[index] : self._offsets[index + 1]].tobytes()

    def digest(self, content: bytes) -> bytes:
        """Of all but the ids, which decide no result."""
        return hashlib.sha256(content.partition(b"\n")[2]).digest()


@dataclass(frozen=True, eq=False)
class CocoFile:
    """A checked annotation file.

    categories: (id, name) in order of id. pictures: in order of their names. objects: the file with their
    objects as ``encode_boxes`` wrote them, one image after the other; offsets: int64 [N + 1], where each
    begins. count, masked: number of objects, and of those with an outline. notes: what is odd, in words.
    """

    path: Path
    status: os.stat_result
    categories: tuple[tuple[int, str], ...]
    pictures: tuple[Picture, ...]
    objects: Path
    offsets: np.ndarray
    count: int
    masked: int
    notes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, cache: Path) -> CocoFile:
        """Raises UserError for whatever is not as COCO's format has it."""
        folder = cache / "coco"
        with writing(cache):
            folder.mkdir(exist_ok=True)
        index = folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
        with FileLock(index.with_suffix(".lock")):
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror}); check its rights") from error
            known = _remembered(index, status)
            if known is None:
                with writing(folder):
                    known = _remember(index, path, status)
        return cls(
            path=path,
            status=status,
            categories=tuple((number, name) for number, name in known["categories"]),
            pictures=tuple(Picture(*picture) for picture in known["pictures"]),
            objects=folder / known["file"],
            offsets=np.array(known["offsets"], np.int64),
            count=known["count"],
            masked=known["masked"],
            notes=tuple(known["notes"]),
        )


def _facts(status: os.stat_result) -> list[int]:
    return [FORMAT, status.st_size, status.st_mtime_ns]


def _remembered(index: Path, status: os.stat_result) -> dict[str, Any] | None:
    """What is known of the file, if it is as it was and all is there."""
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        whole = (index.parent / known["file"]).stat().st_size == known["offsets"][-1]
        return known if known["facts"] == _facts(status) and whole else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # nothing yet, or damaged: it is read anew


def _remember(index: Path, path: Path, status: os.stat_result) -> dict[str, Any]:
    parsed = parse(path)
    known = {
        "facts": _facts(status),
        "file": f"{parsed.digest[:32]}-{FORMAT}.bin",
        "categories": parsed.categories,
        "pictures": parsed.pictures,
        "offsets": np.cumsum([0, *map(len, parsed.encoded)]).tolist(),
        "count": parsed.count,
        "masked": parsed.masked,
        "notes": parsed.notes,
    }
    for target, lines in (
        (index.parent / known["file"], parsed.encoded),
        (index, [json.dumps(known, separators=(",", ":")).encode()]),
    ):
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return known

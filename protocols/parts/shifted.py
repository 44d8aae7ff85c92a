"""Test sets from elsewhere: folders of images whose classes are found among those of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimbench.data.cache import cache_folder
from mimbench.data.dataset import Split
from mimbench.data.images import BrokenImageError
from mimbench.data.scan import Scan, scan
from mimbench.data.sources.files import SUFFIXES, Found, Photographs, collect
from mimbench.data.splits import fingerprint
from mimbench.data.store import pixels, store_side
from mimbench.errors import UserError
from mimbench.progress import Progress, silent
from mimbench.spec import content_hash
from protocols.parts.answers import Answers
from protocols.parts.synsets import ClassNames, wordnet_ids

if TYPE_CHECKING:
    from collections.abc import Iterable

BORDER = 2  # pixels on each side of ObjectNet's images that its authors ask to be cut off (one is red)
OBJECTNET = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json")


class _Bordered(Photographs):
    """Images without their border."""

    def inspect(self, content: bytes) -> tuple[int, int]:
        height, width = super().inspect(content)
        if min(height, width) <= 2 * BORDER:
            raise BrokenImageError(f"it is {height} x {width} pixels, of which {BORDER} a side are a border")
        return height - 2 * BORDER, width - 2 * BORDER

    def decode(self, content: bytes) -> np.ndarray:
        return np.ascontiguousarray(super().decode(content)[BORDER:-BORDER, BORDER:-BORDER])

    def digest(self, content: bytes) -> bytes:
        """Another one than of the same image with its border: prepared pixels go by it."""
        return hashlib.sha256(b"without its border " + content).digest()


@dataclass(frozen=True)
class ShiftedSet:
    """One folder of images, as far as its class folders are classes of a data set.

    right: the classes that each used class folder stands for, by its name. folders: of each image, its
    place among them, int64 [N]. ignored: how many class folders are none of the data set's classes.
    fingerprint: SHA-256 hex over the images used and what is right for them, whatever their paths.
    """

    name: str
    part: Photographs
    reading: Scan
    folders: np.ndarray
    right: Mapping[str, tuple[int, ...]]
    ignored: int
    fingerprint: str

    @property
    def classes(self) -> list[int]:
        """Those among which is chosen, ascending."""
        return sorted({number for of in self.right.values() for number in of})

    def content(self) -> dict[str, Any]:
        """Facts for the record, as JSON data."""
        return {
            "images": len(self.folders),
            "classes": len(self.classes),
            "ignored_folders": self.ignored,
            "fingerprint": self.fingerprint,
        }


def read_set(path: str, owner: str, data: str, classes: Sequence[str]) -> ShiftedSet:
    """The test set at ``path``, for a classifier of ``classes``; reads each image once (remembered).

    owner, data: the protocol and the data set, for messages.

    Raises UserError where nothing is there, fewer than two classes are meant, or an image is broken.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"{owner}.sets names {path}, which is no folder; check the path")
    objectnet = (root / "mappings").is_dir() and (root / "images").is_dir()
    folder = root / "images" if objectnet else root
    files: list[Found] = []
    collect(folder, SUFFIXES, files)
    files.sort(key=lambda file: file[0])
    if not files or any("/" not in name for name, _, _ in files):
        what = "images outside of class folders" if files else "no image"
        raise UserError(f"{owner}.sets: {path} holds {what}; expected one folder of images a class")
    of_files = [name.partition("/")[0] for name, _, _ in files]
    given = _given_names(root, objectnet, sorted(set(of_files)), classes)
    names = ClassNames(classes)
    right: dict[str, tuple[int, ...]] = {}
    for where, called in given.items():
        numbers = {number for name in called if (number := names.find(name)) is not None}
        if numbers:
            right[where] = tuple(sorted(numbers))
    if len({number for of in right.values() for number in of}) < 2:
        raise UserError(
            f"{owner}.sets: of the {len(given)} class folders of {path} {len(right)} "
            f"{'is a class' if len(right) == 1 else 'are classes'} of {data}, at least two classes are "
            f"needed; name folders as its classes or by WordNet ids, or say in {root.name}.json beside the "
            "folder which class each is"
        )
    used = [file for file, of in zip(files, of_files, strict=True) if of in right]
    kind = _Bordered if objectnet else Photographs
    part = kind(folder, used, f"{owner}:{folder.resolve()}:{content_hash(list(right))}")
    reading = scan(part, cache_folder("data"), silent)
    if reading.broken:
        index, reason = next(iter(reading.broken.items()))
        raise UserError(
            f"{owner}.sets: {len(reading.broken)} images of {path} cannot be read, such as "
            f"{part.name(index)} ({reason}); mend or remove them"
        )
    places = {where: place for place, where in enumerate(right)}
    folders = np.array([places[of] for of in of_files if of in right], np.int64)
    mark = content_hash(
        {
            "images": fingerprint(reading.digests, folders),
            "right": [[classes[number] for number in of] for of in right.values()],
        },
        length=64,
    )
    return ShiftedSet(root.name, part, reading, folders, right, len(given) - len(right), mark)


def _given_names(
    root: Path, objectnet: bool, folders: Sequence[str], classes: Sequence[str]
) -> dict[str, Iterable[str]]:
    """What each class folder is called: one name, or several where several classes are right."""
    if objectnet:
        labels, meanings = (_mapping(root / "mappings" / name) for name in OBJECTNET)
        # "Bicycle": "mountain bike, all-terrain bike, off-roader; bicycle-built-for-two, tandem bicycle, ..."
        return {
            folder: str(meanings.get(str(labels.get(folder, folder)), "")).split("; ") for folder in folders
        }
    beside = root.with_name(f"{root.name}.json")
    if beside.is_file():
        mapping = _mapping(beside)
        found: dict[str, Iterable[str]] = {}
        for folder in folders:
            of = mapping.get(folder, [])
            found[folder] = [of] if isinstance(of, str) else [str(name) for name in of]
        return found
    if ClassNames(classes).numbered(folders):
        return {folder: [wordnet_ids()[int(folder)]] for folder in folders}
    return {folder: [folder] for folder in folders}


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON object; raises UserError for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); it says what class folders are") from error
    if not isinstance(found, dict) or not all(isinstance(of, str | list) for of in found.values()):
        raise UserError(f"{path} should say which class or classes each folder is, as a JSON object")
    return found


class Shifted:
    """The images of several test sets, one set after the other.

    Among which classes is chosen, and which are right, is in ``answers``; ``labels`` hold one that is.
    """

    name = "shifted test"

    def __init__(
        self, sets: Sequence[ShiftedSet], classes: int, image_size: int, report: Callable[[Progress], None]
    ):
        self._splits = [_split(of, image_size, report) for of in sets]
        self._ends = np.cumsum([len(split) for split in self._splits])
        kinds: list[np.ndarray] = []
        allowed: list[np.ndarray] = []
        right: list[np.ndarray] = []
        for of in sets:
            kinds.append(of.folders + len(right))
            among = _row(of.classes, classes)
            for numbers in of.right.values():
                allowed.append(among)
                right.append(_row(numbers, classes))
        self.answers = Answers(np.concatenate(kinds), np.stack(allowed), np.stack(right))
        self.labels = self.answers.right.argmax(1)[self.answers.kinds].astype(np.int64)
        self.fingerprint = content_hash({"sets": [of.fingerprint for of in sets]}, length=64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def image(self, index: int) -> np.ndarray:
        """Pixels uint8 [H, W, 3]. Do not write into them."""
        split, place = self._at(index)
        return split.image(place)

    def sample_id(self, index: int) -> str:
        """A sample's name for people."""
        split, place = self._at(index)
        return f"{split.name}/{split.sample_id(place)}"

    def _at(self, index: int) -> tuple[Split, int]:
        of = int(np.searchsorted(self._ends, index, side="right"))
        return self._splits[of], index - (int(self._ends[of - 1]) if of else 0)


def _split(of: ShiftedSet, image_size: int, report: Callable[[Progress], None]) -> Split:
    store = pixels(of.part, of.reading, store_side(image_size), cache_folder("data"), report)
    places = np.arange(len(of.part))
    return Split(of.name, None, of.fingerprint, store, places, of.part, places)


def _row(numbers: Iterable[int], classes: int) -> np.ndarray:
    row = np.zeros(classes, bool)
    row[list(numbers)] = True
    return row

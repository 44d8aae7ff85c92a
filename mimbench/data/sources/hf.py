"""``hf:NAME``: a dataset of the Hugging Face hub, or one saved on disk, ``hf:PATH`` (extra: ``hub``).

The first feature of type Image and the first of type ClassLabel are taken. ``hf:NAME:CONFIG`` names one of
several configurations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.data.images import BrokenImageError, UnreachableImageError
from mimbench.data.sources.base import Listing, Part, Units, local_name
from mimbench.data.sources.labels import labelled_listing
from mimbench.data.sources.parquet import PART_NAMES
from mimbench.errors import UserError
from mimbench.spec import content_hash


class _Rows(Part):
    """The rows of one split of a Hugging Face dataset, in its order."""

    def __init__(self, rows: Any, image: str, label: str | None, identity: str, shown: str):
        self._rows, self._image, self._shown = rows, image, shown
        self.identity = identity
        self.labels = None if label is None else np.asarray(rows.with_format("numpy")[label], np.int64)
        files = [Path(file["filename"]) for file in rows.cache_files]
        if files:  # which row lies in which of them is not told, so together they are one unit
            facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            self.units = Units.of([(content_hash(facts, 64), files[0].stat(), len(rows))])

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f"{self._shown} row {index}"

    def encoded(self, index: int) -> bytes:
        return _bytes(self._rows[index][self._image])

    def read(self, piece: range) -> Iterator[bytes | BrokenImageError]:
        for value in self._rows[piece.start : piece.stop][self._image]:
            try:
                yield _bytes(value)
            except OSError as error:
                yield UnreachableImageError(error.strerror or str(error))


def _bytes(value: dict[str, Any] | None) -> bytes:
    if value and value["bytes"] is not None:
        return value["bytes"]
    if value and value["path"]:
        return Path(value["path"]).read_bytes()
    raise OSError("no bytes")


def _load(argument: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"hf:{argument} needs the package 'datasets'; install it by: pip install \"mimbench[hub]\""
        ) from error
    path = Path(argument).expanduser()
    saved = path.is_dir() and any((path / n).is_file() for n in ("dataset_dict.json", "state.json"))
    name, _, config = (argument, "", "") if path.exists() else argument.partition(":")
    try:
        found = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(name, config or None)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"the Hugging Face dataset {argument!r} cannot be loaded ({reason}); check its name, or load it "
            "once where there is a network"
        ) from error
    return found if isinstance(found, dict) else {"train": found}


def hf(argument: str) -> Listing:
    """A dataset of the Hugging Face hub or one saved on disk (extra: hub)."""
    if not argument:
        raise UserError("the dataset 'hf' needs a name, as in hf:uoft-cs/cifar10, or the path of a saved one")
    found = _load(argument)
    import datasets

    path = Path(argument).expanduser()
    name = local_name("hf", path) if path.exists() else f"hf:{argument}"
    rows = {}
    for part, names in PART_NAMES.items():
        for key in names:
            if key in found:
                rows[part] = found[key]
                break
    if "train" not in rows:
        raise UserError(f"{name} has the splits {', '.join(found)}; one called train is needed")
    features = rows["train"].features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise UserError(f"{name} has the features {', '.join(features)}; one of type Image is needed")
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    parts: dict[str, Part] = {
        part: _Rows(
            split.cast_column(image, datasets.Image(decode=False)),
            image,
            label,
            f"hf:{path.absolute() if path.exists() else argument}:{part}",
            part,
        )
        for part, split in rows.items()
    }
    classes = tuple(features[label].names) if label is not None else None
    return labelled_listing(name, parts, classes)

"""``cifar10:PATH``: CIFAR-10 from its original archive ("python version"), packed or unpacked.

PATH is ``cifar-10-python.tar.gz``, the folder ``cifar-10-batches-py`` or the one that holds it.
Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.data.sources.base import DataDefaults, Listing, Part, Units, existing, local_name
from mimbench.errors import UserError

FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)
BYTES = 3 * 32 * 32

# Everything the archive's pickles name. A pickle can call whatever it names, so it gets nothing else.
_RECONSTRUCT = np.empty(0, np.uint8).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("_codecs", "encode"): lambda text, _encoding="latin1": text.encode("latin1"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR-10 does not") from None


def _unpickle(content: bytes, name: str) -> dict[bytes, Any]:
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # What a pickle of the allowed names can raise when it is cut short or made up.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{name} is not a file of CIFAR-10 as published ({error or 'cut short'}); fetch the archive "
            "'CIFAR-10 python version' again"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{name} holds a {type(loaded).__name__}; expected a file of CIFAR-10 as published")
    return loaded


class _Archive:
    """The files of the archive, by name."""

    def __init__(self, path: Path):
        self.path = path
        if path.is_dir():
            self.folder = path / FOLDER if (path / FOLDER).is_dir() else path

    def read(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Contents by name. Raises UserError if one is missing."""
        try:
            if self.path.is_dir():
                return {name: (self.folder / name).read_bytes() for name in names}
            with tarfile.open(self.path) as archive:
                found = {}
                for member in archive:
                    name = Path(member.name).name
                    if name in names and (file := archive.extractfile(member)) is not None:
                        found[name] = file.read()
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            reason = str(error)
            if isinstance(error, FileNotFoundError):
                reason = f"{Path(error.filename).name} is missing"
            raise UserError(
                f"{self.path} is no CIFAR-10 ({reason}); expected the folder {FOLDER} with {TRAIN[0]} to "
                f"{TRAIN[-1]} and {TEST[0]}, or cifar-10-python.tar.gz"
            ) from error
        if absent := [name for name in names if name not in found]:
            raise UserError(f"{self.path} lacks {', '.join(absent)}; fetch cifar-10-python.tar.gz again")
        return found

    def units(self, counts: dict[str, int]) -> Units:
        if self.path.is_dir():
            return Units.of([(name, (self.folder / name).stat(), n) for name, n in counts.items()])
        return Units.of([(self.path.name, self.path.stat(), sum(counts.values()))])


class _Batches(Part):
    """The images of some of the archive's batches."""

    labels: np.ndarray

    def __init__(self, archive: _Archive, names: tuple[str, ...], contents: dict[str, bytes]):
        self._archive, self._names = archive, names
        self.identity = f"cifar10:{archive.path.resolve()}:{names[0]}"
        batches = [_unpickle(contents[name], name) for name in names]
        pixels, labels, files, counts = [], [], [], {}
        for name, batch in zip(names, batches, strict=True):
            data, numbers = batch.get(b"data"), batch.get(b"labels")
            if (
                not isinstance(data, np.ndarray)
                or data.dtype != np.uint8
                or data.ndim != 2
                or data.shape[1] != BYTES
                or not isinstance(numbers, list)
                or len(numbers) != len(data)
            ):
                raise UserError(
                    f"{name} holds no CIFAR-10 images; expected data, uint8 [N, {BYTES}], and as many labels"
                )
            pixels.append(data)
            labels.append(np.array(numbers, np.int64))
            counts[name] = len(data)
            files += batch.get(b"filenames", [b"%d" % i for i in range(len(data))])
        self._data: np.ndarray | None = np.concatenate(pixels)
        self._files = np.array(files)
        self.labels = np.concatenate(labels)
        self.units = archive.units(counts)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}  # worker processes read it anew if they need it

    def name(self, index: int) -> str:
        return self._files[index].decode("utf-8", "replace")

    def encoded(self, index: int) -> bytes:
        if self._data is None:
            self._data = _Batches(self._archive, self._names, self._archive.read(self._names))._data
        assert self._data is not None
        return self._data[index].tobytes()

    def inspect(self, content: bytes) -> tuple[int, int]:
        return 32, 32

    def decode(self, content: bytes) -> np.ndarray:
        return np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(3, 32, 32).transpose(1, 2, 0))


def cifar10(argument: str) -> Listing:
    """CIFAR-10 from its original archive, packed or unpacked."""
    path = existing("cifar10", argument)
    archive = _Archive(path)
    contents = archive.read((*TRAIN, *TEST, "batches.meta"))
    names = _unpickle(contents["batches.meta"], "batches.meta").get(b"label_names", [])
    classes = tuple(name.decode() for name in names)
    parts: dict[str, _Batches] = {
        "train": _Batches(archive, TRAIN, contents),
        "test": _Batches(archive, TEST, contents),
    }
    for part in parts.values():
        if part.labels.min() < 0 or part.labels.max() >= len(classes):
            raise UserError(
                f"cifar10:{argument} has labels outside of its {len(classes)} classes; fetch it again"
            )
    return Listing(
        name=local_name("cifar10", path),
        parts=dict(parts),
        classes=classes,
        defaults=DataDefaults(image_size=32, backbone="vit_tiny_patch4", crop_pct=1.0),
    )

"""Prepared pixels: every image decoded once into one memory-mapped file.

A store holds uint8 images of their own shapes, one after the other ("ragged"): ``pixels.bin``, and
``offsets.npy``, ``shapes.npy`` and ``meta.json`` beside it. Images whose short side exceeds the store's are
brought down to it; none is brought up. What would not fit is streamed: decoded and brought down at each
access, to the same pixels.

A store is written into ``<key>.tmp`` under a lock and renamed when it is complete and on disk, so that a
store which exists is whole. Leftovers of a killed process are removed by the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock, Timeout

from mimbench.data.cache import free_bytes, writing
from mimbench.data.images import BrokenImageError, shrink, shrunk_size
from mimbench.data.scan import Scan, with_progress
from mimbench.data.sources.base import Part, Samples
from mimbench.errors import UserError
from mimbench.files import sync_folder
from mimbench.progress import Progress

FORMAT = 1
SPARE = 1 << 30  # bytes left free on the disk, for records and weights


def store_side(image_size: int) -> int:
    """Short side, in pixels, up to which images are kept for training at ``image_size``: 224 -> 256.

    At the usual crop share of 0.875 the evaluation resize then needs no second interpolation.
    """
    return round(image_size / 0.875)


def store_limit() -> int:
    """Bytes one prepared store may take: $MIMBENCH_STORE_LIMIT_GB, 16 GB by default."""
    text = os.environ.get("MIMBENCH_STORE_LIMIT_GB", "16")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UserError(f"MIMBENCH_STORE_LIMIT_GB is {text!r}; expected a number of gigabytes such as 16")
    return int(limit * 1e9)


class Pixels(Protocol):
    """The images of a part's sound samples, by position."""

    kind: str  # "prepared" or "streamed", for the record

    def __len__(self) -> int: ...

    def image(self, position: int) -> np.ndarray: ...


class _Ragged:
    """Byte strings of different lengths in one memory-mapped file. Pickles as its path."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.offsets = np.load(folder / "offsets.npy")
        # Copy-on-write: nothing is ever written, but torch warns about read-only memory.
        self._flat = np.memmap(folder / "pixels.bin", np.uint8, mode="c")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def part(self, position: int) -> np.ndarray:
        return self._flat[self.offsets[position] : self.offsets[position + 1]]


class Prepared(_Ragged):
    """A finished store of pixels."""

    kind = "prepared"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.shapes = np.load(folder / "shapes.npy")

    def image(self, position: int) -> np.ndarray:
        """Pixels uint8 [H, W, 3], a view of the mapped file."""
        height, width = self.shapes[position]
        return np.ndarray((height, width, 3), np.uint8, self._flat, int(self.offsets[position]))


class Streamed:
    """Decodes at each access, from the source itself or from a copy of its encoded bytes."""

    kind = "streamed"

    def __init__(self, part: Part, keep: np.ndarray, side: int | None, copied: _Ragged | None = None):
        self._part, self._keep, self._side, self._copied = part, keep, side, copied

    def __len__(self) -> int:
        return len(self._keep)

    def image(self, position: int) -> np.ndarray:
        """Pixels uint8 [H, W, 3], equal to those a prepared store holds."""
        index = int(self._keep[position])
        try:
            content = (
                self._part.encoded(index) if self._copied is None else self._copied.part(position).tobytes()
            )
            return shrink(self._part.decode(content), self._side)
        except (OSError, BrokenImageError) as error:
            raise changed(self._part, index, error) from error


def changed(part: Samples, index: int, error: Exception) -> UserError:
    """For a sample that was sound when it was checked."""
    reason = getattr(error, "strerror", None) or error
    kind = "image" if isinstance(part, Part) else "annotation"
    return UserError(
        f"the {kind} {part.name(index)} can no longer be read ({reason}); it was sound when the dataset "
        "was checked: put it back and start again"
    )


def pixels(
    part: Part, scan: Scan, side: int | None, folder: Path, report: Callable[[Progress], None]
) -> Pixels:
    """The images of ``part``'s sound samples (side None: whole), prepared where they fit, else streamed."""
    keep = np.flatnonzero(scan.sizes[:, 0] > 0)
    kept = [shrunk_size(h, w, side) for h, w in scan.sizes[keep].tolist()]
    shapes = np.array(kept, np.int32).reshape(-1, 2)
    lengths = shapes.astype(np.int64).prod(1) * 3
    content = hashlib.sha256(scan.digests[keep].tobytes()).hexdigest()
    stores = folder / "stores"
    with writing(folder):
        stores.mkdir(exist_ok=True)

    kept_whole = bool((shapes == scan.sizes[keep]).all())  # then every larger side gives the same store
    target = stores / f"{content[:32]}-{'full' if kept_whole else side}-{FORMAT}"
    if (found := _finished(target, Prepared)) is not None:
        return found
    total = int(lengths.sum())
    if total <= min(store_limit(), free_bytes(folder) - SPARE):

        def shrunk(index: int, content: bytes) -> bytes:
            whole = part.decode(content)
            if whole.dtype != np.uint8 or whole.shape != (*scan.sizes[index], 3):
                raise BrokenImageError(f"it has become {whole.dtype} {list(whole.shape)}")
            return shrink(whole, side).tobytes()

        _write(target, part, keep, lengths, shapes, shrunk, "preparing images", report)
        return Prepared(target)
    if part.seekable:
        return Streamed(part, keep, side)

    # A row of a table cannot be read alone at a bearable price: its bytes are laid out for that once.
    target = stores / f"{content[:32]}-encoded-{FORMAT}"
    if (copied := _finished(target, _Ragged)) is None:
        sizes = np.zeros(len(part), np.int64)

        def measure(piece: range) -> int:
            for index, content in zip(piece, part.read(piece), strict=True):
                sizes[index] = 0 if isinstance(content, BrokenImageError) else len(content)
            return len(piece)

        with_progress(measure, part.pieces(), "measuring images", report)
        _write(target, part, keep, sizes[keep], None, lambda _, content: content, "copying images", report)
        copied = _Ragged(target)
    return Streamed(part, keep, side, copied)


def _finished(target: Path, kind: type[Any]) -> Any:
    """The store at ``target`` if it is there and whole, else None."""
    try:
        store = kind(target)
    except (OSError, ValueError, KeyError):
        return None
    whole = store.offsets[-1] == (target / "pixels.bin").stat().st_size == store.meta["bytes"]
    return store if whole else None


def _write(
    target: Path,
    part: Part,
    keep: np.ndarray,
    lengths: np.ndarray,
    shapes: np.ndarray | None,
    convert: Callable[[int, bytes], bytes],
    stage: str,
    report: Callable[[Progress], None],
) -> None:
    """Writes a store unless another process has done so meanwhile."""
    temporary = target.with_suffix(".tmp")
    with writing(target.parent), FileLock(_lock(target)):
        _clean(target.parent, own=target)
        kind = _Ragged if shapes is None else Prepared
        if _finished(target, kind) is not None:
            return
        for leftover in (temporary, target):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        try:
            _fill(temporary, part, keep, lengths, shapes, convert, stage, report)
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    folder: Path,
    part: Part,
    keep: np.ndarray,
    lengths: np.ndarray,
    shapes: np.ndarray | None,
    convert: Callable[[int, bytes], bytes],
    stage: str,
    report: Callable[[Progress], None],
) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    position = np.full(len(part), -1, np.int64)
    position[keep] = np.arange(len(keep))
    descriptor = os.open(folder / "pixels.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:

        def work(piece: range) -> int:
            for index, content in zip(piece, part.read(piece), strict=True):
                if (slot := position[index]) < 0:
                    continue
                try:
                    if isinstance(content, BrokenImageError):
                        raise content
                    data = memoryview(convert(index, content))
                    if len(data) != lengths[slot]:
                        raise BrokenImageError("it has another length")
                except BrokenImageError as error:
                    raise changed(part, index, error) from error
                written = 0
                while written < len(data):  # a nearly full disk takes less than it is given
                    written += os.pwrite(descriptor, data[written:], int(offsets[slot]) + written)
            return len(piece)

        with_progress(work, part.pieces(), stage, report)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    arrays = {"offsets.npy": offsets} | ({} if shapes is None else {"shapes.npy": shapes})
    for name, array in arrays.items():
        with (folder / name).open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    with (folder / "meta.json").open("w") as file:
        json.dump({"format": FORMAT, "samples": len(keep), "bytes": int(offsets[-1])}, file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _lock(target: Path) -> Path:
    return target.with_suffix(".lock")


def _clean(stores: Path, own: Path) -> None:
    """Removes what killed processes left half-written; a lock that is held means somebody is at work."""
    for leftover in stores.glob("*.tmp"):
        target = leftover.with_suffix("")
        if target == own:
            continue
        try:
            with FileLock(_lock(target), timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except Timeout:
            continue

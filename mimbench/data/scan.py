"""Reads every sample of a part once: its SHA-256, its size in pixels, and whether it decodes.

Readings are remembered by the name, size and modification time of the files, so that opening a dataset
again reads nothing, and after a change reads only what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from mimbench.data.cache import writing
from mimbench.data.images import BrokenImageError, UnreachableImageError
from mimbench.data.parallel import in_threads
from mimbench.data.sources.base import Samples, Units
from mimbench.progress import Progress

FORMAT = 1


@dataclass
class Scan:
    """What is known of each sample.

    digests: uint8 [N, 32], SHA-256 of the encoded bytes.
    sizes: int32 [N, 2], height and width; 0 where broken.
    broken: reason by sample index. unreachable: those whose bytes could not be had at all.
    targets: uint8 [N, 32], SHA-256 of the annotations, where there are any beside the labels.
    """

    digests: np.ndarray
    sizes: np.ndarray
    broken: dict[int, str]
    unreachable: list[int] = field(default_factory=list)
    targets: np.ndarray | None = None

    @classmethod
    def empty(cls, count: int) -> Scan:
        """Room for ``count`` samples."""
        return cls(np.zeros((count, 32), np.uint8), np.zeros((count, 2), np.int32), {})


def scan(
    part: Samples, folder: Path, report: Callable[[Progress], None], stage: str = "checking images"
) -> Scan:
    """The reading of ``part``, remembered under ``folder`` (the cache's)."""
    if part.units is None:
        result = Scan.empty(len(part))
        _read(part, result, part.pieces(), report, stage)
        return result
    name = hashlib.sha256(f"{FORMAT} {part.identity}".encode()).hexdigest()[:32]
    path = folder / "scans" / f"{name}.npz"
    known = _load(path)
    if known is not None and known.units == part.units:
        return known.scan
    with writing(folder):
        path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        known = _load(path)  # another process may have read it meanwhile
        if known is not None and known.units == part.units:
            return known.scan
        result = Scan.empty(len(part))
        _read(part, result, _still_unknown(part, known, result), report, stage)
        with writing(folder):
            _save(path, part.units.forget(result.unreachable), result)
        return result


def _read(
    part: Samples, result: Scan, pieces: list[range], report: Callable[[Progress], None], stage: str
) -> None:
    def work(piece: range) -> int:
        for index, content in zip(piece, part.read(piece), strict=True):
            try:
                if isinstance(content, BrokenImageError):
                    raise content
                result.digests[index] = np.frombuffer(part.digest(content), np.uint8)
                result.sizes[index] = part.inspect(content)
            except BrokenImageError as error:
                result.sizes[index] = 0
                result.broken[index] = str(error)
                if isinstance(error, UnreachableImageError):
                    result.unreachable.append(index)
        return len(piece)

    with_progress(work, pieces, stage, report)
    result.broken = dict(sorted(result.broken.items()))


def with_progress(
    work: Callable[[range], int], pieces: list[range], stage: str, report: Callable[[Progress], None]
) -> None:
    """Does all pieces in threads; ``work`` returns how many samples a piece was."""
    total, done, begin = sum(map(len, pieces)), 0, time.monotonic()
    for count in in_threads(work, pieces):
        done += count
        rate = done / max(time.monotonic() - begin, 1e-9)
        report(Progress(stage, done / total, rate=rate, seconds_left=(total - done) / rate))


@dataclass
class _Known:
    units: Units
    scan: Scan


def _still_unknown(part: Samples, known: _Known | None, result: Scan) -> list[range]:
    """Copies what is known of unchanged files into ``result``; returns the pieces left to read."""
    if known is None or part.units is None:
        return part.pieces()
    before = known.units.starts()
    fresh = np.ones(len(part), bool)
    for facts, start in part.units.starts().items():
        if (old := before.get(facts)) is None:
            continue
        count = facts[-1]
        here, there = slice(start, start + count), slice(old, old + count)
        result.digests[here], result.sizes[here] = known.scan.digests[there], known.scan.sizes[there]
        fresh[here] = False
        for offset in np.flatnonzero(result.sizes[here, 0] == 0).tolist():
            result.broken[start + offset] = known.scan.broken[old + offset]
    return [piece for piece in part.pieces() if fresh[piece.start : piece.stop].any()]


def _save(path: Path, units: Units, result: Scan) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                names=units.names,
                numbers=units.numbers,
                digests=result.digests,
                sizes=result.sizes,
                broken=np.frombuffer(json.dumps(result.broken).encode(), np.uint8),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> _Known | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            broken = {int(i): str(reason) for i, reason in json.loads(file["broken"].tobytes()).items()}
            reading = Scan(file["digests"], file["sizes"], broken)
            return _Known(Units(file["names"], file["numbers"]), reading)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # nothing yet, or damaged: it is read anew

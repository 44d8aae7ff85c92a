"""Released files as encoders of ours, in the cache: fetched, converted once, made anew when need be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mimbench import checkpoint
from mimbench.download import FetchError
from mimbench.errors import UserError
from mimbench.files import locked, make_folder, write_atomically
from mimbench.progress import Progress, silent
from mimbench.registry import find_origin
from mimbench.weights.convert import convert
from mimbench.weights.entries import converted_path
from mimbench.weights.entry import Entry
from mimbench.weights.foreign import UnreadableError
from mimbench.weights.obtain import as_of, by_hand, discard, obtained

Report = Callable[[Progress], None]


def convert_once(entry: Entry, report: Report = silent, keep: bool = False) -> Path:
    """The converted file of an entry, fetched and made if need be; else nothing is asked of a network.

    keep: the file as it was released, too; otherwise it is deleted once it is converted. Several processes
    convert once. Raises UserError where no mirror has a file that can be read, naming each reason, and for a
    file of another layout.
    """
    path = converted_path(entry)
    if not is_current(path, entry):

        def waits() -> None:
            report(Progress(f"waiting for another process that gets {entry.name}", 0.0))

        with locked(path.with_suffix(".lock"), waits):
            if not is_current(path, entry):
                _make(entry, path, report, keep)
    return path


def _make(entry: Entry, path: Path, report: Report, keep: bool) -> None:
    """Convert the file of the first mirror that has one which can be read and fits."""
    reasons, misfit = [], None
    for mirror in entry.mirrors:
        try:
            with obtained(mirror, report, keep) as original:
                report(Progress(f"converting {entry.name}", 0.0))
                convert(original, as_of(entry, mirror), path, mirror.origin)
                return
        except FetchError as error:
            reasons.append(str(error))
        except UnreadableError as error:  # broken, or refused: fetched anew next time
            discard(mirror)
            reasons.append(f"{mirror.url}: {error}")
        except UserError as error:  # sound, and of another layout: it stays
            misfit = misfit or error
    raise misfit or _nowhere(entry, reasons)


def get(entry: Entry, keep: bool = False, out: Path | None = None, report: Report = silent) -> Path:
    """Fetch and convert an entry, and copy it to ``out``/NAME.safetensors where a folder is given; the path.

    keep: the file as it was released, too, even where it was converted before. Raises as ``convert_once``.
    """
    path = convert_once(entry, report, keep)
    if keep:
        fetch_original(entry, report)
    if out is None:
        return path
    copy = make_folder(out) / path.name
    with open(path, "rb") as source:
        write_atomically(copy, lambda file: shutil.copyfileobj(source, file))
    return copy


def fetch_original(entry: Entry, report: Report = silent) -> Path:
    """The file as it was released, fetched if need be, and kept. Raises UserError as ``convert_once``."""
    reasons = []
    for mirror in entry.mirrors:
        try:
            with obtained(mirror, report, keep=True) as original:
                return original
        except FetchError as error:
            reasons.append(str(error))
    raise _nowhere(entry, reasons)


def _nowhere(entry: Entry, reasons: list[str]) -> UserError:
    said = "; ".join(reasons) or "it can be fetched by hand only"
    return UserError(f"{entry.name}: {said}; {by_hand(entry)}")


def is_current(path: Path, entry: Entry) -> bool:
    """Whether a converted file is there, and is what today's code would make of the same original."""
    try:
        metadata = checkpoint.read_metadata(path)
    except UserError:  # none there, or damaged: it can be made again
        return False
    release = metadata.get("release", {})
    used = release.get("origin", "")
    mirrored = {mirror.origin for mirror in entry.mirrors if mirror.origin}
    if used not in {entry.origin, *mirrored} or release.get("origin_version") != find_origin(used).version:
        return False
    expected = {
        "backbone_config": find_origin(used).config(entry),
        "mean": list(entry.mean),
        "std": list(entry.std),
        "readout": entry.readout.content(),
    }
    return all(metadata.get(name) == value for name, value in expected.items())
